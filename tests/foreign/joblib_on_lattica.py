"""A pytest plugin: joblib's tests of its default backend, "loky", run over lattica.

Our backend takes loky's place in joblib's table before the tests are imported, so whatever they say with
backend="loky", or without a backend, runs here; so do programs that they start. What they say of other backends is left
out.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.context import BaseContext
from pathlib import Path

import pytest

SITE = str(Path(__file__).parent / "joblib_site")
sys.path.insert(0, SITE)
PATIENCE = 6
"""Programs that the tests start begin a node each, and may share the machine: so many times the tests' own timeouts."""
LEFT_OUT = {
    "test_parallel_pickling": "what cannot travel is a SerializationError, which names the attribute",
    "test_memmapping_leaks": "looks at loky's folder of memory maps: large arguments lie in the store",
    "test_auto_memmap_on_arrays_from_generator": "wants numpy.memmap: arrays from the store are plain and read-only",
    "test_threadpool_limitation_in_child_override": "workers have the environment that their session began with",
    "test_initializer_reused": "which process runs a batch is not promised",
    "test_initializer_not_reused": "which process runs a batch is not promised",
    "test_parallel_with_interactively_defined_bound_method_loky": "reads the log of loky's processes",
}  # fmt: skip
"""Beginnings of names -> why the test does not hold here."""


def is_of_another(value: object) -> bool:
    """Whether a test's parameter names a backend that is not ours."""
    from joblib._parallel_backends import LokyBackend, ParallelBackendBase

    if isinstance(value, str):
        return value in ("multiprocessing", "threading", "sequential", "spawn")
    return isinstance(value, ParallelBackendBase | BaseContext) and not isinstance(value, LokyBackend)


def pytest_configure() -> None:
    import runpy

    import joblib.testing

    import lattica

    runpy.run_path(f"{SITE}/sitecustomize.py")
    theirs = joblib.testing.check_subprocess_call
    joblib.testing.check_subprocess_call = lambda *args, timeout=None, **given: theirs(
        *args, timeout=timeout and timeout * PATIENCE, **given
    )
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (SITE, os.environ.get("PYTHONPATH"))))
    os.environ["FOREIGN_AUTHKEY"] = bytes(multiprocessing.current_process().authkey).hex()
    lattica.init(address="local", num_cpus=max(2, joblib.cpu_count()))  # the tests compare both numbers


def pytest_unconfigure() -> None:
    import lattica

    lattica.shutdown()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    callspecs = {item: getattr(item, "callspec", None) for item in items}
    others = [item for item, spec in callspecs.items() if spec and any(map(is_of_another, spec.params.values()))]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in set(others)]
    for item in items:
        for name, why in LEFT_OUT.items():
            if item.name.partition("[")[0] == name:
                item.add_marker(pytest.mark.skip(reason=why))
        if item.name.startswith("test_multiple_generator_call_separated_gc"):
            callspecs[item].params["error"] = False  # a shortcoming of loky's that we have not, as its threads have not
