"""What the mesh's protocols say to each other inside a session, as bytes: `rpc`'s notices.

    protocol 1, community    [1, nonce, answer, root, sayings] · [2, flood, rows] · [3 or 4, suspect] · [5, sayings]
                             [6, caller, to, hops]
             2, comparison   see `table/reconcile`
             3, pub/sub      see `pubsub`
             4, DHT          see `dht`
             5, views        see `scheduler/views`
             6, NAT          see `nat_shell/exchange`

Numbers are only ever appended. A protocol that is not known is ignored, so that releases may differ; a message that is
not known within one is not, so what a release adds to a protocol has a number of its own here.
"""

from __future__ import annotations

import msgspec

from lattica.errors import RemoteProtocolError
from lattica.mesh import membership
from lattica.mesh.identity import PEER_ID_BYTES, PeerId
from lattica.mesh.letters import SUMMON_HOPS, Message, News, Probe, Rows, Summon
from lattica.mesh.papers import DAMAGED
from lattica.mesh.soft_state import SAYINGS_MAX, Saying
from lattica.mesh.table import reconcile
from lattica.mesh.table.rows import read_row

COMMUNITY, COMPARISON, PUBSUB, DHT, VIEWS, NAT = 1, 2, 3, 4, 5, 6
ROWS_MAX = 2048
"""In one message: what fits into a notice, if each has the least that a row has."""
ROOT_MAX_BYTES = 32


class _Probe(msgspec.Struct, array_like=True, tag=1, frozen=True):
    nonce: int
    answer: bool
    root: bytes
    sayings: list[Saying] = []


class _Rows(msgspec.Struct, array_like=True, tag=2, frozen=True):
    flood: bool
    rows: list[bytes]


class _Ask(msgspec.Struct, array_like=True, tag=3, frozen=True):
    suspect: bytes


class _Heard(msgspec.Struct, array_like=True, tag=4, frozen=True):
    suspect: bytes


class _News(msgspec.Struct, array_like=True, tag=5, frozen=True):
    sayings: list[Saying]


class _Summon(msgspec.Struct, array_like=True, tag=6, frozen=True):
    caller: bytes
    to: bytes
    hops: int


_decode = msgspec.msgpack.Decoder(_Probe | _Rows | _Ask | _Heard | _News | _Summon).decode
_encode = msgspec.msgpack.Encoder().encode


def encode(message: Message) -> tuple[int, bytes]:
    """(protocol, body) of a community's message."""
    match message:
        case Probe(nonce, answer, root, sayings):
            return COMMUNITY, _encode(_Probe(nonce, answer, root, list(sayings)))
        case Rows(rows, flood):
            return COMMUNITY, _encode(_Rows(flood, [row.data for row in rows]))
        case Summon(caller, to, hops):
            return COMMUNITY, _encode(_Summon(caller, to, hops))
        case News(sayings):
            return COMMUNITY, _encode(_News(list(sayings)))
        case membership.Ask(suspect):
            return COMMUNITY, _encode(_Ask(suspect))
        case membership.Heard(suspect):
            return COMMUNITY, _encode(_Heard(suspect))
        case _:
            return COMPARISON, reconcile.encode(message)


def decode(protocol: int, body: bytes) -> Message:
    """A community's message. Raises RemoteProtocolError."""
    if protocol == COMPARISON:
        return reconcile.decode(body)
    try:
        message = _decode(body)
    except DAMAGED as error:
        raise RemoteProtocolError(f"a message of the community cannot be read: {error}") from error
    match message:
        case _Probe(nonce, answer, root, sayings):
            if not 0 <= nonce < 1 << 32 or len(root) > ROOT_MAX_BYTES:
                raise RemoteProtocolError("a probe has a field out of range")
            return Probe(nonce, answer, root, _sayings(sayings))
        case _Summon(caller, to, hops):
            if not 0 <= hops <= SUMMON_HOPS:
                raise RemoteProtocolError(f"a summons over {hops} more peers")
            return Summon(_peer(caller), _peer(to), hops)
        case _News(sayings):
            return News(_sayings(sayings))
        case _Rows(flood, rows):
            if len(rows) > ROWS_MAX:
                raise RemoteProtocolError(f"{len(rows)} rows came at once, and {ROWS_MAX} may")
            return Rows(tuple(read_row(data) for data in rows), flood)
        case _Ask(suspect):
            return membership.Ask(_peer(suspect))
        case _:
            return membership.Heard(_peer(message.suspect))


def _sayings(sayings: list[Saying]) -> tuple[Saying, ...]:
    if len(sayings) > SAYINGS_MAX or any(not 0 <= saying.number < 1 << 63 for saying in sayings):
        raise RemoteProtocolError("soft state that is too much, or has a number out of range")
    return tuple(sayings)


def _peer(data: bytes) -> PeerId:
    if len(data) != PEER_ID_BYTES:
        raise RemoteProtocolError(f"a peer id of {len(data)} bytes")
    return PeerId(data)
