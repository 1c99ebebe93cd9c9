"""Handles, actor classes and remote functions as objects in one process: no node is needed to get their words right."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lattica.actors import current, values
from lattica.actors.calls import ActorPeer
from lattica.actors.handles import ActorClass, ActorHandle, Meta, Spec, kill, method, revive, spec_decoder
from lattica.actors.refs import ActorHold, Releases
from lattica.actors.remote import RemoteFunction, remote
from lattica.codec import messages as m
from lattica.errors import ConfigError, OutOfBandRefError

GOLDEN = Path(__file__).parents[1] / "golden" / "handles.json"
ACTOR = b"a" * 12


class FakeRuntime:
    """As far as handles look at a runtime. Knows one actor."""

    namespace = "space"
    data = False

    def __init__(self) -> None:
        self.releases = Releases()

    def load_actor(self, id: bytes, meta: bytes) -> ActorHandle:
        return handle(self, meta, id)


def handle(runtime: Any, meta: bytes | Meta, id: bytes = ACTOR) -> ActorHandle:
    peer = ActorPeer(runtime, None, id)  # type: ignore[arg-type]
    hold = ActorHold(runtime.releases, id)
    peer.hold = hold.watch()
    return revive(runtime, peer, hold, meta if isinstance(meta, bytes) else msgspec.msgpack.encode(meta))


class Counter:
    """Counts."""

    def __init__(self, start: int = 0) -> None:
        self.value = start

    def add(self, by: int) -> int:
        self.value += by
        return self.value

    @method(num_returns=2, max_task_retries=5, retry_exceptions=[KeyError, OSError])
    def pair(self) -> tuple[int, int]:
        return self.value, -self.value

    @staticmethod
    def helper() -> int:
        return 1

    def revive(self) -> str:
        return "a method of the user's that is called like one of ours"

    Inner = int


@pytest.fixture
def counter() -> ActorHandle:
    return handle(FakeRuntime(), ActorClass(Counter, {"max_task_retries": 1, "max_pending_calls": 10})._meta())


@pytest.fixture(autouse=True)
def nothing_starts() -> Iterator[None]:
    """What needs a runtime here is an error, not a node."""
    started, current._start = current._start, None
    yield
    current._start = started


# -- handles


def test_every_method_of_the_class_can_be_called_through_a_handle(counter: ActorHandle) -> None:
    for name in ("add", "pair", "helper", "revive"):
        assert repr(getattr(counter, name)) == f"<ActorMethod Counter.{name}>"
    assert counter.add is counter.add


def test_what_the_class_does_not_have_is_an_attribute_error_that_names_both(counter: ActorHandle) -> None:
    for name in ("subtract", "value", "Inner", "__len__", "_repr_html_"):
        with pytest.raises(AttributeError, match=f"actor Counter has no method '{name}'"):
            getattr(counter, name)


def test_a_handle_knows_no_methods_that_every_object_has() -> None:
    assert sorted(ActorClass(Counter, {})._meta().methods) == ["__init__", "add", "helper", "pair", "revive"]

    class Callable:
        def __call__(self) -> int:
            return 5

        def __repr__(self) -> str:
            return "of the user's own"

    assert sorted(ActorClass(Callable, {})._meta().methods) == ["__call__", "__repr__"]


def test_an_actor_can_be_asked_to_terminate_in_either_tongue(counter: ActorHandle) -> None:
    assert repr(counter.__ray_terminate__) == "<ActorMethod Counter.__ray_terminate__>"
    assert repr(counter.__lattica_terminate__) == "<ActorMethod Counter.__lattica_terminate__>"


def test_calling_a_method_without_remote_says_how_to(counter: ActorHandle) -> None:
    with pytest.raises(TypeError, match=r"add\.remote"):
        counter.add(1)


def test_attributes_cannot_be_set_through_a_handle(counter: ActorHandle) -> None:
    with pytest.raises(AttributeError, match="'value' cannot be set"):
        counter.value = 5


def test_handles_are_equal_if_their_actor_is_the_same(counter: ActorHandle) -> None:
    meta = counter._meta
    same, other = handle(FakeRuntime(), meta), handle(FakeRuntime(), meta, b"b" * 12)
    assert counter == same and hash(counter) == hash(same) and len({counter, same, other}) == 2
    assert counter != other and counter != "Counter"
    assert repr(counter) == f"Actor(Counter, {ACTOR.hex()})"


def test_a_method_has_the_options_of_its_decorator_then_those_of_its_actor(counter: ActorHandle) -> None:
    pair, add = counter.pair, counter.add
    assert (pair._returns, pair._retries, pair._retry_exceptions) == (2, 5, (KeyError, OSError))
    assert (add._returns, add._retries, add._retry_exceptions) == (1, 1, False)


def test_options_given_to_a_method_hold_for_the_copy_alone(counter: ActorHandle) -> None:
    changed = counter.pair.options(num_returns=3, retry_exceptions=[ValueError])
    assert (changed._returns, changed._retries, changed._retry_exceptions) == (3, 5, (ValueError,))
    assert counter.add.options(max_task_retries=None)._retries == 1
    assert counter.add.options(num_returns=2)._retries == 1
    assert counter.pair._returns == 2
    with pytest.raises(ConfigError, match="no option 'max_retries'"):
        counter.add.options(max_retries=2)


def test_a_handle_inside_a_value_is_noted_and_comes_back_with_its_options(counter: ActorHandle) -> None:
    data = values.dumps([counter, counter], "it")
    assert data.refs == [counter._hold]
    one, other = values.loads(data.join(), FakeRuntime())  # type: ignore[arg-type]
    assert one is other and one == counter
    assert (one.pair._returns, one.pair._retry_exceptions) == (2, (KeyError, OSError))
    assert (one._peer.class_name, one._peer.max_pending) == ("Counter", 10)


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_handle_copied_outside_lattica_is_refused_because_nobody_could_count_it(
    counter: ActorHandle, duplicate: Any
) -> None:
    with pytest.raises(OutOfBandRefError, match="outside lattica"):
        duplicate(counter)


def test_the_hold_of_an_actor_ends_with_the_last_of_its_handles_and_methods() -> None:
    runtime = FakeRuntime()
    one = handle(runtime, ActorClass(Counter, {})._meta())
    add = one.add
    del one
    assert not runtime.releases, "its method may still be called"
    del add
    assert [id for id, *_ in runtime.releases] == [ACTOR]


def test_a_hold_is_out_of_reach_when_word_of_its_end_is_left() -> None:
    """An actor's last handle goes in one thread, and another is about to unpickle a new one. Were the old hold still
    reachable while its end is told, the new handle would share it, and nobody would hear when that one goes."""
    runtime, seen = FakeRuntime(), []
    hold = ActorHold(runtime.releases, ACTOR)
    watch = hold.watch()
    runtime.releases.poke = lambda: seen.append(watch())
    del hold
    assert seen == [None] and len(runtime.releases) == 1


def test_only_handles_can_be_killed() -> None:
    with pytest.raises(ConfigError, match=r"lattica\.cancel"):
        kill("Counter")  # type: ignore[arg-type]


# -- actor classes


def test_an_actor_class_is_not_called_but_made_remote() -> None:
    made = remote(Counter)
    assert isinstance(made, ActorClass) and repr(made) == "<ActorClass Counter>"
    assert (made.__name__, made.__doc__, made.__module__) == ("Counter", "Counts.", __name__)
    with pytest.raises(TypeError, match=r"Counter\.remote"):
        made(5)


def test_options_of_an_actor_class_add_up_and_the_last_word_counts() -> None:
    first = remote(num_cpus=2, max_restarts=1)(Counter)
    second = first.options(max_restarts=3, name="c")
    assert second._options == {"num_cpus": 2, "max_restarts": 3, "name": "c"} and first._options["max_restarts"] == 1
    with pytest.raises(ConfigError, match="an actor has no option 'num_returns'"):
        first.options(num_returns=2)


@pytest.mark.parametrize(("given", "limit"), [({}, -1), ({"max_pending_calls": 0}, -1), ({"max_pending_calls": 7}, 7)])
def test_pending_calls_are_unlimited_unless_a_number_is_given(given: dict[str, Any], limit: int) -> None:
    assert ActorClass(Counter, given)._meta().max_pending == limit


def test_an_actor_class_travels_with_its_options() -> None:
    got = values.loads(values.dumps(remote(num_cpus=2)(Counter)).join(), FakeRuntime())  # type: ignore[arg-type]
    assert isinstance(got, ActorClass) and (got._cls, got._options) == (Counter, {"num_cpus": 2})


# -- remote functions


def plus(a: int, b: int = 1) -> int:
    """Adds."""
    return a + b


def test_a_remote_function_looks_like_the_function_it_was_made_of() -> None:
    made = remote(plus)
    assert (made.__name__, made.__doc__, made.__wrapped__) == ("plus", "Adds.", plus)
    assert repr(made) == "<RemoteFunction plus>"
    with pytest.raises(TypeError, match=r"plus\.remote"):
        made(1)


def test_options_of_a_remote_function_add_up_and_keep_its_code() -> None:
    first = remote(num_cpus=2, max_retries=0)(plus)
    second = first.options(num_returns=3, name="three")
    assert second._key == first._key and (second._returns, second._retries, second._name) == (3, 0, "three")
    assert (first._returns, remote(plus)._retries, first.options(num_returns=None)._returns) == (1, 3, 1)


def test_each_definition_is_code_of_its_own() -> None:
    """A notebook cell that runs again defines anew what has the same name."""
    assert remote(plus)._key != remote(plus)._key


def test_a_remote_function_travels_with_its_options_and_key() -> None:
    made = remote(num_returns=2)(plus)
    got = values.loads(values.dumps(made).join(), FakeRuntime())  # type: ignore[arg-type]
    assert isinstance(got, RemoteFunction) and (got._key, got._returns, got._function) == (made._key, 2, plus)


async def coroutine() -> None: ...


async def async_generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (5, "needs a function or a class, not a int"),
        (coroutine, "method of an actor"),
        (async_generator, "method of an actor"),
        (RemoteFunction(plus, {}), "is remote already"),
        (ActorClass(Counter, {}), "is remote already"),
    ],
)
def test_what_cannot_be_made_remote_is_refused_with_a_word(thing: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        remote(thing)


def test_the_decorator_takes_keywords_only() -> None:
    with pytest.raises(ConfigError, match="keywords only"):
        remote(plus, 5)
    with pytest.raises(ConfigError, match="keywords only"):
        remote(plus, num_cpus=2)


def test_a_wrong_option_is_refused_where_it_is_written() -> None:
    with pytest.raises(ConfigError, match="num_returns"):
        remote(num_returns=-1)(plus)
    with pytest.raises(ConfigError, match="no option 'max_retries'"):
        method(max_retries=3)


def test_what_needs_a_session_says_how_to_begin_one() -> None:
    with pytest.raises(ConfigError, match=r"lattica\.init\(\)"):
        remote(plus).remote(1)
    with pytest.raises(ConfigError, match=r"lattica\.init\(\)"):
        remote(Counter).remote()


# -- what the node keeps

EXAMPLES: list[Any] = [
    Meta("Counter", {"pair": {"num_returns": 2}}, 3, 10, ["io"]),
    Spec(
        b"code", m.InArena(b"o" * 16, 64, 200), [b"dep"], [0, "key"], "Counter", 8, True, b"meta", True, 2.5, {"io": 2}
    ),
]


def test_what_the_node_keeps_of_an_actor_has_golden_bytes() -> None:
    """An actor that was started by one release gets a handle from another by `get_actor`."""
    golden = json.loads(GOLDEN.read_text())
    encoded = {type(each).__name__: msgspec.msgpack.encode(each).hex() for each in EXAMPLES}
    assert encoded == golden, f"the wire format changed; if it must, {GOLDEN.name} is now {json.dumps(encoded)}"
    assert spec_decoder.decode(bytes.fromhex(golden["Spec"])) == EXAMPLES[1]


def test_a_meta_of_a_later_release_is_understood() -> None:
    longer = msgspec.msgpack.encode([*msgspec.msgpack.decode(msgspec.msgpack.encode(EXAMPLES[0])), "new"])
    assert handle(FakeRuntime(), longer)._meta == EXAMPLES[0]


def test_a_function_that_asks_for_gpus_has_a_new_process_for_each_call_unless_it_says_otherwise() -> None:
    assert remote(num_gpus=1)(plus)._options["max_calls"] == 1
    assert remote(num_gpus=0.5, max_calls=0)(plus)._options["max_calls"] == 0
    assert remote(num_cpus=1)(plus)._options.get("max_calls") is None
    assert remote(plus).options(num_gpus=1)._options.get("max_calls") is None
