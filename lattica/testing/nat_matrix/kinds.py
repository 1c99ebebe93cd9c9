"""What hosts of the matrix are behind, and what a pair of them must reach.

Names are those of `netlab`'s presets, and four more: `double` (port-restricted behind a carrier's NAT), `ipv6`
(symmetric, with global IPv6 addresses behind a stateful firewall), `portmap` (symmetric, and speaks NAT-PMP) and `lan`
(both hosts of the pair behind one port-restricted gateway that knows no hairpin).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations_with_replacement

from lattica.errors import ConfigError
from lattica.testing.netlab import Site

SIMPLE = (
    "public",
    "full-cone",
    "restricted-cone",
    "port-restricted",
    "firewall",
    "symmetric",
    "symmetric-seq",
    "udp-blocked",
    "tcp443-only",
)
SPECIAL = ("double", "ipv6", "portmap", "lan")
KINDS = (*SIMPLE, *SPECIAL)
OPEN = {"public", "full-cone", "restricted-cone"}
"""Who lets in whoever he has sent to from another port, or anybody."""
GUESSED = {"symmetric", "symmetric-seq", "ipv6", "portmap"}
"""Who has another outer port for each destination (over IPv4)."""
MIXED: Mapping[str, int] = {
    "full-cone": 15,
    "port-restricted": 60,
    "symmetric-seq": 4,
    "symmetric": 13,
    "udp-blocked": 5,
    "tcp443-only": 3,
}
"""Hosts of the world in percent, as FACTS assumes them; open filtering is a full cone here."""

Pair = tuple[str, str]


def sites_of(kinds: Iterable[str], wan: str) -> dict[str, Site]:
    """The sites of a lab in which each of these kinds can meet each, itself too. wan: every uplink."""
    built: dict[str, Site] = {}
    for kind in dict.fromkeys(kinds):
        if kind == "lan":
            built["lan-"] = Site("port-restricted", hosts=2, wan=wan)
            continue
        for side in "ab":
            name = f"{short(kind)}{side}"
            if kind == "double":
                built[f"isp{side}"] = Site("cgn", hosts=0, wan=wan)
                built[name] = Site("port-restricted", upstream=f"isp{side}")
            elif kind == "ipv6":
                built[name] = Site("symmetric", ipv6="stateful", wan=wan)
            elif kind == "portmap":
                built[name] = Site("symmetric portmap", wan=wan)
            else:
                built[name] = Site(kind, wan=wan)
    return built


def short(kind: str) -> str:
    """Its sites' name, without the side: names of interfaces are short."""
    words = kind.split("-")
    return words[0] if len(words) == 1 else "".join(word[:3] for word in words)


def hosts_of(pair: Pair) -> tuple[str, str]:
    """Where the two are, in a lab of `sites_of`."""
    if pair == ("lan", "lan"):
        return "lan-1", "lan-2"
    return f"{short(pair[0])}a1", f"{short(pair[1])}b1"


def all_pairs(kinds: Iterable[str] = KINDS) -> list[Pair]:
    """Each with each and itself; `lan` and `ipv6` only with themselves, since else they are what they look like."""
    chosen = list(kinds)
    apart = {"lan", "ipv6"}
    return [
        (one, other)
        for one, other in combinations_with_replacement(chosen, 2)
        if one == other or not {one, other} & apart
    ]


def pair_of(text: str) -> Pair:
    """`symmetric/full-cone`. Raises ConfigError with the names that there are."""
    one, _, other = text.partition("/")
    for kind in (one, other):
        if kind not in KINDS:
            raise ConfigError(f"{text!r} is no pair", do_next=f"two of {', '.join(KINDS)}, as in double/symmetric")
    return one, other


def is_guessed(pair: Pair) -> bool:
    """Whether the pair meets by prediction or the birthday method only, which may miss."""
    return can_be_direct(pair) and bool(set(pair) & GUESSED) and not set(pair) & (OPEN | {"ipv6", "portmap"})


def can_be_direct(pair: Pair) -> bool:
    """Whether some method leads from one to the other: the table of kernel NATs in FACTS, and what goes beyond it."""
    if pair[0] == pair[1] and pair[0] in ("lan", "ipv6", "portmap", "symmetric-seq"):
        return True
    if "portmap" in pair:  # whom anybody reaches; TCP is mapped as well
        return "tcp443-only" not in pair
    symmetric = [kind for kind in pair if kind in GUESSED]
    if "tcp443-only" in pair:
        return False
    if "udp-blocked" in pair and symmetric:
        return bool(set(pair) & OPEN)
    return len(symmetric) < 2
