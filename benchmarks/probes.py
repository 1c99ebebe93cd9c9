"""What a forged probe costs whoever gets it: microseconds of CPU until it is known to be one (at most 20 are promised).
So for a relay's datagrams: who may use a channel (BIND), and what it carries (RELAYED).

python benchmarks/probes.py
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent.parent))  # the package beside this file, from whatever directory

from lattica.mesh.identity import PeerId
from lattica.mesh.nat import datagrams
from lattica.mesh.nat.datagrams import Bind, Keys, Kind, Probe
from lattica.mesh.nat.routes import NOWHERE
from lattica.mesh.relay.channels import Channels

TIMES, RUNS = 5_000, 5
MOST_US = 20


def reject_us(owners: dict[bytes, Keys], data: bytes) -> float:
    """CPU of one look at this datagram. owners: key id -> the keys that know it."""
    started = time.process_time()
    for _ in range(TIMES):
        keys = owners.get(datagrams.key_id(data))
        assert keys is None or datagrams.read_probe(keys.receiving, data) is None, "it is forged"
    return (time.process_time() - started) / TIMES * 1e6


def refuse_us(channels: Channels, data: bytes) -> float:
    """CPU of one look of a relay at this datagram, which comes from nowhere that it knows."""
    started = time.process_time()
    for _ in range(TIMES):
        if data[0] == datagrams.BIND:
            assert channels.bind(data, "elsewhere", NOWHERE, 0.0) is None, "it is forged"
        else:
            assert not channels.relayed(data, "elsewhere"), "it is forged"
    return (time.process_time() - started) / TIMES * 1e6


def say(what: str, us: float) -> None:
    print(f"forged {what}: {us:.2f} us of CPU, at most {MOST_US}: {'met' if us <= MOST_US else 'missed'}")


def main() -> None:
    """Print it for a probe under a key id that is known, and one that is not."""
    sender, receiver = (Keys.derive(bytes(32), lower=lower) for lower in (True, False))
    valid = datagrams.write_probe(sender.sending, Probe(b"12345678", Kind.PATH, 1))
    forged = {"known": valid[:-1] + bytes([valid[-1] ^ 1]), "not known": valid[:1] + bytes(63)}
    for words, data in forged.items():
        say(f"probe, key id {words}", min(reject_us({receiver.receiving.id: receiver}, data) for _ in range(RUNS)))
    channels = Channels(Random(7).randbytes)
    ours = channels.open(PeerId(b"a" * 32), PeerId(b"b" * 32), 0.0).ours
    for words, number in {"known": ours.number, "not known": ours.number ^ 2}.items():
        bind = datagrams.write_bind(bytes(32), Bind(number, 1))
        relayed = datagrams.write_relayed(number, bytes(1200))
        say(f"BIND, channel {words}", min(refuse_us(channels, bind) for _ in range(RUNS)))
        say(f"RELAYED, channel {words}", min(refuse_us(channels, relayed) for _ in range(RUNS)))


if __name__ == "__main__":
    main()
