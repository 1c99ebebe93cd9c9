"""Emulated links: what one plain TCP stream reaches over them, and beside it what lattica does, in the same run.

    python benchmarks/links.py                            1, 20 and 75 ms one way
    python benchmarks/links.py --delay 20 --link "1gbit queue 50ms"
    python benchmarks/links.py --side plain

Two public hosts of a network lab (lattica.testing.netlab, so root), one link with the delay between them, and no limit
of rate unless --link names one: what limits then is the machine, which also emulates the link. TCP's buffers may grow
to bandwidth × delay, for every side alike. Each side has two fresh processes a link. Prints the tables and appends to
`history.jsonl`, but not from a --quick run. Exit code 1 if a promise was missed, 3 if this machine cannot run labs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import history
from mesh_lines import IN_FLIGHT, large_requests, small_calls
from pair_table import Sitting
from pairs import PairSide, Start, ours, plain, present, run_pair, versions

from lattica.testing.netlab import Host, Lab, Unavailable

DELAYS_MS = (1, 20, 75)
SERVER, CLIENT = "server", "client"
PORT = 7000
TCP_SETTINGS = {
    "tcp_rmem": "4096 131072 67108864",  # 64 MiB: bandwidth × delay of 400 MB/s over 75 ms one way; more gained nothing
    "tcp_wmem": "4096 131072 67108864",
    "tcp_no_metrics_save": "1",  # or the second side would know the path from the first
}
QUEUE_PACKETS = 20_000
"""Of each device. Below a window of packets, a sender's own bursts are dropped at its door, before any link."""
SHARE_OF_PLAIN = 0.7
PROMISED: Mapping[int, Mapping[str, float]] = {
    delay_ms: {small_calls(IN_FLIGHT[-1]): small, large_requests(IN_FLIGHT[-1]): large}
    for delay_ms, small, large in ((1, 8_000, 600), (20, 3_000, 280), (75, 1_200, 110))
}
"""Delay in ms -> line -> calls/s that lattica reaches, or SHARE_OF_PLAIN of plain TCP's in the same run."""


def measure(sides: Sequence[PairSide], delays_ms: Sequence[int], link: str) -> Iterator[Sitting]:
    """Every side over every link, one link at a time, the sides in turn. Raises Unavailable."""
    for delay_ms in delays_ms:
        words = f"{delay_ms}ms {link}".strip()
        with Lab(public={SERVER: Host(), CLIENT: Host(words)}, probe=False) as lab:
            control = prepare(lab)
            by_side = {}
            for side in sides:
                print(f"... {words}, {side.name}", file=sys.stderr, flush=True)
                by_side[side.name] = run_pair(side, starter(lab), f"{lab.ip(SERVER)}:{PORT}")
        title = f"link: {words} one way; TCP's congestion control is {control}"
        yield Sitting(title, by_side, PROMISED.get(delay_ms, {}), SHARE_OF_PLAIN)


def prepare(lab: Lab) -> str:
    """Let both hosts and the router between them keep under way what a long link holds; TCP's congestion control."""
    for host in (SERVER, CLIENT):
        with lab.netns(host):
            for name, value in TCP_SETTINGS.items():
                Path("/proc/sys/net/ipv4", name).write_text(value)
            control = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    for cable in lab.cables.values():
        for ns, device in cable.ends:
            subprocess.run(["ip", "-n", ns, "link", "set", device, "txqueuelen", str(QUEUE_PACKETS)], check=True)
    return control


def starter(lab: Lab) -> Start:
    """Both processes of a side, each in its host of the lab."""
    hosts = {"serve": SERVER, "load": CLIENT}

    def start(place: str, command: Sequence[str], options: Mapping[str, Any]) -> subprocess.Popen[str]:
        return lab.popen(hosts[place], command, **options)

    return start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay", type=int, action="append", help="milliseconds one way (may be repeated)")
    parser.add_argument("--link", default="", help='more words for the link, as "1gbit queue 50ms loss 0.1%%"')
    parser.add_argument("--side", choices=["plain", "lattica"], help="only this one")
    parser.add_argument("--quick", action="store_true", help="keep nothing in the history")
    given = parser.parse_args()
    sides = present([side for word, side in (("plain", plain()), ("lattica", ours())) if given.side in (None, word)])
    missed = []
    try:
        for sitting in measure(sides, given.delay or DELAYS_MS, given.link):
            print(sitting.as_text(), end="\n\n", flush=True)
            missed += sitting.missed
            if not given.quick:
                history.append(sitting.rows(versions(), f", {sitting.title.partition(';')[0]}"))
    except Unavailable as error:
        print(error, file=sys.stderr)
        return 3
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
