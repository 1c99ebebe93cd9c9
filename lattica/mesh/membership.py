"""Who is a member, who lives, and with whom this peer keeps a session.

    A -> B  Ping(nonce, ...)      B -> A  Pong(nonce, ...)              between ring neighbours, every PING_S
    A -> C  Ask(suspect)          C -> A  Heard(suspect)                C pings the suspect for A

A ring of all living members by PeerId; each watches the four on either side, and is watched by them. What a neighbour
does not answer is asked for by others who watch it too; who stays silent for ACCUSE_S is accused by a row (`Accuse`).
Two accusers of a member's current row are a death, for everybody who has those rows, until the member writes a newer
one (`Refute`): it never ends itself. Only who heard it itself less than HEARD_S ago does not believe them yet: when a
partition heals, each side's words of the other arrive before the accused have refuted them. Stalls of five seconds
therefore cost the neighbours some pings, and nobody else hears of them.

Above SMALL members sessions are few: ring neighbours, RANDOM others as short cuts for what is flooded, those in use.

Rules of this file. `now` is the only time. A peer whose own timers come late doubts itself: it forgets how long others
have been silent. Sources: Das, Gupta, Motivala, "SWIM" (2002); Dadgar et al., "Lifeguard" (2018), §IV; Suresh et al.,
"Rapid" (2018), for several observers of each.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from enum import Enum
from random import Random

import msgspec

from lattica.mesh.identity import PeerId, short_peer

PING_S = 3.0
"""Between pings of one neighbour. Shorter: 400 bytes more per second and neighbour; longer: suspicion begins later."""
ANSWER_S = 0.8  # for a pong: the longest round trip of a world is 0.4 s
HASTE_S = 1.0  # between pings of a neighbour that does not answer
ASK_AFTER_S = 4.5  # of silence: others are asked whether they hear it
ASK_S = 1.5  # between such questions
ASKED = 3  # others, each time
ACCUSE_S = 10.5
"""Of silence. A stall of 5 s may begin PING_S after the last sound, or later if pings were lost just then. Two losses
in a row must fit, that is 4.8 s, the stall and a round trip: at a thousand peers that happens every hour. It is looked
at when pings are due, at 10.6 s or 10.8 s."""
HEARD_S = ASK_AFTER_S
"""After a sound of a neighbour, what others say of its silence is not believed. Longer than two pings apart with one
lost; less than REFUSED_S, or a crash would be believed later than it is accused."""
REFUSED_S = 5.0  # of refused dials instead: its machine answers, so it is the process that is gone
SETTLE_S = 0.2  # after the ring changed: many rows come together, and each would choose other neighbours
LATE_S = 0.5  # a tick that comes so late says that this process stood still
RING = 4  # neighbours on either side
RANDOM = 4  # short cuts that a peer chooses; as many choose it
SMALL = 64  # members up to which everybody has a session with everybody
WITNESSES = 2
DEAD_TRY_S = 2.0
"""Between tries to reach one of those that are dead, of TRYING members together: a partition may have healed."""
TRYING = 8
PINGS_FOR_OTHERS_MAX = 64  # at once

Dot = tuple[int, int]


class State(Enum):
    """Of a member, as this peer sees it."""

    ALIVE = "alive"
    SUSPECT = "suspect"  # silent, or accused by one
    DEAD = "dead"
    LEFT = "left"


class Ping(msgspec.Struct, frozen=True):
    """Do you live?"""

    nonce: int


class Pong(msgspec.Struct, frozen=True):
    """Yes: the answer to the ping of this nonce."""

    nonce: int


class Ask(msgspec.Struct, frozen=True):
    """Ping this member for me."""

    suspect: PeerId


class Heard(msgspec.Struct, frozen=True):
    """It answered my ping just now."""

    suspect: PeerId


Message = Ping | Pong | Ask | Heard


class Tell(msgspec.Struct, frozen=True):
    """Send this to a peer, over whatever there is; it may be lost."""

    peer: PeerId
    message: Message


class Accuse(msgspec.Struct, frozen=True):
    """Write that this member is silent, as of this row of its own."""

    peer: PeerId
    dot: Dot


class Refute(msgspec.Struct, frozen=True):
    """Write our own row anew: somebody accuses us."""


class MemberChanged(msgspec.Struct, frozen=True):
    """state: None if it is no member any more; before: None if it is new."""

    peer: PeerId
    state: State | None
    before: State | None


class Keep(msgspec.Struct, frozen=True):
    """Have a session with this member."""

    peer: PeerId


class Release(msgspec.Struct, frozen=True):
    """It needs no session for membership's sake any more."""

    peer: PeerId


class Try(msgspec.Struct, frozen=True):
    """See whether this dead member can be reached after all."""

    peer: PeerId


Effect = Tell | Accuse | Refute | MemberChanged | Keep | Release | Try


class _Member(msgspec.Struct):
    dot: Dot
    left: bool
    dead: bool = False
    accusers: dict[PeerId, Dot] | None = None  # who says that it is silent, as of which row

    @property
    def witnesses(self) -> int:
        """How many say so of its current row."""
        return sum(dot == self.dot for dot in self.accusers.values()) if self.accusers else 0


class _Watch(msgspec.Struct):
    """A ring neighbour, as we hear it."""

    heard_at: float
    ping_at: float
    spoke_at: float = float("-inf")  # heard by ourselves, not by others for us
    pinged_at: float | None = None  # not answered yet
    ask_at: float = 0.0
    asked: frozenset[PeerId] = frozenset()  # in this silence, and may say that they hear it
    refused_at: float | None = None  # since when dials are refused
    accused: Dot | None = None
    silent: bool = False


class _Favour(msgspec.Struct):
    """A ping of ours for somebody who asked."""

    peer: PeerId
    until: float
    askers: set[PeerId] = msgspec.field(default_factory=set)


class Membership:
    """See the module."""

    def __init__(self, me: PeerId, rng: Random, now: float) -> None:
        self.me = me
        self._rng = rng
        self._members: dict[PeerId, _Member] = {}
        self._ring: list[PeerId] = []  # the living, us among them once we have a row
        self._dead: set[PeerId] = set()
        self._watched: dict[PeerId, _Watch] = {}
        self._kept: set[PeerId] = set()
        self._chosen: set[PeerId] = set()  # our random ones
        self._favours: dict[PeerId, _Favour] = {}
        self._due = now
        self._try_at = now
        self._settle_at: float | None = None  # the ring has changed
        self._nonce = rng.getrandbits(32)

    def __repr__(self) -> str:
        return f"<Membership of {short_peer(self.me)}: {len(self._ring)} live, {len(self._dead)} dead>"

    # -- what is known

    def state(self, peer: PeerId) -> State | None:
        """None if it is no member."""
        member = self._members.get(peer)
        return None if member is None else self._state(peer, member)

    def _state(self, peer: PeerId, member: _Member) -> State:
        if member.left:
            return State.LEFT
        if member.dead:
            return State.DEAD
        watch = self._watched.get(peer)
        doubtful = member.witnesses or (watch is not None and watch.silent)
        return State.SUSPECT if doubtful else State.ALIVE

    def members(self) -> Iterator[PeerId]:
        """All, in no order, those that left or died among them."""
        return iter(self._members)

    @property
    def living(self) -> list[PeerId]:
        """Members that are neither dead nor left, in the ring's order."""
        return self._ring

    @property
    def kept(self) -> frozenset[PeerId]:
        """Those with whom a session is kept."""
        return frozenset(self._kept)

    def neighbours(self, of: PeerId) -> list[PeerId]:
        """Who watches this member, the nearest first."""
        ring, count = self._ring, len(self._ring)
        at = bisect_left(ring, of)
        present = at < count and ring[at] == of
        found: dict[PeerId, None] = {}
        for step in range(1, RING + 1):
            if not count:
                break
            for neighbour in (ring[(at + step - (not present)) % count], ring[(at - step) % count]):
                if neighbour != of:
                    found[neighbour] = None
        return list(found)

    # -- what the table says

    def node(self, peer: PeerId, dot: Dot, left: bool, now: float) -> list[Effect]:
        """A member's own row, new or newer."""
        member = self._members.get(peer)
        before = self.state(peer)
        if member is None:
            member = self._members[peer] = _Member(dot, left)
        else:
            member.dot, member.left = dot, left
        watch = self._watched.get(peer)
        if watch is not None and before is not State.DEAD:
            watch.accused = None
        self._judge(peer, member, now)
        return self._told(peer, before)

    def accused(self, suspect: PeerId, dot: Dot, witness: PeerId, now: float) -> list[Effect]:
        """A row of `witness` says that it does not hear `suspect`, as of that dot."""
        member = self._members.get(suspect)
        if member is None or witness == suspect or dot < member.dot:
            return []
        before = self.state(suspect)
        if member.accusers is None:
            member.accusers = {}
        member.accusers[witness] = dot
        if suspect == self.me:
            return [Refute()]
        self._judge(suspect, member, now)
        return self._told(suspect, before)

    def disregard(self, witness: PeerId, now: float) -> list[Effect]:
        """What this member says of others does not count any more."""
        effects: list[Effect] = []
        for peer, member in list(self._members.items()):
            if member.accusers and witness in member.accusers:
                before = self.state(peer)
                del member.accusers[witness]
                self._judge(peer, member, now)
                effects += self._told(peer, before)
        return effects

    def forget(self, peer: PeerId, now: float) -> list[Effect]:
        """It is no member any more: its row expired, or it was revoked."""
        member = self._members.pop(peer, None)
        if member is None:
            return []
        before = self._state(peer, member)
        self._dead.discard(peer)
        self._out_of_ring(peer, now)
        return [MemberChanged(peer, None, before)]

    # -- what the network says

    def receive(self, sender: PeerId, message: Message, now: float) -> list[Effect]:
        """A message of a peer, as the transport authenticated it."""
        effects = self.heard(sender, now)
        match message:
            case Ping(nonce):
                effects.append(Tell(sender, Pong(nonce)))
            case Pong():
                favour = self._favours.pop(sender, None)
                if favour is not None:
                    effects += [Tell(asker, Heard(sender)) for asker in sorted(favour.askers)]
            case Ask(suspect):
                effects += self._asked(sender, suspect, now)
            case Heard(suspect):  # who was not asked could keep a dead one alive for ever
                watch = self._watched.get(suspect)
                if watch is not None and sender in watch.asked:
                    effects += self._lives(suspect, watch, now)
        return effects

    def heard(self, peer: PeerId, now: float) -> list[Effect]:
        """A sound of this peer, whatever it was."""
        watch = self._watched.get(peer)
        if watch is None:
            return []
        watch.spoke_at = now
        return self._lives(peer, watch, now)

    def _lives(self, peer: PeerId, watch: _Watch, now: float) -> list[Effect]:
        """We, or whom we have asked, have heard it."""
        watch.heard_at, watch.pinged_at, watch.refused_at, watch.accused = now, None, None, None
        watch.asked = frozenset()
        if not watch.silent:
            return []
        before = self.state(peer)
        watch.silent = False
        watch.ping_at = now + self._interval(peer)
        return self._told(peer, before)

    def refused(self, peer: PeerId, now: float) -> list[Effect]:
        """A dial of a neighbour was refused: its machine lives and its process does not."""
        watch = self._watched.get(peer)
        if watch is None or watch.refused_at is not None:
            return []
        watch.refused_at = watch.ping_at = now
        self._due = min(self._due, now)
        return []

    # -- time

    def tick(self, now: float) -> list[Effect]:
        """Whatever is due."""
        if now - self._due > LATE_S and self._watched:
            for watch in self._watched.values():  # it was us who stood still
                watch.heard_at, watch.pinged_at = now, None
                watch.ping_at = min(watch.ping_at, now)
        effects: list[Effect] = []
        if self._settle_at is not None and self._settle_at <= now:
            effects += self._settle(now)
        for peer, watch in list(self._watched.items()):
            if watch.ping_at <= now and peer in self._watched:
                effects += self._look_at(peer, watch, now)
        for peer in [peer for peer, favour in self._favours.items() if favour.until <= now]:
            del self._favours[peer]
        if self._dead and self._try_at <= now:
            self._try_at = now + DEAD_TRY_S * max(1.0, len(self._ring) / TRYING) * self._rng.uniform(0.75, 1.25)
            effects.append(Try(self._rng.choice(sorted(self._dead))))
        self._schedule(now)
        return effects

    def next_deadline(self) -> float | None:
        """When to call `tick`."""
        return self._due if self._watched or self._dead or self._settle_at is not None else None

    def validate(self) -> None:
        """Assert what always holds."""
        assert self._watched.keys() <= self._kept, "a neighbour is watched without a session"
        assert self.me not in self._watched, "a peer watches itself"

    # -- inside

    def _judge(self, peer: PeerId, member: _Member, now: float) -> None:
        """Whether it counts as dead, by the rows that there are."""
        if member.accusers:
            member.accusers = {who: dot for who, dot in member.accusers.items() if dot >= member.dot} or None
        others = len(self._ring) - (1 if self._in_ring(peer) else 0)
        needed = max(1, min(WITNESSES, others))
        convicted = peer != self.me and not member.left and member.witnesses >= needed
        member.dead = convicted and (member.dead or not self._hears(peer, now))
        if member.dead:
            self._dead.add(peer)
        else:
            self._dead.discard(peer)
        if member.dead or member.left:
            self._out_of_ring(peer, now)
        elif not self._in_ring(peer):
            insort(self._ring, peer)
            self._changes(now)

    def _judge_again(self, peer: PeerId, now: float) -> list[Effect]:
        """What was said of it was not enough, or was not believed."""
        member = self._members.get(peer)
        if member is None or member.dead or not member.accusers:
            return []
        before = self.state(peer)
        self._judge(peer, member, now)
        return self._told(peer, before)

    def _hears(self, peer: PeerId, now: float) -> bool:
        """Whether it has told us something just now."""
        watch = self._watched.get(peer)
        return watch is not None and now - watch.spoke_at < HEARD_S

    def _in_ring(self, peer: PeerId) -> bool:
        at = bisect_left(self._ring, peer)
        return at < len(self._ring) and self._ring[at] == peer

    def _out_of_ring(self, peer: PeerId, now: float) -> None:
        if self._in_ring(peer):
            del self._ring[bisect_left(self._ring, peer)]
            self._changes(now)

    def _changes(self, now: float) -> None:
        if self._settle_at is None:
            self._settle_at = now + SETTLE_S
            self._due = min(self._due, self._settle_at) if self._watched or self._dead else self._settle_at

    def _told(self, peer: PeerId, before: State | None) -> list[Effect]:
        state = self.state(peer)
        return [] if state is before or state is None else [MemberChanged(peer, state, before)]

    def _settle(self, now: float) -> list[Effect]:
        """The ring has changed: whom we watch, and with whom we keep sessions."""
        self._settle_at = None
        effects: list[Effect] = []
        for peer in self._members:  # one of few others has left: so many witnesses are not needed now
            effects += self._judge_again(peer, now)
        watched = set(self.neighbours(self.me)) if self._in_ring(self.me) else set()
        for peer in sorted(self._watched.keys() - watched):
            before = self.state(peer)
            del self._watched[peer]  # whether it is silent is for others to say now
            effects += self._told(peer, before) + self._judge_again(peer, now)
        for peer in sorted(watched - self._watched.keys()):
            first = now + self._rng.uniform(0.0, PING_S)
            self._watched[peer] = _Watch(heard_at=now, ping_at=first)
        kept = watched | self._short_cuts(watched)
        effects += [Keep(peer) for peer in sorted(kept - self._kept)]
        effects += [Release(peer) for peer in sorted(self._kept - kept)]
        self._kept = kept
        return effects

    def _short_cuts(self, watched: set[PeerId]) -> set[PeerId]:
        if len(self._ring) <= SMALL:
            self._chosen.clear()
            return set(self._ring) - {self.me}
        self._chosen = {peer for peer in self._chosen if peer not in watched and self._in_ring(peer)}
        while len(self._chosen) < RANDOM:
            peer = self._rng.choice(self._ring)
            if peer != self.me and peer not in watched:
                self._chosen.add(peer)
        return set(self._chosen)

    def _look_at(self, peer: PeerId, watch: _Watch, now: float) -> list[Effect]:
        """A neighbour's turn: ping it, ask others about it, accuse it."""
        effects, member = self._judge_again(peer, now), self._members.get(peer)
        if member is None or member.dead or member.left:  # until the ring is settled
            watch.ping_at = now + SETTLE_S
            return effects
        before = self.state(peer)
        silence = now - watch.heard_at
        waits = watch.pinged_at is not None
        if not waits and silence < self._interval(peer) - 0.01 and watch.refused_at is None:
            watch.ping_at = watch.heard_at + self._interval(peer)  # it has told us something meanwhile
            return effects
        if waits:
            watch.silent = silence > PING_S + ANSWER_S or watch.refused_at is not None
        watch.pinged_at = now if watch.pinged_at is None else watch.pinged_at
        self._nonce = (self._nonce + 1) & 0xFFFFFFFF
        effects.append(Tell(peer, Ping(self._nonce)))
        watch.ping_at = now + (HASTE_S if waits else ANSWER_S)
        refused = watch.refused_at is not None
        if (silence >= ASK_AFTER_S or refused) and watch.ask_at <= now:
            watch.ask_at = now + ASK_S
            others = [other for other in self.neighbours(peer) if other != self.me and other in self._kept]
            chosen = self._rng.sample(others, min(ASKED, len(others)))
            watch.asked |= frozenset(chosen)
            effects += [Tell(other, Ask(peer)) for other in chosen]
        over = silence >= ACCUSE_S or (watch.refused_at is not None and now - watch.refused_at >= REFUSED_S)
        if over and watch.accused != member.dot:
            watch.accused = member.dot
            if member.witnesses <= WITNESSES:
                effects.append(Accuse(peer, member.dot))
        return effects + self._told(peer, before)

    def _interval(self, peer: PeerId) -> float:
        """The lower of two pings; the other one only if it does not, so that one exchange serves both."""
        return PING_S if self.me < peer else PING_S + ANSWER_S

    def _asked(self, asker: PeerId, suspect: PeerId, now: float) -> list[Effect]:
        if suspect == self.me or suspect not in self._kept or len(self._favours) >= PINGS_FOR_OTHERS_MAX:
            return []
        favour = self._favours.get(suspect)
        if favour is None:
            favour = self._favours[suspect] = _Favour(suspect, now + ASK_AFTER_S)
        favour.askers.add(asker)
        self._due = min(self._due, favour.until)
        self._nonce = (self._nonce + 1) & 0xFFFFFFFF
        return [Tell(suspect, Ping(self._nonce))]

    def _schedule(self, now: float) -> None:
        due = [watch.ping_at for watch in self._watched.values()]
        due += [favour.until for favour in self._favours.values()]
        if self._dead:
            due.append(self._try_at)
        if self._settle_at is not None:
            due.append(self._settle_at)
        self._due = max(now, min(due, default=now + PING_S))
