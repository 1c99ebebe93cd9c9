"""One peer: its sessions, calls and streams over a transport. It composes the mesh's cores and decides nothing itself.

    transport ──verbs──► Sessions ──effects──► transport          (who is connected, what is lost, what comes twice)
                            │ Delivered
                            ▼
                     rpc.Conversation ──events──► Talk ──► methods of services, futures, streams

What is written in one turn of the event loop goes out in one batch per session. The steward (`stewardship`) sees to
certificates, revocations and clocks.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextvars import ContextVar, Token, copy_context
from random import Random
from time import perf_counter, time
from typing import TYPE_CHECKING, Any, Self

from lattica._version import __version__
from lattica.errors import ConfigError, GetTimeoutError, PeerUnreachableError, RemoteProtocolError
from lattica.mesh import credentials, values
from lattica.mesh.addresses import ranked, reachable, split_host
from lattica.mesh.authority import INVITE_S
from lattica.mesh.calls import Pipe, Stream, Talk
from lattica.mesh.compression import Packer
from lattica.mesh.credentials import Credentials
from lattica.mesh.effects import NOBODY_LISTENS, Dial, Hangup, Transmit
from lattica.mesh.gossip import Gossip
from lattica.mesh.identity import PeerId, parse_peer, peer_text
from lattica.mesh.links import (
    STREAM_RANK,
    Attached,
    ClockSample,
    Delivered,
    Faltering,
    Room,
    SessionDown,
    SessionUp,
    TwinSeen,
    Unreachable,
    WeAreTwin,
)
from lattica.mesh.roles import MEMBER, Role, roles_text
from lattica.mesh.rpc import FROM_CALLER, STREAMS_IN, STREAMS_OUT, Conversation
from lattica.mesh.services import Method, caller, methods_of, name_of
from lattica.mesh.sessions import Effect, Sessions
from lattica.mesh.stewardship import Steward
from lattica.mesh.tickets import parse_ticket
from lattica.mesh.topics import Subscription
from lattica.mesh.transport import ways
from lattica.mesh.transport.interface import Owner, Transport
from lattica.mesh.transport.quic import RELAY
from lattica.mesh.transport.ways import Ways
from lattica.mesh.wire import BULK, CONTROL, Hello, Received

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory

    from lattica.mesh.nat_shell.traversal import Traversal
    from lattica.mesh.relay.relays import Relays

log = logging.getLogger(__name__)
SUMMONED_S = 10.0  # for a member that cannot be dialed to dial us
TIMER_SLACK_S = 0.005
"""How late a deadline may be noticed: the cores are asked for their next one this often at the most."""
REFUSALS_MAX = 32  # of handshakes, remembered for `lattica doctor`
Target = PeerId | str | Sequence[PeerId | str] | None
Resolver = Callable[[str], Awaitable[Sequence[PeerId]]]

current: ContextVar[Peer] = ContextVar("lattica_mesh_peer")
"""The peer whose `async with` block or method runs here: `lattica.mesh.call` uses it."""


class Peer:
    """A member of a mesh.

        async with Peer.join(ticket) as peer:
            peer.serve(Shard())
            await peer.call(other, "shard.forward", x, timeout_s=5)

    A target is a peer id, as bytes or text; a list of them, which are tried in order; or None: whoever serves the
    method, as the resolver finds out.
    """

    def __init__(
        self,
        membership: Credentials,
        *,
        listen: str | None = None,
        name: str = "",
        rng: Random | None = None,
        transport: Callable[[Owner], Transport] | None = None,
        transports: Collection[str] = ways.ALL,
        relaying: str = "auto",
        listen_tls: str | None = None,
        birthday: bool = True,
        steward: Callable[[Peer], Steward] = Steward,
        gossip: Callable[[Peer], Gossip] = Gossip,
    ) -> None:
        """listen: "HOST:PORT" to accept connections at, HOST empty for all interfaces; None: only dial.
        name: for people, by default the machine's. transports: "tcp", "quic" or both. relaying: for others, "always",
        "never", or "auto", when this node has found that it can be reached. listen_tls: a second "HOST:PORT", by TCP
        alone, for those whose network lets out nothing but port 443. birthday: whether hundreds of ports may be
        tried to become direct (`mesh/nat`). transport, steward, gossip: others than the real ones, for tests."""
        self.credentials = membership
        self.id = membership.identity.peer
        self.name = name or platform.node()
        self.listening: list[str] = []  # where others reach us, best first
        self.refusals: list[tuple[float, str, str]] = []  # (unix time, from where, why), the latest last
        self.resolver: Resolver | None = None
        self.stopped_by: str | None = None  # why it stopped by itself
        self.on_stop: Callable[[str], None] | None = None
        self.on_falter: list[Callable[[PeerId, str], None]] = []  # hear of sessions that cannot get a connection
        self._bound_at: list[str] = []  # as the transport says
        self._bound: list[str] = []
        self._advertised: dict[str, tuple[str, ...]] = {}  # by who says so
        self._listen, self._transport_of, self._gossip_of = listen, transport, gossip
        self._transports, self._birthday = transports, birthday
        self._relaying, self._listen_tls = relaying, listen_tls
        self.rng = rng or Random(os.urandom(16))
        self._methods: dict[str, Method] = {}
        self._talks: dict[PeerId, Talk] = {}
        self._waiting: dict[PeerId, list[asyncio.Future[Talk]]] = {}
        self._addresses: dict[PeerId, tuple[str, ...]] = {}
        self._dirty: dict[Talk, None] = {}
        self._flushing = False
        self._timer: asyncio.TimerHandle | None = None
        self._arming: asyncio.TimerHandle | None = None
        self._token: Token[Peer] | None = None
        self._temporary: TemporaryDirectory[str] | None = None
        self._first: Sequence[tuple[PeerId, Sequence[str]]] = ()  # whom to have a session with from the start
        self._stopping = self._is_up = False
        self.traversal: Traversal | None = None  # of NATs, where there is UDP
        self.relays: Relays | None = None
        self._offers: set[str] = set()
        self.steward = steward(self)

    def __repr__(self) -> str:
        return (
            f"<Peer {peer_text(self.id)[:8]}: {len(self._talks)} sessions, at {', '.join(self.listening) or 'no port'}>"
        )

    # -- ways to be one

    @classmethod
    def found(cls, folder: str | None = None, **options: Any) -> Self:
        """A peer that founds a mesh of its own. folder: where its identity is kept; None: a temporary one, which is
        deleted when the peer stops. The recovery file lies in it: move it away. options: of the constructor."""
        return cls._in_folder(folder, lambda where: credentials.found(where, time(), None), options)

    @classmethod
    def join(cls, ticket: str, folder: str | None = None, **options: Any) -> Self:
        """A peer that joins the mesh of this ticket, and has a session with those that the ticket names.

        Raises ConfigError or AdmissionError for a ticket that is none, has expired, or is not of the mesh of `folder`.
        """
        parsed = parse_ticket(ticket)
        peer = cls._in_folder(folder, lambda where: credentials.join(where, parsed, time()), options)
        peer._first = parsed.peers
        return peer

    @classmethod
    def at(cls, folder: str, **options: Any) -> Self:
        """The peer that is kept in this folder. Raises ConfigError if it is a member of no mesh."""
        found = credentials.load(folder, time())
        if found is None:
            raise ConfigError(f"{folder} holds no membership of a mesh", do_next="use Peer.join(ticket, folder)")
        return cls(found, **options)

    @classmethod
    def _in_folder(cls, folder: str | None, make: Callable[[str], Credentials], options: dict[str, Any]) -> Self:
        temporary = None
        if folder is None:
            from tempfile import TemporaryDirectory  # 4 ms, which nodes with a place on disk save

            temporary = TemporaryDirectory(prefix="lattica-peer-")
        peer = cls(make(folder if folder is not None else temporary.name), **options)  # type: ignore[union-attr]
        peer._temporary = temporary
        return peer

    # -- life

    async def start(self) -> Self:
        """Listen, and be there. Raises ConfigError if the address cannot be listened at."""
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        self._context.run(current.set, self)
        me = Hello(
            boot=self.credentials.boot,
            instance=self.rng.randbytes(8),
            name=self.name,
            version=__version__,
            packs=["zstd"],
        )
        self._me = me
        self.sessions = Sessions(
            me,
            self.id,
            self.rng,
            self.steward.objection,
            sign=self.credentials.identity.sign,
            wall_offset=time() - self._loop.time(),
        )
        make = self._transport_of or self._ways
        self._transport = make(_Verbs(self))
        if self._listen is not None:
            try:
                bound = list(await self._transport.listen(self._listen))
                if self._listen_tls is not None and isinstance(self._transport, Ways):
                    bound += await self._transport.listen_tls(self._listen_tls)
            except BaseException:
                self._stop_finding_ways()
                await self._transport.close()
                raise
            self._bound_at = bound
            self._bound = self.listening = reachable(bound)
            self._say_hello_with(addresses=self.listening)
        self.serve(self.steward.service(), offered=False)
        self.gossip = self._gossip_of(self)
        for name in sorted(self._offers):
            self.gossip.offer(name)
        self._is_up = True
        self.steward.start()
        self.gossip.start()
        if self.relays is not None:
            self.relays.start()
        for other, addresses in self._first:
            if other != self.id and addresses:
                self.know(other, addresses)
                self._perform(self.sessions.connect(other, addresses, self._loop.time()))
        self._arm()
        return self

    def _ways(self, owner: Owner) -> Transport:
        steward = self.steward
        made = Ways(owner, steward.contexts, self.credentials, steward.serve_renewal, only=self._transports)
        if made.quic is not None:
            from lattica.mesh.nat_shell.traversal import Traversal
            from lattica.mesh.relay.relays import Relays

            self.traversal = Traversal(self, made.quic, made.tcp, birthday=self._birthday)
            self.relays = Relays(self, made.quic, made.tcp, self.traversal.datagrams, self._relaying)
            self.relays.is_punched = self.traversal.is_punched
        return made

    async def stop(self, reason: str = "it was stopped", *, leaves: bool = True) -> None:
        """End every session, politely, and close every socket. leaves: all members are told that it has left."""
        if not self._is_up:
            return
        self._stopping, self._is_up = True, False
        self.steward.stop()
        if leaves:
            self.gossip.leave()
            self._flush()
        self._perform(self.sessions.stop(reason, self._loop.time()))
        for talk in list(self._talks.values()):
            talk.end(reason)
        self._talks.clear()
        self._stop_finding_ways()
        for timer in (self._timer, self._arming):
            if timer is not None:
                timer.cancel()
        self._timer = self._arming = None
        self._transport.flush()
        await self._transport.close()
        await self.gossip.stop()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _stop_finding_ways(self) -> None:
        """End the timers, channels and sockets of relays and of what traverses NATs."""
        if self.relays is not None:
            self.relays.stop()
        if self.traversal is not None:
            self.traversal.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        self._token = current.set(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._token is not None:
            current.reset(self._token)
            self._token = None
        await self.stop()

    # -- doors

    def serve(self, instance: object, *, offered: bool = True) -> None:
        """Let others call the methods of this service. offered: those who call without a target find it."""
        for found in methods_of(instance):
            if found.name in self._methods:
                raise ConfigError(f"{found.name} is served already", do_next="give the service another name")
            self._methods[found.name] = found
        if offered:
            self._offers.add(name_of(type(instance)))
            if self._is_up:
                self.gossip.offer(name_of(type(instance)))

    async def connect(
        self, peer: PeerId | str, addresses: Sequence[str] = (), *, timeout_s: float | None = None
    ) -> PeerId:
        """Have a session with this peer, and keep it. Raises PeerUnreachableError."""
        target = _peer_id(peer)
        try:
            await self._talk(target, addresses, deadline=self._deadline(timeout_s))
        except TimeoutError as error:
            raise PeerUnreachableError(
                f"peer {peer_text(target)[:8]} did not answer within {timeout_s:g} s", peer=peer_text(target)
            ) from error
        return target

    async def disconnect(self, peer: PeerId | str, reason: str = "it is not needed any more") -> None:
        """End the session with this peer."""
        self._perform(self.sessions.disconnect(_peer_id(peer), reason, self._loop.time()))

    async def call(
        self,
        target: Target,
        method: str,
        *args: Any,
        timeout_s: float | None = None,
        idempotent: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Call a method of another peer, and return what it returned.

        timeout_s: seconds until it is given up, here and there; inside a method the caller's deadline counts as well.
        idempotent: it may run twice, so a call whose session died is made again, at the next provider if there is one.
        Raises what the method raised (LatticaErrors as they are, others as CallFailedError), PeerUnreachableError,
        GetTimeoutError, PermissionDeniedError, SerializationError.
        """
        deadline = self._deadline(timeout_s)
        encoded = values.encode((args, kwargs))
        targets = await self._targets(target, method, deadline)
        for position, peer in enumerate(targets):
            try:
                talk = self._talks.get(peer) or await self._talk(peer, deadline=deadline)
                if talk.conversation.full:
                    await talk.room()
                id = talk.begin(method, encoded, self._left(deadline), 0)
                future = talk.futures[id]
                try:
                    if idempotent and position + 1 < len(targets):
                        await self._doubting(talk, future, peer)
                    return values.decode(await future)
                except (asyncio.CancelledError, PeerUnreachableError):
                    talk.cancel(id)
                    raise
            except PeerUnreachableError as error:
                again = idempotent or not error.may_have_run
                if not again or position + 1 == len(targets):
                    raise
        raise AssertionError("a call has a target")

    async def stream(
        self,
        target: Target,
        method: str,
        *args: Any,
        sends: bool = False,
        receives: bool = True,
        timeout_s: float | None = None,
        **kwargs: Any,
    ) -> Stream:
        """Call a method with a stream: `async with await peer.stream(...) as stream`.

        sends: the method takes a stream of ours. receives: it gives one. The errors are those of `call`.
        """
        deadline = self._deadline(timeout_s)
        encoded = values.encode((args, kwargs))
        peer = (await self._targets(target, method, deadline))[0]
        talk = self._talks.get(peer) or await self._talk(peer, deadline=deadline)
        await talk.room()
        id = talk.begin(method, encoded, self._left(deadline), STREAMS_IN * sends | STREAMS_OUT * receives)
        return Stream(talk, id)

    async def pipe(self, peer: PeerId, method: str, *args: Any, timeout_s: float | None = None) -> Pipe:
        """Call a method declared with `pipe`; our end. timeout_s: for a session to be there.

        Raises PeerUnreachableError, TimeoutError.
        """
        encoded = values.encode((args, {}))
        talk = self._talks.get(peer) or await self._talk(peer, deadline=self._deadline(timeout_s))
        await talk.room()
        return Pipe(talk, talk.begin(method, encoded, None, STREAMS_IN | STREAMS_OUT), FROM_CALLER)

    def publish(self, topic: str, value: Any) -> None:
        """Bring a value to all subscribers of a topic, once each. Raises ConfigError for one that is too long, and
        LatticaError while this peer publishes faster than the mesh may carry."""
        self.gossip.topics.publish(topic, value)

    def subscribe(self, topic: str) -> Subscription:
        """What is published to a topic from now on: `async with peer.subscribe("topic") as messages`."""
        return self.gossip.topics.subscribe(topic)

    async def put_record(self, name: str, value: bytes) -> int:
        """Keep a small value in the DHT under this peer's name, renewed while it runs. How many others keep it."""
        return await self.gossip.directory.put_record(name, value)

    async def get_record(self, writer: PeerId | str, name: str) -> bytes | None:
        """What a peer keeps in the DHT under this name; None if nothing was found."""
        return await self.gossip.directory.get_record(_peer_id(writer), name)

    async def provide(self, what: bytes | str) -> int:
        """Be found as a provider of content (bytes: its id) or of a topic (text). How many others remember it."""
        return await self.gossip.directory.provide(what)

    async def find_providers(self, what: bytes | str) -> dict[PeerId, tuple[str, ...]]:
        """Who provides this content or topic, and at which addresses."""
        return await self.gossip.directory.find_providers(what)

    def ticket(self, roles: Role = MEMBER, *, ttl_s: float = INVITE_S, label: str = "") -> str:
        """A ticket with which others join, for `ttl_s` seconds: a secret. Raises ConfigError if it is no issuer."""
        return self.steward.ticket(roles, ttl_s, label)

    def peers(self) -> list[dict[str, Any]]:
        """All with whom a session is up, as plain data for `lattica peers`."""
        found = []
        for peer, talk in sorted(self._talks.items()):
            hello = self.sessions.hello(peer)
            number = self.sessions.connection(peer)
            transport, path = self._transport.path(number) if number is not None else ("", "")
            rtt_s = self.sessions.rtt_s(peer)
            found.append(
                {
                    "peer_id": peer_text(peer),
                    "name": hello.name if hello else "",
                    "state": "alive" if number is not None else "reconnecting",
                    "addresses": hello.addresses if hello else list(self._addresses.get(peer, ())),
                    "transport": transport,
                    "path": path if not path or path.startswith(RELAY) else f"direct {path}",
                    "method": self.traversal.method_of(peer, transport, path) if self.traversal is not None else "",
                    "rtt_ms": None if rtt_s is None else round(rtt_s * 1e3, 2),
                    "roles": roles_text(talk.roles),
                    "version": hello.version if hello else "",
                }
            )
        return found

    def know(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Remember where a peer can be reached."""
        if addresses and peer != self.id:
            self._addresses[peer] = tuple(addresses)
            if self.traversal is not None:
                self.traversal.found(peer)
            self._perform(self.sessions.found(peer, addresses))

    def advertise(self, source: str, addresses: Sequence[str]) -> None:
        """Tell others that we are at these addresses as well. source: who has found them; what it found before is
        forgotten."""
        if self._advertised.get(source, ()) == tuple(addresses):
            return
        self._advertised[source] = tuple(addresses)
        self._tell_addresses()

    def rebound(self) -> None:
        """This machine has other addresses than when we began to listen."""
        if self.relays is not None:
            self.relays.network_changed()
        self.look_around()

    def look_around(self) -> None:
        """Tell others where we are, if this machine has other addresses than when we looked last: it may have been
        started before its network was there."""
        if self._bound_at and self._bound != (now := reachable(self._bound_at)):
            self._bound = now
            self._tell_addresses()

    @property
    def listens_everywhere(self) -> bool:
        """At all addresses that this machine has, or will have."""
        return any(address.startswith(("0.0.0.0:", "[::]:")) for address in self._bound_at)

    def _tell_addresses(self) -> None:
        self.listening = ranked([*self._bound, *(each for found in self._advertised.values() for each in found)])
        self._say_hello_with(addresses=self.listening)
        self.gossip.moved(self.listening)

    @property
    def port(self) -> int:
        """On which others reach it by TCP and UDP; 0: it only dials."""
        return split_host(self._bound_at[0])[1] if self._bound_at else 0

    def way_of(self, peer: PeerId, plane: int = CONTROL) -> tuple[str, str]:
        """(what it is, as `Transport.path` says; the other end's address) of the connection that carries this plane of
        the session; two empty texts without one."""
        number = self.sessions.connection(peer, plane)
        return self._transport.path(number) if number is not None else ("", "")

    def path_of(self, peer: PeerId) -> str:
        """The other end's address of the connection that carries the session; "" without one."""
        return self.way_of(peer)[1]

    def addresses_of(self, peer: PeerId) -> tuple[str, ...]:
        """Where it can be reached, as far as is known."""
        hello = self.sessions.hello(peer)
        return tuple(dict.fromkeys([*self._addresses.get(peer, ()), *(hello.addresses if hello else ())]))

    # -- for the gossip

    def keep(self, peer: PeerId) -> None:
        """A session with this member is wanted, if it can be had."""
        if peer in self._talks or self._stopping:
            return
        if known := self.addresses_of(peer):
            self._perform(self.sessions.connect(peer, known, self._loop.time()))
            self._arm_soon()
        elif self.listening:
            self.gossip.summon(peer)

    def release(self, peer: PeerId) -> None:
        """The session with this member is not needed, unless somebody calls over it, or is called by way of it."""
        if self.relays is not None and self.relays.holds(peer):
            return
        talk = self._talks.get(peer)
        if talk is not None and talk.idle:
            self._perform(self.sessions.disconnect(peer, "it is not needed", self._loop.time()))

    def lost(self, peer: PeerId, reason: str) -> None:
        """This member is gone: a session that has no connection is over."""
        if self.sessions.session(peer) is not None and self.sessions.connection(peer) is None:
            self._perform(self.sessions.disconnect(peer, reason, self._loop.time()))

    def has_session(self, peer: PeerId) -> bool:
        """Whether there is one."""
        return peer in self._talks

    def send_notice(self, peer: PeerId, protocol: int, body: bytes) -> None:
        """Send a message of another protocol, if there is a session and not too much waits in it."""
        talk = self._talks.get(peer)
        if talk is not None and talk.over is None and talk.conversation.notice(protocol, body):
            self._mark(talk)

    def _noticed(self, talk: Talk, protocol: int, body: bytes) -> None:
        self.gossip.notice(talk.peer, protocol, body)

    # -- for the steward

    def recheck(self) -> None:
        """Who may talk to us has changed."""
        self._perform(self.sessions.recheck(self._loop.time()))

    def reconnect(self) -> None:
        """Our certificates are new: have every session carried by connections that show them."""
        self._perform(self.sessions.reconnect("its certificates were renewed", self._loop.time()))

    def correct_clock(self, correction_s: float) -> None:
        """What to add to the wall clock from now on."""
        self.sessions.correction_s = correction_s
        self.gossip.correct_clock()

    def stop_by_itself(self, reason: str) -> None:
        """It must not go on: end, and let the owner know."""
        if self.stopped_by is None:
            self.stopped_by = reason
            log.error("this node stops: %s", reason)
            stopping = self._loop.create_task(self.stop(reason, leaves=False))  # what has our key and lives goes on
            if self.on_stop is not None:
                told = self.on_stop
                stopping.add_done_callback(lambda _: told(reason))

    # -- sessions

    async def _talk(self, peer: PeerId, addresses: Sequence[str] = (), *, deadline: float | None = None) -> Talk:
        """The talk with this peer, as soon as there is a session."""
        self.know(peer, addresses)
        talk = self._talks.get(peer)
        if talk is not None and not addresses:
            return talk
        if peer == self.id:
            raise ConfigError("a peer does not call itself over the mesh", do_next="call the method directly")
        known = self.addresses_of(peer)
        if talk is None and not known and not self.gossip.summon(peer):
            raise PeerUnreachableError(
                f"no address of peer {peer_text(peer)[:8]} is known, and it has not connected here",
                peer=peer_text(peer),
            )
        if known:
            self._perform(self.sessions.connect(peer, known, self._loop.time()))
        if talk is not None:
            return talk
        waiter: asyncio.Future[Talk] = self._loop.create_future()
        self._waiting.setdefault(peer, []).append(waiter)
        self._arm_soon()
        if not known:
            return await self._summoned(peer, waiter, deadline)
        try:
            async with asyncio.timeout_at(deadline):
                return await waiter
        except TimeoutError as error:
            raise GetTimeoutError(waiting_for=f"a session with peer {peer_text(peer)[:8]}") from error

    async def _summoned(self, peer: PeerId, waiter: asyncio.Future[Talk], deadline: float | None) -> Talk:
        """Wait for a member that cannot be dialed, and was asked to dial us."""
        latest = self._loop.time() + SUMMONED_S
        try:
            async with asyncio.timeout_at(latest if deadline is None else min(deadline, latest)):
                return await waiter
        except TimeoutError as error:
            if deadline is not None and deadline <= latest:
                raise GetTimeoutError(waiting_for=f"a session with peer {peer_text(peer)[:8]}") from error
            raise PeerUnreachableError(
                f"peer {peer_text(peer)[:8]} cannot be dialed, and did not dial when it was asked to",
                peer=peer_text(peer),
            ) from error

    async def _doubting(self, talk: Talk, future: asyncio.Future[Any], peer: PeerId) -> None:
        """Wait for the answer, unless the session falters: then raise, for somebody else may answer."""
        doubt: asyncio.Future[None] = self._loop.create_future()
        talk.doubts.add(doubt)
        try:
            await asyncio.wait((future, doubt), return_when=asyncio.FIRST_COMPLETED)
        finally:
            talk.doubts.discard(doubt)
        if not future.done():
            raise PeerUnreachableError(
                f"peer {peer_text(peer)[:8]} does not answer any more", peer=peer_text(peer), may_have_run=True
            )

    async def _targets(self, target: Target, method: str, deadline: float | None) -> list[PeerId]:
        if target is None:
            try:
                async with asyncio.timeout_at(deadline):
                    found = list(await (self.resolver or self.gossip.providers)(method.partition(".")[0]))
            except TimeoutError as error:
                raise GetTimeoutError(waiting_for=f"word of a peer that serves {method}") from error
        elif isinstance(target, bytes | str):
            return [_peer_id(target)]
        else:
            found = [_peer_id(each) for each in target]
        if not found:
            raise PeerUnreachableError(f"no peer serves {method}")
        return found

    def _deadline(self, timeout_s: float | None) -> float | None:
        mine = None if timeout_s is None else self._loop.time() + timeout_s
        outer = caller.get(None)
        theirs = outer.deadline if outer is not None else None
        return mine if theirs is None else theirs if mine is None else min(mine, theirs)

    def _left(self, deadline: float | None) -> float | None:
        return None if deadline is None else deadline - self._loop.time()

    def _perform(self, effects: Sequence[Effect]) -> None:
        if self._carry_out(effects):
            self._flush_soon()

    def _carry_out(self, effects: Sequence[Effect]) -> bool:
        """Whether something may wait in the transport for a flush."""
        written = False
        for effect in effects:
            kind = type(effect)
            if kind is Delivered:
                self._delivered(effect)  # type: ignore[arg-type]
                continue
            written = True
            if kind is Transmit:
                self._transport.write(effect.connection, effect.frame)  # type: ignore[union-attr]
            else:
                self._rare(effect)
        return written

    def _rare(self, effect: Effect) -> None:
        match effect:
            case Dial():
                self._transport.dial(effect)
            case Hangup(number, _):
                self._transport.hang_up(number)
            case Room(peer, plane):
                talk = self._talks.get(peer)
                if talk is not None:
                    if plane == BULK:
                        self._measure(peer, talk)
                    if talk.conversation.dirty:
                        self._mark(talk)
            case SessionUp(peer, hello):
                self._up(peer, hello)
            case Attached(peer, member, hello, _):
                self._talks[peer].roles = self.steward.met(peer, member, hello)
                self.know(peer, hello.addresses)
            case SessionDown(peer, reason):
                talk = self._talks.pop(peer, None)
                if talk is not None:
                    log.info("the session with %s is over: %s", peer_text(peer)[:8], reason)
                    talk.end(reason)
                    self._dirty.pop(talk, None)
                    self.gossip.disconnected(peer)
                    self.steward.parted(peer)
                    if self.traversal is not None:
                        self.traversal.disconnected(peer)
                    if self.relays is not None:
                        self.relays.disconnected(peer)
            case Unreachable(peer, reason, final):
                self._unreachable(peer, reason, final)
            case Faltering(peer, reason):
                if peer in self._talks:
                    self._talks[peer].falter()
                    for hear in self.on_falter:
                        hear(peer, reason)
                if all(NOBODY_LISTENS in why for why in reason.split("; ")):  # at every address of it
                    self.gossip.refused(peer)
            case ClockSample(peer, offset_s):
                self.steward.clock_sample(peer, offset_s)
            case TwinSeen(_, reason):
                log.error("%s", reason)
            case WeAreTwin(reason):
                self.stop_by_itself(reason)
            case _:
                raise AssertionError(f"{effect!r} is not carried out here")

    def _up(self, peer: PeerId, hello: Hello) -> None:
        packer = Packer(perf_counter) if "zstd" in hello.packs else None
        talk = Talk(
            peer, self.steward.no_roles, Conversation(packer), self._methods, self._mark, self._context, self._noticed
        )
        talk.packer = packer
        self._talks[peer] = talk
        for waiter in self._waiting.pop(peer, ()):
            if not waiter.done():
                waiter.set_result(talk)
        self.gossip.connected(peer)
        if self.traversal is not None:
            self.traversal.connected(peer)

    def _unreachable(self, peer: PeerId, reason: str, final: bool) -> None:
        error = PeerUnreachableError(f"peer {peer_text(peer)[:8]} cannot be reached: {reason}", peer=peer_text(peer))
        for waiter in self._waiting.pop(peer, ()):
            if not waiter.done():
                waiter.set_exception(error)
                waiter.exception()
        if final:
            self.steward.refused_by(peer, reason)
        else:
            self._perform(self.sessions.disconnect(peer, reason, self._loop.time()))

    def _delivered(self, delivered: Delivered) -> None:
        talk = self._talks.get(delivered.peer)
        if talk is None:
            return
        try:
            events = talk.conversation.receive(delivered.plane, delivered.payload, self._loop.time())
            talk.handle(events)
        except RemoteProtocolError as error:
            reason = str(error).partition("\n")[0]
            self._perform(self.sessions.breach(delivered.peer, reason, self._loop.time()))
            return
        if talk.conversation.dirty:
            self._mark(talk)

    def _measure(self, peer: PeerId, talk: Talk) -> None:
        """Tell the packer how quickly the other side takes bulk."""
        session = self.sessions.session(peer)
        if talk.packer is None or session is None:
            return
        total = session.acked_bytes(BULK)
        busy = session.unacked_bytes(BULK) > 0
        talk.packer.acknowledged(total - talk.bulk_acked, busy, self._loop.time())
        talk.bulk_acked = total

    # -- one batch a turn

    def _mark(self, talk: Talk) -> None:
        self._dirty[talk] = None
        if not self._flushing:
            self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def at_once(self, write: Callable[[], None]) -> None:
        """Send what `write` writes before this returns: its caller has gathered what this turn of the loop brings."""
        if self._flushing:  # it comes in this turn
            write()
            return
        self._flushing = True
        try:
            write()
        finally:
            self._flush()

    def _flush(self) -> None:
        self._flushing = False
        now = self._loop.time()
        dirty, self._dirty = self._dirty, {}
        for talk in dirty:
            session = self.sessions.session(talk.peer)
            if session is None or talk.over is not None:
                continue
            try:
                batch = talk.conversation.flush(session.room)
            except Exception:  # a bug of ours: what it took out is lost, so this session is, and no other
                log.exception("what was to be sent to %s", peer_text(talk.peer)[:8])
                self._perform(self.sessions.disconnect(talk.peer, "an internal error on the other side", now))
                continue
            for plane, frame, size in batch:
                for effect in self.sessions.send(talk.peer, plane, frame, size, now):
                    if type(effect) is Transmit:
                        self._transport.write(effect.connection, effect.frame)
                    else:
                        self._rare(effect)
        self._transport.flush()
        if self._arming is None:
            self._arm_soon()

    # -- time

    def _arm_soon(self) -> None:
        if self._arming is None and not self._stopping:
            self._arming = self._loop.call_later(TIMER_SLACK_S, self._arm)

    def _arm(self) -> None:
        self._arming = None
        if self._timer is not None:
            self._timer.cancel()
        due = [self.sessions.next_deadline(), *(talk.conversation.next_deadline() for talk in self._talks.values())]
        soonest = min((at for at in due if at is not None), default=None)
        self._timer = None if soonest is None else self._loop.call_at(soonest, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        self._perform(self.sessions.tick(now))
        for talk in list(self._talks.values()):
            talk.handle(talk.conversation.tick(now))
            if talk.conversation.dirty:
                self._mark(talk)
        self._flush_soon()

    def _say_hello_with(self, **changes: Any) -> None:
        import msgspec

        self._me = msgspec.structs.replace(self._me, **changes)
        self.sessions.me = self._me

    # -- the verbs of a transport's owner

    def verb(self, effects: Sequence[Effect]) -> None:
        """Carry out what a verb of the sessions answered; a verb without effects may have set a deadline too."""
        if self._carry_out(effects):
            self._flush_soon()
        if self._arming is None:
            self._arm_soon()

    def refused(self, address: str, reason: str) -> None:
        """A handshake here came to nothing."""
        log.warning("a connection from %s was refused: %s", address, reason)
        self.refusals.append((time(), address, reason))
        del self.refusals[:-REFUSALS_MAX]


class _Verbs:
    """What a transport says to a peer: the sessions' verbs, with the time."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._now = peer._loop.time

    def dialed(self, attempt: int, number: int, member: Any, rank: int = STREAM_RANK) -> None:
        self._peer.verb(self._peer.sessions.dialed(attempt, number, member, self._now(), rank))

    def dial_failed(self, attempt: int, reason: str, final: bool) -> None:
        self._peer.verb(self._peer.sessions.dial_failed(attempt, reason, self._now(), final=final))

    def accepted(self, number: int, member: Any, rank: int = STREAM_RANK) -> None:
        if rank == STREAM_RANK and self._peer.relays is not None:
            self._peer.relays.reached(self._peer._transport.path(number)[1])
        self._peer.verb(self._peer.sessions.accepted(number, member, self._now(), rank))

    def received(self, number: int, frames: list[Received]) -> None:
        peer = self._peer
        peer.verb(peer.sessions.received(number, frames, self._now()))

    def broken(self, number: int, reason: str) -> None:
        self._peer.verb(self._peer.sessions.broken(number, reason, self._now()))

    def closed(self, number: int, reason: str) -> None:
        self._peer.verb(self._peer.sessions.closed(number, reason, self._now()))

    def refused(self, address: str, reason: str) -> None:
        self._peer.refused(address, reason)

    def better(self, peer: PeerId, plane: int = CONTROL) -> None:
        self._peer.verb(self._peer.sessions.upgrade(peer, plane=plane))


def _peer_id(target: PeerId | str) -> PeerId:
    return parse_peer(target) if isinstance(target, str) else target
