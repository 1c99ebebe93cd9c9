"""What every test gets: laws that replay, and a home of its own.

A driver attaches to a node begun by `lattica start` if it finds one, so a developer's own must be out of sight here.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

EXAMPLES = 50
"""Of each law in a run, new ones every time. A test that wants another number says `examples`."""
FUZZ = int(os.environ.get("LATTICA_FUZZ", "0"))
"""Examples in place of those (`make fuzz`)."""

# Deadlines measure the machine, not the law; CI draws the same examples every time.
settings.register_profile(
    "developer", max_examples=FUZZ or EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", settings.get_profile("developer"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") and not FUZZ else "developer")


def examples(number: int, **others: Any) -> settings:
    """As many of this law in a run, and as many as of all others where many are asked for. others: as of `settings`."""
    return settings(max_examples=FUZZ or number, **others)


# A run in the background of a shell inherits that Ctrl-C is ignored, and so would the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Variables that point a driver or a command at a mesh or node of the user's.
NODE_VARIABLES = ("LATTICA_DATA_DIR", "LATTICA_TICKET")
LISTEN = "127.0.0.1:0"
"""Where nodes begun by `lattica start` listen in a test run (LATTICA_LISTEN): no test opens a port to the network."""


REAL_PROCESSES = {"benchmarks", "e2e", "examples", "nat"}
"""Folders in `tests` whose tests start processes and watch clocks; those of one file share sessions."""
CROWDS = ("community", "leaks", "mesh", "ppo")
"""In the names of those files whose tests start many processes at once, or measure what one takes."""
HEAVY = ("torch", "test_ppo.py")
"""In the names of files that import torch, for two seconds: one worker does."""
FIRST_WORKER = "gw0"
"""The one that runs the tests with real processes, and waits much; the others compute meanwhile."""
BUSY_WORKERS = ("gw0", "gw1")
"""As many as there are cores; one more takes what these leave idle."""
NICE = 5
"""Of that one: real processes, whose tests watch clocks, go first."""


def unit(nodeid: str) -> str:
    """What one worker of `make test` runs without another's help: a file of real processes, all crowds, all that import
    torch; any other test by itself. (`--dist loadgroup` of xdist 3.8 would do, but groups nothing under pytest 9.2.)"""
    path = PurePath(nodeid.partition("::")[0])
    if any(word in path.name for word in HEAVY):
        return "torch"
    if REAL_PROCESSES.isdisjoint(path.parts[1:2]):
        return nodeid
    return "crowds" if any(word in path.stem for word in CROWDS) else str(path)


def pytest_configure(config: pytest.Config) -> None:
    """A third worker (`-n 3`) runs in the pauses of the first, which waits for processes half of its time."""
    if getattr(config, "workerinput", {}).get("workerid", FIRST_WORKER) not in BUSY_WORKERS:
        os.nice(NICE)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The first worker begins with the files of real processes, those with many tests first; the others begin at the
    other end, with single tests. The workers end at about the same time, and two files of real processes run beside
    each other only in the end, if they are what is left."""
    from xdist.scheduler import LoadScopeScheduling

    class Units(LoadScopeScheduling):
        """Goes on where a worker dies: xdist 3.8 runs the test again that it died in, hands out what it had done as
        units without tests, and gives its successor one test, which it does not begin before it knows of another. Here
        what is done is forgotten, which also saves xdist from counting it after each test."""

        def _split_scope(self, nodeid: str) -> str:
            return unit(nodeid)

        def _assign_work_unit(self, node: WorkerController) -> None:
            """Units lie in the order of how many tests they have."""
            if node.workerinput["workerid"] != FIRST_WORKER:
                self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
            super()._assign_work_unit(node)

        def mark_test_complete(self, node: WorkerController, item_index: int, duration: float = 0) -> None:
            """This worker has run that test."""
            nodeid = self.registered_collections[node][item_index]
            units, name = self.assigned_work[node], unit(nodeid)
            units[name].pop(nodeid)
            if not units[name]:
                units.pop(name)
            self._reschedule(node)

        def remove_node(self, node: WorkerController) -> str | None:
            """This worker has ended. The test it died in, or None; what it had not begun is the others' to do."""
            units = self.assigned_work.pop(node)
            if not units:
                return None
            tests = next(iter(units.values()))
            died_in = next(iter(tests))
            tests.pop(died_in)
            self.workqueue.update((name, tests) for name, tests in units.items() if tests)
            for other in self.nodes:
                self._reschedule(other)
            return died_in

        def _reschedule(self, node: WorkerController) -> None:
            """See that it has enough to do, or is told that there is no more."""
            if node not in self.registered_collections:
                return  # it has only begun
            while not node.shutting_down and self._pending_of(self.assigned_work[node]) <= 2:
                super()._reschedule(node)

    return Units(config, log)


LOADED = pytest.StashKey[int]()
"""How many modules were loaded when the heap was frozen."""
LOADED_MANY = 200
"""More than then, as torch has: with a million objects, of which a collection takes 0.3 s, and tests ask for some."""


def freeze(session: pytest.Session) -> None:
    """What there is now stays to the end: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()
    session.stash[LOADED] = len(sys.modules)


def pytest_collection_finish(session: pytest.Session) -> None:
    """All tests are there."""
    freeze(session)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """A test has imported much. What a file's tests have in common is gone before it stays for ever."""
    if nextitem is None or nextitem.path == item.path:
        return
    if len(sys.modules) > item.session.stash.get(LOADED, 0) + LOADED_MANY:
        freeze(item.session)


@pytest.fixture(scope="session", autouse=True)
def home_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide the user's nodes from this run and from every process it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data-home")))
        for name in NODE_VARIABLES:
            patch.delenv(name, raising=False)
        patch.setenv("LATTICA_LISTEN", LISTEN)
        yield
