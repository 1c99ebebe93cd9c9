"""The node's workers, as a value: whose they are, which are free, which are spare.

    told    added · take · idle · owes · became_actor · gone · tick   answers   a worker's client number, or whom to end

A worker belongs to one job, and in it to one environment, for life. A free one is handed out most recently used first:
its pages are in the cache, and the others can be ended. Each live job keeps `keep` free workers, its other environments
none; more are ended after IDLE_S. There is no cap on their number: tasks that block in a chain each need a process of
their own. A free worker may still owe the results of what it submitted: it may run other tasks, but not be ended, nor
become an actor and end with it. One that retires, since it has run a function as often as that allows, is handed out to
nobody, and ended as soon as it is free and owes nothing.
"""

from __future__ import annotations

from enum import Enum

import msgspec

IDLE_S = 3.0
"""A spare worker's rest before it is ended. Longer keeps memory (10 MiB each) for a burst that may come; shorter forks
more often (3 ms each). Five seconds after a burst the machine is to be as it was before."""
PRESTART_MAX = 4
"""Workers forked for a job before it asks: enough for the first tasks of a small program, and 40 MiB at most."""


class Use(Enum):
    """What a worker does now."""

    FREE = "idle"
    LEASED = "leased"
    ACTOR = "actor"
    ENDING = "ending"  # told to end, or killed: nothing is asked of it any more


class Worker(msgspec.Struct):
    """One worker process, known by its client number."""

    client: int
    job: int
    use: Use
    since: float  # when it got its present use, seconds of the caller's clock
    owes: bool = False  # what its tasks submitted has not ended
    retires: bool = False  # it takes no more tasks


class WorkerPool:
    """All workers of the machine."""

    def __init__(self, keep: int) -> None:
        """keep: free workers that each live job keeps for its next burst: as many as the machine has CPUs."""
        self.keep = keep
        self.lean: set[int] = set()  # jobs that keep none
        self.workers: dict[int, Worker] = {}
        self._free: dict[int, list[int]] = {}  # job -> its free workers, the most recently used last

    def __repr__(self) -> str:
        uses = [worker.use.value for worker in self.workers.values()]
        return f"<WorkerPool: {', '.join(f'{uses.count(use)} {use}' for use in sorted(set(uses))) or 'empty'}>"

    def prestart(self) -> int:
        """How many workers to fork for a job that begins."""
        return min(self.keep, PRESTART_MAX)

    def added(self, client: int, job: int, now: float, *, free: bool) -> None:
        """A worker is being forked: to wait for work (`free`), or for somebody already."""
        self.workers[client] = Worker(client, job, Use.FREE if free else Use.LEASED, now)
        if free:
            self._free.setdefault(job, []).append(client)

    def take(self, job: int, now: float, *, for_actor: bool = False) -> int | None:
        """A free worker of this job, which is leased from now on; None: fork one. for_actor: it will not come back."""
        free = self._free.get(job, [])
        workers = map(self.workers.__getitem__, reversed(free))
        worker = next((each for each in workers if not (each.retires or (for_actor and each.owes))), None)
        if worker is None:
            return None
        client = worker.client
        free.remove(client)
        worker.use, worker.since = Use.LEASED, now
        return client

    def idle(self, client: int, now: float) -> None:
        """Its lease was returned."""
        worker = self.workers.get(client)
        if worker is None or worker.use is not Use.LEASED:
            return
        worker.use, worker.since = Use.FREE, now
        self._free.setdefault(worker.job, []).append(client)

    def owes(self, client: int, owes: bool, *, retires: bool = False) -> None:
        """Whether what it submitted goes on, and whether it takes no more tasks from now on."""
        worker = self.workers.get(client)
        if worker is not None:
            worker.owes, worker.retires = owes, worker.retires or retires

    def became_actor(self, client: int, now: float) -> None:
        """It hosts an actor until it ends."""
        worker = self.workers[client]
        worker.use, worker.since = Use.ACTOR, now

    def ending(self, client: int, now: float) -> None:
        """It was told to end, or was killed; its death will be told by `gone`."""
        worker = self.workers.get(client)
        if worker is None:
            return
        if worker.use is Use.FREE:
            self._free[worker.job].remove(client)
        worker.use, worker.since = Use.ENDING, now

    def gone(self, client: int) -> None:
        """The process has ended."""
        worker = self.workers.pop(client, None)
        if worker is not None and worker.use is Use.FREE:
            self._free[worker.job].remove(client)

    def of_job(self, job: int) -> list[int]:
        """The workers of a job, whatever they do."""
        return [worker.client for worker in self.workers.values() if worker.job == job]

    def _spare(self) -> list[Worker]:
        """Free workers beyond what their job keeps, longest unused first."""
        spare: list[Worker] = []
        for job, free in self._free.items():
            idle = [self.workers[client] for client in free if not self.workers[client].owes]
            retired = [worker for worker in idle if worker.retires]
            idle = [worker for worker in idle if not worker.retires]
            spare += retired
            spare += idle[: max(len(free) - len(retired) - (0 if job in self.lean else self.keep), 0)]
        return spare

    @staticmethod
    def _over_at(worker: Worker) -> float:
        return worker.since if worker.retires else worker.since + IDLE_S

    def tick(self, now: float) -> list[int]:
        """Spare workers to end, because nobody needed them for IDLE_S, or they retire; they are ENDING from now on."""
        over = [worker.client for worker in self._spare() if self._over_at(worker) <= now]
        for client in over:
            self.ending(client, now)
        return over

    def next_deadline(self) -> float | None:
        """When to call `tick`; None while nothing is spare."""
        return min(map(self._over_at, self._spare()), default=None)

    def validate(self) -> None:
        """Assert what always holds."""
        listed = [client for free in self._free.values() for client in free]
        assert len(listed) == len(set(listed)), "a worker is free twice"
        for job, free in self._free.items():
            for client in free:
                assert self.workers[client].job == job, "a worker is free for a job that is not its own"
        free_by_use = {client for client, worker in self.workers.items() if worker.use is Use.FREE}
        assert free_by_use == set(listed), "free workers and the lists of free workers differ"
