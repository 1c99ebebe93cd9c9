"""What an initializer of a script sets is seen by the script's functions, though each comes with globals of its own."""

from __future__ import annotations

import functools
from typing import Any

from lattica.util.initializing import Initialized

SCRIPT = """
state, other = "unset", "mine"

def begin(value):
    global state
    state = value

def look(*_):
    return state, other

class Looks:
    def __call__(self): return state, other
    def method(self): return state, other
"""


def came_by_value(name: str = "__main__") -> dict[str, Any]:
    """The functions of a script as they arrive in a worker: their globals are no module's."""
    space: dict[str, Any] = {"__name__": name}
    exec(SCRIPT, space)
    return space


def test_functions_that_came_later_see_what_was_set_and_nothing_else() -> None:
    initialized = Initialized(came_by_value()["begin"], ("ready",))
    later = came_by_value()
    looks = later["Looks"]()
    for function in (later["look"], functools.partial(later["look"], 1), looks, looks.method):
        initialized.lend(function)
        assert function() == ("ready", "mine")
    changed = came_by_value()
    changed["look"].__globals__["other"] = "changed"
    initialized.lend(changed["look"])
    assert changed["look"]() == ("ready", "changed")


def test_functions_of_other_scripts_and_of_modules_are_left_alone() -> None:
    initialized = Initialized(came_by_value()["begin"], ("ready",))
    other = came_by_value("another")["look"]
    initialized.lend(other)
    initialized.lend(abs)
    initialized.lend(came_by_value)
    assert other()[0] == "unset" and "state" not in globals()
    Initialized(print, ()).lend(other)
    assert other()[0] == "unset"
