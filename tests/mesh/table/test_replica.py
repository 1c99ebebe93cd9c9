"""One peer's copy of the table: merging is a maximum, whoever brings what, in whatever order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import ConfigError, PermissionDeniedError
from lattica.mesh import roles
from lattica.mesh.authority import Authority, make_root, new_secret, public_key_of
from lattica.mesh.certificates import CHECKS
from lattica.mesh.identity import PeerId, peer_id_of
from lattica.mesh.roles import EVERYTHING, MEMBER, Role
from lattica.mesh.table import replica as replica_module
from lattica.mesh.table.kinds import (
    ACCUSATION,
    ACTOR,
    CERTIFICATE,
    CLEARANCE,
    DAY_S,
    EVIDENCE,
    GROUP,
    KINDS,
    NAME,
    NEVER,
    NODE,
    RULE_S,
    SERVICE,
    SETTING,
    STATEMENT,
    TOMBSTONE_S,
    Kind,
)
from lattica.mesh.table.replica import EXPIRY_SLACK_S, Merged, Replica
from lattica.mesh.table.rows import (
    BOOT_BITS,
    HASH_BYTES,
    UNKNOWN_MAX_BYTES,
    Content,
    Row,
    bare,
    read_row,
    statement_row,
    write_row,
)
from lattica.testing.authority import FAKE_CHECKS, FakeAuthority, FakeKey, fake_root

BEGAN = 1_000_000_000.0
NOW = BEGAN + 10 * DAY_S
TOP = fake_root("mesh", BEGAN)
ISSUER = TOP.issuer("issuer", BEGAN)
MESH = bytes(TOP.id)
BOOT = int(NOW) << BOOT_BITS
LATER = 77  # a kind that only a later release knows


@dataclass
class Person:
    """A peer with its chain; `counter` numbers what it writes here."""

    name: str
    key: FakeKey
    chain: list[bytes]
    counter: int = 0

    @property
    def peer(self) -> PeerId:
        return self.key.peer

    def row(
        self,
        kind: Kind | int,
        key: bytes,
        body: bytes = b"",
        before: Row | None = None,
        /,
        *,
        at: float = NOW,
        **fields: Any,
    ) -> Row:
        """Written at that time under the next number, unless `fields` say otherwise."""
        self.counter += 1
        number, multi = (kind, False) if isinstance(kind, int) else (kind.number, kind.is_multi)
        life = DAY_S if isinstance(kind, int) else min(kind.ttl_s, NEVER - at)
        usual: dict[str, Any] = {
            "kind": number, "key": key, "writer": bytes(self.peer), "boot": BOOT, "counter": self.counter,
            "hlc": int(at * 1000) << 16, "expires": int(at + life), "gone": False, "body": body,
            "epoch": 0 if not multi else before.content.epoch + 1 if before else 1,
            "before": before.hash if before else b"",
        }  # fmt: skip
        return write_row(Content(**(usual | fields)), self.key.sign, MESH, before)

    def service(self, name: bytes, body: bytes = b"", /, **fields: Any) -> Row:
        return self.row(SERVICE, bytes(self.peer) + name, body, **fields)

    def certificate(self, chain: Sequence[bytes] | None = None, **fields: Any) -> Row:
        return self.row(CERTIFICATE, bytes(self.peer), msgspec.msgpack.encode(chain or self.chain), **fields)


def person(name: str, roles: Role = MEMBER, by: FakeAuthority = ISSUER) -> Person:
    key = FakeKey(name)
    return Person(name, key, by.certify_member(key.public_key, roles, BEGAN))


ANN = person("ann", EVERYTHING)  # the admin
BOB, CLEO, DAN = (person(name) for name in ("bob", "cleo", "dan"))
EVE = person("eve", Role.EXECUTE)  # may not submit
PEOPLE = (ANN, BOB, CLEO, DAN, EVE)
CERTIFICATES = [one.certificate(counter=0) for one in PEOPLE]
for one in PEOPLE:
    one.counter = 100  # what stories write is newer than what laws generate


def replica(
    rows: Iterable[Row] = (),
    me: Person = ANN,
    known: Iterable[Row] = CERTIFICATES,
    revoked: Iterable[Person] = (),
    **how: Any,
) -> Replica:
    """Of `me`, with everybody's certificate, and with these rows merged one by one."""
    out = {one.peer for one in revoked}
    made = Replica(
        me.peer, me.key.sign, MESH, TOP.root, FAKE_CHECKS, Random(1), boot=BOOT + 5, revoked=out.__contains__, **how
    )
    made.merge(list(known), NOW)
    for row in rows:
        made.merge([row], NOW)
        made.validate()
    return made


def table(one: Replica) -> set[bytes]:
    """All that it holds, byte by byte, and what it sees of it."""
    one.validate()
    return {row.data for row in one.all()}


def seen(one: Replica) -> set[bytes]:
    return {row.data for kind in KINDS.values() for row in one.rows(kind)}


def is_taken(one: Replica, row: Row, at: float = NOW) -> bool:
    """Whether it is merged, and kept."""
    one.merge([row], at)
    held = one.at(row.place)
    return held is not None and held.hash == row.hash


def why_refused(row: Row, *, before: Iterable[Row] = (), at: float = NOW) -> str:
    """What a replica says of it."""
    merged = replica(before).merge([row], at)
    assert not merged.fresh
    return merged.refused[0][1] if merged.refused else ""


# -- laws -----------------------------------------------------------------------------------------------------------

WRITERS = (BOB, CLEO, DAN)
words = st.sampled_from((b"a", b"b"))


@st.composite
def histories(draw: st.DrawFn, *, honest: bool = True, max_size: int = 10) -> list[Row]:
    """Rows of three writers and an admin, valid ones and others. honest: nobody uses a number twice."""
    rows: list[Row] = []
    for number in range(1, draw(st.integers(1, max_size)) + 1):
        who = draw(st.sampled_from(WRITERS))
        dot = {"counter": number if honest else draw(st.integers(1, 3)), "boot": BOOT + draw(st.integers(0, 1))}
        word, body, gone = draw(words), draw(words), draw(st.integers(0, 4)) == 0
        at = NOW - draw(st.integers(0, 3)) * 600.0
        expires = int(NOW + draw(st.sampled_from((60, 120, 7200))))
        common: dict[str, Any] = {**dot, "gone": gone, "at": at, "expires": expires}
        match draw(st.integers(0, 9)):
            case 0 | 1 | 2:
                rows.append(who.service(word, body, **common))
            case 3 | 4 | 5 | 6:
                earlier = [row for row in rows if row.kind == NAME.number and row.key == word]
                before = draw(st.sampled_from([None, *earlier]))
                heir = bytes(draw(st.sampled_from(WRITERS)).peer) if draw(st.booleans()) else b""
                writer = draw(st.sampled_from((*WRITERS, ANN, EVE)))
                rows.append(writer.row(NAME, word, body, before, heir=heir, **common))
            case 7:
                rows.append(who.row(LATER, word, body, **common))
            case 8:
                cleared = (BOOT + 1).to_bytes(8, "big")
                rows.append(ANN.row(CLEARANCE, bytes(who.peer), cleared, **dot))
            case _:
                rows.append(EVE.row(SETTING, word, body, **dot))  # without the role
    return rows


def groups(rows: Sequence[Row], dice: Random) -> list[list[Row]]:
    """The rows in any order, in groups of any size, some more than once."""
    order = [*rows, *dice.choices(rows, k=dice.randrange(4))]
    dice.shuffle(order)
    found: list[list[Row]] = []
    while order:
        size = dice.randint(1, 4)
        found.append(order[:size])
        order = order[size:]
    return found


def in_groups(rows: Sequence[Row], dice: Random) -> Replica:
    made = replica()
    for group in groups(rows, dice):
        made.merge(group, NOW)
        made.validate()
    return made


@given(histories(), st.randoms(use_true_random=False))
def test_whatever_the_order_the_grouping_and_the_repetition_the_table_is_the_same(
    rows: list[Row], dice: Random
) -> None:
    one, other = replica(rows), in_groups(rows, dice)
    assert table(one) == table(other)
    assert one.root() == other.root()
    assert seen(one) == seen(other)


@given(histories())
def test_whatever_comes_the_greatest_valid_row_of_each_key_is_kept(rows: list[Row]) -> None:
    """A row is valid or not by itself: each one is asked of a replica of its own."""
    best: dict[int, Row] = {}
    for row in rows:
        if is_taken(replica(), row) and (row.place not in best or row.order > best[row.place].order):
            best[row.place] = row
    assert table(replica(rows)) == {row.data for row in (*CERTIFICATES, *best.values())}


@given(histories())
def test_merging_again_changes_nothing_and_tells_nobody(rows: list[Row]) -> None:
    one = replica(rows)
    root = one.root()
    merged = one.merge([*one.all(), *rows], NOW)
    assert (merged.fresh, merged.changed, one.root()) == ([], [], root)


@given(histories(max_size=4), histories(max_size=4), histories(max_size=4))
def test_replicas_may_be_joined_in_any_order_and_by_twos(a: list[Row], b: list[Row], c: list[Row]) -> None:
    def joined(one: Replica, other: Replica) -> Replica:
        both = replica(one.all())
        both.merge(list(other.all()), NOW)
        return both

    if _lies([*a, *b, *c]):
        return  # three histories may use one number for two things; see below
    left = joined(joined(replica(a), replica(b)), replica(c))
    right = joined(replica(c), joined(replica(b), replica(a)))
    assert table(left) == table(right)


def _lies(rows: Iterable[Row]) -> bool:
    dots: dict[tuple[bytes, int, int, int], bytes] = {}
    return any(dots.setdefault((row.content.writer, *row.dot, row.place), row.hash) != row.hash for row in rows)


@given(histories(honest=False), st.randoms(use_true_random=False))
def test_whatever_liars_write_replicas_are_equal_once_they_have_told_each_other_all(
    rows: list[Row], dice: Random
) -> None:
    """Who heard two things under one number keeps both as evidence; the others learn it from that."""
    three = [in_groups(rows, dice) for _ in range(3)]
    had_evidence = any(list(one.rows(EVIDENCE)) for one in three)
    for _ in range(4):
        for one in three:
            for other in three:
                merged = one.merge(list(other.all()), NOW)
                assert not merged.refused, "one of us holds what another one refuses"
                one.validate()
    assert table(three[0]) == table(three[1]) == table(three[2])
    assert seen(three[0]) == seen(three[1]) == seen(three[2])
    assert bool(list(three[0].rows(EVIDENCE))) == had_evidence
    assert replica(three[0].all()).root() == three[0].root(), "a newcomer gets the same"


@given(histories(), st.randoms(use_true_random=False), st.sampled_from((59.0, 60.0, 61.0, 120.0, 8000.0)))
def test_it_does_not_matter_when_a_replica_forgets_what_has_expired(
    rows: list[Row], dice: Random, later: float
) -> None:
    rows = [row for row in rows if all(row.content.expires >= other.content.expires for other in _below(row, rows))]
    one, other = replica(rows), replica()
    one.expire(NOW + later)
    for group in groups(rows, dice) if rows else ():
        other.merge(group, NOW + dice.choice((0.0, later)))
        other.expire(NOW + dice.choice((0.0, later)))
        other.validate()
    other.merge(rows, NOW + later)
    other.expire(NOW + later)
    assert table(other) == table(one)
    assert all(row.content.expires > NOW + later for row in one.all())


def _below(row: Row, rows: Iterable[Row]) -> list[Row]:
    """Those over which it wins: it must live as long as they, as what a replica writes does."""
    return [other for other in rows if other.place == row.place and other.order < row.order]


def services(replica: Replica) -> set[bytes]:
    """Its rows of a kind that only their own writer writes."""
    return {row.hash for row in replica.all() if row.kind == SERVICE.number}


@given(histories(), st.randoms(use_true_random=False))
def test_whatever_comes_first_who_has_too_many_rows_keeps_the_same_latest_ones(rows: list[Row], dice: Random) -> None:
    """A row of a kind with several writers may have displaced another's before it was one too many; the other's comes
    back with the next exchange."""
    many = [row for row in rows if row.kind in (SERVICE.number, LATER)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KINDS, SERVICE.number, replace(SERVICE, max_rows=1))
        patch.setattr(replica_module, "UNKNOWN_ROWS_MAX", 1)
        one, other = replica(many), in_groups(many, dice) if many else replica()
        assert services(one) == services(other)
        for replicas in ((one, other), (other, one)):
            replicas[0].merge(list(replicas[1].all()), NOW)
        assert table(one) == table(other)
        for who in WRITERS:
            assert len([row for row in one.all() if row.writer == who.peer and row.kind == SERVICE.number]) <= 1


@given(histories())
def test_what_was_on_disk_is_known_again_without_verifying_it_again(rows: list[Row]) -> None:
    class Reading:
        def member(self, chain: Any, root: bytes, at: float | None) -> Any:
            assert at is None
            return FAKE_CHECKS.member(chain, root, at)

    before = replica(rows)
    again = Replica(ANN.peer, ANN.key.sign, MESH, TOP.root, Reading(), Random(2), boot=BOOT + 6)  # type: ignore[arg-type]
    assert again.load(reversed(list(before.all())), NOW) == len(before)
    assert (table(again), seen(again), again.root()) == (table(before), seen(before), before.root())
    assert again.member(BOB.peer) == before.member(BOB.peer)


# -- what is not merged ---------------------------------------------------------------------------------------------


def test_a_row_in_another_s_name_is_refused() -> None:
    forged = write_row(BOB.service(b"shop").content, DAN.key.sign, MESH)
    assert why_refused(forged) == "its signature is wrong"


def test_a_row_of_another_mesh_is_refused() -> None:
    row = write_row(BOB.service(b"shop").content, BOB.key.sign, b"another mesh")
    assert why_refused(row) == "its signature is wrong"


def test_a_replayed_row_changes_nothing() -> None:
    """Bob's shop has moved. Mallory passes on the row of before: nobody goes there."""
    old, new = BOB.service(b"shop", b"old"), BOB.service(b"shop", b"new")
    one = replica([old, new])
    merged = one.merge([old], NOW)
    assert merged == Merged()
    assert one.get(SERVICE, new.key) is one.at(new.place) and one.at(new.place).body == b"new"  # type: ignore[union-attr]


def test_a_row_whose_writer_lacks_the_role_is_refused_with_its_name() -> None:
    assert why_refused(EVE.row(NAME, b"learner")) == "its writer lacks the role submit"
    assert why_refused(BOB.row(SETTING, b"rule")) == "its writer lacks the role admin"
    assert is_taken(replica(), ANN.row(SETTING, b"rule"))


def test_a_row_that_counts_for_longer_than_its_kind_does_is_refused() -> None:
    longest = int(NOW + TOMBSTONE_S + EXPIRY_SLACK_S)
    assert is_taken(replica(), BOB.service(b"shop", expires=longest))
    assert why_refused(BOB.service(b"shop", expires=longest + 1)) == "it would count for longer than service rows do"
    assert is_taken(replica(), ANN.row(SETTING, b"rule", expires=int(NOW + RULE_S))), "rules live for 120 days"


def test_a_row_from_too_far_ahead_waits_until_the_clock_is_there() -> None:
    row = BOB.row(NAME, b"learner", at=NOW + 61)
    one = replica()
    assert one.merge([row], NOW) == Merged() and not is_taken(one, row)
    assert is_taken(one, row, NOW + 2)


def test_a_row_that_has_expired_is_not_taken() -> None:
    row = BOB.service(b"shop", expires=int(NOW) + 10)
    assert not is_taken(replica(), row, NOW + 10)
    assert is_taken(replica(), row, NOW + 9)


def test_a_row_whose_certificate_comes_later_is_taken_when_it_comes_again() -> None:
    one, row = replica(known=()), BOB.service(b"shop")
    merged = one.merge([row], NOW)
    assert (merged.fresh, merged.refused, merged.unknown) == ([], [], {BOB.peer})
    assert one.merge([BOB.certificate()], NOW).fresh and is_taken(one, row)


def test_within_one_message_certificates_come_first() -> None:
    row, certificate = BOB.service(b"shop"), BOB.certificate()
    assert replica(known=()).merge([row, certificate], NOW).fresh == [certificate, row]


def test_a_certificate_row_has_its_own_writer_s_chain_and_signature() -> None:
    assert why_refused(BOB.certificate(CLEO.chain)) == "its certificate is another peer's"
    forged = write_row(BOB.certificate().content, DAN.key.sign, MESH)
    assert why_refused(forged) == "its signature is wrong"
    other = fake_root("another mesh", BEGAN).issuer("x", BEGAN)
    assert why_refused(BOB.certificate(other.certify_member(BOB.key.public_key, EVERYTHING, BEGAN)))
    for body in (b"", b"\xc1", msgspec.msgpack.encode([]), msgspec.msgpack.encode([b"noise"]), b"\x91" * 2000):
        assert why_refused(BOB.row(CERTIFICATE, bytes(BOB.peer), body))


def test_a_certificate_that_has_ended_still_says_who_wrote_a_row() -> None:
    """A node was off for a year; what it wrote before is still judged by the roles that it had."""
    much_later = NOW + 100 * DAY_S
    certificate = BOB.certificate(expires=int(NOW + 180 * DAY_S))
    one = replica(known=())
    assert is_taken(one, certificate, much_later) and one.member(BOB.peer).expires < much_later  # type: ignore[union-attr]


def test_nobody_takes_back_a_certificate() -> None:
    """Else newcomers could not read what its writer has written, and their tables would differ for ever."""
    assert "nobody takes back a certificate" in why_refused(BOB.certificate(gone=True))


def test_a_row_of_a_kind_that_a_later_release_knows_is_kept_and_read_by_nobody() -> None:
    row = BOB.row(LATER, b"anything", b"new", expires=int(NOW + RULE_S))
    one = replica()
    merged = one.merge([row], NOW)
    assert merged.fresh == [row] and one.at(row.place) is row
    forged = write_row(row.content, DAN.key.sign, MESH)
    assert why_refused(forged) == "its signature is wrong"


def test_a_writer_s_rows_of_later_kinds_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are 65,000 such kinds: each of them alone would be no bound."""
    monkeypatch.setattr(replica_module, "UNKNOWN_ROWS_MAX", 10)
    one = replica([BOB.row(kind, b"k") for kind in range(100, 130)])
    assert sorted(row.kind for row in one.all() if row.kind >= 100) == list(range(120, 130))
    one.validate()


def test_statements_are_taken_if_trust_holds_them_and_in_one_form() -> None:
    good, bad = statement_row(b"out with him"), statement_row(b"noise")
    asked: list[bytes] = []

    def holds(data: bytes, now: float) -> str:
        asked.append(data)
        return "" if data == b"out with him" else "it is no statement"

    one = replica(statement_holds=holds)
    assert one.merge([good, bad], NOW).refused == [(bad, "it is no statement")]
    assert [row.body for row in one.rows(STATEMENT)] == [b"out with him"] and asked == [b"out with him", b"noise"]
    content = msgspec.structs.replace(good.content, writer=bytes(BOB.peer))
    assert one.merge([write_row(content, lambda _: b"", b"")], NOW).fresh == []
    assert one.add_statement(b"out with him").fresh == [], "it is there already"
    assert one.add_statement(b"and her").fresh


# -- who may supersede ----------------------------------------------------------------------------------------------


def test_a_group_is_superseded_by_its_writer_its_heir_and_an_admin_alone() -> None:
    first = BOB.row(GROUP, b"workers", b"bob's", heir=bytes(CLEO.peer))
    for who in (BOB, CLEO, ANN):
        one = replica([first, who.row(GROUP, b"workers", b"new", first)])
        assert one.get(GROUP, b"workers").body == b"new"  # type: ignore[union-attr]
    stolen = DAN.row(GROUP, b"workers", b"dan's", first)
    reason = why_refused(stolen, before=[first])
    assert reason.startswith("it supersedes a row of ") and reason.endswith("which is not its writer's to do")
    assert why_refused(stolen) == reason, "nor where the first one was never seen"


@pytest.mark.parametrize("kind", [NAME, ACTOR], ids=lambda kind: kind.name)
def test_names_and_actors_are_superseded_by_whoever_may_submit(kind: Kind) -> None:
    """Their host is dead, and any member may be the first in the order of those who restart it (design/0013)."""
    first = BOB.row(kind, b"learner", b"bob's")
    assert replica([first, DAN.row(kind, b"learner", b"dan's", first)]).get(kind, b"learner").body == b"dan's"  # type: ignore[union-attr]
    assert why_refused(EVE.row(kind, b"learner", b"eve's", first), before=[first]).startswith("its writer lacks")


def test_anybody_may_take_a_key_that_was_given_up_or_has_expired() -> None:
    given_up = BOB.row(GROUP, b"workers", gone=True)
    assert is_taken(replica([given_up]), DAN.row(GROUP, b"workers", b"dan's", given_up))
    short = BOB.row(GROUP, b"workers", expires=int(NOW) + 10)
    assert is_taken(replica([short]), DAN.row(GROUP, b"workers", b"dan's", short, at=NOW + 10), NOW + 10)
    assert not is_taken(replica([short]), DAN.row(GROUP, b"workers", b"dan's", short, at=NOW + 9), NOW + 9)


def test_what_a_row_supersedes_is_verified_too() -> None:
    """Dan makes up a row of Bob's that names Dan as its heir."""
    made_up = write_row(BOB.row(NAME, b"learner", heir=bytes(DAN.peer)).content, DAN.key.sign, MESH)
    assert why_refused(DAN.row(NAME, b"learner", b"dan's", made_up)) == "its signature is wrong"


def test_a_row_waits_for_the_certificate_of_whom_it_supersedes() -> None:
    first = BOB.row(NAME, b"learner", gone=True)
    one = replica(known=[CERTIFICATES[3]])  # Dan's
    assert one.merge([DAN.row(NAME, b"learner", b"dan's", first)], NOW).unknown == {BOB.peer}


def test_of_two_who_take_a_name_at_once_the_later_clock_wins_everywhere_then_the_greater_writer() -> None:
    early, late = BOB.row(NAME, b"learner", at=NOW - 1), CLEO.row(NAME, b"learner", at=NOW)
    lower, higher = sorted((BOB, CLEO), key=lambda who: who.peer)
    tied, winner = lower.row(NAME, b"player"), higher.row(NAME, b"player")
    for rows in ([early, late, tied, winner], [winner, tied, late, early]):
        one = replica(rows)
        assert one.get(NAME, b"learner").writer == CLEO.peer  # type: ignore[union-attr]
        assert one.get(NAME, b"player").writer == higher.peer  # type: ignore[union-attr]


# -- liars ----------------------------------------------------------------------------------------------------------


def lie(who: Person = DAN, words: Sequence[bytes] = (b"yes", b"no"), **fields: Any) -> list[Row]:
    """Rows under one number."""
    return [who.service(b"lie", word, **({"counter": 1 << 40} | fields)) for word in words]


def test_two_rows_under_one_number_are_evidence_and_hide_all_that_their_writer_says() -> None:
    other = DAN.service(b"shop")
    one = replica([other])
    assert one.get(SERVICE, other.key)
    yes, no = lie()
    one.merge([yes], NOW)
    merged = one.merge([no], NOW)
    (evidence,) = one.rows(EVIDENCE)
    assert evidence in merged.fresh and evidence.writer == DAN.peer
    assert "two different things under one number" in one.distrusts(DAN.peer)
    assert one.get(SERVICE, other.key) is None and other.data in table(one), "hidden, not gone"
    assert max((yes, no), key=lambda row: row.order).data in table(one)


def test_evidence_convinces_whoever_never_saw_the_lie_and_whoever_brings_it() -> None:
    (evidence,) = replica(lie()).rows(EVIDENCE)
    assert evidence.data == next(replica(reversed(lie(counter=1 << 40)), me=CLEO).rows(EVIDENCE)).data
    assert replica([evidence], me=BOB).distrusts(DAN.peer)


def test_what_proves_no_lie_is_refused() -> None:
    yes, no = lie()
    (evidence,) = replica([yes, no]).rows(EVIDENCE)
    honest, forged = DAN.service(b"lie", b"later"), write_row(no.content, BOB.key.sign, MESH)
    bob_s = BOB.service(b"lie", b"no", counter=1 << 40)

    def with_body(body: bytes, **fields: Any) -> Row:
        return write_row(msgspec.structs.replace(evidence.content, body=body, **fields), lambda _: b"", MESH)

    for rows in ([yes, yes], [yes, honest], [yes, bob_s], [bob_s, yes]):
        assert why_refused(with_body(msgspec.msgpack.encode([bare(row) for row in rows]))) == "it proves nothing"
    assert why_refused(with_body(msgspec.msgpack.encode([yes.data, forged.data]))) == "its signature is wrong"
    for body in (b"", b"\xc1", msgspec.msgpack.encode([yes.data]), msgspec.msgpack.encode([b"x", b"y"])):
        assert why_refused(with_body(body)).startswith("evidence cannot be read")
    both = msgspec.msgpack.encode([yes.data, no.data])
    assert why_refused(with_body(both, counter=7)) == "it proves nothing"
    assert why_refused(with_body(both, key=b"k" * 48)) == "it proves nothing"
    assert why_refused(with_body(both, writer=bytes(BOB.peer))) == "it proves nothing"
    assert replica(known=()).merge([evidence], NOW).unknown == {DAN.peer}


def test_three_rows_under_one_number_leave_one_evidence_that_all_accept() -> None:
    """Dan tells one side yes and no, and the other side no and perhaps. Both make evidence under one key, and each
    hears of the other's: that is no second lie."""
    for words in ((b"yes", b"no", b"perhaps"), (b"1", b"2", b"3"), (b"x", b"y", b"z")):
        rows = lie(words=words)
        one, other = replica(rows[:2]), replica(rows[1:])
        for _ in range(3):
            for here, there in ((one, other), (other, one)):
                assert not here.merge(list(there.all()), NOW).refused
        assert len(list(one.rows(EVIDENCE))) == 1 and table(one) == table(other)


def test_a_lie_is_proved_however_long_its_rows_are() -> None:
    """Dan writes the longest rows that there may be, twice under one number. Who merges both must not choke on it: it
    would drop whoever passed one of them on."""
    longest = bytes(GROUP.max_bytes)
    first = DAN.row(GROUP, b"g", longest)
    pairs = [
        [DAN.row(GROUP, b"g", longest[:-1] + word, first, counter=1 << 41) for word in (b"1", b"2")],
        [DAN.row(LATER, b"k", bytes(UNKNOWN_MAX_BYTES - 1) + word, counter=1 << 42) for word in (b"1", b"2")],
    ]
    for pair in pairs:
        (evidence,) = replica([first, *pair]).rows(EVIDENCE)
        assert is_taken(replica(me=BOB), read_row(evidence.data))


def test_an_admin_clears_a_liar_until_it_lies_again() -> None:
    one = replica(lie())
    assert one.distrusts(DAN.peer)
    one.merge([ANN.row(CLEARANCE, bytes(DAN.peer), (BOOT - 1).to_bytes(8, "big"))], NOW)
    assert one.distrusts(DAN.peer), "it clears what was before the lie"
    clearance = ANN.row(CLEARANCE, bytes(DAN.peer), BOOT.to_bytes(8, "big"), at=NOW + 1)
    one.merge([clearance], NOW + 1)
    assert not one.distrusts(DAN.peer) and one.get(SERVICE, bytes(DAN.peer) + b"lie")
    for row in lie(boot=BOOT + 1):
        one.merge([row], NOW)
    assert one.distrusts(DAN.peer), "it lied again in a later boot"


def test_a_clearance_of_a_revoked_admin_does_not_count() -> None:
    clearance = ANN.row(CLEARANCE, bytes(DAN.peer), BOOT.to_bytes(8, "big"))
    assert not replica([*lie(), clearance]).distrusts(DAN.peer)
    assert replica([*lie(), clearance], me=BOB, revoked=[ANN]).distrusts(DAN.peer)
    taken_back = ANN.row(CLEARANCE, bytes(DAN.peer), b"", clearance, gone=True, at=NOW + 1)
    assert replica([*lie(), clearance, taken_back]).distrusts(DAN.peer)


def test_rows_of_a_revoked_writer_are_merged_and_hidden() -> None:
    """So that those who heard of the revocation and those who did not yet have equal tables."""
    row = BOB.service(b"shop")
    before, after = replica([row]), replica([row], revoked=[BOB])
    assert before.root() == after.root()
    assert before.get(SERVICE, row.key) and after.get(SERVICE, row.key) is None
    assert list(after.rows(SERVICE)) == [] and after.distrusts(BOB.peer) == "it was revoked"


# -- readers --------------------------------------------------------------------------------------------------------


def test_readers_see_neither_tombstones_nor_what_has_expired() -> None:
    shop, bar = BOB.service(b"shop", expires=int(NOW) + 60), BOB.service(b"bar")
    one = replica([shop, bar])
    assert {row.key for row in one.rows(SERVICE)} == {shop.key, bar.key}
    one.merge([BOB.service(b"bar", gone=True)], NOW)
    assert [row.key for row in one.rows(SERVICE)] == [shop.key] and one.get(SERVICE, bar.key) is None
    assert one.next_expiry() == NOW + 60 and one.expire(NOW + 59) == []
    assert one.expire(NOW + 60) == [shop] and list(one.rows(SERVICE)) == []


def test_expiry_goes_by_the_row_that_is_there_now() -> None:
    one = replica([BOB.service(b"shop", expires=int(NOW) + 60), BOB.service(b"shop", b"renewed")])
    assert one.expire(NOW + 61) == [] and one.get(SERVICE, bytes(BOB.peer) + b"shop")


def test_a_row_renewed_a_thousand_times_is_remembered_once() -> None:
    one = replica([BOB.service(b"shop") for _ in range(1000)])
    assert len(one._expiries) <= 2 * len(one) + 64


def test_two_keys_at_one_place_leave_the_greater_one_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has tried 2**32 keys."""
    members = replica()._members
    monkeypatch.setattr("lattica.mesh.table.rows.place_of", lambda kind, key: 7)
    rows = [BOB.row(NAME, b"x"), BOB.row(NAME, b"y"), CLEO.row(ACTOR, b"z")]
    one, other = replica(rows, known=()), replica(reversed(rows), known=())
    for each in (one, other):
        each._members.update(members)
        for row in (*rows, *reversed(rows)):
            each.merge([row], NOW)
            each.validate()
    assert table(one) == table(other) == {rows[1].data}


# -- writing --------------------------------------------------------------------------------------------------------


def test_what_a_peer_writes_others_merge_and_itself_reads() -> None:
    one, other = replica(me=BOB), replica(me=CLEO)
    key = bytes(BOB.peer) + b"shop"
    for body in (b"one", b"two"):
        (row,) = one.write(SERVICE, key, body, NOW).fresh
        assert is_taken(other, read_row(row.data)) and other.get(SERVICE, key).body == body  # type: ignore[union-attr]
    one.write(SERVICE, key, b"", NOW, gone=True)
    other.merge(list(one.all()), NOW)
    assert other.get(SERVICE, key) is None and one.root() == other.root()
    assert other.at(row.place).content.expires == int(NOW + TOMBSTONE_S)  # type: ignore[union-attr]


def test_a_group_is_passed_on_to_its_heir_and_refused_to_others_with_words() -> None:
    bob, cleo, dan = (replica(me=who) for who in (BOB, CLEO, DAN))
    everybody = (bob, cleo, dan)

    def tell(merged: Merged) -> None:
        for each in everybody:
            each.merge(merged.fresh, NOW)

    tell(bob.write(GROUP, b"learner", b"bob's", NOW, heir=bytes(CLEO.peer)))
    with pytest.raises(PermissionDeniedError, match=r"this group belongs to peer .*") as refused:
        dan.write(GROUP, b"learner", b"dan's", NOW)
    assert refused.value.do_next == "wait for it to end, or ask it"
    tell(cleo.write(GROUP, b"learner", b"cleo's", NOW))
    tell(cleo.write(GROUP, b"learner", b"", NOW, gone=True))
    tell(dan.write(GROUP, b"learner", b"dan's", NOW))
    assert [each.get(GROUP, b"learner").body for each in everybody] == [b"dan's"] * 3  # type: ignore[union-attr]


def test_an_expired_name_begins_anew() -> None:
    one = replica(me=DAN)
    one.merge([BOB.row(NAME, b"learner", expires=int(NOW) + 10)], NOW)
    (row,) = one.write(NAME, b"learner", b"dan's", NOW + 11).fresh
    assert row.content.epoch == 1 and row.content.before == b""


def test_what_a_peer_may_not_write_is_said_before_anybody_hears_of_it() -> None:
    eve = replica(me=EVE)
    with pytest.raises(PermissionDeniedError, match="a name row needs the role submit, which this peer does not have"):
        eve.write(NAME, b"learner", b"", NOW)
    with pytest.raises(ConfigError, match="a service row has 2000 bytes, and may have 1024"):
        eve.write(SERVICE, bytes(EVE.peer) + b"x", bytes(2000), NOW)
    with pytest.raises(ConfigError, match="a key that is not its writer's"):
        eve.write(SERVICE, bytes(BOB.peer) + b"x", b"", NOW)
    assert table(eve) == {row.data for row in CERTIFICATES}


def test_who_has_as_many_rows_as_it_may_is_told_and_may_still_renew_them(monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(SERVICE, max_rows=2)
    monkeypatch.setitem(KINDS, SERVICE.number, few)
    one = replica(me=BOB)
    for name in (b"1", b"2", b"1"):
        one.write(few, bytes(BOB.peer) + name, b"", NOW)
    with pytest.raises(ConfigError, match="this peer has 2 service rows, and may not have more"):
        one.write(few, bytes(BOB.peer) + b"3", b"", NOW)


def test_a_row_lives_as_long_as_was_asked_for_and_never_longer_than_its_kind() -> None:
    one = replica(me=BOB)
    for ttl_s, life in ((None, DAY_S), (60.0, 60.0), (1e9, TOMBSTONE_S)):
        (row,) = one.write(SERVICE, bytes(BOB.peer) + b"x", b"", NOW, ttl_s=ttl_s).fresh
        assert row.content.expires == int(NOW + life) and is_taken(replica(), read_row(row.data))


def test_a_tombstone_lives_as_long_as_what_it_buries() -> None:
    """An admin takes a rule back. A node that was off for a month comes back, and still has the rule."""
    ann = replica()
    (rule,) = ann.write(SETTING, b"rule", b"on", NOW).fresh
    ann.write(SETTING, b"rule", b"", NOW, gone=True)
    month = NOW + 30 * DAY_S
    ann.expire(month)
    ann.merge([rule], month)
    assert ann.get(SETTING, b"rule") is None


def test_a_peer_that_hears_what_it_does_not_remember_goes_on_above_it() -> None:
    """Bob's disk was lost, or his directory was copied: others have a row of his under a later boot."""
    ahead = BOB.service(b"shop", b"a copy's", boot=BOOT + (9 << BOOT_BITS))
    bob = replica(me=BOB)
    assert bob.merge([BOB.service(b"bar", boot=BOOT)], NOW).elsewhere == 0, "that was an earlier one"
    merged = bob.merge([ahead], NOW)
    assert merged.elsewhere == ahead.content.boot > bob.boot
    assert bob.raise_boot(merged.elsewhere) > ahead.content.boot
    assert bob.raise_boot(BOOT) == bob.boot, "nothing is raised without need"
    (row,) = bob.write(SERVICE, ahead.key, b"bob's", NOW).fresh
    assert is_taken(replica([ahead]), row) and not bob.distrusts(BOB.peer)


def test_a_forged_row_of_ours_raises_nothing() -> None:
    forged = write_row(BOB.service(b"x", boot=1 << 62).content, DAN.key.sign, MESH)
    assert replica(me=BOB).merge([forged], NOW).elsewhere == 0


def test_a_stamp_is_later_than_what_was_read_before() -> None:
    """Cleo's clock is 30 s ahead. Bob reads her row, and writes after her."""
    bob = replica(me=BOB)
    bob.merge([CLEO.row(NAME, b"learner", heir=bytes(BOB.peer), at=NOW + 30)], NOW)
    (row,) = bob.write(NAME, b"player", b"", NOW).fresh
    assert row.content.hlc > int((NOW + 30) * 1000) << 16


def test_a_stamp_is_later_than_what_was_read_before_a_restart() -> None:
    """The wall clock was put back by half a minute while the node was off."""
    bob = replica(me=BOB, known=())
    bob.load([*CERTIFICATES, CLEO.row(NAME, b"learner", at=NOW + 30)], NOW)
    (row,) = bob.write(NAME, b"player", b"", NOW).fresh
    assert row.content.hlc > int((NOW + 30) * 1000) << 16


def test_a_row_on_disk_that_this_release_does_not_take_stops_nothing() -> None:
    bad = BOB.row(CERTIFICATE, bytes(BOB.peer), b"\xc1")
    one = replica(known=())
    assert one.load([bad, CERTIFICATES[2], CLEO.service(b"shop")], NOW) == 2


def test_a_replica_says_how_much_it_holds() -> None:
    assert repr(replica()).endswith(": 5 rows>") and len(replica()) == 5
    assert roles.roles_text(Role.SUBMIT) == "submit" and HASH_BYTES == 16 and ACCUSATION.ttl_s == NODE.ttl_s


# -- roles and dates that change --------------------------------------------------------------------------------------


def test_who_loses_a_role_leaves_equal_tables() -> None:
    """An admin wrote a rule and came back under the same key without the role. A newcomer refuses the rule, so those
    who had it drop it."""
    rule = ANN.row(SETTING, b"rule")
    less = ANN.certificate(ISSUER.certify_member(ANN.key.public_key, MEMBER, BEGAN))
    old = replica([rule, less], me=BOB)
    newcomer = replica(old.all(), me=CLEO, known=())
    assert old.root() == newcomer.root()


@pytest.mark.parametrize("days", [119, 121, 181])
def test_rules_of_an_admin_who_is_gone_reach_newcomers_as_long_as_they_count(days: int) -> None:
    """Else a newcomer, who has no certificate to verify them by, would differ from all others for ever."""
    later = NOW + days * DAY_S
    old = replica([ANN.row(SETTING, b"rule"), *lie()], me=BOB)
    old.expire(later)
    newcomer = replica(me=CLEO, known=())
    newcomer.merge(list(old.all()), later)
    assert newcomer.root() == old.root() and bool(newcomer.get(SETTING, b"rule")) == (days < 120)


def test_roles_that_shrink_are_gone_from_disk_and_from_one_s_own_rows_too() -> None:
    rule = ANN.row(SETTING, b"rule")
    less = ANN.certificate(ISSUER.certify_member(ANN.key.public_key, MEMBER, BEGAN))
    again = replica(me=BOB)
    again.load([*CERTIFICATES, rule, less], NOW)
    assert again.get(SETTING, b"rule") is None
    ann = replica()
    ann.write(SETTING, b"rule", b"on", NOW)
    assert ann.write(CERTIFICATE, bytes(ANN.peer), less.body, NOW).dropped and ann.get(SETTING, b"rule") is None


def test_a_row_over_one_of_somebody_who_lost_the_role_since_is_taken_by_newcomers_too() -> None:
    other = person("another admin", EVERYTHING)
    less = ANN.certificate(ISSUER.certify_member(ANN.key.public_key, MEMBER, BEGAN))
    first = ANN.row(SETTING, b"rule")
    old = replica([other.certificate(), first, other.row(SETTING, b"rule", b"new", first), less], me=BOB)
    newcomer = replica(old.all(), me=CLEO, known=())
    newcomer.merge(list(old.all()), NOW)
    assert newcomer.root() == old.root() and newcomer.get(SETTING, b"rule") is not None


def test_rows_of_an_unknown_kind_have_an_order_whether_they_have_an_epoch_or_not() -> None:
    rows = [BOB.row(LATER, b"k", b"1", epoch=1, boot=0), CLEO.row(LATER, b"k", b"2", epoch=0, boot=0)]
    assert replica(rows).root() == replica(reversed(rows)).root()


def test_no_row_counts_for_years_after_its_date() -> None:
    """A lie dated 1970 would be evidence that has expired before it is made."""
    assert "longer" in why_refused(BOB.row(LATER, b"k", b"1", hlc=0))


# -- with real signatures -------------------------------------------------------------------------------------------


def test_rows_are_merged_with_real_keys_and_certificates_and_forged_ones_are_not() -> None:
    top = make_root(BEGAN)
    secret = new_secret()
    issuer = Authority(secret, top.root, top.certify_issuer(public_key_of(secret), BEGAN))
    keys = [issuer.invite(EVERYTHING, BEGAN) for _ in range(2)]  # keys with `sign`, as good as any
    peers = [peer_id_of(key.public_key) for key in keys]
    mesh = bytes(top.id)
    one, other = (
        Replica(peer, key.sign, mesh, top.root, CHECKS, Random(1), boot=BOOT) for peer, key in zip(peers, keys)
    )
    for each, key, peer in ((one, keys[0], peers[0]), (other, keys[1], peers[1])):
        chain = issuer.certify_member(key.public_key, EVERYTHING, BEGAN)
        each.write(CERTIFICATE, bytes(peer), msgspec.msgpack.encode(list(chain)), NOW)
        each.write(SERVICE, bytes(peer) + b"shop", b"open", NOW)
    one.write(NAME, b"learner", b"here", NOW)
    for here, there in ((one, other), (other, one)):
        assert not here.merge([read_row(row.data) for row in there.all()], NOW).refused
    other.write(NAME, b"learner", b"", NOW, gone=True)  # an admin may
    one.merge([read_row(row.data) for row in other.all()], NOW)
    assert table(one) == table(other) and len(one) == 5 and one.get(NAME, b"learner") is None
    bent = bytearray(one.write(SERVICE, bytes(peers[0]) + b"bar", b"open", NOW).fresh[0].data)
    bent[-3] ^= 1  # within the signature
    assert other.merge([read_row(bytes(bent))], NOW).refused[0][1] == "its signature is wrong"
