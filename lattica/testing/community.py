"""A whole mesh's communities in a world: what a peer knows of all others, over datagrams and simulated sessions.

A session here is three messages that may be lost: `Open`, `Opened`, `Shut`; what they and all others would weigh on a
wire is added up per peer. Members are told apart by name; their keys and certificates are `authority`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec

from lattica.errors import ConfigError, PermissionDeniedError
from lattica.mesh import membership as m
from lattica.mesh.certificates import Member
from lattica.mesh.community import (
    BootRaised,
    Community,
    Message,
    News,
    NodeInfo,
    Probe,
    RowChanged,
    RowGone,
    RowRefused,
    Rows,
    Send,
    Summon,
)
from lattica.mesh.identity import PeerId
from lattica.mesh.membership import Keep, MemberChanged, Release, State, Try
from lattica.mesh.roles import EVERYTHING, MEMBER, Role
from lattica.mesh.soft_state import Saying
from lattica.mesh.table import reconcile
from lattica.mesh.table.kinds import CERTIFICATE, NODE, Kind
from lattica.mesh.table.replica import Replica
from lattica.mesh.table.rows import BOOT_BITS, Content, Row, read_row, write_row
from lattica.testing.authority import FAKE_CHECKS, FakeAuthority, FakeKey, fake_root
from lattica.testing.host import EPOCH_S, Host
from lattica.testing.messages import Send as Packet
from lattica.testing.world import World

FRAME_BYTES = 21 + 12 + 22 + 52
"""Beside a message: its DATA frame and envelope, the TLS record, TCP/IP with time stamps."""
ACK_BYTES = 13 + 22 + 52 + 52
"""For a message that nothing answers soon: an ACK frame in its record, and TCP's own acknowledgement."""
HANDSHAKE_BYTES = 3400
"""Of a new session, both sides: TLS 1.3 with both chains, and the hellos. A dial that nobody answers costs a packet."""
REOPEN_S = 1.0
OPEN_TRIES = 5  # dials of a peer that does not answer, before longer pauses
PAUSE_S = 2.0  # as `gossip` looks after sessions that should be there
UNWANTED_S = 15.0  # a session that nobody keeps any more


@dataclass(frozen=True, slots=True)
class Open:
    """A peer dials another, as `sessions` does. wanted: it is for keeps, not for one errand."""

    wanted: bool


@dataclass(frozen=True, slots=True)
class Opened:
    """The other side takes the session."""


@dataclass(frozen=True, slots=True)
class Shut:
    """One side ends the session."""


class Town:
    """The mesh that a world's communities are of: who has which key, and what its rows look like at the start."""

    def __init__(self, names: Sequence[str], *, admins: Sequence[str] = ()) -> None:
        self.root: FakeAuthority = fake_root("mesh", EPOCH_S)
        issuer = self.root.issuer("issuer", EPOCH_S)
        self.mesh = bytes(self.root.id)
        self.keys = {name: FakeKey(name) for name in names}
        self.names: dict[PeerId, str] = {key.peer: name for name, key in self.keys.items()}
        self.chains = {
            name: issuer.certify_member(key.public_key, EVERYTHING if name in admins else MEMBER, EPOCH_S)
            for name, key in self.keys.items()
        }
        self.members: dict[PeerId, Member] = {
            key.peer: FAKE_CHECKS.member(self.chains[name], self.root.root, None) for name, key in self.keys.items()
        }

    def peer(self, name: str) -> PeerId:
        return self.keys[name].peer

    def roles(self, name: str) -> Role:
        return self.members[self.peer(name)].roles

    def founding_rows(self, names: Sequence[str], unix_s: float) -> list[Row]:
        """Certificate and node rows of members that have been there for a while."""
        found: list[Row] = []
        boot = int(unix_s - 1000) << BOOT_BITS
        for name in names:
            key = self.keys[name]
            for number, (kind, body) in enumerate(
                ((CERTIFICATE, msgspec.msgpack.encode(self.chains[name])), (NODE, msgspec.msgpack.encode(_info(name)))),
                1,
            ):
                content = Content(
                    kind.number, key.peer, key.peer, boot, number, int(unix_s * 1000) << 16,
                    int(unix_s + kind.ttl_s), False, body,
                )  # fmt: skip
                found.append(write_row(content, key.sign, self.mesh))
        return found


def _info(name: str) -> NodeInfo:
    return NodeInfo(name=name, version="0.1", addresses=["192.0.2.1:7777"], resources={"CPU": 8.0})


class Resident:
    """One peer of it, as a participant of a world."""

    def __init__(self, host: Host, town: Town, *, rows: Sequence[Row] = (), light: bool = False) -> None:
        """rows: what it knows at its first start, when it has been there for a while. light: certificates are taken as
        read, as in a mesh where all have met all, so that a thousand replicas of a thousand rows fit into a test."""
        self.host, self.town, self._light = host, town, light
        name = host.name.partition("#")[0]  # a copy has the key of the original
        self.key = town.keys[name]
        self.bytes_sent = 0
        self.sent: dict[str, int] = {}
        now, unix_s = host.clock.now(), host.clock.unix_s()
        stored = int.from_bytes(host.disk.read("boot") or b"", "big")
        boot = max(int(unix_s) << BOOT_BITS | host.rng.getrandbits(BOOT_BITS), stored + 1)
        host.disk.write("boot", boot.to_bytes(8, "big"))
        replica = Replica(
            self.key.peer,
            self.key.sign,
            town.mesh,
            town.root.root,
            FAKE_CHECKS,
            Random(host.rng.random()),
            boot=boot,
            members=town.members if light else None,
        )
        self.community = Community(
            replica, town.chains[name], _info(name), Random(host.rng.random()), now, unix_s - now
        )
        self._wanted: dict[PeerId, tuple[int, float]] = {}  # tries, when to dial again
        self._theirs: set[PeerId] = set()
        self.linked: dict[PeerId, None] = {}
        self._unwanted: dict[PeerId, float] = {}
        settled = bool(rows) and host.boot == 1
        effects = self.community.load(rows if settled else self._kept(), now)
        self._began = self._carry_out(effects if settled else [*effects, *self.community.announce(now)], now)
        self._start_at: float | None = now

    # -- verbs of its machine

    def write(self, kind: Kind, key: bytes, body: bytes, now: float, **how: Any) -> Sequence[object]:
        """Write a row. `how` comes by name only."""
        return self._carry_out(self.community.write(kind, key, body, now, **how), now)

    def try_to_write(self, kind: Kind, key: bytes, body: bytes, gone: bool, now: float) -> Sequence[object]:
        """Write a row, unless it is another's."""
        try:
            return self._carry_out(self.community.write(kind, key, body, now, gone=gone), now)
        except (PermissionDeniedError, ConfigError):
            return ()

    def say(self, data: bytes, now: float) -> Sequence[object]:
        """What it says of itself each second."""
        self.community.soft.say(data, now)
        return ()

    def leave(self, now: float) -> Sequence[object]:
        return self._carry_out(self.community.leave(now), now)

    def meet(self, other: str, now: float) -> Sequence[object]:
        """Join by a ticket that names this peer."""
        return self._dial(self.town.peer(other), now, wanted=True)

    # -- the world's verbs

    def receive(self, sender: str, message: object, now: float) -> Sequence[object]:
        peer = self.town.peer(sender.partition("#")[0])
        match message:
            case Open(wanted):
                out: list[object] = [self._packet(peer, Opened(), HANDSHAKE_BYTES)]
                if wanted:
                    self._theirs.add(peer)
                return [*out, *self._link(peer, now)]
            case Opened():
                if peer in self._wanted:
                    self._wanted[peer] = 0, float("inf")
                return self._link(peer, now)
            case Shut():
                self._theirs.discard(peer)
                return self._unlink_if_unwanted(peer)
            case _:
                return self._carry_out(self.community.receive(peer, message, now), now)  # type: ignore[arg-type]

    def tick(self, now: float) -> Sequence[object]:
        out: list[object] = []
        if self._start_at is not None:
            out, self._began, self._start_at = list(self._began), [], None
        for peer, (tries, at) in list(self._wanted.items()):
            if at <= now:
                self._wanted[peer] = (tries + 1, now + (REOPEN_S if tries + 1 < OPEN_TRIES else PAUSE_S))
                out += self._dial(peer, now, wanted=True)
        for peer in [peer for peer, at in self._unwanted.items() if at <= now]:
            del self._unwanted[peer]
            out += self._unlink_if_unwanted(peer)
        if self.community.next_deadline() <= now:
            out += self._carry_out(self.community.tick(now), now)
        return out

    def next_deadline(self) -> float | None:
        due = self.community.next_deadline() if self._start_at is None else self._start_at
        for _, at in self._wanted.values():
            if at < due:
                due = at
        for at in self._unwanted.values():
            if at < due:
                due = at
        return due

    def validate(self) -> None:
        self.community.validate()

    # -- sessions

    def _dial(self, peer: PeerId, now: float, *, wanted: bool) -> list[object]:
        if wanted and peer not in self._wanted:
            self._wanted[peer] = 0, now + REOPEN_S
        return [self._packet(peer, Open(wanted), 0)]

    def _link(self, peer: PeerId, now: float) -> list[object]:
        self._unwanted[peer] = now + UNWANTED_S
        if peer in self.linked:
            return []
        self.linked[peer] = None
        return self._carry_out(self.community.connected(peer, now), now)

    def _unlink_if_unwanted(self, peer: PeerId) -> list[object]:
        if peer in self._wanted or peer in self._theirs or peer not in self.linked:
            return []
        self._unlink(peer)
        return [self._packet(peer, Shut(), 0)]

    def _unlink(self, peer: PeerId) -> None:
        self.linked.pop(peer, None)
        self.community.disconnected(peer)

    # -- effects

    def _carry_out(self, effects: Sequence[Any], now: float) -> list[object]:
        out: list[object] = []
        for effect in effects:
            match effect:
                case Send(to, message):
                    out.append(self._packet(to, message, size_of(message)))
                case RowChanged(row, _):
                    self._keep(row)
                    out += self._noticed(row)
                case Keep(peer):
                    if peer in self.linked:
                        self._wanted[peer] = 0, float("inf")
                        out.append(self._packet(peer, Open(True), 0))
                    else:
                        out += self._dial(peer, now, wanted=True)
                case Release(peer):
                    if self._wanted.pop(peer, None) is not None:
                        out.append(self._packet(peer, Shut(), 0))
                        self._unwanted[peer] = now + UNWANTED_S
                case Try(peer):
                    out += self._dial(peer, now, wanted=False)
                case BootRaised(boot):
                    self.host.disk.write("boot", boot.to_bytes(8, "big"))
                case MemberChanged(peer, state, _):
                    if state in (State.DEAD, State.LEFT):
                        self._wanted.pop(peer, None)
                        self._theirs.discard(peer)
                        self._unlink(peer)
                    out.append(effect)
                case RowGone():
                    pass
                case RowRefused():
                    out.append(effect)
                case _:
                    raise AssertionError(f"{effect!r} is not carried out here")
        return out

    def _noticed(self, row: Row) -> list[object]:
        """Events for checkers; a big world has too many rows for an event each."""
        return []

    def _kept(self) -> list[Row]:
        disk = self.host.disk
        return [read_row(disk.read(name) or b"") for name in disk if name.startswith("row/")]

    def _keep(self, row: Row) -> None:
        """On disk; of big worlds only what a restart needs is kept, which is the boot number."""
        if not self._light:
            self.host.disk.write(f"row/{row.place:016x}", row.data)

    def _packet(self, to: PeerId, message: object, size: int) -> Packet:
        total = size + FRAME_BYTES + (0 if isinstance(message, Probe) and message.answer else ACK_BYTES // 2)
        self.bytes_sent += total
        kind = type(message).__name__
        self.sent[kind] = self.sent.get(kind, 0) + total
        return Packet(self.town.names[to], message)


def size_of(message: Message) -> int:
    """Bytes of it, by its codec's shape."""
    match message:
        case Probe(_, _, root, sayings):
            return 8 + len(root) + _size_of_sayings(sayings)
        case Summon():
            return 72
        case News(sayings):
            return 4 + _size_of_sayings(sayings)
        case Rows(rows, _):
            return 4 + sum(len(row.data) + 3 for row in rows)
        case m.Ask() | m.Heard():
            return 36
        case _:
            return len(reconcile.encode(message))


def _size_of_sayings(sayings: Sequence[Saying]) -> int:
    return sum(23 + len(saying.data) for saying in sayings)


def join_all(
    world: World, town: Town, names: Sequence[str], *, light: bool = False, resident: Callable[..., Resident] = Resident
) -> None:
    """All of these are there from the start, and know each other."""
    rows = town.founding_rows(names, EPOCH_S)
    if light:
        rows = [row for row in rows if row.kind == NODE.number]
    for name in names:
        world.add_host(name, lambda host: resident(host=host, town=town, rows=rows, light=light))
