"""What changes every second: free resources, queue lengths, load. Unsigned, forgotten soon, carried on probes.

Each peer numbers what it says of itself; the highest number counts. What is new here is passed on with the next few
messages to others, the newest first, so that a change reaches a large mesh in a few exchanges and costs nothing while
nothing changes. What a thousand busy peers say each second is more than anybody can hear: then news are older.
"""

from __future__ import annotations

import msgspec

from lattica.mesh.identity import PeerId

DATA_MAX_BYTES = 128  # of one peer: a dozen resources
EXPIRE_S = 30.0
"""What was not renewed for so long counts no more. Its owner says it anew at half of that, while there is something."""
SAYINGS_MAX = 40  # in one message: some 2 KiB
PASSED_ON = 3
"""Times that a saying is passed on by each that heard it. Fewer: some never hear of it; more: bytes for the deaf."""
FORGOTTEN_S = 2 * EXPIRE_S  # later than anybody passes it on: until then an echo is known as one
PEERS_MAX = 20_000  # that are heard of: 3 MB, twice as many as a mesh may have
ID_BYTES = 8
"""Of a peer's id, in a saying: no two members share them by chance, and who makes them be shared blurs its own load."""


class Saying(msgspec.Struct, array_like=True, frozen=True):
    """What a peer says of itself. peer: the beginning of its id; age_ms: since it said so, as far as is known."""

    peer: bytes
    number: int
    age_ms: int
    data: bytes


class _Entry(msgspec.Struct):
    number: int
    said_at: float
    data: bytes
    left: int  # times that it will be passed on


class SoftState:
    """See the module."""

    def __init__(self, me: PeerId, first_number: int) -> None:
        """first_number: greater than any that an earlier process of this peer used, like its boot."""
        self._me = me[:ID_BYTES]
        self._number = first_number
        self._entries: dict[bytes, _Entry] = {}
        self._fresh: dict[bytes, None] = {}  # to be passed on, the newest last
        self._sweep_at = 0.0
        self._heard: dict[bytes, None] = {}

    def __repr__(self) -> str:
        return f"<SoftState: {len(self._entries)} peers, {len(self._fresh)} to pass on>"

    def say(self, data: bytes, now: float) -> None:
        """What this peer says of itself from now on; b"" for nothing."""
        assert len(data) <= DATA_MAX_BYTES, "too much is said"
        mine = self._entries.get(self._me)
        if mine is not None and mine.data == data and now - mine.said_at < EXPIRE_S / 2:
            return
        if mine is None and not data:
            return
        self._number += 1
        self._enter(self._me, _Entry(self._number, now, data, PASSED_ON))

    @property
    def has_news(self) -> bool:
        """Whether there is something to pass on."""
        return bool(self._fresh)

    def pick(self, now: float) -> tuple[Saying, ...]:
        """What to send along with a message; it counts as passed on."""
        mine = self._entries.get(self._me)
        if mine is not None and mine.data and now - mine.said_at >= EXPIRE_S / 2:
            self.say(mine.data, now)
        if not self._fresh:
            return ()
        found: list[Saying] = []
        for peer in list(reversed(self._fresh))[:SAYINGS_MAX]:
            entry = self._entries.get(peer)
            if entry is None or now - entry.said_at >= EXPIRE_S:
                del self._fresh[peer]
                continue
            found.append(Saying(peer, entry.number, int((now - entry.said_at) * 1e3), entry.data))
            entry.left -= 1
            if entry.left <= 0:
                del self._fresh[peer]
        return tuple(found)

    def hear(self, sayings: tuple[Saying, ...] | list[Saying], now: float) -> None:
        """What came with a message."""
        for saying in sayings[:SAYINGS_MAX]:
            peer = saying.peer
            known = self._entries.get(peer)
            if peer == self._me or (known is not None and known.number >= saying.number and not _is_old(known, now)):
                continue
            if len(peer) != ID_BYTES or len(saying.data) > DATA_MAX_BYTES or not 0 <= saying.age_ms < EXPIRE_S * 1e3:
                continue
            if known is not None or self._has_room(now):
                self._enter(peer, _Entry(saying.number, now - saying.age_ms / 1e3, saying.data, PASSED_ON))
                self._heard[peer] = None

    def heard(self) -> list[bytes]:
        """Who has said something since this was last asked, by the beginnings of their ids (ID_BYTES)."""
        found = list(self._heard)
        self._heard.clear()
        return found

    def get(self, peer: PeerId, now: float) -> tuple[bytes, float] | None:
        """(what it said, seconds ago); None if it said nothing lately."""
        entry = self._entries.get(peer[:ID_BYTES])
        if entry is None or now - entry.said_at >= EXPIRE_S or not entry.data:
            return None
        return entry.data, now - entry.said_at

    def forget(self, peer: PeerId) -> None:
        """It is gone."""
        self._entries.pop(peer[:ID_BYTES], None)
        self._fresh.pop(peer[:ID_BYTES], None)

    def _has_room(self, now: float) -> bool:
        """For one peer more, after those that are silent for long were forgotten."""
        if len(self._entries) >= PEERS_MAX and self._sweep_at <= now:
            self._sweep_at = now + EXPIRE_S
            self._entries = {peer: entry for peer, entry in self._entries.items() if not _is_old(entry, now)}
        return len(self._entries) < PEERS_MAX

    def _enter(self, peer: bytes, entry: _Entry) -> None:
        self._entries[peer] = entry
        self._fresh.pop(peer, None)
        self._fresh[peer] = None


def _is_old(entry: _Entry, now: float) -> bool:
    return now - entry.said_at >= FORGOTTEN_S
