"""Which names actors have."""

from __future__ import annotations

from typing import Any

from lattica.actors import current


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """Names of the actors that live, detached or not, on any machine of the mesh: those of this program's namespace, or
    all, as {"name": …, "namespace": …}. A name that was given on another machine is known here a tenth of a second
    later."""
    runtime = current.get()
    found = [(namespace, name) for namespace, name in runtime.state("names")]
    if all_namespaces:
        return [{"name": name, "namespace": namespace} for namespace, name in found]
    return [name for namespace, name in found if namespace == runtime.namespace]
