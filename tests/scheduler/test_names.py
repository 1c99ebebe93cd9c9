"""One holder per name: claims at the name's home, over lost messages, dying homes and partitions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lattica.mesh.identity import PeerId
from lattica.mesh.roles import MEMBER, Role
from lattica.scheduler.claims import (
    Claim,
    Claimed,
    Elsewhere,
    Holder,
    Merge,
    NameClaimed,
    NameFailed,
    NameLost,
    NameTaken,
    Refused,
    Release,
    Send,
    Write,
)
from lattica.scheduler.names import ASK_S, CLAIM_S, GIVEN_UP_S, SETTLE_S, Names
from lattica.scheduler.rendezvous import Standing, order

P = [PeerId(bytes([number]) * 32) for number in range(6)]
NAME = b"trainer"
HOMES = order(NAME, P)
HOME, SECOND, A, B = HOMES[0], HOMES[1], HOMES[4], HOMES[5]
ONE, TWO = b"1" * 16, b"2" * 16
LATER = SETTLE_S + 1.0


class Peer:
    """A core and what its table says of names. Rows are `row of CLAIM`."""

    def __init__(self, me: PeerId, living: Iterable[PeerId] = P) -> None:
        self.rows: dict[bytes, Holder] = {}
        self.core = Names(me, 0.0, lambda name: (self.rows[name], self.row(name)) if name in self.rows else None)
        self.lives(living, 0.0)

    def row(self, name: bytes) -> bytes:
        return b"row of " + self.rows[name].claim

    def lives(self, living: Iterable[PeerId], now: float) -> list[Any]:
        return self.core.members_changed([Standing(peer, MEMBER) for peer in living], now)

    def hears(self, holder: Holder, now: float, *, gone: bool = False) -> list[Any]:
        """Its table has this row now."""
        if gone:
            self.rows.pop(NAME, None)
        else:
            self.rows[NAME] = holder
        return self.core.name_changed(NAME, holder, gone, now)

    def writes(self, effects: Iterable[Any], now: float) -> list[Any]:
        """Carry out `Write`; all effects, those that follow too."""
        out: list[Any] = []
        for effect in effects:
            out.append(effect)
            if isinstance(effect, Write):
                out += self.hears(effect.holder, now)
                out += self.core.written(effect.name, self.row(effect.name), "", now)
        self.core.validate()
        return out


def holder(claim: bytes = ONE, claimer: PeerId = A, body: bytes = b"actor") -> Holder:
    return Holder(claim, claimer, body)


def test_a_claim_goes_to_the_home_which_writes_the_row_and_answers_with_it() -> None:
    claimer, home = Peer(A), Peer(HOME)
    (asked,) = claimer.core.claim(ONE, NAME, b"actor", LATER)
    assert asked == Send(HOME, Claim(ONE, NAME, b"actor"))
    effects = home.writes(home.core.receive(A, asked.message, LATER), LATER)
    assert effects == [Write(NAME, holder()), Send(A, Claimed(ONE, b"row of " + ONE))]


def test_the_constructor_starts_when_the_claimers_own_table_has_the_row() -> None:
    """The home dies after its answer and before its flood: the row lives on with the claimer."""
    claimer = Peer(A)
    claimer.core.claim(ONE, NAME, b"actor", LATER)
    assert claimer.core.receive(HOME, Claimed(ONE, b"row"), LATER) == [Merge(HOME, b"row")]
    assert claimer.hears(holder(), LATER) == [NameClaimed(ONE, NAME)]
    assert claimer.hears(holder(), LATER) == [], "once"


def test_the_flood_grants_a_claim_whose_answer_was_lost() -> None:
    claimer = Peer(A)
    claimer.core.claim(ONE, NAME, b"actor", LATER)
    assert claimer.hears(holder(), LATER) == [NameClaimed(ONE, NAME)]
    assert claimer.core.receive(HOME, Claimed(ONE, b"row"), LATER) == []


def test_six_that_claim_at_once_get_one_actor() -> None:
    peers = {peer: Peer(peer) for peer in P}
    home = peers[HOME]
    answers: list[Any] = []
    for number, (peer, each) in enumerate(peers.items()):
        for effect in each.writes(each.core.claim(bytes([number]) * 16, NAME, b"%d" % number, LATER), LATER):
            if isinstance(effect, Send):
                answers += home.writes(home.core.receive(peer, effect.message, LATER), LATER)
            else:
                answers.append(effect)
    won = [one for one in answers if isinstance(one, NameClaimed) or isinstance(getattr(one, "message", 0), Claimed)]
    lost = [one for one in answers if isinstance(one, NameTaken) or isinstance(getattr(one, "message", 0), Refused)]
    assert len(won) == 1 and len(lost) == 5


def test_a_name_that_the_own_table_has_is_taken_without_a_question() -> None:
    claimer = Peer(A)
    claimer.hears(holder(TWO, B, b"another"), 0.0)
    assert claimer.core.claim(ONE, NAME, b"actor", LATER) == [NameTaken(ONE, NAME, b"another")]


def test_who_is_refused_learns_what_the_name_stands_for() -> None:
    home, claimer = Peer(HOME), Peer(A)
    home.hears(holder(TWO, B, b"another"), 0.0)
    claimer.core.claim(ONE, NAME, b"actor", LATER)
    (refused,) = home.core.receive(A, Claim(ONE, NAME, b"actor"), LATER)
    assert refused == Send(A, Refused(ONE, "", b"another"))
    assert claimer.core.receive(HOME, refused.message, LATER) == [NameTaken(ONE, NAME, b"another")]


def test_asking_again_is_harmless_since_the_row_names_the_claim() -> None:
    home = Peer(HOME)
    for _ in range(2):
        effects = home.writes(home.core.receive(A, Claim(ONE, NAME, b"actor"), LATER), LATER)
        assert effects[-1] == Send(A, Claimed(ONE, b"row of " + ONE))
    (refused,) = home.core.receive(B, Claim(ONE, NAME, b"actor"), LATER)
    assert isinstance(refused.message, Refused), "another's claim of the same number is another claim"


def test_a_lost_question_is_asked_again_and_at_the_next_home_when_that_one_dies() -> None:
    claimer = Peer(A)
    claimer.core.claim(ONE, NAME, b"actor", LATER)
    assert claimer.core.next_deadline() == LATER + ASK_S
    assert claimer.core.tick(LATER + ASK_S) == [Send(HOME, Claim(ONE, NAME, b"actor"))]
    again = claimer.lives([peer for peer in P if peer != HOME], LATER + 2)
    assert again == [Send(SECOND, Claim(ONE, NAME, b"actor"))]


def test_who_is_not_the_home_names_it_and_is_believed_once_per_question() -> None:
    claimer, other = Peer(A, [peer for peer in P if peer != HOME] + [HOME]), Peer(SECOND)
    claimer.lives([peer for peer in P if peer != HOME], 1.0)
    claimer.core.claim(ONE, NAME, b"actor", LATER)
    (told,) = other.core.receive(A, Claim(ONE, NAME, b"actor"), LATER)
    assert told == Send(A, Elsewhere(ONE, HOME))
    assert claimer.core.receive(SECOND, told.message, LATER) == [], "it is dead for us"
    claimer.lives(P, LATER)
    claimer.core.tick(LATER + 2)
    assert claimer.core.receive(HOME, Elsewhere(ONE, SECOND), LATER + 2) == [Send(SECOND, Claim(ONE, NAME, b"actor"))]
    assert claimer.core.receive(SECOND, Elsewhere(ONE, HOME), LATER + 2) == []


def test_a_claim_that_nobody_answers_ends_and_what_is_granted_later_is_released() -> None:
    """A home that was cut off grants it in the end: nobody runs that actor, so the name must not stay."""
    claimer = Peer(A)
    claimer.core.claim(ONE, NAME, b"actor", LATER)
    ends = claimer.core.tick(LATER + CLAIM_S)
    assert [type(effect) for effect in ends] == [NameFailed]
    assert claimer.hears(holder(), LATER + 60) == [Release(NAME, holder())]
    claimer.core.tick(LATER + CLAIM_S + GIVEN_UP_S)
    assert claimer.core.next_deadline() is None


def test_a_home_that_has_just_begun_or_met_members_again_waits_for_their_tables() -> None:
    home, claim = Peer(HOME), Claim(ONE, NAME, b"actor")
    assert home.core.receive(A, claim, SETTLE_S - 0.1) == []
    home.lives([HOME, A], 20.0)
    home.lives(P, 30.0)
    assert home.core.receive(A, claim, 30.1) == []
    assert home.core.receive(A, claim, 30.0 + SETTLE_S) == [Write(NAME, holder())]


def test_a_home_alone_does_not_wait() -> None:
    home = Peer(HOME, [HOME])
    effects = home.writes(home.core.claim(ONE, NAME, b"actor", 0.1), 0.1)
    assert effects == [Write(NAME, holder(claimer=HOME)), NameClaimed(ONE, NAME)]


def test_strangers_and_members_without_the_role_get_no_name() -> None:
    home = Peer(HOME)
    assert home.core.receive(PeerId(b"s" * 32), Claim(ONE, NAME, b""), LATER) == []
    home.core.members_changed([Standing(HOME, MEMBER), Standing(A, Role.EXECUTE)], LATER)
    (refused,) = home.core.receive(A, Claim(ONE, NAME, b""), LATER)
    assert refused.message == Refused(ONE, "a name needs the role submit")


def test_ephemeral_nodes_are_no_homes() -> None:
    core = Names(A, 0.0, lambda name: None)
    core.members_changed([Standing(HOME, MEMBER, ephemeral=True), Standing(A, MEMBER)], 0.0)
    assert core.home(NAME) == A


def test_what_the_homes_table_does_not_take_is_refused_with_the_reason() -> None:
    home = Peer(HOME)
    home.core.receive(A, Claim(ONE, NAME, b"actor"), LATER)
    assert home.core.written(NAME, b"", "no room", LATER) == [Send(A, Refused(ONE, "no room"))]


def test_answers_count_from_those_who_were_asked() -> None:
    claimer = Peer(A)
    claimer.core.claim(ONE, NAME, b"actor", LATER)
    assert claimer.core.receive(B, Refused(ONE, "because"), LATER) == []


def test_after_a_partition_the_loser_is_told() -> None:
    claimer = Peer(A)
    claimer.core.claim(ONE, NAME, b"actor", LATER)
    claimer.hears(holder(), LATER)
    theirs = holder(TWO, B, b"another")
    assert claimer.hears(theirs, 60.0) == [NameLost(ONE, NAME, theirs)]
    assert claimer.hears(theirs, 61.0) == []


def test_a_tombstone_of_an_earlier_holder_that_the_home_did_not_know_makes_the_claim_be_asked_again() -> None:
    """The home came back without its disk, so its row of epoch 1 lost to the tombstone of epoch 2."""
    claimer = Peer(A)
    claimer.core.claim(ONE, NAME, b"actor", LATER)
    claimer.hears(holder(), LATER)
    again = claimer.hears(holder(TWO, B), 20.0, gone=True)
    assert again == [Send(HOME, Claim(ONE, NAME, b"actor"))]
    assert claimer.hears(holder(), 21.0) == [], "its constructor ran already"
    assert claimer.core.held == {NAME: holder()}


def test_a_release_ends_the_name_and_one_by_somebody_else_is_told() -> None:
    claimer = Peer(A)
    claimer.core.claim(ONE, NAME, b"actor", LATER)
    claimer.hears(holder(), LATER)
    assert claimer.core.release(NAME, TWO, 20.0) == [], "not its name"
    assert claimer.hears(holder(), 20.0, gone=True) == [NameLost(ONE, NAME, None)]
    claimer.hears(holder(), 21.0)
    claimer.core.hold(NAME, ONE, b"actor", 21.0)
    assert claimer.core.release(NAME, ONE, 22.0) == [Release(NAME, holder())]
    assert claimer.hears(holder(), 22.0, gone=True) == []


def test_where_an_actor_was_restarted_its_name_is_watched() -> None:
    other = Peer(B)
    other.hears(holder(), 1.0)
    assert other.core.hold(NAME, ONE, b"actor", 20.0) == []
    theirs = holder(TWO, P[0], b"another")
    assert other.hears(theirs, 30.0) == [NameLost(ONE, NAME, theirs)]
    assert other.core.hold(NAME, ONE, b"actor", 31.0) == [NameLost(ONE, NAME, theirs)]


def test_of_two_actors_with_one_name_the_one_restarted_here_does_not_hide_the_loss_of_the_other() -> None:
    """Two halves gave the name away; a node has the one and restarts the other. Its own may lose the name later."""
    peer = Peer(A)
    peer.core.claim(ONE, NAME, b"actor", LATER)
    peer.hears(holder(), LATER)
    assert peer.core.hold(NAME, TWO, b"another", 20.0) == [NameLost(TWO, NAME, holder())]
    theirs = holder(TWO, B, b"another")
    assert peer.hears(theirs, 21.0) == [NameLost(ONE, NAME, theirs)]
