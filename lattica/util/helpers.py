"""Results as they come, with a bound on how many are on their way.

    for value in as_completed(refs): ...
    for value in map_unordered(score, texts, backpressure_size=32): ...

Names, arguments and errors are Ray's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import lattica

DEFAULT_CHUNK_SIZE = 10
DEFAULT_BACKPRESSURE_SIZE = 100


def as_completed(
    refs: Sequence[lattica.ObjectRef],
    *,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    yield_obj_refs: bool = False,
    **kwargs: Any,
) -> Iterator[Any]:
    """The values of refs, those that are ready first.

    chunk_size: how many are waited for at a time. yield_obj_refs: the refs instead of their values. kwargs: of
    `lattica.wait`, such as `timeout`, after which fewer are taken.

    Raises ValueError for a chunk_size below 1; and what the tasks raised.
    """
    _check(chunk_size, kwargs)
    return _completed(list(refs), chunk_size, yield_obj_refs, kwargs)


def map_unordered(
    fn: Any,
    items: Iterable[Any],
    *,
    backpressure_size: int | None = DEFAULT_BACKPRESSURE_SIZE,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    yield_obj_refs: bool = False,
    **kwargs: Any,
) -> Iterator[Any]:
    """`fn.remote(item)` for every item; the values in the order in which they come.

    backpressure_size: how many calls may be on their way at most; no item is taken from `items` before. None: all at
    once. The others as in `as_completed`.
    """
    _check(chunk_size, kwargs)
    if backpressure_size is not None and backpressure_size <= 0:
        raise ValueError("backpressure_size must be positive")
    return _mapped(fn, items, backpressure_size, chunk_size, yield_obj_refs, kwargs)


def _check(chunk_size: int, kwargs: dict[str, Any]) -> None:
    if chunk_size < 1:
        raise ValueError("chunk_size must be at least 1")
    if "num_returns" in kwargs:
        raise ValueError("num_returns has no meaning here: say chunk_size")


def _completed(
    refs: list[lattica.ObjectRef], chunk_size: int, yield_obj_refs: bool, kwargs: dict[str, Any]
) -> Iterator[Any]:
    while refs:
        ready, refs = lattica.wait(refs, num_returns=min(chunk_size, len(refs)), **kwargs)
        yield from ready if yield_obj_refs else lattica.get(ready)


def _mapped(
    fn: Any, items: Iterable[Any], most: int | None, chunk_size: int, yield_obj_refs: bool, kwargs: dict[str, Any]
) -> Iterator[Any]:
    refs: list[lattica.ObjectRef] = []
    for item in items:
        refs.append(fn.remote(item))
        while most is not None and len(refs) >= most:
            ready, refs = lattica.wait(refs, num_returns=min(chunk_size, len(refs)), **kwargs)
            yield from ready if yield_obj_refs else lattica.get(ready)
    yield from _completed(refs, chunk_size, yield_obj_refs, kwargs)


__all__ = ["as_completed", "map_unordered"]
