"""How the training goes: the line that a user watches, and the learning curve."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

EPISODES = 100  # whose mean return is judged: what Gymnasium's reward thresholds are defined over
TERMINAL_PERIOD_S = 0.1  # quicker than that nobody reads
LOG_PERIOD_S = 2.0  # a whole run is then some dozens of lines


class Progress:
    """Counts steps and episodes. On a terminal one line is rewritten in place, elsewhere a line is added now and then.

    now: seconds on any clock that only goes forward; the run begins at the first.
    """

    def __init__(self, stream: TextIO, now: float) -> None:
        self._stream, self._start = stream, now
        self._in_place = stream.isatty()
        self._next_line = now
        self._shown = ""
        self._returns: deque[float] = deque(maxlen=EPISODES)
        self.updates = 0
        self.steps = 0
        self.elapsed_s = 0.0
        self.curve: list[tuple[int, float]] = []  # (steps so far, mean return), one per update that knows one

    @property
    def mean_return(self) -> float | None:
        """Over the last 100 episodes, or as many as there were; None before the first one ends."""
        return sum(self._returns) / len(self._returns) if self._returns else None

    def reached(self, target: float | None) -> bool:
        """Whether 100 episodes in a row have `target` as their mean."""
        mean = self.mean_return
        return target is not None and mean is not None and len(self._returns) == EPISODES and mean >= target

    def record(self, steps: int, episode_returns: Sequence[float], now: float) -> None:
        """Add what one update brought, and show it if the last line is old enough."""
        self.updates += 1
        self.steps += steps
        self.elapsed_s = now - self._start
        self._returns.extend(episode_returns)
        if self.mean_return is not None:
            self.curve.append((self.steps, self.mean_return))
        if now >= self._next_line:
            self._next_line = now + (TERMINAL_PERIOD_S if self._in_place else LOG_PERIOD_S)
            self._show(end="" if self._in_place else "\n")

    def so_far(self) -> dict[str, Any]:
        """What `go_on` takes: plain numbers and lists."""
        return {"updates": self.updates, "steps": self.steps, "elapsed_s": self.elapsed_s, "curve": self.curve,
                "returns": list(self._returns)}  # fmt: skip

    def go_on(self, found: dict[str, Any], now: float) -> None:
        """Go on where an earlier run was; its seconds count."""
        self.updates, self.steps, self.elapsed_s = found["updates"], found["steps"], found["elapsed_s"]
        self.curve = [(steps, mean) for steps, mean in found["curve"]]
        self._returns.extend(found["returns"])
        self._start = now - self.elapsed_s
        self.note(f"goes on after {self.steps:,} steps", now)

    def note(self, text: str, now: float) -> None:
        """Say something on a line of its own."""
        self.elapsed_s = now - self._start
        print(f"{chr(10) if self._in_place and self._shown else ''}{text}", file=self._stream, flush=True)
        self._shown = ""

    def close(self) -> None:
        """Show where the run ended, unless the last line says so already."""
        if self._in_place or self._shown != str(self):
            self._show(end="\n")

    def __str__(self) -> str:
        mean = "–" if self.mean_return is None else f"{self.mean_return:.1f}"
        rate = self.steps / self.elapsed_s if self.elapsed_s > 0 else 0.0
        return (
            f"update {self.updates:>4} {self.steps:>9,} steps {rate:>7,.0f} steps/s  "
            f"return {mean:>6} (last {len(self._returns):>3}) {self.elapsed_s:>5.1f} s"
        )

    def _show(self, end: str) -> None:
        line = self._shown = str(self)
        if self._in_place:  # a line that wraps could not be rewritten
            line = "\r" + line[: shutil.get_terminal_size().columns - 1] + "\x1b[K"
        print(line, end=end, file=self._stream, flush=True)


def plot(curve: Sequence[tuple[int, float]], target: float | None, title: str, path: Path) -> None:
    """Draw mean return over environment steps into a PNG file at `path`."""
    import matplotlib  # here, because it takes a second that training need not wait for

    matplotlib.use("Agg")  # draws into files, on machines without a screen too
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(*zip(*curve) if curve else ([], []), label="this run")
    if target is not None:
        axes.axhline(target, linestyle="--", linewidth=1, color="grey", label=f"target {target:g}")
    axes.set(title=title, xlabel="environment steps", ylabel=f"mean return of the last {EPISODES} episodes")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, format="png", dpi=150)
    pyplot.close(figure)
