"""Large arguments of joblib's batches: in the store once, however many calls take them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import lattica

KEPT_MAX = 16
"""Large arguments that are remembered at a time: a call has a few that all its tasks share, while a generator of
arrays must not keep each of them."""


class Stored:
    """The large arguments of one call of `Parallel`, by identity."""

    def __init__(self, least_bytes: int) -> None:
        self._least_bytes = least_bytes
        self._kept: OrderedDict[int, tuple[Any, lattica.ObjectRef]] = OrderedDict()  # the object, so that its id stays

    def ref(self, value: Any) -> lattica.ObjectRef | None:
        """A ref of it if it is large."""
        size = getattr(value, "nbytes", None)
        if not isinstance(size, int) or size < self._least_bytes:
            return None
        known = self._kept.get(id(value))
        if known is None:
            known = value, lattica.put(value)
            self._kept[id(value)] = known
            if len(self._kept) > KEPT_MAX:
                self._kept.popitem(last=False)
        return known[1]

    def take_out(self, batch: Any) -> tuple[list[Any], list[lattica.ObjectRef]]:
        """(the calls of a batch, with `Place`s for large arguments; the refs for these). No refs: leave it as it is."""
        refs: list[lattica.ObjectRef] = []
        places: dict[lattica.ObjectRef, Place] = {}

        def swap(value: Any) -> Any:
            ref = self.ref(value)
            if ref is None:
                return value
            if ref not in places:
                places[ref] = Place(len(refs))
                refs.append(ref)
            return places[ref]

        calls = [
            (func, [swap(arg) for arg in args], {name: swap(arg) for name, arg in kwargs.items()})
            for func, args, kwargs in batch.items
        ]
        return calls, refs


class Place:
    """Where a large argument belongs."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return Place, (self.number,)


def run(batch: Callable[[], Any], calls: list[Any], *values: Any) -> Any:
    """In the worker: the batch with these values in their places."""

    def fill(arg: Any) -> Any:
        return values[arg.number] if type(arg) is Place else arg

    batch.items = [  # type: ignore[attr-defined]
        (func, [fill(arg) for arg in args], {name: fill(arg) for name, arg in kwargs.items()})
        for func, args, kwargs in calls
    ]
    return batch()
