"""The node's place in its mesh: it hosts the peer, keeps in touch with those it knows, and answers the commands.

    command ──MeshRequest(verb, data)──► MeshDesk ──► Peer and its steward ──► MeshAnswer

    whoami, peers, table, issuers, doctor   what is so
    met                                     as `whoami`, once a session is up or all dials have come to nothing
    dial                                    a session with one who cannot dial this node
    ticket, revoke, revoke_issuer, add_issuer, recover_issuer        what only commands may ask for

Only a node begun by `lattica start` has one; it is imported when such a node begins. Secrets go into answers to
commands, which are this user's, and nowhere else: not into the log, nor into any error.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from time import time
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from lattica._version import __version__
from lattica.codec import messages as m
from lattica.errors import ConfigError, InternalError, LatticaError, NodeDiedError, PeerUnreachableError
from lattica.mesh import credentials
from lattica.mesh.addresses import DEFAULT_PORT, split_host
from lattica.mesh.identity import PEER_ID_BYTES, PEER_ID_CHARS, PeerId, parse_peer, peer_text, short_peer
from lattica.mesh.mapping.keeper import Keeper
from lattica.mesh.membership import MemberChanged, State
from lattica.mesh.peer import Peer
from lattica.mesh.roles import Role, parse_roles, roles_text
from lattica.mesh.tickets import parse_ticket
from lattica.mesh.trust import PeerRevoked
from lattica.node import neighbours, roster, table_view
from lattica.node.contacts import Contact, Contacts, contacts_path, write_contacts
from lattica.node.dial_back import DialBack
from lattica.scheduler.load import Load, encode

if TYPE_CHECKING:
    from lattica.mesh.credentials import Credentials
    from lattica.node.clients import Client

log = logging.getLogger(__name__)
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
"""What others' tasks run in here: workers are forked from the interpreter that runs the node."""
NO_PORT = "none"  # as an address to listen at: only dial
LOOK_S = 1.0
"""How often contacts are compared with sessions. More often: a lost peer is dialed sooner; more wake-ups of an idle
node."""
SOON_S = 0.1  # after a member came, for the session with it to be up: who is killed a second later must know it
SESSIONS_ENOUGH = 2
"""With so many the membership finds all others, and contacts are left alone. One may be with a node as lost as this."""
STRANGERS_MAX = 8  # members that the table knows, and nobody here has met, that are dialed at once
DIAL_S = 10.0  # for a contact to be reached
MET_MAX_S = 30.0  # longest that `met` waits
MET_WAIT_S = {"joined": 6.0, "returned": 2.0}
"""How long who started this node waits for another peer to answer: who joins wants to know, who returns may be the
first."""
MEET_S = 3.0  # for the table to come once there is a session
MET_TOLD_MAX = 100  # peers and troubles that it is told of, in a pipe that takes 64 KiB
STOP_S = 1.0  # for sessions to end politely
HOW = {"founded": "founds", "joined": "joins", "returned": "returns to"}
SHORT_MIN_CHARS = 4  # of a peer id, where it tells one from all others that are known
REQUESTS_MAX = 64  # of commands, at once
NONCES_OF = b"lattica: nonces of port mappings"
"""What is signed for a secret that only this node has, and has again after a restart."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line says of the mesh. ticket: its text, a secret; listen: HOST:PORT, "none", or "" for the
    default port."""

    ticket: str = ""
    listen: str = ""
    name: str = ""
    labels: Mapping[str, str] | None = None
    ephemeral: bool = False  # a driver's own node, which goes with it
    maps_ports: bool = True  # asks the gateway for ports that lead here
    birthday: bool = True  # tries hundreds of ports to become direct
    relay: bool = False  # to relay for others, and nothing else
    listen_tls: str = ""  # HOST:PORT, for TCP alone, beside the other
    advertise: Sequence[str] = ()  # HOST:PORT that lead here from outside, by what the user has set up

    def __repr__(self) -> str:
        return f"<Wish: {'a ticket, ' if self.ticket else ''}listen {self.listen or 'by default'}>"


def admit(folder: str, ticket: str, unix_s: float, *, relay: bool = False) -> tuple[Credentials, str]:
    """The node's credentials, and how it came by them: "joined", "returned" or "founded". relay: it is to have the role
    relay, and no other.

    Raises ConfigError or AdmissionError if the ticket is none, has expired, or is another mesh's than this node's.
    """
    if relay:
        return _admit_relay(folder, ticket, unix_s)
    if ticket:
        known = os.path.exists(os.path.join(folder, "mesh", "membership"))
        parsed = parse_ticket(ticket)
        member = credentials.join(folder, parsed, unix_s)
        if parsed.peers:
            member.peers = parsed.peers  # newer than those of the ticket it came by
        return member, "returned" if known and not member.member.via_invite else "joined"
    found = credentials.load(folder, unix_s)
    return (found, "returned") if found is not None else (credentials.found(folder, unix_s), "founded")


def _admit_relay(folder: str, ticket: str, unix_s: float) -> tuple[Credentials, str]:
    found = credentials.load(folder, unix_s)
    if found is not None and found.member.roles != Role.RELAY:
        raise ConfigError(
            f"this node is a member with the roles {roles_text(found.member.roles)}, and a relay has that role alone",
            do_next="give the relay a --data-dir of its own",
        )
    if ticket:
        parsed = parse_ticket(ticket)
        if Role.RELAY not in parsed.roles:
            raise ConfigError(
                f"the ticket gives the roles {roles_text(parsed.roles)}, and not relay",
                do_next="make one by `lattica ticket --role relay`",
            )
        member = credentials.join(folder, parsed, unix_s, Role.RELAY)
        member.peers = parsed.peers or member.peers
        return member, "returned" if found is not None else "joined"
    if found is None:
        raise ConfigError(
            "a relay joins a mesh that there is, and this node is in none",
            do_next="make a ticket on one of its nodes by `lattica ticket --role relay`, and give it to this command",
        )
    return found, "returned"


class MeshDesk:
    """See the module."""

    def __init__(
        self, peer: Peer, contacts: Contacts, wish: Wish, how: str, ended: Callable[[LatticaError], None]
    ) -> None:
        """ended: is told why the node must not go on."""
        self.peer, self.contacts, self.how = peer, contacts, how
        self.peer_id = peer_text(peer.id)
        self.labels = dict(wish.labels or {})
        self.notes: list[str] = []  # for whoever started the node
        self.mapping: Keeper | str = ""  # of the gateway's ports; or why none is asked for
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._rng = Random(os.urandom(8))
        self._dialing: dict[PeerId, asyncio.Task[None]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._writing = self._stale = self._hurries = False
        self._load: Callable[[], Load] | None = None
        self._verbs: dict[str, Callable[[Mapping[str, Any]], Awaitable[Any]]] = {
            "whoami": self._whoami,
            "peers": self._peers,
            "table": self._table,
            "issuers": self._issuers,
            "met": self._met,
            "doctor": self._doctor,
            "dial": self._dial_one,
            "ticket": self._ticket,
            "revoke": self._revoke,
            "revoke_issuer": self._revoke_issuer,
            "add_issuer": self._add_issuer,
            "recover_issuer": self._recover_issuer,
        }

    def answers(self, verb: str, answer: Callable[[Mapping[str, Any]], Awaitable[Any]]) -> None:
        """Another desk answers this verb of commands."""
        self._verbs[verb] = answer

    def __repr__(self) -> str:
        return f"<MeshDesk: {self.peer!r}, {self.contacts!r}, {len(self._dialing)} dials>"

    # -- life

    @classmethod
    async def begin(
        cls, folder: str, wish: Wish, ended: Callable[[LatticaError], None], make: Callable[..., Peer] = Peer
    ) -> MeshDesk:
        """Found, join or return to a mesh, and listen. folder: the node's identity; make: the peer, for tests.

        Raises ConfigError or AdmissionError as `admit` does, and ConfigError if the address cannot be listened at.
        """
        member, how = admit(folder, wish.ticket, time(), relay=wish.relay)
        contacts = Contacts(contacts_path(folder), member.mesh)
        contacts.add(member.peers)
        peer, note = await _start(member, wish, make)
        desk = cls(peer, contacts, wish, how, ended)
        if note:
            desk.notes.append(note)
            log.warning("%s", note)
        peer.serve(DialBack(peer), offered=False)
        peer.gossip.describe(labels=desk.labels, python=[PYTHON], ephemeral=wish.ephemeral)
        if wish.ephemeral:
            peer.gossip.directory.reachable([])  # others need not find anything here
        peer.gossip.watch_members(desk._member_changed)
        peer.on_stop = desk.stopped_by_itself
        if wish.advertise:
            peer.advertise("configured", wish.advertise)
            if peer.traversal is not None:
                peer.traversal.configure(wish.advertise)
        desk.mapping = _keeper(peer, wish)
        if isinstance(desk.mapping, Keeper):
            desk.mapping.start()
            if peer.traversal is not None:
                peer.traversal.on_network.append(desk.mapping.look)
        log.info(
            "peer %s %s mesh %s (%s), at %s", peer_text(peer.id), HOW[how], short_peer(PeerId(member.mesh)),
            roles_text(member.member.roles), ", ".join(peer.listening) or "no port",
        )  # fmt: skip
        desk._look()
        return desk

    def teach(self, verb: str, answer: Callable[[Mapping[str, Any]], Any]) -> None:
        """Commands may ask for this, too: what another part of the node tells."""

        async def told(data: Mapping[str, Any]) -> Any:
            return answer(data)

        self._verbs[verb] = told

    def objection_to_programs(self) -> str:
        """Why no program may attach to this node; "" if it may. One that neither lends workers nor may ask others for
        some, like a relay, would let it wait for ever."""
        roles = self.peer.credentials.member.roles
        if roles & (Role.EXECUTE | Role.SUBMIT):
            return ""
        return f"this node has the role {roles_text(roles)} alone: run programs where a node has the role submit"

    def offer(self, resources: Mapping[str, float], load: Callable[[], Load] | None = None) -> None:
        """Tell the mesh what this node has in all, and each second what of it is taken."""
        self.peer.gossip.describe(resources=dict(resources))
        self._load = load

    async def stop(self) -> None:
        """End all sessions, and what is under way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        tasks = [*self._dialing.values(), *self._answering]
        for task in tasks:
            task.cancel()
        self.contacts.met(self._sessions(), time())
        write_contacts(self.contacts.path, self.contacts.data())
        if isinstance(self.mapping, Keeper):
            tasks.append(self._loop.create_task(self.mapping.stop()))
        try:
            async with asyncio.timeout(STOP_S):
                if tasks:
                    await asyncio.wait(tasks)
                if self.peer.stopped_by is None:
                    await self.peer.stop("its node ends")
        except TimeoutError:
            log.warning("sessions did not end within %g s", STOP_S)

    def stopped_by_itself(self, reason: str) -> None:
        """The peer must not go on: nor must the node."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._ended(
            NodeDiedError(
                f"this node stops: {reason}",
                do_next="one of the two is a copy: delete the folder `identity` in its data directory, "
                "and let it join with a ticket of its own",
            )
        )

    # -- contacts

    def _sessions(self) -> dict[PeerId, list[str]]:
        """With whom there is one, and where they say they are; nothing while a session is being resumed."""
        sessions = self.peer.sessions
        return {peer: list(hello.addresses) if (hello := sessions.hello(peer)) else [] for peer in sessions.peers()}

    def _look(self) -> None:
        """Compare whom we know with whom we have a session: while those are few, dial the others."""
        self._timer, self._hurries = self._loop.call_later(LOOK_S, self._look), False
        if self._load is not None:
            self.peer.gossip.say(encode(self._load()))
        sessions, now = self._sessions(), self._loop.time()
        changed = self.contacts.met(sessions, time())
        said = [statement.says for statement in self.peer.credentials.trust.revocations()]
        changed |= self.contacts.forget([PeerId(one.peer) for one in said if isinstance(one, PeerRevoked)])
        if changed:
            self._keep()
        if len(sessions) >= SESSIONS_ENOUGH:
            return
        if not sessions:
            self.contacts.add(self._strangers())
        for contact in self._wanted(set(sessions), now):
            self._dialing[contact.peer] = self._loop.create_task(self._dial(contact))

    def _wanted(self, sessions: set[PeerId], now: float) -> list[Contact]:
        """Whom to dial. Who has left only where no other answers: one that is here would say if it is back."""
        membership = self.peer.gossip.community.membership
        left = {peer for peer in self.contacts.known if membership.state(peer) is State.LEFT}
        others = (one for one in self.contacts.known.values() if one.peer not in left and one.peer != self.peer.id)
        spared = left if sessions or any(not one.failures for one in others) else set()
        busy = {*sessions, *self._dialing, *spared, self.peer.id}
        return [contact for contact in self.contacts.due(now) if contact.peer not in busy]

    def _member_changed(self, change: MemberChanged) -> None:
        if change.state is State.ALIVE and self._timer is not None and not self._hurries:
            self._hurries = True
            self._timer.cancel()
            self._timer = self._loop.call_later(SOON_S, self._look)

    def _strangers(self) -> list[tuple[PeerId, list[str]]]:
        """Members that the table knows and that were not met, dead ones too: it may be us who were away."""
        community = self.peer.gossip.community
        known = [peer for peer in community.states() if peer not in self.contacts.known and peer != self.peer.id]
        chosen = self._rng.sample(known, min(len(known), STRANGERS_MAX))
        return [(peer, info.addresses) for peer in chosen if (info := community.node(peer)) is not None]

    async def _dial(self, contact: Contact) -> None:
        try:
            await self.peer.connect(contact.peer, contact.addresses, timeout_s=DIAL_S)
        except LatticaError as error:
            if not contact.failures:
                log.info("%s", error.message)
            self.contacts.failed(contact, error.message, self._loop.time(), self._rng)
        finally:
            del self._dialing[contact.peer]

    def _keep(self) -> None:
        """Write the contacts, in a thread: the disk may be slow."""
        if self._writing:
            self._stale = True
            return
        self._writing, self._stale = True, False
        done = self._loop.run_in_executor(None, write_contacts, self.contacts.path, self.contacts.data())
        done.add_done_callback(self._kept)

    def _kept(self, _: object) -> None:
        self._writing = False
        if self._stale:
            self._keep()

    # -- commands

    def show(self, client: Client, request: int, verb: str) -> None:
        """Answer a program's `StateRequest` by what a verb finds: one that any program may use."""

        async def answer() -> None:
            client.send(m.State(request, await self._verbs[verb]({})))

        self._answer_later(answer())

    def request(self, client: Client, message: m.MeshRequest) -> None:
        """Answer it, now or later."""
        if len(self._answering) >= REQUESTS_MAX:
            client.send(
                _error(message.request, LatticaError("the node answers too many commands", do_next="try again"))
            )
            return
        self._answer_later(self._answer(client, message))

    def _answer_later(self, answer: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(answer)
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, client: Client, message: m.MeshRequest) -> None:
        verb = self._verbs.get(message.verb)
        try:
            if verb is None:
                raise ConfigError(
                    f"the node does not know {message.verb[:40]!r}",
                    do_next="restart the node: it is of another release",
                )
            answer = m.MeshAnswer(message.request, await verb(message.data))
        except LatticaError as error:
            answer = _error(message.request, error)
        except TimeoutError:
            answer = _error(message.request, LatticaError(f"{message.verb} took too long", do_next="try again"))
        except Exception as error:  # a bug of ours: the command must hear of it, and the node goes on
            log.exception("%s of a command", message.verb)
            answer = _error(message.request, InternalError(f"{message.verb} failed: {type(error).__name__}"))
        client.send(answer)

    async def _whoami(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Also what whoever started the node wants to say."""
        return self.peer.steward.state() | {
            "version": __version__,
            "labels": self.labels,
            "how": self.how,
            "notes": self.notes,
            "recovery_file": self._recovery_file(),
        }

    def _recovery_file(self) -> str:
        """Where the root key still lies; "" if it was moved away, or was never here."""
        kept = self.peer.credentials
        path = kept.recovery_file or credentials.recovery_path(kept.folder, kept.mesh)
        return path if os.path.lexists(path) else ""

    async def _peers(self, _: Mapping[str, Any]) -> list[dict[str, Any]]:
        return roster.members(self.peer)

    async def _table(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """data: {"kind": its name, "" for how much there is of each}."""
        replica, kind = self.peer.gossip.community.replica, str(data.get("kind", ""))
        return table_view.rows_of(replica, kind) if kind else table_view.summary(replica)

    async def _issuers(self, _: Mapping[str, Any]) -> list[dict[str, Any]]:
        return self.peer.steward.issuers()

    async def met(self) -> dict[str, Any]:
        """For whoever started this node."""
        met = await self._met({"wait_s": MET_WAIT_S.get(self.how, 0.0)})
        return met | {name: met[name][:MET_TOLD_MAX] for name in ("peers", "troubles")}

    async def meet(self) -> None:
        """Return when another member is known. Raises PeerUnreachableError if none answers in time."""
        met = await self.met()
        until = self._loop.time() + MEET_S
        membership = self.peer.gossip.community.membership
        while self._sessions() and len(membership.living) < 2 and self._loop.time() < until:
            await asyncio.sleep(0.02)
        if not self._sessions():
            why = "; ".join(str(one["why"]) for one in met["troubles"]) or "it names nobody who could be asked"
            raise PeerUnreachableError(
                f"nobody of the ticket's mesh answers: {why}",
                do_next="start a node there, or take a newer ticket of a node that runs",
            )

    async def _met(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """data: {"wait_s": seconds}."""
        deadline = self._loop.time() + min(float(data.get("wait_s", 0.0)), MET_MAX_S)
        while not self._sessions() and self._dialing:
            left = deadline - self._loop.time()
            if left <= 0:
                break
            await asyncio.wait(self._dialing.values(), timeout=left, return_when=asyncio.FIRST_COMPLETED)
        return await self._whoami(data) | {"peers": self.peer.peers(), "troubles": self._troubles()}

    def _troubles(self) -> list[dict[str, Any]]:
        """Dials that came to nothing, or have not come to anything yet, while they matter."""
        sessions = self._sessions()
        if len(sessions) >= SESSIONS_ENOUGH:
            return []
        return [
            {
                "peer_id": peer_text(contact.peer),
                "addresses": list(contact.addresses),
                "why": contact.trouble or f"peer {short_peer(contact.peer)} has not answered yet",
            }
            for contact in self.contacts.known.values()
            if contact.trouble or (contact.peer in self._dialing and contact.peer not in sessions)
        ]

    async def _doctor(self, data: Mapping[str, Any]) -> dict[str, Any]:
        refusals = [{"at": at, "from": address, "why": why} for at, address, why in self.peer.refusals]
        return {
            "whoami": await self._whoami(data),
            "peers": self.peer.peers(),
            "issuers": self.peer.steward.issuers(),
            "troubles": self._troubles(),
            "refusals": refusals,
            "reached": await neighbours.reached(self.peer),
            "members": neighbours.members(self.peer),
            "table": await neighbours.compared(self.peer),
            "nat": self.peer.traversal.status() if self.peer.traversal is not None else {},
            "mapping": self.mapping.status() if isinstance(self.mapping, Keeper) else {"off": self.mapping},
        }

    async def _dial_one(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """data: {"peer": its whole id, or what tells it apart, "address": HOST:PORT}. Raises PeerUnreachableError."""
        peer, address = self.peer_of(str(data.get("peer", ""))), str(data.get("address", ""))
        split_host(address)
        if peer == self.peer.id:
            raise ConfigError("this is the node itself", do_next="run it on a node that should dial this one")
        await self.peer.connect(peer, [address], timeout_s=DIAL_S)
        found = next((row for row in self.peer.peers() if row["peer_id"] == peer_text(peer)), {})
        return {"peer_id": peer_text(peer), "name": found.get("name", ""), "path": found.get("path", "")}

    async def _ticket(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """data: {"roles": words, "ttl_s": seconds, "label": words}."""
        roles = parse_roles(str(data.get("roles", "")))
        ttl_s = float(data.get("ttl_s", 0.0))
        label = str(data.get("label", ""))
        text = self.peer.steward.ticket(roles, ttl_s, label)
        made = parse_ticket(text)
        return {
            "ticket": text,
            "roles": roles_text(made.roles),
            "expires": made.expires,
            "label": label,
            "addresses": [address for _, addresses in made.peers for address in addresses],
        }

    async def _revoke(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """data: {"peer": id or what tells it apart, "reason": words}."""
        peer = self.peer_of(str(data.get("peer", "")))
        told = await self.peer.steward.revoke(peer, str(data.get("reason", "")))
        return {"peer_id": peer_text(peer), "told": told}

    async def _revoke_issuer(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """data: {"issuer": id or what tells it apart, "since": unix seconds, "reason": words}."""
        issuer = self._issuer_of(str(data.get("issuer", "")))
        since = float(data.get("since", time()))
        told = await self.peer.steward.revoke_issuer(issuer, since, str(data.get("reason", "")))
        return {"issuer_id": issuer.hex(), "since": since, "told": told}

    async def _add_issuer(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """data: {"peer": id or what tells it apart, "label": words}."""
        peer = self.peer_of(str(data.get("peer", "")))
        await self.peer.steward.add_issuer(peer, str(data.get("label", "")))
        return {"peer_id": peer_text(peer), "issuers": self.peer.steward.issuers()}

    async def _recover_issuer(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """data: {"file": absolute path of the recovery file, "label": words}."""
        await self.peer.steward.recover_issuer(str(data.get("file", "")), str(data.get("label", "")))
        return {"peer_id": peer_text(self.peer.id), "issuers": self.peer.steward.issuers()}

    # -- which one is meant

    def peer_of(self, text: str) -> PeerId:
        """By its whole id; or by the beginning of it or its name, where that tells one from all others we know."""
        given = text.strip().lower()
        if len(given) == PEER_ID_CHARS:
            return parse_peer(given)
        names = {row["peer_id"]: row["name"] for row in roster.members(self.peer)}
        known = {*names, *map(peer_text, self.contacts.known), *(row["peer_id"] for row in self.peer.steward.issuers())}
        found = [peer for peer in known if len(given) >= SHORT_MIN_CHARS and peer.startswith(given)]
        found = found or [peer for peer, name in names.items() if name and name == text.strip()]
        if len(found) != 1:
            what = "several peers are" if found else "no peer that this node knows is"
            raise ConfigError(f"{what} called {text!r:.80}", do_next=f"give all {PEER_ID_CHARS} characters of its id")
        return parse_peer(found[0])

    def _issuer_of(self, text: str) -> bytes:
        given = text.strip().lower()
        known = [row["issuer_id"] for row in self.peer.steward.issuers()]
        found = [issuer for issuer in known if len(given) >= SHORT_MIN_CHARS and issuer.startswith(given)]
        try:
            issuer = bytes.fromhex(found[0] if len(found) == 1 else given)
        except ValueError:
            issuer = b""
        if len(issuer) != PEER_ID_BYTES:
            raise ConfigError(f"{text!r:.80} is no issuer", do_next="take its id from `lattica issuer`")
        return issuer


async def _start(member: Credentials, wish: Wish, make: Callable[..., Peer]) -> tuple[Peer, str]:
    """The peer, listening, and a note for people if that is not where they may expect it."""
    if wish.relay:
        make = partial(make, relaying="always")
    if not wish.birthday:
        make = partial(make, birthday=False)
    if wish.listen_tls:
        make = partial(make, listen_tls=wish.listen_tls)
    if wish.listen:
        peer = make(member, listen=None if wish.listen == NO_PORT else wish.listen, name=wish.name)
        return await _started(peer), ""
    try:
        return await _started(make(member, listen=f":{DEFAULT_PORT}", name=wish.name)), ""
    except ConfigError as error:
        peer = await _started(make(member, listen=":0", name=wish.name))
        port = peer.listening[0].rpartition(":")[2] if peer.listening else "?"
        why = error.message.rpartition(": ")[2].lower()
        return peer, f"port {DEFAULT_PORT} is not to be had ({why}): this node listens on port {port}"


def _keeper(peer: Peer, wish: Wish) -> Keeper | str:
    """Who asks the gateway for ports that lead to where this peer listens; or why nobody does."""
    if not wish.maps_ports:
        return "it is switched off"
    if not peer.port:
        return "this node does not listen"
    host = ""
    if wish.listen:
        host = split_host(wish.listen)[0]
    if host in ("0.0.0.0", "::"):
        host = ""
    if host.startswith("127.") or host in ("localhost", "::1"):
        return "this node listens for this machine alone"
    secret = blake3(peer.credentials.identity.sign(NONCES_OF)).digest()
    return Keeper(peer.port, secret, partial(_mapped, peer), host=host)


def _mapped(peer: Peer, keeper: Keeper) -> None:
    """The gateway has mapped other ports here."""
    peer.advertise("mapped", [str(endpoint) for endpoint in keeper.addresses])
    if peer.traversal is not None:
        peer.traversal.set_mapped(keeper.udp)


async def _started(peer: Peer) -> Peer:
    try:
        return await peer.start()
    except BaseException:
        await peer.stop()
        raise


def _error(request: int, error: LatticaError) -> m.MeshAnswer:
    return m.MeshAnswer(request, None, dict(error.to_data()))
