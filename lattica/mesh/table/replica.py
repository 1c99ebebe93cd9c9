"""One peer's copy of the table: what it writes, what it takes in, what its readers see.

Rules of this file. Whether a row is valid depends on the row and its writer's certificate alone; which of two rows
under one key is kept depends on the two alone. So merging is a maximum: commutative, associative, idempotent. What must
not count (rows of revoked or quarantined writers, of others than the readers ask for) is hidden from readers and stays
in the table. Rows of writers whose certificate is not here yet are not taken: they come again with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from random import Random

import msgspec

from lattica.crdt.hlc import HybridClock, is_ahead, seconds_of
from lattica.crdt.ranges import Ranges
from lattica.errors import AdmissionError, ConfigError, PermissionDeniedError, RemoteProtocolError
from lattica.mesh.certificates import Checks, Member
from lattica.mesh.identity import PeerId, short_peer
from lattica.mesh.papers import DAMAGED
from lattica.mesh.roles import Role, roles_text
from lattica.mesh.table.kinds import (
    CERTIFICATE,
    CLEARANCE,
    EVIDENCE,
    EVIDENCE_S,
    KINDS,
    NEVER,
    RULE_S,
    STATEMENT,
    TOMBSTONE_S,
    Kind,
)
from lattica.mesh.table.rows import (
    BOOT_BITS,
    Content,
    Row,
    bare,
    place_of,
    predecessor_of,
    read_bare,
    signed_part,
    statement_row,
    to_sign,
    write_row,
)

UNKNOWN_ROWS_MAX = 1024
"""Rows of one writer of kinds that only a later release knows, all of them together."""
_UNKNOWN = 0  # such a kind, where rows are counted
EXPIRY_SLACK_S = 60.0
WRONG_SIGNATURE = "its signature is wrong"


@dataclass(slots=True)
class Merged:
    """What became of rows that were taken in."""

    fresh: list[Row] = field(default_factory=list)  # new here: pass them on
    changed: list[tuple[Row, Row | None]] = field(default_factory=list)  # (now, before)
    dropped: list[Row] = field(default_factory=list)  # whose writers may not write them any more
    unknown: set[PeerId] = field(default_factory=set)  # writers whose certificates are missing
    refused: list[tuple[Row, str]] = field(default_factory=list)  # forged, or not theirs to write
    elsewhere: int = 0  # the highest boot under which somebody else, or an earlier copy of us, wrote as us


class Replica:
    """See the module. Times are unix seconds, corrected."""

    def __init__(
        self,
        me: PeerId,
        sign: Callable[[bytes], bytes],
        mesh: bytes,
        root: bytes,
        checks: Checks,
        rng: Random,
        *,
        boot: int,
        members: dict[PeerId, Member] | None = None,
        revoked: Callable[[PeerId], bool] = lambda _: False,
        statement_holds: Callable[[bytes, float], str] = lambda _data, _now: "there are no statements here",
    ) -> None:
        """boot: of this writer; see `boots`. members: what is known of writers besides their certificate rows.
        statement_holds: "" or why a statement (`trust`) is none of this mesh."""
        self.me, self._sign, self.mesh, self._root, self._checks, self._rng = me, sign, mesh, root, checks, rng
        self.boot, self._counter = boot, 0
        self._revoked, self._statement_holds = revoked, statement_holds
        self.clock = HybridClock()
        self.ranges = Ranges()
        self._rows: dict[int, Row] = {}  # place -> row
        self._by_kind: dict[int, dict[bytes, Row]] = {}
        self._counts: dict[tuple[int, PeerId], int] = {}
        self._expiries: list[tuple[int, int]] = []
        self._members: dict[PeerId, Member] = {} if members is None else members
        self._guilty: dict[PeerId, int] = {}  # writer -> highest node boot in which it lied

    def __repr__(self) -> str:
        return f"<Replica of {short_peer(self.me)}: {len(self._rows)} rows>"

    def __len__(self) -> int:
        return len(self._rows)

    # -- what readers see

    def get(self, kind: Kind, key: bytes) -> Row | None:
        """The row under this key; None if there is none that counts."""
        row = self._by_kind.get(kind.number, {}).get(key)
        return row if row is not None and self.is_visible(row) else None

    def rows(self, kind: Kind) -> Iterator[Row]:
        """All of a kind that count."""
        return (row for row in list(self._by_kind.get(kind.number, {}).values()) if self.is_visible(row))

    def is_visible(self, row: Row) -> bool:
        """Whether readers see it."""
        if row.content.gone:
            return False
        return _proves(row) or self.distrusts(row.writer) == ""

    def distrusts(self, writer: PeerId) -> str:
        """Why this writer's rows are hidden; "" if they are not."""
        if self._revoked(writer):
            return "it was revoked"
        lied_in = self._guilty.get(writer)
        if lied_in is None or lied_in <= self._cleared(writer):
            return ""
        return "it wrote two different things under one number, and no admin has cleared it"

    def member(self, writer: PeerId) -> Member | None:
        """What its certificate says, as far as it is here."""
        return self._members.get(writer)

    def at(self, place: int) -> Row | None:
        """The row at this place, whether it counts or not."""
        return self._rows.get(place)

    def all(self) -> Iterable[Row]:
        """Every row that is kept, hidden ones too."""
        return self._rows.values()

    def root(self) -> bytes:
        """The same for all who hold the same rows."""
        return self.ranges.root()

    # -- what this peer writes

    def write(
        self,
        kind: Kind,
        key: bytes,
        body: bytes,
        unix_s: float,
        *,
        ttl_s: float | None = None,
        gone: bool = False,
        heir: bytes = b"",
    ) -> Merged:
        """Write a row, or with `gone` the tombstone of one. heir: who else may supersede it.

        Raises PermissionDeniedError if this peer may not, ConfigError if the row is too large or there are too many.
        """
        mine = self._members.get(self.me)
        if kind.role is not None and (mine is None or kind.role not in mine.roles):
            raise PermissionDeniedError(
                f"a {kind.name} row needs the role {roles_text(kind.role)}, which this peer does not have"
            )
        held = self._rows.get(place_of(kind.number, key))
        if held is None and self._counts.get((kind.number, self.me), 0) >= kind.max_rows:
            raise ConfigError(f"this peer has {kind.max_rows} {kind.name} rows, and may not have more")
        before = held if kind.is_multi and held is not None and held.content.expires > unix_s else None
        hlc = self.clock.stamp(unix_s)
        self._counter += 1
        until = unix_s + (TOMBSTONE_S if gone else kind.ttl_s if ttl_s is None else ttl_s)
        if gone and held is not None:
            until = max(until, held.content.expires)  # what it buries must not come back after it
        until = min(until, kind_end(kind, unix_s))
        content = Content(
            kind.number, key, self.me, self.boot, self._counter, hlc, int(until), gone, body,
            (before.content.epoch + 1 if before else 1) if kind.is_multi else 0, before.hash if before else b"", heir,
        )  # fmt: skip
        try:
            row = write_row(content, self._sign, self.mesh, before)
        except RemoteProtocolError as error:
            raise ConfigError(error.message) from error
        if before is not None and not self._may_follow(row, before):
            raise PermissionDeniedError(
                f"this {kind.name} belongs to peer {short_peer(before.writer)}", do_next="wait for it to end, or ask it"
            )
        self._learn(row, None)
        merged = Merged()
        self._put(row, merged, held)
        if kind is CERTIFICATE:
            self._drop_what_it_may_not(self.me, merged)
        return merged

    def add_statement(self, statement: bytes) -> Merged:
        """One that `trust` has taken in already: pass it on."""
        merged, row = Merged(), statement_row(statement)
        if self._wins(row):
            self._put(row, merged, self._rows.get(row.place))
        return merged

    def raise_boot(self, seen: int) -> int:
        """Write under a higher boot than `seen` from now on. What it is: random in part, so that no dot is used twice
        though it is on disk only with the next row."""
        if seen >= self.boot:
            self.boot = ((seen >> BOOT_BITS) + 1) << BOOT_BITS | self._rng.getrandbits(BOOT_BITS)
            self._counter = 0
        return self.boot

    # -- what it takes in

    def load(self, rows: Iterable[Row], unix_s: float) -> int:
        """Rows from our own disk, whose signatures were verified before. How many of them count."""
        merged = Merged()
        for row in sorted(rows, key=lambda row: row.kind != CERTIFICATE.number):
            if row.content.expires > unix_s and self._wins(row):
                try:
                    self._learn(row, None)
                except (AdmissionError, RemoteProtocolError):
                    continue  # this release does not take it any more
                if self._lacks_role(row):
                    continue
                if not is_ahead(row.content.hlc, unix_s):
                    self.clock.heard(row.content.hlc)
                self._put(row, merged, self._rows.get(row.place))
        return len(merged.fresh)

    def merge(self, rows: Sequence[Row], unix_s: float) -> Merged:
        """Take in what others hold."""
        merged = Merged()
        if len(rows) > 1:  # certificates first: the others may be of their writers
            rows = sorted(rows, key=lambda row: row.kind != CERTIFICATE.number)
        for row in rows:
            held = self._rows.get(row.place)
            if held is not None and held.hash == row.hash:
                continue
            c = row.content
            if c.expires <= unix_s or is_ahead(c.hlc, unix_s):
                continue
            lied = held is not None and held.writer == row.writer and held.dot == row.dot and not _proves(row)
            if not lied and not self._wins(row):
                continue
            why = self._objection(row, unix_s, merged)
            if why is None:
                continue
            if why:
                merged.refused.append((row, why))
                continue
            if row.writer == self.me and not _proves(row) and c.boot >= self.boot:
                merged.elsewhere = max(merged.elsewhere, c.boot)
            if lied and held is not None:
                self._accuse(held, row, merged)
            if self._wins(row):
                self.clock.heard(c.hlc)
                self._put(row, merged, self._rows.get(row.place))
                if c.kind == CERTIFICATE.number:
                    self._drop_what_it_may_not(row.writer, merged)
        return merged

    def expire(self, unix_s: float) -> list[Row]:
        """Forget what has expired; these are they."""
        gone: list[Row] = []
        while self._expiries and self._expiries[0][0] <= unix_s:
            expires, place = heappop(self._expiries)
            row = self._rows.get(place)
            if row is not None and row.content.expires == expires:
                self._drop(row)
                gone.append(row)
        return gone

    def next_expiry(self) -> float | None:
        """When to call `expire`."""
        return self._expiries[0][0] if self._expiries else None

    def validate(self) -> None:
        """Assert what always holds."""
        assert len(self._rows) == sum(map(len, self._by_kind.values())), "the indexes disagree"
        assert sum(self._counts.values()) == len(self._rows), "writers' rows are counted wrongly"

    # -- inside

    def _wins(self, row: Row) -> bool:
        held = self._rows.get(row.place)
        if held is None:
            return True
        mine, theirs = (held.kind, held.key), (row.kind, row.key)
        return row.order > held.order if mine == theirs else theirs > mine  # one place: somebody has tried 2**32 keys

    def _objection(self, row: Row, unix_s: float, merged: Merged) -> str | None:
        """Why it is not taken in; "" if it is; None if that cannot be said yet."""
        kind = KINDS.get(row.kind)
        try:
            if kind is CERTIFICATE:
                if row.content.gone:
                    return "nobody takes back a certificate: newcomers could not read what its writer has written"
                self._learn(row, unix_s)
            elif kind is STATEMENT:
                canonical = statement_row(row.body).hash == row.hash
                return self._statement_holds(row.body, unix_s) if canonical else "it claims more than it says"
            elif kind is EVIDENCE:
                return self._evidence_objection(row, merged)
            return self._writer_objection(row, kind, merged)
        except (AdmissionError, RemoteProtocolError) as error:
            return error.message

    def _writer_objection(self, row: Row, kind: Kind | None, merged: Merged, *, superseded: bool = False) -> str | None:
        """superseded: it counts no more, so its writer may have lost the role since."""
        member = self._members.get(row.writer)
        if member is None:
            merged.unknown.add(row.writer)
            return None
        if kind is not None and kind.role is not None and kind.role not in member.roles and not superseded:
            return f"its writer lacks the role {roles_text(kind.role)}"
        if row.content.expires > kind_end(kind, seconds_of(row.content.hlc)) + EXPIRY_SLACK_S:
            return f"it would count for longer than {kind.name if kind else 'such'} rows do"
        if not self._is_signed(row, member):
            return WRONG_SIGNATURE
        before = predecessor_of(row)
        if before is None:
            return ""
        why = self._writer_objection(before, kind, merged, superseded=True)
        if why == "" and not self._may_follow(row, before):
            return f"it supersedes a row of {short_peer(before.writer)}, which is not its writer's to do"
        return why

    def _may_follow(self, row: Row, before: Row) -> bool:
        free = before.content.gone or before.content.expires <= seconds_of(row.content.hlc)
        if free or row.writer == before.writer or row.content.writer == before.content.heir:
            return True
        kind = KINDS.get(row.kind)
        if kind is not None and kind.is_common:  # it has the role, or it could write no such row at all
            return True
        member = self._members.get(row.writer)
        return member is not None and Role.ADMIN in member.roles

    def _learn(self, row: Row, unix_s: float | None) -> None:
        """What a certificate row says of its writer. Raises AdmissionError or RemoteProtocolError. unix_s: None if it
        was verified before."""
        if row.kind != CERTIFICATE.number or row.content.gone:
            return
        try:
            chain = msgspec.msgpack.decode(row.body, type=list[bytes])
        except DAMAGED as error:
            raise RemoteProtocolError(f"a certificate row cannot be read: {error}") from error
        member = self._checks.member(chain, self._root, None)
        if unix_s is not None:
            member = self._checks.member(chain, self._root, min(unix_s, member.expires - 1))
        if member.peer != row.writer:
            raise AdmissionError("its certificate is another peer's")
        if unix_s is not None and not self._is_signed(row, member):
            raise AdmissionError(WRONG_SIGNATURE)
        self._members[row.writer] = member

    def _is_signed(self, row: Row, by: Member) -> bool:
        content, signature = signed_part(row)
        return self._checks.signed(by.public_key, signature, to_sign(content, self.mesh))

    def _put(self, row: Row, merged: Merged, held: Row | None) -> None:
        c = row.content
        if held is not None:
            self._uncount(held)
            del self._by_kind[held.kind][held.key]
            self.ranges.replace(row.place, held.hash, row.hash)
        else:
            self.ranges.add(row.place, row.hash)
        self._rows[row.place] = row
        self._by_kind.setdefault(c.kind, {})[c.key] = row
        counted = _counted(row)
        count = self._counts[counted] = self._counts.get(counted, 0) + 1
        heappush(self._expiries, (c.expires, row.place))
        if len(self._expiries) > 2 * len(self._rows) + 64:
            self._expiries = [(each.content.expires, place) for place, each in self._rows.items()]
            heapify(self._expiries)
        if c.kind == EVIDENCE.number:
            lied_in = int.from_bytes(c.key[32:40], "big")
            self._guilty[row.writer] = max(self._guilty.get(row.writer, 0), lied_in)
        merged.fresh.append(row)
        merged.changed.append((row, held))
        kind = KINDS.get(c.kind)
        if count > (kind.max_rows if kind else UNKNOWN_ROWS_MAX):
            self._drop_oldest(counted, merged)

    def _uncount(self, row: Row) -> None:
        counted = _counted(row)
        left = self._counts[counted] = self._counts[counted] - 1
        if not left:
            del self._counts[counted]

    def _drop(self, row: Row) -> None:
        self._uncount(row)
        self.ranges.remove(row.place, row.hash)
        del self._rows[row.place]
        del self._by_kind[row.kind][row.key]

    def _drop_oldest(self, counted: tuple[int, PeerId], merged: Merged) -> None:
        """A writer may have so many rows of a kind: the greatest dots are kept, by every replica alike."""
        kinds = [counted[0]] if counted[0] else [kind for kind in self._by_kind if kind not in KINDS]
        theirs = [row for kind in kinds for row in self._by_kind[kind].values() if row.writer == counted[1]]
        oldest = min(theirs, key=lambda row: (row.dot, row.hash))
        self._drop(oldest)
        merged.fresh = [row for row in merged.fresh if row is not oldest]
        merged.changed = [change for change in merged.changed if change[0] is not oldest]

    def _lacks_role(self, row: Row) -> bool:
        kind, member = KINDS.get(row.kind), self._members.get(row.writer)
        return kind is not None and kind.role is not None and (member is None or kind.role not in member.roles)

    def _drop_what_it_may_not(self, writer: PeerId, merged: Merged) -> None:
        """Its certificate is a new one, perhaps with fewer roles: a newcomer would not take what needs the others."""
        roles = self._members[writer].roles
        for kind in KINDS.values():
            if kind.role is None or kind.role in roles:
                continue
            for row in [row for row in self._by_kind.get(kind.number, {}).values() if row.writer == writer]:
                self._drop(row)
                merged.dropped.append(row)

    # -- liars

    def _accuse(self, one: Row, other: Row, merged: Merged) -> None:
        """Two rows under one dot: keep both as evidence."""
        body = msgspec.msgpack.encode(sorted((bare(one), bare(other))))
        c = one.content
        key = c.writer + c.boot.to_bytes(8, "big") + c.counter.to_bytes(8, "big")
        evidence = write_row(
            Content(EVIDENCE.number, key, c.writer, c.boot, c.counter, 0, _evidence_end(one, other), False, body),
            self._sign,
            self.mesh,
        )
        if self._wins(evidence):
            self._put(evidence, merged, self._rows.get(evidence.place))

    def _evidence_objection(self, row: Row, merged: Merged) -> str | None:
        try:
            one, other = (read_bare(data) for data in msgspec.msgpack.decode(row.body, type=list[bytes]))
        except (*DAMAGED, RemoteProtocolError) as error:
            raise RemoteProtocolError(f"evidence cannot be read: {error}") from error
        c = row.content
        key = c.writer + c.boot.to_bytes(8, "big") + c.counter.to_bytes(8, "big")
        same = one.writer == other.writer == row.writer and one.dot == other.dot == row.dot
        ends = c.expires == _evidence_end(one, other)
        if not same or not ends or one.hash == other.hash or c.key != key or _proves(one) or _proves(other):
            return "it proves nothing"
        member = self._members.get(row.writer)
        if member is None:
            merged.unknown.add(row.writer)
            return None
        return "" if self._is_signed(one, member) and self._is_signed(other, member) else "its signature is wrong"

    def _cleared(self, writer: PeerId) -> int:
        row = self._by_kind.get(CLEARANCE.number, {}).get(bytes(writer))
        if row is None or row.content.gone or self._revoked(row.writer):
            return -1
        return int.from_bytes(row.body[:8], "big")


def _proves(row: Row) -> bool:
    return KINDS.get(row.kind) in (STATEMENT, EVIDENCE)


def _counted(row: Row) -> tuple[int, PeerId]:
    """What it counts as, of what its writer may have."""
    return row.kind if row.kind in KINDS else _UNKNOWN, row.writer


def _evidence_end(one: Row, other: Row) -> int:
    """Until when two lies are evidence: the same, whoever heard of them."""
    return int(max(one.content.expires, other.content.expires) + EVIDENCE_S)


def kind_end(kind: Kind | None, unix_s: float) -> int:
    """The latest that a row of this kind may expire, if it is written now. None: only a later release knows it."""
    if kind is None:
        return int(unix_s + RULE_S)
    return NEVER if kind.ttl_s >= NEVER else int(unix_s + max(kind.ttl_s, TOMBSTONE_S))
