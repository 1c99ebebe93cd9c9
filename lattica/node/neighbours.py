"""What a node learns about itself from those with whom it has a session: for `lattica doctor`, whose other side is
`dial_back`."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from lattica.errors import LatticaError
from lattica.mesh.identity import PeerId, peer_text, short_peer
from lattica.node import roster, table_view
from lattica.node.dial_back import CONNECT_S, told_of

if TYPE_CHECKING:
    from lattica.mesh.peer import Peer

log = logging.getLogger(__name__)
REACHED_BY_MAX = 2  # peers that are asked whether they reach us
COMPARED_MAX = 16  # neighbours whose tables are compared with ours
COMPARE_AGAIN_S = 1.0  # what is new is everywhere by then
ANSWER_S = 2 * CONNECT_S


def members(peer: Peer) -> dict[str, Any]:
    """How many members are in which state, and the neighbours that watch this node."""
    community = peer.gossip.community
    watchers = community.membership.neighbours(peer.id)
    return {
        "counts": roster.counts(community.states().values()),
        "watched_by": [{"peer_id": peer_text(other), "name": _name_of(peer, other)} for other in watchers],
    }


async def reached(peer: Peer) -> list[dict[str, Any]]:
    """Who reaches us where, as peers find when they are asked: {peer_id, addresses: {address: "" or why not}}."""
    asked = list(peer.sessions.peers())[:REACHED_BY_MAX] if peer.listening else []
    answers = await asyncio.gather(*(_ask(peer, other, "node.dial_back") for other in asked))
    found = []
    for other, answer in zip(asked, answers):
        if isinstance(answer, dict):
            shown = {str(address): str(answer[address]) for address in told_of(list(answer))}
            found.append({"peer_id": peer_text(other), "addresses": shown})
    return found


async def compared(peer: Peer) -> dict[str, Any]:
    """Our table beside those of neighbours: what `table_view.summary` says, and {refused: [{peer_id, why}], neighbours:
    [{peer_id, name, same, rows}]}. What differs is compared again: a change may be on its way."""
    asked = list(peer.sessions.peers())[:COMPARED_MAX]
    found = {row["peer_id"]: row for row in await _compare(peer, asked)}
    if differing := [other for other in asked if not found.get(peer_text(other), {"same": True})["same"]]:
        await asyncio.sleep(COMPARE_AGAIN_S)
        found |= {row["peer_id"]: row for row in await _compare(peer, differing)}
    refused = [{"peer_id": peer_text(other), "why": why} for other, why in peer.gossip.refusals()]
    return table_view.summary(peer.gossip.community.replica) | {"neighbours": list(found.values()), "refused": refused}


async def _compare(peer: Peer, others: list[PeerId]) -> list[dict[str, Any]]:
    """Those that do not say are left out: programs, and nodes of an earlier release."""

    async def one(other: PeerId) -> dict[str, Any] | None:
        match await _ask(peer, other, "node.table_root"):
            case [bytes(root), int(rows)]:
                same = root == peer.gossip.community.replica.root()
                return {"peer_id": peer_text(other), "name": _name_of(peer, other), "same": same, "rows": rows}
        return None

    return [row for row in await asyncio.gather(*map(one, others)) if row is not None]


async def _ask(peer: Peer, other: PeerId, method: str) -> Any:
    """What it answers; None if it does not."""
    try:
        return await peer.call(other, method, timeout_s=ANSWER_S)
    except (LatticaError, TimeoutError) as error:
        log.info("%s does not answer %s: %s", short_peer(other), method, str(error).partition("\n")[0])
        return None


def _name_of(peer: Peer, other: PeerId) -> str:
    info = peer.gossip.community.node(other)
    return info.name if info is not None else ""
