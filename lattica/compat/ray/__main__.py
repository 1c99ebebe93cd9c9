"""`python -m lattica.compat.ray script.py …` runs a program of Ray's on lattica. See `lattica.compat.ray`."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from importlib.abc import InspectLoader
from types import CodeType, ModuleType

USAGE = "usage: python -m lattica.compat.ray (script.py | -m module) [arguments of the program]"


def main(argv: list[str]) -> None:
    """Become that program: it finds itself as `__main__`, with its own arguments, as under plain `python`."""
    if not argv or argv[0] in ("-h", "--help") or (argv[0] == "-m" and len(argv) < 2):
        sys.exit(f"{USAGE}\n\nIts `import ray` finds lattica. docs/compat.md says what differs.")
    if argv[0] == "-m":
        code, program = of_module(argv[1])
        sys.argv[:] = [str(program.__file__), *argv[2:]]
    else:
        code, program = of_script(argv[0])
        sys.argv[:] = argv
    sys.modules["__main__"] = program  # for good: what exit handlers and threads of the program look at is still it
    exec(code, program.__dict__)


def of_script(path: str) -> tuple[CodeType, ModuleType]:
    """The folder of the script comes first in `sys.path`, as it does under Python."""
    try:
        with io.open_code(os.path.abspath(path)) as file:
            code = compile(file.read(), path, "exec")
    except OSError as error:
        sys.exit(f"{USAGE}\n\ncannot read {path}: {error.strerror}")
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(os.path.realpath(path))  # -m has put the working directory there
    program = ModuleType("__main__")
    program.__file__, program.__builtins__ = path, __builtins__  # type: ignore[attr-defined]
    return code, program


def of_module(name: str) -> tuple[CodeType, ModuleType]:
    """A package is run by its `__main__`."""
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except ModuleNotFoundError:
        spec = None
    code = spec.loader.get_code(spec.name) if spec is not None and isinstance(spec.loader, InspectLoader) else None
    if spec is None or code is None:
        sys.exit(f"{USAGE}\n\nno module of that name that can be run: {name}")
    program = ModuleType("__main__")
    program.__file__, program.__spec__, program.__package__ = spec.origin, spec, spec.parent
    program.__builtins__ = __builtins__  # type: ignore[attr-defined]
    return code, program


if __name__ == "__main__":
    main(sys.argv[1:])
