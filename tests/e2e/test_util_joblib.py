"""joblib runs over lattica. joblib's own tests: tests/foreign."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

joblib = pytest.importorskip("joblib")

from lattica.util.joblib import register_lattica, register_ray  # noqa: E402
from lattica.util.joblib.arguments import KEPT_MAX, Stored  # noqa: E402

pytestmark = pytest.mark.usefixtures("four_cpus")


@pytest.fixture(autouse=True)
def registered() -> None:
    register_lattica()


def test_calls_run_in_workers_under_both_names() -> None:
    register_ray()
    for name in ("lattica", "ray"):
        with joblib.parallel_config(name):
            assert joblib.effective_n_jobs(-1) == 4 and joblib.effective_n_jobs(-2) == 3
            pids = joblib.Parallel(n_jobs=2)(joblib.delayed(os.getpid)() for _ in range(8))
            assert os.getpid() not in pids
    assert joblib.Parallel(n_jobs=2, backend="lattica")(joblib.delayed(pow)(2, n) for n in range(5)) == [1, 2, 4, 8, 16]
    with pytest.raises(ValueError, match="has no meaning"):
        joblib.Parallel(n_jobs=0, backend="lattica")([])


def test_what_a_call_raises_ends_the_whole() -> None:
    with pytest.raises(ZeroDivisionError):
        joblib.Parallel(n_jobs=2, backend="lattica")(joblib.delayed(divmod)(1, n) for n in (1, 0, 1))
    lazily = joblib.Parallel(n_jobs=2, backend="lattica", return_as="generator")
    assert list(lazily(joblib.delayed(abs)(n) for n in range(-5, 0))) == [5, 4, 3, 2, 1]


def test_large_arguments_are_stored_once_and_read_in_place() -> None:
    shared = np.arange(300_000)

    def look(array: Any, small: Any, *, again: Any) -> tuple[int, bool, bool]:
        return int(array[-1]) + int(small[0]), array.flags.writeable, array is again

    calls = [joblib.delayed(look)(shared, np.array([n]), again=shared) for n in range(6)]
    found = joblib.Parallel(n_jobs=2, backend="lattica", remote_args={"num_cpus": 0.5})(calls)
    assert found == [(299_999 + n, False, True) for n in range(6)]
    unshared = joblib.Parallel(n_jobs=2, backend="lattica", max_nbytes=None)(calls[:2])
    assert [value for value, _, _ in unshared] == [299_999, 300_000]


def test_no_more_arguments_are_kept_than_calls_share() -> None:
    stored = Stored(least_bytes=100)
    arrays = [np.zeros(100) for _ in range(KEPT_MAX + 5)]
    refs = [stored.ref(array) for array in arrays]
    assert len(set(refs)) == len(arrays) and len(stored._kept) == KEPT_MAX
    assert stored.ref(arrays[-1]) is refs[-1] and stored.ref(np.zeros(1)) is None and stored.ref("text") is None


def test_a_call_within_a_call_needs_no_cpu_of_its_own() -> None:
    def inner(n: int) -> int:
        register_lattica()
        return sum(joblib.Parallel(n_jobs=2, backend="lattica")(joblib.delayed(pow)(n, k) for k in range(3)))

    outer = joblib.Parallel(n_jobs=4, backend="lattica")(joblib.delayed(inner)(n) for n in range(4))
    assert outer == [1 + n + n * n for n in range(4)]
