"""The standard library's `multiprocessing.Pool`, whose processes are actors on all machines.

    with Pool() as pool:
        pool.map(score, texts)
        for value in pool.imap_unordered(score, texts, chunksize=16): ...

Each process has one batch at a time, and the next goes to whichever is free. Beside the standard arguments Ray's are
taken: `ray_address`, `ray_remote_args`.
"""

from __future__ import annotations

import logging
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from functools import cache, partial
from itertools import islice
from multiprocessing.pool import RemoteTraceback  # type: ignore[attr-defined]
from typing import Any

import lattica
from lattica.errors import ActorDiedError, ActorError, ConfigError, TaskError
from lattica.util.batches import Arguments, Outcome, PoolProcess
from lattica.util.completions import Completions, send_now
from lattica.util.multiprocessing.results import AsyncResult, IMapIterator
from lattica.util.scheduling_strategies import NodeAffinitySchedulingStrategy

log = logging.getLogger("lattica")

Settled = Callable[[list[Outcome]], None]


class _Process:
    """One actor of a pool, and how many batches it was given."""

    def __init__(self, actor: Any) -> None:
        self.actor, self.batches = actor, 0


class Pool:
    """A pool of processes that run calls.

    processes: how many; None for as many as the machines have CPUs. They take no CPU from tasks unless
    `ray_remote_args` says {"num_cpus": 1}; without a place in there, each machine gets its share by its CPUs.
    initializer, initargs: called in each process when it starts. maxtasksperchild: after so many batches a process is
    replaced by a new one. context: means nothing here.
    ray_address: for `lattica.init`, if there is no session yet. ray_remote_args: options of the actors.

    A process that dies ends what it ran in an error (ActorDiedError), and is replaced.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] | None = None,
        maxtasksperchild: int | None = None,
        context: Any = None,
        ray_address: str | None = None,
        ray_remote_args: Mapping[str, Any] | None = None,
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if context:
            log.warning("Pool: the argument 'context' has no meaning here: processes are lattica's workers")
        self.processes = _begin_session(processes, ray_address)
        self._initializer = (initializer, tuple(initargs or ())) if initializer else None
        self._batches_max = maxtasksperchild
        self._remote_args = dict(ray_remote_args or {})
        self._places = _places(self.processes, self._remote_args)
        self._completions = Completions("lattica-pool", daemon=True)
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Any, list[Arguments], Settled]] = deque()
        self._pool = [_Process(self._new_actor()) for _ in range(self.processes)]
        self._idle = deque(self._pool)
        self._last: lattica.ObjectRef | None = None  # of the last batch that a process was given
        self._unsettled = 0  # batches whose results nobody has been told
        self._iterators: weakref.WeakSet[IMapIterator] = weakref.WeakSet()
        self._kept: set[IMapIterator] = set()  # those that end: they are run to it though nobody reads them
        self._closed = self._terminated = False
        if self._initializer is not None:
            try:
                lattica.get([process.actor.ping.remote() for process in self._pool])
            except BaseException:
                self.terminate()
                raise

    # -- calls

    def apply(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        kwds: Mapping[str, Any] | None = None,
    ) -> Any:
        """`func(*args, **kwargs)` in some process; its result. kwds: the standard library's name for kwargs."""
        return self.apply_async(func, args, kwargs, kwds=kwds).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        kwds: Mapping[str, Any] | None = None,
    ) -> AsyncResult:
        """The same with an answer at once. callback: hears the result; error_callback: what was raised."""
        self._check_running()
        result = AsyncResult(self, 1, callback, error_callback, single=True)
        call = (tuple(args or ()), dict(kwargs or kwds or {}))
        self.run(func, [call], partial(result.settled, 0))
        return result

    def map(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """`func` of each item; a list of the results. chunksize: items that a process gets at a time."""
        values: list[Any] = self.map_async(func, iterable, chunksize).get()
        return values

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        """The same with an answer at once. callback: hears the list; error_callback: the first error."""
        return self._map(func, [((item,), {}) for item in iterable], chunksize, callback, error_callback)

    def starmap(
        self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[Any]:
        """`func(*item)` for each item; a list of the results."""
        values: list[Any] = self.starmap_async(func, iterable, chunksize).get()
        return values

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        """The same with an answer at once."""
        return self._map(func, [(tuple(item), {}) for item in iterable], chunksize, callback, error_callback)

    def imap(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = 1) -> IMapIterator:
        """An iterator over the results, in order; takes no more of `iterable` than it needs to keep all processes
        busy. chunksize None: chosen by the length, where there is one."""
        return self._imap(func, iterable, chunksize, ordered=True)

    def imap_unordered(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = 1
    ) -> IMapIterator:
        """The same in the order in which batches are done."""
        return self._imap(func, iterable, chunksize, ordered=False)

    # -- the end

    def close(self) -> None:
        """Take no more calls; what was taken is done, and the processes end after it."""
        if self._closed:
            return
        self._closed = True
        for iterator in list(self._iterators):  # nobody need read them for `join` to return
            iterator.feed(None)
        self._kept.clear()
        self._completions.close()
        self._release()

    def terminate(self) -> None:
        """Take no more calls and end the processes now; results that have not come are ActorDiedError."""
        self._closed = self._terminated = True
        with self._changed:
            waiting = list(self._waiting)
            self._waiting.clear()
            self._idle.clear()
        self._kept.clear()
        if lattica.is_initialized():
            for process in self._pool:
                lattica.kill(process.actor)
        error = ActorDiedError("the pool was terminated before this call could begin")
        for _, batch, settled in waiting:
            self._tell(settled, [(None, error)] * len(batch))
        self._completions.close()
        self._release()

    def join(self) -> None:
        """Wait until everything is done. Raises ValueError if the pool is not closed."""
        if not self._closed:
            raise ValueError("Pool is still running")
        with self._changed:
            self._changed.wait_for(lambda: not self._unsettled)
        self._completions.join()

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(self, *exc: object) -> None:
        self.terminate()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warnings.warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self, stacklevel=2)

    def __reduce__(self) -> tuple[Any, ...]:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __repr__(self) -> str:
        state = "CLOSE" if self._closed else "RUN"
        return f"<{type(self).__module__}.Pool state={state} pool_size={self.processes}>"

    # -- inside

    def run(self, func: Any, batch: list[Arguments], settled: Settled) -> None:
        """Give this batch to a process that is idle, now or later. func: a function or the ref of one."""
        with self._changed:
            self._waiting.append((func, batch, settled))
            self._unsettled += 1
        self._fill()

    def _map(
        self,
        func: Callable[..., Any],
        calls: list[Arguments],
        chunksize: int | None,
        callback: Callable[[list[Any]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> AsyncResult:
        self._check_running()
        size = self._chunksize(len(calls)) if chunksize is None else chunksize
        if size < 1:
            raise ValueError(f"Chunksize must be 1+, not {size:n}")
        each: Iterator[Arguments] = iter(calls)
        batches = list(iter(lambda: list(islice(each, size)), []))
        result = AsyncResult(self, len(batches), callback, error_callback, single=False)
        shared = lattica.put(func) if len(batches) > 1 else func  # the function travels once
        for number, batch in enumerate(batches):
            self.run(shared, batch, partial(result.settled, number))
        return result

    def _imap(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None, *, ordered: bool
    ) -> IMapIterator:
        self._check_running()
        ends = isinstance(iterable, Sized)
        size = self._chunksize(len(iterable) if isinstance(iterable, Sized) else 1) if chunksize is None else chunksize
        if size < 1:
            raise ValueError(f"Chunksize must be 1+, not {size:n}")
        calls: Iterator[Arguments] = (((item,), {}) for item in iterable)
        iterator = IMapIterator(self, lattica.put(func), calls, size, ordered=ordered)
        self._iterators.add(iterator)
        if ends:
            self._kept.add(iterator)
        return iterator

    def _chunksize(self, count: int) -> int:
        """Four batches for each process, as in the standard library."""
        return max(1, -(-count // (4 * self.processes)))

    def _check_running(self) -> None:
        if self._closed:
            raise ValueError("Pool not running")

    def _new_actor(self) -> Any:
        options = dict(self._remote_args)
        if self._places:
            self._places.rotate(-1)
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(self._places[-1], soft=True)
        return _actor_class().options(**options).remote(self._initializer)

    def _fill(self) -> None:
        while True:
            with self._changed:
                if not self._waiting or not self._idle:
                    return
                func, batch, settled = self._waiting.popleft()
                process = self._idle.popleft()
            try:
                ref = process.actor.run_batch.remote(func, batch)
            except Exception as error:  # an argument that cannot travel
                with self._changed:
                    self._idle.append(process)
                self._tell(settled, [(None, error)] * len(batch))
                continue
            process.batches += 1
            self._last = ref
            self._completions.when_done(ref, partial(self._settled, process, len(batch), settled))

    def send(self) -> None:
        """Let what was submitted go out: somebody is about to wait for it."""
        last, self._last = self._last, None
        if last is not None and lattica.is_initialized():
            send_now(last)

    def _settled(
        self, process: _Process, count: int, settled: Settled, outcomes: Any, error: BaseException | None
    ) -> None:
        worn = process.batches == self._batches_max or isinstance(error, ActorError)
        if worn and not self._terminated:
            process.actor, process.batches = self._new_actor(), 0
        with self._changed:
            if not self._terminated:
                self._idle.append(process)
        self._fill()
        self.send()
        if error is not None:
            outcomes = [(None, error)] * count
        self._tell(settled, [(value, _raised(raised)) for value, raised in outcomes])
        self._release()

    def _tell(self, settled: Settled, outcomes: list[Outcome]) -> None:
        try:
            settled(outcomes)
        finally:
            with self._changed:
                self._unsettled -= 1
                self._changed.notify_all()

    def _release(self) -> None:
        """Let go of the processes of a closed pool that has nothing to do: they end with their last handle."""
        with self._changed:
            if self._closed and not self._unsettled:
                self._idle.clear()
                self._pool.clear()


def _raised(error: BaseException | None) -> BaseException | None:
    """What a call raised as the standard library has it: the exception, caused by the text of the far traceback."""
    if not isinstance(error, TaskError) or error.cause is None:
        return error
    error.cause.__cause__ = RemoteTraceback(f'\n"""\n{error.remote_traceback}"""')
    return error.cause


def _begin_session(processes: int | None, address: str | None) -> int:
    """Begin a session if there is none; how many processes the pool has. Raises ValueError."""
    if processes is not None and processes <= 0:
        raise ValueError("Processes in the pool must be >0.")
    if not lattica.is_initialized():
        try:
            lattica.init(address, num_cpus=processes if address in (None, "local") else None)
        except ConfigError:
            if processes is None or address is not None:
                raise
            lattica.init()  # a node runs already, which has its own CPUs
    cpus = int(lattica.cluster_resources().get("CPU", 0))
    if processes is not None and cpus < processes:
        raise ValueError(
            f"a pool of {processes} processes was asked for, but the machines have {cpus} CPUs: say processes={cpus}, "
            "or have more machines join"
        )
    return processes or max(1, cpus)


def _places(processes: int, remote_args: Mapping[str, Any]) -> deque[str]:
    """Nodes for a pool's processes in turn, one for each CPU; none where there is one machine, or the user has said
    something of the place."""
    if remote_args.keys() & {"scheduling_strategy", "label_selector", "num_cpus", "num_gpus", "resources", "site"}:
        return deque()
    nodes = [node for node in lattica.nodes() if node.get("Alive") and node["Resources"].get("CPU")]
    if len(nodes) < 2 or processes < 2:
        return deque()
    seats = [(seat, node["NodeID"]) for node in nodes for seat in range(int(node["Resources"]["CPU"]))]
    return deque(node for _, node in sorted(seats, key=lambda seat: seat[0]))


@cache
def _actor_class() -> Any:
    return lattica.remote(num_cpus=0)(PoolProcess)
