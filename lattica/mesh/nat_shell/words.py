"""What `lattica doctor` says of NATs: what this machine is behind, what was tried, what would help; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from lattica.mesh.nat.behaviour import ONLY_6, Behaviour
from lattica.mesh.nat.methods import choose

RELAY = "relay/"  # as of `transport/quic`
PEERS_SHOWN = 8  # of those that are relayed; the others are counted
TRIES_SHOWN = 4  # of one peer
SHORT = 8  # characters of an id
FORWARD = "switch on UPnP or NAT-PMP in the router, or forward a UDP port to this machine (--advertise)"


class Said(NamedTuple):
    """good: nothing is amiss."""

    good: bool
    what: str
    do_next: str = ""


def words_of(status: Mapping[str, Any], peers: Sequence[Mapping[str, Any]]) -> Iterator[Said]:
    """status: as of `Traversal.status`; peers: as of `Peer.peers`, and their names. Tolerates what it does not know."""
    if not status:
        return
    relayed = [peer for peer in peers if str(peer.get("path", "")).startswith(RELAY)]
    behind = _behind(status)
    reached = _reached(peers, relayed)
    yield Said(True, f"{behind}; {reached}" if reached else behind)
    tried, others = dict(status.get("peers") or {}), dict(status.get("others") or {})
    for peer in relayed[:PEERS_SHOWN]:
        theirs = _read(others.get(peer.get("peer_id")))
        yield Said(False, _relayed(peer, tried.get(peer.get("peer_id"), {}), status, theirs), _help(status, theirs))
    if len(relayed) > PEERS_SHOWN:
        yield Said(False, f"... and {len(relayed) - PEERS_SHOWN} more peers are relayed")


def _read(behaviour: Any) -> Behaviour:
    """As of a status; nothing is known by what another release says otherwise."""
    try:
        return msgspec.convert(behaviour or {}, Behaviour)
    except msgspec.ValidationError:
        return Behaviour()


def _behind(status: Mapping[str, Any]) -> str:
    behaviour = dict(status.get("behaviour") or {})
    words = str(status.get("words", ""))
    if not behaviour.get("udp") and words in ("", "not measured"):
        if status.get("reached"):
            return "others reach this machine from outside; no peer with a public address has told what it is behind"
        return "what this machine is behind is not known: no peer with a public address has told it"
    if behaviour.get("udp") is False:
        parts = ["UDP is blocked for this machine"]
    elif words == ONLY_6:
        parts = ["UDP gets out of this machine over IPv6 alone"]
    elif words.startswith("public"):
        parts = [f"this machine has a {words}"]
    else:
        parts = [f"this machine is behind a {words}"]
    if behaviour.get("double"):
        parts.append("which is behind another NAT")
    if observed := [str(each) for each in status.get("observed") or ()]:
        parts.append(f"seen at {observed[0]}")
    if behaviour.get("mapped"):
        parts.append("a port of the router leads here")
    elif behaviour.get("translated"):
        parts.append("no port mapping")
    if behaviour.get("ipv6") and words != ONLY_6:
        parts.append("IPv6 works")
    if lifetime_s := behaviour.get("lifetime_s"):
        parts.append(f"an idle mapping lives {lifetime_s:g} s at least")
    return ", ".join(parts)


def _reached(peers: Sequence[Mapping[str, Any]], relayed: Sequence[Mapping[str, Any]]) -> str:
    """Direct to 11 of 14 peers, 3 relayed through gpu-7, round trip 61 ms."""
    known = [peer for peer in peers if peer.get("path")]
    if not known:
        return ""
    said = f"direct to {len(known) - len(relayed)} of {len(known)} peers"
    if not relayed:
        return said
    through = sorted({_name_of(str(peer["path"]).removeprefix(RELAY), peers) for peer in relayed})
    trips = sorted(float(peer["rtt_ms"]) for peer in relayed if peer.get("rtt_ms") is not None)
    trip = f", round trip {trips[len(trips) // 2]:.0f} ms" if trips else ""
    return f"{said}, {len(relayed)} relayed through {' and '.join(through)}{trip}"


def _name_of(short: str, peers: Sequence[Mapping[str, Any]]) -> str:
    names = (peer.get("name") for peer in peers if str(peer.get("peer_id", "")).startswith(short))
    return str(next(names, "") or short)


def _relayed(peer: Mapping[str, Any], paths: Mapping[str, Any], status: Mapping[str, Any], theirs: Behaviour) -> str:
    """One peer that is relayed: what was tried, and what came of it."""
    who = str(peer.get("name") or str(peer.get("peer_id", "?"))[:SHORT])
    tries: dict[str, str] = {}
    for record in status.get("records") or ():
        if record.get("peer_id") == peer.get("peer_id") and record.get("method") and not record.get("direct"):
            tries.pop(str(record["method"]), None)
            tries[str(record["method"])] = str(record.get("reason") or "in vain")
    tried = ", ".join(f"{method} ({why})" for method, why in list(tries.items())[-TRIES_SHOWN:])
    why = str(paths.get("stays_relayed") or "") or ("" if tried else _hopeless(status, theirs))
    said = [f"tried {tried}" if tried else "nothing was tried yet" if not why else "", why]
    return f"{who} is relayed: {'; '.join(each for each in said if each)}"


def _hopeless(status: Mapping[str, Any], theirs: Behaviour) -> str:
    """Why nothing need be tried; "" if something may go through."""
    ours = _read(status.get("behaviour"))
    if ours.udp is None or theirs.udp is None or choose(ours, theirs, birthday=bool(status.get("birthday", True))):
        return ""
    return f"{ours.words} here, {theirs.words} there: no method goes through"


def _help(status: Mapping[str, Any], theirs: Behaviour) -> str:
    behaviour = dict(status.get("behaviour") or {})
    if behaviour.get("udp") is False:
        return "let UDP out of this site's firewall, so that hole punching has more ways than TCP's"
    if theirs.udp is False:
        return "let UDP out of the other side's firewall, or forward a TCP port to this machine (--advertise)"
    symmetric = behaviour.get("mapping") in ("address-dependent", "address-and-port-dependent")
    if symmetric and not behaviour.get("mapped"):
        more = "" if status.get("birthday", True) else ", or allow --birthday"
        return f"{FORWARD}{more}; IPv6 at both sites helps as well"
    if not behaviour.get("mapped") and behaviour.get("translated"):
        return f"{FORWARD}, here or at the other side"
    return "look at `lattica doctor` of the other side: what it is behind stands there"
