"""Bytes, times and tables, as people write and read them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

import click

_BINARY = {letter: 1 << shift for letter, shift in (("k", 10), ("m", 20), ("g", 30), ("t", 40))}
_DECIMAL = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
UNITS = {"": 1, "b": 1} | _DECIMAL | {letter + end: size for letter, size in _BINARY.items() for end in ("", "i", "ib")}
"""A bare letter means the power of two, as it does for Docker and systemd."""

DURATIONS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_size(text: str) -> int:
    """An option's value in bytes: `4GiB`, `500MB`, `2g`, `1048576`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower(), re.ASCII)
    if found is None or found[2] not in UNITS:
        raise click.BadParameter(f"{text!r} is no size; write it like 4GiB, 500MB or 1048576")
    return int(float(found[1]) * UNITS[found[2]])


def parse_duration(text: str) -> float:
    """An option's value in seconds: `7d`, `12h`, `30min`, `90s`, `90`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower(), re.ASCII)
    if found is None or found[2] not in DURATIONS:
        raise click.BadParameter(f"{text!r} is no time; write it like 7d, 12h or 30min")
    return float(found[1]) * DURATIONS[found[2]]


def parse_moment(text: str, unix_s: float) -> float:
    """An option's value in unix seconds: `2026-03-01`, `2026-03-01T12:00` (local time unless it says otherwise), or
    `3d`, which is that long ago. unix_s: now."""
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError):
        pass
    try:
        return unix_s - parse_duration(text)
    except click.BadParameter:
        raise click.BadParameter(f"{text!r} is no time; write it like 2026-03-01, 2026-03-01T12:00 or 3d") from None


def moment_text(unix_s: float) -> str:
    """`2026-03-01 12:00`, in local time."""
    return datetime.fromtimestamp(unix_s).strftime("%Y-%m-%d %H:%M")


def size_text(size: float) -> str:
    """`3.2 GiB`; less than a KiB in bytes."""
    for letter, unit in reversed(_BINARY.items()):
        if abs(size) >= unit:
            return f"{size / unit:.1f} {letter.upper()}iB"
    return f"{size:.0f} B"


def duration_text(seconds: float) -> str:
    """`2 h 5 min`: the two largest units."""
    left = max(int(seconds), 0)
    parts: list[str] = []
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, length)
        if count or parts:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of aligned columns, the headers first; columns of numbers stand to the right."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *texts)]
    right = [all(isinstance(row[number], int | float) for row in rows) for number in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in zip(cells, widths, right)
        )
        return f"  {'  '.join(padded)}".rstrip()

    return [line(headers), *map(line, texts)]
