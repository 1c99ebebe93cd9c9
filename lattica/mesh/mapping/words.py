"""What `lattica doctor` says of port mappings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def words_of(status: Mapping[str, Any]) -> tuple[str, str]:
    """(what is so, what would help) of a `Keeper.status`. Tolerates what it does not know."""
    gateways = [one for one in status.get("gateways", ()) if isinstance(one, Mapping)]
    if status.get("off"):
        return f"no port of the gateway is asked for: {status['off']}", ""
    if not status.get("looked"):
        return "no gateway was asked for a port yet", ""
    if not gateways:
        return "there is no default gateway to ask for a port (only Linux tells which it is)", ""
    said = [_one(gateway) for gateway in gateways]
    help_is_at = next((do_next for _, do_next in said if do_next), "")
    mapped = any(gateway.get("mapped") and not gateway.get("behind_another") for gateway in gateways)
    return "; ".join(words for words, _ in said), "" if mapped else help_is_at


def _one(gateway: Mapping[str, Any]) -> tuple[str, str]:
    name = f"the gateway {gateway.get('gateway', '?')}"
    mapped = dict(gateway.get("mapped") or {})
    if mapped:
        places = " and ".join(f"{kind.upper()} {at}" for kind, at in sorted(mapped.items()))
        if len(set(mapped.values())) == 1 and len(mapped) == 2:
            places = str(next(iter(mapped.values())))
        what = f"{name} maps {places} here, by {gateway.get('method', '?')}"
        if gateway.get("behind_another"):
            return f"{what}; but it is behind another NAT, so that is of no use outside", ""
        return what, ""
    if gateway.get("busy"):
        return f"{name} is being asked for a port", ""
    tried = ", ".join(f"{method}: {why}" for method, why in dict(gateway.get("tried") or {}).items())
    return (
        f"{name} maps no port ({tried or 'nothing was tried'})",
        "switch on UPnP or NAT-PMP in the router, if you may",
    )
