"""What a forged probe costs whoever gets it: microseconds of CPU until it is known to be one (at most 20 are promised).

python benchmarks/probes.py
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the package beside this file, from whatever directory

from lattica.mesh.nat import datagrams
from lattica.mesh.nat.datagrams import Keys, Kind, Probe

TIMES, RUNS = 5_000, 5


def reject_us(owners: dict[bytes, Keys], data: bytes) -> float:
    """CPU of one look at this datagram. owners: key id -> the keys that know it."""
    started = time.process_time()
    for _ in range(TIMES):
        keys = owners.get(datagrams.key_id(data))
        assert keys is None or datagrams.read_probe(keys.receiving, data) is None, "it is forged"
    return (time.process_time() - started) / TIMES * 1e6


def main() -> None:
    """Print it for a probe under a key id that is known, and one that is not."""
    sender, receiver = (Keys.derive(bytes(32), lower=lower) for lower in (True, False))
    valid = datagrams.write_probe(sender.sending, Probe(b"12345678", Kind.PATH, 1))
    forged = {"known": valid[:-1] + bytes([valid[-1] ^ 1]), "not known": valid[:1] + bytes(63)}
    for words, data in forged.items():
        best_us = min(reject_us({receiver.receiving.id: receiver}, data) for _ in range(RUNS))
        print(
            f"forged probe, key id {words}: {best_us:.2f} us of CPU, at most 20: {'met' if best_us <= 20 else 'missed'}"
        )


if __name__ == "__main__":
    main()
