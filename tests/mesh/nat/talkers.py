"""Two peers that talk over path tables in a simulated internet, and what they notice."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from lattica.mesh.identity import PeerId
from lattica.mesh.nat import datagrams
from lattica.mesh.nat.datagrams import Keys
from lattica.mesh.nat.paths import PathTable
from lattica.mesh.nat.routes import Endpoint, Route, SendOver
from lattica.testing.nats import Nats
from lattica.testing.world import World

RELAYS = {name: PeerId(bytes([number]) * 32) for number, name in enumerate(("relay", "spare"), 1)}
DATA = b"\x40data"


class Talker:
    """Sends a packet every `every_s` over the current path, if there is one; the other side answers each."""

    def __init__(self, keys: Keys, seed: object) -> None:
        self.table = PathTable(keys, Random(f"talker {seed}"))
        self.every_s = 0.0
        self.got: list[float] = []  # when packets of the other side came
        self.used: list[Route] = []  # by which ways
        self._send_at = float("inf")

    def talk(self, every_s: float, now: float) -> list[object]:
        self.every_s, self._send_at = every_s, now
        return self.tick(now)

    def table_does(self, verb: str, *args: object) -> list[object]:
        *given, now = args
        return list(getattr(self.table, verb)(*given, now))

    def received(self, route: Route, data: bytes, now: float) -> list[object]:
        if not datagrams.is_quic(data):
            return list(self.table.received(route, data, now))
        self.got.append(now)
        self.used.append(route)
        effects: list[object] = list(self.table.heard(route, now))
        return effects + (self._data(now, b"\x40ack") if data == DATA else [])

    def tick(self, now: float) -> list[object]:
        effects: list[object] = []
        if now >= self._send_at:
            self._send_at = now + self.every_s
            effects += self._data(now, DATA)
        return [*self.table.tick(now), *effects]

    def next_deadline(self) -> float | None:
        due = self.table.next_deadline()
        return min(self._send_at, due) if due is not None else self._send_at

    def validate(self) -> None:
        self.table.validate()

    def _data(self, now: float, data: bytes) -> list[object]:
        if self.table.current is None:
            return []
        self.table.sent(now)
        return [SendOver(self.table.current, data)]


class Relay:
    """A host that only has to live."""

    def tick(self, now: float) -> list[object]:
        return []

    def next_deadline(self) -> float | None:
        return None

    def validate(self) -> None:
        pass

    def received(self, route: Route, data: bytes, now: float) -> list[object]:
        return []


class Pair:
    """`a1` and `b1` behind two NATs, two relays, and a direct path that the NATs let through (both full cone)."""

    def __init__(self, seed: int, a: str = "full-cone", b: str = "full-cone", wan_s: float = 0.02, loss: float = 0.0):
        self.world = World(seed)
        self.nats = nats = Nats(self.world)
        for name in RELAYS:
            nats.public(name, delay_s=0.01 if name == "relay" else 0.03)
            nats.start(name, Relay)
            nats.relay(name, RELAYS[name])
        nats.site("a", a, wan_s=wan_s, loss=loss)
        nats.site("b", b, wan_s=wan_s, loss=loss)
        shared = Random(seed).randbytes(32)
        for name, lower in (("a1", True), ("b1", False)):
            nats.start(name, lambda lower=lower: Talker(Keys.derive(shared, lower=lower), (seed, lower)))
        self.channels = {name: nats.channel(RELAYS[name], "a1", "b1") for name in RELAYS}

    def relayed(self, *relays: str) -> None:
        for relay in relays or RELAYS:
            for name in ("a1", "b1"):
                self.world.tell(name, "table_does", "add", self.channels[relay])

    def outer(self, site: str) -> Endpoint:
        """Of its host's main socket; these gateways keep the port."""
        return Endpoint(self.nats.sites[site].gateway.outer, 7411)

    def talk(self, every_s: float = 0.05) -> None:
        for name in ("a1", "b1"):
            self.world.tell(name, "talk", every_s)

    def table(self, name: str) -> PathTable:
        return self.world.core(name).table

    def events(self, kind: type, since: float = 0.0) -> list[tuple[float, str, object]]:
        return [event for event in self.world.events if isinstance(event[2], kind) and event[0] >= since]

    def gap_s(self, since: float) -> float:
        """The longest time in which one of the two heard nothing."""
        longest = 0.0
        for name in ("a1", "b1"):
            times = [since, *(at for at in self.world.core(name).got if at > since), self.world.now]
            longest = max(longest, *(later - sooner for sooner, later in pairwise(times)))
        return longest
