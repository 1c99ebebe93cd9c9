"""What a process remembers of a task or call until its refs have values: the part that both share."""

from __future__ import annotations

import functools
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from lattica.actors.refs import Hold, Nested, ObjectRef
from lattica.actors.values import is_data, not_data
from lattica.codec import messages as m
from lattica.errors import LatticaError, TaskError

if TYPE_CHECKING:
    from lattica.actors.runtime import Runtime


class _Fate(msgspec.Struct, eq=False, kw_only=True):
    """How far a task or call has come."""

    seq: int = 0
    attempt: int = 0
    missing: int = 0  # deps that have no value yet
    canceled: bool = False
    made_by: CodeType | None = None  # the code that has called it, and where in that
    made_in: int = 0


class Record(_Fate, eq=False):
    """One task or call. `args` and `deps` are kept until it has ended, since it may have to be sent again.

    args: serialized, without the top-level refs `deps`, which belong at `at`. refs: what it will give values to.
    retries_left: after a death, or a failure of `retry_exceptions`; -1: without limit. A struct since one is made for
    each call: by C in 0.1 us, by an `__init__` in 0.5.
    """

    args: bytes | Nested | Hold
    deps: list[ObjectRef]
    at: list[int | str]
    refs: list[ObjectRef]
    returns: int
    retries_left: int
    retry_exceptions: bool | tuple[type[BaseException], ...]

    repeatable: ClassVar[bool] = False
    """Whether also when it had ended, and what it made is lost."""

    def begin(self, runtime: Runtime, caller: FrameType, returns: int) -> Any:
        """Tie it to its refs, which are what the user gets: one, a list, or None."""
        self.made_by, self.made_in = caller.f_code, caller.f_lasti  # its line takes 5 us in a long function
        refs = self.refs
        for ref in refs:
            ref._task = self
        if runtime.on_submit is not None:
            runtime.on_submit(refs[0])
        return refs[0] if returns == 1 else list(refs) if returns else None

    @property
    def made_at(self) -> str:
        """Where the user made it, as errors say it: file and line."""
        code = self.made_by
        if code is None:
            return ""
        line = next((line for start, end, line in code.co_lines() if start <= self.made_in < end), None)
        return f"{code.co_filename}:{line or code.co_firstlineno}"

    def spend_retry(self) -> None:
        """It will be sent again."""
        self.retries_left -= self.retries_left > 0
        self.attempt += 1

    def machine_gone(self, host: int) -> None:
        """The machine on which it ran is gone, and it may run again. host: by our node's number. Lock held."""

    @property
    def unheard(self) -> list[bytes]:
        """Ids of what whoever runs it may have made without our hearing of it."""
        return [ref.id for ref in self.refs]

    @property
    def data(self) -> bool:
        """Whether what it makes is taken as data or not at all."""
        return False

    def rerun(self) -> bool:
        """Send it again, spending a retry; False if there is nowhere to. Lock held."""
        raise AssertionError("a record is a task or a call")


def data_alone(runtime: Runtime, record: Record, values: list[m.Value], name: str) -> list[m.Value]:
    """What came for a record that takes data; a failure if some of it is none. Lock held."""
    for at, value in enumerate(values):
        if isinstance(value, m.InArena):  # its bytes are looked at when they are read: see `Hold`
            fits = at < len(record.refs) and value.object == record.refs[at].id
        else:
            fits = is_data(value if isinstance(value, bytes) else value.data)
        if not fits:
            return [runtime.failure(not_data(f"the result of {name}"))]
    if not values or (len(values) != len(record.refs) and type(values[0]) is not m.Failed):
        return [runtime.failure(not_data(f"the result of {name}"))]
    return values


def finish(
    runtime: Runtime, record: Record, values: list[m.Value], *, final: bool = False, via: int = 0, data: bool = False
) -> None:
    """It ran, or cannot: give its refs their values, or send it again if the user asked for that. Lock held.

    values: one per ref, or one failure for all of them. final: do not retry. via: who made them, on another machine.
    data: they are data alone.
    """
    objects = runtime.objects
    first = values[0]
    if type(first) is bytes and record.returns == 1 and not record.attempt:  # as nearly always: nobody asks again
        objects.settle(record.refs[0], first)
    elif type(first) is m.Failed:
        if not final and record.retry_exceptions and record.retries_left and not record.canceled:
            runtime.reactor.after_dispatch.append(functools.partial(_rerun_or_settle, runtime, record, first))
            return
        for ref in record.refs:
            objects.settle(ref, first)
        if record.attempt:
            objects.lineage.keep(record)
    else:
        for ref, value in zip(record.refs, values, strict=True):
            objects.settle(ref, objects.from_wire(value, via, data, record.attempt))
        objects.lineage.keep(record)
    record.refs, record.args, record.deps = [], b"", []


def fail(runtime: Runtime, record: Record, error: LatticaError) -> None:
    """It ends in an error of ours. Lock held."""
    finish(runtime, record, [runtime.failure(error)], final=True)


def failed_dep(runtime: Runtime, record: Record) -> m.Failed | None:
    """The first failure among its arguments, which is then its own. Lock held."""
    return next((f for f in (runtime.objects.failure_of(ref._value) for ref in record.deps) if f is not None), None)


def _was(error: TaskError, kinds: tuple[type[BaseException], ...]) -> bool:
    """Whether what came as words alone was of one of these classes."""
    from lattica.actors.data import raised

    return error.cause is None and raised(error, kinds)


def _rerun_or_settle(runtime: Runtime, record: Record, failed: m.Failed) -> None:
    """Unpickling an exception runs user code, so this happens outside the lock; a cancel may come meanwhile."""
    kinds: Any = record.retry_exceptions
    again = kinds is True
    if isinstance(kinds, tuple):
        try:
            error = runtime.load_failure(failed)
            again = isinstance(error, TaskError) and (isinstance(error.cause, kinds) or _was(error, kinds))
        except Exception:  # an exception that cannot be read is none that was named
            again = False
    with runtime.lock:
        if again and not record.canceled and record.rerun():
            runtime.reactor.flush()
        else:
            finish(runtime, record, [failed], final=True)
            runtime.reactor.changed()
