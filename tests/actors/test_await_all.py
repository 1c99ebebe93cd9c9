"""A `get` of many hears of the first failure, whichever thread sees it first."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from lattica.actors.runtime import Runtime
from lattica.codec import messages as m

FAILED = m.Failed(b"early")


class Ref:
    """One that is settled by whoever settles it, perhaps between two looks at it."""

    def __init__(self, settle_at_look: Callable[[], None] | None = None) -> None:
        self.value: Any = None
        self._settle = settle_at_look

    @property
    def _value(self) -> Any:
        seen, settle, self._settle = self.value, self._settle, None
        if settle is not None:
            settle()
        return seen


def runtime(waits: Callable[[Callable[[], bool]], bool]) -> Any:
    def wait_until(done: Callable[[], bool], timeout: float | None, *, spin: bool) -> bool:
        return waits(done)

    return SimpleNamespace(objects=SimpleNamespace(failures=0), _ask=lambda refs: None, wait_until=wait_until)


def fail(me: Any, ref: Ref) -> None:
    ref.value = FAILED
    me.objects.failures += 1


def test_what_another_thread_has_seen_is_still_so_when_the_waiting_one_looks() -> None:
    pending, failing = Ref(), Ref()

    def waits(done: Callable[[], bool]) -> bool:
        assert not done()
        fail(me, failing)
        assert done(), "the thread that leads looks, and wakes the other"
        return done()

    me = runtime(waits)
    assert Runtime.await_all(me, [pending, failing], 1.0) is failing  # type: ignore[list-item, comparison-overlap]


def test_a_failure_that_comes_while_the_refs_are_looked_at_is_not_missed() -> None:
    me = runtime(lambda done: done())
    pending, failing = Ref(), Ref(lambda: fail(me, failing))
    assert Runtime.await_all(me, [failing, pending], 1.0) is failing  # type: ignore[list-item, comparison-overlap]
