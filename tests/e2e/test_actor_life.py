"""How actors end, restart and outlive their drivers."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lattica
from lattica.actors import current
from lattica.exceptions import ActorDiedError, ActorUnavailableError, RayActorError
from tests.e2e.conftest import eventually
from tests.e2e.sample_actors import Counter, Gate, Notes

shared = pytest.mark.usefixtures("two_cpus")


COMMAND = [sys.executable, "-c", "from lattica.cli.main import main; main()"]


def actors() -> list[dict[str, Any]]:
    """What the node says of actors: the dead among them only while somebody holds a handle."""
    return current.get().state("actors")


def record(handle: Any) -> dict[str, Any]:
    """What it says of this one."""
    (found,) = [actor for actor in actors() if actor["actor"] == handle._actor_id.hex()]
    return found


def alive(pid: int) -> bool:
    """Whether the process lives. A zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@lattica.remote(max_restarts=2)
class Phoenix:
    """Counts its calls, dies when told to, and knows which life it lives."""

    def __init__(self, path: str = "") -> None:
        self.calls = 0
        if path:
            with open(path, "a") as lives:
                lives.write(f"{os.getpid()}\n")

    def call(self) -> int:
        self.calls += 1
        return self.calls

    def die(self, code: int = 1) -> None:
        os._exit(code)

    def die_once(self, path: str) -> str:
        """Ends its process the first time it runs, over all lives."""
        with open(path, "a") as tries:
            tries.write("x")
        if os.path.getsize(path) == 1:
            time.sleep(0.2)  # what the caller sends next has left it by then
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    def reborn(self) -> bool:
        return lattica.get_runtime_context().was_current_actor_reconstructed

    def pid(self) -> int:
        return os.getpid()

    def leave(self) -> None:
        lattica.actor.exit_actor()


def comes_back(handle: Any, within_s: float = 5.0) -> int:
    """A call's value as soon as the actor answers again."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return lattica.get(handle.call.remote(), timeout=within_s)
        except ActorUnavailableError:
            assert time.monotonic() < deadline, "it did not come back"
            time.sleep(0.01)


# -- the last handle -------------------------------------------------------------------------------------------------


@shared
def test_an_actor_ends_after_its_queued_calls_when_the_last_handle_is_gone() -> None:
    counter = Counter.remote()
    pid, slow = lattica.get(counter.pid.remote()), counter.sleep.remote(0.2)
    last = [counter.add.remote() for _ in range(10)]
    del counter
    assert alive(pid)
    assert lattica.get([slow, *last]) == [0.2, *range(1, 11)]
    assert eventually(lambda: not alive(pid))
    assert eventually(lambda: not actors()), actors()


@shared
def test_an_actor_whose_results_nobody_wants_still_runs_its_calls(tmp_path: Path) -> None:
    @lattica.remote
    class Writer:
        def write(self, path: str) -> None:
            time.sleep(0.05)
            Path(path).write_text("written")

    Writer.remote().write.remote(str(tmp_path / "note"))
    assert eventually(lambda: (tmp_path / "note").exists())
    assert eventually(lambda: not actors()), actors()


@shared
def test_a_handle_in_a_task_in_an_object_or_in_another_actor_keeps_the_actor() -> None:
    @lattica.remote
    def use(handle: Any) -> int:
        time.sleep(0.2)
        return lattica.get(handle.add.remote())

    counter = Counter.remote()
    pid = lattica.get(counter.pid.remote())
    used = use.remote(counter)
    del counter
    assert lattica.get(used) == 1
    assert eventually(lambda: not alive(pid)), "the task has ended, and nobody else held it"

    counter, keeper = Counter.remote(), Notes.remote()
    pid = lattica.get(counter.pid.remote())
    box, _ = lattica.put([counter]), lattica.get(keeper.add.remote([counter]))
    del counter
    lattica.get(keeper.drop.remote())
    time.sleep(0.1)
    assert alive(pid)
    (again,) = lattica.get(box)
    assert lattica.get(again.add.remote()) == 1
    del box
    assert lattica.get(again.add.remote()) == 2
    del again
    assert eventually(lambda: not alive(pid))


def test_a_handle_that_only_a_closure_has_keeps_the_actor(fresh: Callable[..., Any]) -> None:
    fresh(num_cpus=2)

    def task_of(handle: Any) -> Any:
        @lattica.remote
        def use() -> int:
            return lattica.get(handle.add.remote())

        return use

    counter = Counter.remote()
    use = task_of(counter)
    del counter
    assert [lattica.get(use.remote()) for _ in range(3)] == [1, 2, 3]


@shared
def test_an_actor_made_in_a_task_lives_as_long_as_its_handles_do() -> None:
    @lattica.remote
    def make() -> Any:
        return Counter.remote(40)

    counter = lattica.get(make.remote())
    time.sleep(0.3)  # the task's worker is idle or gone
    assert lattica.get([counter.add.remote(), counter.add.remote()]) == [41, 42]
    del counter
    assert eventually(lambda: not actors()), actors()


@shared
def test_handles_come_and_go_two_hundred_times_and_the_actor_notices_only_the_last() -> None:
    counter = Counter.remote()
    pid = lattica.get(counter.pid.remote())

    @lattica.remote
    def pass_on(handle: Any) -> Any:
        return [handle]

    for _ in range(200):
        (copy,) = lattica.get(pass_on.remote(counter))
    assert copy == counter
    del counter
    assert lattica.get(copy.pid.remote()) == pid
    del copy
    assert eventually(lambda: not alive(pid))


# -- kill ------------------------------------------------------------------------------------------------------------


@shared
def test_kill_ends_the_process_at_once_and_for_good() -> None:
    phoenix = Phoenix.options(max_restarts=-1).remote()
    pid, running = lattica.get(phoenix.pid.remote()), phoenix.call.remote()
    lattica.get(running)
    lattica.kill(phoenix)
    assert eventually(lambda: not alive(pid), 1.0)
    with pytest.raises(ActorDiedError, match="kill") as raised:
        lattica.get(phoenix.call.remote())
    assert "on purpose" in str(raised.value)


@shared
def test_calls_under_way_end_in_an_error_when_their_actor_is_killed() -> None:
    gate = Gate.remote()
    running, queued = gate.pass_through.remote(), gate.open.remote()
    time.sleep(0.05)
    lattica.kill(gate)
    for ref in (running, queued):
        with pytest.raises(RayActorError):
            lattica.get(ref, timeout=5)


@shared
def test_kill_with_restart_costs_one_of_the_restarts() -> None:
    phoenix = Phoenix.options(max_restarts=1).remote()
    first = lattica.get(phoenix.pid.remote())
    assert lattica.get([phoenix.call.remote(), phoenix.reborn.remote()]) == [1, False]
    lattica.kill(phoenix, no_restart=False)
    assert comes_back(phoenix) == 1, "its state is that of a new object"
    assert lattica.get(phoenix.pid.remote()) != first
    assert lattica.get(phoenix.reborn.remote()) is True
    lattica.kill(phoenix, no_restart=False)
    assert eventually(lambda: record(phoenix)["state"] == "DEAD")
    with pytest.raises(ActorDiedError):
        lattica.get(phoenix.call.remote())


@shared
def test_kill_takes_an_actor_and_nothing_else() -> None:
    with pytest.raises(ValueError, match="cancel"):
        lattica.kill(lattica.put(1))


# -- crashes and restarts --------------------------------------------------------------------------------------------


@shared
def test_a_crash_without_restarts_is_the_end_and_says_how() -> None:
    counter = Counter.remote()
    lattica.get(counter.add.remote())
    crash = counter.crash.remote()
    after = counter.add.remote()
    for ref in (crash, after, counter.add.remote()):
        with pytest.raises(ActorDiedError, match="exit code 7"):
            lattica.get(ref, timeout=5)


@shared
def test_restarts_are_counted_and_then_it_is_over(tmp_path: Path) -> None:
    phoenix = Phoenix.remote(str(tmp_path / "lives"))
    for code in (1, 2):
        with pytest.raises(ActorUnavailableError, match=f"exit code {code}"):
            lattica.get(phoenix.die.remote(code))
        assert comes_back(phoenix) == 1
    with pytest.raises(ActorDiedError, match="exit code 3"):
        lattica.get(phoenix.die.remote(3))
    assert len((tmp_path / "lives").read_text().split()) == 3
    end = record(phoenix)
    assert (end["state"], end["restarts"], end["incarnation"]) == ("DEAD", 2, 3)


@shared
def test_an_actor_without_a_limit_comes_back_every_time() -> None:
    phoenix = Phoenix.options(max_restarts=-1).remote()
    for _ in range(3):
        phoenix.die.remote()
        assert comes_back(phoenix) == 1


@shared
def test_a_call_with_retries_survives_a_crash_and_those_behind_it_too(tmp_path: Path) -> None:
    phoenix = Phoenix.options(max_task_retries=1).remote()
    lattica.get(phoenix.call.remote())
    refs = [phoenix.die_once.remote(str(tmp_path / "tries")), *[phoenix.call.remote() for _ in range(5)]]
    assert lattica.get(refs, timeout=10) == ["done", 1, 2, 3, 4, 5]
    assert (tmp_path / "tries").read_text() == "xx"


@shared
def test_a_call_without_retries_runs_at_most_once_though_its_actor_comes_back(tmp_path: Path) -> None:
    phoenix = Phoenix.remote()
    lattica.get(phoenix.call.remote())
    ran, behind = phoenix.die_once.remote(str(tmp_path / "tries")), phoenix.call.remote()
    for ref in (ran, behind):
        with pytest.raises(ActorUnavailableError, match="may have run"):
            lattica.get(ref, timeout=10)
    assert comes_back(phoenix) == 1, "nothing was sent again to the new life"
    assert (tmp_path / "tries").read_text() == "x"


@shared
def test_retries_of_one_method_do_not_make_others_repeatable(tmp_path: Path) -> None:
    phoenix = Phoenix.remote()
    lattica.get(phoenix.call.remote())
    ref = phoenix.die_once.options(max_task_retries=1).remote(str(tmp_path / "tries"))
    lost = phoenix.call.remote()
    assert lattica.get(ref, timeout=10) == "done"
    with pytest.raises(ActorUnavailableError, match="may have run"):
        lattica.get(lost)


@shared
def test_calls_made_while_an_actor_restarts_wait_for_it() -> None:
    @lattica.remote(max_restarts=1)
    class SlowStart:
        def __init__(self) -> None:
            time.sleep(0.2)

        def die(self) -> None:
            os._exit(1)

        def answer(self) -> int:
            return 42

    slow = SlowStart.remote()
    with pytest.raises(ActorUnavailableError):
        lattica.get(slow.die.remote())
    assert lattica.get([slow.answer.remote() for _ in range(3)], timeout=5) == [42, 42, 42]


@shared
def test_a_restarted_actor_has_its_arguments_again() -> None:
    import numpy as np

    @lattica.remote(max_restarts=1)
    class Table:
        def __init__(self, rows: Any, ref: Any, box: list[Any]) -> None:
            self.sum = float(rows.sum() + ref.sum() + lattica.get(box[0]).sum())

        def call(self) -> float:
            return self.sum

        def die(self) -> None:
            os._exit(1)

    ones = np.ones(200_000)
    table = Table.remote(ones, lattica.put(ones), [lattica.put(ones)])
    gc.collect()
    assert lattica.get(table.call.remote()) == 600_000
    table.die.remote()
    assert comes_back(table) == 600_000


@shared
def test_what_an_actor_said_last_is_in_the_error() -> None:
    @lattica.remote
    class Talker:
        def end(self) -> None:
            print("these are my last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)

    with pytest.raises(ActorDiedError, match="SIGSEGV") as raised:
        lattica.get(Talker.remote().end.remote())
    assert "these are my last words" in str(raised.value)
    assert "Fatal Python error: Segmentation fault" in str(raised.value)


@shared
def test_a_constructor_that_crashes_again_and_again_ends_the_actor() -> None:
    @lattica.remote(max_restarts=2)
    class Stillborn:
        def __init__(self) -> None:
            os._exit(9)

        def call(self) -> None:
            pass

    stillborn = Stillborn.remote()
    with pytest.raises(RayActorError, match="exit code 9"):
        lattica.get(stillborn.call.remote(), timeout=10)
    assert eventually(lambda: record(stillborn)["state"] == "DEAD")


@shared
def test_every_holder_of_a_handle_hears_of_the_restart() -> None:
    phoenix = Phoenix.remote()

    @lattica.remote
    class Friend:
        def __init__(self, other: Any) -> None:
            self.other = other

        def call(self) -> int:
            return lattica.get(self.other.call.remote())

    friend = Friend.remote(phoenix)
    assert lattica.get(friend.call.remote()) == 1
    phoenix.die.remote()
    assert comes_back(phoenix) == 1
    assert lattica.get(friend.call.remote()) == 2


# -- on purpose ------------------------------------------------------------------------------------------------------


@shared
def test_exit_actor_is_the_end_whatever_restarts_are_left() -> None:
    for options in ({}, {"max_concurrency": 3}):
        phoenix = Phoenix.options(**options).remote()
        pid, left = lattica.get(phoenix.pid.remote()), phoenix.leave.remote()
        with pytest.raises(ActorDiedError, match="exit_actor"):
            lattica.get(left, timeout=5)
        with pytest.raises(ActorDiedError, match="exit_actor"):
            lattica.get(phoenix.call.remote(), timeout=5)
        assert eventually(lambda pid=pid: not alive(pid))
        assert record(phoenix)["restarts"] == 0
        del phoenix
        assert eventually(lambda: not actors()), actors()


@shared
def test_exit_actor_passes_through_handlers_of_exceptions() -> None:
    @lattica.remote
    class Stubborn:
        def leave(self) -> None:
            try:
                lattica.actor.exit_actor()
            except Exception:
                return

    stubborn = Stubborn.remote()
    with pytest.raises(ActorDiedError):
        lattica.get(stubborn.leave.remote(), timeout=5)


def test_exit_actor_outside_an_actor_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        lattica.actor.exit_actor()


@shared
def test_terminate_lets_the_queue_finish_and_runs_exit_handlers(tmp_path: Path) -> None:
    @lattica.remote(max_restarts=5)
    class Tidy:
        def __init__(self, path: str) -> None:
            import atexit

            self.calls = 0
            atexit.register(lambda: Path(path).write_text(f"{self.calls} calls"))

        def call(self) -> int:
            self.calls += 1
            return self.calls

    for name in ("__ray_terminate__", "__lattica_terminate__"):
        tidy, path = Tidy.remote(str(tmp_path / name)), tmp_path / name
        calls = [tidy.call.remote() for _ in range(20)]
        end, late = getattr(tidy, name).remote(), tidy.call.remote()
        assert lattica.get(calls) == list(range(1, 21))
        assert lattica.get(end, timeout=5) is None
        with pytest.raises(ActorDiedError):
            lattica.get(late, timeout=5)
        assert eventually(path.exists)
        assert path.read_text() == "20 calls"


@shared
def test_exit_handlers_run_when_the_last_handle_is_gone(tmp_path: Path) -> None:
    @lattica.remote
    class Tidy:
        def begin(self, path: str) -> None:
            import atexit

            atexit.register(lambda: Path(path).write_text("tidy"))

    tidy = Tidy.remote()
    lattica.get(tidy.begin.remote(str(tmp_path / "note")))
    del tidy
    assert eventually((tmp_path / "note").exists)


# -- outliving -------------------------------------------------------------------------------------------------------


def test_a_session_that_ends_takes_its_actors_along(fresh: Callable[..., Any]) -> None:
    fresh(num_cpus=2)
    pids = lattica.get([Counter.options(name="x").remote().pid.remote(), Counter.remote().pid.remote()])
    lattica.shutdown()
    assert eventually(lambda: not any(alive(pid) for pid in pids), 1.0)


def command(*words: str) -> None:
    """Run `lattica` with these words, to success."""
    subprocess.run([*COMMAND, *words], check=True, capture_output=True, timeout=30)


@pytest.fixture
def node(sessions: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The data directory of a node begun by `lattica start`, which drivers of this test attach to."""
    sessions.end()
    folder = str(tmp_path / "node")
    monkeypatch.setenv("LATTICA_DATA_DIR", folder)
    command("start", "--num-cpus", "2")
    yield folder
    sessions.end()
    command("stop")


DRIVER = """
import lattica

@lattica.remote(max_restarts=-1)
class Counter:
    def __init__(self, start):
        self.count = start.sum() if hasattr(start, "sum") else start

    def add(self):
        self.count += 1
        return int(self.count)

    def crash(self):
        import os
        os._exit(1)

lattica.init(namespace="shared")
"""


def test_a_detached_actor_outlives_its_driver_within_the_nodes_life(node: str, script: Any) -> None:
    make = (
        DRIVER
        + """
import numpy
lost = Counter.options(name="lost").remote(0)
kept = Counter.options(name="kept", lifetime="detached").remote(numpy.ones(50_000))
print(lattica.get([kept.add.remote(), lost.add.remote()]))
"""
    )
    assert script(make) == "[50001, 1]\n"
    lattica.init(namespace="shared")
    with pytest.raises(ValueError, match="lost"):
        lattica.get_actor("lost")
    kept = lattica.get_actor("kept")
    assert lattica.get(kept.add.remote()) == 50_002
    del kept
    lattica.shutdown()

    lattica.init(namespace="shared")
    kept = lattica.get_actor("kept")
    assert lattica.get(kept.add.remote()) == 50_003
    kept.crash.remote()
    deadline = time.monotonic() + 5
    while True:
        try:
            assert lattica.get(kept.add.remote(), timeout=5) == 50_001, "its arguments outlive its driver too"
            break
        except ActorUnavailableError:
            assert time.monotonic() < deadline
    pid = record(kept)["pid"]
    lattica.kill(kept)
    del kept
    assert eventually(lambda: not alive(pid))
    with pytest.raises(ValueError):
        lattica.get_actor("kept")
    status = current.get().state("status")
    assert eventually(lambda: len(current.get().state("jobs")) == 1), status["jobs"]
    assert eventually(lambda: not actors()), actors()


def test_drivers_side_by_side_share_a_detached_actor(node: str, script: Any) -> None:
    lattica.init(namespace="shared")
    program = (
        DRIVER
        + """
one = Counter.options(name="one", lifetime="detached", get_if_exists=True).remote(0)
print([lattica.get(one.add.remote()) for _ in range(5)][-1])
"""
    )
    drivers = [script.start(program, name=f"program{number}.py") for number in range(3)]
    outs = [driver.communicate(timeout=30)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0, 0]
    assert max(int(out) for out in outs) == 15
    one = lattica.get_actor("one")
    assert lattica.get(one.add.remote()) == 16
    lattica.kill(one)


def test_stopping_the_node_ends_detached_actors_too(node: str) -> None:
    lattica.init()
    kept = Counter.options(name="kept", lifetime="detached").remote()
    pid = lattica.get(kept.pid.remote())
    del kept
    lattica.shutdown()
    assert alive(pid)
    command("stop")
    assert not alive(pid)
    command("start")  # for the fixture to stop
