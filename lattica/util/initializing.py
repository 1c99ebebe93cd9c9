"""Initializers of worker processes, and what they set for the calls that come after them.

A function of the program's own script travels by value, each time with globals of its own. What an initializer from
there sets (`global model; model = load()`) is therefore put into the globals of each call's function as well, as it
would be in a process that has the script as a module.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any


class Initialized:
    """An initializer that has run in this process."""

    def __init__(self, initializer: Callable[..., object], args: tuple[Any, ...]) -> None:
        """Runs it; raises what it raises."""
        space = _own_globals(initializer)
        before = dict(space or {})
        initializer(*args)
        missing = object()
        self._module = before.get("__name__")
        self._set = {name: value for name, value in (space or {}).items() if before.get(name, missing) is not value}

    def lend(self, function: Any) -> None:
        """Let this function see what was set, if it is of the same script."""
        space = _own_globals(function) if self._set else None
        if space is not None and space.get("__name__") == self._module:
            space.update(self._set)


def _own_globals(function: Any) -> dict[str, Any] | None:
    """The globals of a function that came by value; None for one that was imported, or has none."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)  # of a method
    if not hasattr(function, "__globals__"):
        function = getattr(type(function), "__call__", None)  # noqa: B004  # its function, not whether there is one
    space: dict[str, Any] | None = getattr(function, "__globals__", None)
    module = sys.modules.get(space.get("__name__", "")) if space is not None else None
    return None if module is not None and vars(module) is space else space
