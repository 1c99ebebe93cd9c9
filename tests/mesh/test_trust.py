"""Who is revoked, by whose word: the same everywhere, in whatever order it was heard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lattica.errors import RemoteProtocolError
from lattica.mesh import trust as trust_module
from lattica.mesh.authority import Authority, make_root, new_secret, public_key_of
from lattica.mesh.certificates import CHECKS, DAY_S, Member
from lattica.mesh.papers import Paper, write_paper
from lattica.mesh.roles import EVERYTHING, MEMBER
from lattica.mesh.trust import (
    AHEAD_MAX_S,
    PURPOSE,
    STATEMENT_MAX_BYTES,
    IssuerNamed,
    IssuerRevoked,
    PeerRevoked,
    Says,
    Trust,
    write_statement,
)
from lattica.testing.authority import FAKE_CHECKS, FakeAuthority, FakeKey, fake_root

BEGAN = 1_000_000.0
NOW = BEGAN + 10 * DAY_S
TOP = fake_root("mesh", BEGAN)
FIRST, SECOND = TOP.issuer("first", BEGAN), TOP.issuer("second", BEGAN)
TICKET = FIRST.invite(MEMBER, BEGAN, 300 * DAY_S)


@dataclass
class Person:
    """A peer with its chain."""

    key: FakeKey
    chain: list[bytes]

    @property
    def member(self) -> Member:
        return FAKE_CHECKS.member(self.chain, TOP.root, None)

    def say(self, says: Says, at: float = NOW) -> bytes:
        return write_statement(says, at, self.key, self.chain, TOP.id)


def person(name: str, by: FakeAuthority, roles: Any = MEMBER, at: float = NOW - DAY_S) -> Person:
    key = FakeKey(name)
    return Person(key, by.certify_member(key.public_key, roles, at, invite=TICKET.id if by is not TICKET else b""))


ANNE, BOB, CLEO = (person(name, FIRST, EVERYTHING) for name in ("anne", "bob", "cleo"))
DAN = person("dan", SECOND, EVERYTHING)
XAVER, YVE = person("xaver", FIRST), person("yve", SECOND)
EVERYBODY = [ANNE, BOB, CLEO, DAN, XAVER, YVE]


def root_says(says: Says, at: float = NOW) -> bytes:
    return write_statement(says, at, TOP, [], TOP.id)


def out(someone: Person, invite: bytes = b"") -> PeerRevoked:
    return PeerRevoked(someone.key.peer, invite, "gone")


def told(*statements: bytes, now: float = NOW + DAY_S) -> Trust:
    trust = Trust(TOP.root, FAKE_CHECKS)
    trust.merge(statements, now)
    trust.validate()
    return trust


def revoked(trust: Trust) -> set[int]:
    return {place for place, one in enumerate(EVERYBODY) if trust.revoked(one.member)}


# -- what a revocation does -----------------------------------------------------------------------------------------


def test_a_revoked_peer_is_refused_with_when_by_whom_and_why() -> None:
    trust = told(ANNE.say(PeerRevoked(XAVER.key.peer, b"", "lost laptop"), at=0.0 + BEGAN + 9.5 * DAY_S))
    reason = trust.objection(XAVER.member, NOW)
    assert reason.startswith("it was revoked on 1970-01-22 01:46 UTC by peer ")
    assert reason.endswith(": lost laptop")
    assert trust.objection(YVE.member, NOW) == ""


def test_an_expired_member_is_refused_and_is_not_revoked() -> None:
    trust = told()
    late = XAVER.member.expires
    assert trust.objection(XAVER.member, late - 1) == ""
    assert trust.objection(XAVER.member, late).startswith("its certificate expired on")
    assert trust.revoked(XAVER.member) == ""


def test_a_revocation_outlives_the_certificate() -> None:
    trust = told(ANNE.say(out(XAVER)))
    again = Person(XAVER.key, FIRST.certify_member(XAVER.key.public_key, MEMBER, NOW + 300 * DAY_S))
    assert "it was revoked" in trust.objection(again.member, NOW + 300 * DAY_S)


def test_revoking_a_peer_closes_its_ticket_to_new_joins_and_leaves_its_siblings_alone() -> None:
    """Xaver and his siblings came by one ticket. He is revoked, and makes himself a new key from it."""
    trust = told(ANNE.say(out(XAVER, TICKET.id)))
    new_key = person("xaver's second", TICKET)
    assert "ticket it came by was closed" in trust.objection(new_key.member, NOW)
    sibling = person("sibling", FIRST)
    assert sibling.member.invite == TICKET.id
    assert trust.objection(sibling.member, NOW) == ""
    assert trust.objection(sibling.member, NOW, joining=True) != ""


def test_a_revocation_that_knows_no_invite_closes_none() -> None:
    trust = told(ANNE.say(out(XAVER)))
    unknown = Person(FakeKey("z"), FIRST.certify_member(FakeKey("z").public_key, MEMBER, NOW))
    assert unknown.member.invite == b""
    assert trust.objection(unknown.member, NOW, joining=True) == ""


def test_revoking_an_issuer_ends_only_what_it_signed_since() -> None:
    before, after = person("before", FIRST, at=NOW - 2), person("after", FIRST, at=NOW)
    trust = told(DAN.say(IssuerRevoked(FIRST.id, NOW - 1, "stolen")))
    assert trust.objection(before.member, NOW) == ""
    assert "the issuer that certified it was revoked" in trust.objection(after.member, NOW)
    assert trust.objection(person("elsewhere", SECOND, at=NOW).member, NOW) == ""


def test_what_an_ended_issuer_had_certified_as_issuer_before_goes_on() -> None:
    early = FIRST.issuer("early", NOW - 10)
    late = FIRST.issuer("late", NOW)
    trust = told(DAN.say(IssuerRevoked(FIRST.id, NOW - 5)))
    assert trust.objection(person("a", early, at=NOW + 1).member, NOW) == ""
    assert trust.objection(person("b", late, at=NOW + 1).member, NOW) != ""


def test_the_earliest_end_of_an_issuer_is_the_one_that_counts() -> None:
    words = [DAN.say(IssuerRevoked(FIRST.id, NOW - hours * 3600), at=NOW + hours) for hours in (1, 3, 2)]
    member = person("x", FIRST, at=NOW - 2.5 * 3600).member
    assert told(*words).revoked(member)
    assert not told(*words[::2]).revoked(member)


# -- issuers --------------------------------------------------------------------------------------------------------


def test_issuers_are_those_named_that_have_not_ended_on_nodes_that_are_in() -> None:
    named = [
        one.say(IssuerNamed(list(issuer.chain), one.key.peer, label), at=NOW + place)
        for place, (one, issuer, label) in enumerate([(ANNE, FIRST, "attic"), (DAN, SECOND, "cellar")])
    ]
    assert [(one.id, one.peer, one.label) for one in told(*named).issuers()] == [
        (FIRST.id, ANNE.key.peer, "attic"),
        (SECOND.id, DAN.key.peer, "cellar"),
    ]
    assert [one.label for one in told(*named, DAN.say(IssuerRevoked(FIRST.id, NOW))).issuers()] == ["cellar"]
    assert [one.label for one in told(*named, ANNE.say(out(DAN))).issuers()] == ["attic"]
    renamed = DAN.say(IssuerNamed(list(FIRST.chain), BOB.key.peer, "roof"), at=NOW + 9)
    assert [one.label for one in told(*named, renamed).issuers()] == ["roof", "cellar"]


def test_a_key_that_may_not_issue_is_not_named_an_issuer() -> None:
    for chain in (TICKET.chain, XAVER.chain[:1], fake_root("other", NOW).issuer("x", NOW).chain):
        with pytest.raises(RemoteProtocolError, match="not accepted"):
            told(ANNE.say(IssuerNamed(list(chain), ANNE.key.peer)))


def test_an_issuer_that_is_revoked_as_a_peer_is_to_be_revoked_as_an_issuer_too() -> None:
    trust = told(DAN.say(IssuerNamed(list(SECOND.chain), DAN.key.peer)))
    says = trust.ends_with(DAN.key.peer, NOW, TICKET.id, "left us")
    assert says == [PeerRevoked(DAN.key.peer, TICKET.id, "left us"), IssuerRevoked(SECOND.id, NOW, "left us")]
    trust.merge([ANNE.say(one) for one in says], NOW)
    assert trust.ends_with(DAN.key.peer, NOW) == [PeerRevoked(DAN.key.peer)]
    assert len(trust.revocations()) == 2


# -- whose word counts ----------------------------------------------------------------------------------------------


def test_a_revoked_admin_has_no_say_from_then_on() -> None:
    """Bob is revoked; he revokes Anne, who had done it, and Yve, a second later."""
    words = [ANNE.say(out(BOB)), BOB.say(out(ANNE), at=NOW + 1), BOB.say(out(YVE), at=NOW + 1)]
    for order in (words, words[::-1]):
        assert revoked(told(*order)) == {EVERYBODY.index(BOB)}


def test_what_an_admin_said_before_it_was_revoked_counts() -> None:
    assert revoked(told(ANNE.say(out(BOB), at=NOW + 1), BOB.say(out(YVE)))) == {1, 5}


def test_the_word_of_one_certified_by_an_issuer_after_its_end_does_not_count() -> None:
    """The key of an issuer is stolen; its thief makes itself an admin and revokes Yve, after the end was said."""
    thief = person("thief", FIRST, EVERYTHING, at=NOW - 10)
    end = DAN.say(IssuerRevoked(FIRST.id, NOW - 20))
    assert revoked(told(end, thief.say(out(YVE), at=NOW + 1))) == set()
    assert revoked(told(end, thief.say(out(YVE), at=NOW - 1))) == {5}, "dated back; the root can undo that"


def test_the_root_takes_away_every_word_of_whom_it_revokes_however_dated_back() -> None:
    """Bob is revoked by Anne, and dates back that he had revoked her and Yve before."""
    words = [ANNE.say(out(BOB)), BOB.say(out(ANNE), at=NOW - 100), BOB.say(out(YVE), at=NOW - 100)]
    assert revoked(told(*words)) == {0, 5}
    assert revoked(told(*words, root_says(out(BOB), at=NOW + 50))) == {1}


def test_the_root_takes_away_every_word_of_those_certified_by_an_issuer_after_its_end() -> None:
    thief = person("thief", FIRST, EVERYTHING, at=NOW - 10)
    words = [thief.say(out(YVE), at=NOW - 9), thief.say(out(DAN), at=NOW - 9)]
    assert revoked(told(*words, root_says(IssuerRevoked(FIRST.id, NOW - 20)))) == set()


def test_nobody_takes_away_what_the_root_said() -> None:
    assert revoked(told(root_says(out(YVE)), ANNE.say(PeerRevoked(TOP.id)))) == {5}


PEOPLE = st.integers(0, len(EVERYBODY) - 1)
TIMES = st.integers(0, 6).map(lambda step: NOW + step)


@st.composite
def statement(draw: st.DrawFn) -> bytes:
    says: Says
    match draw(st.integers(0, 4)):
        case 0 | 1 | 2:
            invite = draw(st.sampled_from([b"", TICKET.id]))
            says = PeerRevoked(EVERYBODY[draw(PEOPLE)].key.peer, invite, draw(st.sampled_from(["", "gone"])))
        case 3:
            says = IssuerRevoked(draw(st.sampled_from([FIRST, SECOND])).id, draw(TIMES) - 2 * DAY_S + 3)
        case _:
            issuer, keeper = draw(st.sampled_from([FIRST, SECOND])), EVERYBODY[draw(PEOPLE)]
            says = IssuerNamed(list(issuer.chain), keeper.key.peer, draw(st.sampled_from(["", "attic"])))
    at = draw(TIMES)
    admin = draw(st.integers(-1, 3))
    return root_says(says, at) if admin < 0 else EVERYBODY[admin].say(says, at)


SETS = st.lists(statement(), max_size=8)


def speaker_of(data: bytes) -> Person | None:
    """Who made this statement; None: the root."""
    chain = msgspec.msgpack.decode(data, type=Paper).chain
    return next((one for one in EVERYBODY if one.chain == chain), None)


def said(data: bytes) -> tuple[float, Says]:
    return msgspec.msgpack.decode(msgspec.msgpack.decode(data, type=Paper).body, type=tuple[float, Says])


def view(trust: Trust) -> object:
    """All that can be asked of it."""
    joiners = [person("joiner", TICKET), person("other", FIRST)]
    return (
        trust.digest(),
        trust.statements(),
        [trust.objection(one.member, NOW) for one in (*EVERYBODY, *joiners)],
        [trust.objection(one.member, NOW, joining=True) for one in (*EVERYBODY, *joiners)],
        trust.issuers(),
        trust.revocations(),
    )


@given(SETS, st.randoms())
def test_the_order_in_which_statements_come_changes_nothing(words: list[bytes], dice: Any) -> None:
    shuffled = dice.sample(words, len(words))
    one_by_one = Trust(TOP.root, FAKE_CHECKS)
    for word in shuffled:
        one_by_one.merge([word], NOW)
        one_by_one.validate()
    assert view(told(*words)) == view(told(*shuffled)) == view(one_by_one)


@given(SETS, SETS)
def test_merging_is_commutative_and_idempotent(ours: list[bytes], theirs: list[bytes]) -> None:
    """Two replicas that give each other all they have are equal, and have nothing new for each other."""
    one, other = told(*ours), told(*theirs)
    one.merge(other.statements(), NOW)
    other.merge(told(*ours).statements(), NOW)
    assert view(one) == view(other)
    assert one.merge(other.statements(), NOW) == [] == other.merge(ours + theirs, NOW)


@given(SETS, SETS)
def test_a_merge_returns_what_was_new_and_only_that(ours: list[bytes], theirs: list[bytes]) -> None:
    trust = told(*ours)
    assert {one.data for one in trust.merge(theirs, NOW)} == set(theirs) - set(ours)


@given(SETS)
def test_equal_digests_mean_equal_statements(words: list[bytes]) -> None:
    assert (told(*words).digest() == told(*words[1:]).digest()) == (set(words) == set(words[1:]))


@given(SETS, st.lists(statement(), max_size=3))
def test_what_a_peer_says_after_its_revocation_changes_nothing(words: list[bytes], more: list[bytes]) -> None:
    """`more` is said again, later than all else, by those of its speakers who are revoked by then."""
    before = told(*words)
    speakers = [(speaker_of(data), said(data)) for data in more]
    late = [by.say(says, NOW + 100) for by, (_, says) in speakers if by and before.revoked(by.member)]
    after = told(*words, *late)
    assert revoked(after) == revoked(before)
    assert after.issuers() == before.issuers()


@given(SETS, statement())
@example([ANNE.say(out(BOB))], BOB.say(out(ANNE), at=NOW + 1))
def test_a_statement_never_lifts_a_revocation_that_was_said_before_it(words: list[bytes], word: bytes) -> None:
    earlier = [data for data in words if said(data)[0] < said(word)[0]]
    if speaker_of(word) is not None:  # the root may take a liar's words away
        assert revoked(told(*earlier)) <= revoked(told(*earlier, word))


# -- what is no statement -------------------------------------------------------------------------------------------


def test_only_an_admin_of_this_mesh_makes_statements() -> None:
    other = fake_root("other", BEGAN)
    stranger = Person(FakeKey("s"), other.issuer("o", BEGAN).certify_member(FakeKey("s").public_key, EVERYTHING, NOW))
    anne = ANNE.chain
    for wrong in (
        XAVER.say(out(YVE)),  # no admin
        stranger.say(out(YVE)),
        write_statement(out(YVE), NOW, XAVER.key, anne, TOP.id),  # with another's chain
        write_statement(out(YVE), NOW, ANNE.key, anne, other.id),  # meant for another mesh
        write_statement(out(YVE), NOW, ANNE.key, [], TOP.id),  # as if by the root
        write_paper("job token", msgspec.msgpack.encode([NOW, [1, YVE.key.peer]]), ANNE.key, anne, TOP.id),
        ANNE.say(out(YVE), at=ANNE.member.expires + 1),
        ANNE.say(out(YVE), at=NOW - 2 * DAY_S),  # before it was certified
    ):
        with pytest.raises(RemoteProtocolError, match="a statement is not accepted"):
            told(wrong, now=NOW + 400 * DAY_S)


def test_a_batch_with_one_bad_statement_is_refused_whole() -> None:
    trust = told()
    with pytest.raises(RemoteProtocolError):
        trust.merge([ANNE.say(out(YVE)), XAVER.say(out(BOB))], NOW)
    assert trust.statements() == []


def test_a_statement_counts_long_after_its_signer_s_certificate_expired() -> None:
    assert revoked(told(ANNE.say(out(YVE)), now=NOW + 3000 * DAY_S)) == {5}


def test_a_statement_from_the_future_waits() -> None:
    word = ANNE.say(out(YVE), at=NOW + AHEAD_MAX_S + 1)
    trust = told(word, now=NOW)
    assert (trust.statements(), revoked(trust)) == ([], set())
    assert [one.data for one in trust.merge([word], NOW + 1)] == [word]


def test_a_statement_of_a_kind_that_a_later_release_made_is_passed_on() -> None:
    body = msgspec.msgpack.encode([NOW, [77, {"new": "word"}]])
    later = write_paper(PURPOSE, body, ANNE.key, ANNE.chain, TOP.id)
    trust = told(later)
    assert trust.statements() == [later]
    assert revoked(trust) == set()


def test_fields_that_a_later_release_appends_are_ignored() -> None:
    body = msgspec.msgpack.encode([NOW, [1, YVE.key.peer, b"", "gone", "since noon"], "more"])
    assert revoked(told(write_paper(PURPOSE, body, ANNE.key, ANNE.chain, TOP.id))) == {5}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode([NOW]),
        msgspec.msgpack.encode([NOW, "words"]),
        msgspec.msgpack.encode([NOW, [1, b"short"]]),
        msgspec.msgpack.encode([NOW, [1, b"p" * 32, b"i", ""]]),
        msgspec.msgpack.encode([NOW, [1, b"p" * 32, b"", "w" * 201]]),
        msgspec.msgpack.encode([NOW, [2, b"i" * 32, float("inf")]]),
        msgspec.msgpack.encode([NOW, [2, b"i" * 32, float("nan")]]),
        msgspec.msgpack.encode([NOW, [3, [], b"p" * 32]]),
        msgspec.msgpack.encode([NOW, [3, [b""] * 3, b"p" * 32]]),
        msgspec.msgpack.encode([-1.0, [1, b"p" * 32]]),
        msgspec.msgpack.encode([float("nan"), [1, b"p" * 32]]),
        msgspec.msgpack.encode([1e300, [1, b"p" * 32]]),
        msgspec.msgpack.encode([NOW, [True, b"p" * 32]]),
        b"\x92\x00" + b"\x91" * 2000,
        b"\x92\x00\x92\x01\xa2\xff\xff",
    ],
)
def test_a_signed_statement_that_says_what_cannot_be_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        told(write_paper(PURPOSE, body, ANNE.key, ANNE.chain, TOP.id))


def test_a_statement_has_one_encoding_so_that_nobody_can_make_more_of_it() -> None:
    paper = msgspec.msgpack.decode(ANNE.say(out(YVE)))
    longer = msgspec.msgpack.encode([*paper, "more"])
    wide = b"\xdc\x00\x04" + msgspec.msgpack.encode(paper)[1:]  # the same array, its length in two bytes
    for other in (longer, wide):
        with pytest.raises(RemoteProtocolError, match="not written as this release"):
            told(other)


def test_a_statement_has_a_longest_size() -> None:
    with pytest.raises(RemoteProtocolError, match="may have 8192"):
        told(bytes(STATEMENT_MAX_BYTES + 1))


@given(st.binary(max_size=300))
def test_noise_is_no_statement(noise: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        told(noise)


@given(st.data())
def test_a_bent_statement_is_refused_or_was_not_bent(data: st.DataObject) -> None:
    word = data.draw(statement())
    bent = bytearray(word)
    for _ in range(data.draw(st.integers(1, 3))):
        bent[data.draw(st.integers(0, 1 << 16)) % len(bent)] = data.draw(st.integers(0, 255))
    if bytes(bent) != word:
        with pytest.raises(RemoteProtocolError):
            told(bytes(bent))


# -- bounds and disk ------------------------------------------------------------------------------------------------


@given(SETS, SETS)
def test_when_there_are_too_many_all_peers_keep_the_same_and_the_root_s_first(
    ours: list[bytes], theirs: list[bytes]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trust_module, "STATEMENTS_MAX", 4)
        one, other = told(*ours), told(*theirs)
        one.merge(other.statements(), NOW)
        other.merge(told(*ours).statements(), NOW)
        assert view(one) == view(other)
        by_root = {word for word in (*ours, *theirs) if speaker_of(word) is None}
        kept = set(one.statements())
        assert len(kept) == min(4, len({*ours, *theirs}))
        assert by_root <= kept or kept <= by_root


@given(SETS)
def test_what_was_on_disk_is_known_again_without_verifying_it_again(words: list[bytes]) -> None:
    class Reading:
        def member(self, chain: Any, root: bytes, at: float | None) -> Member:
            assert at is None
            return FAKE_CHECKS.member(chain, root, at)

        def issuing_key(self, chain: Any, root: bytes, at: float | None) -> bytes:
            assert at is None
            return FAKE_CHECKS.issuing_key(chain, root, at)

    before = told(*words)
    assert view(Trust(TOP.root, Reading(), before.statements())) == view(before)  # type: ignore[arg-type]


def test_a_trust_says_what_it_knows() -> None:
    assert repr(told(ANNE.say(out(YVE)), DAN.say(IssuerRevoked(FIRST.id, NOW)))) == (
        "<Trust: 1 peers and 1 issuers revoked, 0 issuers, 2 statements>"
    )


# -- with real certificates -----------------------------------------------------------------------------------------


def test_an_admin_revokes_a_peer_with_real_signatures() -> None:
    top = make_root(BEGAN)
    secret = new_secret()
    issuer = Authority(secret, top.root, top.certify_issuer(public_key_of(secret), BEGAN))
    invite = issuer.invite(EVERYTHING, NOW)  # a key with `sign`, as good as any
    admin = issuer.certify_member(invite.public_key, EVERYTHING, NOW)
    victim = issuer.certify_member(public_key_of(new_secret()), MEMBER, NOW)
    member = CHECKS.member(victim, top.root, NOW)
    says = [PeerRevoked(member.peer), IssuerNamed(list(issuer.chain), member.peer), IssuerRevoked(issuer.id, NOW + 9)]
    words = [write_statement(one, NOW, invite, admin, top.id) for one in says]
    words.append(write_statement(PeerRevoked(b"r" * 32), NOW, top, [], top.id))
    assert max(map(len, words)) < 3000
    trust = Trust(top.root, CHECKS)
    assert len(trust.merge(words, NOW)) == 4
    assert "it was revoked" in trust.objection(member, NOW)
    assert Trust(top.root, CHECKS, trust.statements()).digest() == trust.digest()
    bent = bytearray(words[0])
    bent[-1] ^= 1
    with pytest.raises(RemoteProtocolError, match="signature is wrong"):
        Trust(top.root, CHECKS).merge([bytes(bent)], NOW)
