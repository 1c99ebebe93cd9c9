"""Sees to a peer's standing in its mesh: its certificates, whom it may talk to, what time it is.

It carries out what `admission` and `trust` decide, and offers to other peers the service `mesh`:

    mesh.statements(theirs)    exchange of signed revocations and issuers, once per session where digests differ
    mesh.certify()             a membership certificate, from an issuer, for whoever asks: its key is its name
    mesh.issuing_key()         the public key under which this node would issue, for an admin that makes it an issuer
    mesh.issue(chain, member)  that admin's answer
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lattica.mesh import tls
from lattica.mesh.identity import PeerId
from lattica.mesh.roles import NOTHING, Role
from lattica.mesh.services import method, service

if TYPE_CHECKING:
    from lattica.mesh.peer import Peer


class Steward:
    no_roles = NOTHING

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.contexts = tls.Contexts(peer.credentials)

    def objection(self, member: Any, unix_s: float) -> str:
        return ""

    def met(self, peer: PeerId, member: Any, hello: Any) -> Role:
        return member.roles

    def clock_sample(self, peer: PeerId, offset_s: float) -> None: ...
    def refused_by(self, peer: PeerId, reason: str) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    async def serve_renewal(self, reader: Any, writer: Any) -> None: ...

    def service(self) -> object:
        return _Service()


@service("mesh")
class _Service:
    @method(role=None)
    def ping(self) -> int:
        return 1
