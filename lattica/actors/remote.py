"""Remote functions: `@lattica.remote` and `.remote(...)`."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from typing import Any

from lattica.actors import current, generators, options, values
from lattica.actors.arguments import encode_arguments
from lattica.actors.arity import Arity, of_function
from lattica.actors.handles import ActorClass
from lattica.actors.runtime import Runtime
from lattica.actors.tasks import Lane
from lattica.errors import ConfigError

KEY_BYTES = 16


class RemoteFunction:
    """A function that runs in a worker: `f.remote(…)` answers at once with a ref of its result."""

    def __init__(self, function: Any, given: dict[str, Any], key: bytes | None = None) -> None:
        """key: names this definition's code; a notebook cell that runs again makes a new one."""
        self._function = function
        self._options = options.check(given, options.TASK, "a task")
        self._key = key or os.urandom(KEY_BYTES)
        self._runtime: Runtime | None = None  # the session, and the group in it, that the fields below belong to
        self._within = b""
        self._data = False  # what results are taken where our options do not say
        self._lane: Lane = None  # type: ignore[assignment]
        self._arity: Arity | None = None  # found when it is first called
        self._returns = options.num_returns(self._options, inspect.isgeneratorfunction(function))
        self._record = generators.task_kind(self._returns, dynamic=options.is_dynamic(self._options))
        retries = self._options.get("max_retries")
        self._retries: int = options.TASK_RETRIES if retries is None else retries
        self._retry_exceptions = options.retry_exceptions(self._options.get("retry_exceptions", False))
        self._name = str(self._options.get("name") or getattr(function, "__qualname__", repr(function)))
        functools.update_wrapper(self, function, updated=())

    def __repr__(self) -> str:
        return f"<RemoteFunction {self._name}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"{self._name} is a remote function: call {self._name}.remote(…)")

    def __reduce__(self) -> tuple[Any, ...]:
        return _revive, (self._function, self._options, self._key)

    def options(self, **given: Any) -> RemoteFunction:
        """The same function with other options for the tasks made through it."""
        other = RemoteFunction(
            self._function, self._options | options.check_more(given, options.TASK, "a task"), self._key
        )
        other._arity = self._arity
        return other

    def _remote(self, args: Any = (), kwargs: Any = None, **given: Any) -> Any:
        """As Ray's: `remote` with options in the same call."""
        return (self.options(**given) if given else self).remote(*(args or ()), **(kwargs or {}))

    def remote(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run it somewhere; a ref of the result, or a list of refs if it has several (None if it has none). A generator
        function answers with an `ObjectRefGenerator`, unless `num_returns` says otherwise.

        Raises SerializationError, ObjectStoreFullError, TypeError for arguments that do not fit.
        """
        arity = self._arity
        if arity is None:
            arity = self._arity = of_function(self._function, self._name)
        if kwargs or not arity.least <= len(args) <= arity.most:
            arity.check(args, kwargs)
        runtime = current.get()
        if runtime is not self._runtime or runtime.within is not self._within:
            self._enter(runtime)
        if runtime.data is not self._data:
            self._enter(runtime)
        if args or kwargs:
            body, deps, at = encode_arguments(runtime, args, kwargs, self._name)
        else:
            body, deps, at = b"", [], []
        guard = runtime.guard
        mine = guard.enter()
        try:
            refs = runtime.new_refs(self._returns)
            record = self._record(
                body,
                deps,
                at,
                refs,
                len(refs),
                self._retries,
                self._retry_exceptions,
                self._lane,
                self._key,
                self._name,
            )
            result = record.begin(runtime, sys._getframe(1), self._returns)
            with runtime.lock:
                runtime.tasks.submit(record)
        finally:
            if mine:
                guard.leave()
        return result

    def _enter(self, runtime: Runtime) -> None:
        """First use in a session: export the code, find the lane."""
        if self._key not in runtime.tasks.exports:
            code = values.dumps(self._function, f"function {self._name}")
            runtime.tasks.exports[self._key] = runtime.objects.small_or_stored(code)
        if max_calls := self._options.get("max_calls"):
            runtime.tasks.max_calls[self._key] = max_calls
        environment = runtime.environments.key(self._options.get("runtime_env"))
        with runtime.lock:
            within = runtime.within
            wanted, given = options.resources(self._options, 1), options.where(self._options, 1, within)
            self._data = runtime.data
            takes_data = options.takes_data(self._options, self._data)
            self._lane = runtime.tasks.lane(wanted, self._retries != 0, given, takes_data, environment)
        self._runtime, self._within = runtime, within


def _revive(function: Any, given: dict[str, Any], key: bytes) -> RemoteFunction:
    return RemoteFunction(function, given, key)


def remote(*args: Any, **given: Any) -> Any:
    """Make a function remote, or a class an actor class; with or without options.

    @lattica.remote
    def f(x): ...

    @lattica.remote(num_cpus=2, max_retries=0)
    def g(x): ...
    """
    if args:
        if len(args) > 1 or given:
            raise ConfigError("@remote takes keywords only, as in @remote(num_cpus=2)")
        return _make(args[0], {})
    return lambda thing: _make(thing, given)


def _make(thing: Any, given: dict[str, Any]) -> Any:
    if inspect.isclass(thing):
        return ActorClass(thing, given)
    if isinstance(thing, RemoteFunction | ActorClass):
        raise ConfigError(f"{thing!r} is remote already")
    if not callable(thing):
        raise ConfigError(f"@remote needs a function or a class, not a {type(thing).__name__}")
    if inspect.iscoroutinefunction(thing) or inspect.isasyncgenfunction(thing):
        raise ConfigError(
            "a remote function cannot be a coroutine", do_next="make it a method of an actor, which has an event loop"
        )
    if given.get("num_gpus") and given.get("max_calls") is None:
        given = {**given, "max_calls": 1}  # what a library keeps of a GPU's memory goes with its process
    return RemoteFunction(thing, given)
