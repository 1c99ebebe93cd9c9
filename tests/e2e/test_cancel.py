"""`lattica.cancel`: what waits is forgotten, what runs is broken, what has ended stays."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lattica
from lattica.exceptions import GetTimeoutError, TaskCancelledError, WorkerCrashedError
from tests.e2e.conftest import Script, eventually


@lattica.remote
def sleep(seconds: float, path: str | None = None) -> str:
    """`path`: a file that appears once this runs."""
    if path:
        Path(path).touch()
    time.sleep(seconds)
    return "slept"


@lattica.remote
def process_id() -> int:
    return os.getpid()


@lattica.remote
def echo(value: Any) -> Any:
    return value


def begun(path: Path) -> str:
    assert eventually(path.exists), "it did not begin"
    return str(path)


def assert_canceled(*refs: Any, within_s: float = 5.0) -> None:
    for ref in refs:
        with pytest.raises(TaskCancelledError):
            lattica.get(ref, timeout=within_s)


@pytest.mark.usefixtures("two_cpus")
def test_a_running_task_is_broken_and_its_worker_goes_on(tmp_path: Path) -> None:
    ref = sleep.remote(30, str(tmp_path / "a"))
    begun(tmp_path / "a")
    lattica.cancel(ref)
    assert_canceled(ref)
    assert lattica.get(echo.remote(1), timeout=5) == 1


def sleep_deaf(path: str) -> None:
    """The first signal comes to nothing, as one that arrives when a system call is about to begin."""
    found = signal.getsignal(signal.SIGURG)
    signal.signal(signal.SIGURG, lambda signum, frame: signal.signal(signal.SIGURG, found))
    Path(path).touch()
    time.sleep(30)


@lattica.remote
class Deaf:
    def sleep(self, path: str) -> None:
        sleep_deaf(path)


@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize("of", ["a task", "a call"])
def test_a_cancel_whose_signal_comes_to_nothing_is_sent_again(tmp_path: Path, of: str) -> None:
    path = str(tmp_path / "a")
    ref = lattica.remote(sleep_deaf).remote(path) if of == "a task" else Deaf.remote().sleep.remote(path)
    begun(tmp_path / "a")
    lattica.cancel(ref)
    assert_canceled(ref)


@pytest.mark.usefixtures("two_cpus")
def test_a_task_that_has_not_begun_never_does(tmp_path: Path) -> None:
    blockers = [sleep.remote(30, str(tmp_path / f"blocker{k}")) for k in range(2)]
    for k in range(2):
        begun(tmp_path / f"blocker{k}")
    queued = [sleep.remote(0, str(tmp_path / f"queued{k}")) for k in range(5)]
    waiting = echo.remote(queued[0])
    lattica.cancel(waiting)
    for ref in queued:
        lattica.cancel(ref)
    assert_canceled(waiting, *queued)
    for ref in blockers:
        lattica.cancel(ref)
    assert_canceled(*blockers)
    assert lattica.get(echo.remote(1), timeout=5) == 1
    assert not list(tmp_path.glob("queued*"))


@pytest.mark.usefixtures("two_cpus")
def test_a_task_whose_argument_was_canceled_is_canceled_too(tmp_path: Path) -> None:
    first = sleep.remote(30, str(tmp_path / "a"))
    second = echo.remote(first)
    begun(tmp_path / "a")
    lattica.cancel(first)
    assert_canceled(second, first)


@pytest.mark.usefixtures("two_cpus")
def test_quick_tasks_queued_in_a_worker_can_be_canceled_one_by_one(tmp_path: Path) -> None:
    lattica.get([sleep.remote(0) for _ in range(300)])  # quick: many lie in one worker's queue
    refs = [sleep.remote(0.001) for _ in range(200)]
    for ref in refs[1::2]:
        lattica.cancel(ref)
    for k, ref in enumerate(refs):
        if k % 2:
            try:
                assert lattica.get(ref, timeout=10) == "slept", "it had ended"
            except TaskCancelledError:
                pass
        else:
            assert lattica.get(ref, timeout=10) == "slept", "a neighbour of a cancelled task is unharmed"


@pytest.mark.usefixtures("two_cpus")
def test_cancel_breaks_a_blocked_get_and_a_wait(tmp_path: Path) -> None:
    @lattica.remote
    def block(how: str, path: str) -> Any:
        inner = sleep.options(num_cpus=0).remote(30, path)
        return lattica.get(inner) if how == "get" else lattica.wait([inner])

    for how in ("get", "wait"):
        ref = block.remote(how, str(tmp_path / how))
        begun(tmp_path / how)
        lattica.cancel(ref)
        assert_canceled(ref)
    assert lattica.get(echo.remote(1), timeout=5) == 1


@pytest.mark.usefixtures("two_cpus")
def test_cancel_reaches_what_the_task_submitted_unless_told_not_to(tmp_path: Path) -> None:
    @lattica.remote(num_cpus=0)
    def child(path: str) -> None:
        try:
            sleep._function(1.0, path)
        finally:
            Path(path + ".ended").touch()
        Path(path + ".lived").touch()

    @lattica.remote(num_cpus=0)
    def parent(path: str) -> None:
        lattica.get(child.remote(path))

    @lattica.remote(num_cpus=0)
    def grandparent(path: str) -> None:
        lattica.get(parent.remote(path))

    for recursive in (True, False):
        path = tmp_path / f"recursive{recursive}"
        ref = grandparent.remote(str(path))
        begun(path)
        lattica.cancel(ref, recursive=recursive)
        assert_canceled(ref)
        begun(path.with_name(path.name + ".ended"))
        assert path.with_name(path.name + ".lived").exists() is not recursive


@pytest.mark.usefixtures("two_cpus")
def test_force_ends_a_task_that_does_not_listen_and_is_not_retried(tmp_path: Path) -> None:
    @lattica.remote
    def deaf(path: str) -> None:
        with open(path, "a") as file:
            file.write("x")
        while True:
            try:
                while True:
                    time.sleep(0.05)
            except KeyboardInterrupt:
                continue

    ref = deaf.remote(str(tmp_path / "a"))
    begun(tmp_path / "a")
    lattica.cancel(ref)
    with pytest.raises(GetTimeoutError):
        lattica.get(ref, timeout=0.3)
    lattica.cancel(ref, force=True)
    with pytest.raises((TaskCancelledError, WorkerCrashedError)):
        lattica.get(ref, timeout=5)
    time.sleep(0.1)
    assert (tmp_path / "a").read_text() == "x"
    assert lattica.get(echo.remote(1), timeout=5) == 1


@pytest.mark.usefixtures("two_cpus")
def test_a_task_may_clean_up_when_it_is_canceled(tmp_path: Path) -> None:
    @lattica.remote
    def tidy(path: str) -> Any:
        try:
            sleep._function(30, path)
        except Exception:
            return "this is not for everybody's `except Exception`"
        except KeyboardInterrupt:  # as in Ray
            time.sleep(0.2)
            Path(path + ".tidy").touch()
            raise

    ref = tidy.remote(str(tmp_path / "a"))
    begun(tmp_path / "a")
    lattica.cancel(ref)
    assert_canceled(ref)
    assert (tmp_path / "a.tidy").exists()


@pytest.mark.usefixtures("two_cpus")
def test_what_has_ended_stays() -> None:
    ref, put = echo.remote(1), lattica.put(2)
    assert lattica.get(ref) == 1
    lattica.cancel(ref)
    lattica.cancel(ref, force=True)
    lattica.cancel(put)
    assert lattica.get([ref, put]) == [1, 2]
    with pytest.raises(TypeError):
        lattica.cancel(1)


@pytest.mark.usefixtures("two_cpus")
def test_a_canceled_task_with_several_results_cancels_each(tmp_path: Path) -> None:
    refs = sleep.options(num_returns=2).remote(30, str(tmp_path / "a"))
    begun(tmp_path / "a")
    lattica.cancel(refs[1])
    assert_canceled(*refs)


@pytest.mark.usefixtures("two_cpus")
def test_cancel_in_a_storm_harms_nobody_else() -> None:
    """The signal names the task that it is for: one that comes late finds another task running, and lets it be."""

    @lattica.remote
    def spin(k: int) -> int:
        deadline = time.monotonic() + 0.002
        while time.monotonic() < deadline:
            pass
        return k

    lattica.get([echo.remote(0) for _ in range(100)])
    for _ in range(3):
        doomed = [spin.remote(-1) for _ in range(60)]
        kept = [spin.remote(k) for k in range(60)]
        for ref in doomed:
            lattica.cancel(ref)
        assert lattica.get(kept, timeout=20) == list(range(60))
        for ref in doomed:
            try:
                assert lattica.get(ref, timeout=20) == -1
            except TaskCancelledError:
                pass


def test_what_was_canceled_in_a_worker_that_died_before_it_heard_is_not_run_elsewhere(
    fresh: Callable[..., Any], tmp_path: Path
) -> None:
    fresh(num_cpus=1)
    lattica.get([sleep.remote(0) for _ in range(200)])
    pid = lattica.get(process_id.remote())
    os.kill(pid, signal.SIGSTOP)
    refs = [sleep.remote(0, str(tmp_path / str(k))) for k in range(10)]
    lattica.cancel(refs[7])
    time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    assert_canceled(refs.pop(7))
    assert lattica.get(refs, timeout=10) == ["slept"] * 9
    assert not (tmp_path / "7").exists()


def test_cancel_works_where_the_parent_shell_ignores_sigint(script: Script) -> None:
    """As in a background job of a script: `python program.py &` starts with SIGINT ignored, and so do its children."""
    process = script.start(
        """
import signal, sys, time, lattica
assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
lattica.init(num_cpus=1)

@lattica.remote
def sleep(path):
    open(path, "w").close()
    time.sleep(30)

ref = sleep.remote(sys.argv[1])
import os
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
lattica.cancel(ref)
try:
    lattica.get(ref, timeout=5)
except lattica.exceptions.TaskCancelledError:
    print("canceled")
""",
        str(script.folder / "begun"),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    out, err = process.communicate(timeout=20)
    assert out == "canceled\n", err


# -- refs of other processes


@lattica.remote(num_cpus=0)
def cancel_in_a_task(refs: list[Any], force: bool = False) -> None:
    for ref in refs:
        lattica.cancel(ref, force=force)


@lattica.remote(num_cpus=0)
def submit(path: str) -> list[Any]:
    """The ref of a task that this worker submitted: whoever gets it borrows it."""
    return [sleep.remote(30, path)]


@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize("force", [False, True])
def test_a_task_cancels_a_ref_that_it_was_given(tmp_path: Path, force: bool) -> None:
    running = sleep.options(max_retries=0).remote(30, str(tmp_path / "a"))
    begun(tmp_path / "a")
    lattica.get(cancel_in_a_task.remote([running], force), timeout=5)
    assert_canceled(running)


@pytest.mark.usefixtures("two_cpus")
def test_a_driver_cancels_what_a_worker_submitted(tmp_path: Path) -> None:
    [running] = lattica.get(submit.remote(str(tmp_path / "a")), timeout=5)
    begun(tmp_path / "a")
    lattica.cancel(running)
    assert_canceled(running)


@pytest.mark.usefixtures("two_cpus")
def test_a_ref_is_cancelled_from_two_processes_away(tmp_path: Path) -> None:
    [running] = lattica.get(submit.remote(str(tmp_path / "a")), timeout=5)
    begun(tmp_path / "a")
    lattica.get(cancel_in_a_task.remote([running]), timeout=5)
    assert_canceled(running)


@pytest.mark.usefixtures("two_cpus")
def test_a_call_is_cancelled_by_another_process_and_its_actor_goes_on(tmp_path: Path) -> None:
    @lattica.remote
    class Sleeper:
        def sleep(self, path: str) -> None:
            Path(path).touch()
            time.sleep(30)

        def name(self) -> str:
            return "sleeper"

    sleeper = Sleeper.remote()
    for force in (False, True):
        path = tmp_path / str(force)
        running, queued = sleeper.sleep.remote(str(path)), sleeper.sleep.remote(str(path))
        begun(path)
        lattica.get(cancel_in_a_task.remote([queued, running], force), timeout=5)
        assert_canceled(queued, running)
    assert lattica.get(sleeper.name.remote(), timeout=5) == "sleeper"


@pytest.mark.usefixtures("two_cpus")
def test_what_has_ended_stays_though_another_process_cancels_it() -> None:
    ended, put = echo.remote("done"), lattica.put("put")
    lattica.get(ended)
    lattica.get(cancel_in_a_task.remote([ended, put]), timeout=5)
    assert lattica.get([ended, put, echo.remote(1)], timeout=5) == ["done", "put", 1]
