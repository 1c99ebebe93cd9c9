"""Whether this peer is on the larger side: the stable view, and who still is in it.

    A -> B  Viewed(number, digest)      on meeting, and after each change
    B -> A  Ask()                       if it has an older one;  its own Viewed, if that is newer
    A -> B  View(number, members)

The stable view is the set of members of whom more than half make the larger side; at exactly half, those with its
lowest PeerId. Everybody else is an island, however long it lasts. Only the larger side changes the view: whoever did
not answer for HELD_S leaves it, whoever lives for HELD_S is taken in, who said *left* or was revoked leaves at once.

Rules of this file. Each change has a number; of two views the one with the greater (number, digest) counts, whoever
tells it. So a side that missed a change cannot count by the old view: of 6, two are cut off, then two of the remaining
four cut off join those. They are four of the first six, and two of the last four. A member that lies about the view can
make islands of others, and so stop restarts, until an admin adopts; members can stop worse things.

Source: Jajodia & Mutchler, "Dynamic voting algorithms for maintaining the consistency of a replicated database" (1990),
with the lowest id for its distinguished site. Two peers may act by different views for the seconds that a change needs
to get around; what both then restart is settled by `restarts`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from lattica.mesh.identity import PeerId, short_peer
from lattica.scheduler.views import (
    MEMBERS_MAX,
    NUMBER_MAX,
    Ask,
    Message,
    View,
    Viewed,
    digest_of,
    read_state,
    write_state,
)

HELD_S = 60.0
"""Shorter: a reboot of half the mesh makes an island of it; longer: two deaths of three machines, one after
the other, leave the third an island for longer."""
FOUNDING_S = 10.0
"""A founder alone takes in all who live, so long after the first came: else the mesh would hang on it for a minute."""
AGAIN_S = 2.0  # between tellings of a change
TELLINGS = 4  # of one change, to all with whom there is a session: at 30% loss one of 100 hears of none
LATE_S = 5.0  # a tick so late says that this process stood still, so it has not watched the others
JUMP_MAX = 1 << 32
"""By which a view that is heard may be ahead: one liar must not use up the numbers."""


@dataclass(frozen=True, slots=True)
class Send:
    """To this peer; it may be lost."""

    to: PeerId
    message: Message


@dataclass(frozen=True, slots=True)
class Spread:
    """To all with whom there is a session; it may be lost."""

    message: Message


@dataclass(frozen=True, slots=True)
class StableViewChanged:
    """Keep `Islands.state()` on disk. members: in order."""

    number: int
    members: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class IslandBegan:
    """missing: members of the stable view that do not answer, in order."""

    missing: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class IslandEnded:
    """Enough members answer again to decide for all."""


Effect = Send | Spread | StableViewChanged | IslandBegan | IslandEnded


class Islands:
    """See the module. An embedded driver node has one too, though it counts in no view."""

    def __init__(self, me: PeerId, now: float, *, state: bytes | None = None, founder: bool = False) -> None:
        """state: from this peer's disk. founder: of a new mesh, alone as yet. A peer that joins has neither, and is an
        island until it hears of the view. Raises RemoteProtocolError for a damaged state: begin again without one."""
        self.me = me
        self.number, self.members = (1, frozenset({me})) if founder else (0, frozenset[PeerId]())
        self._gone: frozenset[PeerId] = frozenset()  # left or revoked, as an island knows
        if state is not None:
            view, self._gone = read_state(state)
            self.number, self.members = view.number, frozenset(view.members)
        self._digest = digest_of(self.members)
        self._living: frozenset[PeerId] = frozenset({me})
        self._since = dict.fromkeys(self.members ^ self._living, now)  # when each began to answer, or ceased
        self._whole_since = now
        self.is_island = not self._holds()
        self._say_at: float | None = None
        self._tellings = 0
        self._due: float | None = None

    def __repr__(self) -> str:
        held = f"{len(self._living & self._counted())} of {len(self._counted())}"
        return f"<Islands of {short_peer(self.me)}: {'island' if self.is_island else 'whole'}, {held}>"

    def state(self) -> bytes:
        """For this peer's disk."""
        return write_state(self._view(), self._gone)

    # -- what happens

    def members_changed(
        self, living: Iterable[PeerId], left: Collection[PeerId], revoked: Collection[PeerId], now: float
    ) -> list[Effect]:
        """living: members that answer, this one among them, but for ephemeral ones; who is suspect does not answer: one
        that is cut off alone can convict nobody. left, revoked: known so far."""
        before, self._living = self._living, frozenset(living)
        for peer in self._living ^ before:
            self._since[peer] = now
        if self._living - before:  # they may have missed a change, or we
            self._tell_again(now)
        gone = self.members.intersection([*left, *revoked]) - self._gone
        if gone:
            self._gone |= gone
        effects = self._weigh(now)
        if gone and not self.is_island:
            return effects + self._change(self.members - self._gone, now)
        return effects + ([StableViewChanged(self.number, self._view().members)] if gone else [])

    def connected(self, peer: PeerId, now: float) -> list[Effect]:
        """There is a session with this peer."""
        return [Send(peer, Viewed(self.number, self._digest))]

    def receive(self, sender: PeerId, message: Message, now: float) -> list[Effect]:
        """A message of a member, as the transport authenticated it."""
        match message:
            case Viewed(number, digest):
                theirs, mine = (number, digest), (self.number, self._digest)
                if theirs == mine:
                    return []
                return [Send(sender, Ask() if theirs > mine else Viewed(*mine))]
            case Ask():
                return [Send(sender, self._view())] if self.number else []
            case View(number, members):
                is_newer = (number, digest_of(members)) > (self.number, self._digest)
                if not is_newer or number - self.number > JUMP_MAX:
                    return []
                return self._install(number, frozenset(members), now)

    def adopt(self, now: float) -> list[Effect]:
        """An admin says that this side is the whole mesh from now on."""
        return self._change(self._living, now)

    # -- time

    def tick(self, now: float) -> list[Effect]:
        """Whatever is due."""
        effects: list[Effect] = []
        if self._due is not None and now - self._due > LATE_S:
            self._whole_since = now
        ripe = self._ripe_at()
        if ripe is not None and ripe <= now:
            if self._is_founding():
                effects += self._change(self._living, now)
            else:
                ripe_ones = {peer for peer in self._pending() if self._held_at(peer) <= now}
                effects += self._change(self.members ^ ripe_ones, now)
        if self._say_at is not None and self._say_at <= now:
            self._tellings -= 1
            self._say_at = now + AGAIN_S if self._tellings else None
            effects.append(Spread(Viewed(self.number, self._digest)))
        self._schedule()
        return effects

    def next_deadline(self) -> float | None:
        """When to call `tick`."""
        self._schedule()
        return self._due

    def validate(self) -> None:
        """Assert what always holds."""
        assert self.is_island != self._holds(), "an island thinks it is whole, or the other way round"
        assert self._gone <= self.members, "somebody left a view without having been in it"

    # -- inside

    def _view(self) -> View:
        return View(self.number, tuple(sorted(self.members)))

    def _counted(self) -> frozenset[PeerId]:
        return self.members - self._gone

    def _holds(self) -> bool:
        counted = self._counted()
        here = 2 * len(counted & self._living)
        return here > len(counted) or (0 < here == len(counted) and min(counted) in self._living)

    def _weigh(self, now: float) -> list[Effect]:
        """Whether we are an island has changed, perhaps."""
        if self.is_island != self._holds():
            return []
        self.is_island = not self.is_island
        if self.is_island:
            return [IslandBegan(tuple(sorted(self._counted() - self._living)))]
        self._whole_since = now
        self._tell_again(now)
        return [IslandEnded()]

    def _change(self, members: frozenset[PeerId], now: float) -> list[Effect]:
        if members == self.members or not members or len(members) > MEMBERS_MAX or self.number >= NUMBER_MAX:
            return []
        return self._install(self.number + 1, members, now)

    def _install(self, number: int, members: frozenset[PeerId], now: float) -> list[Effect]:
        self.number, self.members, self._gone, self._digest = number, members, frozenset(), digest_of(members)
        self._since = {peer: self._since.get(peer, now) for peer in members ^ self._living}
        self._tell_again(now)
        return [StableViewChanged(number, self._view().members), *self._weigh(now)]

    def _tell_again(self, now: float) -> None:
        self._say_at, self._tellings = now, TELLINGS

    def _pending(self) -> frozenset[PeerId]:
        """Who would leave the view or be taken in, if things stay as they are."""
        return frozenset() if self.is_island else self.members ^ self._living

    def _held_at(self, peer: PeerId) -> float:
        return max(self._since[peer], self._whole_since) + HELD_S

    def _is_founding(self) -> bool:
        return self.number == 1 and self.members == {self.me}

    def _ripe_at(self) -> float | None:
        if self.is_island:
            return None
        if self._is_founding():
            came = [self._since[peer] for peer in self._living - self.members]
            return max(min(came), self._whole_since) + FOUNDING_S if came else None
        return min((self._held_at(peer) for peer in self._pending()), default=None)

    def _schedule(self) -> None:
        due = [at for at in (self._say_at, self._ripe_at()) if at is not None]
        self._due = min(due, default=None)
