"""The two sides of a comparison: which interpreter runs, in which environment, and in which network namespace.

Every run is a fresh process in a fresh session, so that nothing of one side is left when the other is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cases import Part

HERE = Path(__file__).parent
RAY_VERSION = "2.60.0"
RAY_ENVIRONMENT = HERE / ".envs" / f"ray-{RAY_VERSION}"
RUN_TIMEOUT_S = 900.0  # the longest part takes Ray under two minutes on two idle cores
END_TIMEOUT_S = 10.0  # between asking a run to end and killing it


@dataclass(frozen=True, slots=True)
class Side:
    """fw: the module that is imported; init: its init's keyword arguments."""

    fw: str
    python: Path
    init: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a script's output: the median of what it sampled in its process."""

    name: str
    unit: str
    value: float
    version: str


def ours(fw: str) -> Side:
    return Side(fw, Path(sys.executable), {"num_cpus": 2})


def ray(python: Path | None) -> Side:
    """Ray in its own environment, made on first use, so that no requirement of one side holds back the other."""
    python = python or RAY_ENVIRONMENT / "bin" / "python"
    if not python.exists():
        print(f"set-up: ray {RAY_VERSION} in {RAY_ENVIRONMENT} (once)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(RAY_ENVIRONMENT)], check=True)
        install = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*install, f"ray=={RAY_VERSION}", numpy_pin(), "psutil"], check=True)
    return Side("ray", python, {"num_cpus": 2, "address": "local", "include_dashboard": False})


def numpy_pin() -> str:
    """The line of the constraints file, so that both sides copy arrays with the same numpy."""
    lines = (HERE.parent / "constraints.txt").read_text().split()
    return next(line for line in lines if line.startswith("numpy=="))


@contextlib.contextmanager
def loopback_only(wanted: bool) -> Iterator[list[str]]:
    """A command prefix that runs in a network namespace with nothing but loopback; empty where that cannot be had.

    Ray binds the machine's own address when it finds one, and then starts two seconds later.
    """
    if not wanted or os.geteuid() != 0 or not shutil.which("ip"):
        if wanted:
            print(
                "no namespace (needs root and `ip` of iproute2): Ray's start is longer by its network set-up",
                flush=True,
            )
        yield []
        return
    name = f"bench-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield ["ip", "netns", "exec", name]
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


def run_part(side: Side, part: Part, prefix: list[str], repeats: int) -> list[Row]:
    """Run one part on one side in a fresh process; the rows it reports. A part that fails says so and gives no rows."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        out = Path(folder) / "rows.jsonl"
        words = [*prefix, str(side.python), str(HERE / part.script), "--fw", side.fw]
        words += ["--init", json.dumps(side.init), "--out", str(out)]
        if part.script == "peers_bench.py":
            words += ["--only", part.only, "--skip", part.skip, "--repeats", str(repeats)]
        error = run_alone(words, Path(folder) / "log")
        if error:
            print(f"{side.fw:12} {part.name} FAILED: {error}", flush=True)
        lines = out.read_text().splitlines() if out.exists() else []
    rows = [json.loads(line) for line in lines]
    for row in rows:
        if "failed" in row:
            print(f"{side.fw:12} {row['name']} FAILED: {row['failed']}", flush=True)
    return [Row(row["name"], row["unit"], row["median"], row["version"]) for row in rows if "median" in row]


def run_alone(words: list[str], log: Path) -> str | None:
    """Run a command in a session of its own; what went wrong, with its last lines, or None.

    Its output goes to a file: a pipe would stay open for as long as any process that it left behind.
    """
    with log.open("w") as output:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        code = process.wait(RUN_TIMEOUT_S)
    except BaseException as reason:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if not isinstance(reason, subprocess.TimeoutExpired):
            raise
        return f"no end after {RUN_TIMEOUT_S:.0f} s\n{tail(log)}"
    return None if code == 0 else f"exit code {code}\n{tail(log)}"


def tail(log: Path, lines: int = 12) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def medians(rows: list[Row]) -> dict[str, float]:
    """name -> median over the processes that reported it."""
    samples: dict[str, list[float]] = {}
    for row in rows:
        samples.setdefault(row.name, []).append(row.value)
    return {name: statistics.median(values) for name, values in samples.items()}
