"""What a node was told of objects that lie elsewhere: who has them, and what they are called by content.

    hinted(object, holders) ─► next ─► ask that one ─► it has it: forgotten, or next …─► None: whoever lends it shall
                                                                                        bring it

Rules of this file: no IO, no time. Hearsay costs a question and never an answer: whoever is named is asked, and who
lends the object is asked again when none of them has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from lattica.mesh.identity import PeerId

HOLDERS_MAX = 8  # of an object, named in one answer
TRIED_MAX = 16  # of an object, before its lender is asked to bring it
KNOWN_MAX = 65_536
"""Objects of which something is known (up to 600 B each); beyond, the oldest is forgotten: it is asked for anew."""
CID_BYTES_MAX = 37


class Known(msgspec.Struct, eq=False):
    """Of one object. tried: who was asked, or need not be, since it was last hinted at; empty: nobody now."""

    cid: bytes = b""
    vouched: bool = False  # the CID is said by who lends it, or by whom that named; not by a borrower
    holders: dict[PeerId, None] = {}
    tried: set[PeerId] = set()


class Holders:
    """See the module."""

    def __init__(self, known_max: int = KNOWN_MAX) -> None:
        self._known: dict[bytes, Known] = {}
        self._known_max = known_max

    def __repr__(self) -> str:
        asked = sum(bool(known.tried) for known in self._known.values())
        return f"<Holders of {len(self._known)} objects, {asked} of them being asked>"

    def hinted(self, object_: bytes, holders: Iterable[PeerId], cid: bytes, but: Iterable[PeerId]) -> None:
        """They are said to have it, the best first. but: who need not be asked: ourselves, and who said so."""
        known = self._of(object_)
        known.tried.update(but)
        for holder in list(holders)[:HOLDERS_MAX]:
            if len(known.holders) < TRIED_MAX:
                known.holders[holder] = None
        self.learned(object_, cid, vouched=True)

    def learned(self, object_: bytes, cid: bytes, *, vouched: bool) -> None:
        """Its CID in binary form, if it is one. A borrower's word does not replace a lender's."""
        if 0 < len(cid) <= CID_BYTES_MAX:
            known = self._of(object_)
            if vouched or not known.vouched:
                known.cid, known.vouched = cid, vouched

    def asking(self, object_: bytes) -> bool:
        """Whether those who were named are being asked."""
        known = self._known.get(object_)
        return known is not None and bool(known.tried)

    def next(self, object_: bytes, lives: Callable[[PeerId], bool]) -> PeerId | None:
        """Whom to ask now. None: everybody was; it begins anew with the next hint."""
        known = self._known.get(object_)
        if known is None:
            return None
        for holder in known.holders:
            if holder not in known.tried and len(known.tried) < TRIED_MAX and lives(holder):
                known.tried.add(holder)
                return holder
        known.tried.clear()
        known.holders.clear()
        return None

    def of(self, object_: bytes) -> list[PeerId]:
        """Who is said to have it."""
        known = self._known.get(object_)
        return [] if known is None else list(known.holders)

    def cid(self, object_: bytes, *, vouched: bool = False) -> bytes:
        """Its CID; empty if it is not known, or vouched for by nobody whom we have it from."""
        known = self._known.get(object_)
        return b"" if known is None or (vouched and not known.vouched) else known.cid

    def doubt(self, object_: bytes) -> None:
        """What has this CID could not be had."""
        if (known := self._known.get(object_)) is not None:
            known.cid, known.vouched = b"", False

    def forget(self, object_: bytes) -> None:
        """It is here, or nobody here wants it any more, or it is made anew."""
        self._known.pop(object_, None)

    def validate(self) -> None:
        """Assert the bounds."""
        assert len(self._known) <= self._known_max
        for known in self._known.values():
            assert len(known.holders) <= TRIED_MAX and len(known.cid) <= CID_BYTES_MAX
            assert not known.vouched or known.cid

    def _of(self, object_: bytes) -> Known:
        known = self._known.get(object_)
        if known is None:
            if len(self._known) >= self._known_max:
                del self._known[next(iter(self._known))]
            known = self._known[object_] = Known()
        return known
