"""The project says the same thing in all places where it says it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~ \[;]", line, maxsplit=1)[0].lower() for line in requirements}


def test_constraints_pin_exactly_what_the_project_asks_for() -> None:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = [line for line in lines if line]
    assert all("==" in pin for pin in pins), pins
    extras = PROJECT["optional-dependencies"].values()
    asked = names_of(PROJECT["dependencies"]).union(*(names_of(extra) for extra in extras))
    assert names_of(pins) == asked


def test_every_target_of_the_makefile_is_phony_and_explained() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.*)$", text, re.M)[1].split())
    explained = set(re.findall(r"^([a-z0-9-]+):.*## \S", text, re.M))
    assert phony == explained


def test_the_repository_names_no_path_of_one_machine_and_no_package_index() -> None:
    files = [ROOT / ".ci/run", ROOT / "Makefile", *ROOT.glob("*.toml"), *ROOT.glob("*.md")]
    wrong = [str(path) for path in files if re.search(r"--(extra-)?index-url|(?<!\w)/(home|root)/", path.read_text())]
    assert not wrong
