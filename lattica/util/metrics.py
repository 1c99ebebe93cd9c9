"""Counters, gauges and histograms of a program's own, by Ray's names.

They count in the process that made them, and `info` says how they were made. No node collects them: what a node itself
counts is served where `lattica start --metrics` says.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lattica.errors import ConfigError
from lattica.util.debug import log_once

log = logging.getLogger("lattica")


class Metric:
    """What they have in common: a name, tags, and a value for each set of tags."""

    def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] | None = None) -> None:
        """Raises ConfigError (a ValueError) for an empty name, TypeError for tags that are no tuple of strings."""
        if not name:
            raise ConfigError("a metric needs a name")
        if tag_keys is not None and not isinstance(tag_keys, tuple):
            raise TypeError(f"tag_keys must be a tuple, not a {type(tag_keys).__name__}")
        if not all(isinstance(key, str) for key in tag_keys or ()):
            raise TypeError(f"tag_keys={tag_keys!r:.80} must be strings")
        self._name, self._description, self._tag_keys = name, description, tag_keys or ()
        self._default_tags: dict[str, str] = {}
        self._values: dict[tuple[tuple[str, str], ...], Any] = {}
        if log_once("lattica.util.metrics"):
            log.warning("metrics of programs stay in their process: no node collects them (docs/limits.md)")

    def set_default_tags(self, default_tags: dict[str, str]) -> Metric:
        """Tags of every value that does not have its own."""
        self._check(default_tags)
        self._default_tags = dict(default_tags)
        return self

    @property
    def info(self) -> dict[str, Any]:
        """How it was made."""
        return {"name": self._name, "description": self._description, "tag_keys": self._tag_keys,
                "default_tags": self._default_tags}  # fmt: skip

    def _check(self, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            if key not in self._tag_keys:
                raise ConfigError(f"{self._name} has no tag {key!r}", do_next=f"its tag_keys are {self._tag_keys}")
            if not isinstance(value, str):
                raise TypeError(f"tag {key} of {self._name} must be a string, not {value!r:.80}")

    def _key(self, tags: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
        self._check(tags or {})
        given = self._default_tags | dict(tags or {})
        if missing := [key for key in self._tag_keys if key not in given]:
            raise ConfigError(f"{self._name} was given no tag {', '.join(missing)}", do_next="see set_default_tags")
        return tuple(sorted(given.items()))


class Counter(Metric):
    """A number that grows."""

    def inc(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
        """Add a value above zero. Raises ConfigError."""
        if not isinstance(value, int | float):
            raise TypeError(f"{value!r:.80} is no number")
        if value <= 0:
            raise ConfigError(f"a counter grows; {value} is not above 0")
        key = self._key(tags)
        self._values[key] = self._values.get(key, 0.0) + value


class Gauge(Metric):
    """A number that goes up and down."""

    def set(self, value: float | None, tags: dict[str, str] | None = None) -> None:
        """What it is now; None changes nothing."""
        if value is None:
            return
        if not isinstance(value, int | float):
            raise TypeError(f"{value!r:.80} is no number")
        self._values[self._key(tags)] = value


class Histogram(Metric):
    """How many values lay between which boundaries."""

    def __init__(
        self,
        name: str,
        description: str = "",
        boundaries: Sequence[float] | None = None,
        tag_keys: tuple[str, ...] | None = None,
    ) -> None:
        """boundaries: above 0, and growing. Raises ConfigError."""
        super().__init__(name, description, tag_keys)
        if not boundaries or any(bound <= 0 for bound in boundaries):
            raise ConfigError(f"boundaries={boundaries!r:.80} must be numbers above 0", do_next="say like [0.1, 1, 10]")
        self.boundaries = list(boundaries)

    @property
    def info(self) -> dict[str, Any]:
        """How it was made."""
        return super().info | {"boundaries": self.boundaries}

    def observe(self, value: float, tags: dict[str, str] | None = None) -> None:
        """Count a value."""
        if not isinstance(value, int | float):
            raise TypeError(f"{value!r:.80} is no number")
        counts = self._values.setdefault(self._key(tags), [0] * (len(self.boundaries) + 1))
        counts[sum(bound < value for bound in self.boundaries)] += 1


__all__ = ["Counter", "Gauge", "Histogram"]
