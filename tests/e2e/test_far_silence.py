"""What a machine that stands still for some seconds, or dies while others have copies, does to refs and handles."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import lattica
from lattica.errors import ActorError
from tests.e2e.conftest import Sessions, eventually
from tests.e2e.far import Mesh, far_mesh

SIZE = 1 << 20
SPACE = "silence"


@pytest.fixture(scope="module")
def mesh(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with far_mesh(tmp_path_factory.mktemp("silence"), a=1, b=1, c=1, d=1) as mesh:
        yield mesh


@lattica.remote(num_cpus=0.1)
def dice(size: int) -> Any:
    """Another value each time."""
    return np.frombuffer(os.urandom(size), np.uint8)


@lattica.remote(num_cpus=0)
class Reader:
    def __init__(self) -> None:
        self.calls = 0

    def keep(self, refs: list[Any]) -> int:
        self.refs, self.calls = refs, self.calls + 1
        return self.calls

    def read(self) -> bytes:
        """The beginning of what it keeps."""
        return bytes(lattica.get(self.refs[0])[:32])


def stand_still(mesh: Mesh, name: str, seconds: float) -> None:
    pid = mesh.nodes[name].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)


def test_refs_and_handles_outlive_a_silence_that_was_taken_for_a_death(mesh: Mesh) -> None:
    """An actor on c holds what lies on a, and has not read it; c stands still until all believe it dead."""
    mesh.attach("c")
    made = Reader.options(name="reader", namespace=SPACE, lifetime="detached", scheduling_strategy=mesh.on("c"))
    lattica.get(made.remote().keep.remote([]), timeout=20)
    mesh.attach("a")
    reader = lattica.get_actor("reader", namespace=SPACE)
    value = np.frombuffer(os.urandom(SIZE), np.uint8)
    assert lattica.get(reader.keep.remote([lattica.put(value)]), timeout=20) == 2
    time.sleep(1.0)
    pid = mesh.nodes["c"].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(ActorError):
            lattica.get(reader.read.remote(), timeout=40)
        told_s = time.monotonic() - began
        time.sleep(max(14.0 - told_s, 2.0))
    finally:
        os.kill(pid, signal.SIGCONT)
    back = time.monotonic()

    def read() -> bytes:
        try:
            return bytes(lattica.get(reader.read.remote(), timeout=30))
        except ActorError:
            return b""

    assert eventually(read, 20.0, 0.2) == bytes(value[:32])
    print(f"\n  told after {told_s:.1f} s of silence; the same handle reads {time.monotonic() - back:.1f} s after it")
    assert lattica.get(reader.keep.remote([]), timeout=20) == 3, "it is the same life"
    lattica.kill(reader)
    mesh.all_see()


def test_what_a_silent_machine_has_lent_is_read_when_it_is_back(mesh: Mesh) -> None:
    """The other way round: what an actor on b has put is held here, unread, while b stands still for 12 s."""
    put = lattica.remote(num_cpus=0.1)(lambda size: [lattica.put(np.full(size, 9, np.uint8))])
    ref = lattica.get(put.options(scheduling_strategy=mesh.on("b")).remote(SIZE), timeout=20)[0]
    stand_still(mesh, "b", 12.0)
    time.sleep(1.0)
    assert lattica.get(ref, timeout=30).sum() == 9 * SIZE
    mesh.all_see()


def test_a_get_that_waits_past_the_verdict_has_the_value_when_the_machine_is_back(mesh: Mesh) -> None:
    put = lattica.remote(num_cpus=0.1)(lambda size: [lattica.put(np.full(size, 9, np.uint8))])
    ref = lattica.get(put.options(scheduling_strategy=mesh.on("b")).remote(SIZE), timeout=20)[0]
    silence = threading.Thread(target=stand_still, args=(mesh, "b", 15.0))
    silence.start()
    time.sleep(0.5)
    assert lattica.get(ref, timeout=60).sum() == 9 * SIZE
    assert not silence.is_alive(), "it cannot have come before"
    silence.join()
    mesh.all_see()


def test_a_result_that_another_machine_has_read_is_not_made_again_when_its_maker_dies(mesh: Mesh) -> None:
    """Or its owner and the other would read two values by one ref."""
    ref = dice.options(scheduling_strategy=mesh.on("d", soft=True)).remote(SIZE)
    lattica.wait([ref], timeout=20, fetch_local=False)
    reader = Reader.options(scheduling_strategy=mesh.on("c")).remote()
    lattica.get(reader.keep.remote([ref]), timeout=20)
    first = lattica.get(reader.read.remote(), timeout=20)
    mesh.kill("d")
    time.sleep(0.2)
    began = time.monotonic()
    assert bytes(lattica.get(ref, timeout=40)[:32]) == first
    print(f"\n  read by its owner {time.monotonic() - began:.1f} s after the death")
    assert lattica.get(reader.read.remote(), timeout=20) == first
