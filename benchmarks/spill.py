"""How fast a full object store goes on: more live objects than memory, put and read back, beside the disk itself.

    python benchmarks/spill.py                       8 GiB of random bytes through a store of 2 GiB, objects of 64 MiB
    python benchmarks/spill.py --total 1 --quota 0.25 --object 1

Every byte is compared when it is read. The disk's own figures are of the same bytes on the same file system: written
one file after another, each with fsync, and read back without the page cache. Nothing is left behind.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

import lattica
from lattica.actors import current

MIB = 1 << 20
GIB = 1 << 30


def bytes_of(number: int, noise: np.ndarray) -> np.ndarray:
    """Object `number`: the same noise, turned by so many bytes, so that making it costs no more than a copy."""
    turned = np.roll(noise, 4099 * number)
    turned[:8] = np.frombuffer(number.to_bytes(8, "little"), np.uint8)
    return turned


def disk(folder: Path, noise: np.ndarray, count: int) -> tuple[float, float]:
    """(MiB/s written, MiB/s read) of plain files."""
    began = time.perf_counter()
    making = 0.0
    for number in range(count):
        made = time.perf_counter()
        data = bytes_of(number, noise)
        making += time.perf_counter() - made
        with open(folder / str(number), "wb", buffering=0) as file:
            file.write(data)
            os.fsync(file.fileno())
    wrote_s = time.perf_counter() - began - making
    for number in range(count):
        with open(folder / str(number), "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began = time.perf_counter()
    for number in range(count):
        with open(folder / str(number), "rb", buffering=0) as file:
            while file.read(4 * MIB):
                pass
        os.unlink(folder / str(number))
    read_s = time.perf_counter() - began
    return count * len(noise) / MIB / wrote_s, count * len(noise) / MIB / read_s


def store(noise: np.ndarray, count: int) -> tuple[float, float]:
    """(MiB/s put, MiB/s got) of live objects. Raises AssertionError if one comes back as another."""
    refs, put_s, got_s = [], 0.0, 0.0
    for number in range(count):
        data = bytes_of(number, noise)
        began = time.perf_counter()
        refs.append(lattica.put(data))
        put_s += time.perf_counter() - began
    for number, ref in enumerate(refs):
        began = time.perf_counter()
        array = lattica.get(ref)
        got_s += time.perf_counter() - began
        assert (array == bytes_of(number, noise)).all(), f"object {number} came back as another"
        del array
    return count * len(noise) / MIB / put_s, count * len(noise) / MIB / got_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--total", type=float, default=8.0, help="GiB of live objects")
    parser.add_argument("--quota", type=float, default=2.0, help="GiB of the object store")
    parser.add_argument("--object", type=float, default=64.0, help="MiB of an object")
    parser.add_argument("--dir", help="where to spill; by default the temporary directory")
    given = parser.parse_args()
    noise = np.random.default_rng(1).integers(0, 256, int(given.object * MIB), dtype=np.uint8)
    count = int(given.total * GIB / len(noise))
    folder = Path(tempfile.mkdtemp(prefix="lattica-spill-", dir=given.dir))
    try:
        print(
            f"{given.total:g} GiB in objects of {given.object:g} MiB through a store of {given.quota:g} GiB", flush=True
        )
        wrote, read = disk(folder, noise, count)
        print(f"disk alone   write + fsync {wrote:6.0f} MiB/s   read {read:6.0f} MiB/s", flush=True)
        quota = int(given.quota * GIB)
        lattica.init(address="local", num_cpus=1, object_store_memory=quota, object_spilling_directory=str(folder))
        put, got = store(noise, count)
        print(f"object store put           {put:6.0f} MiB/s   get  {got:6.0f} MiB/s   all equal", flush=True)
        memory = current.get().state("memory")
        spilled, restored = memory["spilled_total_bytes"] / GIB, memory["restored_total_bytes"] / GIB
        print(f"             {spilled:.2f} GiB went to disk, {restored:.2f} GiB came back", flush=True)
        lattica.shutdown()
        wrote, read = disk(folder, noise, count)
        print(f"disk again   write + fsync {wrote:6.0f} MiB/s   read {read:6.0f} MiB/s", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
