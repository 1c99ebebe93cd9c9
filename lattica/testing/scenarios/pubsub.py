"""Twenty-four peers publish and subscribe over links that lose up to 30 %, through partitions, crashes and a liar.

On the way: no process is given a publication twice, nor what was not published, nor what it is not subscribed to; what
peers keep stays within bounds. What is published while all live and are joined, or parted for APART_S at most, reaches
every subscriber within REPAIR_S, though links lose as before; when they lose nothing any more, within HEALED_S. Then,
silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from lattica.errors import LatticaError
from lattica.mesh.identity import PeerId
from lattica.mesh.publications import Have, Id, Message, Publication, Run, Want, decode, encode
from lattica.mesh.pubsub import DIGEST_S, PUSHED_MAX_BYTES, Effect, Published, PubSub
from lattica.mesh.pubsub import Send as Said
from lattica.mesh.recent import REPAIR_S
from lattica.testing.authority import FAKE_CHECKS, FakeKey
from lattica.testing.host import Host
from lattica.testing.links import Link
from lattica.testing.world import Send, World

MESH = b"m" * 32
NAMES = tuple(f"p{number}" for number in range(24))
LIAR = NAMES[-1]
TOPICS = ("steps", "weights", "weather")
KEYS = {name: FakeKey(name) for name in NAMES}
NAME_OF = {key.peer: name for name, key in KEYS.items()}
PUBLIC_KEYS = {key.peer: key.public_key for key in KEYS.values()}
BUSY_S = 12.0
APART_S = 3.0  # a partition that digests bridge
HEALED_S = 5.0
NOTICED_S = 4.0  # at most, until the others know that a process is gone


class PubSubPeer:
    """One peer: the core, and the little that brings its messages to participants, as bytes."""

    def __init__(self, host: Host, links: Sequence[str]) -> None:
        self._key = KEYS[host.name]
        self.core = PubSub(self._key.peer, host.boot, host.rng, sign=self._key.sign, verify=_verify, mesh=MESH)
        self.published: dict[Id, tuple[str, bytes]] = {}
        self.got: set[Id] = set()
        self.bytes_sent = 0
        for name in links:
            self.core.connected(KEYS[name].peer, 0.0)
        self.validate, self.next_deadline = self.core.validate, self.core.next_deadline

    def subscribe(self, topic: str, now: float) -> list[object]:
        return self._carry(self.core.subscribe(topic, now))

    def unsubscribe(self, topic: str, now: float) -> list[object]:
        return self._carry(self.core.unsubscribe(topic, now))

    def publish(self, topic: str, body: bytes, now: float) -> list[object]:
        """Say this on a topic, and remember that it was said."""
        number = len(self.published) + 1
        try:
            effects = self.core.publish(topic, body, now)
        except LatticaError:
            return []  # too much: the user was told
        self.published[self.core.me, self.core.boot, number] = topic, body
        return self._carry(effects)

    def link(self, name: str, now: float) -> list[object]:
        return self._carry(self.core.connected(KEYS[name].peer, now))

    def unlink(self, name: str, now: float) -> list[object]:
        self.core.disconnected(KEYS[name].peer)
        return []

    def receive(self, sender: str, data: bytes, now: float) -> list[object]:
        return self._carry(self.core.receive(KEYS[sender].peer, decode(data), now))

    def tick(self, now: float) -> list[object]:
        return self._carry(self.core.tick(now))

    def _carry(self, effects: Sequence[Effect]) -> list[object]:
        found: list[object] = []
        for effect in effects:
            if isinstance(effect, Said):
                data = encode(effect.message)
                self.bytes_sent += len(data)
                found.append(Send(NAME_OF[effect.to], data))
            else:
                found.append(effect)
        return found


def _verify(publisher: PeerId, signature: bytes, data: bytes) -> bool:
    return publisher in PUBLIC_KEYS and FAKE_CHECKS.signed(PUBLIC_KEYS[publisher], signature, data)


def overlay(rng: Random) -> dict[str, list[str]]:
    """Six links of each: two neighbours on either side of a ring, and two short cuts by chance."""
    size = len(NAMES)
    while True:
        pairs = {frozenset((at, (at + step) % size)) for at in range(size) for step in (1, 2)}
        for _ in range(2):
            order = rng.sample(range(size), size)
            pairs |= {frozenset(order[at : at + 2]) for at in range(0, size, 2)}
        links = {name: [NAMES[other] for other in range(size) if {other, at} in pairs] for at, name in enumerate(NAMES)}
        if all(len(others) == 6 for others in links.values()):
            return links


class Story:
    """A world of them, and what is known of it from outside."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed, link=Link((0.02, 0.2), loss=Random(seed).uniform(0.1, 0.3), duplicates=0.05))
        self.rng = self.world.rng
        self.links = overlay(self.rng)
        self.published: dict[Id, tuple[str, bytes]] = {}  # by all processes that ever were
        self.slowest_s = 0.0
        self._read = 0
        for name in NAMES:
            self.world.add_host(name, lambda host: PubSubPeer(host, self._living_links(host.name)))
        for name in NAMES:
            for other in self.links[name]:
                self.world.tell(name, "link", other)
        self.world.watch(self.check)

    def _living_links(self, name: str) -> list[str]:
        return [other for other in self.links[name] if self.world.is_alive(other)]

    def check(self) -> None:
        """Nothing twice, nothing else than what was published, nothing unasked for."""
        events = self.world.events
        while self._read < len(events):
            _, name, event = events[self._read]
            self._read += 1
            if not isinstance(event, Published):
                continue
            peer: PubSubPeer = self.world.core(name)
            id = event.publisher, event.boot, event.number
            if id not in self.published:
                self.published |= self.world.core(NAME_OF[event.publisher]).published
            assert id not in peer.got, f"{name} is given {event} twice"
            assert self.published.get(id) == (event.topic, event.body), f"nobody published {event}"
            assert event.topic in peer.core.topics, f"{name} is given {event}, and is not subscribed to it"
            peer.got.add(id)
            self.world.count("given")

    # -- what happens

    def publish(self) -> Id | None:
        """Somebody publishes something, mostly short."""
        name = self.rng.choice([name for name in self.world.living if not self.world.is_paused(name)])
        size = self.rng.choice((0, 20, 100, PUSHED_MAX_BYTES + 1, 3 * PUSHED_MAX_BYTES))
        peer: PubSubPeer = self.world.core(name)
        self.world.tell(name, "publish", self.rng.choice(TOPICS), self.rng.randbytes(size))
        self.published |= peer.published
        return next(reversed(peer.published), None)

    def change_mind(self) -> None:
        """Somebody subscribes, or ends it."""
        verb = self.rng.choice(("subscribe", "subscribe", "unsubscribe"))
        self.world.tell(self.rng.choice(NAMES), verb, self.rng.choice(TOPICS))

    def crash(self) -> None:
        """A peer ends, and its links notice; it is back within seconds."""
        name = self.rng.choice(NAMES)
        if self.world.is_alive(name):
            self.published |= self.world.core(name).published
            self.world.crash(name)
            for other in self.links[name]:
                self.world.after(self.rng.uniform(0, NOTICED_S), self.noticed, other, name, self.world.boot_of(name))
            self.world.after(self.rng.uniform(0.5, 8), self.restart, name)

    def noticed(self, name: str, other: str, boot: int) -> None:
        """The session ends, if there is no new one yet."""
        if self.world.boot_of(other) == boot and self.world.is_alive(name):
            self.world.tell(name, "unlink", other)

    def restart(self, name: str) -> None:
        """A peer is back, has links again, and subscribes anew."""
        if self.world.is_alive(name):
            return
        self.world.restart(name)
        for other in self._living_links(name):
            self.world.tell(other, "link", name)
        for topic in self.rng.sample(TOPICS, 2):
            self.world.tell(name, "subscribe", topic)

    def stall(self) -> None:
        """A peer stands still for a while."""
        name = self.rng.choice(NAMES)
        if self.world.is_alive(name) and not self.world.is_paused(name):
            self.world.pause(name)
            self.world.after(self.rng.uniform(0.1, 15), self.world.resume, name)

    def partition(self, lasts_s: float) -> None:
        """Of some, the sessions end too."""
        left = self.rng.sample(NAMES, self.rng.choice((1, 4, 12)))
        crossing = [(one, other) for one in left for other in self.links[one] if other not in left]
        self.world.partition(left, [name for name in NAMES if name not in left])
        ended = self.rng.random() < 0.5
        if ended:
            for one, other in crossing:
                self._tell_both(one, other, "unlink")
        self.world.after(lasts_s, self.mend, crossing if ended else [])

    def mend(self, crossing: Sequence[tuple[str, str]]) -> None:
        """All links carry again."""
        self.world.obstacles.clear()
        for one, other in crossing:
            if self.world.is_alive(one) and self.world.is_alive(other):
                self._tell_both(one, other, "link")

    def lie(self) -> None:
        """A member speaks in another's name, announces what does not exist, and repeats itself."""
        victim = KEYS[self.rng.choice(NAMES[:-1])].peer
        number = self.rng.randrange(1, 50)
        forged = Publication(victim, 1, number, self.rng.choice(TOPICS), b"forged", KEYS[LIAR].sign(b"forged"))
        runs = (Run(victim, 1, number, number + 100),)
        messages: tuple[Message, ...] = forged, Have(runs), Want(runs)
        target = self.rng.choice(self.links[LIAR])
        for message in messages * 2:
            self.world.tell(target, "receive", LIAR, encode(message))

    def _tell_both(self, one: str, other: str, verb: str) -> None:
        self.world.tell(one, verb, other)
        self.world.tell(other, verb, one)

    # -- what must come of it

    def demand(self, count: int, within_s: float) -> None:
        """Publish so many; each reaches all who are subscribed, in time."""
        began: dict[Id, float] = {}

        def publish() -> None:
            id = self.publish()
            assert id is not None, "a publication was refused"
            began[id] = self.world.now

        def missing() -> list[str]:
            found: list[str] = []
            for id, at in list(began.items()):
                topic, _ = self.published[id]
                cores = {name: self.world.core(name) for name in NAMES}
                late = [name for name, peer in cores.items() if topic in peer.core.topics and id not in peer.got]
                if not late:
                    self.slowest_s = max(self.slowest_s, self.world.now - at)
                    del began[id]
                elif self.world.now - at > within_s:
                    found.append(f"{NAME_OF[id[0]]}'s number {id[2]}, published at {at:g} s, is not at {late}")
            return found

        for _ in range(count):
            self.world.after(self.rng.uniform(0, 1), publish)
        until = self.world.now + 1 + within_s
        while self.world.now < until and (began or self.world.now < until - within_s):
            self.world.run(self.world.now + 0.25)
            assert not (late := missing()), late


def play(seed: int, long: bool = False) -> World:
    """Busy for BUSY_S, twenty times as long if `long`; then all must hear of each other again."""
    story = Story(seed)
    world, rng = story.world, story.rng
    busy_s = BUSY_S * (20 if long else 1)
    for name in NAMES:
        for topic in rng.sample(TOPICS, rng.randint(0, 2)):
            world.tell(name, "subscribe", topic)
    for _ in range(int(busy_s)):
        for happening in (story.publish, story.change_mind):
            world.after(rng.uniform(0, busy_s), happening)
    for _ in range(rng.randint(0, 3) * int(busy_s / BUSY_S)):
        for happening in (story.crash, story.stall, story.lie):
            world.after(rng.uniform(0, busy_s), happening)
        world.after(rng.uniform(0, busy_s), story.partition, rng.uniform(1, 14))
    world.run(busy_s)

    # All live and are joined; links lose as before.
    for name in NAMES:
        world.resume(name)
        story.restart(name)
    story.mend([(name, other) for name in NAMES for other in story.links[name]])
    story.demand(6, REPAIR_S)
    story.partition(APART_S)
    story.demand(4, REPAIR_S)

    world.heal()
    story.demand(4, HEALED_S)

    world.run(world.now + REPAIR_S + 3 * DIGEST_S)
    sent = world.tally["sent"]
    world.run(world.now + 60)
    assert world.tally["sent"] == sent, "something is sent, though nothing was published lately"
    assert all(world.core(name).next_deadline() is None for name in NAMES), "somebody waits, and nothing was published"
    world.tally |= {"published": len(story.published), "slowest_ms": int(story.slowest_s * 1000)}
    return world
