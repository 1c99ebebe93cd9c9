"""What was tried to become direct, for people: the latest of all peers, bounded; pure."""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from lattica.mesh.identity import PeerId, peer_text

RECORDS_MAX = 256


class Record(msgspec.Struct, frozen=True):
    """A round of punching, or why there was none. at: unix time when it ended; method: in words, "" if none was
    chosen; shots: datagrams or connections begun."""

    peer: PeerId
    at: float
    method: str
    direct: bool
    reason: str = ""
    round: int = 0
    took_s: float = 0.0
    shots: int = 0

    def plain(self) -> dict[str, Any]:
        """For `lattica doctor`."""
        return {
            "peer_id": peer_text(self.peer),
            "at": self.at,
            "method": self.method,
            "direct": self.direct,
            "reason": self.reason,
            "round": self.round,
            "took_s": round(self.took_s, 3),
            "shots": self.shots,
        }


class Records:
    """The latest of all peers, oldest first."""

    def __init__(self, most: int = RECORDS_MAX) -> None:
        self._records: deque[Record] = deque(maxlen=most)

    def __repr__(self) -> str:
        return f"<Records: {len(self._records)}>"

    def __iter__(self) -> Any:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: Record) -> None:
        self._records.append(record)
