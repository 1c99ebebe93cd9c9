"""dask over lattica: each node of a graph is a task, and what it makes stays in the stores until it is used.

    from lattica.util.dask import enable_dask_on_lattica

    with enable_dask_on_lattica():
        dask.bag.from_sequence(lines).map(parse).frequencies().compute()
    total.compute(scheduler=lattica_dask_get)                      # or for one computation
    kept = lattica_dask_persist(bag)[0]                            # a bag whose parts lie in the stores

Names with `ray` in place of `lattica` are there as well.
"""

from lattica.util.dask.callbacks import RayDaskCallback, local_ray_callbacks, unpack_ray_callbacks
from lattica.util.dask.scheduler import (
    disable_dask_on_lattica,
    enable_dask_on_lattica,
    lattica_dask_get,
    lattica_dask_get_sync,
    lattica_dask_persist,
)

disable_dask_on_ray = disable_dask_on_lattica
enable_dask_on_ray = enable_dask_on_lattica
ray_dask_get = lattica_dask_get
ray_dask_get_sync = lattica_dask_get_sync
ray_dask_persist = lattica_dask_persist

LatticaDaskCallback = RayDaskCallback

__all__ = [
    "LatticaDaskCallback", "RayDaskCallback", "local_ray_callbacks", "unpack_ray_callbacks",
    "disable_dask_on_lattica", "disable_dask_on_ray", "enable_dask_on_lattica", "enable_dask_on_ray",
    "lattica_dask_get", "lattica_dask_get_sync", "lattica_dask_persist", "ray_dask_get", "ray_dask_get_sync",
    "ray_dask_persist",
]  # fmt: skip
