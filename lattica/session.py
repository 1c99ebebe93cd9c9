"""The front door of a driver: `init`, `shutdown`, and the words that need a session."""

from __future__ import annotations

import atexit
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lattica._version import __version__
from lattica.actors import current, options
from lattica.actors.equipment import WORKER_IMPORTS
from lattica.actors.generators import ObjectRefGenerator
from lattica.actors.refs import ObjectRef
from lattica.actors.runtime import Runtime
from lattica.codec import messages as m
from lattica.errors import AlreadyInitializedError, ConfigError, LocalNodeDiedError, WrongTypeError
from lattica.errors.base import one_of
from lattica.node.launch import spawn_embedded
from lattica.node.paths import DATA_DIR_VARIABLE, data_dir, running_node
from lattica.objectstore.arena import ArenaMap

if TYPE_CHECKING:
    from lattica.node.environment import Folder
    from lattica.scheduler.environments import Environment, Travels, Wanted

log = logging.getLogger("lattica")

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
"""Of this program: no other version can run its functions."""
START_TIMEOUT_S = 30.0
"""A node answers in 0.2 s; a machine that swaps may take long, and after this something is wrong."""
END_TIMEOUT_S = 5.0
"""Shutdown waits this long for the last output lines and the end of the node."""
PRELOAD = ("numpy", "numpy.random")
"""What the zygote imports if this program has it: `import numpy` costs each worker 0.1 s. torch is the user's to ask
for."""
IGNORED = {
    "include_dashboard", "dashboard_host", "dashboard_port", "configure_logging", "logging_level", "logging_format",
    "logging_config", "job_config", "local_mode", "labels", "storage", "log_to_driver_event_level",
    "enable_resource_isolation", "cgroup_path", "system_reserved_cpu", "system_reserved_memory", "proxy_server_url",
}  # fmt: skip
"""Arguments of Ray's `init` that mean nothing here; anything that begins with `_` as well."""


class Session:
    """One driver's time with a node: its runtime, and the node's process if it is ours."""

    def __init__(
        self, runtime: Runtime, process: subprocess.Popen[bytes] | None, welcome: m.Welcome, folder: Folder | None
    ) -> None:
        """folder: of packages that workers use."""
        self.runtime, self.process, self.welcome, self.folder = runtime, process, welcome, folder
        self.pid = os.getpid()


class Context:
    """What `init` returns: facts about the session, and a context manager that shuts it down."""

    def __init__(self, runtime: Runtime) -> None:
        self.address_info: dict[str, Any] = {
            "node_id": runtime.node_id.hex(),
            "session_dir": runtime.session_dir,
            "node_ip_address": "127.0.0.1",
            "address": runtime.session_dir,
        }
        self.dashboard_url = ""
        self.python_version = ".".join(map(str, sys.version_info[:3]))
        self.lattica_version = __version__

    def __getitem__(self, key: str) -> Any:
        return self.address_info[key]

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *exc: object) -> None:
        shutdown()

    def disconnect(self) -> None:
        """The same as `shutdown`."""
        shutdown()

    def __repr__(self) -> str:
        return f"<lattica session on node {self.address_info['node_id'][:8]}, {self.address_info['session_dir']}>"


_session: Session | None = None
_starting = threading.RLock()
"""Several threads may be the first to use lattica."""
_ONLY_REFS = {ObjectRef}
_WAITED_FOR = {ObjectRef, ObjectRefGenerator}
_said_ignored: set[str] = set()
"""Arguments that this process was told once that they are ignored."""


def init(
    address: str | None = None,
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
    object_store_memory: int | None = None,
    ignore_reinit_error: bool = False,
    namespace: str | None = None,
    log_to_driver: bool | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    preload: Iterable[str] = (),
    results: str = "any",
    object_spilling_directory: str | None = None,
    **others: Any,
) -> Context:
    """Attach to this machine's node (`lattica start`), or start one that ends with this program.

    address: None as said; "local" always starts one; "auto" never does, and finds the user's only one in any data
    directory. A ticket ("lat1…"), or a file with one, starts
    a node that joins the ticket's mesh with this program and leaves with it; so does None where LATTICA_TICKET is set
    and no node runs here. That node runs tasks of others only if `num_cpus` says how many.
    num_cpus, num_gpus, resources, object_store_memory (bytes): of a node that is started; an existing one has its own.
    preload: modules that workers should have imported before they start, such as ["torch"].
    results: what this program takes of its tasks and actors where their own options do not say: "any", or "data": only
    numbers, strings, bytes, None, containers, arrays, tensors, refs and handles; then nothing is unpickled here that a
    node has sent (docs/security.md).
    runtime_env: what workers have around them, on every machine: "env_vars" (a dict), "working_dir" (a folder, whose
    copy is their working directory), "py_modules" (folders or modules to import), "excludes" (patterns of both), "pip"
    or "uv" (packages to install); docs/guide/environments.md. Tasks and actors with a `runtime_env` of their own have
    it on top.
    object_spilling_directory: where objects go that do not fit into memory, for a node that is started here.
    Ray's other arguments are accepted; those without a meaning here are named once, in a warning.

    Raises ConfigError (a ValueError): unknown argument, resources given for an existing node. AlreadyInitializedError
    (also a RuntimeError): called twice, or in a worker, which has a session from the start.
    """
    global _session
    with _starting:
        present = current.peek()
        if present is not None:
            if not ignore_reinit_error:
                raise _initialized_already()
            return Context(present)
        _check_others(others)
        options.check({"results": results}, {"results"}, "init()")
        environment, folder = _environment(_with_imports(runtime_env))
        connection, process = _connect(
            address, num_cpus, num_gpus, resources, object_store_memory, preload, object_spilling_directory
        )
        job = _job(namespace, preload, environment, log_to_driver=log_to_driver is not False)
        _session = _begin(Runtime(connection), process, job, folder)
        _session.runtime.data = results == "data"
        _session.runtime.environments.own = environment
        _session.runtime.environments.lay_out = _lay_out
        current.put(_session.runtime)
        return Context(_session.runtime)


def _initialized_already() -> AlreadyInitializedError:
    if _session is not None:
        return AlreadyInitializedError()
    return AlreadyInitializedError(
        "lattica.init() was called in a worker, which has a session from the start",
        do_next="leave it out there, or pass ignore_reinit_error=True",
    )


def _connect(
    address: str | None,
    num_cpus: float | None,
    num_gpus: float | None,
    resources: Mapping[str, float] | None,
    object_store_memory: int | None,
    preload: Iterable[str],
    spill_dir: str | None,
) -> tuple[socket.socket, subprocess.Popen[bytes] | None]:
    """To a node that runs, or to a new one with these resources, and its process. Raises ConfigError."""
    ticket = _ticket(address)
    connection = None if address == "local" or (ticket and address) else _existing(address)
    if connection is None:
        wanted = [*[name for name in PRELOAD if name in sys.modules], *preload]
        return spawn_embedded(
            num_cpus,
            num_gpus,
            resources or {},
            object_store_memory,
            wanted,
            ticket=ticket,
            spill_dir=spill_dir or "",
        )
    _refuse_given(
        connection,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        resources=resources,
        object_store_memory=object_store_memory,
        object_spilling_directory=spill_dir,
    )
    return connection, None


def _job(
    namespace: str | None, preload: Iterable[str], environment: Environment | None, *, log_to_driver: bool
) -> dict[str, object]:
    """What the node is told of this program, for its workers."""
    job: dict[str, object] = {
        "sys_path": [path or os.getcwd() for path in sys.path],
        "cwd": os.getcwd(),
        "script": sys.argv[0] if sys.argv else "",
        "namespace": namespace or "",
        "log_to_driver": log_to_driver,
        "preload": list(preload),
        "minor": PYTHON,
    }
    if environment is not None:
        job["environment"] = environment
    return job


def _refuse_given(connection: socket.socket, **given: object) -> None:
    named = [name for name, value in given.items() if value is not None]
    if named:
        connection.close()
        raise ConfigError(
            f"{', '.join(named)} cannot be set for a node that runs already ({data_dir()})",
            do_next='leave it out, or start a node of your own with address="local"',
        )


def _with_imports(runtime_env: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What workers import first travels as a variable of theirs."""
    names = os.environ.get(WORKER_IMPORTS)
    if not names:
        return runtime_env
    given = dict(runtime_env or {})
    return given | {"env_vars": {WORKER_IMPORTS: names, **(given.get("env_vars") or {})}}


def _environment(runtime_env: Mapping[str, Any] | None) -> tuple[Environment | None, Folder | None]:
    """What workers shall have around them, and the folder of ours that it needs. Raises ConfigError."""
    if not runtime_env and "LATTICA_JOB_ENVIRONMENT" not in os.environ:
        return None, None
    from lattica.node import environment

    return environment.make(runtime_env)


def _lay_out(wanted: Wanted) -> tuple[list[Travels], Folder | None]:
    """For single tasks and actors. Raises ConfigError."""
    from lattica.node import environment

    return environment.lay_out(wanted)


def _begin(
    runtime: Runtime, process: subprocess.Popen[bytes] | None, job: dict[str, object], folder: Folder | None
) -> Session:
    try:
        return Session(runtime, process, _greet(runtime, process, job), folder)
    except BaseException:
        if folder is not None:
            folder.close()
        runtime.close()
        if process is not None:
            process.kill()
            process.wait()
        raise


def _ticket(address: str | None) -> str:
    """The text of the ticket that is meant; "" if none is. Raises ConfigError for one that is none."""
    from_environ = address is None and bool(os.environ.get("LATTICA_TICKET", "").strip())
    if not from_environ and (address in (None, "local", "auto") or os.path.isdir(str(address))):
        return ""
    if not from_environ and not str(address).lstrip().startswith("lat") and not os.path.exists(str(address)):
        return ""  # `_existing` says what it may be
    from lattica.mesh import ticket_text as texts

    text = texts.read_text(address, os.environ, sys.stdin)
    if text is None:
        return ""
    texts.unpack(text)
    return "".join(text.split())


def _existing(address: str | None) -> socket.socket | None:
    """A connection to this machine's node, if one runs."""
    if address is not None and address != "auto" and not os.path.isdir(address):
        raise ConfigError(
            f"address={address!r} is neither 'local', 'auto', a ticket, nor a data directory of a node of this machine"
        )
    if address in (None, "auto") and "LATTICA_JOB_BROKER" in os.environ:  # a node has started us as a job
        from lattica.node.job_process import attach_by_broker

        if (connection := attach_by_broker()) is not None:
            return connection
    place = data_dir() if address in (None, "auto") else data_dir(address)
    found = running_node(place)
    if found is None:
        if address is None:
            return None
        from lattica.node.running import node_elsewhere

        found = node_elsewhere(place, named=address != "auto" or DATA_DIR_VARIABLE in os.environ)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(found.socket)
    except OSError as error:
        connection.close()
        raise ConfigError(
            f"the node of {place} does not answer: {error}", do_next="look at `lattica status`"
        ) from error
    return connection


def _greet(runtime: Runtime, process: subprocess.Popen[bytes] | None, job: dict[str, object]) -> m.Welcome:
    answers: list[Any] = []

    def welcomed(message: m.Welcome) -> None:
        runtime.client, runtime.job, runtime.node_id = message.client, message.job, message.node
        runtime.token = message.token
        runtime.session_dir, runtime.config = message.session_dir, message.config
        runtime.namespace = str(message.config.get("namespace", ""))
        runtime.objects.arena = ArenaMap(runtime.node.stream.take_fd(), message.arena_bytes)
        answers.append(message)

    runtime.extra[m.Welcome] = welcomed
    printer = _Printer()
    runtime.extra[m.LogLines] = lambda lines: runtime.reactor.after_dispatch.append(printer.take(lines))
    runtime.listen()
    with runtime.lock:
        runtime.tell_node(m.Hello(m.PROTOCOL, os.getpid(), "driver", sys.executable, job))
    runtime.wait_until(lambda: bool(answers or runtime.refusal) or runtime.node_died_at is not None, START_TIMEOUT_S)
    if runtime.refusal:
        raise ConfigError(f"the node refused this program: {runtime.refusal}")
    if not answers:
        said = ""
        if process is not None and process.stderr is not None and runtime.node_died_at is not None:
            process.wait(END_TIMEOUT_S)
            process.stderr.seek(0)
            said = process.stderr.read().decode(errors="replace").strip()
        raise LocalNodeDiedError(
            "the node did not start"
            if runtime.node_died_at is not None
            else f"the node did not answer within {START_TIMEOUT_S:g} s",
            do_next=f"it said:\n{said}" if said else "look at its log, or try again",
        )
    welcome: m.Welcome = answers[0]
    folder = welcome.session_dir if process is not None else os.path.dirname(os.path.dirname(welcome.session_dir))

    def inquest() -> tuple[str, str]:
        from lattica.node import last_words

        return last_words.inquest(process, folder)

    runtime.inquest = inquest
    return welcome


class _Printer:
    """Shows lines in the order in which they came, whichever threads hear them, and one thread at a time."""

    def __init__(self) -> None:
        self._lines: deque[m.LogLines] = deque()
        self._busy = threading.Lock()

    def take(self, lines: m.LogLines) -> Callable[[], None]:
        """Put them at the end; what to call, without locks, to see them shown."""
        self._lines.append(lines)
        return self._show

    def _show(self) -> None:
        while self._lines and self._busy.acquire(blocking=False):  # else whoever is at it looks again
            try:
                while self._lines:
                    _print(self._lines.popleft())
            finally:
                self._busy.release()


def _print(lines: m.LogLines) -> None:
    """Lines of a worker, prefixed, where the worker wrote them to: stdout or stderr."""
    out = sys.stdout if lines.stream == 1 else sys.stderr
    prefix = f"({lines.who or 'worker'} pid={lines.pid}) "
    try:
        out.write("".join(f"{prefix}{line}\n" for line in lines.lines))
        out.flush()
    except (OSError, ValueError):  # the user closed it
        return


def _check_others(others: Mapping[str, Any]) -> None:
    unknown = [name for name in others if name not in IGNORED and not name.startswith("_")]
    if unknown:
        known = init.__code__.co_varnames[: init.__code__.co_argcount + init.__code__.co_kwonlyargcount]
        raise ConfigError(
            f"init() got an unknown argument: {', '.join(unknown)}", do_next=one_of(unknown[0], known, "it takes")
        )
    _say_ignored(others, "init()")


def _say_ignored(given: Mapping[str, Any], what: str) -> None:
    """One warning for each argument and program."""
    new = sorted(given.keys() - _said_ignored)
    if new:
        _said_ignored.update(new)
        log.warning("lattica.%s ignores %s, without a meaning here (docs/limits.md)", what, ", ".join(new))


def shutdown(*, wait_for_processes: bool = False, _exiting_interpreter: bool = False) -> None:
    """End the session: the job's tasks and actors end, their last output is shown; our own node ends too.

    wait_for_processes: Ray's; a node of our own is always waited for.
    """
    global _session
    session, _session = _session, None
    if session is None or session.pid != os.getpid():
        return
    current.put(None)
    runtime = session.runtime
    try:
        if runtime.node_died_at is None:
            with runtime.lock:
                runtime.closing = True
                runtime.tell_node(m.Shutdown())
            runtime.reactor.wait(lambda: runtime.node_died_at is not None, END_TIMEOUT_S)
    finally:
        runtime.close()
        _end(session.process)
        if session.folder is not None:
            session.folder.close()
        runtime.environments.close()


def _end(process: subprocess.Popen[bytes] | None) -> None:
    if process is None:
        return
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        if process.stderr is not None:
            process.stderr.close()


def is_initialized() -> bool:
    """Whether this process has a session (a worker always does)."""
    return current.peek() is not None


# -- objects


def put(value: Any, *, _owner: Any = None, _tensor_transport: str | None = None) -> ObjectRef:
    """Keep a value and answer with its ref. Raises ObjectStoreFullError, SerializationError.

    _owner, _tensor_transport: private to Ray; accepted, and named once in a warning. The value is this process's.
    """
    if type(value) is ObjectRef:
        raise TypeError("put() takes a value, not an ObjectRef; pass the ref itself along")
    if _owner is not None or _tensor_transport is not None:
        given = {"_owner": _owner, "_tensor_transport": _tensor_transport}
        _say_ignored({name: value for name, value in given.items() if value is not None}, "put()")
    return current.get().put(value)


def get(object_refs: Any, *, timeout: float | None = None, _use_object_store: bool = False) -> Any:
    """The value of a ref, or the values of a list of refs, in order.

    timeout: seconds; None waits for ever, 0 asks whether it is there. Raises GetTimeoutError, or what the task raised.
    _use_object_store: Ray's, of tensors that lie elsewhere; here all lie in the store.
    """
    if timeout is not None and timeout < 0:
        raise _negative(timeout)
    if type(object_refs) is ObjectRef:
        return object_refs._runtime.get_one(object_refs, timeout)
    if isinstance(object_refs, list | tuple):
        if not object_refs:
            return []
        if set(map(type, object_refs)) != _ONLY_REFS:
            wrong = next(ref for ref in object_refs if type(ref) is not ObjectRef)
            raise TypeError(f"get() takes refs, not a {type(wrong).__name__}: {wrong!r:.80}")
        return current.get().get(object_refs, timeout)
    if type(object_refs) is ObjectRefGenerator:  # as in Ray
        return object_refs
    raise WrongTypeError(f"get() takes a ref or a list of refs, not a {type(object_refs).__name__}")


def wait(
    ray_waitables: Sequence[ObjectRef | ObjectRefGenerator],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[Any], list[Any]]:
    """(ready, not ready), both in the order given; returns when `num_returns` are ready or after `timeout` seconds. A
    generator of refs is ready when its next one is, or when it has ended.

    fetch_local: whether to wait for the bytes to be here, too; on one machine they are. Raises ValueError for refs that
    appear twice, or a `num_returns` that is not between 1 and their number.
    """
    if isinstance(ray_waitables, ObjectRef | ObjectRefGenerator):
        raise TypeError("wait() takes a list of refs, not one ref")
    refs: list[Any] = list(ray_waitables)
    if not refs and num_returns == 1:
        return [], []
    if set(map(type, refs)) != _ONLY_REFS:  # in C: programs that wait one by one on thousands check them all each time
        wrong = [ref for ref in refs if type(ref) not in _WAITED_FOR]
        if wrong:
            raise TypeError(f"wait() takes refs, not a {type(wrong[0]).__name__}: {wrong[0]!r:.80}")
    if len(set(refs)) != len(refs):
        raise ConfigError("wait() was given the same ref twice", do_next="pass each ref once")
    if timeout is not None and timeout < 0:
        raise _negative(timeout)
    if not 1 <= num_returns <= len(refs):
        raise ConfigError(f"num_returns={num_returns} must be between 1 and the number of refs, {len(refs)}")
    return current.get().wait(refs, num_returns, timeout)


def _negative(timeout: float) -> ConfigError:
    return ConfigError(f"timeout={timeout!r} is below zero", do_next="say 0 to look, None to wait for ever")


def cancel(ray_waitable: ObjectRef | ObjectRefGenerator, *, force: bool = False, recursive: bool = True) -> None:
    """Stop the task or actor call that makes this ref, or is this generator; `get` of it, or of the generator's last
    ref, then raises TaskCancelledError.

    A running task gets a KeyboardInterrupt raised inside it; with `force` its worker is killed. What has ended stays.
    recursive: what the task itself submitted is cancelled too. A ref that came from another process is cancelled by the
    process that made it, in its own time; `force` then means nothing for an actor call, which is no error there.
    """
    if isinstance(ray_waitable, ObjectRefGenerator):
        ray_waitable = ray_waitable.completed()
    if not isinstance(ray_waitable, ObjectRef):
        raise TypeError(f"cancel() takes a ref, not a {type(ray_waitable).__name__}")
    ray_waitable._runtime.cancel(ray_waitable, force=force, recursive=recursive)


# -- the cluster


def nodes() -> list[dict[str, Any]]:
    """The machines, in Ray's shape."""
    found: list[dict[str, Any]] = current.get().state("nodes")
    return [node | {"alive": node["Alive"], "Resources": _floats(node["Resources"])} for node in found]


def cluster_resources() -> dict[str, float]:
    """What all machines that tasks may run on have together."""
    return _floats(current.get().state("cluster")["total"])


def available_resources() -> dict[str, float]:
    """What is free of that now, as other machines said within the last second or two. Workers kept warm for the next
    task of the same kind count as taken for 0.1 s."""
    return _floats(current.get().state("cluster")["available"])


def _floats(amounts: Mapping[str, float]) -> dict[str, float]:
    """As Ray prints them: 2.0 CPUs."""
    return {name: float(amount) for name, amount in amounts.items()}


# -- this process


def _forked() -> None:
    """In a child that user code forked: the session is the parent's."""
    global _session, _starting
    _session, _starting = None, threading.RLock()


def _at_exit() -> None:
    started = time.monotonic()
    try:
        shutdown()
    except KeyboardInterrupt:  # a second Ctrl-C: the node sees us go and ends everything
        log.info("interrupted after %.1f s of shutdown", time.monotonic() - started)


def _first_use() -> None:
    with _starting:
        if current.peek() is None:
            init()


os.register_at_fork(after_in_child=_forked)
atexit.register(_at_exit)
current.on_first_use(_first_use)

__all__ = [
    "Context", "available_resources", "cancel", "cluster_resources", "get", "init", "is_initialized", "nodes", "put",
    "shutdown", "wait",
]  # fmt: skip
