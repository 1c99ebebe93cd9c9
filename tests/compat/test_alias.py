"""One package under another's name, and a program that is run as `python -m lattica.compat.ray` runs it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from lattica.compat.alias import Alias


@pytest.fixture
def alias(tmp_path: Path) -> Iterator[Alias]:
    """`aliased`, whose room `util` is the package `aliased_real`. Its function `tool` hides a module of that name."""
    real = tmp_path / "aliased_real"
    real.mkdir()
    (real / "__init__.py").write_text("from aliased_real.tool import tool\n")
    (real / "tool.py").write_text("def tool():\n    return 'tool'\n")
    (real / "late.py").write_text("TIMES = []\n")
    before = dict(sys.modules)
    found = Alias("aliased", {"util": "aliased_real"}, lambda name: f"no {name} here")
    sys.path.insert(0, str(tmp_path))
    sys.meta_path.insert(0, found)
    sys.modules["aliased"] = package = ModuleType("aliased")
    package.__path__ = []
    yield found
    sys.meta_path.remove(found)
    sys.path.remove(str(tmp_path))
    for name in sys.modules.keys() - before.keys():
        if name.startswith("aliased"):
            del sys.modules[name]


def test_a_module_has_two_names_and_is_loaded_once(alias: Alias) -> None:
    late = importlib.import_module("aliased.util.late")
    assert late is importlib.import_module("aliased_real.late")
    assert late.__name__ == late.__spec__.name == "aliased_real.late"  # type: ignore[union-attr]


def test_a_function_is_not_hidden_by_its_module_of_the_same_name(alias: Alias) -> None:
    util = importlib.import_module("aliased.util")
    assert importlib.import_module("aliased.util.tool") is importlib.import_module("aliased_real.tool")
    assert util.tool() == "tool"


@pytest.mark.parametrize("name", ["aliased.data", "aliased.util.nothing"])
def test_what_is_not_there_is_an_import_error_that_says_so(alias: Alias, name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=f"no {name} here") as caught:
        importlib.import_module(name)
    assert caught.value.name == name


def test_other_packages_are_left_to_others(alias: Alias) -> None:
    assert alias.find_spec("aliased_real") is None and alias.find_spec("aliased") is None
