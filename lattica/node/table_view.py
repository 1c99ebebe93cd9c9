"""The mesh's table as plain data, for `lattica table` and `lattica doctor`: how much there is, and what rows say."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from lattica.crdt.hlc import seconds_of
from lattica.errors import ConfigError, RemoteProtocolError
from lattica.mesh.identity import PEER_ID_BYTES, PeerId, peer_text, short_peer
from lattica.mesh.letters import Accused, NodeInfo
from lattica.mesh.papers import DAMAGED, read_paper
from lattica.mesh.roles import roles_text
from lattica.mesh.table.kinds import (
    ACCUSATION,
    BY_NAME,
    CERTIFICATE,
    CLEARANCE,
    EVIDENCE,
    KINDS,
    NEVER,
    NODE,
    SERVICE,
    STATEMENT,
    Keys,
)
from lattica.mesh.table.rows import BOOT_BITS, Row
from lattica.mesh.trust import STATEMENT_MAX_BYTES, IssuerNamed, IssuerRevoked, PeerRevoked, Says

if TYPE_CHECKING:
    from lattica.mesh.table.replica import Replica

ROWS_MAX = 5_000
"""Rows that are shown at once: some 3 MB of answer, built in 0.1 s, during which the node does nothing else."""
WORDS_MAX = 200  # characters of what a row says


def summary(replica: Replica) -> dict[str, Any]:
    """{root, rows, kinds: [{kind, rows, hidden, bytes}], distrusted: [{peer_id, why}]}. hidden: of rows, those that do
    not count: tombstones, and whatever a writer wrote that is distrusted."""
    kinds: dict[int, list[int]] = {number: [0, 0, 0] for number in KINDS}
    writers: dict[PeerId, str] = {}
    for row in replica.all():
        of = kinds.setdefault(row.kind, [0, 0, 0])
        of[0] += 1
        of[1] += not replica.is_visible(row)
        of[2] += len(row.data)
        if row.writer not in writers:
            writers[row.writer] = replica.distrusts(row.writer)
    return {
        "root": replica.root().hex(),
        "rows": len(replica),
        "kinds": [
            {"kind": kind_name(number), "rows": rows, "hidden": hidden, "bytes": size}
            for number, (rows, hidden, size) in sorted(kinds.items())
        ],
        "distrusted": [{"peer_id": peer_text(peer), "why": why} for peer, why in sorted(writers.items()) if why],
    }


def rows_of(replica: Replica, kind: str) -> dict[str, Any]:
    """{kind, rows: [...], more: rows beyond ROWS_MAX}, by key. Raises ConfigError for a kind that is none.

    Of a row: key, writer, boot, counter, written and expires (unix seconds; None for never), gone, hidden (why it does
    not count, or ""), bytes, says.
    """
    number = BY_NAME[kind].number if kind in BY_NAME else int(kind) if kind.isascii() and kind.isdigit() else 0
    if not number:
        raise ConfigError(f"there is no kind {kind!r:.40}", do_next=f"choose from {', '.join(BY_NAME)}")
    found = sorted((row for row in replica.all() if row.kind == number), key=lambda row: row.key)
    return {
        "kind": kind_name(number),
        "rows": [_shown(row, replica) for row in found[:ROWS_MAX]],
        "more": max(len(found) - ROWS_MAX, 0),
    }


def kind_name(number: int) -> str:
    """Its number, if only a later release knows it."""
    return KINDS[number].name if number in KINDS else str(number)


def _shown(row: Row, replica: Replica) -> dict[str, Any]:
    c = row.content
    why = "" if replica.is_visible(row) else "a tombstone" if c.gone else replica.distrusts(row.writer)
    proves = row.kind in KINDS and KINDS[row.kind].keys is Keys.PROVES
    return {
        "key": _key(row),
        "writer": "" if proves else peer_text(row.writer),
        "boot": c.boot >> BOOT_BITS,
        "counter": c.counter,
        "written": seconds_of(c.hlc) if c.hlc else None,
        "expires": c.expires if c.expires < NEVER else None,
        "gone": c.gone,
        "hidden": why,
        "bytes": len(row.data),
        "says": "" if c.gone else _says(row, replica)[:WORDS_MAX],
    }


def _key(row: Row) -> str:
    """Readable: ids of peers shortened, text as it is, else hex."""
    key, kind = row.key, KINDS.get(row.kind)
    if kind in (NODE, CERTIFICATE, CLEARANCE, EVIDENCE):
        return short_peer(PeerId(key[:PEER_ID_BYTES]))
    if kind is ACCUSATION:
        return f"{short_peer(PeerId(key[:PEER_ID_BYTES]))} by {short_peer(row.writer)}"
    if kind is SERVICE:
        return f"{short_peer(row.writer)} {_text(key[PEER_ID_BYTES:])}"
    return key[:8].hex() if kind is STATEMENT else _text(key)


def _says(row: Row, replica: Replica) -> str:
    """What the body means; where nobody knows, what stands in it."""
    try:
        match KINDS.get(row.kind):
            case kind if kind is NODE:
                return _node(msgspec.msgpack.decode(row.body, type=NodeInfo))
            case kind if kind is ACCUSATION:
                accused = msgspec.msgpack.decode(row.body, type=Accused)
                return f"silent since it wrote ({accused.boot >> BOOT_BITS}, {accused.counter})"
            case kind if kind is CERTIFICATE and (member := replica.member(row.writer)) is not None:
                by = "its ticket" if member.via_invite else "an issuer"
                return f"{roles_text(member.roles)}; by {by}, until {_date(member.expires)}"
            case kind if kind is STATEMENT:
                return _statement(row.body)
            case kind if kind is EVIDENCE:
                return f"wrote two things as ({row.content.boot >> BOOT_BITS}, {row.content.counter})"
            case kind if kind is CLEARANCE:
                return f"trusted again, up to boot {int.from_bytes(row.body[:8], 'big') >> BOOT_BITS}"
        return _text(row.body)
    except (*DAMAGED, RemoteProtocolError) as error:
        return f"cannot be read: {error}"


def _node(info: NodeInfo) -> str:
    parts = [info.name, f"lattica {info.version}", "has left" if info.left else " ".join(info.addresses)]
    parts.append(" ".join(f"{name}={value}" for name, value in sorted(info.labels.items())))
    parts.append(" ".join(_amount(name, amount) for name, amount in sorted(info.resources.items())))
    return "; ".join(filter(None, parts))


def _amount(name: str, amount: float) -> str:
    return f"{amount / 2**30:.1f} GiB {name}" if name == "memory" else f"{amount:g} {name}"


def _statement(body: bytes) -> str:
    paper = read_paper(body, STATEMENT_MAX_BYTES, "a statement")
    at, says = msgspec.msgpack.decode(paper.body, type=tuple[float, Says])
    match says:
        case PeerRevoked(peer, _, reason):
            what = f"peer {short_peer(PeerId(peer))} is out" + (f": {reason}" if reason else "")
        case IssuerRevoked(issuer, since, reason):
            what = f"issuer {issuer.hex()[:8]} ended on {_date(since)}" + (f": {reason}" if reason else "")
        case IssuerNamed(_, peer, label):
            what = f"peer {short_peer(PeerId(peer))} is an issuer" + (f" ({label})" if label else "")
    return f"{_date(at)}: {what}"


def _date(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d")


def _text(data: bytes) -> str:
    """As it is, if it is text for people; else in hex."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = ""
    return text if text.isprintable() and text else data[: WORDS_MAX // 2].hex()
