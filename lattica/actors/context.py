"""What runs here: the current task or call, for `get_runtime_context` and for cancellation."""

from __future__ import annotations

import os
import sys
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import msgspec

from lattica.actors import current
from lattica.errors import ConfigError

if TYPE_CHECKING:
    from lattica.actors.handles import ActorHandle
    from lattica.actors.runtime import Runtime
    from lattica.actors.runtime_env import RuntimeEnv
    from lattica.scheduler.given import StrategyGiven


class Canceled(KeyboardInterrupt):
    """Raised in the user's code by a cancel, where Ray raises KeyboardInterrupt: `except Exception` lets it pass."""

    def __init__(self, task_id: str) -> None:
        super().__init__("this task was cancelled")
        self.task_id = task_id


CHILDREN_SWEPT = 1024
"""From here on, whenever their number has doubled, children that nobody holds a ref of any more are forgotten."""


class Running(msgspec.Struct, eq=False):
    """One task or call while it runs. `children`: weak refs of what it submitted, for recursive cancel. function: of an
    actor the name of the method; of a task the function, as soon as that is known."""

    object: bytes
    name: str
    attempt: int
    function: Any = None
    canceled: bool = False
    children: list[weakref.ref[Any]] = []  # a struct's own, as all its defaults
    _sweep_at: int = CHILDREN_SWEPT

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
        self.actor_class: type | None = None


class Id(bytes):
    """An id as the older words of `RuntimeContext` give it; the newer ones give hex strings."""

    __slots__ = ()

    def binary(self) -> bytes:
        """Its bytes."""
        return bytes(self)

    def is_nil(self) -> bool:
        """Whether it is that of nothing."""
        return not self

    def __repr__(self) -> str:
        return f"Id({self.hex()})"


class _NoAttribute(ConfigError, AttributeError):
    """What `hasattr` takes for no."""


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
        """Its name: that of its function, or `Class.method`, where `.options(name=…)` gave it no other."""
        now, cls = running.get(), self._place.actor_class
        if now is None or now.name or cls is None:
            return None if now is None else now.name
        return f"{cls.__name__}.{now.function}"

    def get_task_function_name(self) -> str | None:
        """Its function's name, with the module before it; of a script, as if that were a module."""
        now, cls = running.get(), self._place.actor_class
        if now is None:
            return None
        if cls is not None:
            return f"{_module(cls)}.{cls.__name__}.{now.function}"
        return f"{_module(now.function)}.{getattr(now.function, '__qualname__', now.name)}"

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

    def get_placement_group_id(self) -> str | None:
        """The placement group that this runs in, if it does."""
        return self.current_placement_group_id.hex() or None

    @property
    def current_placement_group_id(self) -> Id:
        """The same; nil if it runs in none."""
        return Id(self._within.group) if self._runtime.within else Id()

    @property
    def should_capture_child_tasks_in_placement_group(self) -> bool:
        """Whether what this submits runs in its placement group, where it does not say otherwise."""
        return bool(self._runtime.within) and self._within.captures

    @property
    def _within(self) -> StrategyGiven:
        from lattica.scheduler.given import decode_within

        return decode_within(self._runtime.within)

    def get_node_labels(self) -> dict[str, str]:
        """Labels of this node."""
        mine = self.get_node_id()
        return next((dict(node["Labels"]) for node in self._runtime.state("nodes") if node["NodeID"] == mine), {})

    def get_session_name(self) -> str:
        """The name of this node's session folder."""
        return os.path.basename(self._runtime.session_dir)

    def get_temp_dir(self) -> str:
        """The folder that holds the folders of sessions."""
        return os.path.dirname(os.path.dirname(self._runtime.session_dir))

    @property
    def gcs_address(self) -> str:
        """There is none: no node is the head. Raises ConfigError, which says so and is an AttributeError, too."""
        raise _NoAttribute(
            "there is no global control store, and so no gcs_address: no node of a mesh is its head",
            do_next="a program elsewhere joins with a ticket: lattica.init('…'), see `lattica ticket`",
        )

    @property
    def job_id(self) -> Id:
        """As `get_job_id`."""
        return Id.fromhex(self.get_job_id())

    @property
    def node_id(self) -> Id:
        """As `get_node_id`."""
        return Id(self._runtime.node_id)

    @property
    def task_id(self) -> Id | None:
        """As `get_task_id`."""
        now = running.get()
        return None if now is None else Id(now.object)

    @property
    def actor_id(self) -> Id | None:
        """As `get_actor_id`."""
        return Id(self._place.actor_id) if self._place.actor_id else None

    def get_assigned_resources(self) -> dict[str, float]:
        """What the running task or actor holds, in units."""
        return dict(self._place.resources)

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """GPUs of the running task or actor."""
        return {"GPU": list(self._place.gpu_names)}

    def get_resource_ids(self) -> dict[str, list[str]]:
        """The same."""
        return self.get_accelerator_ids()

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


def _module(thing: Any) -> str:
    """Where a function or class was defined, by name."""
    name: str = getattr(thing, "__module__", None) or "__main__"
    return name if name != "__main__" else os.path.splitext(os.path.basename(sys.argv[0]))[0] or name


def get_runtime_context() -> RuntimeContext:
    """Where this code runs. Starts lattica if it does not run yet, as Ray does."""
    return RuntimeContext(current.get())


def get_gpu_ids() -> list[int | str]:
    """The GPUs that the running task or actor holds, as its CUDA_VISIBLE_DEVICES names them; empty if it has none."""
    runtime = current.get()
    names = runtime.place.gpu_names if runtime.place is not None else []
    return [int(name) if name.isdigit() else name for name in names]
