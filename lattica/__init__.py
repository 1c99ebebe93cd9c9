"""lattica: Python functions and actors on machines that nobody put in one room. See README.md and docs/.

    import lattica

    @lattica.remote
    def square(x):
        return x * x

    print(lattica.get([square.remote(n) for n in range(4)]))

The names below are Ray's, where Ray has one. They are imported when first used, so that the node and the zygote, which
import this package too, carry none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lattica._version import __version__

if TYPE_CHECKING:
    from lattica import actor, exceptions, runtime_env, util
    from lattica.actors.context import get_gpu_ids, get_runtime_context
    from lattica.actors.generators import DynamicObjectRefGenerator, ObjectRefGenerator
    from lattica.actors.handles import get_actor, kill, method
    from lattica.actors.refs import ObjectRef
    from lattica.actors.remote import remote
    from lattica.session import (
        available_resources,
        cancel,
        cluster_resources,
        get,
        init,
        is_initialized,
        nodes,
        put,
        shutdown,
        wait,
    )
    from lattica.trace import timeline

_HOMES = {
    "lattica.session": ("available_resources", "cancel", "cluster_resources", "get", "init", "is_initialized", "nodes",
                        "put", "shutdown", "wait"),
    "lattica.actors.remote": ("remote",),
    "lattica.actors.handles": ("get_actor", "kill", "method"),
    "lattica.actors.refs": ("ObjectRef",),
    "lattica.actors.generators": ("DynamicObjectRefGenerator", "ObjectRefGenerator"),
    "lattica.actors.context": ("get_gpu_ids", "get_runtime_context"),
    "lattica.trace": ("timeline",),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = ("actor", "errors", "exceptions", "remote_function", "runtime_context", "runtime_env", "util")


def __getattr__(name: str) -> Any:
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"lattica.{name}")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'lattica' has no attribute {name!r}")
    if home != "lattica.session":
        importlib.import_module("lattica.session")  # the first use of a remote function starts a session
    module = importlib.import_module(home)
    for each in _HOMES[home]:
        globals()[each] = getattr(module, each)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted([*_HOME_OF, *_MODULES, "__version__"])


__all__ = [
    "DynamicObjectRefGenerator", "ObjectRefGenerator",
    "ObjectRef", "__version__", "actor", "available_resources", "cancel", "cluster_resources", "exceptions", "get",
    "get_actor", "get_gpu_ids", "get_runtime_context", "init", "is_initialized", "kill", "method", "nodes", "put",
    "remote", "runtime_env", "shutdown", "timeline", "util", "wait",
]  # fmt: skip
