"""Members of a mesh in a simulated world, as far as certificates go: they join, renew, revoke, and tell each other.

    mesh = Mesh()                                            the root, and which name has which key
    world.add_host("ann", lambda host: MemberNode(host, mesh), disk=mesh.founder("ann"))
    ticket = world.core("ann").ticket(MEMBER)
    world.add_host("bob", lambda host: MemberNode(host, mesh), disk=mesh.joiner("bob", ticket, unix_s))

`Admission` and `Trust` are the real ones; certificates are cheap (`authority`). Every message shows its sender's chain,
in place of TLS, and one whose chain is not accepted is dropped, as a connection would be. What a member keeps on disk
is what `credentials` keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from lattica.errors import AdmissionError
from lattica.ids import JobId
from lattica.mesh import admission
from lattica.mesh.admission import Admission, AskMembership, MembershipRenewed, Refusal
from lattica.mesh.certificates import Member
from lattica.mesh.identity import PeerId
from lattica.mesh.renewal import NONCE_BYTES, read_answer, sign_renewal, verify_renewal, write_answer
from lattica.mesh.roles import EVERYTHING, MEMBER, Role
from lattica.mesh.tickets import Ticket, make_ticket
from lattica.mesh.tokens import Submission, sign_token, verify_token
from lattica.mesh.trust import IssuerNamed, Says, Trust, write_statement
from lattica.testing.authority import FAKE_CHECKS, FakeAuthority, FakeKey, fake_root
from lattica.testing.host import EPOCH_S, Disk, Host
from lattica.testing.world import Send

GREET_S = 4 * 86400.0  # between greetings of a few others: years are played with them
FIRST_GREETINGS_S = 3600.0  # while it has heard of no issuer
GREETED = 3
LOOK_AT_CLOCK_S = 86400.0  # a timer on the monotonic clock sleeps when its machine does, certificates do not


@dataclass(frozen=True, slots=True)
class Greeting:
    """What the sender has heard of: `digest` of its statements."""

    chain: tuple[bytes, ...]
    digest: bytes


@dataclass(frozen=True, slots=True)
class Statements:
    """They differ from yours, or are new."""

    chain: tuple[bytes, ...]
    statements: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Certify:
    """Give me a membership."""

    chain: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Knock:
    """I am at the `renew` door, and have no valid certificate."""


@dataclass(frozen=True, slots=True)
class Nonce:
    """Sign this."""

    nonce: bytes


@dataclass(frozen=True, slots=True)
class Renewal:
    """The signed request."""

    request: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """Of an issuer."""

    answer: bytes


@dataclass(frozen=True, slots=True)
class Turned:
    """Event: a message of `peer` was dropped."""

    peer: str
    reason: str


Message = Greeting | Statements | Certify | Knock | Nonce | Renewal | Answer


class Mesh:
    """What is outside of every member: the root key in its drawer, and where each peer is reached."""

    def __init__(self, name: str = "mesh") -> None:
        self.root = fake_root(name, EPOCH_S)
        self.names: dict[PeerId, str] = {}

    def founder(self, name: str) -> Disk:
        """The disk of the first member, which is an issuer and an admin."""
        return self.issuer(name, self.root.issuer(f"issuer {name}", EPOCH_S), EPOCH_S)

    def issuer(self, name: str, issuing: FakeAuthority, unix_s: float, known: Sequence[bytes] = ()) -> Disk:
        """The disk of a member that certifies others with this key. known: statements that it has heard."""
        key = self._key(name)
        chain = issuing.certify_member(key.public_key, EVERYTHING, unix_s)
        said = write_statement(IssuerNamed(list(issuing.chain), key.peer, name), unix_s, key, chain, self.root.id)
        issuer = msgspec.msgpack.encode([issuing.secret(), list(issuing.chain)])
        return Disk({"chain": _packed(chain), "trust": _packed([*known, said]), "issuer": issuer})

    def joiner(self, name: str, ticket: Ticket, unix_s: float) -> Disk:
        """The disk of one that has just signed its own certificate with a ticket."""
        invite = FakeAuthority(ticket.secret, ticket.root, ticket.chain)
        chain = invite.certify_member(self._key(name).public_key, MEMBER, unix_s)
        return Disk({"chain": _packed(chain), "trust": _packed([])})

    def _key(self, name: str) -> FakeKey:
        key = FakeKey(name)
        self.names[key.peer] = name
        return key


class MemberNode:
    """One process of a member. `unix_s` is its host's wall clock, as it is."""

    def __init__(self, host: Host, mesh: Mesh) -> None:
        self.host, self.mesh, self.key = host, mesh, FakeKey(host.name)
        self.root = mesh.root.root
        self.chain = _unpacked(host.disk.read("chain"))
        self.member = FAKE_CHECKS.member(self.chain, self.root, None)
        self.trust = Trust(self.root, FAKE_CHECKS, _unpacked(host.disk.read("trust")))
        kept = host.disk.read("issuer")
        self.issuing: FakeAuthority | None = None
        if kept is not None:
            secret, chain = msgspec.msgpack.decode(kept, type=tuple[bytes, list[bytes]])
            self.issuing = FakeAuthority(secret, self.root, chain)
        self.admission = Admission(self.member, self.root, FAKE_CHECKS, host.rng)
        self._nonces: dict[str, bytes] = {}
        self._greet_at = self._look_at = self._due_at = host.clock.now()
        self._due: float | None = None  # unix seconds; `_due_at` is that on the monotonic clock

    def __repr__(self) -> str:
        return f"<MemberNode {self.host.name}: {self.admission!r}, {self.trust!r}>"

    @property
    def unix_s(self) -> float:
        return self.host.clock.unix_s()

    # -- what people do

    def ticket(self, roles: Role = MEMBER, ttl_s: float = 7 * 86400.0) -> Ticket:
        """A ticket that names this node."""
        assert self.issuing is not None, "this node makes no tickets"
        return make_ticket(self.issuing.invite(roles, self.unix_s, ttl_s), [(self.key.peer, [self.host.name])])

    def say(self, says: Sequence[Says], now: float) -> list[object]:
        """As an admin."""
        said = [write_statement(one, self.unix_s, self.key, self.chain, self.mesh.root.id) for one in says]
        return self._after(self._heard(said, but=""), now)

    def revoke(self, peer: PeerId, invite: bytes, now: float) -> list[object]:
        return self.say(self.trust.ends_with(peer, self.unix_s, invite), now)

    def token(self, job: JobId, for_s: float = 3600.0) -> bytes:
        """Of a job that this node submits."""
        unix_s = self.unix_s
        return sign_token(
            job, {"cpu": 1.0}, unix_s, unix_s + for_s, signer=self.key, chain=self.chain, mesh=self.mesh.root.id
        )

    def submission(self, token: bytes) -> Submission:
        """What another node's token allows here. Raises what `verify_token` does."""
        return verify_token(token, self.root, self.trust, self.unix_s)

    # -- the core that the world drives

    def tick(self, now: float) -> list[object]:
        effects = self._admitted(self.admission.issuers(self._issuers(), self.unix_s))
        self._look_at, self._due = now + LOOK_AT_CLOCK_S, None
        if now >= self._greet_at:
            pause_s = GREET_S if self._issuers() else FIRST_GREETINGS_S
            self._greet_at = now + pause_s * self.host.rng.uniform(0.5, 1.5)
            effects += [Send(name, Greeting(tuple(self.chain), self.trust.digest())) for name in self._some("")]
        return self._after(effects, now)

    def next_deadline(self) -> float | None:
        return min(self._greet_at, self._look_at, self._due_at)

    def receive(self, sender: str, message: Message, now: float) -> list[object]:
        return self._after(self._receive(sender, message), now)

    def validate(self) -> None:
        self.admission.validate()
        self.trust.validate()
        assert self.member.peer == self.key.peer, "a member's certificate is another's"

    # -- what it does

    def _receive(self, sender: str, message: Message) -> list[object]:
        match message:
            case Greeting(chain, digest):
                if turned := self._objection(sender, chain):
                    return [turned]
                mine = tuple(self.trust.statements())
                return [] if digest == self.trust.digest() else [Send(sender, Statements(tuple(self.chain), mine))]
            case Statements(chain, statements):
                if turned := self._objection(sender, chain):
                    return [turned]
                return self._heard(statements, but=sender)
            case Certify(chain):
                if turned := self._objection(sender, chain):
                    return [turned]
                return self._certified(sender, FAKE_CHECKS.member(chain, self.root, None))
            case Knock():
                self._nonces[sender] = self.host.rng.randbytes(NONCE_BYTES)
                return [Send(sender, Nonce(self._nonces[sender]))]
            case Nonce(nonce):
                request = sign_renewal(nonce, signer=self.key, chain=self.chain, mesh=self.mesh.root.id)
                return [Send(sender, Renewal(request))]
            case Renewal(request):
                return self._renewed(sender, request)
            case Answer(data):
                return self._answered(FakeKey(sender).peer, read_answer(data))

    def _objection(self, sender: str, chain: Sequence[bytes]) -> Turned | None:
        """What TLS and the steward of sessions do."""
        try:
            reason = self.trust.objection(FAKE_CHECKS.member(chain, self.root, self.unix_s), self.unix_s)
        except AdmissionError as error:
            reason = error.message
        return Turned(sender, reason) if reason else None

    def _heard(self, statements: Sequence[bytes], but: str) -> list[object]:
        """Keep what is new, and pass it on."""
        fresh = tuple(statement.data for statement in self.trust.merge(statements, self.unix_s))
        if not fresh:
            return []
        self.host.disk.write("trust", _packed(self.trust.statements()))
        told: list[object] = [Send(name, Statements(tuple(self.chain), fresh)) for name in self._some(but)]
        return told + self._admitted(self.admission.issuers(self._issuers(), self.unix_s))

    def _certified(self, sender: str, member: Member) -> list[object]:
        """Answer one who asks for a membership."""
        said: list[bytes] | Refusal = Refusal("this node is no issuer", final=False)
        if self.issuing is not None:
            said = admission.answer(self.issuing, self.trust, member, self.unix_s)
        return [Send(sender, Answer(write_answer(said)))]

    def _renewed(self, sender: str, request: bytes) -> list[object]:
        nonce = self._nonces.pop(sender, b"")
        try:
            return self._certified(sender, verify_renewal(request, nonce, self.root, self.trust, self.unix_s))
        except AdmissionError as error:
            return [Send(sender, Answer(write_answer(Refusal(error.message, final="revoked" in error.message))))]

    def _answered(self, issuer: PeerId, said: list[bytes] | Refusal) -> list[object]:
        if isinstance(said, Refusal):
            return self._admitted(self.admission.refused(issuer, said.reason, said.final, self.unix_s))
        return self._admitted(self.admission.answered(issuer, said, self.unix_s))

    def _admitted(self, effects: Sequence[admission.Effect]) -> list[object]:
        done: list[object] = []
        for effect in effects:
            match effect:
                case AskMembership(issuer, _) if issuer == self.key.peer and self.issuing is not None:
                    done += self._answered(issuer, admission.answer(self.issuing, self.trust, self.member, self.unix_s))
                case AskMembership(issuer, expired):
                    asked = Knock() if expired else Certify(tuple(self.chain))
                    done.append(Send(self.mesh.names[issuer], asked))
                case MembershipRenewed(chain, member, _):
                    self.chain, self.member = list(chain), member
                    self.host.disk.write("chain", _packed(chain))
                    done.append(effect)
                case _:
                    done.append(effect)
        return done

    def _issuers(self) -> list[PeerId]:
        return [issuer.peer for issuer in self.trust.issuers()]

    def _some(self, but: str) -> list[str]:
        others = sorted(name for name in self.mesh.names.values() if name not in (self.host.name, but))
        return self.host.rng.sample(others, min(GREETED, len(others)))

    def _after(self, effects: list[object], now: float) -> list[object]:
        """When to tick next, on the monotonic clock, which sleeps when the machine does."""
        due = self.admission.next_deadline()
        if due is None or due != self._due:
            self._due = due
            self._due_at = self._look_at if due is None else now + max(due - self.unix_s, 0.001)
        return effects


def _packed(parts: Sequence[bytes]) -> bytes:
    return msgspec.msgpack.encode(list(parts))


def _unpacked(data: bytes | None) -> list[bytes]:
    return [] if data is None else msgspec.msgpack.decode(data, type=list[bytes])
