"""Nodes of a mesh behind NATs, as far as ways between them go: everything of `lattica.mesh.nat` in one participant.

    lab = NatLab(world)
    lab.nats.site("a", "port-restricted") ...       then, for each host that takes part
    lab.add("a1"); lab.begin()                      two relays, which are witnesses too, are there from the start
    lab.talk("a1", "b1")                            both have a relayed session, and want to be direct

The session between two nodes and the relays are the simulated internet's (`nats`); who leads is who comes first in the
alphabet. Data is one packet in `every_s`, which the other side answers, as QUIC would.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from random import Random

from lattica.mesh.identity import PeerId
from lattica.mesh.nat import attempts, datagrams
from lattica.mesh.nat.answering import KINDS, Answering, HaveSent
from lattica.mesh.nat.attempts import Introduction, Situation, Tell
from lattica.mesh.nat.candidates import gather
from lattica.mesh.nat.datagrams import PROBE, Keys
from lattica.mesh.nat.measuring import Measured, Measurement, Witness
from lattica.mesh.nat.methods import Method
from lattica.mesh.nat.path import PathForgotten, PathProven, SeenAs, Switched
from lattica.mesh.nat.paths import PathTable
from lattica.mesh.nat.punching import Puncher
from lattica.mesh.nat.rounds import Budget
from lattica.mesh.nat.routes import MAIN, CloseSocket, Direct, Endpoint, OpenSocket, Route, SendOver, ViaRelay
from lattica.testing.nats import PORT, Nats, Say
from lattica.testing.world import World

RELAYS = ("relay0", "relay1")
OTHER = 1  # the witnesses' second socket
FIRST_FRESH = 2
DATA, ACK = b"\x41", b"\x42"


def peer_of(name: str) -> PeerId:
    """The id of the node of this name."""
    return PeerId(name.encode().ljust(32, b"\0"))


_Core = Measurement | Answering | PathTable | Puncher


def _due(core: _Core) -> float:
    due = core.next_deadline()
    return float("inf") if due is None else due


class NatLab:
    """See the module. birthday: whether nodes may use that method."""

    def __init__(self, world: World, *, birthday: bool = True, relay_s: Sequence[float] = (0.01, 0.025)) -> None:
        self.world, self.nats, self.birthday = world, Nats(world), birthday
        for name, delay_s in zip(RELAYS, relay_s):
            self.nats.public(name, delay_s=delay_s)
            self.add(name)
            self.nats.relay(name, peer_of(name))
        self.channels: dict[frozenset[str], list[ViaRelay]] = {}

    def add(self, name: str) -> None:
        """A node on this host."""
        self.nats.start(name, lambda: NatNode(self, name))

    def node(self, name: str) -> NatNode:
        node: NatNode = self.world.core(name)
        return node

    def begin(self, names: Iterable[str] = ()) -> None:
        """Open the relays' second sockets, then let all others measure what they are behind."""
        for name in RELAYS:
            self.world.tell(name, "open_other")
        self.world.run(self.world.now)
        for name in names or [name for name in self.nats.hosts if self.world.has(name) and name not in RELAYS]:
            self.world.tell(name, "measure")

    def talk(self, one: str, other: str, every_s: float = 0.1) -> None:
        """Both have a session, with a channel of each relay, and talk from now on."""
        ends = frozenset((one, other))
        if ends not in self.channels:
            self.channels[ends] = [self.nats.channel(peer_of(relay), one, other) for relay in RELAYS]
        for name, peer in ((one, other), (other, one)):
            self.world.tell(name, "meet", peer, every_s)

    def map_port(self, name: str) -> None:
        """This host's gateway maps a port to it, if it can (NAT-PMP)."""
        site = self.nats.hosts[name].site
        mapped = site.gateway.map_port("udp", self.nats.local(name)) if site else None
        node = self.node(name)
        node.mapped, node.measurement.mapped = (mapped,) if mapped else (), mapped is not None

    def keys(self, name: str, peer: str) -> Keys:
        """Of this pair, as `name` has them."""
        shared = Random(f"keys {self.world.seed} {min(name, peer)} {max(name, peer)}").randbytes(32)
        return Keys.derive(shared, lower=name < peer)

    def witness(self, name: str, relay: str) -> Witness:
        host, keys = self.nats.hosts[relay], self.keys(name, relay)
        other, six = Endpoint(host.ip, host.sockets[OTHER]), Endpoint(host.ip6, PORT) if host.ip6 else None
        return Witness(peer_of(relay), keys, Endpoint(host.ip, PORT), other, six)

    def is_direct(self, one: str, other: str) -> bool:
        """Whether both send to each other without a relay, or have a TCP connection."""
        sides = ((one, other), (other, one))
        if any(peer in self.node(name).tcp for name, peer in sides):
            return True
        return all(isinstance(self.node(name).tables[peer].current, Direct) for name, peer in sides)

    def events(self, kind: type, *names: str) -> list[tuple[float, str, object]]:
        return [each for each in self.world.events if isinstance(each[2], kind) and (not names or each[1] in names)]


class NatNode:
    """A participant: the shell around the cores, as `mesh/transport` and `mesh/peer` have it for real."""

    def __init__(self, lab: NatLab, name: str) -> None:
        self.lab, self.name = lab, name
        self._rng = Random(f"nat node {lab.world.seed} {name}")
        self._sockets = count(FIRST_FRESH)
        self.answering = Answering(OTHER if name in RELAYS else None)
        self.measurement = Measurement(self._rng, self._sockets)
        self.budget = Budget()
        self.tables: dict[str, PathTable] = {}
        self.punchers: dict[str, Puncher] = {}
        self.tcp: set[str] = set()  # peers to which there is a TCP connection
        self.got: dict[str, float] = {}  # when something came from a peer, last
        self.longest: dict[str, float] = {}  # gap, by peer
        self._owners: dict[bytes, str] = {}  # key id -> peer
        self._every_s: dict[str, float] = {}
        self._send_at: dict[str, float] = {}
        self._outer = ""
        self._dues: dict[str, float] = {}  # by peer, when one of its cores is to be ticked
        self._touched: dict[str, None] = {}  # peers whose cores were called since
        self._own_due = float("inf")  # when measurement or answering is to be ticked
        self._own_touched = False  # one of these two was called since
        self._observed: tuple[Endpoint, ...] = ()
        self.mapped: tuple[Endpoint, ...] = ()

    def __repr__(self) -> str:
        return f"<NatNode {self.name}: {self.measurement.behaviour.words}, {len(self.tables)} peers>"

    # ---- what it is told ----------------------------------------------------------------------------------------

    def open_other(self, now: float) -> list[object]:
        return [OpenSocket(OTHER)]

    def measure(self, now: float) -> list[object]:
        witnesses = [self.lab.witness(self.name, relay) for relay in RELAYS]
        own = [endpoint.host for endpoint in self.lab.nats.locals(self.name)]
        return self._own(self.measurement.measure(witnesses, own, now), "", now)

    def meet(self, peer: str, every_s: float, now: float) -> list[object]:
        if peer in self.tables:
            return []
        keys = self.lab.keys(self.name, peer)
        self._owners[keys.receiving.id] = peer
        table = self.tables[peer] = PathTable(keys, self._rng)
        lower = self.name < peer
        self.punchers[peer] = Puncher(keys, self._rng, self._sockets, self.budget, table.uses, lower=lower)
        self._situate(peer)
        self._every_s[peer], self._send_at[peer] = every_s, now + every_s
        effects: list[object] = []
        for channel in self.lab.channels[frozenset((self.name, peer))]:
            effects += self._done(table.add(channel, now), peer, now)
        return effects + self._done(self.punchers[peer].punch(now), peer, now)

    def punch(self, peer: str, methods: tuple[Method, ...] | None, now: float) -> list[object]:
        return self._done(self.punchers[peer].punch(now, methods), peer, now)

    def network_changed(self, now: float) -> list[object]:
        """This machine has another address."""
        effects = self._own(self.measurement.network_changed(now), "", now)
        for peer, table in self.tables.items():
            effects += self._done(table.network_changed(now), peer, now)
        return effects

    # ---- what comes in ------------------------------------------------------------------------------------------

    def received(self, route: Route, data: bytes, now: float) -> list[object]:
        if data[:1] in (DATA, ACK):
            return self._heard(route, data, now)
        who = datagrams.key_id(data)
        if who == self.measurement.hairpin_id:
            return self._own(self.measurement.received(route, data, now), "", now)
        peer = self._owners.get(who) or self._witness_of(who)
        if not peer:
            return []
        if datagrams.kind_of(data) not in KINDS:
            table = self.tables.get(peer)
            return self._done(table.received(route, data, now), peer, now) if table else []
        if data[0] == PROBE:
            keys = self.lab.keys(self.name, peer)
            return self._own(self.answering.received(peer_of(peer), keys, route, data, now), peer, now)
        effects = self._own(self.measurement.received(route, data, now), "", now)
        for other, puncher in self.punchers.items():
            effects += self._done(puncher.received(route, data, now), other, now)
        return effects

    def said(self, sender: str, message: object, now: float) -> list[object]:
        if isinstance(message, HaveSent):
            return self._own(self.answering.send_for(message.data, message.to, now), sender, now)
        assert isinstance(message, attempts.Message)
        puncher = self.punchers.get(sender)
        return self._done(puncher.said(message, now), sender, now) if puncher else []

    def opened(self, socket: int, local: Endpoint, now: float) -> list[object]:
        if socket == OTHER:
            return []
        if self.measurement.awaits(socket):
            return self._own(self.measurement.opened(socket, local, now), "", now)
        for peer, puncher in self.punchers.items():
            if puncher.awaits(socket):
                return self._done(puncher.opened(socket, local, now), peer, now)
        return [CloseSocket(socket)]

    def connected(self, attempt: int, remote: Endpoint, now: float) -> list[object]:
        return self._tcp("connected", attempt, remote, now)

    def accepted(self, port: int, remote: Endpoint, now: float) -> list[object]:
        return self._tcp("accepted", port, remote, now)

    def refused(self, attempt: int, now: float) -> list[object]:
        return self._tcp("refused", attempt, now)

    def tick(self, now: float) -> list[object]:
        effects: list[object] = []
        for peer, at in self._send_at.items():
            if at <= now:
                self._send_at[peer] = now + self._every_s[peer]
                effects += self._data(peer, DATA, now)
        self._look_at_touched()
        if self._own_due <= now:
            effects += self._own(self.measurement.tick(now), "", now)
            effects += self._own(self.answering.tick(now), "", now)
            self._look_at_touched()
        for peer in [peer for peer, due in self._dues.items() if due <= now]:
            effects += self._done(self.tables[peer].tick(now), peer, now)
            effects += self._done(self.punchers[peer].tick(now), peer, now)
        return effects

    def next_deadline(self) -> float | None:
        self._look_at_touched()
        due = min([self._own_due, *self._dues.values(), *self._send_at.values()])
        return None if due == float("inf") else due

    def validate(self) -> None:
        if self._own_touched:
            self.measurement.validate()
            self.answering.validate()
        for peer in self._touched:
            self.tables[peer].validate()
            self.punchers[peer].validate()

    def _look_at_touched(self) -> None:
        """When those whose cores were called are due now."""
        for peer in self._touched:
            self._dues[peer] = min(_due(self.tables[peer]), _due(self.punchers[peer]))
        self._touched.clear()
        if self._own_touched:
            self._own_due, self._own_touched = min(_due(self.measurement), _due(self.answering)), False

    # ---- inside -------------------------------------------------------------------------------------------------

    def _witness_of(self, who: bytes) -> str:
        """Whose witness we are, or who is ours: keys of those with whom there is no table."""
        for other in self.lab.nats.hosts:
            if other != self.name and self.lab.keys(self.name, other).receiving.id == who:
                self._owners[who] = other
                return other
        return ""

    def _heard(self, route: Route, data: bytes, now: float) -> list[object]:
        peer = data[1:].decode()
        if peer not in self.tables:
            return []
        if peer in self.got:
            self.longest[peer] = max(self.longest.get(peer, 0.0), now - self.got[peer])
        self.got[peer] = now
        effects: list[object] = list(self.tables[peer].heard(route, now))
        if effects:
            effects = self._done(effects, peer, now)
        return effects + (self._data(peer, ACK, now) if data[:1] == DATA else [])

    def _data(self, peer: str, kind: bytes, now: float) -> list[object]:
        table = self.tables[peer]
        if table.current is None:
            return []
        if table.sent(now):
            self._touched[peer] = None  # for other packets no new timer is set: one that comes too early asks again
        return [SendOver(table.current, kind + self.name.encode())]

    def _tcp(self, verb: str, *args: object) -> list[object]:
        effects: list[object] = []
        *given, now = args
        for peer, puncher in self.punchers.items():
            made = getattr(puncher, verb)(*given, now)
            if any(isinstance(effect, attempts.BecameDirect) for effect in made):
                self.tcp.add(peer)
            effects += self._done(made, peer, float(str(now)))
        return effects

    def _situate(self, peer: str) -> None:
        if self.measurement.behaviour.udp is None:
            return  # nothing is known yet
        local = self.lab.nats.locals(self.name)
        candidates = gather(local, self._observed, self.mapped)
        tcp = self.lab.nats.tcp_seen(self.name, RELAYS[0])
        introduction = Introduction(self.measurement.behaviour, candidates, tcp, self.lab.birthday)
        witnesses = tuple(self.lab.witness(self.name, relay) for relay in RELAYS)
        self.punchers[peer].situation = Situation(introduction, witnesses, PORT)

    def _measured(self, measured: Measured, now: float) -> list[object]:
        self._observed = measured.observed
        effects: list[object] = []
        for peer, puncher in self.punchers.items():
            self._situate(peer)
            self._touched[peer] = None
            if measured.behaviour.lifetime_s:
                self.tables[peer].keep_alive(measured.behaviour.lifetime_s)
            if not isinstance(self.tables[peer].current, Direct) and peer not in self.tcp:
                effects += self._done(puncher.punch(now), peer, now)
        return effects

    def _own(self, effects: Sequence[object], peer: str, now: float) -> list[object]:
        """As `_done`, of measurement and answering."""
        self._own_touched = True
        return self._done(effects, peer, now)

    def _done(self, effects: Sequence[object], peer: str, now: float) -> list[object]:
        """What the shell does with the cores' effects; those that the world carries out or records are left."""
        left: list[object] = []
        if peer in self.tables:
            self._touched[peer] = None
        for effect in effects:
            match effect:
                case Tell(message):
                    left.append(Say(peer, message))
                case HaveSent():
                    left.append(Say(RELAYS[1 - RELAYS.index(self.name)], effect))
                case PathForgotten(Direct(_, socket)) if socket >= FIRST_FRESH:
                    left += self._forgotten(peer, socket)
                case PathProven(route):
                    left += [effect, *self._done(self.punchers[peer].proven(route, now), peer, now)]
                case Switched(ViaRelay(), Direct()):
                    left += [effect, *self._done(self.punchers[peer].punch(now), peer, now)]
                case SeenAs(Direct(_, socket), endpoint):
                    left.append(effect)
                    if socket == MAIN and self._moved(endpoint):
                        left += self._own(self.measurement.network_changed(now), "", now)
                case Measured():
                    left += [effect, *self._measured(effect, now)]
                case _:
                    left.append(effect)
        return left

    def _forgotten(self, peer: str, socket: int) -> list[object]:
        return [] if self.tables[peer].uses(socket) else [CloseSocket(socket)]

    def _moved(self, endpoint: Endpoint) -> bool:
        """Whether others see another address of ours than before."""
        known = {each.host for each in self._observed}
        near = {each.host for each in self.lab.nats.locals(self.name)}
        if not known or endpoint.host in known | near or endpoint.host == self._outer:
            return False
        self._outer = endpoint.host
        return True
