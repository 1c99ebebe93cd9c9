"""A machine that asks what it is behind, and public peers that tell it, in a simulated internet."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from random import Random

from lattica.mesh.identity import PeerId
from lattica.mesh.nat import datagrams
from lattica.mesh.nat.answering import Answering, HaveSent
from lattica.mesh.nat.behaviour import Behaviour
from lattica.mesh.nat.datagrams import Keys
from lattica.mesh.nat.measuring import Measured, Measurement, Witness
from lattica.mesh.nat.routes import Endpoint, OpenSocket, Route, SendOver
from lattica.testing.nats import Nats, Say
from lattica.testing.world import World

OTHER = 1  # the witnesses' second socket
US = PeerId(bytes(32))


class Asker:
    """Behind something."""

    def __init__(self, seed: int) -> None:
        self.measurement = Measurement(Random(f"asker {seed}"), count(1))

    def does(self, verb: str, *args: object) -> list[object]:
        *given, now = args
        return list(getattr(self.measurement, verb)(*given, now))

    def opened(self, socket: int, local: Endpoint, now: float) -> list[object]:
        return list(self.measurement.opened(socket, local, now))

    def received(self, route: Route, data: bytes, now: float) -> list[object]:
        return list(self.measurement.received(route, data, now))

    def tick(self, now: float) -> list[object]:
        return list(self.measurement.tick(now))

    def next_deadline(self) -> float | None:
        return self.measurement.next_deadline()

    def validate(self) -> None:
        self.measurement.validate()


class WitnessNode:
    """Answers one asker; the next witness answers for it when it is asked to."""

    def __init__(self, keys: Keys, other: str) -> None:
        self.answering, self.keys, self.other = Answering(OTHER), keys, other

    def open(self, now: float) -> list[object]:
        return [OpenSocket(OTHER)]

    def opened(self, socket: int, local: Endpoint, now: float) -> list[object]:
        return []

    def received(self, route: Route, data: bytes, now: float) -> list[object]:
        return self._done(self.answering.received(US, self.keys, route, data, now))

    def said(self, sender: str, message: HaveSent, now: float) -> list[object]:
        return self._done(self.answering.send_for(message.data, message.to, now))

    def _done(self, effects: Sequence[SendOver | HaveSent]) -> list[object]:
        return [Say(self.other, effect) if isinstance(effect, HaveSent) else effect for effect in effects]

    def tick(self, now: float) -> list[object]:
        return self._done(self.answering.tick(now))

    def next_deadline(self) -> float | None:
        return self.answering.next_deadline()

    def validate(self) -> None:
        self.answering.validate()


class Measuring:
    """One asker behind `nat`, on host `a1`, and `witnesses` public peers."""

    def __init__(self, seed: int, nat: str, *, loss: float = 0.0, witnesses: int = 3, ipv6: str = "none") -> None:
        self.world = World(seed)
        self.nats = nats = Nats(self.world)
        names = [f"w{number}" for number in range(witnesses)]
        self.names = names
        self.shared = {name: Random(f"{seed} {name}").randbytes(32) for name in names}
        for index, name in enumerate(names):
            nats.public(name, delay_s=0.005 + 0.01 * index, ipv6=ipv6 != "none")
            keys = Keys.derive(self.shared[name], lower=False)
            other = names[(index + 1) % witnesses]
            nats.start(name, lambda keys=keys, other=other: WitnessNode(keys, other))
            self.world.tell(name, "open")
        preset, *rest = nat.split(" over ")
        if rest:
            nats.site("isp", rest[0], hosts=0, loss=loss / 2)
        if preset == "open":
            nats.public("a1", loss=loss)
        else:
            nats.site("a", preset, hosts=2, loss=loss, upstream="isp" if rest else None, ipv6=ipv6)
        nats.start("a1", lambda: Asker(seed))
        self.world.run(0.1)

    def witness(self, name: str) -> Witness:
        host = self.nats.hosts[name]
        return Witness(
            PeerId(name.encode().ljust(32)),
            Keys.derive(self.shared[name], lower=True),
            Endpoint(host.ip, 7411),
            Endpoint(host.ip, host.sockets[OTHER]),
            Endpoint(host.ip6, 7411) if host.ip6 else None,
            len(self.names) > 1,
        )

    def begin(self) -> None:
        witnesses = [self.witness(name) for name in self.names]
        own = [endpoint.host for endpoint in self.nats.locals("a1")]
        self.world.tell("a1", "does", "measure", witnesses, own)

    def measured(self) -> list[Measured]:
        return [event for _, name, event in self.world.events if isinstance(event, Measured)]

    def measure(self) -> Behaviour:
        self.begin()
        self.world.run(self.world.now + 6.0)
        return self.measured()[-1].behaviour


def is_answer(data: bytes) -> bool:
    return data[0] == datagrams.ANSWER
