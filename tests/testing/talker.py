"""A participant that dials and writes as it is told, and reports whatever it hears."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lattica.mesh.effects import Dial, Hangup, Transmit
from lattica.testing import Link, World


@dataclass(frozen=True, slots=True)
class Told:
    """A verb that the world called."""

    verb: str
    args: tuple[Any, ...]


class Talker:
    """`attempts` counts its dials; `numbers` are its connections, oldest first."""

    def __init__(self) -> None:
        self.attempts = 0
        self.numbers: list[int] = []

    def dial(self, *addresses: str) -> Sequence[object]:
        *known, _now = addresses
        self.attempts += 1
        return [Dial(self.attempts, b"", tuple(known))]  # type: ignore[arg-type]

    def write(self, *frames: object) -> Sequence[object]:
        *sent, _now = frames
        return [Transmit(self.numbers[-1], frame) for frame in sent]  # type: ignore[arg-type]

    def hang_up(self, now: float) -> Sequence[object]:
        return [Hangup(self.numbers[-1], "enough")]

    def dialed(self, attempt: int, connection: int, peer: object, now: float) -> Sequence[object]:
        self.numbers.append(connection)
        return [Told("dialed", (attempt, peer))]

    def dial_failed(self, attempt: int, reason: str, now: float, *, final: bool = False) -> Sequence[object]:
        return [Told("dial_failed", (attempt, reason, final))]

    def accepted(self, connection: int, peer: object, now: float) -> Sequence[object]:
        self.numbers.append(connection)
        return [Told("accepted", (peer,))]

    def received(self, connection: int, frames: list[object], now: float) -> Sequence[object]:
        return [Told("received", tuple(frames))]

    def closed(self, connection: int, reason: str, now: float) -> Sequence[object]:
        return [Told("closed", (reason,))]

    def tick(self, now: float) -> Sequence[object]:
        return []

    def next_deadline(self) -> float | None:
        return None

    def validate(self) -> None:
        pass


def world_of(*names: str, seed: int = 7, link: Link | None = None, core: type[Talker] = Talker) -> World:
    world = World(seed, link=link or Link(delay_s=(0.01, 0.02)))
    for name in names or ("ann", "bob"):
        world.add(name, core)
        world.listen(f"{name}:1", name)
    return world


def connected(*, seed: int = 7, link: Link | None = None) -> World:
    """Ann has dialed Bob."""
    world = world_of(seed=seed, link=link)
    world.tell("ann", "dial", "bob:1")
    world.run(until=1)
    assert told(world, "ann", "dialed") and told(world, "bob", "accepted")
    return world


def told(world: World, name: str, verb: str) -> list[tuple[Any, ...]]:
    """The arguments of each call of this verb."""
    return [
        event.args for _, who, event in world.events if who == name and isinstance(event, Told) and event.verb == verb
    ]


def when(world: World, name: str, verb: str) -> list[float]:
    """World times of each call of this verb."""
    return [at for at, who, event in world.events if who == name and isinstance(event, Told) and event.verb == verb]


def heard(world: World, name: str = "bob") -> list[Any]:
    """All frames that came, in order."""
    return [frame for frames in told(world, name, "received") for frame in frames]


def number(world: World, name: str = "ann") -> int:
    """Of its latest connection."""
    last: int = world.core(name).numbers[-1]
    return last
