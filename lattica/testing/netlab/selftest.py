"""Every NAT type built in one lab, and measured: what the probe says must be what the type promises."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from .lab import Lab
from .layout import PROBE
from .topology import Site

BLOCKED = "blocked"


@dataclass(frozen=True, slots=True)
class Expected:
    """mapping and tcp may be "blocked"; filtering is then None."""

    mapping: str
    filtering: str | None
    tcp: str

    def met_by(self, found: dict[str, Any]) -> bool:
        measured = (found.get("mapping", found.get("udp")), found.get("filtering"), found["tcp_mapping"])
        return measured == (self.mapping, self.filtering, self.tcp)


SINGLE = {
    "full-cone": Expected("eim", "eif", "eim"),
    "restricted-cone": Expected("eim", "adf", "eim"),
    "port-restricted": Expected("eim", "apdf", "eim"),
    "port-restricted-random": Expected("eim", "apdf", "eim"),
    "address-symmetric": Expected("adm", "apdf", "adm"),
    "symmetric": Expected("apdm", "apdf", "apdm"),
    "symmetric-seq": Expected("apdm", "apdf", "apdm"),
    "public": Expected("eim", "eif", "eim"),
    "firewall": Expected("eim", "apdf", "eim"),
    "udp-blocked": Expected(BLOCKED, None, "eim"),
    "tcp443-only": Expected(BLOCKED, None, BLOCKED),
    "full-cone hairpin": Expected("eim", "eif", "eim"),
    "port-restricted hairpin": Expected("eim", "apdf", "eim"),
    "cgn": Expected("eim", "eif", "eim"),
    "port-restricted unsolicited=reject": Expected("eim", "apdf", "eim"),
}
DOUBLE = {
    ("port-restricted", "cgn"): Expected("eim", "apdf", "eim"),
    ("full-cone", "cgn"): Expected("eim", "eif", "eim"),
    ("full-cone", "symmetric"): Expected("apdm", "apdf", "apdm"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What was measured behind a NAT, and whether that is what it should be."""

    nat: str
    found: dict[str, Any]
    ok: bool

    def __str__(self) -> str:
        return f"{'ok ' if self.ok else 'BAD'} {self.nat:36} {json.dumps(self.found)}"


def sites() -> tuple[dict[str, Site], dict[str, tuple[str, Expected]]]:
    """The sites of the lab, and host -> (its NAT in words, what must be measured there)."""
    built = {f"s{i}-": Site(nat) for i, nat in enumerate(SINGLE)}
    expected = {f"s{i}-1": each for i, each in enumerate(SINGLE.items())}
    for i, ((inner, outer), each) in enumerate(DOUBLE.items()):
        built.setdefault(outer, Site(outer, hosts=0))
        built[f"d{i}-"] = Site(inner, upstream=outer)
        expected[f"d{i}-1"] = f"{inner} behind {outer}", each
    return built, expected


def findings(lab: Lab, expected: dict[str, tuple[str, Expected]]) -> Iterator[Finding]:
    """Measure the hosts of a lab that is up, all at once."""
    lab.probe(PROBE, tcp=False)  # starts its server
    with ThreadPoolExecutor(len(expected)) as pool:
        measured = dict(zip(expected, pool.map(lab.probe, expected)))
    for host, (nat, promised) in expected.items():
        hairpins = "hairpin" in nat or nat == "cgn"
        ok = promised.met_by(measured[host]) and (not hairpins or measured[host]["hairpin"] == "external source")
        yield Finding(nat, measured[host], ok)


def run() -> int:
    """Build, measure and print; exit code 1 if a type is not what it promises."""
    built, expected = sites()
    with Lab(sites=built) as lab:
        print(f"{len(lab.nodes)} namespaces in {lab.up_seconds:.2f} s")
        found = list(findings(lab, expected))
    for each in found:
        print(each)
    return 0 if all(each.ok for each in found) else 1
