"""Who lives: a ring of neighbours that ping each other, accusations that need two witnesses, refutation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.mesh.identity import PEER_ID_BYTES, PeerId
from lattica.mesh.membership import (
    ACCUSE_S,
    ANSWER_S,
    ASK_AFTER_S,
    ASK_S,
    ASKED,
    DEAD_TRY_S,
    HASTE_S,
    HEARD_S,
    LATE_S,
    PING_S,
    PINGS_FOR_OTHERS_MAX,
    RANDOM,
    REFUSED_S,
    RING,
    SETTLE_S,
    SMALL,
    TRYING,
    Accuse,
    Ask,
    Effect,
    Heard,
    Keep,
    MemberChanged,
    Membership,
    Ping,
    Pong,
    Refute,
    Release,
    State,
    Tell,
    Try,
)

FIRST = (1, 1)  # the dot of everybody's first row
SECOND = (1, 2)
STEPS_MAX = 10_000  # of one run


def peer(number: int) -> PeerId:
    """Peers stand in the ring in the order of their numbers."""
    return PeerId(number.to_bytes(PEER_ID_BYTES, "big"))


def numbers(peers: Iterable[PeerId]) -> list[int]:
    return [int.from_bytes(one, "big") for one in peers]


class Story:
    """One peer's membership, and the others as this test plays them: who answers its pings, 50 ms later."""

    def __init__(self, count: int, me: int = 0, answers: Iterable[int] | None = None) -> None:
        self.now, self.me = 0.0, peer(me)
        self.core = Membership(self.me, Random(7), 0.0)
        self.answering = set(range(count)) if answers is None else set(answers)
        self.told: list[tuple[float, Effect]] = []
        self._later: list[tuple[float, PeerId, Pong]] = []
        for number in range(count):
            self.hear(self.core.node(peer(number), FIRST, False, 0.0))
        self.run(SETTLE_S)

    def hear(self, effects: list[Effect]) -> list[Effect]:
        """Note them, and let those who answer answer."""
        self.core.validate()
        self.told += [(self.now, effect) for effect in effects]
        for effect in effects:
            match effect:
                case Tell(to, Ping(nonce)) if numbers([to])[0] in self.answering:
                    self._later.append((self.now + 0.05, to, Pong(nonce)))
        return effects

    def run(self, seconds: float, *, stop: Callable[[Effect], bool] = lambda effect: False) -> Story:
        """Until then, or until something is told."""
        end = self.now + seconds
        for _ in range(STEPS_MAX):
            due = self.core.next_deadline()
            answer = min(self._later, default=None)
            if answer is not None and answer[0] <= min(end, due if due is not None else end):
                self._later.remove(answer)
                self.now = max(self.now, answer[0])
                effects = self.core.receive(answer[1], answer[2], self.now)
            elif due is not None and due <= end:
                self.now = max(self.now, due)
                effects = self.core.tick(self.now)
            else:
                self.now = end
                return self
            if any(stop(effect) for effect in self.hear(effects)):
                return self
        raise AssertionError(f"a tick at {self.now} leaves its deadline where it was")

    def times(self, kind: type[Effect], of: int | None = None) -> list[float]:
        """When such an effect came, about that peer."""
        return [at for at, effect in self.told if isinstance(effect, kind) and (of is None or _about(effect) == of)]

    def accuse(self, suspect: int, by: int, dot: tuple[int, int] = FIRST) -> list[Effect]:
        return self.hear(self.core.accused(peer(suspect), dot, peer(by), self.now))

    def write(self, who: int, dot: tuple[int, int] = SECOND, left: bool = False) -> list[Effect]:
        return self.hear(self.core.node(peer(who), dot, left, self.now))

    def state(self, number: int) -> State | None:
        return self.core.state(peer(number))


def _about(effect: Effect) -> int:
    match effect:
        case Tell(_, Ask(suspect)) | Tell(_, Heard(suspect)):
            return numbers([suspect])[0]
        case Refute():
            return -1
        case _:
            return numbers([effect.peer])[0]


# -- ring and sessions ----------------------------------------------------------------------------------------------


def test_each_is_watched_by_four_on_either_side_the_nearest_first() -> None:
    core = Story(20).core
    assert numbers(core.neighbours(peer(10))) == [11, 9, 12, 8, 13, 7, 14, 6]
    assert numbers(core.neighbours(peer(0))) == [1, 19, 2, 18, 3, 17, 4, 16], "the ring is closed"
    assert RING == 4


@pytest.mark.parametrize("count", range(1, 12))
def test_in_a_small_ring_nobody_is_a_neighbour_twice_or_of_itself(count: int) -> None:
    found = numbers(Story(count).core.neighbours(peer(0)))
    assert len(found) == len(set(found)) == min(count - 1, 2 * RING) and 0 not in found


def test_watching_is_mutual() -> None:
    core = Story(30).core
    for one in core.living:
        assert all(one in core.neighbours(other) for other in core.neighbours(one))


def test_who_is_not_in_the_ring_has_neighbours_where_it_would_stand() -> None:
    story = Story(20)
    story.write(10, left=True)
    assert numbers(story.core.neighbours(peer(10))) == [11, 9, 12, 8, 13, 7, 14, 6]


def test_up_to_64_members_everybody_has_a_session_with_everybody() -> None:
    assert len(Story(SMALL).core.kept) == SMALL - 1


def test_above_that_with_its_neighbours_and_four_others() -> None:
    story = Story(SMALL + 20)
    neighbours = set(story.core.neighbours(peer(0)))
    assert neighbours < story.core.kept and len(story.core.kept - neighbours) == RANDOM
    assert len(story.times(Keep)) == 2 * RING + RANDOM


def test_a_short_cut_that_dies_is_replaced_and_a_new_neighbour_is_kept() -> None:
    story = Story(SMALL + 20)
    (cut, *_) = numbers(story.core.kept - set(story.core.neighbours(peer(0))))
    story.write(cut, left=True)
    story.run(1.0)
    assert len(story.core.kept) == 2 * RING + RANDOM and peer(cut) not in story.core.kept
    assert story.times(Release, cut)
    story.write(1, left=True)
    story.run(1.0)
    assert peer(5) in story.core.neighbours(peer(0)) and peer(5) in story.core.kept


def test_changes_that_come_together_are_settled_once() -> None:
    story = Story(30)
    before = len(story.told)
    for number in range(30, 40):
        story.write(number, FIRST)
    story.run(SETTLE_S)
    kept = [at for at, effect in story.told[before:] if isinstance(effect, Keep)]
    assert len(kept) == 10 and len(set(kept)) == 1


# -- pings ----------------------------------------------------------------------------------------------------------


def test_while_all_answer_neighbours_are_pinged_every_three_seconds_and_nobody_hears_of_it() -> None:
    story = Story(10).run(60)
    gaps = [later - earlier for earlier, later in pairwise(story.times(Tell, 1))]
    assert gaps and all(PING_S <= gap <= PING_S + 0.1 for gap in gaps)
    assert not story.times(Accuse) and {story.core.state(one) for one in story.core.living} == {State.ALIVE}


def test_of_two_neighbours_the_lower_one_pings_and_that_serves_both() -> None:
    """The ping is a sound of the lower one, which the higher one hears: it need not ask."""
    higher = Story(3, me=2)
    for step in range(1, 11):
        higher.run(PING_S)
        for lower in (0, 1):
            assert higher.hear(higher.core.receive(peer(lower), Ping(step), higher.now)) == [
                Tell(peer(lower), Pong(step))
            ]
    assert len(higher.times(Tell, 0)) <= 10 + 1, "its pongs, and perhaps one ping before the first was heard"


def test_any_sound_of_a_neighbour_counts() -> None:
    story = Story(4, answers=())
    for _ in range(30):
        story.run(1.0)
        for number in (1, 2, 3):
            story.hear(story.core.heard(peer(number), story.now))
    assert not story.times(Accuse) and story.state(1) is State.ALIVE


# -- silence --------------------------------------------------------------------------------------------------------


def silent(count: int = 12, who: int = 1) -> tuple[Story, float]:
    """(all but one answer, when that one fell silent)"""
    story = Story(count)
    story.run(20.0)
    story.answering.discard(who)
    heard = story.core._watched[peer(who)].heard_at
    return story, heard


def test_who_is_silent_is_suspected_then_asked_for_then_accused_at_the_times_of_the_constants() -> None:
    story, heard = silent()
    story.run(12.0)
    suspected = next(at for at, effect in story.told if effect == MemberChanged(peer(1), State.SUSPECT, State.ALIVE))
    asks = [at for at, effect in story.told if isinstance(effect, Tell) and effect.message == Ask(peer(1))]
    (accused,) = story.times(Accuse)
    assert PING_S + ANSWER_S <= suspected - heard <= PING_S + ANSWER_S + 1.1
    assert ASK_AFTER_S <= min(asks) - heard <= ASK_AFTER_S + 1.1
    assert ACCUSE_S <= accused - heard <= ACCUSE_S + 1.1
    assert (accused, Accuse(peer(1), FIRST)) in story.told
    rounds = sorted(set(asks))
    assert len(asks) == ASKED * len(rounds) and all(b - a >= ASK_S for a, b in pairwise(rounds))


def test_those_who_are_asked_watch_the_suspect_too() -> None:
    story, _ = silent(count=100)
    story.run(12.0)
    asked = {effect.peer for _, effect in story.told if isinstance(effect, Tell) and effect.message == Ask(peer(1))}
    assert asked and asked <= set(story.core.neighbours(peer(1))) & story.core.kept


def test_a_stall_of_five_seconds_is_nobody_s_business() -> None:
    story, heard = silent()
    story.run(heard + 5.0 - story.now)
    story.hear(story.core.receive(peer(1), Ping(1), story.now))
    story.answering.add(1)
    story.run(20.0)
    assert not story.times(Accuse) and story.state(1) is State.ALIVE


def test_what_one_co_watcher_hears_saves_the_suspect() -> None:
    """The link between the two is broken; a third one hears both."""
    story, _ = silent()
    for _ in range(30):
        story.run(1.0)
        if any(isinstance(effect, Tell) and isinstance(effect.message, Ask) for _, effect in story.told):
            story.told.clear()
            story.hear(story.core.receive(peer(3), Heard(peer(1)), story.now))
    assert not story.times(Accuse) and story.state(1) in (State.ALIVE, State.SUSPECT)


def test_who_was_not_asked_cannot_say_that_it_hears_the_suspect() -> None:
    """A member that lies says each second that it hears the dead one, before anybody has asked it to ping."""
    story, heard = silent()
    while not story.times(Accuse) and story.now < heard + 20:
        asked = {to.peer for _, to in story.told if isinstance(to, Tell) and to.message == Ask(peer(1))}
        liar = next(number for number in (11, 10, 2, 3, 9) if peer(number) not in asked)
        story.hear(story.core.receive(peer(liar), Heard(peer(1)), story.now))
        story.run(0.5)
    (accused,) = story.times(Accuse)
    assert accused - heard < ACCUSE_S + 2


def test_an_answer_serves_once() -> None:
    story, _ = silent()
    story.run(10.0, stop=lambda effect: isinstance(effect, Tell) and isinstance(effect.message, Ask))
    asked = next(to.peer for _, to in story.told if isinstance(to, Tell) and to.message == Ask(peer(1)))
    answered = story.now
    for _ in range(2):
        story.hear(story.core.receive(asked, Heard(peer(1)), story.now))
        assert story.core._watched[peer(1)].heard_at == answered
        story.run(0.5)


def test_a_silent_neighbour_that_a_newcomer_takes_out_of_our_watch_is_no_suspect_of_ours() -> None:
    story, _ = silent(who=8)
    story.run(10.0, stop=lambda effect: isinstance(effect, MemberChanged))
    assert story.state(8) is State.SUSPECT
    story.write(12, FIRST)
    story.run(SETTLE_S)
    assert MemberChanged(peer(8), State.ALIVE, State.SUSPECT) in [effect for _, effect in story.told]


def test_a_refused_dial_says_that_the_process_is_gone_and_shortens_the_silence() -> None:
    story, _ = silent()
    began = story.now
    story.hear(story.core.refused(peer(1), began))
    story.run(REFUSED_S + 1.5)
    asks = [at for at, effect in story.told if isinstance(effect, Tell) and effect.message == Ask(peer(1))]
    (accused,) = story.times(Accuse)
    assert asks[0] == began and REFUSED_S <= accused - began <= REFUSED_S + 1.1 < ACCUSE_S


def test_a_sound_makes_a_refusal_forgotten() -> None:
    story, _ = silent()
    story.hear(story.core.refused(peer(1), story.now))
    story.run(2.0)
    story.hear(story.core.heard(peer(1), story.now))
    story.answering.add(1)
    story.run(20.0)
    assert not story.times(Accuse) and story.state(1) is State.ALIVE


def test_who_was_accused_by_two_need_not_be_accused_by_all_eight() -> None:
    story, _ = silent()
    story.run(HEARD_S)
    for witness in (2, 3):
        story.accuse(1, by=witness)
    assert story.state(1) is State.DEAD
    story.run(20.0)
    assert not story.times(Accuse)


# -- favours --------------------------------------------------------------------------------------------------------


def test_who_is_asked_pings_the_suspect_and_tells_all_who_asked_when_it_answers() -> None:
    story = Story(12)
    for asker in (2, 3):
        (effect,) = story.hear(story.core.receive(peer(asker), Ask(peer(1)), story.now))
        assert isinstance(effect, Tell) and effect.peer == peer(1) and isinstance(effect.message, Ping)
    assert story.core.receive(peer(1), Pong(0), story.now) == [
        Tell(peer(2), Heard(peer(1))),
        Tell(peer(3), Heard(peer(1))),
    ]
    assert story.core.receive(peer(1), Pong(0), story.now) == [], "once"


def test_who_is_asked_says_nothing_about_whom_it_does_not_hear_itself_or_strangers() -> None:
    story = Story(12, answers=range(2, 12))
    story.hear(story.core.receive(peer(2), Ask(peer(1)), story.now))
    for suspect in (0, 77):
        assert story.core.receive(peer(2), Ask(peer(suspect)), story.now) == []
    story.run(ASK_AFTER_S + 1)
    assert not [effect for _, effect in story.told if isinstance(effect, Tell) and isinstance(effect.message, Heard)]
    assert not story.core._favours, "and does not wait for ever"


def test_pings_for_others_are_bounded() -> None:
    core = Story(SMALL).core
    core._kept = {peer(number) for number in range(1, 2 * PINGS_FOR_OTHERS_MAX)}
    pings = [core.receive(peer(1), Ask(peer(number)), 1.0) for number in range(2, 2 * PINGS_FOR_OTHERS_MAX)]
    assert sum(map(bool, pings)) == PINGS_FOR_OTHERS_MAX


# -- accusations ----------------------------------------------------------------------------------------------------


def test_two_witnesses_are_a_death_and_one_is_none() -> None:
    story = Story(12)
    assert story.accuse(1, by=5) == [MemberChanged(peer(1), State.SUSPECT, State.ALIVE)]
    assert story.accuse(1, by=5) == [], "the same one again"
    assert story.accuse(1, by=6) == [MemberChanged(peer(1), State.DEAD, State.SUSPECT)]
    assert peer(1) not in story.core.living


def test_whom_we_hear_ourselves_is_not_dead_by_what_others_say() -> None:
    """A partition heals: the other side's words of the two of us arrive before either has refuted them."""
    story = Story(12)
    story.run(20.0)
    story.accuse(1, by=5)
    assert story.accuse(1, by=6) == [] and story.state(1) is State.SUSPECT
    story.run(60.0)
    assert story.state(1) is State.SUSPECT, "for as long as it answers"
    assert story.write(1, SECOND) == [MemberChanged(peer(1), State.ALIVE, State.SUSPECT)]


@pytest.mark.parametrize("late", [0.0, 2.0])
def test_what_others_say_is_believed_once_we_have_heard_nothing_for_a_while(late: float) -> None:
    """It falls silent, and their words of that come just then. Without them it would be accused after ACCUSE_S."""
    story, heard = silent()
    story.run(late)
    for witness in (5, 6):
        story.accuse(1, by=witness)
    assert story.state(1) is State.SUSPECT
    story.run(HEARD_S + HASTE_S + heard - story.now)
    assert story.state(1) is State.DEAD
    (died,) = [at for at, effect in story.told if effect == MemberChanged(peer(1), State.DEAD, State.SUSPECT)]
    assert HEARD_S <= died - heard < REFUSED_S


def test_a_crash_is_believed_as_soon_as_it_is_accused() -> None:
    story, heard = silent()
    story.run(heard + REFUSED_S - story.now)
    story.accuse(1, by=5)
    assert story.accuse(1, by=6) == [MemberChanged(peer(1), State.DEAD, State.SUSPECT)]


def test_what_others_hear_for_us_does_not_contradict_witnesses() -> None:
    """One liar could keep a dead one alive for those who ask it."""
    story, _ = silent()
    story.run(10.0, stop=lambda effect: isinstance(effect, Tell) and isinstance(effect.message, Ask))
    asked = next(to.peer for _, to in story.told if isinstance(to, Tell) and to.message == Ask(peer(1)))
    story.hear(story.core.receive(asked, Heard(peer(1)), story.now))
    story.accuse(1, by=5)
    story.accuse(1, by=6)
    assert story.state(1) is State.DEAD


def test_who_is_dead_is_so_until_it_refutes_though_it_makes_a_sound() -> None:
    story = Story(12)
    for witness in (5, 6):
        story.accuse(1, by=witness)
    story.hear(story.core.heard(peer(1), story.now))
    assert story.accuse(1, by=7) == [] and story.state(1) is State.DEAD


def test_whom_a_newcomer_takes_out_of_our_watch_is_judged_by_what_others_say() -> None:
    story = Story(12)
    story.run(20.0)
    for witness in (5, 6):
        story.accuse(8, by=witness)
    assert story.state(8) is State.SUSPECT
    story.write(12, FIRST)
    story.run(SETTLE_S)
    assert story.state(8) is State.DEAD


def test_in_a_mesh_of_two_one_witness_must_do() -> None:
    story = Story(2, answers=())
    story.run(20.0)
    (effect,) = [effect for _, effect in story.told if isinstance(effect, Accuse)]
    assert story.accuse(1, by=0, dot=effect.dot) == [MemberChanged(peer(1), State.DEAD, State.SUSPECT)]


def test_one_isolated_peer_accuses_nobody_to_death() -> None:
    """Its cable is pulled: it accuses all its neighbours, and alone cannot be right."""
    story = Story(12, answers=())

    def own_word(effect: Effect) -> bool:
        if isinstance(effect, Accuse):
            story.hear(story.core.accused(effect.peer, effect.dot, story.me, story.now))
        return False

    story.run(120.0, stop=own_word)
    states = {one: story.core.state(one) for one in map(peer, range(1, 12))}
    assert list(states.values()).count(State.SUSPECT) == 2 * RING and State.DEAD not in states.values()
    assert len(story.times(Accuse)) == 2 * RING, "once each"


def test_a_member_that_writes_a_newer_row_is_alive_whatever_was_said_before() -> None:
    story = Story(12)
    for witness in (5, 6):
        story.accuse(1, by=witness)
    assert story.write(1, SECOND) == [MemberChanged(peer(1), State.ALIVE, State.DEAD)]
    assert story.accuse(1, by=7, dot=FIRST) == [], "of a row that is old"
    assert story.state(1) is State.ALIVE and peer(1) in story.core.living


def test_verdicts_do_not_depend_on_the_order_in_which_rows_come() -> None:
    """Accusations of the second row, and that row: whoever hears them in another order comes to the same."""
    for order in ("aaw", "awa", "waa"):
        story, witnesses = Story(12), iter((5, 6))
        for step in order:
            if step == "w":
                story.write(1, SECOND)
            else:
                story.accuse(1, by=next(witnesses), dot=SECOND)
        assert story.state(1) is State.DEAD, order


def test_an_accusation_of_a_row_that_does_not_exist_counts_for_nothing() -> None:
    """Mallory accuses Bob as of a number that he will never reach, so that nothing that he writes refutes it; then one
    honest mistake would be a death for good."""
    story = Story(12)
    assert story.accuse(1, by=5, dot=(1 << 62, 0)) == []
    assert story.accuse(1, by=6) == [MemberChanged(peer(1), State.SUSPECT, State.ALIVE)]
    assert story.write(1, SECOND) == [MemberChanged(peer(1), State.ALIVE, State.SUSPECT)]


def test_who_is_accused_refutes_and_never_ends_itself() -> None:
    story = Story(12)
    assert story.accuse(0, by=5) == [Refute()]
    assert story.accuse(0, by=6) == [Refute()]
    assert story.state(0) is not State.DEAD and story.me in story.core.living
    story.write(0, SECOND)
    assert story.accuse(0, by=7, dot=FIRST) == [], "that was refuted"


def test_nobody_accuses_itself_or_a_stranger() -> None:
    story = Story(12)
    assert story.accuse(1, by=1) == [] and story.accuse(77, by=5) == []
    assert story.state(1) is State.ALIVE and story.state(77) is None


def test_who_was_refuted_and_stays_silent_is_accused_anew() -> None:
    story, _ = silent()
    story.run(12.0)
    story.write(1, SECOND)
    story.run(2.0)
    assert [effect for _, effect in story.told if isinstance(effect, Accuse)] == [
        Accuse(peer(1), FIRST),
        Accuse(peer(1), SECOND),
    ]


def test_when_the_other_witness_leaves_the_last_one_s_word_is_enough() -> None:
    """Three nodes: Bob dies, we have accused him, and Cleo leaves before she has."""
    story = Story(3)
    story.accuse(1, by=0)
    assert story.state(1) is State.SUSPECT
    story.write(2, left=True)
    story.run(SETTLE_S)
    assert story.state(1) is State.DEAD


# -- self-doubt -----------------------------------------------------------------------------------------------------


def test_a_peer_that_stood_still_itself_forgets_how_long_others_were_silent() -> None:
    """Our process stops for ten seconds. When it goes on all clocks say that everybody was silent for ten."""
    story = Story(12)
    story.run(20.0)
    story.now += 10.0
    story.hear(story.core.tick(story.now))
    story.run(20.0)
    assert not story.times(Accuse)
    assert not [effect for _, effect in story.told if isinstance(effect, MemberChanged) and effect.before]


def test_a_peer_that_stood_still_gives_everybody_one_interval() -> None:
    story = Story(12)
    story.run(20.0)
    story.now += 10.0
    pinged = {effect.peer for effect in story.core.tick(story.now) if isinstance(effect, Tell)}
    due = story.core.next_deadline()
    assert not pinged and due is not None and due <= story.now + PING_S + ANSWER_S


def test_a_tick_that_is_a_little_late_is_no_reason_for_doubt() -> None:
    story, heard = silent()
    while not story.times(Accuse) and story.now < heard + 20:
        due = story.core.next_deadline()
        assert due is not None
        story.now = due + LATE_S / 2
        story.hear(story.core.tick(story.now))
        for number in range(2, 12):
            story.core.heard(peer(number), story.now)
    (accused,) = story.times(Accuse)
    assert accused - heard < ACCUSE_S + 2


# -- ends -----------------------------------------------------------------------------------------------------------


def test_who_left_is_told_apart_from_the_dead_and_nobody_waits_for_it() -> None:
    story = Story(12)
    assert story.write(1, left=True) == [MemberChanged(peer(1), State.LEFT, State.ALIVE)]
    for witness in (5, 6):
        assert story.accuse(1, by=witness, dot=SECOND) == []
    story.answering.discard(1)
    story.run(60.0)
    assert story.state(1) is State.LEFT and not story.times(Accuse) and not story.times(Try)
    assert story.write(1, (2, 1)) == [MemberChanged(peer(1), State.ALIVE, State.LEFT)]


def test_the_dead_are_tried_now_and_then_for_a_partition_may_have_healed() -> None:
    story = Story(12)
    for witness in (5, 6):
        story.accuse(1, by=witness)
    began = story.now
    story.run(100.0)
    tries = story.times(Try, 1)
    pause = DEAD_TRY_S * max(1.0, 11 / TRYING)
    assert 100 / pause * 0.7 <= len(tries) <= 100 / pause * 1.4 and tries[0] - began < 2 * pause
    story.write(1, SECOND)
    story.run(100.0)
    assert story.times(Try, 1) == tries


def test_in_a_large_mesh_each_tries_the_dead_less_often() -> None:
    large, small = Story(100), Story(10)
    for story in (large, small):
        for witness in (5, 6):
            story.accuse(1, by=witness)
        story.run(200.0)
    assert 5 <= len(large.times(Try)) < len(small.times(Try)) / 4


def test_who_is_no_member_any_more_is_forgotten_with_all_that_was_said_of_it() -> None:
    story = Story(12)
    for witness in (5, 6):
        story.accuse(1, by=witness)
    assert story.core.forget(peer(1), story.now) == [MemberChanged(peer(1), None, State.DEAD)]
    assert story.state(1) is None and story.core.forget(peer(1), story.now) == []
    story.run(30.0)
    assert not story.times(Try) and peer(1) not in story.core.kept and len(list(story.core.members())) == 11
    assert story.write(1, FIRST) == [MemberChanged(peer(1), State.ALIVE, None)]


def test_a_peer_alone_has_nothing_to_do() -> None:
    story = Story(1)
    assert story.core.next_deadline() is None and story.core.living == [peer(0)]
    story.write(1, FIRST)
    assert story.core.next_deadline() == story.now + SETTLE_S


def test_a_membership_says_how_many_live() -> None:
    story = Story(12)
    for witness in (5, 6):
        story.accuse(1, by=witness)
    assert repr(story.core).endswith(": 11 live, 1 dead>")


# -- whatever is told -----------------------------------------------------------------------------------------------

few = st.integers(0, 5).map(peer)
dots = st.tuples(st.integers(1, 2), st.integers(1, 3))
told = st.one_of(
    st.tuples(st.just("node"), few, dots, st.booleans()),
    st.tuples(st.just("accused"), few, dots, few),
    st.tuples(st.just("forget"), few),
    st.tuples(st.just("heard"), few),
    st.tuples(st.just("refused"), few),
    st.tuples(st.just("receive"), few, st.one_of(st.builds(Ask, few), st.builds(Heard, few), st.just(Ping(1)))),
    st.tuples(st.just("tick")),
)  # fmt: skip


@given(st.lists(st.tuples(told, st.sampled_from((0.0, 0.1, 1.0, 9.0))), max_size=40))
def test_whatever_is_told_those_who_follow_the_changes_know_who_lives(
    story: list[tuple[Any, float]],
) -> None:
    core, now = Membership(peer(0), Random(1), 0.0), 0.0
    core.node(peer(0), FIRST, False, now)
    followed: dict[PeerId, State | None] = {peer(0): State.ALIVE}
    for (verb, *args), later in story:
        now += later
        if verb == "node" and args[0] in followed and args[1] < core._members[args[0]].dot:
            continue  # the table gives newer rows only
        for effect in getattr(core, verb)(*args, now):
            if isinstance(effect, MemberChanged):
                assert followed.get(effect.peer) == effect.before or effect.peer == peer(0)
                followed[effect.peer] = effect.state
                if effect.state is None:
                    del followed[effect.peer]
        core.validate()
        assert core.state(peer(0)) is not State.DEAD
        assert followed.keys() == set(core.members())
        for one, state in followed.items():
            assert core.state(one) is state or one == peer(0), "what others say of us we answer"
            assert (one in core.living) == (state not in ENDED)


ENDED = (State.DEAD, State.LEFT)
