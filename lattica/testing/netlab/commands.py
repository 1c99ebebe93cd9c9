"""The command line of the lab: `python -m lattica.testing.netlab`.

    python -m lattica.testing.netlab check
    python -m lattica.testing.netlab up demo.toml
    python -m lattica.testing.netlab exec demo a1 -- ping -c3 198.51.100.2
    python -m lattica.testing.netlab shape demo a "80ms loss 5%"
    python -m lattica.testing.netlab down demo

Exit codes: 0, 1 if it could not be done, 2 for wrong usage, 3 if this machine cannot run labs; `exec`: the command's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable

from lattica.errors import ConfigError

from . import selftest, state
from .errors import LabError, Unavailable
from .lab import Lab
from .machine import check
from .topology import PRESETS, changes_of

Given = argparse.Namespace


def _check(given: Given) -> int:
    print("ok: this machine can run network labs")
    return 0


def _selftest(given: Given) -> int:
    return selftest.run()


def _presets(given: Given) -> int:
    for name, nat in PRESETS.items():
        fields = {field.name: (getattr(nat, field.name), field.default) for field in dataclasses.fields(nat)}
        told = (f"{k}={v}" for k, (v, usual) in fields.items() if v != usual or k in ("mapping", "filtering"))
        print(f"{name:24}", " ".join(told))
    return 0


def _up(given: Given) -> int:
    lab = Lab.from_toml(given.toml, given.name)
    lab.detached = True
    lab.up()
    print(f"{lab.name}: {len(lab.nodes)} namespaces in {lab.up_seconds:.2f} s; hosts {' '.join(lab.hosts())}")
    return 0


def _down(given: Given) -> int:
    state.tear_down(state.STATE / state.state_of(given.lab).name)
    return 0


def _clean(given: Given) -> int:
    print(" ".join(state.end_all()) or "nothing to clean")
    return 0


def _list(given: Given) -> int:
    for name in state.labs():
        print(name)
        for node in Lab.attach(name).nodes.values():
            print(f"  {node.name:14} {node.kind:8} {node.ip:16} {node.ip6:24} ip netns exec {node.ns}")
    return 0


def _exec(given: Given) -> int:
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    code: int = Lab.attach(given.lab).popen(given.node, command or ["bash"]).wait()
    return code


def _probe(given: Given) -> int:
    lab = Lab.attach(given.lab)
    try:
        print(json.dumps(lab.probe(given.host), indent=1))
    finally:
        lab.close_probe()
    return 0


def _stats(given: Given) -> int:
    print(json.dumps(Lab.attach(given.lab).link_stats(given.leaf), indent=1))
    return 0


def _shape(given: Given) -> int:
    Lab.attach(given.lab).shape(given.leaf, given.link)
    return 0


def _cut(given: Given) -> int:
    Lab.attach(given.lab).cut(given.leaf, given.mode or "blackhole")
    return 0


def _heal(given: Given) -> int:
    Lab.attach(given.lab).heal(given.leaf)
    return 0


def _partition(given: Given) -> int:
    Lab.attach(given.lab).partition(given.left.split(","), given.right.split(","))
    return 0


def _unpartition(given: Given) -> int:
    Lab.attach(given.lab).unpartition()
    return 0


def _kill(given: Given) -> int:
    print(*Lab.attach(given.lab).kill(given.host))
    return 0


def _roam(given: Given) -> int:
    print(Lab.attach(given.lab).roam(given.leaf, given.address))
    return 0


def _nat_reboot(given: Given) -> int:
    Lab.attach(given.lab).nat_reboot(given.site)
    return 0


def _nat_set(given: Given) -> int:
    Lab.attach(given.lab).nat_set(given.site, **changes_of(given.changes))
    return 0


def _conntrack(given: Given) -> int:
    print("\n".join(Lab.attach(given.lab).conntrack(given.site)))
    return 0


# verb, what it does, its function, its arguments; one that ends in ? or + may be left out or repeated
VERBS: list[tuple[str, str, Callable[[Given], int], list[str]]] = [
    ("check", "say whether this machine can run labs", _check, []),
    ("selftest", "build every NAT type and measure it", _selftest, []),
    ("presets", "list the NAT presets", _presets, []),
    ("up", "build a lab from a TOML file; it stays up when this command has ended", _up, ["toml", "name?"]),
    ("down", "end one lab", _down, ["lab"]),
    ("clean", "end every lab of this machine, whoever made it", _clean, []),
    ("list", "the labs that are up, and their nodes", _list, []),
    ("exec", "run a command in a node: exec LAB NODE -- COMMAND ...", _exec, ["lab", "node", "command..."]),
    ("probe", "measure the NAT in front of a host", _probe, ["lab", "host"]),
    ("shape", 'change a link: shape LAB LEAF "40ms loss 1%%"', _shape, ["lab", "leaf", "link"]),
    ("stats", "the emulator's counters of a link", _stats, ["lab", "leaf"]),
    ("cut", "cut a leaf's link (mode blackhole or down)", _cut, ["lab", "leaf", "mode?"]),
    ("heal", "heal a leaf's link", _heal, ["lab", "leaf"]),
    ("partition", "no direct packets between two groups: partition LAB a1,b1 c1", _partition, ["lab", "left", "right"]),
    ("unpartition", "end the partition", _unpartition, ["lab"]),
    ("kill", "SIGKILL every process in a host", _kill, ["lab", "host"]),
    ("roam", "a new address for a site's uplink or a host", _roam, ["lab", "leaf", "address?"]),
    ("nat-reboot", "a gateway forgets its mappings", _nat_reboot, ["lab", "site"]),
    ("nat-set", "change a gateway: nat-set LAB SITE udp_timeout=5 udp=no", _nat_set, ["lab", "site", "changes+"]),
    ("conntrack", "a gateway's flows", _conntrack, ["lab", "site"]),
]


def parser() -> argparse.ArgumentParser:
    """All verbs of the lab, with their help."""
    formatter = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("python -m lattica.testing.netlab", description=__doc__, formatter_class=formatter)
    verbs = top.add_subparsers(required=True, metavar="VERB")
    for name, purpose, run, arguments in VERBS:
        verb = verbs.add_parser(name, help=purpose, description=purpose)
        verb.set_defaults(run=run)
        for argument in arguments:
            if argument.endswith("..."):
                verb.add_argument(argument[:-3], nargs=argparse.REMAINDER)
            elif argument[-1] in "?+":
                verb.add_argument(argument[:-1], nargs=argument[-1])
            else:
                verb.add_argument(argument)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the exit code."""
    given = parser().parse_args(argv)
    run: Callable[[Given], int] = given.run
    try:
        check()
        return run(given)
    except (Unavailable, LabError, ConfigError) as error:
        print(error, file=sys.stderr)
        return 3 if isinstance(error, Unavailable) else 1
