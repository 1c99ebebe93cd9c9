"""What each kind of path carries between two machines over cables without a limit: `python benchmarks/paths.py`.

    TCP dialed      both are public                      QUIC direct    the same, without TCP
    TCP punched     both are behind port-restricted      QUIC relayed   both have another port for each destination
                    NATs, and bulk opens TCP at once                    at random, so only a relay's channel is left

Hosts of a network lab (lattica.testing.netlab, so root), peers in processes of their own, all on this machine's cores:
the relay's work counts as well, so compare rows of one sitting. One side pulls a stream of what nobody can compress.
Exit code 3 if this machine cannot run labs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lattica.testing.nat_matrix import RELAYS, Fleet, Told, hosts_of, sites_of
from lattica.testing.nat_matrix.attempts import table
from lattica.testing.netlab import Host, Lab, Unavailable

IN_FLIGHT = 256
AS_MUCH_MIB = 1 << 20  # a pull ends by time
ANSWER_S = 10.0


@dataclass(frozen=True, slots=True)
class Path:
    """pair: kinds of the two. transports: that both may use. transport, path: how those of `Peer.peers()` begin. bulk:
    how the transport of bulk begins; "": the same one."""

    name: str
    pair: tuple[str, str]
    transports: Sequence[str]
    transport: str
    path: str
    bulk: str = ""


PATHS = (
    Path("TCP dialed", ("public", "public"), ("tcp",), "tcp", "direct"),
    Path("TCP punched", ("port-restricted", "port-restricted"), ("tcp", "quic"), "quic", "direct", "tcp"),
    Path("QUIC direct", ("public", "public"), ("quic",), "quic", "direct"),
    Path("QUIC relayed", ("symmetric", "symmetric"), ("tcp", "quic"), "quic", "relay"),
)


def measure(fleet: Fleet, path: Path, seconds: float, within_s: float) -> Mapping[str, float | str]:
    """One sitting of one path. Raises Told if it could not be had."""
    one, other = hosts_of(path.pair)
    fleet.begin(one, other, transports=list(path.transports))
    peer = fleet.ids[other]
    fleet.ask(one, "first_call", peer=peer, within_s=ANSWER_S)
    found = fleet.ask(one, "watch", peer=peer, within_s=within_s if path.path == "direct" else 0.0)
    taken = f"{found.get('transport', '')} {found.get('path', '')}"
    if not (str(found.get("transport")).startswith(path.transport) and str(found.get("path")).startswith(path.path)):
        raise Told(f"the path is {taken}")
    single = fleet.ask(one, "flight", peer=peer, in_flight=1, seconds=seconds / 2)
    many = fleet.ask(one, "flight", peer=peer, in_flight=IN_FLIGHT, seconds=seconds)
    fleet.ask(one, "pull", peer=peer, mib=AS_MUCH_MIB, seconds=seconds)  # until bulk has found its way, and its pace
    pulled = fleet.ask(one, "pull", peer=peer, mib=AS_MUCH_MIB, seconds=seconds)
    if not str(pulled["bulk"]).startswith(path.bulk or path.transport):
        raise Told(f"bulk goes by {pulled['bulk']}")
    fleet.finish(one, other)
    return {
        "path": f"calls {taken}; stream {pulled['bulk']}",
        "call_us": single["took_s"] / max(single["answered"], 1) * 1e6,
        "calls_s": many["answered"] / many["took_s"],
        "mb_s": pulled["bytes"] / pulled["took_s"] / 1e6,
        "cpu_s_gb": pulled["cpu_s"] / pulled["bytes"] * 1e9,
    }


def row(path: Path, sittings: Sequence[Mapping[str, float | str]]) -> list[str]:
    def middle(name: str) -> float:
        return statistics.median(float(each[name]) for each in sittings)

    return [
        path.name,
        f"{middle('mb_s'):.0f} MB/s",
        f"{middle('cpu_s_gb'):.1f} s",
        f"{middle('call_us'):.0f} us",
        f"{middle('calls_s'):,.0f} /s",
        str(sittings[-1]["path"]),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of all paths in turn; medians are printed")
    parser.add_argument("--within", type=float, default=20.0, help="seconds until a path must be direct")
    parser.add_argument("--only", default="", help="paths whose name holds these words")
    given = parser.parse_args()
    chosen = [path for path in PATHS if given.only in path.name]
    kinds = [kind for path in chosen for kind in path.pair]
    sittings: dict[str, list[Mapping[str, float | str]]] = {path.name: [] for path in chosen}
    lab = Lab(public={name: Host() for name in RELAYS}, sites=sites_of(kinds, ""), probe=False)
    try:
        with lab, Fleet(lab) as fleet:
            fleet.found()
            for path in chosen * given.rounds:
                try:
                    sittings[path.name].append(measure(fleet, path, given.seconds, given.within))
                except (Told, TimeoutError) as error:
                    print(f"{path.name}: {error}", file=sys.stderr)
    except Unavailable as error:
        print(error, file=sys.stderr)
        return 3
    head = ["path", "one way", "CPU a GB (both ends)", "a call", f"calls, {IN_FLIGHT} in flight", ""]
    print(table([head, *(row(path, sittings[path.name]) for path in chosen if sittings[path.name])]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
