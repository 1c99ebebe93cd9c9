"""Which GPUs this machine lets us use, and what a worker that holds some of them sees.

The node counts files and starts no CUDA: a context costs hundreds of MiB, and a process that has one cannot fork. The
i-th GPU of the node is the i-th entry of its own CUDA_VISIBLE_DEVICES, or device i where that is not set.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
HIDDEN = ("", "NoDevFiles")  # values by which schedulers say "none"


def devices_of(visible: str | None, present: int) -> tuple[str, ...]:
    """Names, as CUDA_VISIBLE_DEVICES takes them, of the GPUs that this process may use.

    visible: the variable's value; None: not set, all `present` ones. As the CUDA programming guide says, entries count
    up to the first that names no device (`-1`, or an index beyond the last), and one named twice leaves none. UUIDs
    (`GPU-…`, `MIG-…`) are believed.
    """
    if visible is None:
        return tuple(map(str, range(present)))
    if visible.strip() in HIDDEN:
        return ()
    names: list[str] = []
    for entry in map(str.strip, visible.split(",")):
        is_index = re.fullmatch(r"[+-]?\d+", entry) is not None
        if not (0 <= int(entry) < present if is_index else entry.startswith(("GPU-", "MIG-")) and present):
            break
        names.append(str(int(entry)) if is_index else entry)
    return tuple(names) if len(set(names)) == len(names) else ()


def count_present(device_files: Sequence[str], driver_gpus: int) -> int:
    """How many NVIDIA GPUs there are.

    device_files: names in /dev; a container has only those it was given. driver_gpus: entries in
    /proc/driver/nvidia/gpus, which count where nothing has made the device files yet.
    """
    return sum(re.fullmatch(r"nvidia\d+", name) is not None for name in device_files) or driver_gpus


def detect(environ: Mapping[str, str] = os.environ, root: str = "/") -> tuple[str, ...]:
    """The GPUs that this process may use; none without an NVIDIA driver."""
    driver_gpus = _names_in(os.path.join(root, "proc/driver/nvidia/gpus"))
    present = count_present(_names_in(os.path.join(root, "dev")), len(driver_gpus))
    return devices_of(environ.get(VISIBLE_DEVICES), present)


def believed(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Names of GPUs that a node is told of and does not see: those of its CUDA_VISIBLE_DEVICES, if that is set."""
    visible = environ.get(VISIBLE_DEVICES)
    return () if visible is None else devices_of(visible, sys.maxsize)


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
