"""Tasks: what `@remote`, `.remote` and `.options` mean, as a user of Ray expects them."""

from __future__ import annotations

import asyncio
import functools
import glob
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lattica
from lattica.exceptions import TaskUnschedulableError
from tests.e2e.conftest import Script


@lattica.remote
def add(a: int, b: int = 10, *more: int, **named: int) -> int:
    return a + b + sum(more) + sum(named.values())


@lattica.remote
def echo(*args: Any, **kwargs: Any) -> Any:
    return (*args, kwargs) if kwargs or len(args) != 1 else args[0]


@lattica.remote
def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@lattica.remote(num_returns=3)
def three() -> tuple[int, int, int]:
    return 1, 2, 3


@lattica.remote
def append(path: str, word: str) -> None:
    with open(path, "a") as file:
        file.write(word)


# -- calls


@pytest.mark.usefixtures("two_cpus")
def test_arguments_reach_the_function_by_place_and_by_name() -> None:
    refs = [add.remote(1), add.remote(1, 2), add.remote(1, 2, 3, 4), add.remote(b=1, a=2), add.remote(1, x=5)]
    assert lattica.get(refs) == [11, 3, 10, 3, 16]


@pytest.mark.usefixtures("two_cpus")
def test_a_remote_function_keeps_its_name_and_says_how_to_call_it() -> None:
    assert add.__name__ == "add"
    with pytest.raises(TypeError, match=r"add\.remote"):
        add(1)


@pytest.mark.usefixtures("two_cpus")
def test_refs_at_the_top_level_arrive_as_values_and_nested_ones_as_refs() -> None:
    one, two = lattica.put(1), add.remote(1, 1)
    assert lattica.get(echo.remote(one, two, k=two)) == (1, 2, {"k": 2})
    [inner], mapping = lattica.get(echo.remote([one], {"ref": two}))[:2]
    assert isinstance(inner, lattica.ObjectRef) and lattica.get(inner) == 1
    assert lattica.get(mapping["ref"]) == 2


@pytest.mark.usefixtures("two_cpus")
def test_a_task_waits_for_tasks_whose_refs_it_is_given() -> None:
    total = add.remote(0, 0)
    for _ in range(50):
        total = add.remote(total, 1)
    slow = sleep.remote(0.1)
    assert lattica.get(echo.remote(slow, total)) == (0.1, 50, {})


@pytest.mark.usefixtures("two_cpus")
def test_several_results_are_several_refs_and_none_is_none() -> None:
    first, second, third = three.remote()
    assert lattica.get([third, first, second]) == [3, 1, 2]
    assert three.options(num_returns=0).remote() is None
    assert lattica.get(three.options(num_returns=1).remote()) == (1, 2, 3)
    assert lattica.get(echo.options(num_returns=2).remote([1, "two"])) == [1, "two"]


@pytest.mark.usefixtures("two_cpus")
def test_another_number_of_results_than_promised_is_an_error_that_says_both() -> None:
    refs = three.options(num_returns=2).remote()
    with pytest.raises(ValueError, match=r"num_returns=2 .* 3 values"):
        lattica.get(refs[1])
    with pytest.raises(ValueError, match=r"num_returns=2 .* int"):
        lattica.get(echo.options(num_returns=2).remote(7)[0])


@pytest.mark.usefixtures("two_cpus")
def test_a_large_result_among_several_has_a_ref_of_its_own() -> None:
    @lattica.remote(num_returns=2)
    def both() -> tuple[np.ndarray, int]:
        return np.arange(300_000), 7

    large, small = both.remote()
    assert lattica.get(small) == 7
    del small
    assert lattica.get(large).sum() == sum(range(300_000))


@pytest.mark.usefixtures("two_cpus")
def test_options_change_one_use_and_leave_the_function_alone() -> None:
    named = add.options(name="adder", num_cpus=2)
    assert lattica.get(named.remote(1)) == 11

    @lattica.remote(num_cpus=1)
    def who() -> tuple[Any, Any]:
        context = lattica.get_runtime_context()
        return context.get_task_name(), context.get_assigned_resources()

    name, resources = lattica.get(who.options(name="somebody", num_cpus=2).remote())
    assert (name, resources["CPU"]) == ("somebody", 2)
    assert lattica.get(who.remote())[1]["CPU"] == 1


@pytest.mark.parametrize(
    "given",
    [{"num_cpu": 1}, {"num_cpus": -1}, {"num_returns": -1}, {"max_retries": -2}, {"num_gpus": 1.5},
     {"retry_exceptions": "yes"}, {"resources": {"CPU": 1}}],
    ids=str,
)  # fmt: skip
def test_an_option_that_cannot_be_is_refused_where_it_is_written(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        lattica.remote(**given)(lambda: None)
    with pytest.raises(ValueError):
        add.options(**given)


@pytest.mark.usefixtures("two_cpus")
def test_lambdas_partials_and_methods_of_instances_are_functions_too() -> None:
    class Scale:
        def __init__(self, by: int) -> None:
            self.by = by

        def __call__(self, x: int) -> int:
            return self.by * x

        def twice(self, x: int) -> int:
            return 2 * self(x)

    assert lattica.get(lattica.remote(lambda x: x + 1).remote(1)) == 2
    assert lattica.get(lattica.remote(functools.partial(max, 5)).remote(3)) == 5
    assert lattica.get(lattica.remote(Scale(3).twice).remote(2)) == 12
    assert lattica.get(lattica.remote(Scale(3)).remote(2)) == 6


@pytest.mark.usefixtures("two_cpus")
def test_a_closure_carries_what_it_captured_refs_and_functions_included() -> None:
    def make() -> Any:
        base, ref, large = 5, lattica.put("kept"), np.ones(100_000)

        @lattica.remote
        def captured(x: int) -> tuple[int, str, float]:
            return x + base, lattica.get(ref), float(large.sum())

        @lattica.remote
        def through() -> tuple[int, str, float]:
            return lattica.get(captured.remote(1))

        return through

    assert lattica.get(make().remote()) == (6, "kept", 100_000.0)


@pytest.mark.usefixtures("two_cpus")
def test_a_function_defined_again_runs_the_new_code_and_the_old_one_the_old() -> None:
    versions = []
    for version in range(3):

        @lattica.remote
        def which(version: int = version) -> int:
            return version

        versions.append(which)
    assert lattica.get([f.remote() for f in versions]) == [0, 1, 2]


# -- nesting and blocking


@pytest.mark.usefixtures("two_cpus")
def test_tasks_submit_tasks_to_any_depth() -> None:
    @lattica.remote
    def fib(n: int) -> int:
        return n if n < 2 else sum(lattica.get([fib.remote(n - 1), fib.remote(n - 2)]))

    assert lattica.get(fib.remote(7)) == 13


@pytest.mark.usefixtures("two_cpus")
def test_a_ref_made_by_a_task_outlives_it() -> None:
    @lattica.remote
    def start() -> list[Any]:
        return [add.remote(1), lattica.put(np.arange(50_000)), lattica.put("small")]

    inner, large, small = lattica.get(start.remote())
    assert lattica.get(inner) == 11
    assert lattica.get(large)[-1] == 49_999
    assert lattica.get(small) == "small"


def test_a_task_that_gets_a_sibling_submitted_after_it_ends_on_one_cpu(fresh: Callable[..., Any]) -> None:
    """The sibling waits for `gate`, so it reaches the one worker's queue behind the task that will wait for it."""
    fresh(num_cpus=1)

    @lattica.remote
    def getter(box: list[Any]) -> Any:
        return lattica.get(box[0]) if box else None

    lattica.get([getter.remote([]) for _ in range(200)] + [sleep.remote(0) for _ in range(200)])  # quick: pipelined
    for _ in range(10):
        gate = sleep.remote(0.002)
        sibling = add.remote(gate, 1)
        assert lattica.get(getter.remote([sibling]), timeout=10) == 1.002


def test_a_chain_of_200_tasks_that_each_get_the_next_ends_on_two_cpus(fresh: Callable[..., Any]) -> None:
    fresh(num_cpus=2)

    @lattica.remote
    def link(left: int) -> int:
        return 1 if left == 1 else 1 + lattica.get(link.remote(left - 1))

    assert lattica.get(link.remote(200), timeout=120) == 200


@pytest.mark.usefixtures("four_cpus")
def test_four_sleeps_on_four_cpus_run_side_by_side_after_a_thousand_tiny_tasks() -> None:
    """A function that was quick a thousand times is pipelined; that it sleeps now must not stack it in one worker."""
    lattica.get([sleep.remote(0) for _ in range(1000)])
    began = time.monotonic()
    assert lattica.get([sleep.remote(1.5) for _ in range(4)]) == [1.5] * 4
    assert time.monotonic() - began < 3


@pytest.mark.usefixtures("two_cpus")
def test_a_task_that_nobody_waits_for_runs(tmp_path: Path) -> None:
    path = tmp_path / "words"
    append.remote(str(path), "a")
    append.options(num_returns=0).remote(str(path), "b")
    for _ in range(500):
        if path.exists() and len(path.read_text()) == 2:
            break
        time.sleep(0.01)
    assert sorted(path.read_text()) == ["a", "b"]


@pytest.mark.usefixtures("two_cpus")
def test_threads_submit_and_get_side_by_side() -> None:
    sums: list[int] = []

    def work(n: int) -> None:
        for _ in range(5):
            sums.append(sum(lattica.get([add.remote(n, k) for k in range(40)])))
            assert lattica.get(add.remote(n, 1), timeout=20) == n + 1

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sums) == sorted(40 * n + 780 for n in range(8) for _ in range(5))


@pytest.mark.usefixtures("two_cpus")
async def test_coroutines_submit_and_await_side_by_side() -> None:
    async def work(n: int) -> int:
        first = await add.remote(n, 1)
        both = await asyncio.gather(add.remote(first, 1), asyncio.wait_for(add.remote(first, 2), 10))
        return sum(both)

    assert await asyncio.gather(*map(work, range(50))) == [2 * n + 5 for n in range(50)]


# -- resources


def test_custom_resources_bound_how_many_run_at_once(fresh: Callable[..., Any], tmp_path: Path) -> None:
    fresh(num_cpus=4, resources={"licence": 1})

    @lattica.remote(resources={"licence": 1}, num_cpus=0)
    def alone(path: str) -> bool:
        lock = os.open(path, os.O_CREAT | os.O_EXCL)
        time.sleep(0.05)
        os.close(lock)
        os.unlink(path)
        return True

    assert lattica.get([alone.remote(str(tmp_path / "lock")) for _ in range(4)]) == [True] * 4
    assert lattica.cluster_resources()["licence"] == 1


@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize("given", [{"num_cpus": 3}, {"num_gpus": 1}, {"resources": {"moon": 1}}], ids=str)
def test_a_task_that_fits_nowhere_fails_at_once_and_says_what_is_missing(given: dict[str, Any]) -> None:
    with pytest.raises(TaskUnschedulableError, match=r"CPU|GPU|moon") as caught:
        lattica.get(add.options(**given).remote(1), timeout=5)
    assert "task add can never run here" in str(caught.value)
    assert lattica.get(add.remote(1)) == 11


def test_a_worker_that_holds_gpus_sees_its_own_and_others_none(fresh: Callable[..., Any]) -> None:
    fresh(num_cpus=2, num_gpus=2)

    def seen() -> tuple[list[int], str]:
        time.sleep(0.1)
        return lattica.get_gpu_ids(), os.environ["CUDA_VISIBLE_DEVICES"]

    one, two, none = (lattica.remote(num_cpus=0, num_gpus=n)(seen) for n in (1, 2, 0))
    assert lattica.get(none.remote()) == ([], "")
    singles = lattica.get([one.remote(), one.remote()])
    assert sorted(singles) == [([0], "0"), ([1], "1")]
    assert lattica.get(two.remote()) == ([0, 1], "0,1")
    assert lattica.get(none.remote()) == ([], "")
    half = lattica.remote(num_gpus=0.5)(seen)
    assert lattica.get([half.remote(), half.remote()]) == [([0], "0"), ([0], "0")]
    assert lattica.get_gpu_ids() == []


def test_gpus_keep_the_names_that_the_nodes_own_variable_gave_them(
    fresh: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5ab")
    fresh(num_cpus=1, num_gpus=2)

    @lattica.remote(num_gpus=2)
    def seen() -> tuple[Any, ...]:
        ids = lattica.get_runtime_context().get_accelerator_ids()
        return lattica.get_gpu_ids(), os.environ["CUDA_VISIBLE_DEVICES"], ids

    assert lattica.get(seen.remote()) == ([2, "GPU-5ab"], "2,GPU-5ab", {"GPU": ["2", "GPU-5ab"]})
    assert lattica.get(lattica.remote(num_cpus=0)(lambda: os.environ["CUDA_VISIBLE_DEVICES"]).remote()) == ""


# -- random numbers


def draw_numbers() -> dict[str, Any]:
    drawn = {"random": random.random(), "numpy": float(np.random.rand()), "pid": os.getpid()}
    try:
        import torch
    except ImportError:
        return drawn
    return drawn | {"torch": float(torch.rand(()))}


def test_two_workers_draw_different_numbers_and_the_same_after_the_users_own_seeds(fresh: Callable[..., Any]) -> None:
    """Forks of one process that has imported all of it: that begins after its first fork, which ends here."""
    fresh(num_cpus=2, preload=["torch"] if find_spec("torch") else [])
    lattica.get(lattica.remote(max_calls=1)(lambda: None).remote())

    @lattica.remote
    def draw(seed: int | None) -> dict[str, Any]:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)
            try:
                import torch
            except ImportError:
                pass
            else:
                torch.manual_seed(seed)
        drawn = draw_numbers()
        time.sleep(0.15)  # so that the two run in two workers
        return drawn

    def pair(seed: int | None) -> list[dict[str, Any]]:
        both = lattica.get([draw.remote(seed), draw.remote(seed)])
        assert len({drawn.pop("pid") for drawn in both}) == 2
        return both

    one, other = pair(None)
    assert all(one[kind] != other[kind] for kind in one)
    one, other = pair(7)
    assert one == other


# -- programs


BLAS_THREADS = """
import ctypes, os, sys
import numpy  # so the zygote has loaded it, with one thread
import lattica

@lattica.remote
def threads():
    import numpy
    path = [line.split()[-1] for line in open("/proc/self/maps") if "openblas" in line][0]
    return ctypes.CDLL(path).scipy_openblas_get_num_threads64_(), os.environ["OPENBLAS_NUM_THREADS"]

lattica.init(address="local", num_cpus=2)
print([lattica.get(threads.options(num_cpus=cpus).remote()) for cpus in (1, 2, 0, 2)])
"""


@pytest.mark.parametrize(
    ("given", "then"),
    [({}, [1, 2, 1, 2]), ({"OMP_NUM_THREADS": "2"}, [2, 2, 2, 2]), ({"OPENBLAS_NUM_THREADS": "2"}, [2, 2, 2, 2])],
    ids=["nothing given", "for all libraries", "for one"],
)
def test_numeric_libraries_use_the_tasks_cpus_where_the_user_did_not_say_otherwise(
    script: Script, given: dict[str, str], then: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not glob.glob(os.path.join(os.path.dirname(np.__file__), "../numpy.libs/*scipy_openblas64_*")):
        pytest.skip("this numpy has no OpenBLAS of its own")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    said = script(BLAS_THREADS, env=given)
    assert eval(said) == [(count, str(count)) for count in then]


def test_functions_and_classes_of_main_and_modules_beside_the_script_reach_workers(script: Script) -> None:
    (script.folder / "beside.py").write_text("def triple(x):\n    return 3 * x\n")
    out = script("""
import lattica, beside
from dataclasses import dataclass

SCALE = 10

@dataclass
class Point:
    x: int
    def scaled(self):
        return Point(SCALE * self.x)

@lattica.remote
def move(point):
    assert isinstance(point, Point)
    return helper(point)

def helper(point):
    return Point(beside.triple(point.x)).scaled()

if __name__ == "__main__":
    lattica.init(num_cpus=1)
    result = lattica.get(move.remote(Point(2)))
    assert type(result) is Point, type(result)
    print(result, lattica.get(lattica.remote(beside.triple).remote(5)))
""")
    assert out == "Point(x=60) 15\n"


def test_modules_and_files_of_the_working_directory_reach_workers(script: Script, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "here.py").write_text("VALUE = 'of the working directory'\n")
    (work / "data.txt").write_text("data")
    out = script(
        """
import sys
sys.path.insert(0, "")
import lattica

@lattica.remote
def read():
    import here
    return here.VALUE, open("data.txt").read()

print(lattica.get(read.remote()))
""",
        cwd=work,
    )
    assert out == "('of the working directory', 'data')\n"


def test_a_package_run_with_m_and_a_program_from_stdin_reach_workers(script: Script, tmp_path: Path) -> None:
    (tmp_path / "parcel").mkdir()
    (tmp_path / "parcel/part.py").write_text("VALUE = 'of a package'\n")
    main = "\n".join(
        ["import lattica", "from {home} import part", "@lattica.remote", "def f():", "    return part.VALUE",
         "print(lattica.get(f.remote()))"],
    )  # fmt: skip
    (tmp_path / "parcel/__main__.py").write_text(main.format(home="."))
    for words, stdin in ((["-m", "parcel"], ""), (["-"], main.format(home="parcel"))):
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, input=stdin, capture_output=True, text=True)
        assert done.stdout == "of a package\n", done.stderr


def test_a_cell_that_runs_again_runs_its_new_code(script: Script) -> None:
    """As in a notebook: definitions live in `__main__`, and the same name is bound anew."""
    out = script("""
import sys, lattica
main = sys.modules["__main__"].__dict__
lattica.init(num_cpus=1)

def cell(text):
    exec(compile(text, "<cell>", "exec"), main)

cell('''
class Box:
    kind = "old"
@lattica.remote
def f():
    return 1, Box.kind
@lattica.remote
def g():
    return lattica.get(f.remote())
''')
cell("print(lattica.get(f.remote()), lattica.get(g.remote()))")
cell('''
class Box:
    kind = "new"
@lattica.remote
def f():
    return 2, Box.kind
''')
cell("print(lattica.get(f.remote()), lattica.get(g.remote()))")
""")
    assert out.splitlines()[0] == "(1, 'old') (1, 'old')"
    assert out.splitlines()[1].startswith("(2, 'new')")
