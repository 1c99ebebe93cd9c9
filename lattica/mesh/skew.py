"""How far this machine's wall clock is from the others'.

Each hello brings a sample: their clock minus ours. The median over peers, of at most CORRECTION_MAX_S, is added to our
wall clock for certificates and time stamps: a home PC two minutes off must not be exiled. One vote a peer, ours
included, so no single peer moves it. Source: the median as in Lamport & Melliar-Smith, "Synchronizing Clocks in the
Presence of Faults" (1985), without their rounds.
"""

from __future__ import annotations

from collections import OrderedDict

from lattica.mesh.identity import PeerId

CORRECTION_MAX_S = 900.0
"""A clock that is further off is the machine's owner's to set; correcting more would stretch certificates."""
NOTICED_FROM_S = 2.0  # less is latency
PEERS_MAX = 64  # samples kept, the latest of each peer


class Skew:
    """The correction of one node's wall clock."""

    def __init__(self) -> None:
        self._samples: OrderedDict[PeerId, float] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Skew {self.measured_s:+.1f} s by {len(self._samples)} peers>"

    def sample(self, peer: PeerId, offset_s: float) -> None:
        """A peer's uncorrected clock minus ours, uncorrected."""
        self._samples[peer] = offset_s
        self._samples.move_to_end(peer)
        if len(self._samples) > PEERS_MAX:
            self._samples.popitem(last=False)

    @property
    def measured_s(self) -> float:
        """By how much the others' clocks are ahead of ours; 0 while nobody has been heard."""
        if len(self._samples) <= 1:
            return self._of_one()
        votes = sorted([0.0, *self._samples.values()])
        middle = len(votes) // 2
        return votes[middle] if len(votes) % 2 else (votes[middle - 1] + votes[middle]) / 2

    @property
    def correction_s(self) -> float:
        """What to add to our wall clock."""
        measured = self.measured_s
        if abs(measured) < NOTICED_FROM_S:
            return 0.0
        return max(-CORRECTION_MAX_S, min(measured, CORRECTION_MAX_S))

    def _of_one(self) -> float:
        """With one other peer nobody knows who is right: half each."""
        return next(iter(self._samples.values()), 0.0) / 2
