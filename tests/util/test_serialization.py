"""What the user says of how a class travels, and what is said of values that do not."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lattica.actors import values
from lattica.errors import ConfigError, SerializationError
from lattica.util import deregister_serializer, inspect_serializability, register_serializer
from lattica.util.check_serialize import FailureTuple

LOCK = threading.Lock()


class Guarded:
    """Cannot be pickled by itself."""

    def __init__(self, number: int) -> None:
        self.number, self.lock = number, threading.Lock()


class Holder:
    def __init__(self) -> None:
        self.ok, self.inner = 1, Guarded(1)


class Slotted:
    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = threading.Lock()


def there_and_back(value: Any) -> Any:
    return values.loads(values.dumps(value).join(), None)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def nothing_stays_registered() -> Iterator[None]:
    yield
    values.REDUCERS.clear()


def test_a_registered_class_travels_as_its_serializer_says_until_it_is_deregistered() -> None:
    with pytest.raises(SerializationError, match="lock"):
        values.dumps(Guarded(1))
    register_serializer(Guarded, serializer=lambda each: each.number, deserializer=lambda number: Guarded(number + 1))
    assert there_and_back({"deep": [Guarded(4)]})["deep"][0].number == 5
    deregister_serializer(Guarded)
    deregister_serializer(Guarded)
    with pytest.raises(SerializationError):
        values.dumps(Guarded(1))


def test_what_a_serializer_raises_is_said() -> None:
    register_serializer(Guarded, serializer=lambda guarded: 1 / 0, deserializer=Guarded)
    with pytest.raises(SerializationError, match="division by zero"):
        values.dumps(Guarded(1))


def test_subclasses_and_the_types_of_messages_keep_their_way() -> None:
    class Sub(Guarded): ...

    register_serializer(Guarded, serializer=lambda guarded: guarded.number, deserializer=Guarded)
    with pytest.raises(SerializationError):
        values.dumps(Sub(1))
    for wrong in (dict, int, "Guarded"):
        with pytest.raises(ConfigError):
            register_serializer(wrong, serializer=str, deserializer=str)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        register_serializer(Guarded, serializer=None, deserializer=str)  # type: ignore[arg-type]


def inspected(value: Any, **how: Any) -> tuple[bool, list[FailureTuple], str]:
    printed = io.StringIO()
    ok, failures = inspect_serializability(value, print_file=printed, **how)
    return ok, list(failures), printed.getvalue()


def test_what_travels_is_said_to() -> None:
    assert inspected(3, name="three") == (True, [], "three can be serialized\n")


def in_closure() -> Any:
    lock = threading.Lock()
    return lambda: lock


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (LOCK, ("it",)),
        (Guarded(1), ("it", "lock")),
        (Holder(), ("it", "inner", "lock")),
        (Slotted(), ("it", "lock")),
        ({"k": [1, LOCK]}, ("it", "['k']", "[1]")),
        (in_closure(), ("it", "lock")),
        (threading.Condition(threading.Lock()), ("it", "_lock")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_way_to_the_culprit_is_found_and_printed(value: Any, path: tuple[str, ...]) -> None:
    ok, [failure], printed = inspected(value, name="it")
    assert not ok and failure.path == path and failure.name == path[-1]
    assert all(name in printed for name in path) and "cannot pickle" in printed
    assert (failure.parent is None) == (len(path) == 1)


def test_it_goes_no_deeper_than_asked_and_needs_no_name() -> None:
    holder = Holder()
    _, [failure], _ = inspected(holder, depth=1)
    assert failure.path == ("inner",) and failure.obj is holder.inner and failure.parent is holder
    _, [failure], _ = inspected(holder, depth=0)
    assert failure.path == () and failure.obj is holder
