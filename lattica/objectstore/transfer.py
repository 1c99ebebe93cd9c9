"""One object on its way to this machine: which block comes from whom next, and which are here.

    source_has(who, have) ─► ask(who) ─► blocks of a run ─► arrived(who, block, ok)
                                  └─ lost(who, why) ─► what it was asked for is open again

Rules of this file: no bytes and no time. A block counts only once its digest matched (`matches`), whoever sent it. A
source that sent a wrong one is never asked again. The fewer have a block, the sooner it is asked for, so that every
part of the object spreads. When all is asked for, a source with nothing to do is asked for what another has not sent
yet: the slowest does not decide when the last block comes.
Source: Cohen, "Incentives Build Robustness in BitTorrent" (2003), §2.4: rarest first, and the endgame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from blake3 import blake3

from lattica.errors import RemoteProtocolError
from lattica.objectstore.arena import Buffer
from lattica.objectstore.cid import BLOCK_BYTES, DIGEST_BYTES, MANIFEST_VERSION, Manifest, cid_named

Peer = bytes

RUN_BLOCKS = 4
"""Asked for at once. Fewer: a message for every MiB. More: a source that is lost or slow holds up as many."""
AHEAD_BLOCKS = 16
"""Asked of one source and not here: bandwidth x delay of 100 MB/s over 150 ms, which is also what a stream carries."""
ASKED_TWICE = 2  # of how many sources a block is wanted at the same time
BLOCKS_MAX = 1 << 18
"""Of an object: 256 GiB, more than any machine's arena. Its manifest is 9 MiB."""
_NEVER = 255  # stands for a block that need not be asked for; others have how many incomplete sources have it


def read_manifest(data: Any, cid: bytes | None = None) -> Manifest:
    """The manifest that another machine sent. Raises RemoteProtocolError if it is none, or not the one of `cid`."""
    if not isinstance(data, list) or len(data) != 4:
        raise RemoteProtocolError("it sent a manifest that is none")
    version, total, block_bytes, digests = data
    if version != MANIFEST_VERSION or block_bytes != BLOCK_BYTES:
        raise RemoteProtocolError(f"it sent a manifest of version {version!r:.20} with blocks of {block_bytes!r:.20}")
    if type(total) is not int or not 0 <= total <= BLOCKS_MAX * BLOCK_BYTES or not isinstance(digests, list):
        raise RemoteProtocolError(f"it sent a manifest of {total!r:.40} bytes; {BLOCKS_MAX} blocks are allowed")
    if len(digests) != -(-total // BLOCK_BYTES) or any(
        not isinstance(each, bytes) or len(each) != DIGEST_BYTES for each in digests
    ):
        raise RemoteProtocolError(f"it sent a manifest whose digests are not those of {total} bytes")
    manifest = Manifest(version, total, block_bytes, digests)
    if cid is not None and cid_named(manifest) != cid:
        raise RemoteProtocolError("it sent a manifest of other content")
    return manifest


def block_size(manifest: Manifest, block: int) -> int:
    """Bytes of one block: the last may be shorter."""
    return min(BLOCK_BYTES, manifest.total_bytes - block * BLOCK_BYTES)


def matches(manifest: Manifest, block: int, parts: Sequence[Buffer]) -> bool:
    """Whether these bytes, in order, are the block that the manifest names."""
    if sum(len(part) for part in parts) != block_size(manifest, block):
        return False
    hasher = blake3()
    for part in parts:
        hasher.update(part)
    return bool(hasher.digest() == manifest.digests[block])


class _Source:
    __slots__ = ("asked", "have")

    def __init__(self, have: bytearray | None) -> None:
        self.have = have  # a byte per block; None: it has all
        self.asked: dict[int, None] = {}  # blocks, in the order in which they were asked for

    def has(self, block: int) -> bool:
        return self.have is None or bool(self.have[block])


class Transfer:
    """See the module."""

    def __init__(self, manifest: Manifest, start: int = 0) -> None:
        """start: the block to begin with where nothing else decides. If every reader has another, they soon have
        something for each other."""
        count = len(manifest.digests)
        self.manifest = manifest
        self.failures: dict[Peer, str] = {}  # sources that are no more, and why
        self.liars: set[Peer] = set()
        self.held = bytearray(count)  # 1: verified and here
        self.left = count
        self._sources: dict[Peer, _Source] = {}
        self._rank = bytearray(count)  # _NEVER, or by how many incomplete sources it could be sent
        self._spread = bytearray(count)  # the same for all blocks
        self._next = start % count if count else 0

    def __repr__(self) -> str:
        count = len(self.held)
        return f"<Transfer: {count - self.left} of {count} blocks, {len(self._sources)} sources>"

    @property
    def done(self) -> bool:
        """All of it is here."""
        return not self.left

    @property
    def sources(self) -> Mapping[Peer, object]:
        """Those that may be asked."""
        return self._sources

    def known_of(self, who: Peer) -> int | None:
        """How many blocks an incomplete source is known to have; None: it has all, or is none."""
        source = self._sources.get(who)
        return None if source is None or source.have is None else sum(source.have)

    # -- what is told

    def source_has(self, who: Peer, have: Buffer) -> None:
        """This source has these blocks, a byte for each; nothing: it has all. Raises RemoteProtocolError."""
        if who in self.liars:
            return
        if len(have) not in (0, len(self.held)):
            raise RemoteProtocolError(f"it says which of {len(have)} blocks it has, of {len(self.held)}")
        complete = not len(have) or 0 not in have
        source = self._sources.get(who)
        if source is None:
            source = self._sources[who] = _Source(bytearray(len(self.held)))
        self.failures.pop(who, None)
        before = source.have if source.have is not None else bytearray(len(self.held))
        for block, had in enumerate(before):
            has = not complete and have[block] != 0
            if has != bool(had):
                self._spread_by(block, 1 if has else -1)
        source.have = None if complete else bytearray(map(bool, have))

    def arrived(self, who: Peer, block: int, ok: bool) -> bool:
        """A block came from this source. ok: its digest matched. Whether it is the first that did."""
        if not ok:
            self._drop(who, f"it sent a wrong block {block}", lied=True)
            return False
        for source in self._sources.values():
            source.asked.pop(block, None)
        first = not self.held[block]
        self.left -= first
        self.held[block] = 1
        self._rank[block] = _NEVER
        return first

    def lost(self, who: Peer, why: str) -> None:
        """It will send nothing more."""
        self._drop(who, why, lied=False)

    def lied(self, who: Peer, why: str) -> None:
        """It broke a rule: never ask it again."""
        self._drop(who, why, lied=True)

    # -- what is asked

    def ask(self, who: Peer) -> range | None:
        """The next run of blocks to ask this source for; None if there is nothing now, or it has enough to do."""
        source = self._sources.get(who)
        if source is None or len(source.asked) >= self._ahead():
            return None
        run = self._rarest(source) or self._late(who, source)
        if run is None:
            return None
        for block in run:
            source.asked[block] = None
            self._rank[block] = _NEVER
        self._next = run.stop % len(self.held)
        return run

    def expect(self, who: Peer, blocks: Sequence[int]) -> None:
        """It was asked for these before it was known what they should be: they will come, the last one last."""
        source = self._sources[who]
        for block in blocks:
            if not self.held[block]:
                source.asked[block] = None
                self._rank[block] = _NEVER
        if blocks:
            self._next = (blocks[-1] + 1) % len(self.held)

    def validate(self) -> None:
        """Assert what always holds."""
        assert self.left == self.held.count(0), "blocks do not add up"
        asked = {block for source in self._sources.values() for block in source.asked}
        assert not any(self.held[block] for block in asked), "a block that is here is waited for"
        for block in range(len(self.held)):
            spread = sum(source.have is not None and source.have[block] for source in self._sources.values())
            assert self._spread[block] == spread, f"block {block} is at {spread} sources, not {self._spread[block]}"
            open_ = not self.held[block] and block not in asked
            assert self._rank[block] == (spread if open_ else _NEVER), f"block {block} is out of place"

    # -- inside

    def _ahead(self) -> int:
        """What one source may owe: of several none more than half its share of the rest, so that they end together
        (Polychronopoulos & Kuck 1987, guided self-scheduling), and little is asked for twice."""
        sources = len(self._sources)
        return AHEAD_BLOCKS if sources < 2 else max(min(self.left // (2 * sources), AHEAD_BLOCKS), RUN_BLOCKS)

    def _rarest(self, source: _Source) -> range | None:
        """Open blocks that it has and the fewest others, from where the last run ended."""
        rank, count = self._rank, len(self._rank)
        for level in range(len(self._sources) + 1):
            wanted = bytes((level,))
            for begin, end in ((self._next, count), (0, self._next)):
                first = rank.find(wanted, begin, end)
                while first >= 0 and not source.has(first):
                    first = rank.find(wanted, first + 1, end)
                if first >= 0:
                    stop = first + 1
                    while stop < min(first + RUN_BLOCKS, count) and rank[stop] == level and source.has(stop):
                        stop += 1
                    return range(first, stop)
        return None

    def _late(self, who: Peer, source: _Source) -> range | None:
        """One block, the last, of the source that has the most to send: nothing else is open, here neither."""
        if source.asked:
            return None
        others = [other for name, other in self._sources.items() if name != who and other.asked]
        for other in sorted(others, key=lambda other: -len(other.asked)):
            for block in reversed(other.asked):
                if source.has(block) and block not in source.asked and self._askers(block) < ASKED_TWICE:
                    return range(block, block + 1)
        return None

    def _askers(self, block: int) -> int:
        return sum(block in source.asked for source in self._sources.values())

    def _drop(self, who: Peer, why: str, *, lied: bool) -> None:
        self.failures.setdefault(who, why)
        if lied:
            self.failures[who] = why
            self.liars.add(who)
        source = self._sources.get(who)
        if source is not None:
            self._give_back(source)
            for block, had in enumerate(source.have or ()):
                if had:
                    self._spread_by(block, -1)
            del self._sources[who]

    def _give_back(self, source: _Source) -> None:
        blocks = list(source.asked)
        source.asked.clear()
        for block in blocks:
            if not self.held[block] and not self._askers(block):
                self._rank[block] = self._spread[block]

    def _spread_by(self, block: int, change: int) -> None:
        self._spread[block] += change
        if self._rank[block] != _NEVER:
            self._rank[block] += change
