"""What people see while hosts are at work: a line per host that changes, on a terminal; else a line per change."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

if TYPE_CHECKING:
    from rich.spinner import Spinner
    from rich.table import Table

BUSY, GOOD, BAD = "busy", "good", "bad"


class Progress(Protocol):
    """Shows, while it is entered, how far each host is."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def tell(self, host: str, mood: str, text: str) -> None:
        """What is so with a host now. mood: busy, good or bad."""


def progress_of(hosts: Sequence[str], stream: TextIO) -> Progress:
    """What suits this stream."""
    return LiveProgress(hosts, stream) if stream.isatty() else PlainProgress(hosts, stream)


class Silence:
    """For a verb that says enough itself."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def tell(self, host: str, mood: str, text: str) -> None:
        pass


class PlainProgress:
    """Lines for a log, each with its host."""

    def __init__(self, hosts: Sequence[str], stream: TextIO) -> None:
        self._stream, self._width = stream, max(map(len, hosts), default=0)
        self._last: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def tell(self, host: str, mood: str, text: str) -> None:
        line = ("failed: " if mood == BAD else "") + text
        if self._last.get(host) != line:
            self._last[host] = line
            print(f"{host:<{self._width}}  {line}", file=self._stream, flush=True)


class LiveProgress:
    """A table that is drawn anew, by rich."""

    def __init__(self, hosts: Sequence[str], stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._rows = dict.fromkeys(hosts, (BUSY, "waits"))
        self._lock = threading.Lock()
        self._spinner = _spinner()
        self._live = Live(console=Console(file=stream), get_renderable=self._table, refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def tell(self, host: str, mood: str, text: str) -> None:
        with self._lock:  # rich draws in a thread of its own
            self._rows[host] = (mood, text)

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        with self._lock:
            rows = list(self._rows.items())
        for host, (mood, text) in rows:
            sign = {GOOD: Text("✓", "green"), BAD: Text("✗", "red")}.get(mood, self._spinner)
            table.add_row(sign, Text(host, "bold"), Text(text, no_wrap=True, overflow="ellipsis"))
        return table


def _spinner() -> Spinner:
    from rich.spinner import Spinner

    return Spinner("dots")
