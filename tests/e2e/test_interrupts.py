"""Ctrl-C at any moment: nothing that was said is lost, and a second one leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import lattica
from tests.e2e.conftest import RUN_VARIABLE, Script, eventually, processes_of

STORM_MAX = 10
"""So many times as many interrupts are sent before too few have hit."""


@lattica.remote
def echo(value: Any) -> Any:
    return value


@lattica.remote
def sleep(seconds: float, value: Any = None) -> Any:
    time.sleep(seconds)
    return value


@lattica.remote
class Adder:
    def __init__(self) -> None:
        self.total = 0

    def add(self, k: int) -> int:
        self.total += k
        return self.total


class Target:
    """Raises what a SIGINT raises where it may land, and nowhere else: in this process Ctrl-C would end all tests."""

    def __init__(self) -> None:
        self.armed = False
        self.hits = 0

    def __call__(self, signum: int, frame: Any) -> None:
        if self.armed:
            self.armed = False  # one at a time, or the `except` that follows would be hit
            self.hits += 1
            signal.default_int_handler(signum, frame)

    def insist(self, action: Any) -> Any:
        """Do it again until no interrupt hits it; within a `try` for those that come right after."""
        while True:
            try:
                self.armed = True
                return action()
            except KeyboardInterrupt:
                continue


@contextmanager
def interrupts(target: Target, every_s: float) -> Iterator[list[int]]:
    """SIGINT to the main thread every so often, from a thread; counts them."""
    sent, stop = [0], threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def strike() -> None:
        while not stop.wait(every_s):
            sent[0] += 1
            signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=strike)
    found = signal.signal(signal.SIGINT, target)
    thread.start()
    try:
        yield sent
    finally:
        target.armed = False
        stop.set()
        thread.join()
        signal.signal(signal.SIGINT, found)


@contextmanager
def soon_interrupted() -> Iterator[None]:
    """A SIGINT to the main thread in a moment."""
    timer = threading.Timer(0.1, lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT))
    timer.start()
    try:
        yield
    finally:
        timer.join()


def storm(count: int) -> int:
    """Work while `count` interrupts arrive, and one in twenty hits (on a busy machine most arrive while we insist):
    replies of tasks, of an actor, in pieces and in bulk. How many arrived."""
    adder = Adder.remote()
    target = Target()
    rounds = caught = 0
    with interrupts(target, 0.0007) as sent:
        while sent[0] < count or (caught <= count // 20 and sent[0] < STORM_MAX * count):
            try:
                target.armed = True
                rounds += 1
                refs = []
                try:
                    refs = [echo.remote(k) for k in range(30)]
                    large = echo.remote(np.full(20_000 + rounds % 7, rounds % 251, np.uint8))
                finally:
                    done = target.insist(lambda refs=refs: lattica.get(refs, timeout=30))
                    assert done == list(range(len(refs)))
                assert (lattica.get(large, timeout=30) == rounds % 251).all()
                lattica.get(adder.add.remote(1), timeout=30)
                lattica.wait([sleep.remote(0.001)], timeout=30)
                target.armed = False
            except KeyboardInterrupt:
                caught += 1
    calls = lattica.get(adder.add.remote(0), timeout=30)
    assert 0 <= calls <= rounds
    assert lattica.get([echo.remote(k) for k in range(500)], timeout=30) == list(range(500)), "the streams are whole"
    assert caught > count // 20, "most of the storm did not hit"
    return sent[0]


@pytest.mark.usefixtures("two_cpus")
def test_a_thousand_interrupts_lose_no_reply_and_break_no_stream() -> None:
    assert storm(1_000) >= 1_000


@pytest.mark.slow
@pytest.mark.usefixtures("two_cpus")
def test_ten_thousand_interrupts_lose_no_reply_and_break_no_stream() -> None:
    assert storm(10_000) >= 10_000


@pytest.mark.usefixtures("two_cpus")
def test_a_get_that_is_interrupted_can_be_asked_again() -> None:
    ref = sleep.remote(1, "value")
    with pytest.raises(KeyboardInterrupt), soon_interrupted():
        lattica.get(ref)
    assert not lattica.wait([ref], timeout=0)[0], "at once, not when the value comes"
    assert lattica.get(ref) == "value"


@pytest.mark.usefixtures("two_cpus")
def test_a_get_that_follows_another_threads_is_interrupted_too() -> None:
    """The main thread does not read while another leads; its interrupt is as prompt."""
    ref = sleep.remote(1, "value")
    leader = threading.Thread(target=lattica.get, args=(ref,))
    leader.start()
    time.sleep(0.05)
    with pytest.raises(KeyboardInterrupt), soon_interrupted():
        lattica.get(ref)
    assert not lattica.wait([ref], timeout=0)[0], "at once, not when the value comes"
    leader.join()


@pytest.mark.usefixtures("two_cpus")
def test_the_users_own_handler_is_called_and_stays() -> None:
    heard = []
    before = signal.signal(signal.SIGINT, lambda signum, frame: heard.append(signum))
    try:
        ref = sleep.remote(0.3, "value")
        with soon_interrupted():
            assert lattica.get(ref) == "value", "a handler that does not raise lets get go on"
        assert heard == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


PROGRAM = """
import lattica, subprocess, sys, time
lattica.init(num_cpus=2)

@lattica.remote
def forever():
    subprocess.Popen(["sleep", "60"])
    while True:
        time.sleep(0.1)

refs = [forever.remote() for _ in range(2)]
time.sleep(0.3)
{then}
"""


def left() -> list[tuple[int, str]]:
    return processes_of(os.environ[RUN_VARIABLE])


@pytest.mark.parametrize("pause_s", [None, 0.0, 0.05], ids=["once", "twice at once", "twice"])
def test_ctrl_c_ends_the_program_and_leaves_no_process(script: Script, sessions: Any, pause_s: float | None) -> None:
    """To the whole foreground group, as a terminal does it."""
    sessions.end()
    process = script.start(PROGRAM.format(then='print("ready", flush=True); lattica.get(refs)'), process_group=0)
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    if pause_s is not None:
        time.sleep(pause_s)
        try:
            os.killpg(process.pid, signal.SIGINT)
        except ProcessLookupError:
            pass
    _, err = process.communicate(timeout=20)
    assert process.returncode in (1, -signal.SIGINT, 130) and "KeyboardInterrupt" in err
    assert eventually(lambda: not left()), left()
    assert time.monotonic() - began < 10


def test_a_program_that_catches_ctrl_c_goes_on_with_its_workers(script: Script) -> None:
    process = script.start(
        PROGRAM.format(
            then="""
try:
    print("ready", flush=True)
    lattica.get(refs)
except KeyboardInterrupt:
    print("caught", flush=True)
for ref in refs:
    lattica.cancel(ref)
print(lattica.get(lattica.remote(lambda: "on").remote()))
"""
        ),
        process_group=0,
    )
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 0, err
    assert re.search("caught\non\n", out)


def test_in_a_notebook_an_interrupted_cell_leaves_the_session_whole(script: Script) -> None:
    """A kernel sets its own SIGINT handler for each cell and runs cells inside a running event loop."""
    out = script("""
import asyncio, os, signal, sys, threading, time
main = {"__name__": "__main__"}
sys.modules["__main__"].__dict__.update(main)
space = sys.modules["__main__"].__dict__

async def cell(text):
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        exec(compile(text, "<cell>", "exec"), space)
    except KeyboardInterrupt:
        print("interrupted")
    finally:
        signal.signal(signal.SIGINT, old)

async def notebook():
    await cell("import lattica, time; lattica.init(num_cpus=1)")
    await cell('''
@lattica.remote
def slow(seconds):
    time.sleep(seconds)
    return "slow"
''')
    for _ in range(3):
        threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
        await cell("ref = slow.remote(0.4); lattica.get(ref)")
        await cell("print(lattica.get(ref))")
    space["ref"] = space["slow"].remote(0)
    print(await space["ref"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    await cell("lattica.shutdown()")

asyncio.run(notebook())
""")
    assert out == "interrupted\nslow\n" * 3 + "slow\n"
