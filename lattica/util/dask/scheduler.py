"""The schedulers for dask. A graph is submitted as a whole, in dask's own order: lattica waits for the arguments.

Chains of nodes become one task, as with dask's own processes.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping
from typing import Any

import dask
from dask._task_spec import Alias, DataNode, Task, convert_legacy_graph, cull, fuse_linear_task_spec
from dask.callbacks import local_callbacks, unpack_callbacks
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph
from dask.order import order
from dask.utils import ensure_dict

import lattica
from lattica.errors import TaskError
from lattica.util.dask.callbacks import local_ray_callbacks, unpack_ray_callbacks
from lattica.util.dask.nodes import run, run_heard
from lattica.util.raised import plain

NAMED_MAX = 80  # characters of a key in a task's name


def enable_dask_on_lattica(shuffle: str | None = "tasks", use_shuffle_optimization: bool | None = True) -> Any:
    """Make lattica dask's scheduler, or in a `with` for a while.

    shuffle: how bags and data frames are shuffled; "disk" works on one machine only. use_shuffle_optimization: Ray's
    argument for releases of dask before 2025, without a meaning here.
    """
    return dask.config.set({"scheduler": lattica_dask_get, "dataframe.shuffle.method": shuffle})


def disable_dask_on_lattica() -> Any:
    """dask's own scheduler again, or in a `with` for a while."""
    return dask.config.set({"scheduler": None, "dataframe.shuffle.method": None})


def lattica_dask_persist(*args: Any, **kwargs: Any) -> Any:
    """`dask.persist` whose collections' parts stay in the stores: only a later `compute` on lattica can read them."""
    return dask.persist(*args, scheduler=lattica_dask_get, lattica_persist=True, **kwargs)


def lattica_dask_get(dsk: Any, keys: Any, **kwargs: Any) -> Any:
    """Values of `keys`, nested as they are, of the graph `dsk`: a scheduler for dask.

    kwargs: `remote_args`, options of all tasks (those of `dask.annotate(remote_args=…)` go before);
    `lattica_persist=True` for refs instead of values; `callbacks` of dask, `ray_callbacks` (`RayDaskCallback`). Ray's
    names for the first two work as well. dask's other options (`num_workers`, `pool`) have no meaning here.

    Raises what a node has raised; the others are cancelled then.
    """
    return _get(dsk, keys, kwargs, one_by_one=False)


def lattica_dask_get_sync(dsk: Any, keys: Any, **kwargs: Any) -> Any:
    """The same, one node after the other: for debugging."""
    return _get(dsk, keys, kwargs, one_by_one=True)


def _get(dsk: Any, keys: Any, kwargs: dict[str, Any], *, one_by_one: bool) -> Any:
    if "resources" in kwargs or "resources" in dask.get_annotations():
        raise ValueError('say remote_args={"resources": {...}}, not resources={...}')
    persist = kwargs.get("lattica_persist") or kwargs.get("ray_persist")
    remote_args = kwargs.get("remote_args") or kwargs.get("ray_remote_args") or {}
    if not isinstance(dsk, Mapping):  # an expression, in dask since 2025
        dsk = dsk._optimized_dsk if hasattr(dsk, "_optimized_dsk") else dsk.__dask_graph__()
    annotated = _annotated(dsk)
    wanted = set(flatten(keys)) if isinstance(keys, list) else {keys}
    graph = cull(convert_legacy_graph(ensure_dict(dsk)), wanted)
    with (
        local_callbacks(kwargs.get("callbacks")) as callbacks,
        local_ray_callbacks(kwargs.get("ray_callbacks")) as hooks,
    ):
        if not annotated and not hooks:  # a key may have options of its own, and who listens hears of each
            graph = fuse_linear_task_spec(graph, wanted)
        work = _Computation(graph, wanted, remote_args, annotated, callbacks, unpack_ray_callbacks(hooks))
        found = work.run(one_by_one, persist=bool(persist))
        result = _nested(keys, found)
        for finish in work.hooks.ray_finish_cbs:
            finish(result)
    return result


def _annotated(dsk: Any) -> dict[Any, dict[str, Any]]:
    """Options of tasks by key, as dask.annotate has them."""
    now = _options(dask.get_annotations())
    found: dict[Any, dict[str, Any]] = {}
    if isinstance(dsk, HighLevelGraph):
        for layer in dsk.layers.values():
            if given := now | _options(layer.annotations or {}):
                found.update(dict.fromkeys(layer.get_output_keys(), given))
        return found
    return dict.fromkeys(dsk, now) if now else found


def _options(annotations: Mapping[str, Any]) -> dict[str, Any]:
    if "resources" in annotations:
        raise ValueError('say remote_args={"resources": {...}}, not resources={...}')
    return dict(annotations.get("remote_args") or annotations.get("ray_remote_args") or {})


def _nested(keys: Any, found: Mapping[Any, Any]) -> Any:
    return tuple(_nested(key, found) for key in keys) if isinstance(keys, list) else found[keys]


class _Computation:
    """One graph on its way."""

    def __init__(
        self,
        graph: dict[Any, Any],
        wanted: set[Any],
        remote_args: Mapping[str, Any],
        annotated: Mapping[Any, dict[str, Any]],
        callbacks: Any,
        hooks: Any,
    ) -> None:
        self.hooks = hooks
        self._graph, self._wanted = graph, wanted
        self._remote_args, self._annotated = dict(remote_args), annotated
        self._functions: dict[Any, Any] = {}
        self._uses = Counter(dep for node in graph.values() for dep in node.dependencies)
        self._values: dict[Any, Any] = {}  # refs, and literals that nobody needed elsewhere so far
        self._submitted: weakref.WeakSet[lattica.ObjectRef] = weakref.WeakSet()
        self._of_ref: weakref.WeakKeyDictionary[lattica.ObjectRef, Any] = weakref.WeakKeyDictionary()
        _, self._start_state, self._pretask, self._posttask, self._finish = unpack_callbacks(callbacks)
        self._started = unpack_callbacks(callbacks)[0]
        self._heard = bool(callbacks)
        self.state: dict[str, Any] = {
            "waiting": {}, "ready": [], "running": set(), "finished": set(), "released": set(), "cache": {},
            "dependencies": {key: set(node.dependencies) for key, node in graph.items()} if callbacks else {},
        }  # fmt: skip
        """As far as dask's callbacks look at it."""

    def run(self, one_by_one: bool, *, persist: bool) -> dict[Any, Any]:
        """Value, or ref, of each wanted key."""
        for start in self._started:
            start(self._graph)
        for start_state in self._start_state:
            start_state(self._graph, self.state)
        failed = True
        try:
            self._submit(one_by_one)
            found = {key: self._values[key] for key in self._wanted}
            for postsubmit_all in self.hooks.ray_postsubmit_all_cbs:
                postsubmit_all(list(found.values()), self._graph)
            if self._heard:
                self._tell()
            if not persist:
                found = self._fetch(found)
            failed = False
            return found
        finally:
            if failed:
                for ref in list(self._submitted):
                    lattica.cancel(ref)
            for finish in self._finish:
                finish(self._graph, self.state, failed)

    def _submit(self, one_by_one: bool) -> None:
        priorities = order(self._graph)
        for key in sorted(self._graph, key=priorities.__getitem__):
            node = self._graph[key]
            value = self._value_of(key, node)
            self._values[key] = value
            if one_by_one and isinstance(value, lattica.ObjectRef):
                lattica.wait([value])
            for dep in node.dependencies:
                self._uses[dep] -= 1
                if not self._uses[dep] and dep not in self._wanted:
                    del self._values[dep]  # the tasks that need it keep it

    def _value_of(self, key: Any, node: Any) -> Any:
        if isinstance(node, DataNode):
            return node.value
        if isinstance(node, Alias):
            return self._values[node.target]
        assert isinstance(node, Task), f"dask has a new kind of node: {type(node)}"
        names, hooks = list(node.dependencies), self.hooks
        deps = {name: self._values[name] for name in names} if any(hooks) else {}
        for presubmit in hooks.ray_presubmit_cbs:
            if (instead := presubmit(node, key, deps)) is not None:
                return instead
        for pretask in self._pretask:
            pretask(key, self._graph, self.state)
        around = [key, hooks.ray_pretask_cbs, hooks.ray_posttask_cbs] if hooks.ray_pretask_cbs else []
        ref = self._remote(key).remote(node, names, *around, *map(self._ref, names))
        for postsubmit in hooks.ray_postsubmit_cbs:
            postsubmit(node, key, deps, ref)
        self._submitted.add(ref)
        if self._heard:
            self.state["running"].add(key)
            self._of_ref[ref] = key
        return ref

    def _ref(self, key: Any) -> lattica.ObjectRef:
        value = self._values[key]
        if not isinstance(value, lattica.ObjectRef):
            value = self._values[key] = lattica.put(value)
        ref: lattica.ObjectRef = value
        return ref

    def _remote(self, key: Any) -> Any:
        """The remote function with the options of this key, and the name of its layer."""
        name = str(key[0] if isinstance(key, tuple) else key)[:NAMED_MAX]
        given = self._annotated.get(key, {})
        known = (name, tuple(sorted(given.items()))) if all(map(_is_plain, given.values())) else None
        found = self._functions.get(known) if known else None
        if found is None:
            found = lattica.remote(**{"name": f"dask:{name}", **self._remote_args, **given})(
                run_heard if self.hooks.ray_pretask_cbs else run
            )
            if known and len(self._functions) < 1000:
                self._functions[known] = found
        return found

    def _tell(self) -> None:
        """Hear what is done, for dask's callbacks."""
        refs = list(self._of_ref)
        while refs:
            [ref], refs = lattica.wait(refs)
            key = self._of_ref[ref]
            self.state["running"].discard(key)
            self.state["finished"].add(key)
            if self._posttask:
                result = self._fetch({key: ref})[key]
                for posttask in self._posttask:
                    posttask(key, result, self._graph, self.state, "lattica")

    def _fetch(self, found: dict[Any, Any]) -> dict[Any, Any]:
        """Values for refs. Raises as soon as one of them has failed."""
        refs = {key: value for key, value in found.items() if isinstance(value, lattica.ObjectRef)}
        try:
            return found | dict(zip(refs, lattica.get(list(refs.values()))))
        except TaskError as error:
            raised = plain(error)
        raise raised


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool | None)
