"""Members with real certificates, and pairs of QUIC engines joined by a lossy wire in memory."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from lattica.mesh.authority import Authority, make_root, new_secret, public_key_of
from lattica.mesh.identity import PeerId, peer_id_of
from lattica.mesh.roles import EVERYTHING, MEMBER, Role
from lattica.mesh.transport.quic_engine import Configurations, Data, Engine, Event, Gone, Up, accept, dial
from lattica.mesh.transport.quic_packets import Retries, initial_of

NOW = 1_800_000_000.0


@dataclass
class Keys:
    """As much of credentials as a handshake needs."""

    secret: bytes
    root: bytes
    chain: list[bytes]

    def private_key_pem(self) -> bytes:
        key = Ed25519PrivateKey.from_private_bytes(self.secret)
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @functools.cached_property
    def peer(self) -> PeerId:
        return peer_id_of(public_key_of(self.secret))


class Mesh:
    """A root and an issuer, and whom it certifies."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now
        self.top = make_root(now)
        secret = new_secret()
        self.issuer = Authority(secret, self.top.root, self.top.certify_issuer(public_key_of(secret), now))

    def member(self, roles: Role = MEMBER, *, at: float | None = None, by: Authority | None = None) -> Keys:
        secret = new_secret()
        chain = (by or self.issuer).certify_member(public_key_of(secret), roles, self.now if at is None else at)
        return Keys(secret, self.top.root, chain)

    def invited(self) -> Keys:
        return self.member(by=self.issuer.invite(EVERYTHING, self.now))


@functools.cache
def the_mesh() -> Mesh:
    return Mesh()


def configurations(keys: Keys, now: float = NOW) -> Configurations:
    return Configurations(keys, lambda: now)


@dataclass
class Side:
    engine: Engine
    heard: list[Event] = field(default_factory=list)

    def of(self, kind: type) -> list[Event]:
        return [event for event in self.heard if isinstance(event, kind)]

    @property
    def up(self) -> bool:
        return bool(self.of(Up))

    @property
    def gone(self) -> Gone | None:
        gone = self.of(Gone)
        return gone[0] if gone else None  # type: ignore[return-value]

    def data(self, stream: int) -> bytes:
        return b"".join(e.data for e in self.heard if isinstance(e, Data) and e.stream == stream)


class Wire:
    """Two engines and what is under way between them, on a clock of its own.

    delay_s: one way. loss: the share of datagrams that never arrive. each: called after every step, with the wire.
    """

    def __init__(
        self,
        client: Engine,
        server: Engine,
        *,
        delay_s: float = 0.01,
        loss: float = 0.0,
        jitter_s: float = 0.0,
        seed: int = 7,
    ) -> None:
        self.client, self.server = Side(client), Side(server)
        self.now, self.delay_s, self.loss, self.jitter_s, self.rng = 0.0, delay_s, loss, jitter_s, Random(seed)
        self._under_way: list[tuple[float, int, Side, bytes]] = []
        self._count = 0
        self.sent: deque[tuple[float, Side, int]] = deque()

    def run(self, until: Callable[[Wire], bool], longest_s: float = 60.0) -> bool:
        """Let time pass until that holds; whether it came to hold."""
        end = self.now + longest_s
        for side in (self.client, self.server):
            self.flush(side)
        while not until(self):
            due = [engine.deadline() for engine in (self.client.engine, self.server.engine)]
            times = [at for at in (*due, self._under_way[0][0] if self._under_way else None) if at is not None]
            if not times or min(times) > end:
                return False
            self.now = max(self.now, min(times))
            while self._under_way and self._under_way[0][0] <= self.now:
                _, _, side, datagram = heappop(self._under_way)
                side.heard += side.engine.receive([datagram], self.now)
            for side in (self.client, self.server):
                at = side.engine.deadline()
                if at is not None and at <= self.now:
                    side.heard += side.engine.tick(self.now)
                self.flush(side)
        return True

    def flush(self, side: Side) -> None:
        other = self.server if side is self.client else self.client
        for datagram in side.engine.datagrams(self.now):
            self.sent.append((self.now, side, len(datagram)))
            if self.rng.random() >= self.loss:
                self._count += 1
                at = self.now + self.delay_s + self.rng.uniform(0, self.jitter_s)
                heappush(self._under_way, (at, self._count, other, datagram))


def wire(client: Configurations, server: Configurations, **options: float) -> Wire:
    """A dialer that has heard a Retry, and one who accepts it."""
    dialing = dial(client, 0.0)
    initial = initial_of(dialing.datagrams(0.0)[0])
    assert initial is not None and initial.token == b""
    dialing.receive([Retries(bytes(32)).answer(initial, b"somewhere", b"a new id", 0.0)], 0.0)
    return Wire(dialing, accept(server, initial.destination, b"a new id"), **options)  # type: ignore[arg-type]


def connected(**options: float) -> Wire:
    """A pair that is up."""
    mesh = the_mesh()
    found = wire(configurations(mesh.member()), configurations(mesh.member()), **options)
    assert found.run(lambda w: w.client.up and w.server.up), (found.client.heard, found.server.heard)
    return found
