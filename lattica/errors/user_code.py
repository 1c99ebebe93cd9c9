"""What the user's code raised, far away: `TaskError`, and how it is an instance of the user's class too."""

from __future__ import annotations

import sys

from lattica.errors.anatomy import anatomy, pickle_cause, revive
from lattica.errors.base import LatticaError, short_id
from lattica.errors.remote_traceback import format_remote

TYPE_CHECKING = False  # importing `typing` would cost more than this whole package
if TYPE_CHECKING:
    from typing import Any, Self

DUAL_CLASSES_MAX = 256  # one per user exception class; notebooks redefine theirs without end


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
            return cls(function_name, format_remote(exc), exc.cause, **where)
        return cls(function_name, format_remote(exc), exc, **where)

    def without_cause(self, why: str) -> TaskError:
        """The same without the exception object, which cannot travel; its words stay."""
        other = type(self)()
        other.__dict__.update(self.__dict__, cause=None, cause_lost=why)
        return other

    def _describe(self) -> str:
        places = (
            self.pid is not None and f"pid {self.pid}",
            self.node and f"node {short_id(self.node)}",
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
                cause_bytes = pickle_cause(self.cause)
            except Exception as why:
                name = f"{type(self.cause).__module__}.{type(self.cause).__qualname__}"
                self.cause_lost = facts["cause_lost"] = f"{name} could not be pickled: {type(why).__name__}: {why}"
        return rebuild_task_error, (type(self), facts, cause_bytes)


def rebuild_task_error(cls: type[TaskError], facts: dict[str, Any], cause_bytes: bytes | None) -> TaskError:
    """Unpickle: without the cause where that cannot be had."""
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
    dual_class = type(
        name, (cause_class, _DualError), {"__module__": TaskError.__module__, "__qualname__": name} | on_top
    )
    if len(_dual_classes) >= DUAL_CLASSES_MAX:
        _dual_classes.clear()
    _dual_classes[cause_class] = dual_class
    return dual_class


def _dual_instance(error: TaskError, cause: Exception) -> TaskError:
    args, slots, attributes = anatomy(cause)
    dual: TaskError = revive(_dual_class(type(cause)), args, slots, error.__dict__ | attributes)
    dual.__dict__["_task_error"] = error
    return dual
