"""What goes wrong far away arrives here: as the user's own class, with the words that help."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lattica
from lattica.errors import ActorDiedError, ActorUnavailableError, SerializationError, TaskError
from lattica.exceptions import RayTaskError, WorkerCrashedError
from tests.e2e.sample_actors import Gate


class Odd(Exception):
    """An exception whose constructor is its own, as half of people's are."""

    def __init__(self, code: int, *, why: str) -> None:
        super().__init__(f"{code}: {why}")
        self.code, self.why = code, why


@lattica.remote
def raise_this(error: BaseException) -> None:
    raise error


@lattica.remote
def raise_odd(code: int, why: str, many: bool = False) -> None:
    odd = Odd(code, why=why)
    raise ExceptionGroup("many", [KeyError("a"), odd]) if many else odd


@lattica.remote
def echo(value: Any) -> Any:
    return value


@lattica.remote
def count_run(path: str) -> int:
    with open(path, "a") as file:
        file.write("x")
    return len(Path(path).read_text())


@lattica.remote
def end(how: str, said: str = "") -> None:
    """End this worker in one of the ways that workers end."""
    print(said, file=sys.stderr)
    match how:
        case "exit":
            os._exit(3)
        case "segfault":
            ctypes.string_at(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "abort":
            os.abort()


# -- user exceptions


@pytest.mark.usefixtures("two_cpus")
def test_a_users_exception_is_a_task_error_and_of_its_own_class() -> None:
    @lattica.remote
    def look_up(key: str) -> int:
        return {"a": 1}[key]

    with pytest.raises(KeyError) as caught:
        lattica.get(look_up.remote("b"))
    error = caught.value
    assert isinstance(error, TaskError) and isinstance(error, RayTaskError)
    assert error.args == ("b",) and isinstance(error.cause, KeyError)
    text = str(error)
    assert "look_up raised KeyError" in text and 'return {"a": 1}[key]' in text and f"{__file__}" in text
    assert "lattica/actors" not in text, "our own frames are nobody's business"


@pytest.mark.usefixtures("two_cpus")
def test_exceptions_with_constructors_of_their_own_arrive_whole() -> None:
    with pytest.raises(Odd) as caught:
        lattica.get(raise_odd.remote(7, "because"))
    assert (caught.value.code, caught.value.why) == (7, "because")
    with pytest.raises(OSError) as caught_os:
        lattica.get(raise_this.remote(FileNotFoundError(2, "no such thing", "name")))
    assert (caught_os.value.errno, caught_os.value.filename) == (2, "name")


@pytest.mark.usefixtures("two_cpus")
def test_causes_and_contexts_stand_in_the_remote_traceback() -> None:
    @lattica.remote
    def chain() -> None:
        try:
            int("seven")
        except ValueError as error:
            raise RuntimeError("outer") from error

    with pytest.raises(RuntimeError, match="outer") as caught:
        lattica.get(chain.remote())
    assert "invalid literal" in str(caught.value) and "direct cause" in str(caught.value)


@pytest.mark.usefixtures("two_cpus")
def test_an_exception_passes_through_tasks_that_get_it() -> None:
    failing = raise_odd.remote(1, "deep")

    @lattica.remote
    def middle() -> None:
        lattica.get(raise_odd.remote(2, "deeper"))

    with pytest.raises(Odd, match="deep"):
        lattica.get(echo.remote(failing))
    with pytest.raises(Odd, match="2: deeper") as caught:
        lattica.get(middle.remote())
    assert "in middle" in str(caught.value) and "in raise_odd" in str(caught.value)


@pytest.mark.usefixtures("two_cpus")
@pytest.mark.usefixtures("two_cpus")
def test_get_of_many_raises_as_soon_as_one_has_failed() -> None:
    gate = Gate.options(max_concurrency=2).remote()
    shut, failed = gate.pass_through.remote(), raise_this.remote(ValueError("early"))
    for _ in range(2):  # it fails while we wait; it has failed
        with pytest.raises(ValueError, match="early"):
            lattica.get([shut, failed], timeout=15)
    assert lattica.wait([shut], timeout=0)[0] == [], "it was not waited for"
    lattica.get(gate.open.remote())


def test_every_ref_of_a_failed_task_raises_and_get_raises_the_first() -> None:
    refs = raise_this.options(num_returns=2).remote(KeyError("both"))
    for ref in refs:
        with pytest.raises(KeyError):
            lattica.get(ref)
    first = raise_odd.remote(1, "first")
    lattica.wait([first])
    with pytest.raises(Odd):
        lattica.get([echo.remote(1), first, refs[0]])


@pytest.mark.usefixtures("two_cpus")
def test_what_is_no_exception_of_the_callers_loop_stays_a_task_error() -> None:
    for error in (StopIteration(1), KeyboardInterrupt(), GeneratorExit()):
        with pytest.raises(TaskError) as caught:
            lattica.get(raise_this.remote(error))
        assert type(error).__name__ in str(caught.value)
    assert lattica.get(echo.remote("the worker lives")) == "the worker lives"


@pytest.mark.usefixtures("two_cpus")
def test_an_exception_group_arrives_as_one() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        lattica.get(raise_odd.remote(1, "b", many=True))
    assert [type(each) for each in caught.value.exceptions] == [KeyError, Odd]


# -- what cannot travel


@pytest.mark.usefixtures("two_cpus")
def test_an_exception_that_cannot_travel_leaves_its_text() -> None:
    @lattica.remote
    def raise_lock() -> None:
        error = RuntimeError("the text arrives")
        error.lock = threading.Lock()
        raise error

    with pytest.raises(TaskError) as caught:
        lattica.get(raise_lock.remote())
    assert "the text arrives" in str(caught.value) and "RuntimeError.lock (a _thread.lock)" in caught.value.cause_lost


@pytest.mark.usefixtures("two_cpus")
def test_an_exception_too_large_for_a_message_leaves_its_text() -> None:
    @lattica.remote
    def raise_much() -> None:
        raise Odd(9, why="w" * (20 << 20))

    with pytest.raises(TaskError, match="Odd: 9: www") as caught:
        lattica.get(raise_much.remote())
    assert caught.value.cause_lost == "it has 40 MiB"
    assert lattica.get(echo.remote(1)) == 1


@pytest.mark.usefixtures("two_cpus")
def test_an_exception_that_carries_a_ref_leaves_its_text() -> None:
    @lattica.remote
    def raise_ref() -> None:
        raise Odd(5, why=lattica.put("in it"))

    with pytest.raises(TaskError) as caught:
        lattica.get(raise_ref.remote())
    assert "Odd: 5" in str(caught.value)


class Trainer:
    def __init__(self) -> None:
        self.name = "trainer"
        self.parts = {"lock": threading.Lock()}


@lattica.remote
def make_trainer() -> list[Trainer]:
    return [Trainer()]


class Refusing:
    def __reduce__(self) -> Any:
        raise RuntimeError("I refuse")


@pytest.mark.usefixtures("two_cpus")
def test_an_argument_that_cannot_travel_is_named_to_its_attribute() -> None:
    with pytest.raises(SerializationError, match=r"echo.*\.parts\['lock'\].*lock") as caught:
        echo.remote(Trainer())
    assert isinstance(caught.value, TypeError)
    assert "Trainer" in str(caught.value) or ".parts" in caught.value.path
    with pytest.raises(SerializationError, match="I refuse"):
        echo.remote([1, {"a": Refusing()}])
    with pytest.raises(SerializationError):
        lattica.put(Trainer())


@pytest.mark.usefixtures("two_cpus")
def test_a_result_that_cannot_travel_is_named_and_says_which_function() -> None:
    with pytest.raises(SerializationError, match=r"the result of make_trainer\[0\]\.parts\['lock'\]"):
        lattica.get(make_trainer.remote())

    @lattica.remote
    def refuse() -> Any:
        return Refusing()

    with pytest.raises(SerializationError, match="I refuse"):
        lattica.get(refuse.remote())


@pytest.mark.usefixtures("two_cpus")
def test_a_closure_that_cannot_travel_is_named_by_its_variable() -> None:
    gate = threading.Lock()

    @lattica.remote
    def closed() -> None:
        with gate:
            pass

    with pytest.raises(SerializationError, match="captured variable gate"):
        closed.remote()


@pytest.mark.usefixtures("two_cpus")
def test_a_value_that_does_not_unpickle_fails_its_task_and_nothing_else() -> None:
    with pytest.raises(ValueError, match="not here") as caught:
        lattica.get(echo.remote(Explosive()))
    assert "while the arguments" in str(caught.value)
    assert lattica.get(echo.remote(1)) == 1


def explode() -> None:
    raise ValueError("not here")


class Explosive:
    def __reduce__(self) -> Any:
        return explode, ()


@pytest.mark.usefixtures("two_cpus")
def test_a_function_of_a_module_that_workers_cannot_import_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("only_in_the_driver")
    exec("def function():\n    return 1", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(SerializationError, match=r"No module named 'only_in_the_driver'[\s\S]*do next"):
        lattica.get(lattica.remote(module.function).remote())


@pytest.mark.usefixtures("two_cpus")
def test_an_error_of_lattica_itself_comes_without_lattica_s_frames() -> None:
    """One that the user's own line brought about shows that line."""
    with pytest.raises(SerializationError) as caught:
        lattica.get(make_trainer.remote())
    assert "Traceback" not in str(caught.value)

    @lattica.remote
    def put_trainer() -> None:
        lattica.put(Trainer())

    with pytest.raises(SerializationError, match=r"lattica\.put\(Trainer\(\)\)"):
        lattica.get(put_trainer.remote())


# -- dying workers


@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize(
    ("how", "code", "name", "word"),
    [("exit", 3, "", "exit code 3"), ("segfault", None, "SIGSEGV", "segmentation fault"),
     ("kill", None, "SIGKILL", "SIGKILL"), ("abort", None, "SIGABRT", "SIGABRT")],
)  # fmt: skip
def test_a_dead_worker_is_an_error_that_says_how_and_what_it_said(how: str, code: Any, name: str, word: str) -> None:
    with pytest.raises(WorkerCrashedError) as caught:
        lattica.get(end.options(max_retries=0).remote(how, "last words of mine"), timeout=10)
    error = caught.value
    assert (error.exit_code, error.signal) == (code, name)
    assert word in str(error) and "last words of mine" in str(error) and "task end" in str(error)
    if how == "segfault":
        assert "in end" in error.stderr_tail, "faulthandler shows the user's line"


@pytest.mark.usefixtures("two_cpus")
def test_sys_exit_in_a_task_ends_its_worker_and_spends_a_retry_as_in_ray(tmp_path: Path) -> None:
    @lattica.remote
    def leave(code: Any) -> None:
        runs = open(tmp_path / f"runs {code}", "a", buffering=1)
        atexit.register(runs.write, "x\n")
        sys.exit(code)

    for code, status, retries in ((0, 0, 0), (None, 0, 0), (4, 4, 1), ("no such page", 1, 0)):
        with pytest.raises(WorkerCrashedError) as caught:
            lattica.get(leave.options(max_retries=retries).remote(code), timeout=10)
        assert caught.value.exit_code == status
        assert "leave called sys.exit(" in str(caught.value) and "test_errors.py:" in str(caught.value)
    assert "no such page" in caught.value.stderr_tail
    assert (tmp_path / "runs 4").read_text() == "x\nx\n", "run twice, and exit handlers have run"


@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize("how", ["plain", "threads", "asyncio"])
def test_sys_exit_in_an_actor_ends_it_for_good_with_code_0_and_is_a_crash_with_another(
    how: str, tmp_path: Path
) -> None:
    class Leaver:
        def __init__(self, marker: Path | None = None) -> None:
            if marker is not None and not marker.exists():
                marker.touch()
                sys.exit("not yet")

        def pid(self) -> int:
            return os.getpid()

        def leave(self, code: Any) -> None:
            sys.exit(code)

    class AsyncLeaver(Leaver):
        async def leave(self, code: Any) -> None:
            sys.exit(code)

    actors = lattica.remote(max_restarts=1, max_concurrency=2 if how == "threads" else None)
    cls: Any = actors(AsyncLeaver if how == "asyncio" else Leaver)
    gone = cls.remote()
    with pytest.raises(ActorDiedError, match=r"sys\.exit\(0\).*\n.*ended on purpose"):
        lattica.get(gone.leave.remote(0), timeout=10)
    with pytest.raises(ActorDiedError, match="ended on purpose"):
        lattica.get(gone.pid.remote(), timeout=10)
    crashed = cls.remote()
    before = crashed.pid.remote()
    if how == "threads":  # else its reply is sent before the process ends
        lattica.wait([before])
    left = crashed.leave.remote(5)
    with pytest.raises(ActorUnavailableError, match="exit code 5"):
        lattica.get(left, timeout=10)
    assert lattica.get(before, timeout=10) != lattica.get(crashed.pid.remote(), timeout=10), "restarted"
    with pytest.raises(ActorDiedError, match="exit code 5"):
        lattica.get(crashed.leave.remote(5), timeout=10)
    again = cls.options(max_task_retries=1).remote(tmp_path / "constructed")
    assert lattica.get(again.pid.remote(), timeout=10), "its constructor crashed once"


@pytest.mark.usefixtures("two_cpus")
def test_a_task_whose_worker_dies_is_run_again_as_often_as_allowed(tmp_path: Path) -> None:
    @lattica.remote
    def die_until(path: str, runs: int) -> int:
        if lattica.get(count_run.remote(path)) < runs:
            os.kill(os.getpid(), signal.SIGKILL)
        return len(Path(path).read_text())

    assert lattica.get(die_until.remote(str(tmp_path / "a"), 4), timeout=20) == 4, "three retries are the default"
    with pytest.raises(WorkerCrashedError):
        lattica.get(die_until.options(max_retries=1).remote(str(tmp_path / "b"), 4), timeout=20)
    assert (tmp_path / "b").read_text() == "xx"
    assert lattica.get(die_until.options(max_retries=-1).remote(str(tmp_path / "c"), 6), timeout=20) == 6


@pytest.mark.usefixtures("two_cpus")
def test_exceptions_are_retried_only_where_asked_and_only_those_named(tmp_path: Path) -> None:
    @lattica.remote
    def fail_until(path: str, runs: int, kind: type[Exception]) -> int:
        with open(path, "a") as file:
            file.write("x")
        done = len(Path(path).read_text())
        if done < runs:
            raise kind(done)
        return done

    def runs(name: str) -> int:
        return len((tmp_path / name).read_text())

    with pytest.raises(KeyError):
        lattica.get(fail_until.remote(str(tmp_path / "a"), 3, KeyError))
    assert runs("a") == 1
    always = fail_until.options(retry_exceptions=True)
    assert lattica.get(always.remote(str(tmp_path / "b"), 3, KeyError)) == 3
    some = fail_until.options(retry_exceptions=[LookupError])
    assert lattica.get(some.remote(str(tmp_path / "c"), 3, KeyError)) == 3
    with pytest.raises(ValueError):
        lattica.get(some.remote(str(tmp_path / "d"), 3, ValueError))
    assert runs("d") == 1
    with pytest.raises(KeyError):
        lattica.get(always.options(max_retries=2).remote(str(tmp_path / "e"), 9, KeyError))
    assert runs("e") == 3


def test_neighbours_of_a_crashing_task_that_may_not_be_retried_are_unharmed(fresh: Callable[..., Any]) -> None:
    """Quick tasks lie behind one another in a worker; its death is charged to the one that had begun."""
    fresh(num_cpus=2)

    @lattica.remote(max_retries=0)
    def step(k: int, deadly: bool = False) -> int:
        if deadly:
            os._exit(9)
        return k

    lattica.get([step.remote(k) for k in range(500)])
    for _ in range(3):
        refs = [step.remote(k, k % 100 == 50) for k in range(400)]
        for k, ref in enumerate(refs):
            if k % 100 == 50:
                with pytest.raises(WorkerCrashedError):
                    lattica.get(ref, timeout=20)
            else:
                assert lattica.get(ref, timeout=20) == k
