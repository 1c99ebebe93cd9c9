"""Every error a user of lattica can meet, branching by what the caller does next.

    LatticaError
    ├── ConfigError                    this call can never work; change it (also a ValueError)
    │   ├── AlreadyInitializedError      init was called twice; leave one out (also a RuntimeError)
    │   ├── ActorAlreadyExistsError      take another name, or ask with get_if_exists
    │   └── ActorHandleNotFoundError     the handle is of an earlier session; make a new one
    ├── SerializationError             a value cannot travel; says which attribute (also a TypeError)
    │   └── OutOfBandRefError            a ref left by another pickler; pass it as an argument
    ├── PeerUnreachableError           nobody answered; retry, or look at the network (`lattica doctor`)
    ├── GetTimeoutError                too slow this time; it may still happen (also a TimeoutError)
    ├── ObjectNotAvailableError        not here yet; ask again
    ├── ObjectLostError                the value is gone; compute it again
    │   ├── OwnerDiedError
    │   ├── ObjectFetchTimedOutError
    │   ├── ObjectFreedError
    │   ├── ObjectReconstructionFailedError
    │   └── ReferenceCountingAssertionError   (also an AssertionError; a bug of ours)
    ├── ActorError
    │   ├── ActorDiedError               restarts are spent; make a new actor
    │   ├── ActorUnavailableError        it is restarting or cut off; try again
    │   └── ActorFencedError             a newer incarnation won; get the actor by name again
    ├── TaskError                      user code raised; also an instance of its class, with the remote traceback
    ├── TaskCancelledError · WorkerCrashedError · OutOfMemoryError
    ├── NodeDiedError
    │   └── LocalNodeDiedError           this machine's own node is gone; init again
    ├── ObjectStoreFullError
    │   └── OutOfDiskError
    ├── PendingCallsLimitExceededError   the actor's queue is full; slow down
    ├── RuntimeEnvSetupError · TaskUnschedulableError · ActorUnschedulableError
    ├── TaskPlacementGroupRemovedError · ActorPlacementGroupRemovedError
    ├── PermissionDeniedError          this peer's roles do not allow it; names the role
    ├── AdmissionError                 the mesh does not let this peer in; get a ticket, or the right one
    ├── ProtocolError                  someone broke the rules
    │   ├── LocalProtocolError           it was us: a bug
    │   └── RemoteProtocolError          it was the peer: drop the connection
    ├── InternalError                  lattica itself failed; tell us
    │   └── StreamReplayError · ChannelError (ChannelTimeoutError) · GraphCapacityError · DirectTransportError
    ├── CallFailedError                a method of a service raised, on the peer that was called
    └── ActorExit · StreamEndedError · UserCodeError · CrossLanguageError     signals between a runtime and its callers

Rules of this file. A message names what happened, to which id, where and since when; two lines may follow it: `made at`
(the user's own line) and `do next`. Every class can be built from keywords alone, and then words its own message. All
facts are plain data, so that an error travels as a pickle between workers and as a dict (`to_data`, `from_data`)
through the node, which never unpickles. Nothing heavy is imported: traceback once an error is at hand, pickle never.

The file is longer than most, since the tree is one thing; Ray's names for these classes stand in `exceptions.py`.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing `typing` would cost more than this whole file
if TYPE_CHECKING:
    from collections.abc import Mapping
    from traceback import TracebackException
    from typing import Any, Self


SHORT_ID_DIGITS = 4  # that of `ids`, which is not imported here for the sake of its `typing`
REMOTE_TRACEBACK_MAX_CHARS = 65_536  # a get() chain quotes each inner traceback again; head and tail say enough
STDERR_TAIL_MAX_CHARS = 8_192  # a crash report shows the last lines; the file has the rest
DUAL_CLASSES_MAX = 256  # one per user exception class; notebooks redefine theirs without end

Plain = str | int | float | bool | bytes | None
_PLAIN_TYPES = (str, int, float, bool, bytes, type(None))


def _short(hex_id: str) -> str:
    return hex_id[:SHORT_ID_DIGITS] or "?"


def _ago(since_s: float | None) -> str:
    return "" if since_s is None else f" {since_s:.1f} s ago"


def _quoted(title: str, lines: str) -> str:
    """What follows a message: lines of somebody else's, set in, under a title; nothing if there are none."""
    tail = "\n".join(f"    {line}" for line in lines.rstrip().splitlines())
    return f"\n  {title}:\n{tail}" if tail else ""


class LatticaError(Exception):
    """Base of all; catch it to catch whatever lattica itself has to say.

    A subclass declares its facts as annotated class attributes with defaults, and takes them as keywords.
    message: what happened, one or two sentences; by default worded from `summary` and the facts.
    made_at: `file:line` in the user's program. do_next: the next step; by default the class's `advice`.
    """

    summary = "lattica could not do what was asked"
    advice = ""
    message: str = ""
    made_at: str = ""
    do_next: str = ""

    def __init__(self, message: str = "", **facts: Any) -> None:
        super().__init__(message)
        for name, value in facts.items():
            if name not in self._facts():
                raise TypeError(f"{type(self).__name__} has no fact {name!r}; it has {', '.join(self._facts())}")
            setattr(self, name, value.hex() if isinstance(value, bytes) else value)  # ids are shown in hex
        self.message = message or self._describe()
        self.do_next = self.do_next or self.advice

    @classmethod
    def _facts(cls) -> list[str]:
        """The names of what an error of this class carries, the base's first."""
        return [name for base in reversed(cls.__mro__) for name in getattr(base, "__annotations__", ())]

    def _describe(self) -> str:
        """The message, from this error's facts, where the caller gave none."""
        return self.summary

    def __str__(self) -> str:
        lines = [self.message]
        if self.made_at:
            lines.append(f"  made at   {self.made_at}")
        if self.do_next:
            lines.append(f"  do next   {self.do_next}")
        return "\n".join(lines)

    @property
    def error_message(self) -> str:
        """Ray's name for the message on several classes."""
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))

    def to_data(self) -> dict[str, Plain]:
        """This error as a flat dict of plain values, for messages that are not pickles."""
        kind = next(base.__name__ for base in type(self).__mro__ if globals().get(base.__name__) is base)
        facts = {name: getattr(self, name) for name in self._facts()}
        return {"error": kind} | {name: value for name, value in facts.items() if isinstance(value, _PLAIN_TYPES)}

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> LatticaError:
        """The error that `to_data` wrote; what this release does not know becomes a plain LatticaError or is left out.

        Distrusts its input: only classes of this file, only the facts these have, only values of a fact's own type.
        """
        kind = str(data.get("error"))
        cls = LatticaError if kind.startswith("_") else globals().get(kind)
        error = cls() if isinstance(cls, type) and issubclass(cls, LatticaError) else LatticaError()
        for name in error._facts():
            value, default = data.get(name), getattr(type(error), name)
            if isinstance(value, _PLAIN_TYPES if default is None else type(default)):
                setattr(error, name, value)
        error.args = (error.message,)
        return error


def _rebuild(cls: type[LatticaError], args: tuple[Any, ...], facts: dict[str, Any]) -> LatticaError:
    """Unpickle without calling `__init__`, whose signature may be a subclass's own."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


# ---- the call itself ----------------------------------------------------------------------------------------------


class ConfigError(LatticaError, ValueError):
    """This call can never work as written; change it. Also a ValueError, which is what Ray raises in these places."""

    summary = "this call can never work as written"


class AlreadyInitializedError(ConfigError, RuntimeError):
    """`init` in a process that has a session. Ray raises a RuntimeError here."""

    summary = "lattica.init() was called already in this process"
    advice = "leave it out, pass ignore_reinit_error=True, or call lattica.shutdown() first"


class ActorAlreadyExistsError(ConfigError):
    summary = "an actor of this name exists"
    advice = "choose another name, or pass get_if_exists=True to share the one that exists"


class ActorHandleNotFoundError(ConfigError):
    summary = "this actor handle belongs to a session that has ended"
    advice = "make the actor again, or get it by name with lattica.get_actor(...)"


class SerializationError(LatticaError, TypeError):
    """A value cannot become bytes or come back. `path` names the attribute, e.g. `Trainer.lock`. Also a TypeError."""

    summary = "a value could not be serialized"

    path: str = ""
    type_name: str = ""

    def _describe(self) -> str:
        if not self.path:
            return self.summary
        return f"{self.path}{f' (a {self.type_name})' if self.type_name else ''} could not be pickled."


class OutOfBandRefError(SerializationError):
    summary = "an ObjectRef was pickled outside of lattica, where nobody can count it"
    advice = "pass the ref as an argument or inside a value that you put"


# ---- the network and time -----------------------------------------------------------------------------------------


class PeerUnreachableError(LatticaError):
    """Nobody answered at the peer's addresses. Calls that may be repeated can be."""

    advice = "try again, or look at the network with `lattica doctor`"

    peer: str = ""
    since_s: float | None = None
    may_have_run: bool = False  # the call was sent, and nobody knows what became of it

    def _describe(self) -> str:
        last = "" if self.since_s is None else f"; last heard of{_ago(self.since_s)}"
        return f"peer {_short(self.peer)} did not answer{last}."


class GetTimeoutError(LatticaError, TimeoutError):
    """The wait ended, the work did not: it may still happen."""

    advice = "wait again with a longer timeout, or lattica.cancel(ref) if the result is no longer wanted"

    timeout_s: float | None = None
    waiting_for: str = ""

    def _describe(self) -> str:
        within = "in time" if self.timeout_s is None else f"within {self.timeout_s:g} s"
        return f"{self.waiting_for or 'the result'} did not come {within}."


# ---- objects ------------------------------------------------------------------------------------------------------


class _ObjectError(LatticaError):
    """What the errors about one object share: its id (hex), its owner in words, and since when."""

    object_id: str = ""
    owner: str = ""
    since_s: float | None = None

    def _describe(self) -> str:
        return f"object {_short(self.object_id)} {self.summary}{_ago(self.since_s)}."

    @property
    def object_ref_hex(self) -> str:
        """Ray's name for `object_id`."""
        return self.object_id

    @property
    def call_site(self) -> str:
        """Ray's name for `made_at`."""
        return self.made_at


class ObjectNotAvailableError(_ObjectError):
    summary = "is not here yet"
    advice = "ask again, or wait for it with lattica.wait"


class ObjectLostError(_ObjectError):
    """The value is gone everywhere; compute it again."""

    summary = "is lost: no copy exists"
    advice = "call it again, or put it again if it was a value of your own"


class OwnerDiedError(ObjectLostError):
    def _describe(self) -> str:
        owner = f"its owner, {self.owner}," if self.owner else "its owner"
        name = _short(self.object_id)
        return f"object {name} is lost: {owner} left{_ago(self.since_s)}; no copy exists."


class ObjectFetchTimedOutError(ObjectLostError):
    summary = "could not be fetched: no holder answered"
    advice = "look at the network with `lattica doctor`, or call it again"


class ObjectFreedError(ObjectLostError):
    summary = "was freed by the program"
    advice = "free an object only when nobody needs it; put it again"


class ObjectReconstructionFailedError(ObjectLostError):
    summary = "is lost and cannot be computed again"
    advice = "give its task max_retries > 0, and return the value from a task instead of putting it"


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    summary = "was deleted while a reference to it lived; this is a bug of lattica"
    advice = "report it, with the node's log"


# ---- actors -------------------------------------------------------------------------------------------------------


class ActorError(LatticaError):
    """An actor did not finish a call. `actor` is its class name, `actor_id` hex; a subclass says what to do.

    init_failed: its constructor raised (`cause_text` has the remote traceback). preempted: its machine was taken back.
    """

    summary = "did not finish the call"

    actor_id: str = ""
    actor: str = ""
    node: str = ""
    since_s: float | None = None
    reason: str = ""
    init_failed: bool = False
    preempted: bool = False
    cause_text: str = ""

    def _describe(self) -> str:
        name = " ".join(filter(None, ("actor", self.actor, self.actor_id and _short(self.actor_id))))
        place = f" on node {_short(self.node)}" if self.node else ""
        why = f": {self.reason}" if self.reason else ""
        return f"{name}{place} {self.summary}{_ago(self.since_s)}{why}."

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}\n\n{self.cause_text.rstrip()}" if self.cause_text else text

    @property
    def error_msg(self) -> str:
        """Ray's name for the message."""
        return str(self)

    @property
    def actor_init_failed(self) -> bool:
        """Ray's name for `init_failed`."""
        return self.init_failed


class ActorDiedError(ActorError):
    summary = "died"
    advice = "make a new actor, or give it max_restarts=3 to have it restarted"


class ActorUnavailableError(ActorError):
    """It is restarting or cut off. The call may have run, or may not."""

    summary = "is unavailable (the call may have run)"
    advice = "try again, or give it max_task_retries to have calls repeated"


class ActorFencedError(ActorError):
    summary = "was superseded: a newer incarnation runs elsewhere"
    advice = "get the actor again by its name with lattica.get_actor(...)"


class ActorUnschedulableError(LatticaError):
    summary = "no living node can ever run this actor"
    advice = "ask for less, or add a node that has it; `lattica status` shows what there is"


class ActorPlacementGroupRemovedError(LatticaError):
    summary = "the placement group of this actor was removed"
    advice = "make a new placement group, then the actor in it"


class PendingCallsLimitExceededError(LatticaError):
    """The caller's queue at this actor is at `max_pending_calls`; the call was not sent."""

    advice = "wait for earlier calls first (lattica.wait), or raise max_pending_calls"

    actor: str = ""
    limit: int | None = None

    def _describe(self) -> str:
        limit = "" if self.limit is None else f" {self.limit}"
        return f"actor {self.actor or '?'} has{limit or ' too many'} calls pending, its limit; this one was not sent."


# ---- tasks and where they run -------------------------------------------------------------------------------------


class TaskCancelledError(LatticaError):
    task_id: str = ""
    name: str = ""

    def _describe(self) -> str:
        return " ".join(filter(None, ("task", self.name, self.task_id and _short(self.task_id), "was cancelled.")))


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
            filter(None, (f"pid {self.pid}" if self.pid else "", f"on node {_short(self.node)}" if self.node else ""))
        )
        how = "died"
        if self.signal:
            how = f"was killed by {self.signal}"
        elif self.exit_code is not None:
            how = f"ended with exit code {self.exit_code}"
        return f"task {self.task or '?'} did not finish: its worker{f', {where},' if where else ''} {how}."

    def __str__(self) -> str:
        return super().__str__() + _quoted("last words on its stderr", self.stderr_tail)


class OutOfMemoryError(LatticaError):
    summary = "the node ran out of memory and ended this task's worker"
    advice = "let fewer run at once (num_cpus or memory per task), or give the task max_retries"


class NodeDiedError(LatticaError):
    """A node is dead or out of reach for good; its tasks are retried where their retries allow."""

    advice = "call it again; tasks with max_retries do so by themselves"

    node: str = ""
    since_s: float | None = None

    def _describe(self) -> str:
        return f"node {_short(self.node)} died{_ago(self.since_s)}."


class LocalNodeDiedError(NodeDiedError):
    """The node of this machine is gone, and with it this session."""

    advice = "read the node's log, then lattica.shutdown() and lattica.init() again"

    last_words: str = ""

    def _describe(self) -> str:
        return f"this machine's node{f' {_short(self.node)}' if self.node else ''} died{_ago(self.since_s)}."

    def __str__(self) -> str:
        return super().__str__() + _quoted("the last lines of its log", self.last_words)


class RuntimeEnvSetupError(LatticaError):
    summary = "the task's environment could not be set up"
    advice = "correct runtime_env; the node's log has the whole output"


class TaskUnschedulableError(LatticaError):
    summary = "no living node can ever run this task"
    advice = "ask for less, or add a node that has it; `lattica status` shows what there is"


class TaskPlacementGroupRemovedError(LatticaError):
    summary = "the placement group of this task was removed"
    advice = "make a new placement group and submit the task to it"


class ObjectStoreFullError(LatticaError):
    """Pinned values fill the quota. `holders` says in words who pins how much."""

    advice = "drop refs and views you no longer need, or init(object_store_memory=...) with more"

    wanted_bytes: int | None = None
    used_bytes: int | None = None
    quota_bytes: int | None = None
    holders: str = ""

    def _describe(self) -> str:
        wanted = "a value" if self.wanted_bytes is None else f"a value of {self.wanted_bytes:,} bytes"
        used = ""
        if self.used_bytes is not None and self.quota_bytes is not None:
            used = f": {self.used_bytes:,} of {self.quota_bytes:,} bytes are pinned"
        return f"{wanted} does not fit into the object store{used}{f' by {self.holders}' if self.holders else ''}."


class OutOfDiskError(ObjectStoreFullError):
    advice = "free disk space under the data directory, or drop refs you no longer need"

    def _describe(self) -> str:
        return "the object store is full and so is the disk it spills to."


# ---- rules --------------------------------------------------------------------------------------------------------


class PermissionDeniedError(LatticaError):
    """This peer's roles do not allow it; `role` is the one that is missing."""

    role: str = ""
    peer: str = ""
    action: str = ""

    def _describe(self) -> str:
        who = f"peer {_short(self.peer)}" if self.peer else "this peer"
        return f"{who} may not {self.action or 'do this'}: its certificate lacks the role {self.role or '?'}."


class AdmissionError(LatticaError):
    """The mesh does not let this peer in: what it shows is not, or no longer, what proves a member."""

    summary = "the mesh does not let this peer in"
    advice = "ask somebody of the mesh for a ticket (`lattica ticket` there), then `lattica join TICKET` here"


class ProtocolError(LatticaError):
    """Someone broke the rules of the wire."""

    summary = "the rules of the wire were broken"


class LocalProtocolError(ProtocolError):
    """It was us: a bug of lattica, or a call out of its turn."""

    advice = "report it, with the message above"


class RemoteProtocolError(ProtocolError):
    """It was the peer. The connection is dropped; nothing it sent after this is believed."""


class InternalError(LatticaError):
    """lattica itself failed, in a way no caller could have avoided."""

    summary = "lattica failed inside"
    advice = "report it, with the node's log"


class StreamReplayError(InternalError):
    summary = "a generator that ran again gave another number of values than the first time"
    advice = "make the generator deterministic, or give it max_retries=0"


class ChannelError(InternalError):
    summary = "a channel failed"


class ChannelTimeoutError(ChannelError, TimeoutError):
    summary = "a channel was not read or written in time"
    advice = "try again with a longer timeout"


class GraphCapacityError(InternalError):
    summary = "a compiled graph has its limit of results in flight"
    advice = "get earlier results first"


class DirectTransportError(InternalError):
    summary = "a direct transfer between devices failed"


# ---- signals between a runtime and its callers --------------------------------------------------------------------


class ActorExit(LatticaError):
    """Raised inside an actor by `exit_actor()`: the runtime ends the actor when it arrives."""

    summary = "the actor ends by its own wish"


class StreamEndedError(LatticaError):
    summary = "the generator has no more values"


class UserCodeError(LatticaError):
    """User code raised inside a library; libraries wrap it so that `retry_exceptions` sees its `__cause__`."""

    summary = "user code raised"


class CallFailedError(LatticaError):
    """A method of a service raised, on the peer that was called; `type_name` is the class of what it raised."""

    summary = "the method that was called raised"
    advice = "the traceback of the other side is in `remote_traceback`"

    type_name: str = ""
    remote_traceback: str = ""


class CrossLanguageError(LatticaError):
    summary = "code in another language raised"


# ---- user exceptions ----------------------------------------------------------------------------------------------


class TaskError(LatticaError):
    """The user's code raised, far away. Carries the exception and the traceback of the place where it happened.

    cause: the original exception object; None if it could not travel (`cause_lost` then says why, and the text stays).
    remote_traceback: as Python would have printed it there, causes and contexts included, without lattica's own frames.
    pid, node, actor, actor_id: where it happened; ids in hex.

    `get` raises `as_instanceof_cause()`: an error that is a TaskError and the user's class at once, so that
    `except KeyError` works across processes.
    """

    function_name: str = ""
    remote_traceback: str = ""
    cause: BaseException | None = None
    pid: int | None = None
    node: str = ""
    actor: str = ""
    actor_id: str = ""
    cause_lost: str = ""

    def __init__(
        self,
        function_name: str = "",
        remote_traceback: str = "",
        cause: BaseException | None = None,
        **facts: Any,
    ) -> None:
        facts |= {"function_name": function_name, "remote_traceback": remote_traceback, "cause": cause}
        super().__init__("", **facts)

    @classmethod
    def from_exception(cls, exc: BaseException, *, function_name: str, **where: Any) -> Self:
        """Wrap what user code raised, where it raised it; `where` are the other facts: pid, node, actor, made_at, ….

        If `exc` is itself a TaskError (the task had called `get`), its cause is carried on, and its remote traceback is
        quoted inside the new one.
        """
        if isinstance(exc, TaskError):
            where["cause_lost"] = exc.cause_lost
            return cls(function_name, _format_remote(exc), exc.cause, **where)
        return cls(function_name, _format_remote(exc), exc, **where)

    def without_cause(self, why: str) -> TaskError:
        """The same without the exception object, which cannot travel; its words stay."""
        other = type(self)()
        other.__dict__.update(self.__dict__, cause=None, cause_lost=why)
        return other

    def _describe(self) -> str:
        places = (
            self.pid is not None and f"pid {self.pid}",
            self.node and f"node {_short(self.node)}",
            self.actor and f"actor {self.actor}",
        )
        where = ", ".join(place for place in places if place)
        kind = "an exception" if self.cause is None else type(self.cause).__name__
        return f"{self.function_name or 'the task'} raised {kind}{f' ({where})' if where else ''}"

    def __str__(self) -> str:
        text = super().__str__()
        if self.remote_traceback:
            text += f"\n\n{self.remote_traceback.rstrip()}"
        if self.cause_lost:
            text += f"\n  (the exception object itself could not travel: {self.cause_lost})"
        return text

    @property
    def traceback_str(self) -> str:
        """Ray's name for `remote_traceback`."""
        return self.remote_traceback

    @property
    def actor_repr(self) -> str:
        """Ray's name for `actor`."""
        return self.actor

    def as_instanceof_cause(self) -> TaskError:
        """This error as an instance of the user's exception class too; itself where that cannot be.

        It cannot for a lost cause; for a class that refuses subclasses or multiple layouts; for what is not an
        Exception (a far KeyboardInterrupt must not interrupt here); and for StopIteration and StopAsyncIteration, which
        would silently end the caller's own loop.
        """
        cause = self.cause
        if not isinstance(cause, Exception) or isinstance(cause, StopIteration | StopAsyncIteration):
            return self
        try:
            return self if isinstance(self, type(cause)) else _dual_instance(self, cause)
        except Exception:  # a user's metaclass, property or __init_subclass__ may raise anything
            return self

    def __reduce__(self) -> tuple[Any, ...]:
        """The cause travels as bytes of its own: whatever goes wrong with it, here or there, the text arrives."""
        facts = {name: value for name, value in self.__dict__.items() if name != "cause"}
        cause_bytes: bytes | None = None
        if self.cause is not None:
            try:
                cause_bytes = _pickle_cause(self.cause)
            except Exception as why:
                name = f"{type(self.cause).__module__}.{type(self.cause).__qualname__}"
                self.cause_lost = facts["cause_lost"] = f"{name} could not be pickled: {type(why).__name__}: {why}"
        return _rebuild_task_error, (type(self), facts, cause_bytes)


def _rebuild_task_error(cls: type[TaskError], facts: dict[str, Any], cause_bytes: bytes | None) -> TaskError:
    error = cls()
    error.__dict__.update(facts)
    if cause_bytes is not None:
        try:
            error.cause = sys.modules["pickle"].loads(cause_bytes)
        except Exception as why:  # the class may not import here, or its own __reduce__ fails
            error.cause_lost = f"it could not be unpickled: {type(why).__name__}: {why}"
    return error


class _DualError(TaskError):
    """Mixin of the classes that `_dual_class` makes. They list the user's class first, so that its attributes win;
    the methods and facts that make it a TaskError are put back on top by name."""

    _task_error: TaskError

    cause = property(lambda self: self._task_error.cause)
    remote_traceback = property(lambda self: self._task_error.remote_traceback)

    def __str__(self) -> str:
        return str(self._task_error)

    def as_instanceof_cause(self) -> TaskError:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return TaskError.as_instanceof_cause, (self._task_error,)


_ON_TOP = ("cause", "remote_traceback", "__str__", "as_instanceof_cause", "__reduce__")

_dual_classes: dict[type[Exception], type[_DualError]] = {}  # a cache: `type(e)` is the same for equal causes


def _dual_class(cause_class: type[Exception]) -> type[_DualError]:
    if dual_class := _dual_classes.get(cause_class):
        return dual_class
    name = f"TaskError({cause_class.__name__})"
    on_top = {method: vars(_DualError)[method] for method in _ON_TOP}
    dual_class = type(name, (cause_class, _DualError), {"__module__": __name__, "__qualname__": name} | on_top)
    if len(_dual_classes) >= DUAL_CLASSES_MAX:
        _dual_classes.clear()
    _dual_classes[cause_class] = dual_class
    return dual_class


def _dual_instance(error: TaskError, cause: Exception) -> TaskError:
    args, slots, attributes = _anatomy(cause)
    dual: TaskError = _revive(_dual_class(type(cause)), args, slots, error.__dict__ | attributes)
    dual.__dict__["_task_error"] = error
    return dual


# ---- exceptions taken apart and put together ----------------------------------------------------------------------
# Python rebuilds an exception as `cls(*args)`, which fails for every class whose constructor takes anything but `args`
# (half of those that people write). We put the pieces together without calling the user's `__init__`.


def _slots(cls: type) -> dict[str, Any]:
    """Where instances keep state outside of `__dict__`: BaseException.args, OSError.errno, a user's `__slots__`."""
    return {
        name: slot
        for base in reversed(cls.__mro__)
        for name, slot in vars(base).items()
        if type(slot).__name__ in ("member_descriptor", "getset_descriptor") and not name.startswith("__")
    }


def _anatomy(exc: BaseException) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
    """Arguments for the native `__new__`, values of slots, and attributes."""
    slots: dict[str, Any] = {}
    for name, slot in _slots(type(exc)).items():
        try:
            slots[name] = slot.__get__(exc)
        except AttributeError:  # a slot that was never set
            continue
    args = (exc.message, exc.exceptions) if isinstance(exc, BaseExceptionGroup) else exc.args
    return args, slots, dict(exc.__dict__)


def _revive(cls: type, args: tuple[Any, ...], slots: dict[str, Any], attributes: dict[str, Any]) -> Any:
    native = next(base for base in cls.__mro__ if base.__module__ == "builtins" and "__new__" in vars(base))
    error = native.__new__(cls, *args)
    for name, slot in _slots(cls).items():
        if name in slots:
            try:
                slot.__set__(error, slots[name])
            except (AttributeError, TypeError):  # read-only: `__new__` got it; or None in a slot that is unset by it
                continue
    error.__dict__.update(attributes)
    return error


def _pickle_cause(cause: BaseException) -> bytes:
    """With cloudpickle, as the user's classes may live in `__main__`.

    Whoever pickles errors has loaded it or pickle. This file does not: the node imports it, and must never unpickle.
    """
    import io

    module: Any = sys.modules.get("cloudpickle") or sys.modules["pickle"]

    class Pickler(module.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, BaseException) and not isinstance(obj, LatticaError):
                reducer = next(base for base in type(obj).__mro__ if "__reduce__" in vars(base))
                registered = type(obj) in getattr(self, "dispatch_table", ())  # by copyreg
                if reducer.__module__ == "builtins" and not registered:
                    return _revive, (type(obj), *_anatomy(obj))
            inherited = getattr(super(), "reducer_override", None)  # cloudpickle's: classes and functions by value
            return inherited(obj) if inherited else NotImplemented

    with io.BytesIO() as out:
        Pickler(out, 5).dump(cause)
        return out.getvalue()


# ---- remote tracebacks --------------------------------------------------------------------------------------------

_PACKAGE = __file__.rpartition("/")[0] + "/"
_RUNTIME_ROOMS = ("actors/", "codec/", "mesh/", "node/", "objectstore/", "scheduler/")


def _is_runtime_frame(filename: str) -> bool:
    """Whether a frame is lattica's own machinery; `lattica.rl` and `lattica.util` are libraries, their frames stay."""
    inside = filename.removeprefix(_PACKAGE)
    return inside != filename and ("/" not in inside or inside.startswith(_RUNTIME_ROOMS))


def is_ours(error: BaseException) -> bool:
    """Whether lattica itself raised this to say something, and no code of the user's was on the way."""
    shown = error.__traceback__
    while shown is not None:
        if not _is_runtime_frame(shown.tb_frame.f_code.co_filename):
            return False
        shown = shown.tb_next
    return isinstance(error, LatticaError)


def _strip(shown: TracebackException, seen: set[int]) -> None:
    """Drop our frames from a traceback and from all it chains to; one that is only ours is a bug and stays whole."""
    if id(shown) in seen:
        return
    seen.add(id(shown))
    kept = [frame for frame in shown.stack if not _is_runtime_frame(frame.filename)]
    if kept:
        shown.stack[:] = kept
    for linked in (shown.__cause__, shown.__context__, *(getattr(shown, "exceptions", None) or ())):
        if linked is not None:
            _strip(linked, seen)


def _format_remote(exc: BaseException) -> str:
    from traceback import TracebackException

    shown = TracebackException.from_exception(exc, compact=True)
    _strip(shown, set())
    text = "".join(shown.format())
    if len(text) <= REMOTE_TRACEBACK_MAX_CHARS:
        return text
    half = REMOTE_TRACEBACK_MAX_CHARS // 2
    return f"{text[:half]}\n  ... {len(text) - 2 * half:,} characters left out ...\n{text[-half:]}"
