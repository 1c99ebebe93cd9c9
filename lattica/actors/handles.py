"""Actor handles, and the classes that make actors.

A handle names an actor and what its methods return. It owns a share of the process's hold on the actor: when the last
handle anywhere is gone, and the last call answered, an actor that is not detached ends.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterable, Mapping
from types import FunctionType, SimpleNamespace
from typing import Any

import msgspec

from lattica.actors import current, generators, options, values
from lattica.actors.arguments import encode_arguments
from lattica.actors.arity import ANY, Arities, Arity
from lattica.actors.calls import ActorPeer
from lattica.actors.context import Place
from lattica.actors.records import fail
from lattica.actors.refs import ActorHold, Hold, Nested, ObjectRef
from lattica.actors.runtime import Runtime
from lattica.actors.tasks import inputs_of
from lattica.codec import messages as m
from lattica.errors import (
    ActorAlreadyExistsError,
    ActorInheritanceError,
    ActorUnavailableError,
    ActorUnschedulableError,
    ConfigError,
)
from lattica.ids import ACTOR_ID_BYTES


class Meta(msgspec.Struct, array_like=True, frozen=True):
    """What every handle of an actor knows; travels with it and lies with the node for `get_actor`."""

    class_name: str
    methods: dict[str, dict[str, Any]]  # name -> options given by @method
    max_task_retries: int = 0
    max_pending: int = -1
    groups: list[str] = []  # names of its concurrency groups


SPECIAL = {f"__{ours}_{name}__" for ours in ("lattica", "ray") for name in ("call", "ready", "terminate")}
"""What every actor can be asked besides its class's methods: see `actor_host`."""
META_PLAIN = ("num_returns", "max_task_retries", "concurrency_group", "_generator_backpressure_num_objects")
"""Options of methods that are taken from whom nothing is unpickled."""


class Spec(msgspec.Struct, array_like=True):
    """What a worker needs to become an actor; opaque to the node, which keeps it for restarts."""

    code: m.Value
    args: m.Value
    deps: list[m.Value]
    at: list[int | str]
    class_name: str
    max_concurrency: int
    is_async: bool
    meta: bytes
    data: bool = False  # what it raises shall be data, and what it submits likewise
    checkpoint_s: float | None = None  # between checkpoints, if the class offers any
    groups: dict[str, int] = {}  # concurrency groups: how many calls of each run at once


_meta_encoder = msgspec.msgpack.Encoder()
_meta_decoder = msgspec.msgpack.Decoder(Meta)
spec_decoder = msgspec.msgpack.Decoder(Spec)


def method(*functions: Any, **given: Any) -> Any:
    """Options of one actor method: `@lattica.method(num_returns=2)`; or a bare `@lattica.method`, as in Ray."""
    checked = options.check(given, options.METHOD, "a method")
    if len(functions) == 1 and callable(functions[0]) and not given:
        return functions[0]
    if functions:
        raise ConfigError("@method takes keywords only, as in @method(num_returns=2)")

    def mark(function: Any) -> Any:
        options.num_returns(checked, _generates(function))
        function.__lattica_method__ = checked
        return function

    return mark


class ActorMethod:
    """A method of an actor elsewhere; `.remote(...)` calls it. Holds the actor, not the handle: no cycle."""

    __slots__ = (
        "_arity", "_called", "_group", "_groups", "_hold", "_name", "_options", "_peer", "_record", "_retries",
        "_retry_exceptions", "_returns",
    )  # fmt: skip

    def __init__(
        self, peer: ActorPeer, hold: ActorHold, name: str, given: dict[str, Any], meta: Meta, arity: Arity = ANY
    ) -> None:
        self._peer, self._hold, self._name, self._options, self._arity = peer, hold, name, given, arity
        self._returns = options.num_returns(given)
        self._record = generators.call_kind(self._returns, dynamic=options.is_dynamic(given))
        retries = given.get("max_task_retries")
        self._retries: int = meta.max_task_retries if retries is None else retries
        kinds = given.get("retry_exceptions", False)
        self._retry_exceptions = options.retry_exceptions(
            values.loads(kinds, peer.runtime) if isinstance(kinds, bytes) else kinds
        )
        self._called: str = given.get("name") or ""
        self._groups = meta.groups
        self._group = known_group(given, meta.groups, peer.class_name)

    def __repr__(self) -> str:
        return f"<ActorMethod {self._peer.class_name}.{self._name}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"{self._name} is a method of an actor: call {self._name}.remote(…)")

    def options(self, **given: Any) -> ActorMethod:
        """The same method with other options for the calls made through it. None, for each: as the method says."""
        checked = options.check(given, options.CALL, "a method")
        merged = self._options | {name: value for name, value in checked.items() if value not in (None, "")}
        meta = Meta(self._peer.class_name, {}, self._retries, groups=self._groups)
        return ActorMethod(self._peer, self._hold, self._name, merged, meta, self._arity)

    def _remote(self, args: Any = (), kwargs: Any = None, **given: Any) -> Any:
        """As Ray's: `remote` with options in the same call."""
        return (self.options(**given) if given else self).remote(*(args or ()), **(kwargs or {}))

    def remote(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call it; a ref of the result, or a list of refs if it has several. A generator answers with an
        `ObjectRefGenerator`, unless `num_returns` says otherwise.

        Raises PendingCallsLimitExceededError, SerializationError, ObjectStoreFullError; TypeError for arguments that do
        not fit, where the handle is of the process that made the actor.
        """
        peer = self._peer
        runtime = peer.runtime
        arity = self._arity
        if kwargs or not arity.least <= len(args) <= arity.most:
            arity.check(args, kwargs)
        if args or kwargs:
            body, deps, at = encode_arguments(runtime, args, kwargs, self._name)
        else:
            body, deps, at = b"", [], []
        guard = runtime.guard
        mine = guard.enter()
        try:
            refs = runtime.new_refs(self._returns)
            call = self._record(
                body,
                deps,
                at,
                refs,
                len(refs),
                self._retries,
                self._retry_exceptions,
                peer,
                self._hold,
                self._name,
                self._group,
                self._called,
            )
            result = call.begin(runtime, sys._getframe(1), self._returns)
            with runtime.lock:
                peer.submit(call)
        finally:
            if mine:
                guard.leave()
        return result


def known_group(given: Mapping[str, Any], groups: Iterable[str], class_name: str) -> str:
    """The concurrency group that a method's options name; empty for none. Raises ConfigError if there is none of that
    name."""
    group: str = given.get("concurrency_group") or ""
    if group and group not in groups:
        names = ", ".join(map(repr, sorted(groups)))
        raise ConfigError(
            f"actor {class_name} has no concurrency group {group!r}",
            do_next=f"name one of {names}" if names else "give the class some: @lattica.remote(concurrency_groups={…})",
        )
    return group


class ActorHandle:
    """An actor somewhere. Its methods are attributes: `handle.step.remote(…)`."""

    _runtime: Runtime
    _peer: ActorPeer
    _hold: ActorHold
    _meta: Meta
    _arities: Arities | None

    def __init__(
        self, runtime: Runtime, peer: ActorPeer, hold: ActorHold, meta: Meta, arities: Arities | None = None
    ) -> None:
        """arities: of the class, in the process that has it."""
        self.__dict__.update(_runtime=runtime, _peer=peer, _hold=hold, _meta=meta, _arities=arities)

    def __getattr__(self, name: str) -> ActorMethod:
        given = self._meta.methods.get(name)
        if given is None:
            if name in SPECIAL:
                given = {}
            else:
                raise AttributeError(
                    f"actor {self._meta.class_name} has no method {name!r}; its attributes are read by methods"
                )
        arity = ANY if self._arities is None else self._arities.of(name)
        found = ActorMethod(self._peer, self._hold, name, given, self._meta, arity)
        self.__dict__[name] = found
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"an actor's attributes are set by its own methods; {name!r} cannot be set through a handle"
        )

    def __dir__(self) -> list[str]:
        return sorted({*self._meta.methods, *SPECIAL})

    @property
    def _actor_id(self) -> bytes:
        return self._peer.id

    def __repr__(self) -> str:
        return f"Actor({self._meta.class_name}, {self._peer.id.hex()})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and other._peer.id == self._peer.id

    def __hash__(self) -> int:
        return hash(self._peer.id)

    def __reduce__(self) -> tuple[Any, ...]:
        values.note_ref(self._hold)
        return values.load_actor, (self._peer.id, _meta_encoder.encode(self._meta))


def encode_meta(meta: Meta) -> bytes:
    """As it travels."""
    return _meta_encoder.encode(meta)


def plain_meta(data: bytes) -> bytes:
    """What somebody says of an actor, without what would be unpickled. Raises SerializationError."""
    from lattica.actors.data import damaged

    try:
        meta = _meta_decoder.decode(data)
        methods = {
            name: options.check({key: given[key] for key in META_PLAIN if key in given}, options.METHOD, "a method")
            for name, given in meta.methods.items()
        }
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ConfigError) as error:
        raise damaged(f"of an actor is said {error}") from error
    return _meta_encoder.encode(msgspec.structs.replace(meta, methods=methods))


def revive(runtime: Runtime, peer: ActorPeer, hold: ActorHold, meta: bytes) -> ActorHandle:
    """A handle that came inside a value, or from the node. No method of the class, where it would hide the actor's."""
    known = _meta_decoder.decode(plain_meta(meta) if runtime.data else meta)
    peer.class_name = known.class_name
    peer.max_pending = known.max_pending
    return ActorHandle(runtime, peer, hold, known)


class ActorClass:
    """A class whose instances are actors: `Counter.remote(…)` starts one and answers with its handle."""

    def __init__(self, cls: type, given: dict[str, Any]) -> None:
        self._cls = cls
        self._options = options.check(given, options.ACTOR, "an actor")
        self._code: tuple[Runtime, Any] | None = None
        self._arities = Arities(cls)
        self.__doc__, self.__name__, self.__module__ = cls.__doc__, cls.__name__, cls.__module__
        self.__qualname__ = cls.__qualname__

    def __repr__(self) -> str:
        return f"<ActorClass {self._cls.__qualname__}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"{self.__name__} is an actor class: make one with {self.__name__}.remote(…)")

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorClass, (self._cls, self._options)

    def __getattr__(self, name: str) -> Any:
        """What belongs to the class itself: its constants, its static and class methods. None of its other methods: a
        function that is found by its name is pickled as that name, and its `super()` would be of another class."""
        cls = self.__dict__.get("_cls")
        if cls is None or name.startswith("__"):
            raise AttributeError(f"ActorClass has no {name}")
        if isinstance(inspect.getattr_static(cls, name, None), FunctionType | property):
            raise AttributeError(f"{name} is of an actor: make one with {self.__name__}.remote(…)")
        return getattr(cls, name)

    @property
    def __ray_metadata__(self) -> SimpleNamespace:
        """As far as Ray's libraries look at it: the class, to be used here or inherited from."""
        return SimpleNamespace(modified_class=self._cls, class_name=self.__name__)

    def _remote(self, args: Any = (), kwargs: Any = None, **given: Any) -> ActorHandle:
        """As Ray's: `remote` with options in the same call."""
        return (self.options(**given) if given else self).remote(*(args or ()), **(kwargs or {}))

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        raise ActorInheritanceError(f"{self.__name__} is an actor class, and cannot be the base of another class")

    def options(self, **given: Any) -> ActorClass:
        """The same class with other options for the actors made through it."""
        other = ActorClass(self._cls, self._options | options.check_more(given, options.ACTOR, "an actor"))
        other._code, other._arities = self._code, self._arities
        return other

    def remote(self, /, *args: Any, **kwargs: Any) -> ActorHandle:
        """Start an actor. Returns at once; the constructor's exception comes with the first call.

        Raises ActorAlreadyExistsError if the name is taken, SerializationError, and TypeError for arguments that do not
        fit.
        """
        self._arities.constructor.check(args, kwargs)
        runtime = current.get()
        given = self._options
        if self._code is None or self._code[0] is not runtime:
            code = runtime.objects.small_or_stored(values.dumps(self._cls, f"class {self.__name__}"))
            self._code = runtime, code
        code = self._code[1]
        body, deps, at = encode_arguments(runtime, args, kwargs, self.__name__)
        meta = self._meta()
        is_async = any(
            inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f) for _, f in _functions(self._cls)
        )
        creation = _Creation(
            runtime,
            self,
            code,
            body,
            deps,
            at,
            meta,
            is_async,
            given.get("max_concurrency") or (1000 if is_async else 1),
        )
        return creation.start()

    def _meta(self) -> Meta:
        given = self._options
        methods = {name: _portable(_given_for(function)) for name, function in _functions(self._cls)}
        groups = list(given.get("concurrency_groups") or ())
        for one in methods.values():
            known_group(one, groups, self.__name__)
        return Meta(
            self.__name__,
            methods,
            given.get("max_task_retries") or 0,
            -1 if given.get("max_pending_calls") in (None, 0) else given["max_pending_calls"],
            groups,
        )


def _portable(given: dict[str, Any]) -> dict[str, Any]:
    """Method options as they travel: plain data, and exception classes as a value."""
    kinds = given.get("retry_exceptions")
    if isinstance(kinds, list | tuple):
        return given | {"retry_exceptions": values.dumps(tuple(kinds), "retry_exceptions").join()}
    return dict(given)


def _given_for(function: Any) -> dict[str, Any]:
    """A method's own options; a generator streams unless they say otherwise."""
    given: dict[str, Any] = getattr(function, "__lattica_method__", getattr(function, "__ray_method__", {}))
    streams = given.get("num_returns") is None and _generates(function)
    return given | {"num_returns": "streaming"} if streams else given


def _generates(function: Any) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _functions(cls: type) -> list[tuple[str, Any]]:
    """The methods of a class by name, without those that every object has."""
    own = {name for base in cls.__mro__ if base is not object for name in vars(base)}
    found = inspect.getmembers(cls, lambda member: callable(member) and not isinstance(member, type))
    return [(name, member) for name, member in found if name in own]


class _Creation:
    """One actor on its way to the node. It is announced at once; its constructor's top-level refs may come later."""

    def __init__(
        self,
        runtime: Runtime,
        made_by: ActorClass,
        code: Any,
        body: bytes | Nested | Hold,
        deps: list[ObjectRef],
        at: list[int | str],
        meta: Meta,
        is_async: bool,
        max_concurrency: int,
    ) -> None:
        self.runtime, self.cls, self.code, self.body, self.deps, self.at = runtime, made_by, code, body, deps, at
        self.meta, self.is_async, self.max_concurrency = meta, is_async, max_concurrency
        self.id = os.urandom(ACTOR_ID_BYTES)
        self.missing = 0
        self.refused = False
        given = made_by._options
        self.name: str = given.get("name") or ""
        self.namespace: str = given.get("namespace") or runtime.namespace
        self.detached = given.get("lifetime") == "detached"
        self.data = options.takes_data(given, runtime.data)
        self.resources = options.resources(given, 0)
        self.where = options.where(given, 0, runtime.within)
        self.environment = runtime.environments.key(given.get("runtime_env"))

    def start(self) -> ActorHandle:
        runtime, given = self.runtime, self.cls._options
        if given.get("get_if_exists") and not self.name:
            raise ConfigError("get_if_exists needs a name", do_next="give the actor name='…'")
        with runtime.lock:
            peer, hold = runtime.calls.created(self.id, self.meta.class_name, self.meta.max_pending)
            peer.data = self.data
            peer.dead = runtime.node_died_error() if runtime.node_died_at is not None else None
            request = runtime.next_request()
            if not self.name:
                runtime.expect(request, lambda answer: self._answered(peer, answer))
            waiting = [ref for ref in self.deps if ref._value is None]
            runtime.objects.ask(waiting)
            self.missing = len(waiting)
            if waiting:
                runtime.waiting.add(self)
            self._create(request)
            for ref in waiting:
                runtime.when_done(ref, lambda _: self._dep_ready())
            runtime.reactor.flush()
        if self.name:
            return self._named(request, peer, hold)
        return ActorHandle(runtime, peer, hold, self.meta, self.cls._arities)

    def _named(self, request: int, peer: ActorPeer, hold: ActorHold) -> ActorHandle:
        runtime = self.runtime
        runtime.wait_until(lambda: request in runtime.answers or runtime.node_died_at is not None)
        with runtime.lock:
            answer = runtime.answers.pop(request, None)
        if answer is None:
            raise runtime.node_died_error()
        if isinstance(answer, m.ActorRefused):
            with runtime.lock:
                self._answered(peer, answer)
            if answer.kind == "name-taken":
                raise ActorAlreadyExistsError(answer.reason)
        elif answer.existing:
            self.refused = True
            peer.held = 0
            with runtime.lock:
                found = runtime.calls.found(answer.actor)
                runtime.reactor.flush()
            return revive(runtime, runtime.calls.peers[answer.actor], found, answer.meta)
        return ActorHandle(runtime, peer, hold, self.meta, self.cls._arities)

    def _dep_ready(self) -> None:
        self.missing -= 1
        if not self.missing:
            self.runtime.waiting.discard(self)
        if not self.missing and not self.refused:
            failed = self._failed_argument()
            self.runtime.tell_node(
                m.ActorArguments(self.id, *self._spec(), inputs=inputs_of(self.deps, self.body))
                if failed is None
                else m.ActorArguments(self.id, error=failed)
            )

    def _failed_argument(self) -> bytes | None:
        failures = (self.runtime.objects.failure_of(ref._value) for ref in self.deps)
        return next((failure.data for failure in failures if failure is not None), None)

    def _create(self, request: int) -> None:
        """Tell the node of it, with the arguments if they are there. Lock held."""
        given, failed = self.cls._options, None if self.missing else self._failed_argument()
        announced = bool(self.missing) or failed is not None
        spec, holds = (b"", []) if announced else self._spec()
        self.runtime.tell_node(
            m.ActorCreate(
                request,
                self.id,
                spec,
                self.resources,
                self.meta.class_name,
                self.name,
                self.namespace,
                self.detached,
                bool(given.get("get_if_exists")),
                given.get("max_restarts") or 0,
                holds,
                _meta_encoder.encode(self.meta),
                announced,
                self.where,
                given.get("partition") == "available",
                [] if self.missing else inputs_of(self.deps, self.body),
                self.environment,
            )
        )
        if failed is not None:
            self.runtime.tell_node(m.ActorArguments(self.id, error=failed))

    def _spec(self) -> tuple[bytes, list[bytes]]:
        """(what a worker needs, ids of the objects in it). These are given to the node, which gives them on to each
        worker. Lock held."""
        objects = self.runtime.objects
        wire = [objects.to_wire(value, m.NODE) for value in (self.code, self.body, *(ref._value for ref in self.deps))]
        spec = Spec(
            wire[0],
            wire[1],
            wire[2:],
            self.at,
            self.meta.class_name,
            self.max_concurrency,
            self.is_async,
            _meta_encoder.encode(self.meta),
            self.data,
            checkpoint_s=self.cls._options.get("checkpoint_every"),
            groups=dict(self.cls._options.get("concurrency_groups") or {}),
        )
        return _meta_encoder.encode(spec), [id for value in wire for id in _ids(value)]

    def _answered(self, peer: ActorPeer, answer: Any) -> None:
        """A refused actor is dead, and no hold on it was ever counted. Lock held."""
        if isinstance(answer, m.ActorRefused):
            self.refused = True
            if self.runtime.calls.peers.get(self.id) is peer:
                peer.held -= 1
            else:
                self.runtime.tell_node(m.Hold(self.id))  # against our own Drop, which is on its way
            error = ActorUnschedulableError(f"actor {self.meta.class_name} cannot be started: {answer.reason}")
            peer.dead = error
            for call in [*peer.inflight.values(), *peer.queue]:
                fail(self.runtime, call, error)
            peer.queue.clear()


def _ids(value: m.Value) -> list[bytes]:
    if isinstance(value, m.InArena):
        return [value.object]
    return list(value.refs) if isinstance(value, m.WithRefs) else []


def get_actor(name: str, namespace: str | None = None) -> ActorHandle:
    """The living actor of this name. Raises ValueError (as Ray does) if there is none, ActorUnavailableError if its
    node cannot be reached."""
    runtime = current.get()
    answer = runtime.ask_node(m.ActorLookup(runtime.next_request(), name, namespace or runtime.namespace))
    if isinstance(answer, m.ActorRefused) and answer.kind == "unavailable":
        raise ActorUnavailableError(actor=repr(name), reason=answer.reason)
    if isinstance(answer, m.ActorRefused):
        raise ConfigError(answer.reason, do_next="say get_actor(name, namespace=…), or see `lattica list actors`")
    with runtime.lock:
        hold = runtime.calls.found(answer.actor)
        runtime.reactor.flush()
    return revive(runtime, runtime.calls.peers[answer.actor], hold, answer.meta)


def own_handle(runtime: Runtime, place: Place) -> ActorHandle:
    """A handle of the actor that runs in this worker."""
    with runtime.lock:
        peer, hold = runtime.calls.load(place.actor_id)
        runtime.reactor.flush()
    return revive(runtime, peer, hold, place.meta)


def kill(actor: ActorHandle, *, no_restart: bool = True) -> None:
    """End an actor's process now; what it had not answered ends in an error."""
    if not isinstance(actor, ActorHandle):
        raise ConfigError(
            f"kill takes an actor handle, not a {type(actor).__name__}",
            do_next="a task is stopped by lattica.cancel(ref)",
        )
    with actor._runtime.lock:
        actor._peer.kill(no_restart)
