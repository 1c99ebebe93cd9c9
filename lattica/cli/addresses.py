"""Where a node is reached, in words for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

RELAY = "relay/"
SHORT = 8  # characters of a relay's id
LOOPBACK = ("127.", "[::1]:", "localhost:")


def shown(addresses: Sequence[str]) -> list[str]:
    """Ids of relays are short, and loopback is left out where there is anything else."""
    outer = [text for text in addresses if not text.startswith(LOOPBACK)]
    return [text[: len(RELAY) + SHORT] if text.startswith(RELAY) else text for text in outer or addresses]


def are_local(addresses: Sequence[str]) -> bool:
    """Whether there are some, and all of them mean something in one local network only. A name may mean anything."""
    from lattica.mesh.addresses import split_host
    from lattica.mesh.nat.routes import is_private

    def is_local(text: str) -> bool:
        try:
            return not text.startswith(RELAY) and is_private(split_host(text)[0].partition("%")[0])
        except ValueError:
            return False

    return bool(addresses) and all(map(is_local, addresses))


def trouble_text(trouble: Mapping[str, Any]) -> str:
    """A dial that came to nothing: why, where it went, and whether it could have gone anywhere."""
    found = trouble.get("addresses", ())
    tried = f"; tried {', '.join(shown(found))}" if found else ""
    local = ", of a local network: no machine elsewhere reaches that" if are_local(found) else ""
    return f"{trouble.get('why', '?')}{tried}{local}"


def dial_text(mesh: Mapping[str, Any]) -> str:
    """What to run on a machine that should dial this node; "" if this one is reached nowhere, or in a local network
    only. mesh: as of `whoami`."""
    outer = next((text for text in mesh.get("addresses", ()) if not text.startswith(RELAY)), "")
    return "" if not outer or are_local([outer]) else f"lattica dial {mesh.get('peer_id', '?')} {outer}"
