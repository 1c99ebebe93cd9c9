"""The table of a sitting, for a terminal and for a page of the documentation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cases import Case
from floors import FLOORS
from sides import Row, medians

RATIO_SHOWN_MAX = 1e5  # above it one side was too small to see
HEAD = ("case", "lattica", "ray", "unit", "ratio", "at least", "", "floor")


@dataclass(frozen=True, slots=True)
class Line:
    """A case with both sides' values and the floor, each None where it was not measured."""

    case: Case
    ours: float | None
    theirs: float | None
    floor: float | None

    @property
    def ratio(self) -> float | None:
        return None if self.ours is None or self.theirs is None else self.case.ratio(self.ours, self.theirs)

    @property
    def met(self) -> bool | None:
        """None where nothing is promised or the ratio is not known."""
        return None if self.ratio is None or self.case.target is None else self.ratio >= self.case.target

    def cells(self) -> tuple[str, ...]:
        ratio = "–" if self.ratio is None else f"{self.ratio:.1f}×" if self.ratio < RATIO_SHOWN_MAX else "∞"
        target = "" if self.case.target is None else f"{self.case.target:g}×"
        verdict = {True: "met", False: "missed", None: ""}[self.met]
        values = (shown(self.ours), shown(self.theirs), self.case.unit, ratio, target, verdict)
        return (self.case.name, *values, shown(self.floor) if self.floor is not None else "")


def shown(value: float | None) -> str:
    """Three significant digits, no exponent: 0.0123, 1.75, 48.1, 231,000."""
    if value is None:
        return "–"
    if value >= 100:
        digits = len(str(int(value))) - 3
        return f"{round(value, -digits):,.0f}"
    return f"{value:.3g}"


def as_text(lines: Sequence[Line]) -> str:
    rows = [HEAD, *(line.cells() for line in lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = {0, 3, 6}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def as_markdown(lines: Sequence[Line], sitting: str) -> str:
    """The table, and below it where each floor comes from."""
    rows = [HEAD, ("---",) * 1 + ("---:",) * 2 + ("---",) + ("---:",) * 2 + ("---", "---:")]
    rows += [line.cells() for line in lines]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    seen = dict.fromkeys(line.case.floor for line in lines if line.case.floor)
    names = {key: ", ".join(line.case.name for line in lines if line.case.floor == key) for key in seen}
    reasons = "\n".join(f"- {names[key]}: {FLOORS[key].reason}" for key in seen)
    return f"{sitting}\n\n{table}\n\nWhere the floors come from:\n\n{reasons}"


def processes_as_markdown(rows: Mapping[str, Sequence[Row]]) -> str:
    """PSS of every process of each side, largest first, with the sum and the idle CPU."""
    blocks = []
    for fw, measured in rows.items():
        values = medians([row for row in measured if row.name.startswith(("PSS ", "CPU with"))])
        sizes = {name.removeprefix("PSS "): value for name, value in values.items() if name.startswith("PSS ")}
        if not sizes:
            continue
        total = sizes.pop("sum")
        parts = ", ".join(f"{name} {size:.1f}" for name, size in sorted(sizes.items(), key=lambda item: -item[1]))
        cpu = values["CPU with two idle workers"]
        blocks.append(f"| {fw} | {len(sizes)} | {total:.0f} | {cpu:.2g} | {parts} |")
    head = "| | processes | PSS, MiB | idle CPU, % of a core | each, MiB |\n| --- | ---: | ---: | ---: | --- |"
    return "\n".join([head, *blocks])


def rewrite(page: Path, block: str, text: str) -> None:
    """Put `text` between the markers `<!-- block: begin -->` and `<!-- block: end -->` of a page."""
    begin, end = f"<!-- {block}: begin -->", f"<!-- {block}: end -->"
    old = page.read_text()
    if begin not in old or end not in old:
        raise SystemExit(f"{page} has no markers {begin} … {end}")
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    page.write_text(re.sub(pattern, lambda _: f"{begin}\n{text}\n{end}", old, count=1, flags=re.S))
