"""The backend that `register_lattica` gives to joblib: batches of calls as tasks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from joblib._parallel_backends import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
)
from joblib.parallel import BatchedCalls

import lattica
from lattica.util.executor import LatticaExecutor
from lattica.util.joblib.arguments import Stored, run

WORKER_MODE = 1  # Ray's numbers, which the runtime context has
LARGE_BYTES = 1_000_000  # joblib's default of max_nbytes


class LatticaBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Runs joblib's batches as tasks, on all machines.

    remote_args: options of the tasks (Ray's name for it works as well), here or in `Parallel(…, remote_args=…)`.
    """

    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        remote_args: Mapping[str, Any] | None = None,
        ray_remote_args: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._remote_args = remote_args or ray_remote_args
        self._pool: LatticaExecutor | None = None
        self._stored: Stored | None = None
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads, **kwargs)

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many batches run at a time; negative numbers count from all CPUs down. Raises ValueError for 0."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(1, _cpus() + 1 + n_jobs)

    def configure(
        self,
        n_jobs: int | None = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        remote_args: Mapping[str, Any] | None = None,
        ray_remote_args: Mapping[str, Any] | None = None,
        max_nbytes: int | None = LARGE_BYTES,
        **others: Any,
    ) -> int:
        """Begin; the number of batches at a time. others: `initializer` and `initargs`, for each worker process before
        its first batch; joblib's options for its own processes mean nothing here."""
        count = self.effective_n_jobs(n_jobs)
        if count == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        others = {**self.backend_kwargs, **others}
        self._pool = LatticaExecutor(
            count,
            initializer=others.get("initializer"),
            initargs=others.get("initargs", ()),
            remote_args=remote_args or ray_remote_args or self._remote_args or _nested(),
        )
        self._stored = None if max_nbytes is None else Stored(max_nbytes)
        return count

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Future[Any]:
        """Run a batch; `callback` hears of the future when it is done."""
        if self._pool is None:
            raise RuntimeError("the backend was ended by joblib before this batch came")
        calls, refs = self._stored.take_out(func) if self._stored and isinstance(func, BatchedCalls) else ([], [])
        if refs:
            empty = copy.copy(func)
            empty.items = []  # type: ignore[attr-defined]
            future = self._pool.submit(run, empty, calls, *refs)
        else:
            future = self._pool.submit(func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """What the batch returned; raises what it raised."""
        return out.result()

    def terminate(self) -> None:
        """End a call. Workers stay for the next one, as lattica's always do for a while."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = self._stored = None
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Interrupt what runs; begin anew if more may come."""
        if self._pool is not None:
            self._pool.terminate_workers()
            self._pool = self._stored = None
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel, **self.parallel._backend_kwargs)


def _nested() -> dict[str, Any]:
    """Options of batches that a task submits: joblib waits for them without lending the task's CPU, so that they must
    not need one."""
    return {"num_cpus": 0} if lattica.get_runtime_context().mode == WORKER_MODE else {}


def _cpus() -> int:
    if not lattica.is_initialized():
        lattica.init()
    return max(1, int(lattica.cluster_resources().get("CPU", 1)))
