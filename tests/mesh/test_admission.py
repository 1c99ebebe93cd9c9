"""When a member asks whom, and what an issuer answers."""

from __future__ import annotations

from random import Random

import pytest

from lattica.mesh.admission import (
    ANSWER_S,
    ASK_AN_ADMIN,
    ASK_FOR_TICKET,
    ROUND_PAUSE_S,
    Admission,
    AskMembership,
    Effect,
    MembershipLost,
    MembershipRefused,
    MembershipRenewed,
    Refusal,
    answer,
)
from lattica.mesh.certificates import DAY_S, Member
from lattica.mesh.identity import PeerId
from lattica.mesh.roles import EVERYTHING, MEMBER, Role
from lattica.mesh.trust import IssuerRevoked, PeerRevoked, Says, Trust, write_statement
from lattica.testing.authority import FAKE_CHECKS, FakeAuthority, FakeKey, fake_root

BEGAN = 1_800_000_000.0
TOP = fake_root("mesh", BEGAN)
ISSUER = TOP.issuer("issuer", BEGAN)
INVITE = ISSUER.invite(MEMBER, BEGAN)
KEY = FakeKey("me")
ANN, BOB, CLEO = (FakeKey(name).peer for name in ("ann", "bob", "cleo"))


def at(days: float) -> float:
    return BEGAN + days * DAY_S


def membership(days: float = 0.0, roles: Role = MEMBER, key: FakeKey = KEY) -> list[bytes]:
    return ISSUER.certify_member(key.public_key, roles, at(days), invite=INVITE.id)


def member_of(chain: list[bytes]) -> Member:
    return FAKE_CHECKS.member(chain, TOP.root, None)


class Told(Admission):
    """Checks itself after each step, and remembers what it said."""

    def __init__(self, chain: list[bytes]) -> None:
        super().__init__(member_of(chain), TOP.root, FAKE_CHECKS, Random(7))
        self.said: list[Effect] = []

    def tick(self, now: float) -> list[Effect]:
        effects = super().tick(now)
        self.validate()
        return effects

    def until(self, now: float) -> list[Effect]:
        """Let time pass, tick by tick, with nobody answering."""
        said: list[Effect] = []
        for _ in range(100_000):
            due = self.next_deadline()
            if due is None or due > now:
                return said
            said += self.tick(due)
        raise AssertionError("it ticks for ever")


def asked(effects: list[Effect]) -> list[PeerId]:
    return [effect.issuer for effect in effects if isinstance(effect, AskMembership)]


def joined(*issuers: PeerId) -> Told:
    core = Told(INVITE.certify_member(KEY.public_key, MEMBER, BEGAN))
    core.issuers(issuers, BEGAN)
    return core


def certified(*issuers: PeerId) -> Told:
    core = Told(membership())
    assert core.issuers(issuers, BEGAN) == [], "there is time"
    return core


# -- when it asks ---------------------------------------------------------------------------------------------------


def test_who_came_by_an_invite_asks_the_first_issuer_that_it_hears_of() -> None:
    core = joined()
    assert core.until(at(1)) == []
    assert core.issuers([ANN], at(1)) == [AskMembership(ANN, expired=False)]
    chain = membership(1)
    assert core.answered(ANN, chain, at(1)) == [MembershipRenewed(tuple(chain), member_of(chain), 0.0)]
    assert core.next_deadline() == pytest.approx(at(21))


def test_a_member_asks_at_two_thirds_of_its_membership() -> None:
    core = certified(ANN)
    assert core.next_deadline() == at(20)
    assert core.tick(at(19.99)) == []
    assert core.tick(at(20)) == [AskMembership(ANN, expired=False)]


def test_an_issuer_with_a_session_is_asked_before_others() -> None:
    core = certified(ANN, BOB, CLEO)
    core.connected(CLEO, at(1))
    assert asked(core.tick(at(20))) == [CLEO]
    other = certified(ANN, BOB)
    other.connected(CLEO, at(1))
    other.disconnected(CLEO)
    assert asked(other.tick(at(20))) != [CLEO]


def test_an_issuer_asks_itself_first() -> None:
    core = certified(ANN, KEY.peer, BOB)
    core.connected(ANN, at(1))
    assert asked(core.tick(at(20))) == [KEY.peer]


def test_members_do_not_all_ask_the_same_issuer_first() -> None:
    first = set()
    for seed in range(20):
        core = Admission(member_of(membership()), TOP.root, FAKE_CHECKS, Random(seed))
        core.issuers([ANN, BOB, CLEO], BEGAN)
        first |= set(asked(core.tick(at(20))))
    assert first == {ANN, BOB, CLEO}


def test_silent_issuers_are_passed_over_and_asked_again_after_a_pause_that_grows() -> None:
    core = certified(ANN, BOB)
    effects = core.tick(at(20)) + core.until(at(20) + 2 * ANSWER_S)
    assert sorted(asked(effects)) == sorted([ANN, BOB])
    assert [e.reason for e in effects if isinstance(e, MembershipRefused)] == ["it did not answer within 30 s"] * 2
    first = core.next_deadline()
    assert first is not None
    assert 2.5 <= first - at(20) - 2 * ANSWER_S <= ROUND_PAUSE_S[0]
    rest = core.until(at(21))
    assert 25 < len(asked(rest)) / 2 < 70, "once an hour in the end"


def test_who_did_not_help_is_asked_last_the_next_time() -> None:
    core = certified(ANN, BOB)
    first, second = asked(core.tick(at(20)) + core.until(at(20) + ANSWER_S))
    chain = membership(20)
    core.answered(second, chain, at(20) + ANSWER_S + 1)
    assert asked(core.tick(at(41))) == [second] != [first]


@pytest.mark.parametrize("verb", ["connected", "issuers"])
def test_an_issuer_that_comes_into_reach_is_asked_at_once(verb: str) -> None:
    """All are silent, and the pause has grown to an hour; then one connects, or is heard of."""
    core, now = certified(ANN, BOB), at(21)
    core.until(now)
    while core._asked is not None:  # wait for the pause
        now = core.next_deadline() or 0.0
        core.tick(now)
    assert core.tick(now + 60) == []
    told = core.connected(BOB, now + 60) if verb == "connected" else core.issuers([ANN, BOB, CLEO], now + 60)
    assert asked(told) == [BOB if verb == "connected" else CLEO]


def test_an_issuer_that_has_ended_is_asked_no_more() -> None:
    core = certified(ANN, BOB)
    core.issuers([BOB], at(1))
    assert set(asked(core.until(at(22)))) == {BOB}


def test_a_flood_of_connections_asks_one_issuer_at_a_time() -> None:
    core = joined()
    effects = [effect for peer in (ANN, BOB, CLEO) for effect in core.connected(peer, BEGAN)]
    assert asked(effects) == [ANN]


# -- what comes back ------------------------------------------------------------------------------------------------


def test_a_late_answer_of_a_slower_issuer_changes_nothing() -> None:
    core = joined(ANN)
    core.answered(ANN, membership(0), BEGAN)
    assert core.answered(BOB, membership(0.001), at(0.001)) == []


@pytest.mark.parametrize(
    "chain",
    [
        [],
        [b"noise"],
        membership(key=FakeKey("other")),
        INVITE.certify_member(KEY.public_key, MEMBER, BEGAN),
        fake_root("other", BEGAN).issuer("x", BEGAN).certify_member(KEY.public_key, MEMBER, BEGAN),
        membership(-40),
    ],
)
def test_an_answer_that_is_not_a_membership_of_ours_is_not_taken(chain: list[bytes]) -> None:
    core = joined(ANN, BOB)
    before = core.member
    (issuer,) = [ANN] if core._asked and core._asked[0] == ANN else [BOB]
    refused, again = core.answered(issuer, chain, BEGAN + 1)
    assert isinstance(refused, MembershipRefused)
    assert isinstance(again, AskMembership), "the other one is asked"
    assert core.member == before


def test_a_membership_that_gives_fewer_roles_is_taken_as_it_is() -> None:
    core = joined(ANN)
    core.answered(ANN, membership(roles=Role.EXECUTE), BEGAN)
    assert core.member.roles == Role.EXECUTE


def test_a_peer_that_every_reachable_issuer_calls_revoked_is_told_so() -> None:
    """Bob is long dead; Ann says that this peer is out."""
    core = certified(ANN, BOB)
    effects = core.tick(at(20))
    if asked(effects) == [BOB]:
        effects += core.until(at(20) + ANSWER_S)
    effects += core.refused(ANN, "it was revoked", True, at(20) + ANSWER_S)
    effects += core.until(at(20) + 3 * ANSWER_S)
    assert effects[-1] == MembershipLost("it was revoked", ASK_AN_ADMIN)
    assert core.next_deadline() is None
    assert core.until(at(300)) == [] == core.refused(ANN, "it was revoked", True, at(21)) == core.connected(BOB, at(22))


def test_one_issuer_that_calls_a_peer_revoked_does_not_outweigh_one_that_certifies_it() -> None:
    core = joined(ANN, BOB)
    (first,) = [core._asked[0]] if core._asked else []
    (second,) = {ANN, BOB} - {first}
    assert asked(core.refused(first, "it was revoked", True, BEGAN + 1)) == [second]
    assert isinstance(core.answered(second, membership(), BEGAN + 2)[0], MembershipRenewed)


def test_an_issuer_that_cannot_certify_now_is_asked_again() -> None:
    core = joined(ANN)
    assert core.refused(ANN, "this node is no issuer", False, BEGAN + 1) == [
        MembershipRefused(ANN, "this node is no issuer")
    ]
    assert asked(core.until(BEGAN + 10)) == [ANN]


# -- when it is too late --------------------------------------------------------------------------------------------


def test_a_laptop_asleep_for_40_days_asks_at_the_renew_door_and_says_how_long_it_was_out() -> None:
    core = certified(ANN)
    assert core.tick(at(40)) == [AskMembership(ANN, expired=True)]
    (renewed,) = core.answered(ANN, membership(40), at(40))
    assert isinstance(renewed, MembershipRenewed)
    assert renewed.expired_for_s == 10 * DAY_S
    assert renewed.member.peer == KEY.peer


def test_after_200_days_a_peer_is_told_to_ask_for_a_ticket_and_keeps_its_id() -> None:
    core = certified(ANN)
    assert asked(core.tick(at(209))) == [ANN]
    (lost,) = core.tick(at(211))
    assert isinstance(lost, MembershipLost)
    assert "more than 180 days ago" in lost.reason
    assert lost.do_next == ASK_FOR_TICKET
    assert "keeps its id" in lost.do_next
    assert core.member.peer == KEY.peer
    assert core.next_deadline() is None


def test_who_met_no_issuer_before_its_invite_ended_is_told_to_ask_for_a_ticket() -> None:
    core = joined()
    assert core.next_deadline() == INVITE.expires
    (lost,) = core.tick(INVITE.expires)
    assert isinstance(lost, MembershipLost)
    assert "before any issuer could be reached" in lost.reason


def test_a_membership_that_came_after_all_ends_the_loss() -> None:
    """The last issuer's answer was on its way."""
    core = certified(ANN)
    core.tick(at(211))
    assert isinstance(core.answered(ANN, membership(211), at(211))[0], MembershipRenewed)
    assert core.next_deadline() == pytest.approx(at(231))


def test_a_core_says_how_it_stands() -> None:
    core = certified(ANN)
    assert repr(core) == f"<Admission {repr(core).split()[1]} until 2027-02-14 08:00 UTC, 1 issuers>"
    core.tick(at(300))
    assert "lost" in repr(core)


# -- the issuer's side ----------------------------------------------------------------------------------------------


def trust(*says: Says) -> Trust:
    made = Trust(TOP.root, FAKE_CHECKS)
    made.merge([write_statement(one, at(1), TOP, [], TOP.id) for one in says], at(1))
    return made


def test_an_issuer_gives_a_joiner_the_roles_of_its_invite_and_remembers_the_invite() -> None:
    invite = ISSUER.invite(Role.EXECUTE | Role.RELAY, BEGAN)
    chain = answer(ISSUER, trust(), member_of(invite.certify_member(KEY.public_key, MEMBER, BEGAN)), at(2))
    assert isinstance(chain, list)
    given = FAKE_CHECKS.member(chain, TOP.root, at(2))
    assert (given.roles, given.invite, given.via_invite) == (Role.EXECUTE | Role.RELAY, invite.id, False)
    assert given.expires == at(32)


def test_a_renewal_never_gives_more_than_the_member_had() -> None:
    class Liar(FakeAuthority):
        roles = EVERYTHING  # type: ignore[assignment]

    relay = ISSUER.invite(Role.RELAY, BEGAN)
    liar = Liar(relay.secret(), relay.root, relay.chain)
    member = member_of(liar.certify_member(KEY.public_key, EVERYTHING, BEGAN))
    for days in (1, 21, 41):
        chain = answer(ISSUER, trust(), member, at(days))
        assert isinstance(chain, list)
        member = member_of(chain)
        assert member.roles == Role.RELAY


def test_a_revoked_peer_and_a_closed_ticket_are_refused_for_good() -> None:
    out = trust(PeerRevoked(KEY.peer, INVITE.id))
    refused = answer(ISSUER, out, member_of(membership()), at(2))
    assert isinstance(refused, Refusal) and refused.final and "it was revoked" in refused.reason
    new_key = member_of(INVITE.certify_member(FakeKey("second").public_key, MEMBER, at(2)))
    refused = answer(ISSUER, out, new_key, at(2))
    assert isinstance(refused, Refusal) and refused.final and "ticket" in refused.reason
    assert isinstance(answer(ISSUER, out, member_of(membership(key=FakeKey("sibling"))), at(2)), list)


def test_an_issuer_that_has_ended_refuses_and_says_that_it_is_its_own_fault() -> None:
    for ended in (ISSUER, second := ISSUER.issuer("second", at(1))):
        refused = answer(second, trust(IssuerRevoked(ended.id, at(0.5))), member_of(membership()), at(2))
        assert isinstance(refused, Refusal) and not refused.final, ended
        assert "certifies nobody any more" in refused.reason


def test_an_issuer_whose_certificate_has_expired_refuses() -> None:
    refused = answer(ISSUER, trust(), member_of(membership()), ISSUER.expires + 1)
    assert isinstance(refused, Refusal) and not refused.final


def test_simulated_certificates_are_cheap_enough_for_many_joins() -> None:
    """200 peers, five issuers' answers each: a thousand memberships. It takes a tenth of a second."""
    known = trust()
    for number in range(200):
        member = member_of(INVITE.certify_member(FakeKey(str(number)).public_key, MEMBER, BEGAN))
        for days in range(1, 6):
            assert isinstance(answer(ISSUER, known, member, at(days)), list)
