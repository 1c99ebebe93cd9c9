"""Run the test suites of others over lattica: `make test-foreign`, or with ARGS=--short a part of each, as CI does.

Each suite is a pytest run of its own. What is left out says why (`-rs`); docs/testing.md lists it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PYTEST = ["-m", "pytest", "-c", "tests/foreign/pytest.ini", "--rootdir", ".", "-q", "--tb=short", "-W", "ignore"]


class Suite(NamedTuple):
    """args: for pytest. short: which tests are the part for CI, as `-k` says it."""

    args: list[str]
    short: str


SUITES = {
    "executor": Suite(
        ["tests/foreign/cpython_executor.py"],
        "ExecutorTest and not timeout or Initializer or cancel_futures or interpreter or first_completed",
    ),
    "pool": Suite(["tests/foreign/cpython_pool.py"], "map or apply or traceback or error_callback"),
    "joblib": Suite(
        ["-p", "tests.foreign.joblib_on_lattica", "--pyargs", "joblib.test.test_parallel"],
        "error or nested_loop or nested_backend or exception or initializer or (return_generator and loky)",
    ),
    "dask": Suite(
        ["-p", "tests.foreign.dask_on_lattica", "--pyargs", "dask.bag.tests", "dask.tests.test_delayed"],
        "test_bag and (fold or frequencies or map or reduction or persist or take) and not groupby",
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="suite", help=f"of {', '.join(SUITES)}; all without one")
    parser.add_argument("--short", action="store_true", help="a part of each")
    given = parser.parse_args()
    if unknown := set(given.suites) - SUITES.keys():
        parser.error(f"no suite is called {', '.join(sorted(unknown))}")
    failed = []
    for name in given.suites or SUITES:
        suite = SUITES[name]
        print(f"== {name}", flush=True)
        began = time.monotonic()
        part = ["-k", suite.short] if given.short else []
        done = subprocess.run([sys.executable, *PYTEST, *part, *suite.args], cwd=ROOT)
        how = {0: "ok", 5: "cannot run here, for the reason above"}.get(done.returncode, "FAILED")
        print(f"== {name}: {how}, {time.monotonic() - began:.0f} s\n", flush=True)
        if how == "FAILED":
            failed.append(name)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
