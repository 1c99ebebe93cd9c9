"""CPython's own tests of `multiprocessing.Pool` (`test._test_multiprocessing`) over lattica's: `make test-foreign`."""

from __future__ import annotations

import importlib
import multiprocessing
import unittest
from typing import Any

import pytest

import lattica
from lattica.util.multiprocessing import Pool
from tests.foreign import standard_tests

if standard_tests.folder("_test_multiprocessing") is None:
    pytest.skip(standard_tests.WHY_NOT, allow_module_level=True)
theirs: Any = importlib.import_module("test._test_multiprocessing")


def setUpModule() -> None:
    lattica.init(address="local", num_cpus=5)


def tearDownModule() -> None:
    lattica.shutdown()


class _Ours:
    TYPE = "processes"
    Pool = staticmethod(Pool)

    @pytest.fixture(autouse=True)
    def pools_are_ours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(multiprocessing, "Pool", Pool)


def left_out(why: str) -> Any:
    return unittest.skip(why)(lambda self: None)


class PoolTest(_Ours, theirs._TestPool, unittest.TestCase):  # type: ignore[misc]
    test_map_unplicklable = left_out("an argument that cannot travel is a SerializationError, which says why")
    test_resource_warning = left_out("sets a private field of the standard library's class")


class PoolWorkerErrorsTest(_Ours, theirs._TestPoolWorkerErrors, unittest.TestCase):  # type: ignore[misc]
    test_unpickleable_result = left_out("a lambda, which it returns, can travel here")


class PoolWorkerLifetimeTest(_Ours, theirs._TestPoolWorkerLifetime, unittest.TestCase):  # type: ignore[misc]
    test_pool_worker_lifetime = left_out("looks at private processes of the standard library's class")
    test_worker_finalization_via_atexit_handler_of_multiprocessing = left_out("of the standard library's own pool")
