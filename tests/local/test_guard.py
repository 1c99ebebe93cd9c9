"""Signals in the main thread: none is lost, none comes at the wrong moment, and users' own handlers go on working."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from signal import SIGINT, SIGUSR1, SIGUSR2, raise_signal
from types import FrameType

import pytest

from lattica.local.guard import Guard


class Heard(list[str]):
    """What handlers were called, in order."""

    def by(self, name: str, then: object = None) -> object:
        def handler(signum: int, frame: FrameType | None) -> None:
            self.append(name)
            if callable(then):
                then(signum, frame)

        return handler


@pytest.fixture(autouse=True)
def handlers_of_before() -> Iterator[None]:
    before = {signum: signal.getsignal(signum) for signum in (SIGINT, SIGUSR1, SIGUSR2)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def guard(heard: Heard) -> Guard:
    """A guard before handlers of two signals."""
    made = Guard()
    for signum, name in ((SIGUSR1, "one"), (SIGUSR2, "two")):
        signal.signal(signum, heard.by(name))
        made.wrap(signum)
    return made


# -- when


def test_a_signal_outside_the_guard_is_handled_at_once(guard: Guard, heard: Heard) -> None:
    raise_signal(SIGUSR1)
    assert heard == ["one"]


def test_a_signal_inside_the_guard_is_handled_when_it_is_left(guard: Guard, heard: Heard) -> None:
    assert guard.enter()
    raise_signal(SIGUSR1)
    assert heard == []
    guard.leave()
    assert heard == ["one"]


def test_only_the_outermost_of_nested_parts_lets_signals_through(guard: Guard, heard: Heard) -> None:
    assert guard.enter()
    assert not guard.enter()  # and so does not leave
    raise_signal(SIGUSR1)
    assert heard == []
    guard.leave()
    assert heard == ["one"]


def test_opening_for_a_blocking_call_handles_what_waits_and_what_comes(guard: Guard, heard: Heard) -> None:
    guard.enter()
    raise_signal(SIGUSR1)
    assert guard.defers_here
    guard.open()
    assert heard == ["one"]
    raise_signal(SIGUSR2)
    assert heard == ["one", "two"]
    guard.on = True
    raise_signal(SIGUSR1)
    assert heard == ["one", "two"]
    guard.leave()
    assert heard == ["one", "two", "one"]


def test_signals_that_wait_are_handled_in_order_and_each_once_as_the_kernel_does(guard: Guard, heard: Heard) -> None:
    guard.enter()
    for signum in (SIGUSR2, SIGUSR1, SIGUSR2):
        raise_signal(signum)
    guard.leave()
    assert heard == ["two", "one"]


def test_ctrl_c_waits_for_the_end_of_the_guarded_part() -> None:
    guard = Guard()
    signal.signal(SIGINT, signal.default_int_handler)
    guard.wrap(SIGINT)
    done = False
    with pytest.raises(KeyboardInterrupt):
        guard.enter()
        raise_signal(SIGINT)
        done = True
        guard.leave()
    assert done and not guard.on


def test_what_a_handler_raises_keeps_no_other_signal_from_its_handler(guard: Guard, heard: Heard) -> None:
    signal.signal(SIGUSR1, signal.default_int_handler)
    guard.wrap(SIGUSR1)
    guard.enter()
    raise_signal(SIGUSR1)
    raise_signal(SIGUSR2)
    with pytest.raises(KeyboardInterrupt):
        guard.leave()
    guard.enter()
    guard.leave()
    assert heard == ["two"]


def test_other_threads_are_never_guarded(guard: Guard) -> None:
    told: list[bool] = []
    guard.enter()  # the main thread is, meanwhile
    thread = threading.Thread(target=lambda: told.extend([guard.enter(), guard.defers_here, guard.in_main_thread]))
    thread.start()
    thread.join()
    assert told == [False, False, False] and guard.defers_here and guard.in_main_thread
    guard.leave()


# -- before whose handler


def test_wrapping_again_changes_nothing(guard: Guard, heard: Heard) -> None:
    front = signal.getsignal(SIGUSR1)
    guard.wrap(SIGUSR1)
    assert signal.getsignal(SIGUSR1) is front
    raise_signal(SIGUSR1)
    assert heard == ["one"]


def test_a_handler_that_the_user_sets_later_is_the_one_that_is_deferred(guard: Guard, heard: Heard) -> None:
    signal.signal(SIGUSR1, heard.by("later"))
    guard.wrap(SIGUSR1)
    guard.enter()
    raise_signal(SIGUSR1)
    assert heard == []
    guard.leave()
    assert heard == ["later"]


def test_a_users_handler_that_calls_the_one_it_found_reaches_the_first_and_ends(guard: Guard, heard: Heard) -> None:
    """The user's handler found our front, and stands behind a new one of ours: the two must not call each other."""
    signal.signal(SIGUSR1, heard.by("user", then=signal.getsignal(SIGUSR1)))
    guard.wrap(SIGUSR1)
    raise_signal(SIGUSR1)
    assert heard == ["user", "one"]
    guard.enter()
    raise_signal(SIGUSR1)
    guard.leave()
    assert heard == ["user", "one"] * 2


def test_a_notebook_that_sets_its_handler_for_each_cell_makes_no_growing_chain(guard: Guard, heard: Heard) -> None:
    for _ in range(100):
        between_cells = signal.signal(SIGUSR1, heard.by("cell"))
        guard.wrap(SIGUSR1)
        signal.signal(SIGUSR1, between_cells)
        guard.wrap(SIGUSR1)
    assert signal.getsignal(SIGUSR1) is between_cells
    raise_signal(SIGUSR1)
    assert heard == ["one"]


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    signal.signal(SIGUSR1, signal.SIG_IGN)
    Guard().wrap(SIGUSR1)
    assert signal.getsignal(SIGUSR1) is signal.SIG_IGN


def test_two_guards_of_two_sessions_both_defer(guard: Guard, heard: Heard) -> None:
    other = Guard()
    other.wrap(SIGUSR1)
    guard.enter()
    raise_signal(SIGUSR1)
    assert heard == []
    guard.leave()
    assert heard == ["one"]


def test_an_installed_handler_is_deferred_too(heard: Heard) -> None:
    guard = Guard()
    guard.install(SIGUSR1, heard.by("ours"))  # type: ignore[arg-type]
    guard.enter()
    raise_signal(SIGUSR1)
    assert heard == []
    guard.leave()
    assert heard == ["ours"]


def test_removing_gives_the_signals_back_to_the_handlers_found(heard: Heard) -> None:
    found = heard.by("found")
    signal.signal(SIGUSR1, found)  # type: ignore[arg-type]
    guard = Guard()
    guard.wrap(SIGUSR1)
    guard.remove()
    assert signal.getsignal(SIGUSR1) is found


def test_removing_leaves_a_handler_that_the_user_has_set_since(guard: Guard, heard: Heard) -> None:
    users = heard.by("user", then=signal.getsignal(SIGUSR1))
    signal.signal(SIGUSR1, users)  # type: ignore[arg-type]
    guard.remove()
    assert signal.getsignal(SIGUSR1) is users
    raise_signal(SIGUSR1)
    assert heard == ["user", "one"]
