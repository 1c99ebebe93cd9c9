"""What the programs in this folder print under Ray, and whether they print the same here.

    python tests/compat/record.py [program ...]            run them on Ray and keep what they print in golden/
    python tests/compat/record.py --check [program ...]    run them on Ray and on lattica, and say what differs

Ray is that of `benchmarks/.envs` (`make bench` puts it there).
"""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PROGRAMS, GOLDEN = HERE / "programs", HERE / "golden"
NAMES = sorted(path.stem for path in PROGRAMS.glob("*.py"))
COMMAND = ("-m", "lattica.compat.ray")
"""Arguments of Python before those of the program."""
RAY = HERE.parents[1] / "benchmarks" / ".envs" / "ray-2.60.0" / "bin" / "python"
RUN_S = 180.0
"""Of one program: Ray takes 15 s to start and end on a machine that has other things to do."""


def output(python: str, *arguments: str) -> str:
    """What a program prints. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder:  # nothing of a working directory is in what is kept
        environ = os.environ | {"PYTHONWARNINGS": "ignore"}
        done = subprocess.run(
            [python, *arguments], cwd=folder, env=environ, stdout=subprocess.PIPE, text=True, timeout=RUN_S, check=True
        )
    return told(done.stdout)


def told(text: str) -> str:
    """Without what Ray says of retries on stdout: programs in which there are any say the rest at the end."""
    said, report, after = text.partition("report\n")
    return after if report else said


def main(argv: list[str]) -> int:
    """0 if all ran, and with --check printed the same."""
    check = "--check" in argv
    wrong = 0
    for name in [name for name in argv if name != "--check"] or NAMES:
        program, kept = str(PROGRAMS / f"{name}.py"), GOLDEN / f"{name}.txt"
        said = output(str(RAY), program)
        if not check:
            kept.write_text(said)
            print(f"{name}: {len(said.splitlines())} lines")
            continue
        ours = output(sys.executable, *COMMAND, program)
        wrong += ours != said
        print(f"{name}: {'the same' if ours == said else 'different'}")
        print(*difflib.unified_diff(said.splitlines(), ours.splitlines(), "ray", "lattica", lineterm=""), sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
