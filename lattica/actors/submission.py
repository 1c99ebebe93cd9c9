"""Which task goes to which leased worker: one scheduling class of one submitting process.

    submitter -> node    lease requests, cancelled requests, returned leases
    submitter -> worker  tasks, in batches; `Reclaim` of unstarted ones
    worker -> submitter  replies; returned tasks

Rules of this file. `now` is the only time. A lease holds more than one unstarted task only while the function's
observed run time is under a millisecond; a lease that makes no progress for `STALL_S` is slow, whatever its function
did before, and its unstarted tasks are taken back for others. A worker's death is charged to the one task that it had
started.

The hot verbs (`submit`, `replied`) answer with plain values instead of effect lists: at 100,000 tasks a second an
effect object per task would cost as much as the task. The rest is told by `moves`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

QUICK_S = 1e-3
"""Functions that run shorter than this are pipelined. A lease trip (~0.2 ms) is then no small part of their time."""
STALL_S = 10e-3
"""A lease without a reply for this long is stuck behind a long task. Quick ones seem to stand still for up to 5 ms
while another thread of the submitter has the GIL, or the kernel gives their core to somebody else (3 ms): at 2 ms a
quarter of a burst of empty tasks was taken back and sent again."""
DEPTH_S = 10e-3
"""Work kept in one worker's queue: bridges a busy submitter's pause (Python hands over the GIL every 5 ms)."""
DEPTH_MAX = 1024
"""Tasks in one worker's queue; at 10 us each that is DEPTH_S."""
REQUESTS_MAX = 64
"""Lease requests outstanding: more than any one machine of ours has cores to answer at once."""
NEAR_REQUESTS = 2
"""As many at first where a lease is wanted at one place, then as many as are had there: the third would wait there, and
so be worth the journey of its input, though the first lease may have run all by then."""
NEAR_PATIENCE_S = 0.25
"""So long one lease there is enough for tasks of which nobody knows yet how long they run: 30 MB travel meanwhile. The
first task of a function pays for its imports, and seems to be a long one."""
LEASE_IDLE_S = 0.1
"""An idle lease is kept this long: a loop of `get(f.remote())` never pays for a lease trip (~0.2 ms) again."""
EWMA_WEIGHT = 0.25
"""Of the newest run time: about the last eight count."""
ESTIMATES_MAX = 4096
"""Functions whose run times are remembered; notebooks redefine theirs without end."""


class Task(Protocol):
    """What this core needs of a task; the rest is its shell's."""

    seq: int
    lease: Lease | None
    function: bytes
    slow: bool  # not known to be quick when it was sent


class Lease:
    """One worker, ours until we return it. `inflight`: what it has of us, oldest first; the first one is running.

    ran: (seconds that the last task took here that was not quick, seconds that we expected; 0: not known).
    """

    __slots__ = (
        "blocked", "granted_at", "id", "inflight", "progress_at", "ran", "reclaiming", "slow", "worker", "yielding",
    )  # fmt: skip

    def __init__(self, id: int, worker: object, now: float) -> None:
        self.id, self.worker = id, worker
        self.inflight: dict[int, Task] = {}
        self.slow = 0  # how many of those are not known to be quick
        self.progress_at = self.granted_at = now
        self.ran = (0.0, 0.0)
        self.yielding = False  # others want it: takes no more, goes back when empty
        self.reclaiming = False  # a Reclaim is under way
        self.blocked = False  # its task waits for others: takes no more until it replies

    def __repr__(self) -> str:
        return f"<Lease {self.id}: {len(self.inflight)} in flight{', yielding' if self.yielding else ''}>"


class Moves:
    """What the shell should do now, besides pushing tasks."""

    __slots__ = ("cancels", "push", "reclaim", "requests", "returns")

    def __init__(self) -> None:
        self.push: list[tuple[Lease, Task]] = []
        self.requests = 0
        self.cancels = 0
        self.returns: list[Lease] = []
        self.reclaim: list[Lease] = []


class Submission:
    """The pending tasks, leases and wishes of one scheduling class."""

    def __init__(self, next_seq: Callable[[], int], near_to: Submission | None = None) -> None:
        """next_seq: counts up over all classes of the process, since a worker may serve several in turn. near_to: the
        same class without a place, of one whose leases are wanted where the arguments lie; those elsewhere `yield`."""
        self._next_seq, self._near = next_seq, near_to is not None
        self._near_again: float | None = None  # when to ask `moves` again, since one lease was enough so far
        self.pending: deque[Task] = deque()
        self.leases: dict[int, Lease] = {}
        self.requested = 0
        self._inflight = 0
        self._estimates: dict[bytes, float] = {} if near_to is None else near_to._estimates

    def __repr__(self) -> str:
        return f"<Submission: {len(self.pending)} pending, {self._inflight} in flight on {len(self.leases)} leases>"

    # -- the hot verbs

    def submit(self, task: Task, now: float) -> Lease | None:
        """Take a task; the lease to push it to at once, or None: it waits, and `moves` says what for."""
        if not self.pending:
            lease = self._room_for(task)
            if lease is not None:
                self._assign(task, lease, now)
                return lease
        self.pending.append(task)
        return None

    def replied(self, lease: Lease, seq: int, micros: int, now: float) -> Task | None:
        """A reply came; its task, or None for one that is not ours any more (a duplicate after a death)."""
        task = lease.inflight.pop(seq, None)
        if task is None:
            return None
        self._inflight -= 1
        lease.progress_at = now
        lease.slow -= task.slow
        lease.blocked = False
        estimate = self._estimates.get(task.function)
        seconds = micros * 1e-6
        if seconds >= QUICK_S:
            if self._near and lease.yielding and estimate is not None:
                seconds = estimate  # elsewhere, where it waited for its input
            else:
                lease.ran = seconds, estimate or 0.0
        if estimate is None:
            if len(self._estimates) >= ESTIMATES_MAX:
                self._estimates.clear()
            self._estimates[task.function] = seconds
        else:
            self._estimates[task.function] = estimate + EWMA_WEIGHT * (seconds - estimate)
        task.lease = None
        return task

    # -- the other verbs

    def granted(self, id: int, worker: object, now: float) -> Lease:
        """A lease came; ask `moves` what goes into it."""
        self.requested -= 1
        lease = self.leases[id] = Lease(id, worker, now)
        return lease

    def denied(self) -> list[Task]:
        """No lease will ever come; every task that waits for one."""
        self.requested -= 1
        tasks, self.pending = list(self.pending), deque()
        return tasks

    def returned(self, lease: Lease, seqs: list[int], blocked: bool, now: float) -> None:
        """The worker gave unstarted tasks back: they are the next to go elsewhere. `blocked`: its task waits in
        `get`."""
        lease.reclaiming = lease.reclaiming and blocked
        lease.blocked = lease.blocked or blocked
        back = [self._take(lease, seq) for seq in seqs if seq in lease.inflight]
        self.pending.extendleft(reversed(back))
        lease.progress_at = now

    def lost(self, lease: Lease, started: int, *, unknown: bool = False) -> tuple[list[Task], list[Task]]:
        """The worker died. (the tasks that are charged, the others, which wait again already). unknown: any may have
        begun, so all are charged."""
        self.leases.pop(lease.id, None)
        charged = [task for seq, task in lease.inflight.items() if unknown or seq == started]
        moved = [] if unknown else [task for seq, task in lease.inflight.items() if seq != started]
        self._inflight -= len(lease.inflight)
        lease.inflight = {}
        for task in (*charged, *moved):
            task.lease = None
        self.pending.extendleft(reversed(moved))
        return charged, moved

    def retry(self, task: Task) -> None:
        """Run it again, before the others."""
        self.pending.appendleft(task)

    def withdraw(self, task: Task) -> bool:
        """Forget a task that has not been sent; False if a worker has it."""
        if task.lease is not None:
            return False
        try:
            self.pending.remove(task)
        except ValueError:
            return False
        return True

    def wanted(self, now: float) -> None:
        """Others wait for a lease: the one we have had longest goes back as soon as its running task ends."""
        keep = [lease for lease in self.leases.values() if not lease.yielding]
        if keep:
            min(keep, key=lambda lease: (bool(lease.inflight), lease.granted_at)).yielding = True

    def drop_all(self) -> list[Task]:
        """The node is gone: every task that had not ended."""
        tasks = [task for lease in self.leases.values() for task in lease.inflight.values()] + list(self.pending)
        for task in tasks:
            task.lease = None
        self.leases.clear()
        self.pending.clear()
        self._inflight = self.requested = 0
        return tasks

    def moves(self, now: float) -> Moves:
        """What to do after any of the above: pushes first, then leases to ask for, to return, to relieve."""
        moves = Moves()
        self._fill(moves, now)
        self._give_back(moves, now)
        self._relieve(moves, now)
        wish = self._wish(now)
        if wish > self.requested:
            moves.requests = wish - self.requested
        elif wish == 0 and self.requested:
            moves.cancels = self.requested
        self.requested += moves.requests - moves.cancels
        return moves

    def crowded(self, lease: Lease) -> bool:
        """After a push to `lease`: whether tasks wait there behind one that may be long, so that `moves` must be
        asked for another."""
        return lease.slow > 0 and len(lease.inflight) > 1

    @property
    def unfinished(self) -> bool:
        """Whether tasks wait or run."""
        return bool(self.pending) or self._inflight > 0

    def expected_s(self, function: bytes) -> float:
        """How long it runs, as far as is known; 0: not."""
        return self._estimates.get(function, 0.0)

    def settled(self) -> bool:
        """Whether `moves` has nothing to say after a plain reply: the common case, asked at every batch."""
        return not self.pending and not self.requested and len(self.leases) == 1

    def next_deadline(self) -> float | None:
        """When to ask `moves` again if nothing else happens."""
        due = self._near_again
        for lease in self.leases.values():
            count = len(lease.inflight)
            if count == 1:
                continue
            if count and next(iter(lease.inflight.values())).slow:
                continue  # that is known, and `moves` has done what can be done
            when = lease.progress_at + (STALL_S if count else LEASE_IDLE_S)
            due = when if due is None or when < due else due
        return due

    def validate(self) -> None:
        """Every task in one place, every count true."""
        inflight = [task for lease in self.leases.values() for task in lease.inflight.values()]
        assert len(inflight) == self._inflight, f"{self._inflight} counted, {len(inflight)} in flight"
        assert len({id(task) for task in inflight} | {id(task) for task in self.pending}) == len(inflight) + len(
            self.pending
        )
        assert all(task.lease is None for task in self.pending), "a waiting task has a lease"
        for lease in self.leases.values():
            assert all(task.lease is lease and task.seq == seq for seq, task in lease.inflight.items())
            assert lease.slow == sum(task.slow for task in lease.inflight.values()), "slow tasks are miscounted"
        assert self.requested >= 0

    # -- inside

    def _room_for(self, task: Task) -> Lease | None:
        """An idle lease, else the least filled one that may take another task of this function."""
        best, fill = None, DEPTH_MAX + 1
        for lease in self.leases.values():
            count = len(lease.inflight)
            if not count:
                if not lease.yielding and not lease.blocked:
                    return lease
            elif count < fill and not lease.yielding and not lease.blocked:
                best, fill = lease, count
        if best is None:
            return None
        estimate = self._estimates.get(task.function)
        if estimate is None:
            return None
        if estimate >= QUICK_S or best.slow:
            return best if fill < 2 else None
        depth = min(DEPTH_MAX, 2 + int(DEPTH_S / max(estimate, 1e-6)))
        return best if fill < depth else None

    def _assign(self, task: Task, lease: Lease, now: float) -> None:
        task.seq = self._next_seq()
        task.lease = lease
        if not lease.inflight:
            lease.progress_at = now
        lease.inflight[task.seq] = task
        self._inflight += 1
        task.slow = self._estimates.get(task.function, QUICK_S) >= QUICK_S
        lease.slow += task.slow

    def _take(self, lease: Lease, seq: int) -> Task:
        task = lease.inflight.pop(seq)
        task.lease = None
        self._inflight -= 1
        lease.slow -= task.slow
        return task

    def _fill(self, moves: Moves, now: float) -> None:
        pending = self.pending
        while pending:
            lease = self._room_for(pending[0])
            if lease is None:
                return
            task = pending.popleft()
            self._assign(task, lease, now)
            moves.push.append((lease, task))

    def _give_back(self, moves: Moves, now: float) -> None:
        """Leases that are empty, and unwanted by us for a while, or wanted by others, or whose worker takes no more."""
        for lease in list(self.leases.values()):
            if lease.inflight:
                if lease.yielding and len(lease.inflight) > 1 and not lease.reclaiming:
                    lease.reclaiming = True
                    moves.reclaim.append(lease)
            elif lease.yielding or lease.blocked or (now - lease.progress_at >= LEASE_IDLE_S and not self.pending):
                del self.leases[lease.id]
                moves.returns.append(lease)

    def _relieve(self, moves: Moves, now: float) -> None:
        """A lease with a queue that stands still is slow; when another lies idle, its unstarted tasks move there.

        So do those behind a task that was not known to be quick from the start: there is nothing to wait for.
        """
        stalled = []
        for lease in self.leases.values():
            if len(lease.inflight) < 2:
                continue
            first = next(iter(lease.inflight.values()))
            stood_s = now - lease.progress_at
            if not first.slow and stood_s >= STALL_S:
                self._estimates[first.function] = max(stood_s, self._estimates.get(first.function, 0.0))
                first.slow = True
                lease.slow += 1
            if first.slow and not lease.reclaiming:
                stalled.append(lease)
        if stalled and not self.pending and any(not lease.inflight for lease in self.leases.values()):
            lease = max(stalled, key=lambda lease: len(lease.inflight))
            lease.reclaiming = True
            moves.reclaim.append(lease)

    def _wish(self, now: float) -> int:
        """How many leases more would be of use: one per waiting task, or per unstarted one of a queue worth the
        trip."""
        wish = len(self.pending)
        queued = self._inflight - sum(1 for lease in self.leases.values() if lease.inflight)
        if queued > 0 and not any(not lease.inflight for lease in self.leases.values()):
            longest = max((lease for lease in self.leases.values()), key=lambda lease: len(lease.inflight))
            first = next(iter(longest.inflight.values()))
            if len(longest.inflight) * self._estimates.get(first.function, QUICK_S) >= QUICK_S:
                wish += queued
        return min(wish, self._near_requests(now) if self._near else REQUESTS_MAX)

    def _near_requests(self, now: float) -> int:
        """How many requests may be under way at one place."""
        self._near_again = None
        if self.pending and self.pending[0].function not in self._estimates:
            began = [lease.progress_at for lease in self.leases.values() if lease.inflight]
            if not began:
                return max(self.requested, 1)
            if now < min(began) + NEAR_PATIENCE_S:
                self._near_again = min(began) + NEAR_PATIENCE_S
                return self.requested
        there = sum(not lease.yielding for lease in self.leases.values())
        return min(max(NEAR_REQUESTS, there), REQUESTS_MAX)
