"""What a worker does with a node of a dask graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dask._task_spec import DataNode, Task

import lattica


def run(node: Any, names: list[Any], /, *values: Any) -> Any:
    """The node's value; names: of what it needs, whose values follow.

    What can be read once only becomes a list: several nodes may read it, each in a process of its own.
    """
    value = with_values(node)(dict(zip(names, values)))
    return list(value) if isinstance(value, Iterator) else value


def run_heard(node: Any, names: list[Any], key: Any, pretasks: list[Any], posttasks: list[Any], /, *values: Any) -> Any:
    """The same between the hooks of callbacks."""
    states = [pretask(key, values) if pretask is not None else None for pretask in pretasks]
    value = run(node, names, *values)
    for posttask, state in zip(posttasks, states):
        if posttask is not None:
            posttask(key, value, state)
    return value


def with_values(part: Any) -> Any:
    """A part of a graph without refs: dask writes into a node what a persisted collection has in its place."""
    if isinstance(part, lattica.ObjectRef):
        return lattica.get(part)
    if type(part) is DataNode:
        return DataNode(part.key, lattica.get(part.value)) if isinstance(part.value, lattica.ObjectRef) else part
    if isinstance(part, Task):
        args = tuple(with_values(arg) for arg in part.args)
        kwargs = {name: with_values(arg) for name, arg in part.kwargs.items()}
        if all(new is old for new, old in zip(args, part.args)) and kwargs == part.kwargs:
            return part
        part = part.copy()
        part.args, part.kwargs = args, kwargs
        return part
    if type(part) is dict and any(isinstance(value, DataNode | Task) for value in part.values()):  # a fused chain
        found = {key: with_values(value) for key, value in part.items()}
        return part if all(found[key] is part[key] for key in part) else found
    return part
