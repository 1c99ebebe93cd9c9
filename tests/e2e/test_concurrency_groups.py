"""Groups of an actor's methods: each has its own calls at a time, and none waits for another."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

import lattica
from lattica.errors import ConfigError
from lattica.exceptions import ActorDiedError, TaskCancelledError
from tests.e2e.conftest import eventually

pytestmark = pytest.mark.usefixtures("two_cpus")


class Grouped:
    """Methods of a base class keep their groups."""

    def __init__(self) -> None:
        self.opened, self.inside, self.most = threading.Event(), 0, 0
        self.lock = threading.Lock()

    @lattica.method(concurrency_group="io")
    def read(self, seconds: float = 0.0) -> int:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        time.sleep(seconds)
        with self.lock:
            self.inside -= 1
        return threading.get_ident()

    @lattica.method(concurrency_group="io")
    def open(self) -> int:
        self.opened.set()
        return self.most

    def wait(self) -> bool:
        return self.opened.wait(30)


@lattica.remote(concurrency_groups={"io": 2, "one": 1})
class Store(Grouped):
    @lattica.method(concurrency_group="one")
    def alone(self) -> int:
        return threading.get_ident()

    def thread(self) -> tuple[int, bool]:
        return threading.get_ident(), threading.current_thread() is threading.main_thread()

    def watch(self) -> str:
        self.opened.set()
        while not lattica.get_runtime_context().is_canceled():
            time.sleep(0.01)
        return "seen"

    def sleep(self) -> None:
        threading.Event().wait(30)

    def leave(self) -> None:
        lattica.actor.exit_actor()


def test_a_group_does_not_wait_for_another_and_has_its_own_limit() -> None:
    store = Store.remote()
    waits = store.wait.remote()
    lattica.get([store.read.remote(0.05) for _ in range(6)], timeout=30)
    assert lattica.wait([waits], timeout=0)[0] == []
    assert lattica.get(store.open.remote(), timeout=30) == 2
    assert lattica.get(waits, timeout=30) is True


def test_a_group_of_one_has_a_thread_for_itself_and_what_is_of_no_group_the_main_thread() -> None:
    store = Store.remote()
    alone = lattica.get([store.alone.remote() for _ in range(5)], timeout=30)
    here, is_main = lattica.get(store.thread.remote(), timeout=30)
    assert len(set(alone)) == 1 and is_main and here not in alone


def test_max_concurrency_is_of_those_in_no_group() -> None:
    store = Store.options(max_concurrency=2).remote()
    waits = store.wait.remote()
    assert lattica.get([store.thread.remote() for _ in range(3)], timeout=30)[0][1] is False
    both = [waits, store.wait.remote(), store.wait.remote()]
    assert lattica.get(store.alone.remote(), timeout=30) and lattica.wait(both, timeout=0)[0] == []
    lattica.get(store.open.remote(), timeout=30)
    assert lattica.get(both, timeout=30) == [True] * 3


def test_one_call_can_be_made_in_another_group() -> None:
    store = Store.remote()
    waits = store.wait.options(concurrency_group="one").remote()
    assert lattica.get(store.thread.remote(), timeout=30)[1]
    assert lattica.get(store.open.options(concurrency_group=None).remote(), timeout=30) == 0
    assert lattica.get(waits, timeout=30) is True


def test_a_cancel_breaks_what_is_of_no_group_and_is_seen_by_what_is_of_one() -> None:
    store = Store.remote()
    watches = store.watch.options(concurrency_group="one").remote()
    assert lattica.get(store.wait.remote(), timeout=30), "it runs"
    waits = store.sleep.remote()
    lattica.get([store.read.remote() for _ in range(5)], timeout=30)
    lattica.cancel(watches)
    assert lattica.get(watches, timeout=30) == "seen"
    lattica.cancel(waits)
    with pytest.raises(TaskCancelledError):
        lattica.get(waits, timeout=30)
    assert lattica.get(store.thread.remote(), timeout=30)[1]


def test_an_actor_that_a_group_s_call_ends_is_over_for_all() -> None:
    store = Store.remote()
    lattica.get(store.read.remote(), timeout=30)
    with pytest.raises(ActorDiedError):
        lattica.get(store.leave.options(concurrency_group="io").remote(), timeout=30)
    with pytest.raises(ActorDiedError):
        lattica.get(store.thread.remote(), timeout=30)


def test_an_unknown_group_is_an_error_that_names_those_that_there_are() -> None:
    store = Store.remote()
    with pytest.raises(ConfigError, match=r"no concurrency group 'oi'(.|\n)*'io', 'one'"):
        store.wait.options(concurrency_group="oi")
    with pytest.raises(ConfigError, match=r"no concurrency group 'io'(.|\n)*give the class some"):
        lattica.remote(Grouped).remote()
    with pytest.raises(ConfigError, match="cannot be given in"):
        Store.options(concurrency_groups={"io": 3})


@lattica.remote(concurrency_groups={"io": 2})
class Async:
    def __init__(self) -> None:
        self.loop = asyncio.get_event_loop()
        self.inside = self.most = 0
        self.blocked = threading.Event()

    @lattica.method(concurrency_group="io")
    async def read(self) -> Any:
        self.inside += 1
        self.most = max(self.most, self.inside)
        await asyncio.sleep(0.05)
        self.inside -= 1
        return asyncio.get_running_loop() is self.loop

    @lattica.method(concurrency_group="io")
    def most_at_once(self) -> int:
        return self.most

    async def here(self) -> bool:
        return asyncio.get_running_loop() is self.loop

    def block(self) -> bool:
        return self.blocked.wait(30)

    @lattica.method(concurrency_group="io")
    async def go_on(self) -> None:
        self.blocked.set()

    @lattica.method(concurrency_group="io")
    async def forever(self) -> None:
        await asyncio.Event().wait()


def test_groups_of_an_async_actor_have_event_loops_of_their_own() -> None:
    actor = Async.remote()
    assert lattica.get([actor.read.remote() for _ in range(5)], timeout=30) == [False] * 5
    assert lattica.get(actor.most_at_once.remote(), timeout=30) == 2
    assert lattica.get(actor.here.remote(), timeout=30)
    blocks = actor.block.remote()
    waits = actor.forever.remote()
    lattica.cancel(waits)
    with pytest.raises(TaskCancelledError):
        lattica.get(waits, timeout=30)
    lattica.get(actor.go_on.remote(), timeout=30)
    assert lattica.get(blocks, timeout=30) is True


def test_handles_that_travel_know_the_groups() -> None:
    @lattica.remote
    def reads(store: Any) -> str:
        try:
            store.wait.options(concurrency_group="oi")
        except ConfigError as error:
            return str(error)
        return ""

    store = Store.options(name="grouped").remote()
    assert "'io', 'one'" in lattica.get(reads.remote(store), timeout=30)
    waits = store.wait.remote()
    assert eventually(lambda: lattica.get(lattica.get_actor("grouped").open.remote(), timeout=30) == 0)
    assert lattica.get(waits, timeout=30) is True
