"""All members of the mesh, as plain data for `lattica peers`: what the table says of them is the same on every node;
paths and round trips are this one's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from lattica.crdt.hlc import seconds_of
from lattica.errors import RemoteProtocolError
from lattica.mesh.community import Community
from lattica.mesh.identity import PEER_ID_BYTES, PeerId, parse_peer, peer_text
from lattica.mesh.letters import Accused, NodeInfo
from lattica.mesh.membership import WITNESSES, State
from lattica.mesh.papers import DAMAGED
from lattica.mesh.roles import NOTHING, roles_text
from lattica.mesh.table.kinds import ACCUSATION, NODE
from lattica.scheduler.load import decode
from lattica.scheduler.resources import UNITS

if TYPE_CHECKING:
    from lattica.mesh.peer import Peer

_accused = msgspec.msgpack.Decoder(Accused)


def members(peer: Peer) -> list[dict[str, Any]]:
    """Every member, this node too, by peer id; and with whom there is a session though its row has not come yet.

    state: of the membership; "reconnecting" for one without a row whose connection is gone. since: when others found
    it dead, or when it said that it goes, in unix seconds; None for the living. session: a connection carries it now.
    """
    community = peer.gossip.community
    sessions = {parse_peer(row["peer_id"]): row for row in peer.peers()}
    states = community.states()
    ends = _ends(community, states)
    now = asyncio.get_running_loop().time()
    found = []
    for member in sorted(states.keys() | sessions.keys()):
        session: Mapping[str, Any] = sessions.get(member, {})
        info = community.node(member) or NodeInfo(session.get("name", ""), session.get("version", ""))
        certified = community.replica.member(member)
        state = states.get(member)
        found.append(
            {
                "peer_id": peer_text(member),
                "name": info.name or session.get("name", ""),
                "state": state.value if state is not None else session["state"],
                "since": ends.get(member),
                "addresses": info.addresses or session.get("addresses", []),
                "transport": session.get("transport", ""),
                "path": session.get("path", ""),
                "method": session.get("method", ""),
                "rtt_ms": session.get("rtt_ms"),
                "roles": session.get("roles") or roles_text(certified.roles if certified else NOTHING),
                "version": info.version,
                "labels": info.labels,
                "resources": info.resources,
                "load": _load(community, member, now),
                "session": session.get("state") == "alive",
                "this_node": member == peer.id,
            }
        )
    return found


def _load(community: Community, member: PeerId, now: float) -> dict[str, Any] | None:
    """What it lately said of itself: what of its resources is taken, how many requests wait; None if it said nothing.
    age_s: how old that is."""
    said = community.soft.get(member, now)
    if said is None:
        return None
    try:
        load = decode(said[0])
    except RemoteProtocolError:
        return None
    taken = {name: units / UNITS for name, units in load.taken.items()}
    return {"taken": taken, "queued": load.queued, "draining": load.draining, "age_s": round(said[1], 3)}


def counts(states: Iterable[State]) -> dict[str, int]:
    """How many are alive, suspect, dead, gone."""
    found = {state.value: 0 for state in State}
    for state in states:
        found[state.value] += 1
    return found


def _ends(community: Community, states: Mapping[PeerId, State]) -> dict[PeerId, float]:
    """When each that is dead or has left came to that, by the clocks of those who wrote it."""
    replica = community.replica
    accused: dict[PeerId, list[int]] = {}
    for row in replica.rows(ACCUSATION):
        suspect = PeerId(row.key[:PEER_ID_BYTES])
        node = replica.get(NODE, bytes(suspect))
        if states.get(suspect) is State.DEAD and node is not None and _dot(row.body) == node.dot:
            accused.setdefault(suspect, []).append(row.content.hlc)
    found = {suspect: seconds_of(sorted(stamps)[:WITNESSES][-1]) for suspect, stamps in accused.items()}
    for member, state in states.items():
        node = replica.get(NODE, bytes(member)) if state is State.LEFT else None
        if node is not None:
            found[member] = seconds_of(node.content.hlc)
    return found


def _dot(body: bytes) -> tuple[int, int]:
    """The accused row's; less than any if it cannot be read."""
    try:
        accused = _accused.decode(body)
    except DAMAGED:
        return -1, -1
    return accused.boot, accused.counter
