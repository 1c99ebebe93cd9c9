"""What a worker's fork brought along and must not keep: the zygote's random numbers, and its single thread."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Mapping

WORKER_IMPORTS = "LATTICA_WORKER_IMPORTS"
"""Environment variable of a driver that its workers get as well: modules, with commas between them, that they import
before any code of the user's. `lattica.compat.ray` puts itself there."""
OPENBLAS_OF_NUMPY = "../numpy.libs/*openblas*"
"""Where numpy's wheels have theirs; builds with another BLAS keep what the zygote began with, one thread."""
OPENBLAS_SETTERS = ("scipy_openblas_set_num_threads64_", "scipy_openblas_set_num_threads",
                    "openblas_set_num_threads64_", "openblas_set_num_threads")  # fmt: skip
SEED_MODULES = ("random", "numpy.random", "torch")
"""Those that a fork may have inherited; numpy imports its `random` when it is first used, which takes 20 ms, and one
that is imported here draws its seed from the system itself."""


def use_threads(cpus: int, before: int) -> int:
    """Let numeric libraries use so many threads as the task has CPUs, where the user did not say otherwise; `before`:
    how many they use now. How many that are."""
    ours = os.environ.get("LATTICA_SINGLE_THREADED", "").split()
    given = "" if "OMP_NUM_THREADS" in ours else os.environ.get("OMP_NUM_THREADS", "")
    threads = int(given) if given.isdigit() else cpus  # all libraries follow OMP's, unless told otherwise
    for name in ours:
        os.environ[name] = str(threads)
    if ours and threads != before:
        _set_threads(threads, ours)
    return threads


def given(variables: Mapping[str, str]) -> None:
    """The user has set these for all workers of the job."""
    ours = os.environ.get("LATTICA_SINGLE_THREADED", "").split()
    os.environ["LATTICA_SINGLE_THREADED"] = " ".join(name for name in ours if name not in variables)


def import_first() -> None:
    """What WORKER_IMPORTS names. A worker that cannot says so where its lines go, and works on without."""
    for name in os.environ.get(WORKER_IMPORTS, "").split(","):
        if name:
            try:
                importlib.import_module(name)
            except Exception:
                traceback.print_exc()


def _set_threads(threads: int, ours: list[str]) -> None:
    """Let libraries that are loaded already use so many threads: they read their variables only once."""
    torch = sys.modules.get("torch")
    if torch is not None and "OMP_NUM_THREADS" in ours:
        torch.set_num_threads(threads)
    numpy = sys.modules.get("numpy")
    if numpy is None or "OPENBLAS_NUM_THREADS" not in ours or numpy.__file__ is None:
        return
    import ctypes
    import glob

    for path in glob.glob(os.path.join(os.path.dirname(numpy.__file__), OPENBLAS_OF_NUMPY)):
        library = ctypes.CDLL(path)  # the one that is loaded
        setters = [getattr(library, name, None) for name in OPENBLAS_SETTERS]
        next(filter(None, setters), lambda _: None)(threads)


def reseed() -> None:
    """Every fork draws its own random numbers; a zygote's children would all draw the same."""
    seed = int.from_bytes(os.urandom(8), "big")
    for name in SEED_MODULES:
        module = sys.modules.get(name)
        if module is None:
            continue
        if name == "random":
            module.seed(seed)
        elif name == "numpy.random":
            module.seed(seed & 0xFFFFFFFF)
        else:
            module.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
