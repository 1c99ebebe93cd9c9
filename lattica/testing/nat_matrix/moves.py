"""Calls and a stream that go on while the path under them changes: nothing fails, nothing comes twice.

    python -m lattica.testing.nat_matrix.moves                  all of MOVES: 200 MiB and 1,000 calls/s across each
    python -m lattica.testing.nat_matrix.moves flushed --rate 200 --mib 20

Exit code 1 if a call failed or ran twice, or the stream did not come whole; 3 if this machine cannot run labs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lattica.testing.netlab import Host, Lab, Unavailable

from .attempts import CALL_S, table
from .commands import DIRECT_S, WAN
from .fleet import RELAYS, Fleet, Told
from .kinds import Pair, hosts_of, sites_of

CALM_S = 2.0  # of load before the change
AFTER_S = 6.0  # of load after it, at the least
ITEM_KIB = 16  # of the stream: large ones hide how soon it flows again
STREAM_S = 600.0  # for all of the stream to come, on a machine that others use


@dataclass(frozen=True, slots=True)
class Move:
    """A change of the path between a pair. direct: whether it begins when the pair is direct, else as soon as it talks.

    act(fleet, hosts, row): make it happen; row: the first one's row of `Peer.peers()` for the other.
    """

    pair: Pair
    words: str
    act: Callable[[Fleet, tuple[str, str], dict[str, Any]], None]
    direct: bool = True
    gap_s: float = 1.0  # promised


def _become_direct(fleet: Fleet, hosts: tuple[str, str], row: dict[str, Any]) -> None:
    """Nothing: the pair does it by itself."""


def _flush(fleet: Fleet, hosts: tuple[str, str], row: dict[str, Any]) -> None:
    fleet.lab.nat_reboot(fleet.lab.node(hosts[0]).site)


def _roam(fleet: Fleet, hosts: tuple[str, str], row: dict[str, Any]) -> None:
    fleet.lab.roam(fleet.lab.node(hosts[0]).site)


def _roam_and_keep(fleet: Fleet, hosts: tuple[str, str], row: dict[str, Any]) -> None:
    fleet.lab.roam(fleet.lab.node(hosts[0]).site, forget=False)


def _kill_relay(fleet: Fleet, hosts: tuple[str, str], row: dict[str, Any]) -> None:
    """The one that carries the pair; a new one comes in its place for whatever is next."""
    short = str(row.get("path", "")).removeprefix("relay/")
    carrying = [host for host in RELAYS if short and fleet.ids[host].startswith(short)]
    if not carrying:
        raise Told(f"the pair is not relayed: {row.get('transport')} {row.get('path')}")
    fleet.kill(carrying[0])


MOVES = {
    "upgrade": Move(("port-restricted", "port-restricted"), "relayed to direct", _become_direct, direct=False),
    "flushed": Move(("port-restricted", "port-restricted"), "a gateway forgot its mappings", _flush),
    "roamed": Move(("port-restricted", "port-restricted"), "a gateway has another address", _roam),
    "kept": Move(("port-restricted", "port-restricted"), "... and sends old flows from the old one", _roam_and_keep),
    "relay": Move(("symmetric", "symmetric"), "the relay was killed", _kill_relay, direct=False, gap_s=3.0),
}


@dataclass(frozen=True, slots=True)
class Moved:
    """How it went. calls, stream: what `calls` and `pull` of the agent say; before, after: paths."""

    move: Move
    calls: dict[str, Any]
    stream: dict[str, Any]
    before: str
    after: str
    acted_at: float

    @property
    def faults(self) -> list[str]:
        """What must not be."""
        calls = self.calls
        found = [f"{calls[what]} calls {words}" for what, words in (("failed", "failed"), ("twice", "ran twice"))
                 if calls[what]]  # fmt: skip
        if calls["ran"] != calls["sent"]:
            found.append(f"{calls['sent']} calls were sent and {calls['ran']} ran")
        return found + ([f"calls failed with {calls['reasons']}"] if calls["reasons"] else [])

    @property
    def gap_s(self) -> float:
        return float(max(self.calls["gap_s"], self.stream["gap_s"]))

    def cells(self) -> list[str]:
        calls, stream = self.calls, self.stream
        return [
            self.move.words,
            f"{self.before} -> {self.after}",
            f"{calls['sent']} calls, {calls['failed']} failed, {calls['twice']} twice",
            f"{calls['gap_s']:.2f} s ({calls['gap_at'] - self.acted_at:+.1f})",
            f"{stream['bytes'] / (1 << 20):.0f} MiB at {stream['bytes'] / stream['took_s'] / 1e6:.1f} MB/s",
            f"{stream['gap_s']:.2f} s ({stream['gap_at'] - self.acted_at:+.1f})",
            f"{self.move.gap_s:g} s",
        ]


HEAD = ["move", "path", "calls", "longest gap (when)", "stream", "longest gap (when)", "promised"]


def play(fleet: Fleet, move: Move, *, rate: float, mib: float, after_s: float = AFTER_S) -> Moved:
    """Raises Told if the pair did not come to where the move begins, or the stream did not come whole."""
    hosts = one, other = hosts_of(move.pair)
    fleet.begin(one, other)
    peer = fleet.ids[other]
    fleet.ask(one, "first_call", peer=peer, within_s=CALL_S)
    row = fleet.ask(one, "watch", peer=peer, within_s=DIRECT_S if move.direct else 0.0)
    if move.direct and not row["direct"]:
        raise Told(f"the pair did not become direct: {row.get('transport')} {row.get('path')}")
    seconds = (CALM_S if move.act is not _become_direct else 0.0) + after_s
    run = f"{time.monotonic():.6f}"
    calls = fleet.tell(one, "calls", peer=peer, run=run, rate=rate, seconds=seconds)
    stream = fleet.tell(one, "pull", peer=peer, mib=mib, item_kib=ITEM_KIB)
    if move.act is not _become_direct:
        time.sleep(CALM_S)
    acted_at = time.monotonic()
    move.act(fleet, hosts, row)
    said, got = calls.result(STREAM_S), stream.result(STREAM_S)
    after = fleet.ask(one, "watch", peer=peer, within_s=DIRECT_S if move.act is _become_direct else 0.0)
    fleet.finish(one, other)
    return Moved(move, said, got, _path(row), _path(after), acted_at)


def _path(row: dict[str, Any]) -> str:
    return f"{row.get('transport', '')} {str(row.get('path', '')).partition(' ')[0]}".strip()


def main(argv: Sequence[str] | None = None) -> int:
    """Play the moves, and print what each has cost; exit code 1 if one went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("moves", nargs="*", metavar="MOVE", help=f"of {', '.join(MOVES)}")
    parser.add_argument("--rate", type=float, default=1000.0, help="calls a second")
    parser.add_argument("--mib", type=float, default=200.0, help="of the stream")
    parser.add_argument("--wan", default=WAN, help="the link of every uplink")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep what the peers log")
    given = parser.parse_args(argv)
    chosen = [MOVES[name] for name in given.moves or MOVES]
    moved, failed = list[Moved](), list[str]()
    try:
        for number, move in enumerate(chosen):
            lab = Lab(public={name: Host() for name in RELAYS}, sites=sites_of(move.pair, given.wan), probe=False)
            with lab, Fleet(lab, given.logs / str(number) if given.logs else None) as fleet:
                fleet.found()
                try:
                    moved.append(play(fleet, move, rate=given.rate, mib=given.mib))
                except (Told, TimeoutError) as error:
                    failed.append(f"{move.words}: {error or 'timeout'}")
                    print(failed[-1], file=sys.stderr, flush=True)
    except Unavailable as error:
        print(error, file=sys.stderr)
        return 3
    print(table([HEAD, *(each.cells() for each in moved)]))
    faults = [fault for each in moved for fault in each.faults] + failed
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
