"""Hooks into a graph's tasks, as Ray has them: `RayDaskCallback` and what belongs to it.

    class Timer(RayDaskCallback):
        def _ray_pretask(self, key, object_refs):           # in the worker, before the node
            return time.time()

        def _ray_posttask(self, key, result, pre_state):    # after it, with what the other answered
            print(key, time.time() - pre_state)

    with Timer():
        total.compute(scheduler=ray_dask_get)

Hooks may also be given as arguments: `RayDaskCallback(ray_postsubmit=f)`. dask's own (`pretask`, `finish`, ...) are
heard as well, of this class or of dask's.

| hook | where and when | given |
|---|---|---|
| `ray_presubmit` | here, before a task; an answer that is not None takes its place | task, key, deps |
| `ray_postsubmit` | here, after it was submitted | task, key, deps, object_ref |
| `ray_pretask`, `ray_posttask` | in the worker, around it | key, object_refs; key, result, pre_state |
| `ray_postsubmit_all` | here, when all are | object_refs, dsk |
| `ray_finish` | here, at the end | result |
"""

from __future__ import annotations

import contextlib
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

from dask.callbacks import Callback

HOOKS = ("ray_presubmit", "ray_postsubmit", "ray_pretask", "ray_posttask", "ray_postsubmit_all", "ray_finish")

RayCallback = namedtuple("RayCallback", HOOKS)  # type: ignore[misc]
"""The hooks of one callback; None where it has none."""
RayCallbacks = namedtuple("RayCallbacks", [f"{hook}_cbs" for hook in HOOKS])  # type: ignore[misc]
"""The same of several: a list for each hook."""


class RayDaskCallback(Callback):  # type: ignore[misc]
    """Hears of tasks while it is entered, or registered."""

    ray_active: ClassVar[set[Any]] = set()

    def __init__(self, **kwargs: Any) -> None:
        for hook in HOOKS:
            given: Callable[..., Any] | None = kwargs.pop(hook, None)
            if given is not None:
                setattr(self, f"_{hook}", given)
        super().__init__(**kwargs)

    @property
    def _ray_callback(self) -> Any:
        return RayCallback(*[getattr(self, f"_{hook}", None) for hook in HOOKS])

    def __enter__(self) -> RayDaskCallback:
        RayDaskCallback.ray_active.add(self._ray_callback)
        super().__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        RayDaskCallback.ray_active.discard(self._ray_callback)

    def register(self) -> None:
        """Hear of everything from now on."""
        RayDaskCallback.ray_active.add(self._ray_callback)
        super().register()

    def unregister(self) -> None:
        """No more."""
        RayDaskCallback.ray_active.discard(self._ray_callback)
        super().unregister()


@contextlib.contextmanager
def local_ray_callbacks(callbacks: Iterable[Any] | None = None) -> Iterator[Any]:
    """These callbacks; without any, those that are active, which graphs within this one do not hear again."""
    if callbacks is not None:
        yield [each._ray_callback if isinstance(each, RayDaskCallback) else each for each in callbacks]
        return
    active, RayDaskCallback.ray_active = RayDaskCallback.ray_active, set()
    try:
        yield active
    finally:
        RayDaskCallback.ray_active = active


def unpack_ray_callbacks(cbs: Iterable[Any]) -> Any:
    """The hooks of several callbacks by kind. `ray_pretask` and `ray_posttask` of one callback stay at one place."""
    each = list(cbs)
    lists = {hook: [getattr(callback, hook) for callback in each] for hook in HOOKS}
    for hook in HOOKS:
        if hook not in ("ray_pretask", "ray_posttask") or not any(lists["ray_pretask"] + lists["ray_posttask"]):
            lists[hook] = [one for one in lists[hook] if one is not None]
    return RayCallbacks(*[lists[hook] for hook in HOOKS])
