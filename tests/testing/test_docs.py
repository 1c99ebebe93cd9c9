"""The example of docs/testing.md works as it stands, and fails as the page says when it is broken as the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lattica.testing
from lattica.testing.sim import world_names

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def run(source: str) -> None:
    exec(compile(source, "docs/testing.md", "exec"), {"__name__": "example"})


def test_the_example_runs() -> None:
    run(EXAMPLE)


def test_the_example_broken_as_the_page_says_fails_as_the_page_says() -> None:
    said = re.search(r"`AssertionError: (bob reads .*?)`", PAGE, re.DOTALL)
    assert said is not None
    with pytest.raises(AssertionError) as failed:
        run(EXAMPLE.replace("new = number == self.received + 1", "new = True"))
    assert str(failed.value) == said[1].replace("\n", " ")
    (note,) = failed.value.__notes__
    assert note.startswith("replay with seed 0; ") and note.endswith("bob.receive('ann', ('item', 2, 1))")


def test_every_call_that_the_page_names_exists() -> None:
    world, connections = lattica.testing.World(7), lattica.testing.World(7).connections
    names = set(re.findall(r"`([a-z_]+)\(", PAGE)) | set(re.findall(r"world\.([a-z_]+)", PAGE))
    known = {
        *dir(world),
        *dir(connections),
        *dir(lattica.testing.Host),
        *dir(lattica.testing.Calls),
        *dir(lattica.testing),
    }
    cores = {
        "receive",
        "tick",
        "next_deadline",
        "validate",
        "credential",
        "factory",
        "now",
        "unix_s",
        "saw",
        "mesh_frames",
    }
    assert names - known - cores == set()


def test_every_name_of_the_door_is_there_and_has_words() -> None:
    for name in lattica.testing.__all__:
        thing = getattr(lattica.testing, name)
        if callable(thing):
            assert thing.__doc__, f"{name} says nothing about itself"


def test_the_worlds_that_the_page_plays_exist() -> None:
    assert set(re.findall(r"--world (\w+)", PAGE)) <= set(world_names())
