"""What a superseded actor knew: its last checkpoint stays on this node's disk, under its content id, for who wants it.

Two lives of a detached actor met, and this node ended the one that it ran. What callers of that life have told it is in
no other place. Nobody merges two states by himself: the log and `lattica list actors --json` name the content and the
file, and the class can read it (`pickle.loads`, then `__lattica_restore__`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import msgspec

from lattica.files import write_private
from lattica.mesh.papers import DAMAGED
from lattica.objectstore.cid import cid_text

log = logging.getLogger(__name__)
OFFER_S = 7 * 24 * 3600.0  # as long as the table remembers what has ended
OFFERS_MAX = 64  # the oldest is forgotten first
OFFERS_MAX_BYTES = 1 << 30  # of them on disk, beside the last; each has up to 256 MiB


class Offer(msgspec.Struct, frozen=True):
    """The state of one life that was ended. since: unix seconds; content: its CID, binary."""

    actor: bytes
    class_name: str
    name: str
    namespace: str
    life: tuple[int, int, bool]
    how: str
    since: float
    content: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Offer]).decode


class Fenced:
    """See the module."""

    def __init__(self, folder: str, unix: Callable[[], float]) -> None:
        """folder: where the contents lie (`node.kept`); the list of them lies beside it."""
        self._folder, self._path, self._unix = folder, f"{folder}-offers", unix
        self._offers: list[Offer] = []
        try:
            with open(self._path, "rb") as file:
                self._offers = _decode(file.read())
        except FileNotFoundError:
            pass
        except (OSError, *DAMAGED) as error:
            log.warning("the list of superseded actors' states cannot be read: %s", error)

    def __repr__(self) -> str:
        return f"<Fenced: {len(self._offers)} states>"

    def add(self, offer: Offer) -> None:
        """A life was ended here, and its last checkpoint has this content."""
        self._drop_old()
        self._offers = [*self._offers, offer][-OFFERS_MAX:]
        while len(self._offers) > 1 and sum(map(self._size, self._offers)) > OFFERS_MAX_BYTES:
            del self._offers[0]
        try:
            write_private(self._path, _encode(self._offers))
        except OSError as error:
            log.warning("the list of superseded actors' states cannot be kept on disk: %s", error)
        log.warning(
            "the last checkpoint of actor %s (%s), life %s, is kept as %s in %s",
            offer.actor.hex(), offer.class_name, offer.life[:2], cid_text(offer.content), self._folder,
        )  # fmt: skip

    def contents(self) -> list[bytes]:
        """Which must stay on disk."""
        self._drop_old()
        return [offer.content for offer in self._offers]

    def view(self) -> list[dict[str, Any]]:
        """For `lattica list actors`: rows as of `node.state`, with `state_cid` and `state_file`."""
        self._drop_old()
        return [
            {
                "actor": offer.actor.hex(),
                "class_name": offer.class_name,
                "name": offer.name,
                "namespace": offer.namespace,
                "state": "FENCED",
                "incarnation": 0,
                "restarts": 0,
                "pid": 0,
                "job": 0,
                "how": offer.how,
                "state_cid": cid_text(offer.content),
                "state_file": os.path.join(self._folder, cid_text(offer.content)),
            }
            for offer in self._offers
        ]

    def _size(self, offer: Offer) -> int:
        try:
            return os.stat(os.path.join(self._folder, cid_text(offer.content))).st_size
        except OSError:
            return 0

    def _drop_old(self) -> None:
        oldest = self._unix() - OFFER_S
        self._offers = [offer for offer in self._offers if offer.since >= oldest]
