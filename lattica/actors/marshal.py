"""Values on their way into a worker's user code, and out of it: arguments, results, and what the code raised."""

from __future__ import annotations

import os
from typing import Any

from lattica.actors import context, values
from lattica.actors.objects import INLINE_MAX
from lattica.actors.refs import InPlace, Nested
from lattica.actors.runtime import Runtime
from lattica.codec import messages as m
from lattica.errors import LatticaError, TaskCancelledError, TaskError, is_ours

FAILURE_BYTES_MAX = 16 << 20
"""An exception travels inside its message, which has a bound; a larger one arrives as its text."""


class Marshal:
    """Between messages and the user's objects, in one worker. Without the lock."""

    def __init__(self, runtime: Runtime, place: context.Place) -> None:
        self.runtime, self.place = runtime, place

    def load(self, value: m.Value, via: int = 0) -> Any:
        """A value that came with a message, as the user's object. via: of whom, if that one is on another machine."""
        if type(value) is bytes:
            return values.loads_plain(value, self.runtime)
        with self.runtime.lock:
            kept = self.runtime.objects.from_wire(value, via)
        return self.runtime.load(kept)

    def fetched(self, value: Any) -> Any:
        """A value that was kept when its message came, and was to be fetched, as the user's object."""
        if type(value) is InPlace and value.hold.offset < 0:
            error = self.runtime.lost_error(value.hold)
            if error is not None:
                try:
                    raise error
                finally:
                    del error  # else it and its traceback hold each other, and what was loaded before
        return self.runtime.load(value)

    def arguments(
        self, task: m.Task | m.Call, via: int = 0, kept: list[Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """(args, kwargs) of a task or call, the refs at their top level replaced by values. kept: its values, if they
        were taken from the message before."""
        try:
            if kept is not None:
                args, kwargs = self.fetched(kept[0]) if task.args else ([], {})
            else:
                args, kwargs = self.load(task.args, via) if task.args else ([], {})
        except Exception as error:
            error.add_note("It was raised while the arguments of this call were unpickled.")
            raise
        if task.deps:
            args = list(args)
            for place, value in zip(task.at, task.deps if kept is None else kept[1:], strict=True):
                loaded = self.load(value, via) if kept is None else self.fetched(value)
                if isinstance(place, str):
                    kwargs[place] = loaded
                elif place < len(args):
                    args[place] = loaded
                else:
                    args.append(loaded)
        return args, kwargs

    def results(
        self, result: Any, returns: int, object: bytes, to: int, name: str, data: bool = False, attempt: int = 0
    ) -> list[m.Value]:
        """A task's results as they travel to client `to`; large ones lie in the arena, sealed for it. data: it takes
        data alone. attempt: which run of the task this was."""
        if returns == 1:
            if not data:
                small = values.dump_small(result)
                if small is not None and len(small) <= INLINE_MAX:
                    return [small]
            return [self._result(result, object, to, f"the result of {name}", data, attempt)]
        if returns == 0:
            return [self._result(None, object, to, name, data)]
        if not isinstance(result, tuple | list) or len(result) != returns:
            many = f"{len(result)} values" if isinstance(result, tuple | list) else f"a {type(result).__name__}"
            raise ValueError(f"{name} has num_returns={returns} but returned {many}")
        first = int.from_bytes(object[8:], "big")
        ids = [object[:8] + (first + k).to_bytes(8, "big") for k in range(returns)]
        return [
            self._result(each, id, to, f"result {k} of {name}", data, attempt)
            for k, (each, id) in enumerate(zip(result, ids, strict=True))
        ]

    def item(self, value: Any, object: bytes, to: int, name: str, call: m.Task | m.Call) -> m.Value:
        """One of several values that a generator makes, as it travels; `object` is its id."""
        if value is None and not call.data:
            return values.NONE
        return self._result(value, object, to, name, call.data, call.attempt)

    def _result(self, result: Any, object: bytes, to: int, name: str, only_data: bool, attempt: int = 0) -> m.Value:
        data = values.dumps_data(result, name) if only_data else values.dumps(result, name)
        runtime = self.runtime
        if data.size <= INLINE_MAX:
            if not data.refs:
                return data.join()
            for ref in data.refs:
                runtime.objects.prepare(ref)
            with runtime.lock:
                return runtime.objects.to_wire(Nested(data.join(), data.refs), to)
        for ref in data.refs:
            runtime.objects.prepare(ref)
        hold = runtime.objects.store(data, object)
        with runtime.lock:
            return runtime.objects.hand_over(hold, to, [ref.id for ref in data.refs], attempt)

    def failed(self, error: BaseException, name: str, data: bool = False) -> m.Failed:
        """What user code raised, as it travels. data: its caller takes data alone, and so the words."""
        if isinstance(error, context.Canceled):
            return self.failed_by_us(TaskCancelledError(name=name, task_id=error.task_id), ours=False, data=data)
        if isinstance(error, TaskCancelledError) or (isinstance(error, LatticaError) and is_ours(error)):
            return self.failed_by_us(error, ours=False, data=data)
        failure = TaskError.from_exception(error, function_name=name, pid=os.getpid(), actor=self.place.actor_name)
        if data:
            return m.Failed(values.dumps_error(failure))
        whole = values.dumps(failure)
        if whole.refs:  # they would outlive every count: the text must do
            whole = values.dumps(failure.without_cause("it holds refs"))
        elif whole.size > FAILURE_BYTES_MAX:
            whole = values.dumps(failure.without_cause(f"it has {whole.size >> 20} MiB"))
        elif failure.cause_lost and failure.cause is not None:
            culprit = values.culprit(failure.cause, type(failure.cause).__name__)
            whole = values.dumps(failure.without_cause(f"{culprit}: {failure.cause_lost}"))
        return m.Failed(whole.join())

    def failed_by_us(self, error: LatticaError, *, ours: bool = True, data: bool = False) -> m.Failed:
        """An error of lattica's own, as it travels. ours: it was not the user's code that ended in it."""
        return m.Failed(values.dumps_error(error) if data else values.dumps(error).join(), [], ours)
