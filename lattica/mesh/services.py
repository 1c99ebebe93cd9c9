"""Services: named methods that peers call, and what a method declares about itself.

    @service("shard")
    class Shard:
        @method(role=Role.SUBMIT, idempotent=True)
        async def forward(self, x): ...            # unary

        @method(role=Role.SUBMIT)
        async def tokens(self, prompt):            # an async generator: the answer is a stream
            yield ...

        @method(role=Role.STORE, takes_stream=True)
        async def store(self, name, *, incoming):  # the caller sends a stream: iterate over `incoming`
            async for block in incoming: ...

The role is checked against the caller's certificates before its arguments are decoded. A method that is no coroutine
runs on the event loop, and must be quick.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from lattica.errors import ConfigError
from lattica.mesh.identity import PeerId
from lattica.mesh.roles import Role

_MARK = "__lattica_method__"
_NAME = "__lattica_service__"
Class = TypeVar("Class", bound=type)
Func = TypeVar("Func", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Declared:
    """What a method says of itself. role: None: every member may call it."""

    role: Role | None
    idempotent: bool
    takes_stream: bool
    limit: int  # calls of it that run at once, of all callers together; 0: no bound of its own
    pipe: bool = False  # both sides send, and it is given a `calls.Pipe`


@dataclass(frozen=True, slots=True)
class Method:
    """A method that can be called: its full name, what it declared, and the function bound to its object."""

    name: str
    declared: Declared
    function: Callable[..., Any]
    gives_stream: bool
    is_async: bool
    gate: asyncio.Semaphore | None = None  # lets `declared.limit` calls run


@dataclass(frozen=True, slots=True)
class Caller:
    """Who called: what its certificates say, and when it no longer waits (on the loop's clock; None: it does)."""

    peer: PeerId
    roles: Role
    deadline: float | None


caller: ContextVar[Caller] = ContextVar("lattica_mesh_caller")
"""In a method: who called it. Calls made from there inherit the deadline."""


def service(name: str) -> Callable[[Class], Class]:
    """Declare a class's marked methods callable as `name.method`."""
    if not name or "." in name or not name.isascii():
        raise ConfigError(f"{name!r} is no name for a service", do_next="take letters, digits and underscores")

    def declare(cls: Class) -> Class:
        setattr(cls, _NAME, name)
        return cls

    return declare


def method(
    *,
    role: Role | None = Role.SUBMIT,
    idempotent: bool = False,
    takes_stream: bool = False,
    limit: int = 0,
    pipe: bool = False,
) -> Callable[[Func], Func]:
    """Declare a method callable.

    role: what the caller's certificates must carry. idempotent: running it twice does no harm, so a call whose session
    died is made again, elsewhere if need be. takes_stream: the caller sends items; they come as the keyword argument
    `incoming`. limit: how many run at once; more wait, in order. pipe: its caller uses `Peer.pipe`, and the other end
    comes as the keyword argument `pipe`; the call is over when the coroutine returns.
    """

    def declare(function: Func) -> Func:
        setattr(function, _MARK, Declared(role, idempotent, takes_stream, limit, pipe))
        return function

    return declare


def name_of(cls: type) -> str:
    """The name of the service. Raises ConfigError if the class is none."""
    found = getattr(cls, _NAME, None)
    if not isinstance(found, str):
        raise ConfigError(f"{cls.__name__} is no service", do_next='put @service("name") above the class')
    return found


def methods_of(instance: object) -> list[Method]:
    """All that can be called of this service."""
    prefix, found = name_of(type(instance)), []
    for name, function in inspect.getmembers(instance, callable):
        declared = getattr(function, _MARK, None)
        if isinstance(declared, Declared):
            gives_stream = inspect.isasyncgenfunction(function)
            is_async = gives_stream or inspect.iscoroutinefunction(function)
            if (declared.takes_stream or declared.pipe) and not is_async:
                raise ConfigError(f"{prefix}.{name} takes a stream and is no coroutine", do_next="make it `async def`")
            gate = asyncio.Semaphore(declared.limit) if declared.limit else None
            found.append(Method(f"{prefix}.{name}", declared, function, gives_stream, is_async, gate))
    if not found:
        raise ConfigError(f"service {prefix} has no method", do_next="put @method() above those that may be called")
    return found
