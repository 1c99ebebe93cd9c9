"""`lattica.exceptions` has every name of `ray.exceptions`, and each `except` clause catches what Ray promises."""

from __future__ import annotations

import builtins

import pytest

from lattica import errors, exceptions

# Every class of ray.exceptions in Ray 2.60.0 with all its bases, nearest first, as `__mro__` gives them.
RAY_2_60 = """
ActorAlreadyExistsError ValueError RayError Exception
ActorDiedError RayActorError RayError Exception
ActorHandleNotFoundError ValueError RayError Exception
ActorPlacementGroupRemoved RayError Exception
ActorUnavailableError RayActorError RayError Exception
ActorUnschedulableError RayError Exception
AsyncioActorExit RayError Exception
AuthenticationError RayError Exception
CrossLanguageError RayError Exception
GetTimeoutError RayError TimeoutError OSError Exception
LocalRayletDiedError RayError Exception
NodeDiedError RayError Exception
ObjectFetchTimedOutError ObjectLostError RayError Exception
ObjectFreedError ObjectLostError RayError Exception
ObjectLostError RayError Exception
ObjectReconstructionFailedError ObjectLostError RayError Exception
ObjectRefStreamEndOfStreamError RayError Exception
ObjectStoreFullError RayError Exception
OufOfBandObjectRefSerializationException RayError Exception
OutOfDiskError RayError Exception
OutOfMemoryError RayError Exception
OwnerDiedError ObjectLostError RayError Exception
PendingCallsLimitExceeded RayError Exception
PlasmaObjectNotAvailable RayError Exception
RayActorError RayError Exception
RayCgraphCapacityExceeded RaySystemError RayError Exception
RayChannelError RaySystemError RayError Exception
RayChannelTimeoutError RayChannelError RaySystemError RayError TimeoutError OSError Exception
RayDirectTransportError RaySystemError RayError Exception
RayError Exception
RaySystemError RayError Exception
RayTaskError RayError Exception
ReferenceCountingAssertionError ObjectLostError RayError AssertionError Exception
RpcError RayError Exception
RuntimeEnvSetupError RayError Exception
StreamingGeneratorReplayInconsistentError RaySystemError RayError Exception
TaskCancelledError RayError Exception
TaskPlacementGroupRemoved RayError Exception
TaskUnschedulableError RayError Exception
UnserializableException RayError Exception
UserCodeException RayError Exception
WorkerCrashedError RayError Exception
"""
BASES = {name: bases for name, *bases in map(str.split, RAY_2_60.strip().splitlines())}


def the_class(name: str) -> type:
    return getattr(exceptions, name, None) or getattr(builtins, name)


@pytest.mark.parametrize("name", BASES)
def test_each_name_of_ray_is_one_of_our_own_classes(name: str) -> None:
    ours = getattr(exceptions, name)
    assert ours.__module__ == "lattica.errors"
    assert getattr(errors, ours.__name__) is ours


@pytest.mark.parametrize("name", BASES)
def test_each_name_is_caught_by_every_class_that_catches_it_in_ray(name: str) -> None:
    caught_by = the_class(name).__mro__
    assert [base for base in BASES[name] if the_class(base) not in caught_by] == []


def test_no_two_names_of_ray_fell_together() -> None:
    assert len({the_class(name) for name in BASES}) == len(BASES)


def test_an_except_clause_catches_no_more_than_in_ray_but_where_ours_say_so() -> None:
    ours_alone = {  # an OutOfDiskError is a full store, our own node is a node, a stray ref is a serialization error
        ("OutOfDiskError", "ObjectStoreFullError"),
        ("LocalRayletDiedError", "NodeDiedError"),
        ("OufOfBandObjectRefSerializationException", "UnserializableException"),
    }
    more = {
        (name, other)
        for name in BASES
        for other in BASES
        if other not in (name, *BASES[name]) and issubclass(the_class(name), the_class(other))
    }
    assert more == ours_alone


def test_the_list_of_types_holds_only_classes_of_the_table() -> None:
    listed = set(exceptions.RAY_EXCEPTION_TYPES)
    assert listed <= {the_class(name) for name in BASES}
    assert len(listed) == len(exceptions.RAY_EXCEPTION_TYPES) == 30
