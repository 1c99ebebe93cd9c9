"""What the mesh's admins have said: who is revoked, which issuers have ended, which there are.

    statement   a paper (`papers`) of an admin or of the root; its body is msgpack [at, [kind, ...]]

Statements are only ever added. Every peer keeps all of them and passes on what is new to it, so what follows depends
on the set alone, never on the order in which it came:

1. What the root has said counts. Peers that the root has revoked have no say, whenever they spoke.
2. The others are taken in order of time. One counts unless its signer had been revoked by then, or certified by an
   issuer that had ended, by a statement that counts.

A stolen admin key can date a statement back, though not to before its certificate; only the root can undo that. Who is
revoked once is so for ever: it comes back under another key. Revocations outlive the certificates that they revoke.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf

import msgspec

from lattica.errors import AdmissionError, RemoteProtocolError
from lattica.mesh.certificates import BACKDATED_S, CERTIFICATE_MAX_BYTES, ISSUERS_MAX, NO_END_S, Checks, Member
from lattica.mesh.identity import PEER_ID_BYTES, PeerId, peer_id_of, short_peer
from lattica.mesh.papers import DAMAGED, Paper, Signs, read_paper, signer_of, write_paper
from lattica.mesh.roles import Role

STATEMENT_MAX_BYTES = 8 << 10  # ours have 1 to 3 KB, nearly all of it certificates
STATEMENTS_MAX = 10_000
"""Of a mesh: 10 to 30 MB, 15 ms to count one more, 8 s to hear of all. The latest are left out, the root's never."""
REASON_MAX_CHARS = 200
LABEL_MAX_CHARS = 64
AHEAD_MAX_S = BACKDATED_S  # a statement that is further ahead of our clock waits until it is not
PURPOSE = "statement"


class PeerRevoked(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """This peer is no member any more, and the invite it came by is closed. invite: b"" if it is not known."""

    peer: bytes
    invite: bytes = b""
    reason: str = ""


class IssuerRevoked(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """What this issuer signed at `since` or later does not count. issuer: BLAKE3-256 of its public key."""

    issuer: bytes
    since: float
    reason: str = ""


class IssuerNamed(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """The node `peer` certifies members, with the key of this chain."""

    chain: list[bytes]
    peer: bytes
    label: str = ""


Says = PeerRevoked | IssuerRevoked | IssuerNamed
_KINDS = 3


class _Body(msgspec.Struct, array_like=True, frozen=True):
    at: float
    says: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Statement:
    """One that was verified. data: as it travels; key: its BLAKE3-256."""

    key: bytes
    data: bytes
    at: float
    signer: Member | None  # None: the root
    says: Says | None  # None: of a kind that a later release knows; it is passed on
    issuer: bytes = b""  # of IssuerNamed: the id of its key

    @property
    def by(self) -> str:
        """Who said it, for people."""
        return f"peer {short_peer(self.signer.peer)}" if self.signer else "the root key"


@dataclass(frozen=True, slots=True)
class Issuer:
    """An issuer that has not ended."""

    id: bytes
    peer: PeerId
    chain: tuple[bytes, ...]
    label: str
    since: float


def write_statement(says: Says, at: float, signer: Signs, chain: Sequence[bytes], mesh: bytes) -> bytes:
    """Say it. chain: of an admin's membership; empty if `signer` is the root."""
    body = msgspec.msgpack.encode(_Body(at, msgspec.Raw(msgspec.msgpack.encode(says))))
    return write_paper(PURPOSE, body, signer, chain, mesh)


class Trust:
    """See the module. `known`: statements from our own disk, which are not verified again."""

    def __init__(self, root: bytes, checks: Checks, known: Iterable[bytes] = ()) -> None:
        self.root, self.checks = root, checks
        self._all: dict[bytes, Statement] = {}  # in the order in which they are counted
        self._peers: dict[PeerId, Statement] = {}
        self._invites: dict[bytes, Statement] = {}
        self._ended: dict[bytes, tuple[float, Statement]] = {}  # issuer -> since when, by whose word
        self._named: dict[bytes, Issuer] = {}
        self._digest = b""
        self._add([self._verified(data, None) for data in known])

    def __repr__(self) -> str:
        return (
            f"<Trust: {len(self._peers)} peers and {len(self._ended)} issuers revoked, {len(self.issuers())} issuers, "
            f"{len(self._all)} statements>"
        )

    # -- what is told

    def merge(self, statements: Sequence[bytes], now: float) -> list[Statement]:
        """Take these in, and return those that are new: pass them on.

        Raises RemoteProtocolError if one is damaged or was not signed by an admin of this mesh; then none is taken.
        """
        fresh = [self._verified(data, now) for data in dict.fromkeys(statements) if _key(data) not in self._all]
        return self._add([statement for statement in fresh if statement.at <= now + AHEAD_MAX_S])

    def _verified(self, data: bytes, now: float | None) -> Statement:
        """now: None if it was verified before."""
        paper = read_paper(data, STATEMENT_MAX_BYTES, "a statement")
        body, says = _read_body(paper)
        at = body.at if now is not None else None
        try:
            signer = signer_of(paper, PURPOSE, self.root, self.checks, at)
            if signer is not None and Role.ADMIN not in signer.roles:
                raise AdmissionError(f"peer {short_peer(signer.peer)} is no admin")
            issuer = b""
            if isinstance(says, IssuerNamed):
                issuer = bytes(peer_id_of(self.checks.issuing_key(says.chain, self.root, at)))
        except AdmissionError as error:
            raise RemoteProtocolError(f"a statement is not accepted: {error.message}") from error
        return Statement(_key(data), data, body.at, signer, says, issuer)

    def _add(self, fresh: Sequence[Statement]) -> list[Statement]:
        before = set(self._all)
        merged = self._all | {statement.key: statement for statement in fresh}
        kept = sorted(merged.values(), key=_order)[:STATEMENTS_MAX]
        self._all = {statement.key: statement for statement in kept}
        if self._all.keys() != before:
            self._count()
            self._digest = b""
        return [statement for statement in kept if statement.key not in before]

    # -- what counts

    def _count(self) -> None:
        for index in (self._peers, self._invites, self._ended, self._named):
            index.clear()
        by_root = [statement for statement in self._all.values() if statement.signer is None]
        for statement in by_root:
            self._apply(statement)
        others = [statement for statement in self._all.values() if statement.signer is not None]
        for statement in [one for one in others if not self._is_silenced(one)]:  # by the root, whenever it spoke
            if not self._is_silenced(statement):
                self._apply(statement)

    def _is_silenced(self, statement: Statement) -> bool:
        return statement.signer is not None and bool(self.revoked(statement.signer))

    def _apply(self, statement: Statement) -> None:
        match statement.says:
            case PeerRevoked(peer, invite):
                self._peers.setdefault(PeerId(peer), statement)
                if invite:
                    self._invites.setdefault(invite, statement)
            case IssuerRevoked(issuer, since):
                if since < self._ended.get(issuer, (inf, statement))[0]:
                    self._ended[issuer] = since, statement
            case IssuerNamed(chain, peer, label):
                issuer = statement.issuer
                self._named[issuer] = Issuer(issuer, PeerId(peer), tuple(chain), label, statement.at)

    # -- what is asked

    def is_revoked(self, peer: PeerId) -> bool:
        """Whether an admin has said so of this peer itself."""
        return peer in self._peers

    def statement_holds(self, data: bytes, now: float) -> str:
        """ "" or why this is no statement of this mesh."""
        if _key(data) in self._all:
            return ""
        try:
            ahead = self._verified(data, now).at > now + AHEAD_MAX_S
        except RemoteProtocolError as error:
            return error.message
        return "it is dated too far ahead of our clock, and waits until it is not" if ahead else ""

    def objection(self, member: Member, now: float, *, joining: bool = False) -> str:
        """Why this peer is refused; "" if it is not. joining: it wants its first membership."""
        reason = self.revoked(member, joining=joining)
        if not reason and member.expires <= now:
            return f"its certificate expired on {when(member.expires)}"
        return reason

    def revoked(self, member: Member, *, joining: bool = False) -> str:
        """As `objection`, whether its certificates have expired or not."""
        if said := self._peers.get(member.peer):
            return _words(said, "it was revoked")
        for issuer, signed in member.issuers:
            if issuer in self._ended and signed >= self._ended[issuer][0]:
                return _words(self._ended[issuer][1], "the issuer that certified it was revoked")
        if (joining or member.via_invite) and (said := self._invites.get(member.invite)):
            return _words(said, "the ticket it came by was closed, with the peer that had used it")
        return ""

    def issuers(self) -> list[Issuer]:
        """Those named that have not ended, on nodes that are not revoked; the oldest first."""
        return [one for one in self._named.values() if one.id not in self._ended and one.peer not in self._peers]

    def revocations(self) -> list[Statement]:
        """The revocations that count, one for each peer and issuer."""
        return [*self._peers.values(), *(statement for _, statement in self._ended.values())]

    def ends_with(self, peer: PeerId, now: float, invite: bytes = b"", reason: str = "") -> list[Says]:
        """What to say so that this peer is out: also of the keys by which it certifies."""
        keys = [issuer.id for issuer in self._named.values() if issuer.peer == peer and issuer.id not in self._ended]
        return [PeerRevoked(peer, invite, reason), *(IssuerRevoked(key, now, reason) for key in keys)]

    def statements(self) -> list[bytes]:
        """All of them, for one who has none."""
        return [statement.data for statement in self._all.values()]

    def digest(self) -> bytes:
        """The same for all who have the same statements (32 bytes)."""
        if not self._digest:
            from blake3 import blake3

            self._digest = blake3(b"".join(sorted(self._all))).digest()
        return self._digest

    def validate(self) -> None:
        """Assert what always holds."""
        assert len(self._all) <= STATEMENTS_MAX, "more statements than are kept"
        assert list(self._all.values()) == sorted(self._all.values(), key=_order), "statements are out of order"
        for statement in self._all.values():
            assert statement.signer is None or Role.ADMIN in statement.signer.roles, "a statement of no admin"


def when(unix_s: float) -> str:
    """A date for people, as exact as certificates are."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _words(statement: Statement, what: str) -> str:
    reason = getattr(statement.says, "reason", "")
    return f"{what} on {when(statement.at)} by {statement.by}" + (f": {reason}" if reason else "")


def _order(statement: Statement) -> tuple[bool, float, bytes]:
    return statement.signer is not None, statement.at, statement.key


def _key(data: bytes) -> bytes:
    from blake3 import blake3

    return blake3(data).digest()


def _read_body(paper: Paper) -> tuple[_Body, Says | None]:
    try:
        body = msgspec.msgpack.decode(paper.body, type=_Body)
        kind = msgspec.msgpack.decode(body.says, type=list)[:1]
        says = msgspec.msgpack.decode(body.says, type=Says) if kind and kind[0] in range(1, _KINDS + 1) else None
    except DAMAGED as error:
        raise RemoteProtocolError(f"a statement cannot be read: {error}") from error
    if not 0 <= body.at < NO_END_S or not _holds(says):
        raise RemoteProtocolError("a statement says what cannot be")
    return body, says


def _holds(says: Says | None) -> bool:
    match says:
        case PeerRevoked(peer, invite, reason):
            return len(peer) == PEER_ID_BYTES and len(invite) in (0, PEER_ID_BYTES) and len(reason) <= REASON_MAX_CHARS
        case IssuerRevoked(issuer, since, reason):
            return len(issuer) == PEER_ID_BYTES and 0 <= since < inf and len(reason) <= REASON_MAX_CHARS
        case IssuerNamed(chain, peer, label):
            lengths = 0 < len(chain) <= ISSUERS_MAX and all(len(der) <= CERTIFICATE_MAX_BYTES for der in chain)
            return lengths and len(peer) == PEER_ID_BYTES and len(label) <= LABEL_MAX_CHARS
        case None:
            return True
