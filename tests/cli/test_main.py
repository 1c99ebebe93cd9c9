"""The command as a whole: help, version, unknown words."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lattica._version import __version__
from lattica.cli.main import VERBS, main
from tests.cli.conftest import Lattica


def test_help_names_every_verb(lattica: Lattica) -> None:
    result = lattica("--help")
    assert result.exit_code == 0
    for verb, line in VERBS.items():
        assert f"  {verb}" in result.output and line in result.output


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_begins_with_an_example_and_says_when_it_returns(lattica: Lattica, verb: str) -> None:
    output = lattica(verb, "--help").output
    assert output.splitlines()[2].strip().startswith(f"lattica {verb}")
    assert "returns" in output


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_says_of_itself_what_the_group_says_of_it(verb: str) -> None:
    command = main.get_command(None, verb)
    assert command.short_help == VERBS[verb]
    assert command.name == verb


def test_the_version_is_said(lattica: Lattica) -> None:
    assert lattica("--version").output.startswith(f"lattica {__version__}, Python 3.")


def test_an_unknown_verb_is_refused_by_name(lattica: Lattica) -> None:
    result = lattica("dance")
    assert result.exit_code == 2
    assert "dance" in result.output


def test_a_mistyped_verb_is_answered_with_the_one_that_is_meant(lattica: Lattica) -> None:
    result = lattica("stats")
    assert result.exit_code == 2 and "No such command 'stats'. Did you mean 'status'?" in result.output
    assert "mean" not in lattica("xyzzy").output


def test_help_loads_no_verb_and_nothing_of_the_runtime() -> None:
    code = (
        "import sys, lattica.cli.main as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print({name for name in ('lattica.cli.start', 'lattica.actors', 'msgspec', 'uvloop') if name in sys.modules})"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1] == "set()"
