"""What was measured, when, where and at which commit: one JSON line per measure, appended and never rewritten."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from sides import Row

HERE = Path(__file__).parent
HISTORY = HERE / "history.jsonl"


def commit() -> str:
    """The short hash, with a `+` if files that git knows differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()

    hash_ = git("rev-parse", "--short", "HEAD") or "unknown"
    return hash_ + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def machine() -> str:
    """For a reader who compares lines: cores and their model, memory, kernel, Python."""
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "processor")
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    kernel = ".".join(platform.release().split("-")[0].split(".")[:2])
    return f"{os.cpu_count()} × {model}, {gib:.0f} GiB, Linux {kernel}, Python {platform.python_version()}"


def sitting() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {machine()}"


def append(rows: Mapping[str, Sequence[Row]]) -> None:
    """rows: fw -> rows, several of one name where several processes measured it."""
    head = {"commit": commit(), "date": f"{datetime.now(UTC):%Y-%m-%dT%H:%MZ}", "machine": machine()}
    with open(HISTORY, "a") as file:
        for fw, measured in rows.items():
            for name in dict.fromkeys(row.name for row in measured):
                same = [row for row in measured if row.name == name]
                value = float(f"{statistics.median(row.value for row in same):.6g}")
                line = {"fw": fw, "version": same[0].version, "name": name, "value": value, "unit": same[0].unit}
                file.write(json.dumps(head | line | {"processes": len(same)}, ensure_ascii=False) + "\n")
