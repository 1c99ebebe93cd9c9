"""Servers and clients of a DHT find each other and what they provide, though links lose much and a third dies at once.

Look-ups find the closest living peer, in few hops, and again within two minutes after the deaths. What living peers
provide is found again after they have renewed it, even if all who kept it are dead; what the dead provided expires.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import median

import msgspec

from lattica.mesh.dht.events import Effect, LookupFinished, ProvidersFound
from lattica.mesh.dht.kademlia import Kademlia
from lattica.mesh.dht.keys import KEY_BYTES, Key, distance, topic_key
from lattica.mesh.dht.messages import Contact, Found, Message
from lattica.mesh.dht.messages import Send as Said
from lattica.mesh.dht.records import PROVIDER
from lattica.mesh.identity import PeerId
from lattica.testing.authority import FAKE_CHECKS, FakeKey
from lattica.testing.host import EPOCH_S, Host
from lattica.testing.links import Link
from lattica.testing.world import Send, World

MESH = b"m" * 32
SERVER, LIAR, CLIENT = "s", "l", "c"  # how names begin; a liar serves, and names made-up peers when it is asked
JOIN_S = 30.0  # in which all come, one by one, each knowing one that came before
SETTLE_S = 60.0
TTL_S = 600.0  # of records: short, so that a world sees them renewed
LOOK_S = 30.0  # in which the look-ups of a round begin
REPAIR_S = 90.0  # after the deaths; with LOOK_S, two minutes
RENEWED_S = TTL_S / 3 + 20  # by then every record was stored once more
HOPS_MAX = 5  # at the median
STEPS_PER_PEER_MAX = 40_000


class DhtPeer:
    """One peer: the core, and the little that brings its messages to participants. Addresses are names of those."""

    def __init__(self, name: str, host: Host, met: str, ids: dict[str, PeerId]) -> None:
        key = FakeKey(name)
        self.core = Kademlia(
            key.public_key,
            host.rng,
            sign=key.sign,
            verify=FAKE_CHECKS.signed,
            mesh=MESH,
            boot=host.boot,
            wall_offset=EPOCH_S,
            ttl_s=TTL_S,
        )
        self._ids = ids
        self._names: dict[PeerId, str] = {}
        self._name, self._serves, self._met = name, name[0] in (SERVER, LIAR), met
        self._liar = host.rng if name[0] == LIAR else None
        self.validate, self.next_deadline = self.core.validate, self.core.next_deadline

    def join(self, now: float) -> list[object]:
        """Come, knowing one other."""
        effects = self.core.saw(self._ids[self._met], (self._met,), True, now) if self._met else []
        return self._carry(effects + self.core.reachable((self._name,), self._serves, now))

    def lookup(self, target: Key, now: float) -> list[object]:
        return self._carry(self.core.lookup(target, now))

    def provide(self, key: Key, now: float) -> list[object]:
        return self._carry(self.core.provide(key, now))

    def find_providers(self, key: Key, now: float) -> list[object]:
        return self._carry(self.core.find_providers(key, now))

    def receive(self, sender: str, message: Message, now: float) -> list[object]:
        self._names[self._ids[sender]] = sender  # there is a session by which it came
        return self._carry(self.core.receive(self._ids[sender], message, now))

    def tick(self, now: float) -> list[object]:
        return self._carry(self.core.tick(now))

    def _carry(self, effects: Sequence[Effect]) -> list[object]:
        return [self._sent(effect) if isinstance(effect, Said) else effect for effect in effects]

    def _sent(self, said: Said) -> Send:
        message = said.message
        if self._liar is not None and isinstance(message, Found):
            made_up = [Contact(PeerId(self._liar.randbytes(32)), ("nobody",)) for _ in message.contacts]
            message = msgspec.structs.replace(message, contacts=tuple(made_up))
        return Send(self._names.get(said.peer) or said.addresses[0], message)


@dataclass
class Round:
    """Some look-ups, and how they ended."""

    lookups: int = 0
    right: int = 0
    hops: list[int] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        hops, took, asked = (median(figures or [0]) for figures in (self.hops, self.took_s, self.asked))
        return f"{self.right} of {self.lookups} right, at the median {hops:g} hops, {asked:g} asked, {took:.1f} s"

    def judge(self) -> None:
        """Assert what the paper promises of look-ups: that they end at the right peer, in few hops."""
        assert self.lookups - self.right <= max(1, self.lookups // 100), f"look-ups end at the wrong peer: {self}"
        assert median(self.hops) <= HOPS_MAX, f"look-ups take too many hops: {self}"


@dataclass
class Played:
    """A world at its end, and what was measured in it."""

    world: World
    before: Round
    at_once: Round  # as soon as a third is dead
    after: Round  # within two minutes


def play(seed: int, long: bool = False) -> World:
    """46 peers; with `long` a thousand. Judged before a third of them dies and two minutes after."""
    if long:
        played = measured(seed, servers=900, clients=100, lookups=500, topics=20, loss=0.15, expiry=True)
    else:
        played = measured(seed)
    for each in (played.before, played.after):
        each.judge()
    return played.world


def measured(
    seed: int,
    *,
    servers: int = 40,
    clients: int = 6,
    liars: int = 0,
    lookups: int = 30,
    topics: int = 3,
    loss: float = 0.1,
    expiry: bool = False,
) -> Played:
    """Play it. lookups: of each round. expiry: go on until what the dead provided has expired. Asserts what must hold
    but for the rounds, which `Round.judge` does."""
    peers = servers + liars + clients
    world = World(seed, link=Link(delay_s=(0.02, 0.2), loss=loss), steps_max=STEPS_PER_PEER_MAX * peers)
    rng = Random(seed)
    ids = _begin(world, rng, servers, liars, clients)
    world.run(JOIN_S + SETTLE_S)

    keys = [topic_key(f"topic {number}") for number in range(topics)]
    providers = {key: rng.sample(sorted(ids), 3) for key in keys}
    for key, names in providers.items():
        for name in names:
            world.tell(name, "provide", key)
    before = _look(world, rng, ids, lookups)
    _all_are_found(world, rng, ids, providers)

    # A third of the servers dies at once, among them all who keep the first topic.
    keepers = [name for name in ids if world.core(name).core.store.of(PROVIDER, keys[0], world.now)]
    doomed = [name for name in keepers if name not in providers[keys[0]]]
    others = [name for name in _servers(world, ids) if name not in doomed and name not in providers[keys[0]]]
    doomed += rng.sample(others, max(0, servers // 3 - len(doomed)))
    for name in doomed:
        world.crash(name, power=True)
    died = world.now
    at_once = _look(world, rng, ids, lookups // 2)
    world.run(max(world.now, died + REPAIR_S))
    after = _look(world, rng, ids, lookups)
    world.run(died + RENEWED_S)
    _all_are_found(world, rng, ids, providers)
    if expiry:
        world.run(died + TTL_S)
        _all_are_found(world, rng, ids, providers, dead=False)
    world.tally |= {"lookups": before.lookups + after.lookups, "right": before.right + after.right}
    return Played(world, before, at_once, after)


def _begin(world: World, rng: Random, servers: int, liars: int, clients: int) -> dict[str, PeerId]:
    """All come, the first server first, the others in any order; each knows one honest server that came before."""
    kinds = [SERVER] * (servers - 1) + [LIAR] * liars + [CLIENT] * clients
    rng.shuffle(kinds)
    names = [f"{kind}{number}" for number, kind in enumerate([SERVER, *kinds])]
    ids = {name: FakeKey(name).peer for name in names}

    def come(name: str, met: str) -> None:
        world.add_host(name, lambda host: DhtPeer(name, host, met, ids))
        world.tell(name, "join")

    came: list[str] = []
    for number, name in enumerate(names):
        world.after(JOIN_S * number / len(names), come, name, rng.choice(came) if came else "")
        if name[0] == SERVER:
            came.append(name)
    return ids


def _servers(world: World, ids: dict[str, PeerId]) -> list[str]:
    return [name for name in ids if name[0] != CLIENT and world.is_alive(name)]


def _living(world: World, ids: dict[str, PeerId]) -> list[str]:
    return [name for name in ids if world.is_alive(name)]


def _look(world: World, rng: Random, ids: dict[str, PeerId], lookups: int) -> Round:
    """So many look-ups of random keys by random peers. Nobody dies meanwhile."""
    living, servers = _living(world, ids), _servers(world, ids)
    began: dict[tuple[str, Key], float] = {}
    seen = len(world.events)

    def look(name: str, target: Key) -> None:
        began[name, target] = world.now
        world.tell(name, "lookup", target)

    for _ in range(lookups):
        world.after(rng.uniform(0, LOOK_S), look, rng.choice(living), Key(rng.randbytes(KEY_BYTES)))
    found = Round(lookups)

    def ended() -> bool:
        nonlocal seen
        for when, name, event in world.events[seen:]:
            if isinstance(event, LookupFinished):
                target = event.target
                closest = min((ids[other] for other in servers if other != name), key=lambda p: distance(p, target))
                found.right += bool(event.closest) and event.closest[0].peer == closest
                found.hops.append(event.hops)
                found.asked.append(event.asked)
                found.took_s.append(when - began[name, target])
        seen = len(world.events)
        return len(found.hops) == lookups

    world.run(world.now + LOOK_S)
    world.run_until(ended, within_s=60, missing=lambda: f"{lookups - len(found.hops)} of {lookups} look-ups")
    return found


def _all_are_found(
    world: World, rng: Random, ids: dict[str, PeerId], providers: dict[Key, list[str]], *, dead: bool = True
) -> None:
    """Whoever looks for a topic finds those who provide it and live. dead: and perhaps others who did."""
    seen = len(world.events)
    seekers = {key: rng.choice(_living(world, ids)) for key in providers}
    for key, name in seekers.items():
        world.tell(name, "find_providers", key)
    found: dict[Key, set[PeerId]] = {}

    def ended() -> bool:
        nonlocal seen
        for _, _, event in world.events[seen:]:
            if isinstance(event, ProvidersFound) and event.finished:
                found[event.key] = {record.writer for record in event.records}
        seen = len(world.events)
        return len(found) == len(providers)

    world.run_until(ended, within_s=60, missing=lambda: f"{len(providers) - len(found)} searches for providers")
    for key, names in providers.items():
        want = {ids[name] for name in names if world.is_alive(name)}
        assert found[key] >= want, f"{len(want - found[key])} of {len(want)} living providers are not found"
        assert found[key] <= {ids[name] for name in names} if dead else found[key] == want, "the dead are found"
