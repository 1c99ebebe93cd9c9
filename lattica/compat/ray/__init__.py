"""lattica under Ray's name: `import ray` finds it, in this process and in the workers of its sessions.

    python -m lattica.compat.ray script.py --its arguments     a program of Ray's, unchanged
    from lattica.compat import ray                             at the top of a program; `import ray` follows it

Importing this module is what puts it in place. It has the names of `lattica`, and Ray's where those are others; Ray's
libraries (data, train, tune, serve, rllib) are not here. What differs: docs/compat.md and docs/ray-differences.md.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import lattica
from lattica.actors.equipment import WORKER_IMPORTS
from lattica.compat import ray_names
from lattica.compat.alias import Alias

__version__ = ray_names.RELEASE
"""As programs ask for it. `lattica.__version__` is ours."""
ROOMS = {
    "actor": "lattica.actor",
    "cloudpickle": "cloudpickle",
    "exceptions": "lattica.exceptions",
    "remote_function": "lattica.remote_function",
    "runtime_context": "lattica.runtime_context",
    "runtime_env": "lattica.runtime_env",
    "util": "lattica.util",
}


def _missing(name: str) -> str:
    return f"No module named {name!r}: lattica stands in for ray here, and has Ray Core only (docs/ray-differences.md)"


def _install() -> None:
    """Be `ray` from now on. What Ray itself had loaded in this process is forgotten, not undone."""
    sys.meta_path[:] = [Alias("ray", ROOMS, _missing), *(f for f in sys.meta_path if not isinstance(f, Alias))]
    for name in [name for name in sys.modules if name.split(".")[0] == "ray"]:
        del sys.modules[name]
    sys.modules["ray"] = sys.modules[__name__]
    said = [name for name in os.environ.get(WORKER_IMPORTS, "").split(",") if name]
    if __name__ not in said:
        os.environ[WORKER_IMPORTS] = ",".join([*said, __name__])


def __getattr__(name: str) -> Any:
    if name in ROOMS:
        __import__(f"ray.{name}")
        return sys.modules[f"ray.{name}"]
    if name in lattica.__all__:
        return getattr(lattica, name)
    if name in ray_names.__all__:
        return getattr(ray_names, name)
    raise AttributeError(
        f"module 'ray' has no attribute {name!r}: lattica stands in for ray here, and has no such name"
    )


def __dir__() -> list[str]:
    return sorted({*lattica.__all__, *ray_names.__all__, *ROOMS, "__version__"})


_install()
