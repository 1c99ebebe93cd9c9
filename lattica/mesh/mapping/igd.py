"""Speaks UPnP to the gateway: a program of its own, started by `keeper` and ended by it if it takes too long.

    python -I igd.py '{"gateway": "192.168.1.1", "client": "192.168.1.7", "port": 7411, "lifetime_s": 3600}'
    {"host": "203.0.113.7", "udp": 7411, "tcp": 7411, "lifetime_s": 3600, "url": "http://…"}        or {"why": "…"}

What it said before may be given with the question: "url" saves the search, "udp" and "tcp" are asked for again, or with
lifetime_s 0 given back. A process, because miniupnpc (the library that has met most
routers) waits for the network, in C, and reads XML from whoever answers first: it has nothing here to lose. Only a
gateway at the default gateway's address is asked for anything.
"""

from __future__ import annotations

import json
import sys
from typing import Any
from urllib.parse import urlsplit

DISCOVER_MS = 1500  # for answers to the search; routers take up to a second
PORTS_TRIED = 4  # outer ports, until one is free for both
NAME = "lattica"  # in the router's own list
PERMANENT = "OnlyPermanentLeasesSupported"  # error 725 of UPnP IGD 1


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """What came of it."""
    try:
        import miniupnpc
    except ImportError:
        return {"why": "miniupnpc is not installed"}
    upnp = miniupnpc.UPnP(multicastif=asked["client"], discoverdelay=DISCOVER_MS)
    try:
        url = _select(upnp, asked)
    except Exception as error:  # miniupnpc raises no other, with the text of its own code
        return {"why": _words(error)}
    found = urlsplit(url).hostname
    if found != asked["gateway"]:
        return {"why": f"{found} answers, which is not the default gateway"}
    if not asked["lifetime_s"]:
        return _end(upnp, asked)
    return _begin(upnp, asked) | {"url": url}


def _select(upnp: Any, asked: dict[str, Any]) -> str:
    """Where its description lies: as last time, or by a search."""
    if asked.get("url"):
        try:
            return str(upnp.selectigd(asked["url"]))
        except Exception:  # it was started again, and listens at another port
            if not asked["lifetime_s"]:
                raise
    upnp.discover()
    return str(upnp.selectigd())


def _words(error: Exception) -> str:
    text = str(error)[:200]
    return "no answer" if text in ("", "Success", "No UPnP device discovered") else text


def _begin(upnp: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """Map our port; the same outer one for both protocols, if there is such."""
    try:
        host = upnp.externalipaddress()
    except Exception as error:
        return {"why": f"no outer address: {_words(error)}"}
    mapped: dict[str, Any] = {}
    first = asked.get("udp") or asked["port"]
    for tried in range(PORTS_TRIED):
        outer = 1024 + (first - 1024 + tried * 7919) % 64512  # far enough from the neighbours' second choice
        mapped = _map(upnp, asked, outer)
        if "udp" in mapped and "tcp" in mapped:
            break
        if tried + 1 < PORTS_TRIED:
            _end(upnp, mapped)
    if "udp" not in mapped and "tcp" not in mapped:
        return {"why": mapped.get("why", "refused")}
    return mapped | {"host": host}


def _map(upnp: Any, asked: dict[str, Any], outer: int) -> dict[str, Any]:
    said: dict[str, Any] = {"lifetime_s": asked["lifetime_s"]}
    for protocol in ("udp", "tcp"):
        for lifetime_s in (said["lifetime_s"], 0):
            try:
                upnp.addportmapping(outer, protocol.upper(), asked["client"], asked["port"], NAME, "", lifetime_s)
                said[protocol], said["lifetime_s"] = outer, lifetime_s
                break
            except Exception as error:
                said["why"] = _words(error)
                if PERMANENT not in str(error):
                    break
    return said


def _end(upnp: Any, asked: dict[str, Any]) -> dict[str, Any]:
    for protocol in ("udp", "tcp"):
        if asked.get(protocol):
            try:
                upnp.deleteportmapping(asked[protocol], protocol.upper())
            except Exception:  # it is gone already
                continue
    return {}


if __name__ == "__main__":
    print(json.dumps(answer(json.loads(sys.argv[1]))), flush=True)
