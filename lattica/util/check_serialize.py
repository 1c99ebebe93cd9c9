"""What keeps a value from travelling, shown as a tree."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from lattica.actors import values

SHOWN_CHARS = 200


class FailureTuple:
    """One value that cannot be pickled. path: names that lead to it, from what was looked at; parent: what holds it."""

    def __init__(self, obj: Any, path: tuple[str, ...], parent: Any) -> None:
        self.obj, self.path, self.parent = obj, path, parent

    @property
    def name(self) -> str:
        """The last of its names."""
        return self.path[-1] if self.path else ""

    def __repr__(self) -> str:
        return f"FailureTuple({' -> '.join(self.path) or 'the value'}: {_short(self.obj)}, in {_short(self.parent)})"


def inspect_serializability(
    base_obj: Any, name: str | None = None, depth: int = 3, print_file: Any = None
) -> tuple[bool, set[FailureTuple]]:
    """(whether it can be sent to a task or actor, what prevents that). The way to the first culprit is printed, at most
    `depth` levels deep, to `print_file` (standard output)."""
    error = values.why_not(base_obj)
    if error is None:
        print(f"{name or _short(base_obj)} can be serialized", file=print_file)
        return True, set()
    failure = _descend(base_obj, (name,) if name is not None else (), None, error, depth, print_file)
    print(f"culprit: {failure!r}", file=print_file)
    print(
        "There may be others. Make it inside the task or actor, or give its class a __reduce__ that leaves it out.",
        file=print_file,
    )
    return False, {failure}


def _descend(
    value: Any, path: tuple[str, ...], parent: Any, error: Exception, depth: int, print_file: Any
) -> FailureTuple:
    """The innermost part of `value`, which does not pickle, that does not do so either."""
    shown = path[-1] if path else "value"
    print(
        f"{'    ' * (len(path) - bool(path))}{shown} = {_short(value)}: {type(error).__name__}: {error}",
        file=print_file,
    )
    if depth > 0:
        for name, part in _parts(value):
            why = values.why_not(part)
            if why is not None:
                return _descend(part, (*path, name), value, why, depth - 1, print_file)
    return FailureTuple(value, path, parent)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """(name, part) of what a value is made of, as pickle would go through it."""
    if isinstance(value, dict):
        yield from ((f"[{key!r:.40}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{at}]", part) for at, part in enumerate(value))
    elif inspect.isfunction(value):
        captured = inspect.getclosurevars(value)
        yield from [*captured.nonlocals.items(), *captured.globals.items()]
    elif inspect.ismethod(value):
        yield "__self__", value.__self__
    elif isinstance(value, type):
        yield from ((name, part) for name, part in vars(value).items() if inspect.isfunction(part))
    else:
        slots = {name for base in type(value).__mro__ for name in getattr(base, "__slots__", ())}
        yield from ((name, getattr(value, name)) for name in sorted(slots) if hasattr(value, name))
        yield from list(getattr(value, "__dict__", {}).items())


def _short(value: Any) -> str:
    try:
        return f"{value!r:.{SHOWN_CHARS}}"
    except Exception:  # a repr of the user's
        return f"a {type(value).__qualname__}"
