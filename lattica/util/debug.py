"""Say a thing once: `if log_once("slow"): log.warning(...)`."""

from __future__ import annotations

import time

AGAIN_S = 60.0
"""With `enable_periodic_logging`, how long after its last first time everything may be said again."""


class _Said:
    """In this process."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.disabled = self.periodic = False
        self.at = 0.0


_said = _Said()


def log_once(key: str) -> bool:
    """Whether this is the first time that anybody in this process asks about `key`."""
    if _said.disabled:
        return False
    if key not in _said.keys:
        _said.keys.add(key)
        _said.at = time.monotonic()
        return True
    if _said.periodic and time.monotonic() - _said.at > AGAIN_S:
        reset_log_once()
        _said.at = time.monotonic()
    return False


def disable_log_once_globally() -> None:
    """Nothing is said any more."""
    _said.disabled = True


def enable_periodic_logging() -> None:
    """What was said may be said again every minute."""
    _said.periodic = True


def reset_log_once(key: str | None = None) -> None:
    """Forget that it was said; without a key, that anything was."""
    if key is None:
        _said.keys.clear()
    else:
        _said.keys.discard(key)


__all__ = ["disable_log_once_globally", "enable_periodic_logging", "log_once", "reset_log_once"]
