"""Peers that this node has met, kept on disk: whom it dials when it comes back, and when it tries again.

    <data directory>/identity/mesh/peers     JSON {"version": 1, "mesh": hex, "peers": [{peer, addresses, seen}, ...]}

The file holds no secret. A damaged one, or one of another mesh, is as good as none: whoever knows us dials us.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from lattica.errors import ConfigError
from lattica.files import remove, write_private
from lattica.mesh.identity import PeerId, parse_peer, peer_text, short_peer

log = logging.getLogger(__name__)
VERSION = 1
CONTACTS_MAX = 64
"""More would be dialed at each start, and one living peer is enough to come back."""
ADDRESSES_MAX = 16  # of a contact
FILE_MAX_BYTES = 256 << 10  # 64 contacts of 16 addresses have 60 KB
RETRY_S = (1.0, 300.0)
"""Pause after the first dial in vain, and the longest, by doubling: a machine that is off costs a handshake every five
minutes, and one that comes back dials us."""


@dataclass(slots=True)
class Contact:
    """One peer that was met. seen: unix seconds; due: when to dial it again, on the loop's clock."""

    peer: PeerId
    addresses: tuple[str, ...]
    seen: float
    failures: int = 0
    due: float = 0.0
    trouble: str = ""  # why the last dial came to nothing

    def __repr__(self) -> str:
        return f"<Contact {short_peer(self.peer)}: {self.failures} failures>"


class Contacts:
    """Those of one mesh, at most CONTACTS_MAX, the latest seen."""

    def __init__(self, path: str, mesh: bytes) -> None:
        """Read them from `path`."""
        self.path, self._mesh = path, mesh
        self.known: dict[PeerId, Contact] = {contact.peer: contact for contact in _read(path, mesh)}

    def __repr__(self) -> str:
        return f"<Contacts: {len(self.known)}>"

    def add(self, peers: Iterable[tuple[PeerId, Sequence[str]]]) -> None:
        """Peers that a ticket names: to be dialed, and kept only once they were met. It may know newer addresses of one
        that was met before: those are tried first."""
        for peer, addresses in peers:
            contact = self.known.get(peer)
            if contact is not None:
                both = dict.fromkeys([*addresses, *contact.addresses])
                contact.addresses, contact.due = tuple(both)[:ADDRESSES_MAX], 0.0
            elif addresses:
                self.known[peer] = Contact(peer, tuple(addresses[:ADDRESSES_MAX]), 0.0)

    def met(self, sessions: Mapping[PeerId, Sequence[str]], unix_s: float) -> bool:
        """With these there is a session now. Whether the file should be written anew."""
        changed = False
        for peer, addresses in sessions.items():
            texts = tuple(addresses[:ADDRESSES_MAX])
            contact = self.known.get(peer)
            if contact is None:
                if not texts:
                    continue  # it does not listen: nobody can dial it
                contact = self.known[peer] = Contact(peer, texts, 0.0)
            changed = changed or not contact.seen or (texts != contact.addresses and bool(texts))
            contact.addresses = texts or contact.addresses
            contact.seen, contact.failures, contact.due, contact.trouble = unix_s, 0, 0.0, ""
        for peer in sorted(self.known, key=lambda peer: self.known[peer].seen)[
            : max(len(self.known) - CONTACTS_MAX, 0)
        ]:
            del self.known[peer]
        return changed

    def failed(self, contact: Contact, why: str, now: float, rng: Random) -> None:
        """A dial came to nothing."""
        pause = min(RETRY_S[0] * 2**contact.failures, RETRY_S[1])
        contact.trouble, contact.failures = why, min(contact.failures + 1, 16)
        contact.due = now + pause * rng.uniform(0.5, 1.0)

    def forget(self, peers: Collection[PeerId]) -> bool:
        """These are no members any more. Whether there were such."""
        gone = [peer for peer in peers if self.known.pop(peer, None) is not None]
        return bool(gone)

    def due(self, now: float) -> list[Contact]:
        """Whom to dial by now, unless there is a session."""
        return [contact for contact in self.known.values() if contact.due <= now]

    def data(self) -> bytes:
        """The file's content."""
        rows = [
            {"peer": peer_text(contact.peer), "addresses": contact.addresses, "seen": int(contact.seen)}
            for contact in sorted(self.known.values(), key=lambda contact: -contact.seen)
            if contact.seen
        ]
        return json.dumps({"version": VERSION, "mesh": self._mesh.hex(), "peers": rows}, indent=1).encode() + b"\n"


def contacts_path(identity: str) -> str:
    """Where the file lies. identity: the node's identity folder."""
    return os.path.join(identity, "mesh", "peers")


def write_contacts(path: str, data: bytes) -> None:
    """Keep them; a disk that is full is no reason to stop."""
    try:
        write_private(path, data)
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error.strerror)


def remove_contacts(identity: str) -> None:
    """Forget them all."""
    remove(contacts_path(identity))


def _read(path: str, mesh: bytes) -> list[Contact]:
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read(FILE_MAX_BYTES))
        if found["mesh"] != mesh.hex():
            return []
        return [
            Contact(parse_peer(row["peer"]), tuple(map(str, row["addresses"][:ADDRESSES_MAX])), float(row["seen"]))
            for row in found["peers"][:CONTACTS_MAX]
            if row["addresses"]
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError, RecursionError) as error:
        log.warning("%s cannot be read, and is not used: %r", path, error)
        return []
