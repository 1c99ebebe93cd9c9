"""Another node, as long as the link with it lasts, and what its silence means.

A node that is silent for SILENCE_S, or cannot be reached, loses the tasks that it runs for us; what else it has of ours
waits for the membership's verdict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lattica.codec import far
from lattica.mesh.effects import NOBODY_LISTENS
from lattica.mesh.identity import PeerId, peer_text
from lattica.mesh.roles import Role
from lattica.mesh.services import method, service

if TYPE_CHECKING:
    from lattica.mesh.calls import Pipe
    from lattica.node.clients import Client
    from lattica.node.far_desk import FarDesk
    from lattica.node.far_hosting import Token
    from lattica.node.far_placing import Wish
    from lattica.node.far_workers import Away
    from lattica.node.links import Link

SILENCE_S = 3.0
"""Of a node that has tasks of ours, after which they are run elsewhere. Longer: a lost machine's tasks wait for it;
shorter: one that is merely busy runs them twice."""
PING_S = 1.0  # how often a node that has work of others, or of which it is asked, says something


class Neighbour:
    """Another node, for as long as the link with it."""

    def __init__(self, peer: PeerId, client: Client, link: Link) -> None:
        self.peer, self.client, self.link = peer, client, link
        self.told_jobs: dict[bytes, float] = {}  # job -> until when they have its token
        self.asked_jobs: set[bytes] = set()  # of theirs: they have told us of it, or were asked whether it goes on
        self.asks: dict[int, Wish] = {}
        self.workers: dict[int, Away] = {}  # their number -> it
        self.known: dict[tuple[int, int], int] = {}  # (their number of a process, worker) -> our number of it
        self.questions: dict[int, bool] = {}  # their requests that wait here -> whether for an actor
        self.tokens: dict[int, Token] = {}  # of questions of detached actors: in which life they ask
        self.shown: set[int] = set()  # workers of ours that they know: they are told of the end of each
        self.early: dict[int, list[bytes] | None] = {}  # what came on carriers that are not let through; None: closed
        self.early_bytes = 0
        self.doubtful = False  # their silence has cost them our tasks
        self.works = False  # its roles let it run something for us, or have us run something
        self.warned = False  # that they may not say what they say

    def may(self, roles: Role) -> None:
        """What its certificates say now."""
        self.works = bool(roles & (Role.EXECUTE | Role.SUBMIT))

    def __repr__(self) -> str:
        return f"<Neighbour {peer_text(self.peer)[:8]}: {len(self.workers)} workers for us>"


@service("node")
class NodeService:
    """What one node offers to others."""

    def __init__(self, desk: FarDesk) -> None:
        self._desk = desk

    @method(role=Role.EXECUTE | Role.SUBMIT | Role.STORE, pipe=True)
    async def link(self, *, pipe: Pipe) -> None:
        """Hear a node: `codec.far`. What each of its messages needs is checked by the desk."""
        await self._desk.linked(pipe)


class Silence:
    """Says that we live, to those who wait for us; doubts those who are silent."""

    def __init__(self, desk: FarDesk) -> None:
        self._desk, self._node = desk, desk.node
        self.refused: set[PeerId] = set()  # nobody listens there any more, though the machine answers
        self._beat = self._node.loop.call_later(PING_S, self._ping)

    def __repr__(self) -> str:
        return f"<Silence: {sum(neighbour.doubtful for neighbour in self._desk.neighbours.values())} nodes are doubted>"

    def faltered(self, peer: PeerId, reason: str) -> None:
        """No connection, and none to be had: what it does for us is done elsewhere, now."""
        if all(NOBODY_LISTENS in why for why in reason.split("; ")):
            self.refused.add(peer)
        neighbour = self._desk.neighbours.get(peer)
        if neighbour is not None:
            how = f"{neighbour.client.name} cannot be reached: {reason}"
            self.lose(neighbour, how)
            self._desk.objects.doubted(neighbour, how)

    def close(self) -> None:
        """The node ends."""
        self._beat.cancel()

    def _ping(self) -> None:
        """Say that we live, to those who wait for us; doubt those who are silent."""
        now = self._node.now()
        self._beat = self._node.loop.call_later(PING_S, self._ping)
        self._desk.jobs.doubt()
        for neighbour in list(self._desk.neighbours.values()):
            if renewed := self._desk.roles_of(neighbour.peer):
                neighbour.may(renewed)
            link = neighbour.link
            mine = bool(neighbour.asks) or any(away.lease for away in neighbour.workers.values())
            if mine and now - max(link.heard_at, link.since) > SILENCE_S and not neighbour.doubtful:
                self.lose(neighbour, f"{neighbour.client.name} has been silent for {SILENCE_S:g} s")
            if (mine or self._desk.hosting.works_for(neighbour)) and now - link.said_at >= PING_S / 2:
                link.send(far.Taken(0, 0))

    def lose(self, neighbour: Neighbour, how: str) -> None:
        """Its leases of tasks are lost, whether it lives or not; if it does, it is told to end them."""
        neighbour.doubtful = True
        self._desk.placing.take_back(neighbour)
        self._desk.workers.lose(neighbour, how)
        self._desk.placing.look_soon()
