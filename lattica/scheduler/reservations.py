"""Bundles of placement groups on the node that keeps them: reserved for seconds, then committed, or free again.

    owner -> node   Reserve(group, attempt, bundles)      node -> owner   Reserved(.., token) · Denied
                    Commit(group, attempt, token)                         Committed · Expired
                    Abort(group, attempt)

Rules of this file. An attempt is the bundles of one group that one node shall keep: all of them or none. Its owner is
the peer that sent `Reserve`, and only that may commit or abort it. Every message may come twice or late: a `Reserve`
that is known gets the same token, a `Commit` of what is committed renews it, one after the expiry is refused even if
nobody has taken the resources since. What is not renewed ends by itself, so that a dead owner leaves nothing behind. A
bundle that is committed anew ends the attempt that had it before: its owner, which took this node for dead, has lost
sight of that one.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from lattica.mesh.identity import PeerId
from lattica.scheduler.resources import Allocation, ResourcePool, ResourceSet

RESERVE_S = 10.0
"""Until a reservation that is not committed ends. Shorter: groups over slow links never come to be; longer: a creator
that dies between the phases blocks others for so long."""
KEEP_S = 60.0  # until a committed one ends whose owner is silent; owners renew at a third
ATTEMPTS_MAX = 4096  # kept by one node
ABORTED_MAX = 1024  # remembered, so that a late Reserve does not come back to life


@dataclass(frozen=True, slots=True)
class Reserve:
    """Owner to keeper, first phase: set this aside until it is committed, or for RESERVE_S."""

    group: bytes
    attempt: int  # counts up over all of the owner's
    bundles: tuple[tuple[int, ResourceSet], ...]


@dataclass(frozen=True, slots=True)
class Commit:
    """Owner to keeper, second phase, and again to renew: all others have reserved too."""

    group: bytes
    attempt: int
    token: int


@dataclass(frozen=True, slots=True)
class Abort:
    """Owner to keeper: let it go, now or whenever a late Reserve of that attempt comes."""

    group: bytes
    attempt: int


@dataclass(frozen=True, slots=True)
class Reserved:
    """Keeper to owner: it is set aside; only who shows the token may commit it."""

    group: bytes
    attempt: int
    token: int


@dataclass(frozen=True, slots=True)
class Denied:
    """Keeper to owner: it does not fit here now."""

    group: bytes
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Committed:
    """Keeper to owner: its tasks may run here, for KEEP_S from now."""

    group: bytes
    attempt: int


@dataclass(frozen=True, slots=True)
class Expired:
    """There is no such reservation, or no longer."""

    group: bytes
    attempt: int


ToNode = Reserve | Commit | Abort
ToOwner = Reserved | Denied | Committed | Expired


@dataclass(frozen=True, slots=True)
class Send:
    """Effect: one of these messages, to an owner or a keeper."""

    to: PeerId
    message: ToNode | ToOwner


@dataclass(frozen=True, slots=True)
class Kept:
    """Effect: tasks of this group may run here, out of these amounts."""

    owner: PeerId
    group: bytes
    bundles: tuple[tuple[int, Allocation], ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """Effect: what ran out of these bundles is to be ended; the amounts are free already."""

    owner: PeerId
    group: bytes
    bundles: tuple[int, ...]


Effect = Send | Kept | Ended
_Key = tuple[PeerId, bytes, int]


@dataclass(slots=True)
class _Attempt:
    token: int
    bundles: tuple[tuple[int, Allocation], ...]
    expires: float
    committed: bool = False


class Reservations:
    """All bundles that this node keeps for others' groups."""

    def __init__(self, pool: ResourcePool, first_token: int) -> None:
        """first_token: greater than any that an earlier process of this node gave, like its boot << 32."""
        self._pool, self._token = pool, first_token
        self._attempts: dict[_Key, _Attempt] = {}
        self._aborted: OrderedDict[_Key, None] = OrderedDict()

    def __repr__(self) -> str:
        committed = sum(attempt.committed for attempt in self._attempts.values())
        return f"<Reservations: {committed} committed, {len(self._attempts) - committed} reserved>"

    def receive(self, sender: PeerId, message: ToNode, now: float) -> list[Effect]:
        key = sender, message.group, message.attempt
        effects = self.tick(now)  # what has expired has expired, whether a timer rang or not
        match message:
            case Reserve(bundles=bundles):
                return effects + self._reserve(key, bundles, now)
            case Commit(token=token):
                attempt = self._attempts.get(key)
                if attempt is None or attempt.token != token:
                    return [*effects, Send(sender, Expired(message.group, message.attempt))]
                attempt.expires = now + KEEP_S
                if not attempt.committed:
                    attempt.committed = True
                    effects += self._supersede(key, attempt)
                    effects.append(Kept(sender, message.group, attempt.bundles))
                return [*effects, Send(sender, Committed(message.group, message.attempt))]
            case Abort():
                self._aborted[key] = None
                if len(self._aborted) > ABORTED_MAX:
                    self._aborted.popitem(last=False)
                return effects + self._end(key)

    def owner_gone(self, owner: PeerId, now: float) -> list[Effect]:
        """Its job has ended, or it was revoked: its groups end at once."""
        keys = [key for key in self._attempts if key[0] == owner]
        return [effect for key in keys for effect in self._end(key)]

    def tick(self, now: float) -> list[Effect]:
        keys = [key for key, attempt in self._attempts.items() if attempt.expires <= now]
        return [effect for key in keys for effect in self._end(key)]

    def next_deadline(self) -> float | None:
        return min((attempt.expires for attempt in self._attempts.values()), default=None)

    def validate(self) -> None:
        tokens = [attempt.token for attempt in self._attempts.values()]
        assert len(tokens) == len(set(tokens)), "one token for two reservations"
        assert len(self._attempts) <= ATTEMPTS_MAX and len(self._aborted) <= ABORTED_MAX, "more is kept than may be"
        self._pool.validate()

    def _reserve(self, key: _Key, bundles: tuple[tuple[int, ResourceSet], ...], now: float) -> list[Effect]:
        owner, group, number = key
        if (known := self._attempts.get(key)) is not None:
            return [Send(owner, Reserved(group, number, known.token))]
        if key in self._aborted:
            return [Send(owner, Denied(group, number, "it was aborted"))]
        if len(self._attempts) >= ATTEMPTS_MAX:
            return [Send(owner, Denied(group, number, f"{ATTEMPTS_MAX} reservations are kept here already"))]
        got: list[tuple[int, Allocation]] = []
        for index, resources in bundles:
            allocation = self._pool.acquire(resources)
            if allocation is None:
                for _, earlier in got:
                    self._pool.release(earlier)
                return [Send(owner, Denied(group, number, f"bundle {index} does not fit: {self._pool!r}"))]
            got.append((index, allocation))
        self._token += 1
        self._attempts[key] = _Attempt(self._token, tuple(got), now + RESERVE_S)
        return [Send(owner, Reserved(group, number, self._token))]

    def _supersede(self, key: _Key, later: _Attempt) -> list[Effect]:
        bundles = {index for index, _ in later.bundles}
        earlier = [
            other
            for other, attempt in self._attempts.items()
            if other[:2] == key[:2] and other != key and bundles.intersection(index for index, _ in attempt.bundles)
        ]
        return [effect for other in earlier for effect in self._end(other)]

    def _end(self, key: _Key) -> list[Effect]:
        attempt = self._attempts.pop(key, None)
        if attempt is None:
            return []
        for _, allocation in attempt.bundles:
            self._pool.release(allocation)
        return [Ended(key[0], key[1], tuple(index for index, _ in attempt.bundles))] if attempt.committed else []
