"""When checkpoints of an actor are taken, and what is said when one cannot be."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from lattica.actors import checkpoints as module
from lattica.actors import values
from lattica.actors.checkpoints import EVERY_S, Checkpoints
from lattica.actors.objects import INLINE_MAX
from lattica.codec import messages as m

ACTOR = b"a" * 12


class Runtime:
    """Notes what the node is told."""

    def __init__(self) -> None:
        self.lock, self.reactor, self.told = threading.RLock(), self, list[Any]()
        self.objects, self.stored = self, list[bytes]()

    def new_id(self) -> bytes:
        return b"o" * 16

    def store(self, value: values.Serialized, id: bytes) -> bytes:
        self.stored.append(value.join())
        return id

    def give(self, hold: bytes, to: int) -> bytes:
        self.told.append(m.Give(hold, to))
        return hold

    def tell_node(self, message: Any) -> None:
        self.told.append(message)

    def flush(self) -> None:
        pass


class Counter:
    def __init__(self, n: Any = 0) -> None:
        self.n = n

    def __lattica_checkpoint__(self) -> Any:
        return self.n

    def __lattica_restore__(self, state: Any) -> None:
        self.n = state


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def of(instance: Any, every_s: float | None = None, state: bytes = b"") -> tuple[Checkpoints, Runtime]:
    runtime = Runtime()
    made = Checkpoints(runtime, ACTOR, "Counter", every_s)  # type: ignore[arg-type]
    made.begin(instance, state)
    return made, runtime


def test_one_is_taken_after_a_call_but_not_more_often_than_asked_for(clock: list[float]) -> None:
    counter = Counter(5)
    made, runtime = of(counter)
    assert made.left_s() is None, "nothing has run"
    made.ran()
    assert not runtime.told and made.left_s() == EVERY_S
    clock[0] += EVERY_S
    made.ran()
    made.ran()
    (told,) = runtime.told
    assert isinstance(told, m.ActorCheckpoint) and told.actor == ACTOR
    assert values.loads(told.state, None) == 5
    assert made.left_s() == EVERY_S, "the second call is not in it"


def test_what_was_taken_is_put_back(clock: list[float]) -> None:
    made, runtime = of(Counter({"weights": [1.0]}), every_s=0)
    made.ran()
    other = Counter()
    of(other, state=runtime.told[0].state)
    assert other.n == {"weights": [1.0]}


def test_a_node_that_goes_gets_one_at_once(clock: list[float]) -> None:
    made, runtime = of(Counter(1))
    made.wanted = True
    assert made.left_s() == 0.0
    made.take_if_due()
    assert len(runtime.told) == 1 and not made.wanted


def test_a_class_that_offers_none_costs_nothing(clock: list[float]) -> None:
    made, runtime = of(object(), every_s=0)
    made.ran()
    assert not made.on and not made.note() and made.left_s() is None and not runtime.told


def test_a_large_one_goes_through_the_arena_and_is_read_from_a_descriptor(clock: list[float], tmp_path: Path) -> None:
    state = bytes(range(256)) * (INLINE_MAX // 128)
    made, runtime = of(Counter(state), every_s=0)
    made.ran()
    give, told = runtime.told
    assert give == m.Give(b"o" * 16, m.NODE), "the node holds it before it hears of it"
    assert told == m.ActorCheckpoint(ACTOR, b"", b"o" * 16, b"", len(runtime.stored[0]))
    (tmp_path / "state").write_bytes(runtime.stored[0])
    fd = os.open(tmp_path / "state", os.O_RDONLY)
    os.lseek(fd, 3, os.SEEK_SET)  # its copies share the place: another has read from it
    other = Counter()
    Checkpoints(Runtime(), ACTOR, "Counter", 0).begin(other, b"", fd)  # type: ignore[arg-type]
    assert other.n == state
    with pytest.raises(OSError):
        os.fstat(fd)


@pytest.mark.parametrize(("state", "words"), [(threading.Lock(), "pickle"), (bytes(2 << 20), "2 MiB, and may have 1")])
def test_what_cannot_be_kept_is_said_once(
    clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, state: Any, words: str
) -> None:
    monkeypatch.setattr(module, "STATE_MAX_BYTES", 1 << 20)
    made, runtime = of(Counter(state), every_s=0)
    made.ran()
    made.ran()
    said = capsys.readouterr().err
    assert said.count("no checkpoint of Counter was taken") == 1 and words in said and not runtime.told
