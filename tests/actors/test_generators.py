"""What the caller of a generator says to its worker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from lattica.actors.generators import Stream
from lattica.actors.refs import ObjectRef
from lattica.actors.streams import to_wire
from lattica.codec import messages as m


class Caller:
    """A process that runs one generator, of a window of one item."""

    token = b"t" * 8

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.reactor: Any = SimpleNamespace(
            send=lambda _, message: self.said.append(message), nudge=lambda *_, **__: None
        )
        runtime: Any = self
        self.record: Any = SimpleNamespace(returns=to_wire(1), seq=7, data=False, repeatable=False, link=object())
        self.stream = Stream(runtime, self.record, ObjectRef(runtime, 1 << 16))

    def has_taken(self, items: int) -> None:
        for at in range(items):
            self.stream.came(m.Item(7, at, b"item"), 0)
            self.stream.take()

    def loses(self, at: int) -> None:
        """An item that had come; a run is to make it again."""
        runtime: Any = self
        self.stream.lost[at] = ObjectRef(runtime, at)


def test_a_generator_that_is_dropped_is_over_though_items_of_this_run_were_lost() -> None:
    """It would wait for its consumer for ever, and the run that makes them again for its end (world `execution`, long
    seed 242)."""
    caller = Caller()
    caller.has_taken(3)
    caller.loses(1)
    assert not caller.stream.over
    caller.stream.let_go()
    assert caller.said[-1] == m.Taken(7, 3, 3, over=True)


def test_a_run_goes_on_while_an_item_that_was_lost_is_to_come_and_no_further() -> None:
    caller = Caller()
    caller.has_taken(3)
    caller.stream.let_go()
    caller.loses(1)
    assert caller.stream.consumer.begins(1) == (1, 3)
    assert not caller.stream.over
    caller.stream.runtime.objects = SimpleNamespace(settle=lambda *_: None)  # type: ignore[assignment]
    caller.stream.came(m.Item(7, 1, b"item"), 0)
    assert caller.said[-1] == m.Taken(7, 2, 3, over=True)
