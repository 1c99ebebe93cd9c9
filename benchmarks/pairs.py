"""Sides that are two processes which talk: what one is, and one run of it. mesh_lines.py tells what its script does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mesh_lines import LINES, Measure, read_measures
from pair_table import FLOOR, OURS

HERE = Path(__file__).parent
GRADIENT_VERSION = "1.0.21"
GRADIENT_ENVIRONMENT = HERE / ".envs" / f"gradient-lattica-{GRADIENT_VERSION}"
GRADIENT = "gradient"

TICKET_TIMEOUT_S = 30.0  # from the start of a server to its ticket
LOAD_TIMEOUT_S = (
    420.0  # all lines together: seven of Gradient's, each with its own limit; plain TCP over 75 ms takes 60
)
END_TIMEOUT_S = 10.0  # between asking a process to end and killing it
REASON_MAX_CHARS = 600

Start = Callable[[str, Sequence[str], Mapping[str, Any]], "subprocess.Popen[str]"]
"""(place: "serve" or "load", command, options of Popen) -> the process, running in that place."""


@dataclass(frozen=True, slots=True)
class PairSide:
    """name: its column. script: what mesh_lines.py says, run by this interpreter."""

    name: str
    python: Path
    script: Path


def plain() -> PairSide:
    return PairSide(FLOOR, Path(sys.executable), HERE / "plain_bench.py")


def ours() -> PairSide:
    return PairSide(OURS, Path(sys.executable), HERE / "mesh_bench.py")


def gradient() -> PairSide:
    """Gradient's package, whose import name is ours, in an environment of its own, made on first use."""
    python = GRADIENT_ENVIRONMENT / "bin" / "python"
    if not python.exists():
        print(f"set-up: Gradient's lattica {GRADIENT_VERSION} in {GRADIENT_ENVIRONMENT} (once)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(GRADIENT_ENVIRONMENT)], check=True)
        install = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*install, f"lattica=={GRADIENT_VERSION}"], check=True)
    return PairSide(GRADIENT, python, HERE / "gradient_bench.py")


def present(sides: Sequence[PairSide]) -> list[PairSide]:
    """Those whose script is there; says which are not."""
    for side in sides:
        if not side.script.exists():
            print(f"{side.name} is left out: there is no {side.script.name}", file=sys.stderr, flush=True)
    return [side for side in sides if side.script.exists()]


def versions() -> dict[str, str]:
    from lattica import __version__

    return {OURS: __version__, GRADIENT: GRADIENT_VERSION}


def run_pair(side: PairSide, start: Start, listen: str) -> list[Measure]:
    """One run, both processes fresh. Every line is in the answer; those that were not measured say why."""
    found: dict[str, Measure] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        ticket, log = Path(folder) / "ticket", Path(folder) / "serve.log"
        words = ["--ticket-file", str(ticket)]
        with _process(start, side, "serve", [*words, "--listen", listen], log, log) as server:
            reason = _wait_for(ticket, server)
            if not reason:
                out, load_log = Path(folder) / "load.out", Path(folder) / "load.log"
                with _process(start, side, "load", [*words, "--json"], out, load_log) as load:
                    reason = _wait_end(load)
                found = {each.name: each for each in read_measures(out.read_text(errors="replace"))}
                if reason:
                    reason = f"{reason}: {_tail(load_log) or _tail(out)}"
            else:
                reason = f"{reason}: {_tail(log)}"
    told = {reason or "the script did not measure it": 1}
    others = [each for name, each in found.items() if name not in LINES]
    return [found.get(name, Measure(name, None, "", told)) for name in LINES] + others


@contextlib.contextmanager
def _process(
    start: Start, side: PairSide, verb: str, words: Sequence[str], out: Path, log: Path
) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own, which is over when the block is."""
    with out.open("a") as out_file, log.open("a") as log_file:
        process = start(
            verb, [str(side.python), str(side.script), verb, *words], _options(out_file, log_file, out.parent)
        )
    try:
        yield process
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_TIMEOUT_S)


def _options(out: IO[str], log: IO[str], folder: Path) -> dict[str, Any]:
    return {
        "stdin": subprocess.DEVNULL,
        "stdout": out,
        "stderr": log,
        "start_new_session": True,
        "cwd": "/",  # two packages are called lattica: none of them may come from the working directory
        "env": os.environ | {"TMPDIR": str(folder)},
        "text": True,
    }


def _wait_for(ticket: Path, server: subprocess.Popen[str]) -> str:
    """Why there is no ticket; "" once there is one."""
    deadline = time.monotonic() + TICKET_TIMEOUT_S
    while not ticket.exists():
        if server.poll() is not None:
            return f"the server ended with exit code {server.returncode}"
        if time.monotonic() > deadline:
            return f"the server gave no ticket within {TICKET_TIMEOUT_S:.0f} s"
        time.sleep(0.02)
    return ""


def _wait_end(load: subprocess.Popen[str]) -> str:
    try:
        code = load.wait(LOAD_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"no end after {LOAD_TIMEOUT_S:.0f} s"
    return f"exit code {code}" if code else ""


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-REASON_MAX_CHARS:].strip() if log.exists() else ""
