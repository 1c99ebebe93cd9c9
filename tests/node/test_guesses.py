"""Ids that one member guesses of another's: they are far apart, and few are answered."""

from __future__ import annotations

import threading
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lattica.actors import serials as module
from lattica.actors.serials import STEP_MAX, serials
from lattica.codec import far
from lattica.mesh.identity import PeerId
from lattica.node.far_desk import FarDesk
from lattica.node.guesses import MEMBERS_MAX, MISSES_MAX, MISSES_PER_S, Guesses
from tests.conftest import examples

MEMBER = PeerId(b"m" * 32)


def test_serials_grow_by_steps_that_are_spread_evenly() -> None:
    draw = serials()
    found = [draw() for _ in range(20_000)]
    steps = [after - before for before, after in pairwise(found)]
    assert min(steps) >= 1 and max(steps) <= STEP_MAX
    assert 0.97 < sum(steps) / len(steps) / (STEP_MAX / 2) < 1.03 and len(set(steps)) > 10_000


def test_serials_go_on_by_ones_when_they_have_taken_a_quarter_of_the_room(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "SPARSE", 2 * module.BLOCK)
    draw = serials(lambda size: b"\xff" * size)
    found = [draw() for _ in range(2 * module.BLOCK + 3)]
    assert found[0] == STEP_MAX and found[-1] - found[-2] == 1 == found[-2] - found[-3]
    assert module.SPARSE * STEP_MAX < 1 << 48, "and so it is with the true one"


def test_threads_get_different_serials() -> None:
    draw, found = serials(), list[list[int]]()
    threads = [threading.Thread(target=lambda: found.append([draw() for _ in range(30_000)])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({number for numbers in found for number in numbers}) == 120_000


@examples(30)
@given(st.lists(st.tuples(st.floats(0.0, 100.0), st.integers(0, 5000)), max_size=20))
def test_no_member_misses_more_often_than_its_burst_and_its_rate(asked: list[tuple[float, int]]) -> None:
    guesses, now, misses = Guesses(), 0.0, 0
    for pause_s, times in asked:
        now += pause_s
        for _ in range(times):
            if guesses.may_guess(MEMBER, now):
                misses += 1
            guesses.missed(MEMBER, now)
    assert misses <= MISSES_MAX + now * MISSES_PER_S + 1
    assert guesses.may_guess(PeerId(b"o" * 32), now), "others guess for themselves"


def test_members_that_are_remembered_are_bounded() -> None:
    guesses = Guesses()
    for number in range(MEMBERS_MAX + 10):
        guesses.missed(PeerId(number.to_bytes(32, "big")), 0.0)
    assert len(guesses._left) == MEMBERS_MAX


def test_who_has_guessed_too_often_gets_what_it_was_lent_and_nothing_else() -> None:
    """All that it hears of another's object is what it hears of one that there is not."""
    lent, others, unknown = b"\1" * 16, b"\2" * 16, b"\3" * 16
    asked, held, said = list[bytes](), list[bytes](), list[Any]()
    ledger = SimpleNamespace(
        held=lambda object_: object_ in (lent, others), size_here=lambda _: None, holds=lambda *_: False
    )  # fmt: skip
    desk: Any = SimpleNamespace(
        guesses=Guesses(), node=SimpleNamespace(now=lambda: 0.0, store=SimpleNamespace(ledger=ledger)),
        objects=SimpleNamespace(
            lending=SimpleNamespace(
                is_given=lambda _, object_: object_ == lent, took=lambda _, message: held.append(message.object)
            ),
            serving=SimpleNamespace(want=lambda _, message: asked.append(message.object)),
        ),
    )  # fmt: skip
    desk.may_know = lambda peer, object_: FarDesk.may_know(desk, peer, object_)
    neighbour: Any = SimpleNamespace(peer=MEMBER, client=SimpleNamespace(number=1))
    neighbour.link, desk.neighbours = SimpleNamespace(send=said.append), {MEMBER: neighbour}

    def want(object_: bytes) -> bool:
        before = len(asked)
        FarDesk._want(desk, neighbour, far.Want(object_))
        return len(asked) > before

    assert want(others) and want(unknown)
    for _ in range(MISSES_MAX):
        want(unknown)
    said.clear()
    assert want(lent) and not want(others) and not want(unknown)
    for object_ in (others, unknown, lent):
        FarDesk._took(desk, neighbour, far.Took(0, object_, 1, True))
    assert held == [lent], "and it does not come to hold the others by saying that it was given them"
    assert said == [far.Nowhere(others, "it is not here"), far.Nowhere(unknown, "it is not here")]
