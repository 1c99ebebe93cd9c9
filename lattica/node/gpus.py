"""Which GPUs this machine lets us use, and what a worker that holds some of them sees.

The node counts files and starts no CUDA: a context costs hundreds of MiB, and a process that has one cannot fork. The
i-th GPU of the node is the i-th entry of its own CUDA_VISIBLE_DEVICES, or device i where that is not set.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence

log = logging.getLogger(__name__)
VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
HIDDEN = ("", "NoDevFiles")  # values by which schedulers say "none"
NVIDIACTL_MINOR = 255
MODPROBE_S = 4.0  # two of them, and `lattica start` waits 10 s for a node


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


def make_device_files(root: str = "/") -> None:
    """Make the files in /dev that a program's first use of CUDA makes, by a setuid program that no worker may run where
    the node's key is kept from it. That loads kernel modules and takes a second, once after a machine's boot."""
    driver_gpus = _names_in(os.path.join(root, "proc/driver/nvidia/gpus"))
    devices = set(_names_in(os.path.join(root, "dev")))
    if not driver_gpus:
        return
    if not count_present(list(devices), 0) or "nvidiactl" not in devices:  # a container has those it was given
        _modprobe(*(f"-c={minor}" for minor in (*range(len(driver_gpus)), NVIDIACTL_MINOR)))
    if "nvidia-uvm" not in devices:
        _modprobe("-u", "-c=0")


def _modprobe(*options: str) -> None:
    import subprocess

    try:
        done = subprocess.run(["nvidia-modprobe", *options], capture_output=True, text=True, timeout=MODPROBE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("nvidia-modprobe, which makes a GPU's files in /dev, could not be run: %s", error)
        return
    if done.returncode:
        log.warning("nvidia-modprobe %s ended with %d: %s", options, done.returncode, done.stderr.strip()[:1000])


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
