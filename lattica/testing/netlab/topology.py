"""What a lab is made of, as values: links, NATs, hosts and sites, each also readable from a few words.

    Link.of("20ms 50mbit/10mbit jitter 3ms loss 0.5% burst 4 queue 200ms reorder dup 0.1% mtu 1400")
    nat_of("port-restricted hairpin portmap unsolicited=accept")

NAT behaviour is named as in RFC 4787: mapping (§4.1) and filtering (§5). Raises ConfigError (a ValueError) for words
that mean nothing.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from lattica.errors import ConfigError

SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
BITS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}

LinkSpec: TypeAlias = "Link | str | Mapping[str, Any] | None"
NatSpec: TypeAlias = "Nat | str | Mapping[str, Any]"
Value = TypeVar("Value")


def amount(text: str | float, units: Mapping[str, float], example: str) -> float:
    """A number with a unit, as a number of the base unit; plain numbers are in it already."""
    if isinstance(text, int | float):
        return float(text)
    found = re.fullmatch(rf"([\d.]+)({'|'.join(units)})", text)
    if not found:
        raise ConfigError(f"{text!r} is not an amount like {example}")
    return float(found[1]) * units[found[2]]


def seconds(text: str | float) -> float:
    """ "20ms" is 0.02."""
    return amount(text, SECONDS, "20ms")


def bits(text: str | float) -> float:
    """ "100mbit" is 1e8, per second."""
    return amount(text, BITS, "100mbit")


def share(text: str) -> float:
    """ "20%" is 0.2."""
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def made(cls: type[Value], fields: Mapping[str, Any]) -> Value:
    """A value from a table of its fields; raises ConfigError that names the fields there are."""
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    if unknown := fields.keys() - set(known):
        raise ConfigError(
            f"a {cls.__name__} has no {', '.join(sorted(unknown))}", do_next=f"its fields are {', '.join(known)}"
        )
    return cls(**fields)


@dataclass(frozen=True, slots=True)
class Link:
    """One cable. delay is one way and applies to each direction: the round trip grows by twice it.

    rate (bit/s, 0: no limit) is towards the leaf, rate_up away from it (None: the same). loss and dup are shares
    (0.005 is 0.5 %), burst the mean length of a run of lost packets. jitter is a standard deviation. queue bounds the
    bottleneck's buffer, in seconds of its rate: up, it hides loss and adds delay (bufferbloat); down, TCP starves.
    A link with only a rate is a veth pair with tbf; any other goes through linkem, the emulator in user space, and can
    be changed while the lab runs (so can one that is `emulated` from the start).
    """

    delay: float = 0.0
    jitter: float = 0.0
    rate: float = 0.0
    rate_up: float | None = None
    loss: float = 0.0
    burst: float = 1.0
    dup: float = 0.0
    queue: float = 0.1
    reorder: bool = False
    emulated: bool = False
    mtu: int = 1500

    @classmethod
    def of(cls, spec: LinkSpec) -> Link:
        """A link as it is, from words, or from a table of its fields (numbers or words); None is a plain cable."""
        if isinstance(spec, Link):
            return spec
        if isinstance(spec, str):
            return cls(**_link_fields(spec))
        fields = dict(spec or {})
        for key in ("delay", "jitter", "queue", "rate", "rate_up"):
            if fields.get(key) is not None:
                fields[key] = (bits if key.startswith("rate") else seconds)(fields[key])
        return made(cls, fields)

    @property
    def needs_linkem(self) -> bool:
        return bool(self.emulated or self.delay or self.jitter or self.loss or self.dup)

    def rate_of(self, *, up: bool) -> float:
        return self.rate_up if up and self.rate_up is not None else self.rate

    def params(self, *, up: bool) -> str:
        """One direction in linkem's words: microseconds, bit/s and parts per million."""
        return (
            f"delay={self.delay * 1e6:.0f},jitter={self.jitter * 1e6:.0f},rate={self.rate_of(up=up):.0f},"
            f"loss={self.loss * 1e6:.1f},burst={self.burst},dup={self.dup * 1e6:.1f},"
            f"queue={self.queue * 1e6:.0f},reorder={int(self.reorder)}"
        )


LINK_WORDS: Mapping[str, Callable[[str], float]] = {
    "delay": seconds,
    "jitter": seconds,
    "queue": seconds,
    "loss": share,
    "dup": share,
    "burst": float,
    "mtu": int,
}


def _link_fields(text: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    words = iter(text.split())
    for word in words:
        if word in LINK_WORDS:
            value = next(words, "")
            try:
                fields[word] = LINK_WORDS[word](value)
            except ValueError as error:
                raise ConfigError(f"{word} in the link {text!r} needs an amount, not {value!r}") from error
        elif word in ("reorder", "emulated"):
            fields[word] = True
        elif word.endswith("bit"):
            down, _, up = word.partition("/")
            fields["rate"] = bits(down)
            if up:
                fields["rate_up"] = bits(up)
        else:
            fields["delay"] = seconds(word)
    return fields


@dataclass(frozen=True, slots=True)
class Nat:
    """A gateway's behaviour; UDP's words, and TCP gets the same where it applies.

    mapping: none (routed, public addresses) | eim (endpoint-independent) | adm (address-dependent)
             | apdm (a fresh random port per destination) | apdm-seq (the next port per destination)
    filtering: eif (anyone) | adf (addresses sent to) | apdf (addresses and ports sent to)
    ports: preserve (keep the inner port when it is free) | random
    hairpin: hosts of the LAN can reach each other through the outer address
    udp: False blocks UDP both ways. egress: any | tcp443 (only outbound TCP to port 443)
    unsolicited: what happens to packets nobody asked for: drop (silently) | reject (ICMP, TCP RST)
                 | accept (no firewall: the gateway's own stack answers, and remembers the flow)
    portmap: the gateway offers NAT-PMP (RFC 6886) on UDP 5351 to its LAN
    udp_timeout, udp_stream: seconds until an idle mapping ends (one-way, two-way traffic)
    """

    mapping: str = "eim"
    filtering: str = "apdf"
    ports: str = "preserve"
    hairpin: bool = False
    udp: bool = True
    egress: str = "any"
    unsolicited: str = "drop"
    portmap: bool = False
    udp_timeout: int = 30
    udp_stream: int = 120

    def __post_init__(self) -> None:
        for name, allowed in NAT_CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"Nat.{name} is one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        for field in dataclasses.fields(self):
            if type(getattr(self, field.name)) is not type(field.default):
                kind = type(field.default).__name__
                raise ConfigError(f"Nat.{field.name} is of type {kind}, not {getattr(self, field.name)!r}")
        if self.mapping in ("adm", "apdm", "apdm-seq") and (self.filtering != "apdf" or self.hairpin):
            raise ConfigError("an endpoint-dependent mapping goes with filtering apdf and no hairpin here")

    def changed(self, changes: Mapping[str, Any]) -> Nat:
        return made(Nat, dataclasses.asdict(self) | dict(changes))


NAT_CHOICES: Mapping[str, Sequence[str]] = {
    "mapping": ("none", "eim", "adm", "apdm", "apdm-seq"),
    "filtering": ("eif", "adf", "apdf"),
    "ports": ("preserve", "random"),
    "egress": ("any", "tcp443"),
    "unsolicited": ("drop", "reject", "accept"),
}
PRESETS: Mapping[str, Nat] = {
    "full-cone": Nat("eim", "eif"),
    "restricted-cone": Nat("eim", "adf"),
    "port-restricted": Nat("eim", "apdf"),
    "port-restricted-random": Nat("eim", "apdf", ports="random"),
    "address-symmetric": Nat("adm", "apdf", ports="random"),
    "symmetric": Nat("apdm", "apdf"),
    "symmetric-seq": Nat("apdm-seq", "apdf"),
    "cgn": Nat("eim", "eif", ports="random", hairpin=True),
    "public": Nat("none", "eif"),
    "firewall": Nat("none", "apdf"),
    "udp-blocked": Nat("eim", "apdf", udp=False),
    "tcp443-only": Nat("eim", "apdf", egress="tcp443"),
}


def preset(name: str) -> Nat:
    """A NAT as they are sold. Raises ConfigError with the names that there are."""
    if name not in PRESETS:
        raise ConfigError(f"no NAT preset {name!r}", do_next=f"take one of {', '.join(PRESETS)}")
    return PRESETS[name]


def changes_of(words: Iterable[str]) -> dict[str, Any]:
    """`hairpin udp_stream=5 udp=no` as fields: a word alone is true."""
    changes: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        meanings = {"": True, "yes": True, "no": False}
        changes[name] = int(value) if value.isdigit() else meanings.get(value, value)
    return changes


def nat_of(spec: NatSpec) -> Nat:
    """A Nat as it is, a table of its fields (`preset` among them), or a preset's name with changes behind it."""
    if isinstance(spec, Nat):
        return spec
    if isinstance(spec, str):
        name, *words = spec.split()
        return preset(name).changed(changes_of(words))
    fields = dict(spec)
    base = fields.pop("preset", None)
    return (preset(base) if base else Nat()).changed(fields)


@dataclass(frozen=True, slots=True)
class Host:
    """A public host; `link` is its cable to the core."""

    link: LinkSpec = None


@dataclass(frozen=True, slots=True)
class Site:
    """A gateway and the hosts behind it. hosts is a count (a1, a2, ...) or their names.

    wan shapes the gateway's uplink, link every host's own cable. upstream names another site: the gateway then hangs on
    that site's LAN (double NAT, CGNAT). ipv6: none | open | stateful (global addresses for the hosts; without or with a
    firewall that lets only answers in). lan: its IPv4 network, where the one it would get does not suit.
    """

    nat: NatSpec = "port-restricted"
    hosts: int | Sequence[str] = 1
    wan: LinkSpec = None
    link: LinkSpec = None
    upstream: str | None = None
    ipv6: str = "none"
    lan: str | None = None

    def __post_init__(self) -> None:
        if self.ipv6 not in ("none", "open", "stateful"):
            raise ConfigError(f"Site.ipv6 is none, open or stateful, not {self.ipv6!r}")


def host_of(spec: Host | LinkSpec) -> Host:
    """A public host from itself, its link, or a table with its fields."""
    if isinstance(spec, Host):
        return spec
    return made(Host, spec) if isinstance(spec, Mapping) else Host(spec)


def site_of(spec: Site | NatSpec) -> Site:
    """A site from itself, its NAT, or a table with its fields."""
    if isinstance(spec, Site):
        return spec
    return made(Site, spec) if isinstance(spec, Mapping) else Site(spec)
