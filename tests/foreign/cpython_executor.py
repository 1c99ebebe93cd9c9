"""CPython's own tests of executors (`test.test_concurrent_futures`) over `LatticaExecutor`: `make test-foreign`.

The mixins that CPython runs over threads and over processes are given our class; what is said in there of threads or
processes alone is no mixin. Skipped where this Python has no `test` package with them (see `standard_tests`).
"""

from __future__ import annotations

import re
import sys
import unittest
from typing import Any

import pytest

import lattica
from lattica.util.executor import LatticaExecutor
from tests.foreign import standard_tests

FOLDER = standard_tests.folder()
if FOLDER is None:
    pytest.skip(standard_tests.WHY_NOT, allow_module_level=True)
suites = standard_tests.suites()
PREFIX = re.compile(rb"^\([^()]* pid=\d+\) ", re.MULTILINE)
"""Of lines that a worker printed."""
PRELUDE = f"import sys; sys.path[:0] = {[str(FOLDER), *sys.path]!r}\n"


class LatticaMixin(suites["ExecutorMixin"]):  # type: ignore[misc]
    executor_type = LatticaExecutor


def ours(mixin: str) -> type:
    """The tests of this mixin over our executor."""
    bases = (suites[mixin], *([] if issubclass(suites[mixin], suites["ExecutorMixin"]) else [LatticaMixin]))
    return type(f"Lattica{mixin}", (*bases, suites["BaseTestCase"]), {"executor_type": LatticaExecutor})


def programs_import_ours(real: Any) -> Any:
    """`assert_python_ok` for programs that say `from concurrent.futures import LatticaExecutor`."""

    def run(flag: str, program: str) -> Any:
        program = program.replace(
            "from concurrent.futures import LatticaExecutor",
            "import lattica; from lattica.util.executor import LatticaExecutor",
        )
        code, out, err = real(flag, PRELUDE + program)
        return code, PREFIX.sub(b"", out), err

    return run


def setUpModule() -> None:
    lattica.init(address="local", num_cpus=5)
    lattica.get(lattica.remote(abs).remote(-1))
    for module in standard_tests.modules():
        if hasattr(module, "assert_python_ok"):
            module.assert_python_ok = programs_import_ours(module.assert_python_ok)


def tearDownModule() -> None:
    lattica.shutdown()


LatticaExecutorTest: Any = ours("ExecutorTest")
LatticaExecutorShutdownTest: Any = ours("ExecutorShutdownTest")
LatticaWaitTests: Any = ours("WaitTests")
LatticaAsCompletedTests: Any = ours("AsCompletedTests")
LatticaInitializerTest: Any = ours("InitializerMixin")
LatticaFailingInitializerTest: Any = ours("FailingInitializerMixin")

if __name__ == "__main__":
    unittest.main()
