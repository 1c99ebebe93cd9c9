"""Pages for users keep their word: tests and files that they name are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SEMANTICS = (ROOT / "docs" / "semantics.md").read_text()
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]


def test_every_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", SEMANTICS)
    assert len(named) > 50
    gone = [f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / file).read_text()]
    assert not gone


def test_every_sentence_of_the_page_s_table_has_a_test() -> None:
    table = SEMANTICS[SEMANTICS.index("| sentence | tests |") :].splitlines()[2:]
    assert len(table) > 20
    assert not [row for row in table if "::test_" not in row]


def test_every_option_and_error_that_the_page_names_exists() -> None:
    from lattica import errors
    from lattica.actors.options import ACTOR, METHOD, TASK

    tables = SEMANTICS[SEMANTICS.index("## Errors") : SEMANTICS.index("## Not promised")]
    named = set(re.findall(r"`(\w+Error)`", SEMANTICS))
    assert {name for name in named if not hasattr(errors, name)} == set()
    options = set(re.findall(r"^\| `(\w+)", tables[tables.index("## Options") :], re.MULTILINE))
    assert options and options <= ACTOR | METHOD | TASK


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http", "mailto")):
            continue
        where, _, heading = link.partition("#")
        target = (page.parent / where).resolve() if where else page
        assert target.exists(), f"{link}"
        if heading and target.suffix == ".md":
            assert heading in headings(target), f"{link}: {target.name} has no such heading"


def headings(page: Path) -> set[str]:
    """As GitHub makes anchors of them."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}
