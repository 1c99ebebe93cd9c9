"""joblib, and so scikit-learn, over lattica's tasks.

    from lattica.util.joblib import register_lattica

    register_lattica()
    with joblib.parallel_config("lattica"):                # n_jobs=-1: all CPUs of all machines
        joblib.Parallel(n_jobs=-1)(joblib.delayed(score)(text) for text in texts)
        GridSearchCV(...).fit(X, y)

Arguments with more than `max_nbytes` (joblib's own option, 1M) go to shared memory once and are read in place there,
read-only, as joblib's memory maps are.
"""

from __future__ import annotations


def register_lattica(name: str = "lattica") -> None:
    """Make `name` a backend of joblib. Raises ImportError where joblib is not installed."""
    try:
        from joblib import register_parallel_backend
    except ImportError as error:
        raise ImportError("lattica.util.joblib needs joblib: pip install joblib") from error

    from lattica.util.joblib.backend import LatticaBackend

    register_parallel_backend(name, LatticaBackend)


def register_ray() -> None:
    """The same under the name that programs for Ray say: `parallel_config("ray")`."""
    register_lattica("ray")


__all__ = ["register_lattica", "register_ray"]
