"""Actors for the tests, in a module of their own: a worker that imports it need not import pytest."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import lattica


@lattica.remote
class Counter:
    """Counts, and tells where it lives."""

    def __init__(self, start: int = 0) -> None:
        self.count = start

    def add(self, amount: int = 1) -> int:
        self.count += amount
        return self.count

    def value(self) -> int:
        return self.count

    def pid(self) -> int:
        return os.getpid()

    def sleep(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def fail(self, words: str = "no") -> None:
        raise KeyError(words)

    def crash(self) -> None:
        os._exit(7)

    def leave(self) -> None:
        lattica.actor.exit_actor()


@lattica.remote
class Notes:
    """Keeps whatever it is given, in order."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def add(self, thing: Any) -> int:
        self.kept.append(thing)
        return len(self.kept)

    def all(self) -> list[Any]:
        return self.kept

    def drop(self) -> None:
        self.kept = []


@lattica.remote
class Gate:
    """Lets through who waits in `pass_through`, once `open` was called; for tests that need a task to be running."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.waiting = 0
        self.most = 0
        self.lock = threading.Lock()

    def pass_through(self, timeout: float = 20.0) -> bool:
        with self.lock:
            self.waiting += 1
            self.most = max(self.most, self.waiting)
        try:
            return self.opened.wait(timeout)
        finally:
            with self.lock:
                self.waiting -= 1

    def open(self) -> int:
        self.opened.set()
        return self.most

    def inside(self) -> int:
        return self.waiting
