"""What runs here: the current task or call, for `get_runtime_context` and for cancellation."""

from __future__ import annotations

import os
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from lattica.actors import current

if TYPE_CHECKING:
    from lattica.actors.handles import ActorHandle
    from lattica.actors.runtime import Runtime
    from lattica.actors.runtime_env import RuntimeEnv


class Canceled(KeyboardInterrupt):
    """Raised in the user's code by a cancel, where Ray raises KeyboardInterrupt: `except Exception` lets it pass."""

    def __init__(self, task_id: str) -> None:
        super().__init__("this task was cancelled")
        self.task_id = task_id


CHILDREN_SWEPT = 1024
"""From here on, whenever their number has doubled, children that nobody holds a ref of any more are forgotten."""


class Running:
    """One task or call while it runs. `children`: weak refs of what it submitted, for recursive cancel."""

    __slots__ = ("_sweep_at", "attempt", "canceled", "children", "name", "object")

    def __init__(self, object: bytes, name: str, attempt: int) -> None:
        self.object, self.name, self.attempt = object, name, attempt
        self.canceled = False
        self.children: list[weakref.ref[Any]] = []
        self._sweep_at = CHILDREN_SWEPT

    def submitted(self, ref: Any) -> None:
        """It has submitted the task or call that makes `ref`."""
        self.children.append(weakref.ref(ref))
        if len(self.children) >= self._sweep_at:
            self.children = [child for child in self.children if child() is not None]
            self._sweep_at = max(CHILDREN_SWEPT, 2 * len(self.children))


running: ContextVar[Running | None] = ContextVar("lattica_running", default=None)
"""Set around user code in every thread and coroutine that runs it."""


class Place:
    """What a worker knows of itself; a driver has none of it."""

    def __init__(self) -> None:
        self.resources: dict[str, float] = {}
        self.gpus: list[int] = []  # indices among the node's
        self.gpu_names: list[str] = []  # as CUDA_VISIBLE_DEVICES takes them
        self.actor_id = b""
        self.actor_name = ""
        self.incarnation = 0
        self.meta = b""  # of the actor, for handles of itself


class RuntimeContext:
    """Where this code runs: Ray's `get_runtime_context()`. Ids are hex strings, as there."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def __repr__(self) -> str:
        return f"<RuntimeContext job {self.get_job_id()}, worker {self.get_worker_id()}>"

    def get_job_id(self) -> str:
        """The job: one driver and all that it started."""
        return f"{self._runtime.job:08x}"

    def get_node_id(self) -> str:
        """The node."""
        return self._runtime.node_id.hex()

    def get_worker_id(self) -> str:
        """This process."""
        return self._runtime.token.hex()

    def get_task_id(self) -> str | None:
        """The running task or call; None in a driver."""
        now = running.get()
        return None if now is None else now.object.hex()

    def get_task_name(self) -> str | None:
        """Its name."""
        now = running.get()
        return None if now is None else now.name

    def get_task_function_name(self) -> str | None:
        """Its function's name."""
        return self.get_task_name()

    def get_actor_id(self) -> str | None:
        """The actor that runs here, if one does."""
        return self._place.actor_id.hex() or None

    def get_actor_name(self) -> str | None:
        """The actor's name; None in a driver or task, empty if it has none."""
        return self._place.actor_name if self._place.actor_id else None

    @property
    def current_actor(self) -> ActorHandle:
        """A handle of the actor that runs here."""
        from lattica.actors.handles import own_handle

        if not self._place.actor_id:
            raise RuntimeError("no actor runs in this process")
        return own_handle(self._runtime, self._place)

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Whether this actor has been restarted."""
        return self._place.incarnation > 1

    @property
    def namespace(self) -> str:
        """The namespace of named actors that this job uses by default."""
        return self._runtime.namespace

    def get_namespace(self) -> str:
        """The same."""
        return self._runtime.namespace

    def get_assigned_resources(self) -> dict[str, float]:
        """What the running task or actor holds, in units."""
        return dict(self._place.resources)

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """GPUs of the running task or actor."""
        return {"GPU": list(self._place.gpu_names)}

    @property
    def runtime_env(self) -> RuntimeEnv:
        """What this process has around it, with what it has inherited."""
        from lattica.actors.runtime_env import RuntimeEnv

        return RuntimeEnv(**self._runtime.environments.described())

    def get_runtime_env_string(self) -> str:
        """The same, as JSON."""
        return self.runtime_env.serialize()

    def is_canceled(self) -> bool:
        """Whether somebody asked to stop what runs here: threaded actors look at this themselves."""
        now = running.get()
        return now is not None and now.canceled

    @property
    def worker(self) -> Any:
        """This process: Ray programs look at `.worker.mode`; 0 driver, 1 worker."""
        return self

    @property
    def mode(self) -> int:
        """0 in a driver, 1 in a worker."""
        return 1 if self._runtime.place is not None else 0

    def get(self) -> dict[str, Any]:
        """Everything as a dict."""
        return {"job_id": self.get_job_id(), "node_id": self.get_node_id(), "task_id": self.get_task_id(),
                "actor_id": self.get_actor_id(), "namespace": self.namespace, "pid": os.getpid()}  # fmt: skip

    @property
    def _place(self) -> Place:
        return self._runtime.place or Place()


def get_runtime_context() -> RuntimeContext:
    """Where this code runs. Starts lattica if it does not run yet, as Ray does."""
    return RuntimeContext(current.get())


def get_gpu_ids() -> list[int | str]:
    """The GPUs that the running task or actor holds, as its CUDA_VISIBLE_DEVICES names them; empty if it has none."""
    runtime = current.get()
    names = runtime.place.gpu_names if runtime.place is not None else []
    return [int(name) if name.isdigit() else name for name in names]
