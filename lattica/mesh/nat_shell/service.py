"""What a peer does for others that traverse NATs: `nat.key` and `nat.answer_from`. Every member may ask, a relay-only
node too: nothing of it runs anybody's code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lattica.errors import RemoteProtocolError
from lattica.mesh.nat.routes import Endpoint
from lattica.mesh.services import caller, method, service

if TYPE_CHECKING:
    from lattica.mesh.nat_shell.traversal import Traversal


@service("nat")
class NatService:
    """What a peer does for others that ask what NAT they are behind, or become direct with it."""

    def __init__(self, traversal: Traversal) -> None:
        self._traversal = traversal

    @method(role=None)
    def key(self, card: bytes) -> bytes:
        """Our card for theirs; both have keys with each other now. Raises RemoteProtocolError."""
        return self._traversal.crossing.keyring.asked(caller.get().peer, card)

    @method(role=None)
    def answer_from(self, data: bytes, host: str, port: int) -> None:
        """Send this ANSWER, which the caller has signed, from our main socket to somebody who asked the caller for it:
        does it arrive, although its receiver has never sent anything here? Raises RemoteProtocolError."""
        if not (isinstance(data, bytes | memoryview) and isinstance(host, str) and isinstance(port, int)):
            raise RemoteProtocolError("an answer for somebody else holds what is none")
        self._traversal.crossing.measuring.asked_to_answer(bytes(data), Endpoint(host, port))
