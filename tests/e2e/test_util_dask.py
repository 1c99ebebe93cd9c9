"""dask runs over lattica, and its data stay in the store. dask's own tests: tests/foreign."""

from __future__ import annotations

import operator
import os
from typing import Any

import pytest

dask = pytest.importorskip("dask")
bag = pytest.importorskip("dask.bag")

import lattica  # noqa: E402
from lattica.errors import TaskCancelledError, TaskError  # noqa: E402
from lattica.util.dask import (  # noqa: E402
    RayDaskCallback,
    disable_dask_on_lattica,
    enable_dask_on_lattica,
    lattica_dask_get,
    lattica_dask_get_sync,
    lattica_dask_persist,
    ray_dask_get,
)

pytestmark = pytest.mark.usefixtures("four_cpus")


@dask.delayed
def pid(*_: Any) -> int:
    return os.getpid()


def test_graphs_run_in_workers_and_keys_keep_their_shape() -> None:
    graph = {"a": 1, "b": (operator.add, "a", 2), "c": (sum, ["a", "b", (operator.mul, "b", 10)]), "d": "c"}
    for get in (lattica_dask_get, lattica_dask_get_sync, ray_dask_get):
        assert get(graph, [["a", "d"], "b"]) == ((1, 34), 3) and get(graph, "c") == 34
    with enable_dask_on_lattica():
        assert pid(pid()).compute() != os.getpid()
        words = bag.from_sequence(["a", "b", "c", "a", "b", "a"], npartitions=3)
        assert dict(words.frequencies().compute()) == {"a": 3, "b": 2, "c": 1}
        assert dict(words.groupby(lambda word: word).map(lambda pair: (pair[0], len(pair[1]))).compute())["a"] == 3
        with disable_dask_on_lattica():
            assert pid().compute() == os.getpid()


def test_what_a_node_raises_is_what_dask_raises() -> None:
    slow = dask.delayed(operator.truediv)(1, 0)
    with pytest.raises(ZeroDivisionError) as raised:
        dask.delayed(sum)([slow, pid()]).compute(scheduler=lattica_dask_get)
    assert type(raised.value) is ZeroDivisionError and isinstance(raised.value.__cause__, TaskError)


def test_persisted_parts_are_refs_that_later_graphs_use() -> None:
    @dask.delayed(pure=True)
    def make(n: int) -> list[int]:
        return [n] * n

    [kept] = lattica_dask_persist(make(4))
    assert [type(value) for value in kept.dask.values()] == [lattica.ObjectRef]
    total = dask.delayed(sum)(kept)
    assert total.compute(scheduler=lattica_dask_get) == 16 and kept.compute(scheduler=lattica_dask_get) == [4] * 4
    [numbers] = lattica_dask_persist(bag.range(10, npartitions=2).map(lambda n: n + 1))
    assert numbers.map(lambda n: n * 2).sum().compute(scheduler=lattica_dask_get) == 110


def test_nodes_have_the_options_that_were_said_of_them() -> None:
    @dask.delayed
    def cpus() -> float:
        return lattica.get_runtime_context().get_assigned_resources().get("CPU", 0.0)

    with dask.annotate(remote_args={"num_cpus": 3}):
        three = cpus()
    with dask.annotate(ray_remote_args={"num_cpus": 2}):
        two = cpus()
    assert dask.compute(three, two, cpus(), scheduler=lattica_dask_get, optimize_graph=False) == (3.0, 2.0, 1.0)
    assert cpus().compute(scheduler=lattica_dask_get, remote_args={"num_cpus": 4}) == 4.0
    with pytest.raises(ValueError, match="remote_args"):
        cpus().compute(scheduler=lattica_dask_get, resources={"CPU": 1})


def test_callbacks_hear_of_the_start_of_each_node_and_of_the_end() -> None:
    said: list[Any] = []
    heard = dask.callbacks.Callback(
        start=lambda graph: said.append("start"),
        pretask=lambda key, graph, state: said.append("submitted"),
        posttask=lambda key, result, graph, state, worker: said.append(result),
        finish=lambda graph, state, failed: said.append((failed, len(state["finished"]))),
    )
    with heard:
        assert lattica_dask_get({"a": (abs, -1), "b": (abs, -2)}, ["a", "b"]) == (1, 2)
    assert said[:3] == ["start", "submitted", "submitted"] and sorted(said[3:5]) == [1, 2] and said[5] == (False, 2)
    said.clear()
    with heard, pytest.raises(TypeError):
        lattica_dask_get({"a": (abs, "x")}, "a")
    assert said[-1][0] is True


def test_hooks_surround_nodes_and_may_take_their_place() -> None:
    said: list[Any] = []

    class Doubles(RayDaskCallback):
        def _ray_pretask(self, key: Any, object_refs: Any) -> Any:
            return sum(object_refs)

        def _ray_posttask(self, key: Any, result: Any, pre_state: Any) -> None:
            assert (key, result, pre_state) == ("c", 7, 7), (key, result, pre_state)

    graph = {"a": (abs, -1), "b": (abs, -2), "c": (operator.add, "a", "b")}
    hears = RayDaskCallback(
        ray_presubmit=lambda task, key, deps: {"a": 5, "b": 2}.get(key),
        ray_postsubmit=lambda task, key, deps, ref: said.append((key, deps, type(ref))),
        ray_postsubmit_all=lambda refs, graph: said.append(len(refs)),
        ray_finish=said.append,
    )
    with hears, Doubles():
        assert lattica_dask_get(graph, ["c"]) == (7,)
    assert said == [("c", {"a": 5, "b": 2}, lattica.ObjectRef), 1, (7,)]
    assert lattica_dask_get(graph, "c") == 3
    assert lattica_dask_get(graph, "c", ray_callbacks=[hears]) == 7
    with pytest.raises(AssertionError), Doubles():
        lattica_dask_get(graph, "c")


def test_a_graph_that_fails_leaves_no_work_behind(tmp_path: Any) -> None:
    import time

    def later(_: Any) -> None:
        time.sleep(30)

    graph = {"bad": (operator.truediv, 1, 0), "one": (later, 1), "two": (later, 2)}
    began = time.monotonic()
    with pytest.raises((ZeroDivisionError, TaskCancelledError)):
        lattica_dask_get(graph, ["bad", "one", "two"])
    assert time.monotonic() - began < 20
    assert lattica_dask_get({"next": (abs, -1)}, "next") == 1
