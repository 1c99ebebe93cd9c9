"""Sees to a peer's standing in its mesh: its certificates, whom it may talk to, what time it is.

It carries out what `admission` and `trust` decide, and offers to other peers the service `mesh`:

    mesh.contacts()           where the issuers are that it has a session with
    mesh.certify()            a membership, from an issuer, for whoever asks: its key is its name
    mesh.invite_of(peer)      by which invite a peer came, so that revoking it can close that
    mesh.issuing_key()        the key under which this node would certify, for an admin that makes it an issuer
    mesh.issuer(chain, own)   that admin's answer: the issuing certificate, and a membership that may administer

What admins say is spread by the table (`gossip`); `trust` judges it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from time import time
from typing import TYPE_CHECKING, Any

from lattica.errors import (
    AdmissionError,
    ConfigError,
    LatticaError,
    PeerUnreachableError,
    PermissionDeniedError,
    RemoteProtocolError,
)
from lattica.mesh import admission, tls
from lattica.mesh.addresses import TEXT_MAX_CHARS, split_host
from lattica.mesh.admission import Admission, Refusal
from lattica.mesh.certificates import Member
from lattica.mesh.credentials import load_recovery
from lattica.mesh.identity import PeerId, peer_text, short_peer
from lattica.mesh.renewal import NONCE_BYTES, RENEWAL_MAX_BYTES, read_answer, sign_renewal, verify_renewal, write_answer
from lattica.mesh.roles import EVERYTHING, NOTHING, Role, roles_text
from lattica.mesh.services import caller, method, service
from lattica.mesh.skew import Skew
from lattica.mesh.tickets import make_ticket
from lattica.mesh.trust import IssuerNamed, IssuerRevoked, Says, Statement, when, write_statement

if TYPE_CHECKING:
    from lattica.mesh.peer import Peer
    from lattica.mesh.wire import Hello

log = logging.getLogger(__name__)
ASK_S = 15.0  # for another peer to answer a question of the service `mesh`
RENEW_S = 10.0  # for the whole conversation at the `renew` door
ISSUERS_WANTED = 2  # fewer living ones, and one lost disk ends admission
CONTACTS_MAX = 16  # issuers that another may name at once
ADDRESSES_MAX = 8  # of each
TICKET_PEERS = 8  # in a ticket, besides ourselves
LENGTH_BYTES = 4


class Steward:
    """See the module. One per peer."""

    no_roles = NOTHING

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._credentials = peer.credentials
        self._trust = self._credentials.trust
        self.contexts = tls.Contexts(self._credentials)
        self.skew = Skew()
        self.lost: str = ""  # why this peer is no member any more
        self._admission = Admission(self._credentials.member, self._credentials.root, self._trust.checks, peer.rng)
        self._invites: dict[PeerId, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Steward: {self._admission!r}, {self._trust!r}>"

    # -- what the peer tells

    def start(self) -> None:
        """Begin to look after it."""
        self._admitted(self._admission.issuers(self._issuer_peers(), self.unix_s()))

    def stop(self) -> None:
        """End whatever is under way."""
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()

    def service(self) -> object:
        """What other peers may ask of it."""
        return _MeshService(self)

    def unix_s(self) -> float:
        """The time, as far as it is known."""
        return time() + self.skew.correction_s

    def objection(self, member: Any, unix_s: float) -> str:
        """Why we do not talk to this member; "" if we do."""
        return self._trust.objection(member, unix_s)

    def met(self, peer: PeerId, member: Any, hello: Hello) -> Role:
        """A session is carried by a connection of this member now; the roles that it has in it."""
        self._invites[peer] = member.invite
        if peer in self._issuer_peers():
            self._admitted(self._admission.connected(peer, self.unix_s()))
        if self._issuers_missing():
            self._spawn(self._look_for_issuers(peer))
        roles: Role = member.roles
        return roles

    def parted(self, peer: PeerId) -> None:
        """The session with this peer is over: others are asked before it."""
        self._admission.disconnected(peer)

    def clock_sample(self, peer: PeerId, offset_s: float) -> None:
        """How far another's clock is from ours."""
        before = self.skew.correction_s
        self.skew.sample(peer, offset_s)
        if self.skew.correction_s != before:
            log.warning("this machine's clock is %+.0f s off; it is corrected for the mesh", -self.skew.measured_s)
            self._peer.correct_clock(self.skew.correction_s)

    def refused_by(self, peer: PeerId, reason: str) -> None:
        """Another peer does not talk to us: it may know of a revocation that we do not, or our certificate expired."""
        log.warning("%s", reason)
        self._admitted(self._admission.tick(self.unix_s()))

    # -- what people ask

    def ticket(self, roles: Role, ttl_s: float, label: str = "") -> str:
        """A ticket: a secret with which others join. Raises ConfigError if this node cannot make one."""
        issuing = self._credentials.issuing
        if issuing is None:
            raise ConfigError(
                "this node is no issuer, so it cannot make tickets",
                do_next="run `lattica ticket` on an issuer, or make this one with `lattica issuer add` there",
            )
        if ttl_s <= 0:
            raise ConfigError(f"a ticket that is valid for {ttl_s:g} s", do_next="give it a time, like --ttl 7d")
        peers: list[tuple[PeerId, Sequence[str]]] = [(self._peer.id, self._peer.listening)]
        for other in self._peer.sessions.peers():
            if addresses := self._peer.addresses_of(other):
                peers.append((other, addresses))
        invite = issuing.invite(roles, self.unix_s(), ttl_s)
        return make_ticket(invite, peers[: TICKET_PEERS + 1], label).text()

    async def revoke(self, peer: PeerId, reason: str = "") -> int:
        """This peer is out: how many others have been told already. Its invite is closed to new joins."""
        if peer == self._peer.id:
            raise ConfigError(
                "a node does not revoke itself", do_next="run `lattica leave` here, or revoke it elsewhere"
            )
        invite = self._invites.get(peer)
        if invite is None:
            invite = await self._ask_for_invite(peer)
        return await self._say(self._trust.ends_with(peer, self.unix_s(), invite, reason))

    async def revoke_issuer(self, issuer: bytes, since: float, reason: str = "") -> int:
        """What this issuer signed since then does not count."""
        return await self._say([IssuerRevoked(issuer, since, reason)])

    async def add_issuer(self, peer: PeerId, label: str = "") -> None:
        """Make this peer an issuer and an admin. Raises AdmissionError if we cannot, PeerUnreachableError."""
        issuing = self._require_issuing()
        key, own = await self._peer.call(peer, "mesh.issuing_key", timeout_s=ASK_S)
        now = self.unix_s()
        chain = issuing.certify_issuer(bytes(key), now)
        membership = issuing.certify_member(bytes(own), EVERYTHING, now, invite=self._invites.get(peer, b""))
        await self._peer.call(peer, "mesh.issuer", chain, membership, timeout_s=ASK_S)
        await self._say([IssuerNamed(chain, peer, label)])

    async def recover_issuer(self, recovery_file: str, label: str = "") -> None:
        """Make this node an issuer and an admin by the root key. Raises ConfigError if that is none of this mesh."""
        root = load_recovery(recovery_file)
        credentials, now = self._credentials, self.unix_s()
        if bytes(root.id) != bytes(credentials.mesh):
            raise ConfigError(
                f"{recovery_file} is the recovery file of another mesh", do_next="look for that of this node's mesh"
            )
        issuing = credentials.adopt_issuer(root.certify_issuer(credentials.draft_issuer(), now), now)
        chain = issuing.certify_member(credentials.identity.public_key, EVERYTHING, now)
        self.promoted(chain, self._trust.checks.member(chain, credentials.root, now))
        self.take([credentials.name_issuer(label, now)], None)

    def promoted(self, chain: list[bytes], member: Member) -> None:
        """This node's membership allows more from now on."""
        self._admission.member = member
        self._renewed(chain, member, 0.0)

    def issuers(self) -> list[dict[str, Any]]:
        """The mesh's issuers, as plain data; `alive`: a session with that node is up, or it is this one."""
        here = set(self._peer.sessions.peers()) | {self._peer.id}
        return [
            {
                "issuer_id": issuer.id.hex(),
                "peer_id": peer_text(issuer.peer),
                "label": issuer.label,
                "since": issuer.since,
                "alive": issuer.peer in here,
                "this_node": issuer.peer == self._peer.id,
            }
            for issuer in self._trust.issuers()
        ]

    def warnings(self) -> list[str]:
        """What people should do something about."""
        found = [self.lost] if self.lost else []
        if len(self._trust.issuers()) < ISSUERS_WANTED:
            found.append(
                "this mesh has fewer than two issuers: if that one is lost, nobody can join or renew. "
                "Make another: `lattica issuer add PEER`"
            )
        if abs(self.skew.correction_s) > 0:
            found.append(f"this machine's clock is {-self.skew.measured_s:+.0f} s off: set it (ntp)")
        return found

    def state(self) -> dict[str, Any]:
        """Who this peer is, as plain data."""
        member = self._credentials.member
        return {
            "peer_id": peer_text(self._peer.id),
            "name": self._peer.name,
            "mesh": peer_text(PeerId(member.mesh)),
            "roles": roles_text(member.roles),
            "expires": member.expires,
            "via_invite": member.via_invite,
            "issuer": self._credentials.issuing is not None,
            "boot": self._credentials.boot,
            "addresses": self._peer.listening,
            "clock_measured_s": round(self.skew.measured_s, 3),
            "clock_correction_s": round(self.skew.correction_s, 3),
            "revoked": len(self._trust.revocations()),
            "warnings": self.warnings(),
        }

    # -- statements

    def take(self, statements: Sequence[bytes], source: PeerId | None) -> list[Statement]:
        """Merge what somebody said, act on it, and pass on what is new. Raises RemoteProtocolError."""
        fresh = self._trust.merge(statements, self.unix_s())
        if not fresh:
            return []
        self._credentials.save_trust()
        self._peer.recheck()
        self._admitted(self._admission.issuers(self._issuer_peers(), self.unix_s()))
        here = set(self._peer.sessions.peers())
        for issuer in self._issuer_peers():  # one that is named after its session began is asked first too
            if issuer in here:
                self._admitted(self._admission.connected(issuer, self.unix_s()))
        if why := self._trust.revoked(self._credentials.member):
            self.lost = f"this node is no member of its mesh any more: {why}"
            log.error("%s", self.lost)
        if source is not None and self._issuers_missing() > 0:
            self._spawn(self._look_for_issuers(source))
        self._peer.gossip.statements([statement.data for statement in fresh])
        return fresh

    def heard_statement(self, data: bytes) -> None:
        """The table has it, and it was verified."""
        try:
            self.take([data], None)
        except RemoteProtocolError as error:  # it was ahead of our clock then, or is by now
            log.warning("a statement of the table is not taken: %s", error.message)

    async def _say(self, says: Sequence[Says]) -> int:
        credentials = self._credentials
        if Role.ADMIN not in credentials.member.roles:
            raise PermissionDeniedError(role="admin", peer=peer_text(self._peer.id), action="administer this mesh")
        now = self.unix_s()
        mesh = credentials.member.mesh
        self.take([write_statement(one, now, credentials.identity, credentials.chain, mesh) for one in says], None)
        told = list(self._peer.sessions.peers())
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=2.0)
        return len(told)

    async def _ask_for_invite(self, peer: PeerId) -> bytes:
        """By which invite a peer came, if anybody here knows."""
        others = list(self._peer.sessions.peers())
        answers = await asyncio.gather(*(self._quietly(other, "mesh.invite_of", peer) for other in others))
        return next((bytes(answer) for answer in answers if answer), b"")

    async def _quietly(self, peer: PeerId, name: str, *args: Any) -> Any:
        """Ask; None if there is no answer."""
        try:
            return await self._peer.call(peer, name, *args, timeout_s=ASK_S)
        except (LatticaError, TimeoutError) as error:
            log.info("%s did not answer %s: %s", short_peer(peer), name, str(error).partition("\n")[0])
            return None

    # -- memberships

    def contacts(self) -> list[tuple[bytes, list[str]]]:
        """The issuers that this peer has a session with, and where they can be reached; itself among them."""
        here = [(other, list(self._peer.addresses_of(other))) for other in self._peer.sessions.peers()]
        known = [(self._peer.id, self._peer.listening), *here]
        issuers = set(self._issuer_peers())
        return [(bytes(other), addresses) for other, addresses in known if other in issuers and addresses]

    def _issuers_missing(self) -> int:
        """How many more issuers to have a session with: one that knows only the founder is stuck when that is gone."""
        here = set(self._peer.sessions.peers()) | {self._peer.id}
        issuers = self._issuer_peers()
        return min(ISSUERS_WANTED, len(issuers)) - sum(issuer in here for issuer in issuers)

    async def _look_for_issuers(self, peer: PeerId) -> None:
        """Ask a peer where the issuers are, and have sessions with as many as are wanted."""
        answer = await self._quietly(peer, "mesh.contacts")
        issuers, here = set(self._issuer_peers()), set(self._peer.sessions.peers())
        for other, addresses in list(answer or ())[:CONTACTS_MAX]:
            found, texts = (
                PeerId(bytes(other)),
                [str(address)[:TEXT_MAX_CHARS] for address in addresses[:ADDRESSES_MAX]],
            )
            if found in issuers and found not in here and found != self._peer.id and self._issuers_missing() > 0:
                with contextlib.suppress(PeerUnreachableError):
                    await self._peer.connect(found, texts, timeout_s=ASK_S)

    def certify(self, member: Member) -> list[bytes] | Refusal:
        """As an issuer: a membership for this member."""
        issuing = self._credentials.issuing
        if issuing is None:
            return Refusal("this node is no issuer", final=False)
        return admission.answer(issuing, self._trust, member, self.unix_s())

    def _issuer_peers(self) -> list[PeerId]:
        return [issuer.peer for issuer in self._trust.issuers()]

    def _admitted(self, effects: Sequence[admission.Effect]) -> None:
        """Carry out what the admission core wants."""
        for effect in effects:
            match effect:
                case admission.AskMembership(issuer, expired):
                    self._spawn(self._ask(issuer, expired))
                case admission.MembershipRenewed(chain, member, expired_for_s):
                    self._renewed(list(chain), member, expired_for_s)
                case admission.MembershipRefused(issuer, reason):
                    log.warning("issuer %s did not certify this node: %s", short_peer(issuer), reason)
                case admission.MembershipLost(reason, do_next):
                    self.lost = f"this node is no member of its mesh any more: {reason}. {do_next}"
                    log.error("%s", self.lost)
        self._arm()

    def _renewed(self, chain: list[bytes], member: Member, expired_for_s: float) -> None:
        first = self._credentials.member.via_invite
        self._credentials.renew(chain, self.unix_s())
        self.lost = ""
        if expired_for_s:
            log.warning(
                "this node's membership had expired %.0f days ago; it is renewed until %s",
                expired_for_s / 86400, when(member.expires),
            )  # fmt: skip
        else:
            log.info("this node %s until %s", "is a member" if first else "stays a member", when(member.expires))
        self._peer.gossip.certified(chain)
        self._peer.reconnect()

    async def _ask(self, issuer: PeerId, expired: bool) -> None:
        now = self.unix_s()
        try:
            if issuer == self._peer.id:
                answer = self.certify(self._credentials.member)
            elif expired:
                answer = await self._renew_at(issuer)
            else:
                said = await self._peer.call(issuer, "mesh.certify", timeout_s=ASK_S)
                answer = [bytes(der) for der in said["chain"]] or Refusal(str(said["reason"]), bool(said["final"]))
        except (LatticaError, TimeoutError, OSError, KeyError, TypeError) as error:
            answer = Refusal(tls.words(error), final=False)
        if isinstance(answer, Refusal):
            self._admitted(self._admission.refused(issuer, answer.reason, answer.final, now))
        else:
            self._admitted(self._admission.answered(issuer, answer, now))

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due = self._admission.next_deadline()
        if due is None:
            self._timer = None
            return
        wait_s = min(max(due - self.unix_s(), 0.05), 3600.0)  # the wall clock may be set meanwhile
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._tick)

    def _tick(self) -> None:
        self._admitted(self._admission.tick(self.unix_s()))

    # -- the `renew` door

    async def serve_renewal(self, reader: asyncio.StreamReader, write: Callable[[bytes], None]) -> None:
        """Answer one whose certificate has expired; nothing else is read from it."""
        nonce = os.urandom(NONCE_BYTES)
        async with asyncio.timeout(RENEW_S):
            write(nonce)
            request = await _read_block(reader)
            answer: list[bytes] | Refusal
            try:
                credentials = self._credentials
                answer = self.certify(verify_renewal(request, nonce, credentials.root, self._trust, self.unix_s()))
            except (AdmissionError, RemoteProtocolError) as error:
                answer = Refusal(error.message, final=isinstance(error, AdmissionError))
            data = write_answer(answer)
            write(len(data).to_bytes(LENGTH_BYTES, "little") + data)

    async def _renew_at(self, issuer: PeerId) -> list[bytes] | Refusal:
        """Ask at the `renew` door of an issuer. Raises OSError or LatticaError if it cannot be reached."""
        credentials, reasons = self._credentials, list[str]()
        for address in self._peer.addresses_of(issuer):
            if "/" in address:
                continue  # by way of a relay: that takes a certificate
            host, port = split_host(address)
            try:
                async with asyncio.timeout(RENEW_S):
                    reader, writer = await asyncio.open_connection(
                        host, port, ssl=tls.renewal_client(credentials.root), server_hostname=tls.RENEW_NAME,
                        limit=RENEWAL_MAX_BYTES * 2,
                    )  # fmt: skip
                    try:
                        nonce = await reader.readexactly(NONCE_BYTES)
                        request = sign_renewal(
                            nonce, signer=credentials.identity, chain=credentials.chain, mesh=credentials.member.mesh
                        )
                        writer.write(len(request).to_bytes(LENGTH_BYTES, "little") + request)
                        return read_answer(await _read_block(reader))
                    finally:
                        writer.close()
            except (OSError, TimeoutError, EOFError, RemoteProtocolError) as error:
                reasons.append(f"{address}: {tls.words(error)}")
        return Refusal("; ".join(reasons) or "no address of it is known", final=False)

    # -- small things

    def _require_issuing(self) -> Any:
        if self._credentials.issuing is None:
            raise AdmissionError("this node is no issuer", do_next="run this on an issuer: `lattica issuer` lists them")
        return self._credentials.issuing

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _read_block(reader: asyncio.StreamReader) -> bytes:
    """A length and as many bytes. Raises RemoteProtocolError if there would be too many, EOFError at an early end."""
    size = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "little")
    if size > RENEWAL_MAX_BYTES:
        raise RemoteProtocolError(f"{size} bytes were announced, and {RENEWAL_MAX_BYTES} are allowed")
    return await reader.readexactly(size)


@service("mesh")
class _MeshService:
    """What every peer offers to every other."""

    def __init__(self, steward: Steward) -> None:
        self._steward = steward

    @method(role=None, idempotent=True)
    def contacts(self) -> list[tuple[bytes, list[str]]]:
        """Where the issuers are that this peer has a session with."""
        return self._steward.contacts()

    @method(role=None, idempotent=True)
    def certify(self) -> dict[str, Any]:
        """A membership for the caller."""
        steward = self._steward
        member: Any = steward._peer.sessions.member(caller.get().peer)
        answer = steward.certify(member)
        if isinstance(answer, Refusal):
            return {"chain": [], "reason": answer.reason, "final": answer.final}
        return {"chain": answer, "reason": "", "final": False}

    @method(role=Role.ADMIN, idempotent=True)
    def invite_of(self, peer: bytes) -> bytes:
        """By which invite a peer came, as far as is known here."""
        return self._steward._invites.get(PeerId(bytes(peer)), b"")

    @method(role=Role.ADMIN, idempotent=True)
    def issuing_key(self) -> list[bytes]:
        """The public keys under which this node would issue, and by which it is known."""
        credentials = self._steward._credentials
        return [credentials.draft_issuer(), credentials.identity.public_key]

    @method(role=Role.ADMIN, idempotent=True)
    def issuer(self, chain: list[bytes], membership: list[bytes]) -> None:
        """Be an issuer from now on."""
        steward = self._steward
        credentials = steward._credentials
        member = steward._trust.checks.member([bytes(der) for der in membership], credentials.root, steward.unix_s())
        if member.peer != steward._peer.id:
            raise AdmissionError("this membership is another peer's")
        credentials.adopt_issuer([bytes(der) for der in chain], steward.unix_s())
        steward.promoted([bytes(der) for der in membership], member)
