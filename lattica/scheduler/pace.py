"""How long a task will take here: what a function needs, times how fast the machine is; both are measured.

Nobody tells how fast a machine is, and a mean of run times does not: whoever ran long tasks seems slow. So run times
are split in two. A submitter keeps the *work* of each function: its seconds on a machine of pace 1. A node keeps its
*pace*: seconds it took for each second of work that submitters expected. Each corrects the other, like rows and columns
of a table; only the common scale is free, and is held near 1 by the pace that a node begins with.
"""

from __future__ import annotations

from lattica.scheduler.load import PACE_MAX, PACE_MIN

FUNCTIONS_MAX = 4096  # remembered by one submitter; notebooks redefine theirs without end
WORK_WEIGHT = 0.02  # of the newest task: the last 50 count. More: noise; less: slow to see that a function has changed
PACE_TASKS = 100.0
"""Tasks that a pace is the mean of. Run times of one function spread by as much as their mean: of 100 the error is a
tenth. More tasks, and a machine whose owner came back to play is believed to be fast for too long."""
PRIOR_TASKS = 4.0  # of pace 1, that are always counted along: they hold the scale, and blur differences by 4 %


class Work:
    """Of one submitter: seconds of work by function."""

    def __init__(self) -> None:
        self._work: dict[bytes, tuple[float, int]] = {}  # function -> (seconds, tasks seen)

    def expected_s(self, function: bytes) -> float:
        """On a machine of pace 1; 0 where nothing is known."""
        known = self._work.get(function)
        return known[0] if known else 0.0

    def ran(self, function: bytes, run_s: float, pace: float) -> None:
        """One took so long on a machine of this pace."""
        if len(self._work) >= FUNCTIONS_MAX and function not in self._work:
            self._work.clear()
        mean, tasks = self._work.get(function, (0.0, 0))
        weight = max(WORK_WEIGHT, 1 / (tasks + 1))  # a plain mean at first
        self._work[function] = mean + weight * (run_s / pace - mean), tasks + 1


class Pace:
    """Of one node. A quotient of sums: a mean of quotients would count most where least was expected."""

    def __init__(self) -> None:
        self._ran = self._tasks = 0.0  # sums over all tasks, that decay
        self._known_ran = self._known_tasks = self._expected = 0.0  # over those whose work was known

    @property
    def task_s(self) -> float:
        """Mean run time of recent tasks; 0 if there were none."""
        return self._ran / self._tasks if self._tasks else 0.0

    @property
    def pace(self) -> float:
        """Seconds that a second of work takes here: above 1 this node is slow, or busy."""
        if not self._expected:
            return 1.0
        prior = PRIOR_TASKS * self._expected / self._known_tasks
        return min(max((self._known_ran + prior) / (self._expected + prior), PACE_MIN), PACE_MAX)

    def ran(self, run_s: float, expected_s: float) -> None:
        """A task took so long; its submitter expected that much work, 0 if it did not know."""
        keep = 1 - 1 / PACE_TASKS
        self._ran = self._ran * keep + run_s
        self._tasks = self._tasks * keep + 1
        if expected_s > 0:
            self._known_ran = self._known_ran * keep + run_s
            self._expected = self._expected * keep + expected_s
            self._known_tasks = self._known_tasks * keep + 1
