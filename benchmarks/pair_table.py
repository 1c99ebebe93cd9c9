"""The table of sides that are two processes: a column each, lattica's ratio to each of the others, and what failed."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mesh_lines import RATE_UNITS, Measure
from sides import Row
from table import shown

OURS = "lattica"
FLOOR = "plain TCP"
ERRORS_SHOWN_MAX = 6  # kinds, of one line of one side


@dataclass(frozen=True, slots=True)
class Sitting:
    """All sides in one place, in one run.

    by_side: column -> its measures. promised: line -> what lattica reaches at least; where share_of_floor is
    given, that share of plain TCP's figure is enough too.
    """

    title: str
    by_side: Mapping[str, Sequence[Measure]]
    promised: Mapping[str, float] = field(default_factory=dict)
    share_of_floor: float | None = None

    def measure(self, side: str, line: str) -> Measure | None:
        return next((each for each in self.by_side.get(side, ()) if each.name == line), None)

    def value(self, side: str, line: str) -> float | None:
        found = self.measure(side, line)
        return found.value if found else None

    def unit(self, line: str) -> str:
        found = (self.measure(side, line) for side in self.by_side)
        return next((each.unit for each in found if each and each.unit), "")

    def met(self, line: str) -> bool | None:
        """Does lattica keep what is promised? None where nothing is, or nothing was tried; what failed is missed."""
        promised, ours = self.promised.get(line), self.measure(OURS, line)
        if promised is None or ours is None:
            return None
        if ours.value is None:
            return False
        floor = self.value(FLOOR, line)
        shared = self.share_of_floor is not None and floor is not None and ours.value >= self.share_of_floor * floor
        return shared or ours.value >= promised

    @property
    def lines(self) -> list[str]:
        return list(dict.fromkeys(each.name for measures in self.by_side.values() for each in measures))

    @property
    def missed(self) -> list[str]:
        return [line for line in self.lines if self.met(line) is False]

    def ratio(self, line: str, side: str) -> str:
        """How many times better lattica is than this side; below 1 it is worse."""
        ours, theirs = self.value(OURS, line), self.value(side, line)
        if not ours or not theirs:
            return ""
        return f"{ours / theirs if self.unit(line) in RATE_UNITS else theirs / ours:.2f}×"

    def as_text(self) -> str:
        others = [side for side in self.by_side if side != OURS] if OURS in self.by_side else []
        head = ["", *self.by_side, "unit", *(f"to {side}" for side in others), "at least", ""]
        rows = [head, *([*self._cells(line, others)] for line in self.lines)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )
        return "\n".join([self.title, table, *self._failures()])

    def _failures(self) -> Iterator[str]:
        """What failed, the most frequent first; what is left out is counted."""
        for side, measures in self.by_side.items():
            for each in measures:
                known = Counter(each.errors).most_common()
                told = [f"{count:,} × {what}" for what, count in known[:ERRORS_SHOWN_MAX]]
                if rest := sum(count for _, count in known[ERRORS_SHOWN_MAX:]):
                    told.append(f"{rest:,} × others")
                yield from (f"failed, {side}, {each.name}: {line}" for line in told)

    def _cells(self, line: str, others: Sequence[str]) -> list[str]:
        values = [self._value_cell(side, line) for side in self.by_side]
        promised = f"{self.promised[line]:,.0f}" if line in self.promised else ""
        verdict = {True: "met", False: "missed", None: ""}[self.met(line)]
        return [line, *values, self.unit(line), *(self.ratio(line, side) for side in others), promised, verdict]

    def _value_cell(self, side: str, line: str) -> str:
        found = self.measure(side, line)
        failed = f" ({found.failures:,} failed)" if found and found.errors and found.value is not None else ""
        return shown(found.value if found else None) + failed

    def rows(self, versions: Mapping[str, str], place: str = "") -> dict[str, list[Row]]:
        """For the history: what was measured, with the place as a part of each name."""
        return {
            side: [
                Row(f"{each.name}{place}", each.unit, each.value, versions.get(side, ""))
                for each in measures
                if each.value is not None
            ]
            for side, measures in self.by_side.items()
        }


def median_of(runs: Sequence[Sequence[Measure]]) -> list[Measure]:
    """One side's runs as one: the median of each line, and all that failed."""
    merged = []
    for name in dict.fromkeys(each.name for run in runs for each in run):
        same = [each for run in runs for each in run if each.name == name]
        values = [each.value for each in same if each.value is not None]
        errors: Counter[str] = Counter()
        for each in same:
            errors.update(each.errors)
        unit = next((each.unit for each in same if each.unit), "")
        merged.append(Measure(name, statistics.median(values) if values else None, unit, dict(errors)))
    return merged
