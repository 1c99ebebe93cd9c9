"""The guide tells the truth: each page's Python blocks are one program that runs, and prints what the page says.

A block of Python that is followed by one of `text` prints exactly that. Each page runs in a process of its own, the
blocks one after the other, at the lines at which they stand in the page: a traceback names them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("numpy")
pytestmark = pytest.mark.e2e

GUIDE = Path(__file__).parents[2] / "docs" / "guide"
ELSEWHERE = {"mesh", "network-lab", "relay"}
"""Pages about machines and networks: what they show runs in tests/examples/test_mesh_examples.py and needs several."""
TIMEOUT_S = 120.0  # a page takes two seconds, but a machine can be busy
MARK = "\x1e"
PAGES = sorted(path.stem for path in GUIDE.glob("*.md") if path.stem not in ELSEWHERE | {"README"})


@dataclass
class Block:
    """Some lines of Python, and what they print if the page says so."""

    line: int
    code: str
    prints: str | None


def blocks_of(text: str) -> Iterator[Block]:
    fences = list(re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    for at, fence in enumerate(fences):
        if fence[1] == "python":
            after = fences[at + 1] if at + 1 < len(fences) else None
            says = after is not None and after[1] == "text" and not text[fence.end() : after.start()].strip()
            yield Block(text.count("\n", 0, fence.start(2)) + 1, fence[2], after[2] if says and after else None)


def program_of(blocks: list[Block]) -> str:
    """All blocks at their own lines, with a mark in the output before each."""
    lines: list[str] = []
    for number, block in enumerate(blocks):
        lines += [""] * (block.line - 2 - len(lines))
        lines += [f"print({MARK + str(number)!r}, flush=True)", *block.code.splitlines()]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_of_the_guide_runs_and_prints_what_it_says(page: str, tmp_path: Path) -> None:
    blocks = list(blocks_of((GUIDE / f"{page}.md").read_text()))
    (tmp_path / f"{page}.py").write_text(program_of(blocks))
    done = subprocess.run(
        [sys.executable, f"{page}.py"], cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    printed = dict(part.split("\n", 1) for part in done.stdout.split(MARK)[1:])
    for number, block in enumerate(blocks):
        if block.prints is not None:
            assert printed[str(number)] == block.prints, f"the block at line {block.line}"


@pytest.mark.parametrize("page", [path.stem for path in GUIDE.glob("*.md")])
def test_links_of_the_guide_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (GUIDE / f"{page}.md").read_text()):
        assert (GUIDE / target).exists(), target
