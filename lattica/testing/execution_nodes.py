"""The nodes of a universe: the real `Node`, `FarDesk`, `MeshDesk` and `Peer`, over what is a model here.

    land = Land(universe, ["n0", "n1"])
    land.start("n0")
    land.crash("n0")         land.crash("n0", power=True)         land.start("n0")       # with a new boot

A worker is forked by making a `process` of the land (`execution_processes`); its death is told as a zygote tells it.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, cast

from lattica.codec import far, frames
from lattica.codec import messages as m
from lattica.errors import RemoteProtocolError
from lattica.mesh.certificates import Member
from lattica.mesh.credentials import Credentials
from lattica.mesh.identity import PeerId
from lattica.mesh.peer import Peer
from lattica.mesh.roles import EVERYTHING
from lattica.mesh.trust import Trust
from lattica.node.clients import Client
from lattica.node.contacts import Contacts
from lattica.node.dial_back import DialBack
from lattica.node.drain import Drain
from lattica.node.far_desk import FarDesk
from lattica.node.mesh_desk import PYTHON, MeshDesk, Wish
from lattica.node.placer import Placer
from lattica.node.server import Node, Settings
from lattica.node.wires import Wire
from lattica.node.workers import Death, Process
from lattica.objectstore.arena import Arena
from lattica.scheduler.resources import ResourceSet
from lattica.testing.authority import FAKE_CHECKS, FakeKey, fake_root
from lattica.testing.execution import FIRST_FD, End, NodeLoop, Unit, Universe
from lattica.testing.execution_mesh import SimTransport, Wires
from lattica.testing.host import EPOCH_S

ARENA_BYTES = 1 << 30  # processes take spans of 8 MiB each, and here nobody waits for a full store
FORK_S = (0.003, 0.02)
DEATH_TOLD_S = (0.001, 0.05)  # from a process's end to the word of its zygote
CPUS = 4


class NodeUnit(Unit):
    """One run of one node."""

    def __init__(self, universe: Universe, name: str) -> None:
        super().__init__(universe, name)
        self.loop = NodeLoop(self)
        self.node: SimNode | None = None
        self.transport: SimTransport | None = None
        self.processes: dict[Unit, None] = {}

    def end(self) -> None:
        for process in list(self.processes):
            process.end()
        super().end()
        if self.transport is not None:
            self.transport.vanish()

    def stall(self, for_s: float) -> None:
        super().stall(for_s)
        for process in self.processes:
            process.stall(for_s)


class Land:
    """All machines, and the mesh that they are members of."""

    def __init__(
        self, universe: Universe, names: Sequence[str], fork: Callable[[NodeUnit, int, End, Any], Unit]
    ) -> None:
        """fork: makes a worker process: (node, client number, its end of the node's connection, its page)."""
        self.universe, self.names, self.fork = universe, list(names), fork
        self.wires = Wires(universe)
        self.root = fake_root("mesh", EPOCH_S)
        self.issuer = self.root.issuer("issuer", EPOCH_S)
        self.keys = {name: FakeKey(name) for name in names}
        self.names_of: dict[PeerId, str] = {key.peer: name for name, key in self.keys.items()}
        self.units: dict[str, NodeUnit] = {}
        self.boots = dict.fromkeys(names, 0)
        self.cpus = dict.fromkeys(names, CPUS)

    def node(self, name: str) -> SimNode | None:
        """The node of this machine, if it is up."""
        unit = self.units.get(name)
        return unit.node if unit is not None and unit.alive else None

    @property
    def living(self) -> list[str]:
        """Names of the machines that live."""
        return [name for name in self.names if name in self.units and self.units[name].alive]

    def start(self, name: str) -> NodeUnit:
        """It boots."""
        self.wires.dark.pop(name, None)
        self.boots[name] += 1
        unit = self.units[name] = NodeUnit(self.universe, name)
        self.universe.note(name, f"starts, boot {self.boots[name]}")
        unit.loop.begin(self._begin(unit))
        return unit

    def crash(self, name: str, *, power: bool = False) -> None:
        """All its processes are gone; without power, the others hear nothing of it."""
        unit = self.units[name]
        if unit.alive:
            self.universe.note(name, "loses power" if power else "crashes")
            if power:
                self.wires.dark[name] = None
            unit.end()

    def credentials(self, name: str) -> Credentials:
        """As of a member that is known for long."""
        key = self.keys[name]
        chain = self.issuer.certify_member(key.public_key, EVERYTHING, EPOCH_S)
        member: Member = FAKE_CHECKS.member(chain, self.root.root, None)
        trust = Trust(self.root.root, FAKE_CHECKS)
        folder = os.path.join(self.universe.folder, name)
        os.makedirs(os.path.join(folder, "mesh"), exist_ok=True)
        return Credentials(folder, cast(Any, key), self.boots[name], self.root.root, chain, member, trust)

    async def _begin(self, unit: NodeUnit) -> None:
        name, universe = unit.name, self.universe
        credentials = self.credentials(name)
        rng = Random(f"{universe.seed} {name} {self.boots[name]}")
        known: Member = credentials.member

        def transport(owner: Any) -> SimTransport:
            unit.transport = self.wires.transport(owner, unit, known)
            return unit.transport

        peer = await Peer(credentials, listen=f"{name}:1", name=name, rng=rng, transport=transport).start()
        contacts = Contacts("", bytes(known.mesh))
        contacts.add([(key.peer, [f"{other}:1"]) for other, key in self.keys.items() if other != name])
        mesh = MeshDesk(peer, contacts, Wish(name=name), "returned", self._ended(name))
        peer.serve(DialBack(peer), offered=False)
        peer.gossip.describe(labels={}, python=[PYTHON])
        peer.gossip.watch_members(mesh._member_changed)
        peer.on_stop = mesh.stopped_by_itself
        mesh._keep = lambda: None  # type: ignore[method-assign]
        mesh._look()
        settings = Settings(
            node=peer.id, session_dir=credentials.folder, resources=ResourceSet.of({"CPU": self.cpus[name]}),
            embedded=False, paths="[]", data_dir=credentials.folder, memory_threshold=2.0,
        )  # fmt: skip
        node = SimNode(unit, self, settings)
        node.mesh = mesh
        node.far = FarDesk(node, mesh, Placer(mesh, node.resources, node.book, unit.loop, rng))
        node.far.objects._map = cast(Any, node.memory_bytes)
        node.drain = Drain(node, mesh, node.far)
        node.far.answers(far.Going, node.drain.going)
        node.far.answers(far.MayGo, node.drain.may_go)
        unit.loop.on_stop = lambda: unit.loop.begin(self._stop(unit, peer))
        mesh.offer(settings.resources.to_dict(), node.load)
        unit.node = node

    async def _stop(self, unit: NodeUnit, peer: Peer) -> None:
        """As of a node whose loop has stopped."""
        await peer.stop("its node ends")
        self.universe.note(unit.name, "has left")
        unit.end()

    def _ended(self, name: str) -> Callable[[Any], None]:
        def ended(error: Any) -> None:
            self.universe.troubles.append(f"{name} must not go on: {error}")

        return ended


class SimNode(Node):
    """The node, with workers that are models."""

    def __init__(self, unit: NodeUnit, land: Land, settings: Settings) -> None:
        self.unit, self.land = unit, land
        self.memory_bytes = SimArena(unit.universe.null)
        super().__init__(unit.loop, settings, cast(Arena, self.memory_bytes), cast(Any, None), lambda: 1 << 40)
        self.wires = cast(Any, SimWires(unit))
        self.workers = cast(Any, SimWorkers(self))
        self.memory = cast(Any, _NoMemoryDesk())

    def connect_driver(self, end: End, hello: m.Hello) -> Client:
        """A driver has connected at the other end of this pipe."""
        admitted: list[Client] = []

        def received(messages: list[Any]) -> None:
            self.received(admitted[0], messages)

        def ended(reason: str) -> None:
            self.client_gone(admitted[0], reason or "it ended")

        wire = SimWire(self.unit, end, m.FromClient, received, ended, name="a driver")
        client = self._admit(cast(Wire, wire), hello)
        assert client is not None, "a driver was refused"
        admitted.append(client)
        self.unit.loop.wake()
        return client


class _NoMemoryDesk:
    def watch(self) -> None: ...
    def close(self) -> None: ...


class SimArena:
    """A machine's shared memory: bytes, for its node and its processes alike."""

    def __init__(self, fd: int) -> None:
        """fd: what stands for it on its way to a process."""
        self.size_bytes, self.fd = ARENA_BYTES, fd
        self.parts: dict[int, bytes] = {}  # offset -> what was written there last
        self._starts: list[int] = []  # these offsets, in order

    def back(self, offset: int, size: int) -> None: ...
    def punch(self, offset: int, size: int) -> None: ...
    def unmap(self, offset: int, size: int) -> None: ...
    def close(self) -> None: ...
    def open_span(self, offset: int, size: int) -> None: ...
    def close_span(self, offset: int) -> None: ...

    def write(self, offset: int, parts: Sequence[Any]) -> None:
        self._write(offset, b"".join(bytes(part) for part in parts))

    def copy_in(self, offset: int, parts: Sequence[Any]) -> None:
        """One part at a time, as `Objects.store` does."""
        for part in parts:
            self._write(offset, bytes(part))

    def _write(self, offset: int, data: bytes) -> None:
        """In place of what began there."""
        first = bisect_left(self._starts, offset)
        last = bisect_left(self._starts, offset + max(len(data), 1), lo=first)
        for start in self._starts[first:last]:
            del self.parts[start]
        self._starts[first:last] = [offset]
        self.parts[offset] = data

    def copy_out(self, offset: int, size: int) -> bytes:
        return bytes(self.read(offset, size))

    def lend(self, offset: int, size: int, back: Callable[[], object]) -> memoryview:
        data = self.read(offset, size)
        back()
        return data

    def read(self, offset: int, size: int) -> memoryview:
        if offset not in self.parts:  # in the middle of something
            start = self._starts[bisect_right(self._starts, offset) - 1]
            return memoryview(self.parts[start])[offset - start : offset - start + size]
        data = self.parts[offset]
        if len(data) < size:
            joined, at = bytearray(data), offset + -(-len(data) // 64) * 64
            while len(joined) < size:
                joined.extend(bytes(at - offset - len(joined)))
                joined.extend(self.parts[at])
                at = offset + -(-len(joined) // 64) * 64
            data = bytes(joined)
        return memoryview(data)[:size]

    def private_at(self, address: int, nbytes: int) -> None:
        return None


class SimWires:
    """The pipes of a node."""

    def __init__(self, unit: NodeUnit) -> None:
        self.unit, self.loop = unit, unit.loop

    def pair(self) -> tuple[End, int]:
        """Two connected ends: ours, and the descriptor of the one that a process gets."""
        ours, theirs = self.unit.universe.pipe()
        self.unit.loop.watch(ours)
        return ours, self.unit.universe.handing(theirs)

    def pairs(self) -> tuple[int, int]:
        """Two connected descriptors, for two processes."""
        one, other = self.unit.universe.pipe()
        return self.unit.universe.handing(one), self.unit.universe.handing(other)


class SimWire:
    """The node's end of a conversation with a process: see `wires.Wire`."""

    def __init__(
        self,
        unit: NodeUnit,
        end: End,
        types: Any,
        received: Callable[[list[Any]], None],
        ended: Callable[[str], None],
        *,
        name: str,
    ) -> None:
        self.name, self.full, self.drained, self.last_word = name, False, None, None
        self._unit, self._end, self._received, self._ended = unit, end, received, ended
        self._decoder = frames.Decoder(types)
        self._unsent: list[Any] = []
        self._over = self._last = self._flushing = False
        self.stream = self
        unit.loop.watch(end)
        unit.loop.add_reader(end.fd, self._readable)

    def peer_credentials(self) -> tuple[int, int, int]:
        raise OSError("it has no pid")

    def send(self, message: Any, fds: Sequence[int] = ()) -> None:
        if self._over:
            for fd in fds:
                self._unit.universe.let_go(fd)
            return
        if fds:
            self.flush()
            ours = [fd for fd in fds if fd >= FIRST_FD]
            for fd in fds:
                if fd not in ours:
                    os.close(fd)
            self._end.put(bytes(frames.encode([message])), ours)
            return
        self._unsent.append(message)
        if not self._flushing:
            self._flushing = True
            self._unit.loop.call_soon(self.flush)

    def flush(self) -> None:
        self._flushing = False
        if self._unsent:
            unsent, self._unsent = self._unsent, []
            self._end.put(bytes(frames.encode(unsent)))
        if self._last and not self._over:
            self.close()
            self._ended("")

    def drain(self) -> None:
        while not self._over and self._end.inbox:
            self._read_some()

    def finish(self) -> None:
        if not self._over:
            self.flush()
            self._end.shut()

    def end(self) -> None:
        self._last = True
        self._unit.loop.call_soon(self.flush)

    def close(self) -> None:
        if not self._over:
            self.flush()
            self._over = True
            self._end.close()

    def close_for(self, reason: str) -> None:
        if self._over:
            return
        if reason:
            self._unit.universe.troubles.append(f"{self.name} of {self._unit.name} is dropped: {reason}")
        self.close()
        self._ended(reason)

    def _readable(self) -> None:
        if self._end.inbox:
            self._read_some()
        elif self._end.over:
            self.close_for("")

    def _read_some(self) -> None:
        try:
            for data, _ in self._end.read():
                messages = self._decoder.feed(data)
                if messages:
                    self._received(messages)
                if self._over:
                    return
        except RemoteProtocolError as error:
            self.close_for(str(error))


class SimPage:
    """What a dead worker leaves: see `local.page`."""

    def __init__(self) -> None:
        self.client = self.started = self.count = 0
        self.items = b""

    def post_mortem(self, client: int) -> tuple[int, int, bytes]:
        return (self.started, self.count, self.items) if client == self.client else (0, 0, b"")

    def ran(self) -> bytes:
        return b""

    def close(self) -> None: ...


class SimWorkers:
    """The worker processes of one node: see `workers.Workers`."""

    def __init__(self, node: SimNode) -> None:
        self.node, self.processes = node, cast("dict[int, Any]", {})
        self.zygotes = self
        self.units: dict[int, Unit] = {}
        self._pids = 0

    # -- as zygotes

    def preload(self, *_: Any) -> None: ...
    def hider_of(self, _: str) -> str:
        return ""

    def protection(self) -> dict[str, Any]:
        return {}

    def close(self, then: Callable[[], object]) -> None:
        then()

    # -- as workers

    def room(self) -> bool:
        return True

    def fork(self, client: int, job: int, python: str, sys_path: list[str], *_: Any, **__: Any) -> SimWire:
        unit, universe = self.node.unit, self.node.unit.universe
        ours, theirs = universe.pipe()

        def received(messages: list[Any]) -> None:
            self.node._worker_said(client, messages)

        def ended(broken: str) -> None:
            if broken:
                self.kill(client, f"it broke the protocol: {broken}")
            self._cut_off(process)

        wire = SimWire(unit, ours, m.FromClient, received, ended, name=f"worker {client}")
        page = SimPage()
        process = self.processes[client] = Process(client, job, cast(Any, wire), cast(Any, page), {})
        born_at = universe.now + universe.rng.uniform(*FORK_S)
        universe.at(born_at, unit, self._forked, process, theirs, page)
        return wire

    def _forked(self, process: Process, theirs: End, page: SimPage) -> None:
        self._pids += 1
        process.pid = self._pids
        unit = self.node.land.fork(self.node.unit, process.client, theirs, page)
        theirs.belongs(unit)
        self.units[process.client] = unit
        self.node.unit.processes[unit] = None
        if process.doomed:
            unit.end()
        self.node._worker_started(process.client)
        self.node.unit.loop.wake()

    def kill(self, client: int, reason: str = "", *, out_of_memory: bool = False, number: int = 9) -> None:
        process = self.processes.get(client)
        if process is None:
            return
        if reason and not process.reason:
            process.reason, process.out_of_memory = reason, out_of_memory
        process.doomed = True
        unit = self.units.get(client)
        if unit is not None:
            unit.end()

    def let_go(self, client: int, patience_s: float) -> None:
        process = self.processes.get(client)
        if process is not None:
            process.wire.finish()
            self.node.loop.call_later(patience_s, self.kill, client)

    def _cut_off(self, process: Process) -> None:
        if process.ended:
            return
        process.ended = True
        process.wire.drain()
        process.wire.close()
        universe = self.node.unit.universe
        told_s = universe.rng.uniform(*DEATH_TOLD_S)
        self.node.loop.call_later(told_s, self._bury, process)

    def _bury(self, process: Process) -> None:
        unit = self.units.pop(process.client, None)
        if unit is not None:
            unit.end()  # one that closed its connection and lives on
            self.node.unit.processes.pop(unit, None)
        if self.processes.pop(process.client, None) is not None:
            self.node._worker_died(process, Death(process.reason or "exit code 1", "", process.out_of_memory))
