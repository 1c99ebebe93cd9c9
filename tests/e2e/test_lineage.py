"""What is lost on its own machine, since its file on disk is gone, is made again by whoever called its task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lattica
from lattica.errors import ObjectLostError, ObjectReconstructionFailedError
from lattica.exceptions import ObjectReconstructionFailedError as ByRaysName

MIB = 1 << 20


@lattica.remote
def made(name: str, value: int, log: Path, *parts: Any) -> Any:
    """An array of `value` and what the arrays in `parts` begin with."""
    with log.open("a") as lines:
        lines.write(f"{name}\n")
    return np.full(4 * MIB, value + sum(int(part[0]) for part in parts), np.uint8)


@lattica.remote
def last(array: Any) -> int:
    return int(array[-1])


@lattica.remote
class Holder:
    def keep(self, refs: list[Any]) -> None:
        self.refs = refs

    def read(self) -> int:
        return int(lattica.get(self.refs[0])[0])

    def array(self) -> Any:
        return np.zeros(4 * MIB, np.uint8)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a node with a small store has its files."""
    place = tmp_path_factory.mktemp("spill")
    lattica.init(address="local", num_cpus=2, object_store_memory=32 * MIB, object_spilling_directory=str(place))
    yield place
    lattica.shutdown()


def lose(place: Path) -> None:
    """Whatever is in the store goes to disk, and then the disk is gone."""
    other = [lattica.put(np.full(4 * MIB, number, np.uint8)) for number in range(20)]
    assert lattica.get(other[0])[0] == 0
    for path in place.rglob("*"):
        if path.is_file():
            path.unlink()
            path.touch()


def test_a_lost_result_is_made_again_with_the_arguments_that_are_gone_too(place: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = made.remote("first", 1, log)
    middle = made.remote("middle", 10, log, first)
    end = made.remote("end", 20, log, middle, first)
    assert lattica.get(last.remote(end)) == 32, "1, 1 + 10, and 20"
    del first, middle
    lose(place)
    assert lattica.get(end)[0] == 32
    assert Counter(log.read_text().split()) == {"first": 2, "middle": 2, "end": 2}


def test_whoever_waits_for_it_gets_the_value_that_was_made_again(place: Path, tmp_path: Path) -> None:
    """A task that has it as an argument, and an actor that was given its ref."""
    log, holder = tmp_path / "log", Holder.remote()
    argument, inner = made.remote("argument", 5, log), made.remote("inner", 6, log)
    lattica.get(holder.keep.remote([inner]))
    lattica.wait([argument, inner], num_returns=2)
    lose(place)
    assert lattica.get([last.remote(argument), holder.read.remote()]) == [5, 6]
    assert Counter(log.read_text().split()) == {"argument": 2, "inner": 2}


def test_what_cannot_be_made_again_says_why(place: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    put = lattica.put(np.full(4 * MIB, 100, np.uint8))
    once = made.options(max_retries=0).remote("once", 1, log)
    twice = made.options(max_retries=1).remote("twice", 2, log)
    of_actor = Holder.remote().array.remote()
    lattica.wait([once, twice, of_actor], num_returns=3)
    lose(place)
    assert lattica.get(twice)[0] == 2
    lose(place)
    reasons = {put: "put", once: "max_retries=0", twice: "as often as", of_actor: "returned by an actor"}
    for ref, reason in [*reasons.items(), *reasons.items()]:  # who asks again hears the same
        with pytest.raises(ObjectReconstructionFailedError, match=reason) as caught:
            lattica.get(ref)
        assert caught.value.reason_message and isinstance(caught.value, ByRaysName | ObjectLostError)
        assert caught.value.object_ref_hex == ref.hex()
    assert Counter(log.read_text().split()) == {"once": 1, "twice": 2}
