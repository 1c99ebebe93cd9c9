"""Public names of Ray Core with their parameters and defaults, and how lattica's differ from them.

    benchmarks/.envs/ray-2.60.0/bin/python lattica/testing/signatures.py > tests/golden/ray-2.60-signatures.json

writes down what Ray has, by Ray's own Python (this file needs nothing but the standard library); joblib and dask must
be importable there. `differences` compares that with lattica name by name, parameter by parameter, default by default;
`tests/test_ray_signatures.py` holds it against the table in docs/ray-differences.md.

A name is public if its module's `__all__` says so or, without one, if it has no underscore and is defined there.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

MODULES = (
    "", "actor", "exceptions", "remote_function", "runtime_context", "runtime_env", "util", "util.accelerators",
    "util.actor_pool", "util.check_serialize", "util.dask", "util.debug", "util.helpers", "util.joblib",
    "util.metrics", "util.multiprocessing", "util.placement_group", "util.queue", "util.scheduling_strategies",
    "util.serialization", "util.state",
)  # fmt: skip
"""Modules of Ray that are Ray Core's, below `ray`. Not among them: the libraries (data, train, tune, serve, rllib),
compiled graphs, the jobs' HTTP client, Ray's own tests, and what Ray itself calls deprecated (`util.iter`)."""
OTHERS = {"autoscaler", "data", "internal", "widgets", "workflow", "collective", "iter", "pdb", "ray_debugpy"}
"""Modules that `__all__` of a module above names, and that are none of Ray Core's."""
KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: "positional",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "any",
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.KEYWORD_ONLY: "keyword",
    inspect.Parameter.VAR_KEYWORD: "**",
}
HANDED_OUT = {"ActorClass", "ActorHandle", "ActorMethod", "ClientBuilder", "ObjectRefGenerator", "PlacementGroup",
              "RemoteFunction", "RuntimeContext", "StateApiClient"}  # fmt: skip
"""Classes that programs are handed instances of: what their constructors take is nobody's business."""
Facts = dict[str, Any]
"""Of one name: kind, and parameters as [name, kind, default?], or the value, or what exceptions it is caught by."""

METHOD_OPTIONS = (
    "num_returns", "concurrency_group", "max_task_retries", "retry_exceptions", "_generator_backpressure_num_objects",
    "_num_objects_per_yield", "enable_task_events", "tensor_transport",
)  # fmt: skip
"""What `ray.method` takes: a list inside that function, ray/actor.py line 691."""


def module(package: str, below: str) -> Any:
    """`ray.util.placement_group` the module, which a function of the same name hides. Raises ImportError."""
    name = f"{package}.{below}" if below else package
    importlib.import_module(name)
    return sys.modules[name]


def facts(thing: Any) -> Facts:
    """Of one function, class or value."""
    if inspect.ismodule(thing):
        return {"kind": "module"}
    if inspect.isclass(thing) and issubclass(thing, BaseException):
        caught = [kind.__name__ for kind in thing.__mro__[1:] if kind not in (object, BaseException)]
        return {"kind": "exception", "caught": caught}
    if inspect.isclass(thing):
        return {"kind": "class", "parameters": None if thing.__name__ in HANDED_OUT else parameters(thing)}
    if isinstance(thing, property) or inspect.isgetsetdescriptor(thing) or inspect.ismemberdescriptor(thing):
        return {"kind": "property"}
    if callable(thing):
        return {"kind": "function", "parameters": parameters(thing)}
    return {"kind": "value", "value": plain(thing)}


def parameters(thing: Any) -> list[list[str]] | None:
    """None if Python cannot tell: some of Ray's are written in C."""
    if inspect.isclass(thing) and thing.__init__ is object.__init__ and thing.__new__ is object.__new__:
        return []
    try:
        found = list(inspect.signature(thing).parameters.values())
    except (ValueError, TypeError):
        return None
    return [
        [each.name, KINDS[each.kind], *([plain(each.default)] if each.default is not each.empty else [])]
        for each in found
    ]


def plain(value: Any) -> str:
    """A value in words that are the same in every process."""
    if isinstance(value, bool | int | float | str | bytes | None) and not isinstance(value, enum.Enum):
        return repr(value)
    if isinstance(value, list | tuple | dict | set):
        return repr(value) if not value else f"a {type(value).__name__}"
    return f"a {type(value).__name__}"


def public_names(found: Any) -> list[str]:
    """See the top of the file."""
    if (said := getattr(found, "__all__", None)) is not None:
        return sorted(name for name in {*said} - {"__version__"} - OTHERS if hasattr(found, name))
    own = {name: thing for name, thing in vars(found).items() if getattr(thing, "__module__", "") == found.__name__}
    return sorted(name for name, thing in own.items() if not name.startswith("_") and not isinstance(thing, TypeVar))


def members(owner: type, package: str) -> Iterator[tuple[str, Any]]:
    """Public methods and properties of a class that its package wrote."""
    for name in dir(owner):
        if name.startswith("_"):
            continue
        home = next(kind for kind in owner.__mro__ if name in vars(kind))
        if home.__module__.split(".")[0] == package and home is not owner.__class__:
            found = inspect.getattr_static(owner, name)
            bound = isinstance(found, classmethod | staticmethod)
            yield name, getattr(owner, name) if bound else found


def of_ray() -> dict[str, Facts]:
    """Every public name of Ray Core. In Ray's own Python."""
    table: dict[str, Facts] = {}
    described: set[type] = set()  # some classes have two names
    for below in MODULES:
        here = ".".join(["ray", *([below] if below else [])])
        found = module("ray", below)
        for name in public_names(found):
            thing = getattr(found, name)
            table[f"{here}.{name}"] = facts(thing)
            if inspect.isclass(thing) and not issubclass(thing, BaseException | enum.Enum) and thing not in described:
                described.add(thing)
                for member, inside in members(thing, "ray"):
                    table[f"{here}.{name}.{member}"] = facts(inside)
    options = importlib.import_module("ray._common.ray_option_utils")
    for what, given in (("task", options.task_options), ("actor", options.actor_options)):
        said = [[name, "keyword", plain(option.default_value)] for name, option in sorted(given.items())]
        table[f"ray.remote.{what}"] = {"kind": "options", "parameters": said}
    table["ray.method.options"] = {"kind": "options", "parameters": [[name, "keyword"] for name in METHOD_OPTIONS]}
    return dict(sorted(table.items()))


def ours(name: str) -> Facts | None:
    """What lattica has under that name of Ray's; None if nothing."""
    if name in (given := _our_options()):
        return {"kind": "options", "parameters": [[option, "keyword"] for option in given[name]]}
    parts = name.split(".")[1:]
    for split in range(len(parts) - 1, -1, -1):
        if ".".join(parts[:split]) in MODULES:
            break
    try:
        if split == 0 and parts[0] in (odd := module("lattica", "compat.ray_names")).__all__:
            found = odd
        else:
            found = module("lattica", ".".join(parts[:split]))
        for depth, part in enumerate(parts[split:]):
            # As a property it says nothing of itself through its class; as a function it needs no binding.
            found = _static(found, part) if depth else getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return facts(found) | _also_caught(found)


def _also_caught(found: Any) -> Facts:
    """An error of ours is caught by Ray's name for one of its classes, too."""
    if not (inspect.isclass(found) and issubclass(found, BaseException)):
        return {}
    named = vars(module("lattica", "exceptions")).items()
    names = [name for name, kind in named if inspect.isclass(kind) and issubclass(found, kind)]
    return {"caught": [*facts(found)["caught"], *names]}


def _static(owner: Any, name: str) -> Any:
    found = inspect.getattr_static(owner, name)
    return getattr(owner, name) if isinstance(found, classmethod | staticmethod) else found


def _our_options() -> dict[str, list[str]]:
    from lattica.actors import options

    return {
        "ray.remote.task": sorted(options.TASK),
        "ray.remote.actor": sorted(options.ACTOR),
        "ray.method.options": sorted(options.METHOD),
    }


def differences(table: Mapping[str, Facts], look: Callable[[str], Facts | None] = ours) -> dict[str, str]:
    """What differs -> how. `ray.get` names a name, `ray.get(timeout)` a parameter of it.

    A class that is missing stands for its methods.
    """
    found: dict[str, str] = {}
    for name, theirs in table.items():
        if any(found.get(name.rsplit(".", up)[0]) == "missing" for up in range(1, name.count("."))):
            continue
        mine = look(name)
        if mine is None:
            found[name] = "missing"
        elif theirs["kind"] != mine["kind"]:
            found[name] = f"a {mine['kind']} instead of a {theirs['kind']}"
        elif theirs["kind"] == "value" and theirs["value"] != mine["value"]:
            found[name] = f"{mine['value']} instead of {theirs['value']}"
        elif theirs["kind"] == "exception":
            found |= {f"{name}({each})": "not caught by it" for each in theirs["caught"] if each not in mine["caught"]}
        elif theirs.get("parameters") is not None:
            options = theirs["kind"] == "options"
            _compare(name, theirs["parameters"], mine.get("parameters"), found, defaults=not options)
    return found


def _compare(
    name: str, theirs: list[list[str]], mine: list[list[str]] | None, found: dict[str, str], *, defaults: bool
) -> None:
    """Parameters. Where ours takes any names and Ray's none of them, ours is the wider one: no difference."""
    said = {parameter[0]: parameter for parameter in mine or []}
    kinds = {parameter[1] for parameter in mine or []}
    for place, parameter in enumerate(theirs):
        called, kind = parameter[:2]
        if kind in ("*", "**"):
            if kind not in kinds and mine is not None:
                found[f"{name}({kind}{called})"] = "missing"
            continue
        own = said.pop(called, None)
        if own is None:
            if not (kind == "keyword" and "**" in kinds and defaults):
                found[f"{name}({called})"] = "missing"
        elif kind == "any" and (own[1] == "keyword" or mine is None or mine.index(own) != place):
            found[f"{name}({called})"] = "elsewhere"
        elif defaults and parameter[2:] != own[2:]:
            found[f"{name}({called})"] = f"{_default(own)} instead of {_default(parameter)}"
    for called, own in said.items():
        if own[1] not in ("*", "**"):
            found[f"{name}({called})"] = "added"


def _default(parameter: list[str]) -> str:
    return f"default {parameter[2]}" if len(parameter) > 2 else "no default"


def main() -> None:
    """Write the table to stdout."""
    ray = importlib.import_module("ray")
    json.dump({"ray": ray.__version__, "names": of_ray()}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
