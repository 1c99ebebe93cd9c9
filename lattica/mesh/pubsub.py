"""Topics: what a peer publishes reaches every live subscriber that is connected to it through living peers.

    A -> B  Publication     new and short: to FANOUT links, who pass it on to theirs
    A -> B  Have            new and long, to FANOUT links; every DIGEST_S what is recent, to DIGEST_LINKS of them
    B -> A  Want            what B has not seen; answered from what A keeps

Every peer relays, subscribed or not. Pushing alone does not finish under loss, so for REPAIR_S after a publication
digests find who misses it; then nothing is sent until the next one. Links are whatever sessions this peer has. They may
lose, double and reorder; a shell whose session is full may drop a `Send`.

Promises. A subscriber gets each publication once per process, and at least once while it is connected within REPAIR_S.
It does not get them in order: `number` tells it. Nothing that came before `subscribe` is given again, but what others
still announce is news to who was not there, so the first publications may be up to REPAIR_S old. Who signs two
publications with one number has different peers get different ones.

Source: Vyzovitis et al., "GossipSub: Attack-Resilient Message Propagation in the Filecoin and ETH2.0 Networks" (2020),
§3, without its meshes per topic: one overlay carries all, since every peer relays.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import assert_never

import msgspec

from lattica.errors import ConfigError, LatticaError
from lattica.mesh.identity import PeerId, short_peer
from lattica.mesh.publications import (
    BODY_MAX_BYTES,
    RUNS_MAX,
    TOPIC_MAX_CHARS,
    Have,
    Message,
    Publication,
    Run,
    Want,
    ids_of,
    runs_of,
    to_sign,
    wants_of,
)
from lattica.mesh.recent import PUBLISHED_MAX, PUBLISHED_MAX_BYTES, PUBLISHERS_MAX, REPAIR_S, Recent, Seen, size_of
from lattica.mesh.wants import Wants

FANOUT = 6
"""Links that are told of what is new. In a large mesh chance then leaves out a peer in 400, at 30 % loss one in 70,
whom digests find; each more costs every peer the whole of every short publication once more."""
PUSHED_MAX_BYTES = 2 << 10
"""Longest body that is pushed; of a longer one FANOUT links are told, and fetch it once. A peer sends a pushed one up
to FANOUT times; an announced one about once, a round trip later at each hop."""
DIGEST_S = 1.0  # between digests, while there is something to repair
DIGEST_LINKS = 3  # each time, by chance: as many digests as each peer hears
ANSWER_MAX_BYTES = 256 << 10  # to one Want; the rest is asked for again
TOPICS_MAX = 1024  # of one peer


class Send(msgspec.Struct, frozen=True):
    """To a peer with whom there is a link; it may be lost."""

    to: PeerId
    message: Message

    def __repr__(self) -> str:
        return f"<Send {type(self.message).__name__} to {short_peer(self.to)}>"


class Published(msgspec.Struct, frozen=True):
    """For the subscribers of this topic here. (publisher, boot, number) is its name."""

    topic: str
    publisher: PeerId
    boot: int
    number: int
    body: bytes


Effect = Send | Published


class PubSub:
    """See the module."""

    def __init__(
        self,
        me: PeerId,
        boot: int,
        rng: Random,
        *,
        sign: Callable[[bytes], bytes],
        verify: Callable[[PeerId, bytes, bytes], bool],
        mesh: bytes,
    ) -> None:
        """boot: of this process, and of no other of this peer. sign: with this peer's key. verify(publisher, signature,
        data): whether that member signed it, as far as its certificate is known here. mesh: its id."""
        self.me, self.boot = me, boot
        self.topics: set[str] = set()
        self._sign, self._verify, self._mesh, self._rng = sign, verify, mesh, rng
        self._number = 0
        self._links: dict[PeerId, None] = {}
        self._seen, self._recent, self._wants = Seen(), Recent(), Wants()
        self._digest_at: float | None = None

    def __repr__(self) -> str:
        kept = f"{len(self._recent)} publications kept, {len(self._wants)} wanted"
        return f"<PubSub {short_peer(self.me)}: {len(self.topics)} topics, {len(self._links)} links, {kept}>"

    # -- wishes of this machine

    def subscribe(self, topic: str, now: float) -> list[Effect]:
        """From now on what is published to `topic` is given out. Raises ConfigError, or LatticaError for too many."""
        _check_topic(topic)
        if len(self.topics) >= TOPICS_MAX and topic not in self.topics:
            raise LatticaError(
                f"this peer is subscribed to {TOPICS_MAX} topics, and that is the limit",
                do_next="unsubscribe from some, or tell more by the bodies and less by the topics",
            )
        self.topics.add(topic)
        return []

    def unsubscribe(self, topic: str, now: float) -> list[Effect]:
        """Nothing of it is given out any more."""
        self.topics.discard(topic)
        return []

    def publish(self, topic: str, body: bytes, now: float) -> list[Effect]:
        """Bring this to all subscribers, here too.

        Raises ConfigError for what can never be published, and LatticaError while too much was.
        """
        _check_topic(topic)
        if len(body) > BODY_MAX_BYTES:
            raise ConfigError(
                f"a publication to {topic!r} has {len(body)} bytes, and may have {BODY_MAX_BYTES}",
                do_next="put it into the object store, and publish its ref",
            )
        self._recent.expire(now)
        self._check_room(topic, size_of(body))
        number = self._number = self._number + 1
        signature = self._sign(to_sign(self.me, self.boot, number, topic, body, self._mesh))
        return self._take(Publication(self.me, self.boot, number, topic, body, signature), None, now)

    # -- what the sessions say

    def connected(self, peer: PeerId, now: float) -> list[Effect]:
        """There is a link to this peer."""
        self._links[peer] = None
        self._recent.expire(now)
        return [Send(peer, self._digest())] if len(self._recent) else []

    def disconnected(self, peer: PeerId) -> None:
        """There is none any more."""
        self._links.pop(peer, None)
        self._wants.disconnected(peer)

    def receive(self, sender: PeerId, message: Message, now: float) -> list[Effect]:
        """A message that `decode` has read, from whom the transport authenticated."""
        match message:
            case Publication():
                return self._came(sender, message, now)
            case Have(runs):
                return self._announced(sender, runs, now)
            case Want(runs):
                return self._answer(sender, runs, now)
            case _:
                assert_never(message)

    # -- time

    def tick(self, now: float) -> list[Effect]:
        """Whatever is due."""
        effects: list[Effect] = []
        if self._digest_at is not None and self._digest_at <= now:
            effects += self._send_digests(now)
        for peer, ids in self._wants.due(now).items():
            effects += [Send(peer, want) for want in wants_of(ids)]
        return effects

    def next_deadline(self) -> float | None:
        """When to call `tick`; None while nothing was published lately."""
        return min((at for at in (self._wants.next_deadline(), self._digest_at) if at is not None), default=None)

    def validate(self) -> None:
        """Assert what always holds."""
        self._recent.validate()
        self._wants.validate()
        assert len(self.topics) <= TOPICS_MAX, "too many topics"
        assert len(self._seen) <= PUBLISHERS_MAX, "too many publishers are remembered"
        assert self._digest_at is not None or not len(self._recent), "what is kept is announced to nobody"

    # -- inside

    def _check_room(self, topic: str, size: int) -> None:
        count, mine = self._recent.share(self.me)
        if count >= PUBLISHED_MAX or mine + size > PUBLISHED_MAX_BYTES:
            raise LatticaError(
                f"nothing more can be published to {topic!r} now: this peer has published {count} messages of "
                f"{mine} bytes in {REPAIR_S:g} s; the limits are {PUBLISHED_MAX} and {PUBLISHED_MAX_BYTES}",
                do_next="publish less often, or put many messages into one; streams and the object store carry more",
            )
        if not self._recent.has_room(size):
            raise LatticaError(
                f"nothing more can be published to {topic!r} now: all peers together have published "
                f"{self._recent.size_bytes} bytes in {REPAIR_S:g} s, more than each of them can keep",
                do_next="publish again later; streams and the object store carry more",
            )

    def _came(self, sender: PeerId, publication: Publication, now: float) -> list[Effect]:
        p = publication
        if self._seen.has(p.id) or p.age_ms >= REPAIR_S * 1e3:
            return []
        if not self._verify(p.publisher, p.signature, to_sign(*p.id, p.topic, p.body, self._mesh)):
            return []  # forged, or its publisher's certificate has not come yet: a later digest asks again
        return self._take(p, sender, now)

    def _take(self, publication: Publication, sender: PeerId | None, now: float) -> list[Effect]:
        """It is new: keep it, give it out, pass it on."""
        p = publication
        self._seen.add(p.id, now)
        self._wants.came(p.id)
        if not self._recent.add(p, now):
            return []
        if self._digest_at is None:
            self._digest_at = now + DIGEST_S * self._rng.uniform(0.5, 1.0)
        message: Message = p if len(p.body) <= PUSHED_MAX_BYTES else Have((Run(*p.id, p.number),))
        effects: list[Effect] = [Send(peer, message) for peer in self._some(FANOUT, (sender, p.publisher))]
        if p.topic in self.topics:
            effects.append(Published(p.topic, p.publisher, p.boot, p.number, p.body))
        return effects

    def _announced(self, sender: PeerId, runs: tuple[Run, ...], now: float) -> list[Effect]:
        missed = self._wants.announced(sender, (id for id in ids_of(runs) if not self._seen.has(id)), now)
        return [Send(sender, want) for want in wants_of(missed)]

    def _answer(self, sender: PeerId, runs: tuple[Run, ...], now: float) -> list[Effect]:
        effects: list[Effect] = []
        size = 0
        for id in ids_of(runs):
            publication = self._recent.get(id, now)
            if publication is not None:
                size += size_of(publication.body)
                if size > ANSWER_MAX_BYTES:
                    break
                effects.append(Send(sender, publication))
        return effects

    def _send_digests(self, now: float) -> list[Effect]:
        self._recent.expire(now)
        if not len(self._recent):
            self._digest_at = None
            return []
        self._digest_at = now + DIGEST_S * self._rng.uniform(0.9, 1.1)
        chosen = self._some(DIGEST_LINKS)
        if not chosen:
            return []
        digest = self._digest()
        return [Send(peer, digest) for peer in chosen]

    def _digest(self) -> Have:
        runs = runs_of(self._recent)
        return Have(tuple(self._rng.sample(runs, RUNS_MAX) if len(runs) > RUNS_MAX else runs))

    def _some(self, count: int, but: tuple[PeerId | None, ...] = ()) -> list[PeerId]:
        """So many links, other than these."""
        others = [peer for peer in self._links if peer not in but]
        return self._rng.sample(others, count) if len(others) > count else others


def _check_topic(topic: str) -> None:
    if not 0 < len(topic) <= TOPIC_MAX_CHARS or not topic.isprintable():
        raise ConfigError(
            f"{topic!r:.40} ({len(topic)} characters) is no name of a topic",
            do_next=f"give it one of 1 to {TOPIC_MAX_CHARS} characters that can be printed",
        )
