"""What a process of a `Pool` runs: batches of calls. A module of its own, since every process loads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lattica.errors import TaskError
from lattica.util.initializing import Initialized

Outcome = tuple[Any, BaseException | None]
"""Of one call: (value, None) or (None, error)."""
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class PoolProcess:
    """A process of a pool: an actor that takes one batch at a time."""

    def __init__(self, initializer: tuple[Callable[..., object], tuple[Any, ...]] | None) -> None:
        self._initialized = Initialized(*initializer) if initializer is not None else None

    def ping(self) -> None:
        """Answers when the initializer is done."""

    def run_batch(self, func: Callable[..., Any], batch: list[Arguments]) -> list[Outcome]:
        """What became of each call."""
        if self._initialized is not None:
            self._initialized.lend(func)
        outcomes: list[Outcome] = []
        for args, kwargs in batch:
            try:
                outcomes.append((func(*args, **kwargs), None))
            except Exception as error:
                name = str(getattr(func, "__qualname__", None) or type(func).__qualname__)
                outcomes.append((None, TaskError.from_exception(error, function_name=name)))
        return outcomes
