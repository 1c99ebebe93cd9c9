"""Tasks that did not finish, and the workers and nodes that went from under them."""

from __future__ import annotations

from lattica.errors.base import LatticaError, ago, quoted, short_id

STDERR_TAIL_MAX_CHARS = 8_192  # a crash report shows the last lines; the file has the rest


class TaskCancelledError(LatticaError):
    """`cancel` reached it before it was done; what it did until then is not undone."""

    task_id: str = ""
    name: str = ""

    def _describe(self) -> str:
        return " ".join(filter(None, ("task", self.name, self.task_id and short_id(self.task_id), "was cancelled.")))


class WorkerCrashedError(LatticaError):
    """The process died under the task. `exit_code` or `signal` (a name) says how; `stderr_tail` its last lines."""

    advice = "read its last words below, if there are any; give the task max_retries if running it twice is harmless"

    task: str = ""
    pid: int | None = None
    node: str = ""
    exit_code: int | None = None
    signal: str = ""
    stderr_tail: str = ""

    def _describe(self) -> str:
        where = ", ".join(
            filter(None, (f"pid {self.pid}" if self.pid else "", f"on node {short_id(self.node)}" if self.node else ""))
        )
        how = "died"
        if self.signal:
            how = f"was killed by {self.signal}"
        elif self.exit_code is not None:
            how = f"ended with exit code {self.exit_code}"
        return f"task {self.task or '?'} did not finish: its worker{f', {where},' if where else ''} {how}."

    def __str__(self) -> str:
        return super().__str__() + quoted("last words on its stderr", self.stderr_tail)


class OutOfMemoryError(LatticaError):
    """The node's memory monitor chose its worker, as what is cheapest to lose."""

    summary = "the node ran out of memory and ended this task's worker"
    advice = "let fewer run at once (num_cpus or memory per task), or give the task max_retries"


class NodeDiedError(LatticaError):
    """A node is dead or out of reach for good; its tasks are retried where their retries allow."""

    advice = "call it again; tasks with max_retries do so by themselves"

    node: str = ""
    since_s: float | None = None

    def _describe(self) -> str:
        return f"node {short_id(self.node)} died{ago(self.since_s)}."


class LocalNodeDiedError(NodeDiedError):
    """The node of this machine is gone, and with it this session."""

    advice = "read the node's log, then lattica.shutdown() and lattica.init() again"

    last_words: str = ""

    def _describe(self) -> str:
        return f"this machine's node{f' {short_id(self.node)}' if self.node else ''} died{ago(self.since_s)}."

    def __str__(self) -> str:
        return super().__str__() + quoted("the last lines of its log", self.last_words)


class RuntimeEnvSetupError(LatticaError):
    """What a `runtime_env` installs could not be had; the message has the installer's own words."""

    summary = "the task's environment could not be set up"
    advice = "correct runtime_env, or see that the node reaches what pip looks for (PIP_INDEX_URL, PIP_FIND_LINKS)"


class TaskUnschedulableError(LatticaError):
    """What it asks for is more than any node of the mesh has in all."""

    summary = "no living node can ever run this task"
    advice = "ask for less, or add a node that has it; `lattica status` shows what there is"


class TaskPlacementGroupRemovedError(LatticaError):
    """Its bundle ended, and with it the only place where it may run."""

    summary = "the placement group of this task was removed"
    advice = "make a new placement group and submit the task to it"
