"""Carries a peer's community over its sessions: notices in and out, sessions kept, the table on disk. Topics and the
DHT ride on it (`topics`, `directory`).

It decides nothing: what is to be said, to whom, and who lives is the community's business (`community`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from lattica._version import __version__
from lattica.errors import LatticaError, RemoteProtocolError
from lattica.mesh import notices
from lattica.mesh.alarm import Alarm
from lattica.mesh.community import (
    BootRaised,
    Community,
    Effect,
    Keep,
    MemberChanged,
    NodeInfo,
    Release,
    RowChanged,
    RowGone,
    RowRefused,
    Rows,
    Send,
    Try,
)
from lattica.mesh.directory import Directory
from lattica.mesh.identity import PEER_ID_BYTES, PeerId, short_peer
from lattica.mesh.membership import State
from lattica.mesh.table.boots import next_writer_boot
from lattica.mesh.table.journal import Journal
from lattica.mesh.table.kinds import NODE, SERVICE, STATEMENT, Kind
from lattica.mesh.table.replica import WRONG_SIGNATURE, Replica
from lattica.mesh.table.rows import BOOT_BITS, Row
from lattica.mesh.topics import Topics

if TYPE_CHECKING:
    from lattica.mesh.peer import Peer

log = logging.getLogger(__name__)
KEEP_AGAIN_S = 2.0  # between looks at sessions that should be there
WRITE_S = 1.0  # rows of others are on disk about so much later

Watcher = Callable[[Row | None, Row | None], None]


class Gossip:
    """See the module. One per peer."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(self._tick)
        self._keeper: asyncio.TimerHandle | None = None
        self._writer: asyncio.TimerHandle | None = None
        self._unwritten: dict[int, Row] = {}
        self._writing: asyncio.Future[None] | None = None
        self._kept: set[PeerId] = set()
        self._watchers: dict[int, list[Watcher]] = {}
        self._changed: list[Callable[[MemberChanged], None]] = []
        self._hearers: list[Callable[[list[bytes]], None]] = []
        self._listeners: dict[int, Callable[[PeerId, bytes], None]] = {}
        self._tasks: set[asyncio.Task[int]] = set()
        self._refusals: set[tuple[PeerId, str]] = set()
        credentials = peer.credentials
        self._journal = Journal(os.path.join(credentials.folder, "mesh"), bytes(credentials.member.mesh))
        rows = list(self._journal.rows())
        stored = max((row.content.boot for row in rows if row.writer == peer.id), default=0)
        boot = next_writer_boot(stored, credentials.boot, peer.rng.getrandbits(BOOT_BITS))
        trust = credentials.trust
        replica = Replica(
            peer.id, credentials.identity.sign, bytes(credentials.member.mesh), credentials.root, trust.checks,
            Random(peer.rng.random()), boot=boot, revoked=trust.is_revoked, statement_holds=trust.statement_holds,
        )  # fmt: skip
        now = self._loop.time()
        info = NodeInfo(peer.name, __version__, list(peer.listening))
        self.community = Community(
            replica, credentials.chain, info, Random(peer.rng.random()), now, peer.steward.unix_s() - now
        )
        self._loaded = rows
        self.topics = Topics(peer, replica, trust.checks)
        self.directory = Directory(peer, replica.mesh, boot, trust.checks, self.community.wall_offset)
        self._services: set[str] = set()

    def __repr__(self) -> str:
        return f"<Gossip: {self.community!r}>"

    # -- life

    def start(self) -> None:
        """Take up the table from disk, and say that this node is here."""
        now = self._loop.time()
        rows, self._loaded = self._loaded, []
        self._carry_out(self.community.load(rows, now))
        self._unwritten.clear()
        for data in self._peer.credentials.trust.statements():
            self._carry_out(self.community.add_statement(data, now))
        self._carry_out(self.community.announce(now))
        self.directory.reachable(self._peer.listening)
        for name in sorted(self._services):
            self._write_service(name)
        self._look()

    def leave(self) -> None:
        """Say that this node goes."""
        self._carry_out(self.community.leave(self._loop.time()))

    async def stop(self) -> None:
        """Write down what is known."""
        self._alarm.cancel()
        for timer in (self._keeper, self._writer):
            if timer is not None:
                timer.cancel()
        self._keeper = self._writer = None
        for task in list(self._tasks):
            task.cancel()
        self.topics.stop()
        self.directory.stop()
        if self._writing is not None:
            await asyncio.wait([self._writing])
        rows, self._unwritten = list(self._unwritten.values()), {}
        await self._loop.run_in_executor(None, self._write_down, rows, None)
        await self._loop.run_in_executor(None, self._journal.close)

    # -- doors

    def watch(self, kind: Kind, watcher: Watcher) -> Callable[[], None]:
        """Hear of each change of a row of this kind: (the row now, the row before); None where there is
        none. What ends it."""
        watchers = self._watchers.setdefault(kind.number, [])
        watchers.append(watcher)
        return lambda: watchers.remove(watcher)

    def watch_members(self, watcher: Callable[[MemberChanged], None]) -> Callable[[], None]:
        """Hear of each member that comes, is suspected, dies, leaves or is forgotten. What ends it."""
        self._changed.append(watcher)
        return lambda: self._changed.remove(watcher)

    def watch_soft(self, hearer: Callable[[list[bytes]], None]) -> Callable[[], None]:
        """Hear of whose soft state is new, by the beginnings of ids, as of `SoftState.heard`. What ends it."""
        self._hearers.append(hearer)
        return lambda: self._hearers.remove(hearer)

    def listen(self, protocol: int, listener: Callable[[PeerId, bytes], None]) -> None:
        """Hear the notices of a protocol that a room above speaks; the listener may raise RemoteProtocolError."""
        self._listeners[protocol] = listener

    def take(self, peer: PeerId, row: Row) -> None:
        """Take in a row that a peer has sent by another way. Raises RemoteProtocolError if it is a forgery."""
        self._carry_out(self.community.receive(peer, Rows((row,), True), self._loop.time()))

    def write(self, kind: Kind, key: bytes, body: bytes, **how: Any) -> None:
        """Write a row and tell everybody; see `Replica.write` for `how` and for errors."""
        self._carry_out(self.community.write(kind, key, body, self._loop.time(), **how))

    def summon(self, peer: PeerId) -> bool:
        """Ask a member that cannot be dialed to dial us. Whether it may come to that."""
        living = self.community.membership.state(peer) in (State.ALIVE, State.SUSPECT)
        if living:
            self._carry_out(self.community.summon(peer, self._loop.time()))
        return living

    def offer(self, service: str) -> None:
        """This peer serves it: those who call a method without a target find it here."""
        self._services.add(service)
        if self._keeper is not None:
            self._write_service(service)

    def withdraw(self, service: str) -> None:
        """This peer serves it no more, nor is said to since an earlier life: a tombstone goes round. The DHT forgets
        it within an hour."""
        self._services.discard(service)
        if self.is_offered(service):
            self.write(SERVICE, bytes(self._peer.id) + service.encode(), b"", gone=True)
        self.directory.withdraw(f"service {service}")

    def is_offered(self, service: str) -> bool:
        """Whether the table says that this peer serves it."""
        return self.community.replica.get(SERVICE, bytes(self._peer.id) + service.encode()) is not None

    async def providers(self, service: str) -> list[PeerId]:
        """Living members that serve it, in no order: those whom the table names, else those whom the DHT finds."""
        found = self.known_providers(service)
        if not found:
            others = await self.directory.find_providers(f"service {service}")
            found = [peer for peer in others if peer != self._peer.id]
        self._peer.rng.shuffle(found)
        return found

    def known_providers(self, service: str) -> list[PeerId]:
        """Living members that serve it, as the table says."""
        living = set(self.community.membership.living)
        end = service.encode()
        return [
            row.writer
            for row in self.community.replica.rows(SERVICE)
            if row.key[PEER_ID_BYTES:] == end and row.writer in living and row.writer != self._peer.id
        ]

    def _write_service(self, name: str) -> None:
        self.write(SERVICE, bytes(self._peer.id) + name.encode(), b"")
        task = self._loop.create_task(self.directory.provide(f"service {name}"))
        self._tasks.add(task)
        task.add_done_callback(self._provided)

    def _provided(self, task: asyncio.Task[int]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.info("a service is not in the DHT: %s", str(error).partition("\n")[0] or type(error).__name__)

    def describe(self, **changes: Any) -> None:
        """Say this of ourselves in the node row."""
        import msgspec

        info = msgspec.structs.replace(self.community.info, **changes)
        if info != self.community.info:
            self._carry_out(self.community.describe(info, self._loop.time()))

    def moved(self, addresses: Sequence[str]) -> None:
        """Others reach this node at these addresses from now on."""
        self.describe(addresses=list(addresses))
        self.directory.reachable(addresses, ephemeral=self.community.info.ephemeral)

    def say(self, data: bytes) -> None:
        """Soft state: what this node says of itself until it says something else."""
        self.community.soft.say(data, self._loop.time())

    def refusals(self) -> list[tuple[PeerId, str]]:
        """Who passed on rows that are not merged, and why not; the first hundred."""
        return sorted(self._refusals)

    # -- what the peer tells

    def connected(self, peer: PeerId) -> None:
        """There is a session."""
        self.directory.connected(peer)
        self._carry_out(self.community.connected(peer, self._loop.time()))
        self.topics.connected(peer)

    def disconnected(self, peer: PeerId) -> None:
        """There is none any more."""
        self.community.disconnected(peer)
        self.topics.disconnected(peer)

    def refused(self, peer: PeerId) -> None:
        """Its machine answers, and nobody listens there."""
        self._carry_out(self.community.refused(peer, self._loop.time()))

    def notice(self, peer: PeerId, protocol: int, body: bytes) -> None:
        """A message of one of the mesh's protocols; of one that is not known, nothing. Raises RemoteProtocolError."""
        if protocol == notices.PUBSUB:
            self.topics.notice(peer, body)
            return
        if protocol == notices.DHT:
            self.directory.notice(peer, body)
            return
        if protocol in self._listeners:
            self._listeners[protocol](peer, body)
            return
        if protocol not in (notices.COMMUNITY, notices.COMPARISON):
            return
        message = notices.decode(protocol, body)
        self._carry_out(self.community.receive(peer, message, self._loop.time()))
        if heard := self.community.soft.heard():
            for hearer in list(self._hearers):
                hearer(heard)

    def statements(self, statements: Sequence[bytes]) -> None:
        """An admin has said something, and `trust` has taken it in."""
        for data in statements:
            self._carry_out(self.community.add_statement(data, self._loop.time()))
        self._carry_out(self.community.trust_changed(self._loop.time()))

    def certified(self, chain: Sequence[bytes]) -> None:
        """Our membership is a new one."""
        self._carry_out(self.community.renew_certificate(chain, self._loop.time()))

    def correct_clock(self) -> None:
        """The wall clock is another one."""
        self.community.wall_offset = self._peer.steward.unix_s() - self._loop.time()
        self.directory.correct_clock(self.community.wall_offset)

    # -- effects

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        """Raises RemoteProtocolError in the end if one is a forgery; what came beside it counts all the same."""
        forged = ""
        for effect in effects:
            match effect:
                case Send(to, message):
                    self._peer.send_notice(to, *notices.encode(message))
                case RowChanged(row, before):
                    self._row_changed(row, before)
                case RowGone(row):
                    for watcher in list(self._watchers.get(row.kind, ())):
                        watcher(None, row)
                case Keep(peer):
                    self._kept.add(peer)
                    self._peer.keep(peer)
                case Release(peer):
                    self._kept.discard(peer)
                    self._peer.release(peer)
                case Try(peer):
                    self._peer.keep(peer)
                case MemberChanged():
                    self._member_changed(effect)
                case BootRaised(boot):
                    log.warning("another copy of this node has written to the table; ours counts from boot %d", boot)
                case RowRefused(sender, row, reason):
                    if reason == WRONG_SIGNATURE:  # nobody honest has merged it, so nobody honest passes it on
                        forged = f"it passed on a row that {short_peer(row.writer)} did not sign"
                    self._row_refused(sender, row, reason)
        self._alarm.set(self.community.next_deadline())
        if forged:
            raise RemoteProtocolError(forged)

    def _row_changed(self, row: Row, before: Row | None) -> None:
        if row is not before:
            self._unwritten[row.place] = row
            if self._writer is None and self._writing is None:
                self._writer = self._loop.call_later(WRITE_S, self._write)
        if row.kind == NODE.number and (info := self.community.node(row.writer)) is not None:
            self._peer.know(row.writer, info.addresses)
            if row.writer != self._peer.id and not info.left:
                self.directory.saw(row.writer, info.addresses, ephemeral=info.ephemeral)
        elif row.kind == STATEMENT.number:
            self._peer.steward.heard_statement(row.body)
        for watcher in list(self._watchers.get(row.kind, ())):
            watcher(row, before)

    def _member_changed(self, change: MemberChanged) -> None:
        info = self.community.node(change.peer)
        name = f"{short_peer(change.peer)} ({info.name})" if info is not None else short_peer(change.peer)
        level = logging.WARNING if change.state is State.DEAD else logging.INFO
        log.log(level, "member %s is %s", name, change.state.value if change.state else "none any more")
        if change.state in (State.DEAD, State.LEFT) and change.peer != self._peer.id:
            self._kept.discard(change.peer)
            self._peer.lost(change.peer, f"it is {change.state.value}, as others say too")
            self.directory.gone(change.peer)
        elif change.before in (State.DEAD, State.LEFT) and info is not None:
            self.directory.saw(change.peer, info.addresses, ephemeral=info.ephemeral)
        for watcher in list(self._changed):
            watcher(change)

    def _row_refused(self, sender: PeerId, row: Row, reason: str) -> None:
        if (sender, reason) not in self._refusals and len(self._refusals) < 100:
            self._refusals.add((sender, reason))
            log.warning("%s passed on %r, which is not merged: %s", short_peer(sender), row, reason)

    # -- sessions

    def _look(self) -> None:
        """See that sessions are wanted with those that should have one: a wish ends when nobody answers."""
        self._keeper = self._loop.call_later(KEEP_AGAIN_S, self._look)
        self.correct_clock()  # somebody may have set it, or the machine was asleep
        for peer in sorted(self._kept):  # not in that of hashes: a simulated world goes the same way in every process
            self._peer.keep(peer)

    # -- disk

    def _write(self) -> None:
        self._writer = None
        rows, self._unwritten = list(self._unwritten.values()), {}
        everything = list(self.community.replica.all()) if self._journal.wants_compaction else None
        self._writing = asyncio.ensure_future(self._loop.run_in_executor(None, self._write_down, rows, everything))
        self._writing.add_done_callback(self._written)

    def _written(self, _: object) -> None:
        self._writing = None
        if self._unwritten and self._writer is None and self._keeper is not None:
            self._writer = self._loop.call_later(WRITE_S, self._write)

    def _write_down(self, rows: list[Row], everything: list[Row] | None) -> None:
        try:
            if everything is not None:
                self._journal.compact(everything)
            else:
                self._journal.append(rows, sync=False)
        except (OSError, LatticaError) as error:
            log.warning("the table cannot be written to disk: %s", error)

    # -- time

    def _tick(self) -> None:
        self._carry_out(self.community.tick(self._loop.time()))
