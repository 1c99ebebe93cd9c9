"""The runtime of this process: none, or one. Set by the front door (a driver) or by the worker's main.

A child that user code forks has none: its copy's descriptors are closed there, without a word on the wire.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from lattica.errors import ConfigError

if TYPE_CHECKING:
    from lattica.actors.runtime import Runtime

_runtime: Runtime | None = None
_start: Callable[[], None] | None = None


def get() -> Runtime:
    """The runtime; the first use in a driver starts it. Raises ConfigError where that is not possible."""
    if _runtime is None:
        if _start is None:
            raise ConfigError("lattica is not running in this process", do_next="call lattica.init() first")
        _start()
        assert _runtime is not None
    return _runtime


def peek() -> Runtime | None:
    """The runtime if there is one; starts nothing."""
    return _runtime


def put(runtime: Runtime | None) -> None:
    """Make this the process's runtime."""
    global _runtime
    _runtime = runtime


def _forked() -> None:
    if _runtime is not None:
        _runtime.abandon()
        put(None)


os.register_at_fork(after_in_child=_forked)


def on_first_use(start: Callable[[], None] | None) -> None:
    """What `get` calls if there is no runtime yet."""
    global _start
    _start = start
