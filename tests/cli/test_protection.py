"""What people are told of their key."""

from __future__ import annotations

import pytest

from lattica.cli import status
from lattica.cli.protection import warning
from tests.cli.conftest import Lattica
from tests.cli.stage import Stage

NOTHING = {"mounts": False, "landlock": False, "reason": "mounts: no; Landlock: none"}


@pytest.mark.parametrize("said", [{}, {"mounts": True, "landlock": True, "reason": ""}])
def test_nothing_is_said_of_a_key_that_is_protected_or_of_which_nothing_is_known(said: dict[str, object]) -> None:
    assert warning(said) == ""


def test_what_is_missing_is_said_with_its_reason() -> None:
    assert warning({"mounts": True, "landlock": False, "reason": "Landlock: none"}).startswith("tasks are kept")
    assert warning(NOTHING).startswith("tasks can read this node's key (mounts: no; Landlock: none")
    assert "no reason" in warning({"mounts": False, "landlock": True})


def test_status_warns_under_its_first_line() -> None:
    assert "warning: tasks can read" in status.page({"key_protection": NOTHING}, 0.0)[1]
    assert not [line for line in status.page({}, 0.0) if "warning" in line]


def test_start_warns_in_its_last_line(lattica: Lattica, stage: Stage) -> None:
    stage.facts["protection"] = NOTHING
    result = lattica("start")
    assert result.exit_code == 0
    assert result.output.splitlines()[-1].startswith("  warning   tasks can read this node's key")
