"""The calls and streams of one session, as coroutines see them: futures, tasks and queues around `rpc.Conversation`.

One `Talk` per session. What it wants to send waits in its conversation until the peer's shell flushes it, once per turn
of the event loop; `dirty` says that there is something.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, nullcontext
from contextvars import Context
from functools import partial
from typing import Any

from lattica.errors import (
    CallFailedError,
    ConfigError,
    LatticaError,
    PeerUnreachableError,
    PermissionDeniedError,
    RemoteProtocolError,
)
from lattica.mesh import rpc, values
from lattica.mesh.compression import Packer
from lattica.mesh.identity import PeerId, peer_text
from lattica.mesh.roles import Role, roles_text
from lattica.mesh.rpc import FROM_CALLEE, FROM_CALLER, STREAMS_IN, STREAMS_OUT, Conversation
from lattica.mesh.services import Caller, Method, caller
from lattica.mesh.wire import Buffer

log = logging.getLogger(__name__)
TRACEBACK_MAX_CHARS = 8192  # of a method that raised: the innermost frames say most


class Inbox:
    """Items of a stream as they come; iterate over it. Taking one gives the sender credit for the next."""

    def __init__(self, talk: Talk, id: int, side: int) -> None:
        self._talk, self._id, self._side = talk, id, side
        self._bodies: deque[Buffer] = deque()
        self._over: BaseException | bool = False
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        while not self._bodies:
            if isinstance(self._over, BaseException):
                raise self._over
            if self._over:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._next()

    async def take(self, silence_s: float) -> Any:
        """The next item; None: it has ended. One that is here costs no timer. Raises TimeoutError if nothing comes for
        `silence_s` seconds, and what iterating raises."""
        if self._bodies:
            return self._next()
        async with asyncio.timeout(silence_s):
            return await anext(self, None)

    def _next(self) -> Any:
        body = self._bodies.popleft()
        self._talk.conversation.consumed(self._id, self._side, len(body))
        self._talk.dirty()
        return values.decode(body)

    def came(self, body: Buffer) -> None:
        self._bodies.append(body)
        self._wake()

    def end(self, error: BaseException | None = None) -> None:
        """No more will come; error: why, if it is not the end."""
        if self._over is False:
            self._over = error if error is not None else True
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Stream:
    """A call with streams, on its caller's side.

    `send` items if the method takes a stream, then `finish`; iterate over what it gives; `result` is what it returned.
    Leaving the `async with` block cancels the call if it is not over.
    """

    def __init__(self, talk: Talk, id: int) -> None:
        self._talk, self._id = talk, id
        self._inbox = talk.inboxes[FROM_CALLEE, id] = Inbox(talk, id, FROM_CALLEE)
        self._answer = talk.futures[id]

    async def send(self, *values_: Any) -> None:
        """Send an item (several arguments: a list of them). Waits while the reader is behind: this is back-pressure.

        Raises what the method raised, if it has ended; PeerUnreachableError if the session is over.
        """
        await self._talk.send_item(self._id, FROM_CALLER, values_[0] if len(values_) == 1 else list(values_))
        if self._answer.done():
            await self._answer

    async def finish(self) -> None:
        """Say that no more items follow."""
        self._talk.conversation.end(self._id, FROM_CALLER)
        self._talk.dirty()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._inbox.__aiter__()

    async def take(self, silence_s: float) -> Any:
        """The next item of what it gives: see `Inbox.take`."""
        return await self._inbox.take(silence_s)

    async def result(self) -> Any:
        """What the method returned; None for one that gives a stream. Raises what it raised."""
        return values.decode(await self._answer)

    async def close(self) -> None:
        """Cancel the call if it is not over."""
        if not self._answer.done():
            self._talk.cancel(self._id)
            self._answer.cancel()
        elif not self._answer.cancelled():
            self._answer.exception()  # seen
        self._talk.inboxes.pop((FROM_CALLEE, self._id), None)

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Pipe:
    """Both streams of a call as bytes, for who needs them at once: no coroutine, no queue but for want of credit.

    `came` is called with each item (a buffer that is whole and may be kept), in order, and `ended` once, with why.
    """

    def __init__(self, talk: Talk, id: int, mine: int) -> None:
        """mine: FROM_CALLER or FROM_CALLEE, whichever end this is."""
        self.peer = talk.peer
        self.came: Callable[[Buffer], None] = self._keep
        self.ended: Callable[[str], None] = lambda _: None
        self.drained: Callable[[], None] = lambda: None  # all that waited for credit has gone
        self.over: str | None = None
        self.waiting_bytes = 0  # for credit
        self._early: list[Buffer] = []
        self._talk, self._id, self._mine, self._theirs = talk, id, mine, FROM_CALLER + FROM_CALLEE - mine
        self._waiting: deque[tuple[Sequence[Buffer], int]] = deque()
        talk.pipes[id, self._theirs] = self

    def __repr__(self) -> str:
        return f"<Pipe to {peer_text(self.peer)[:8]}: {self.over or f'{self.waiting_bytes} bytes wait'}>"

    def listen(self, came: Callable[[Buffer], None], ended: Callable[[str], None]) -> None:
        """Hear what comes, what came before this first."""
        self.came, self.ended = came, ended
        early, self._early = self._early, []
        for body in early:
            came(body)
        if self.over is not None:
            ended(self.over)

    def send(self, parts: Sequence[Buffer], size: int) -> None:
        """Send an item, now or when there is credit. After the end it is a no-op."""
        if self.over is not None:
            return
        if self._waiting or not self._talk.conversation.try_item(self._id, self._mine, parts, size):
            self._waiting.append((parts, size))
            self.waiting_bytes += size
            return
        self._talk.dirty()

    def close(self, reason: str = "it was closed") -> None:
        """End it from this side."""
        if self.over is None:
            if self._mine == FROM_CALLER:
                self._talk.cancel(self._id)
            self.end(reason)

    def _keep(self, body: Buffer) -> None:
        self._early.append(body)

    # -- for the talk

    def arrived(self, body: Buffer) -> None:
        """An item came: it costs no credit any more, since whoever listens has its own bounds. The shell looks for the
        credit that is due when it has told all that came."""
        size = len(body)
        self.came(body)
        self._talk.conversation.consumed(self._id, self._theirs, size)

    def writable(self) -> None:
        """There may be credit again."""
        conversation = self._talk.conversation
        while self._waiting and conversation.try_item(self._id, self._mine, *self._waiting[0]):
            self.waiting_bytes -= self._waiting.popleft()[1]
        self._talk.dirty()
        if not self._waiting:
            self.drained()

    def end(self, reason: str) -> None:
        """No more will come, or go."""
        if self.over is None:
            self.over = reason
            self._waiting.clear()
            self.waiting_bytes = 0
            self._talk.pipes.pop((self._id, self._theirs), None)
            self.ended(reason)


class Talk:
    """See the module."""

    def __init__(
        self,
        peer: PeerId,
        roles: Role,
        conversation: Conversation,
        methods: Mapping[str, Method],
        dirty: Callable[[Talk], None],
        context: Context,
        noticed: Callable[[Talk, int, bytes], None] = lambda *_: None,
    ) -> None:
        """roles: the peer's; the shell sets them again when its certificates are renewed. context: of methods.
        noticed: hears messages of other protocols."""
        self.peer, self.roles, self.conversation = peer, roles, conversation
        self.futures: dict[int, asyncio.Future[Buffer]] = {}
        self.inboxes: dict[tuple[int, int], Inbox] = {}
        self.pipes: dict[tuple[int, int], Pipe] = {}  # (call, side of who sends to us)
        self.over: str | None = None  # why the session is over
        self.doubts: set[asyncio.Future[None]] = set()  # of calls that could be made elsewhere
        self.packer: Packer | None = None
        self.bulk_acked = 0  # bytes, as the packer knows
        self._methods, self._context, self._noticed = methods, context, noticed
        self.dirty = partial(dirty, self)  # says that there may be something to send
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._writable: dict[int, dict[asyncio.Future[None], None]] = {}  # stream, or 0 for calls -> who waits

    def __repr__(self) -> str:
        return f"<Talk: {self.conversation!r}, {len(self._tasks)} methods run>"

    @property
    def idle(self) -> bool:
        """Nobody waits for an answer here or there, and no stream is open."""
        return not (self.futures or self.inboxes or self.pipes or self._tasks or self._writable)

    # -- as caller

    async def room(self) -> None:
        """Return when another call may be made."""
        while self.over is None and self.conversation.full:
            await self._until_writable(0)

    def begin(self, method: str, args: Any, timeout_s: float | None, flags: int) -> int:
        """Make a call; its number, under which `futures` has the answer."""
        parts, size = args if isinstance(args, tuple) else values.encode(args)
        _check_size(size, f"an argument list for {method}")
        id = self.conversation.call(method, parts, size, timeout_s, flags, self._loop.time())
        self.futures[id] = self._loop.create_future()
        self.dirty()
        return id

    def cancel(self, id: int) -> None:
        """The answer is not wanted any more."""
        self.futures.pop(id, None)
        if self.over is None:
            self.conversation.cancel(id)
            self.dirty()

    async def send_item(self, id: int, side: int, item: Any) -> None:
        """Send an item of a stream as soon as there is credit."""
        parts, size = values.encode(item)
        _check_size(size, "an item")
        while self.over is None and not self.conversation.may_send(id, side, size):
            await self._until_writable(id)
        if self.over is not None:
            raise self._lost()
        self.conversation.item(id, side, parts, size)
        self.dirty()

    async def _until_writable(self, id: int) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._writable.setdefault(id, {})[waiter] = None
        try:
            await waiter
        finally:
            if waiter.cancelled() and id in self._writable:
                self._writable[id].pop(waiter, None)

    # -- what comes

    def handle(self, events: list[rpc.Event]) -> None:
        """Events of the conversation, in order."""
        for event in events:
            if type(event) is rpc.Came and (pipe := self.pipes.get((event.id, event.side))) is not None:
                pipe.arrived(event.body)
            elif isinstance(event, rpc.Answered):
                future = self.futures.pop(event.id, None)
                if future is not None and not future.done():
                    future.set_result(event.body)
                if self.inboxes and (inbox := self.inboxes.pop((FROM_CALLEE, event.id), None)) is not None:
                    inbox.end()
                if self.pipes and (pipe := self.pipes.get((event.id, FROM_CALLEE))) is not None:
                    pipe.end("the other side has closed it")
            elif isinstance(event, rpc.Started):
                self._start(event)
            else:
                self._rare(event)

    def _rare(self, event: rpc.Event) -> None:
        match event:
            case rpc.Failed(id, data):
                error = LatticaError.from_data(data)
                future = self.futures.pop(id, None)
                if future is not None and not future.done():
                    future.set_exception(error)
                inbox = self.inboxes.pop((FROM_CALLEE, id), None)
                if inbox is not None:
                    inbox.end(error)
                if (pipe := self.pipes.get((id, FROM_CALLEE))) is not None:
                    if future is not None and not future.cancelled():
                        future.exception()  # seen: of a pipe nobody waits for it
                    pipe.end(error.message)
                self._wake(id)
            case rpc.Came(id, side, body):
                inbox = self.inboxes.get((side, id))
                if inbox is not None:
                    inbox.came(body)
                else:
                    self.conversation.consumed(id, side, len(body))
            case rpc.Ended(id, side):
                inbox = self.inboxes.pop((side, id), None)
                if inbox is not None:
                    inbox.end()
            case rpc.Canceled(id, reason):
                task = self._tasks.get(id)
                if task is not None:
                    task.cancel(reason)
            case rpc.Writable(id):
                self._wake(id)
            case rpc.Noticed(protocol, body):
                self._noticed(self, protocol, body)

    def falter(self) -> None:
        """There is no connection, and none can be made: calls that may go elsewhere do."""
        for doubt in self.doubts:
            if not doubt.done():
                doubt.set_result(None)

    def end(self, reason: str) -> None:
        """The session is over: whoever waits is told, whatever runs for the other side is cancelled."""
        self.over = reason
        for future in self.futures.values():
            if not future.done():
                future.set_exception(self._lost())
                future.exception()  # a caller that has gone does not make a warning
        for inbox in self.inboxes.values():
            inbox.end(self._lost())
        for pipe in list(self.pipes.values()):
            pipe.end(reason)
        for task in list(self._tasks.values()):
            task.cancel(reason)
        for id in list(self._writable):
            self._wake(id)
        self.futures.clear()
        self.inboxes.clear()

    def _lost(self) -> PeerUnreachableError:
        return PeerUnreachableError(
            f"the session with peer {peer_text(self.peer)[:8]} ended ({self.over}); the call may have run",
            peer=peer_text(self.peer),
            may_have_run=True,
        )

    def _wake(self, id: int) -> None:
        if self.pipes:
            for side in (FROM_CALLER, FROM_CALLEE):
                if (pipe := self.pipes.get((id, side))) is not None:
                    pipe.writable()
        for waiter in self._writable.pop(id, ()):
            if not waiter.done():
                waiter.set_result(None)

    # -- as callee

    def _start(self, event: rpc.Started) -> None:
        method = self._methods.get(event.method)
        try:
            if method is None:
                raise ConfigError(
                    f"peer has no method {event.method!r:.80}", do_next="ask a peer that serves it, or update this one"
                )
            role = method.declared.role
            if role is not None and not role & self.roles:  # before its arguments are looked at
                raise PermissionDeniedError(
                    role=roles_text(role), peer=peer_text(self.peer), action=f"call {event.method}"
                )
            declared = method.declared
            wanted = STREAMS_IN * (declared.takes_stream or declared.pipe)
            wanted |= STREAMS_OUT * (method.gives_stream or declared.pipe)
            if event.flags != wanted:
                how = "stream" if wanted else "call"
                raise ConfigError(f"{event.method} is to be called by `{how}`")
            args, kwargs = values.decode(event.body)
            if type(args) is not list or type(kwargs) is not dict:
                raise RemoteProtocolError(f"the arguments of {event.method!r:.80} are none")
        except (LatticaError, ValueError, TypeError) as error:
            self._fail(event.id, error)
            return
        deadline = None if event.timeout_s is None else self._loop.time() + event.timeout_s
        who = Caller(self.peer, self.roles, deadline)
        if method.is_async:
            if method.declared.takes_stream:  # now: its first items may be in the same batch
                kwargs = {**kwargs, "incoming": Inbox(self, event.id, FROM_CALLER)}
                self.inboxes[FROM_CALLER, event.id] = kwargs["incoming"]
            elif method.declared.pipe:
                kwargs = {**kwargs, "pipe": Pipe(self, event.id, FROM_CALLEE)}
            running = self._run(event.id, method, who, args, kwargs)
            task = self._tasks[event.id] = self._loop.create_task(running, context=self._context.copy())
            task.add_done_callback(lambda _: self._finished(event.id))  # also of one that is cancelled before it began
            return
        token = caller.set(who)
        try:
            self._answer(event.id, method, method.function(*args, **kwargs))
        except Exception as error:
            self._fail(event.id, error)
        finally:
            caller.reset(token)
        self.dirty()

    def _answer(self, id: int, method: Method, result: Any) -> None:
        parts, size = values.encode(result)
        _check_size(size, f"the result of {method.name}")
        self.conversation.result(id, parts, size)

    def _finished(self, id: int) -> None:
        self._tasks.pop(id, None)
        self.inboxes.pop((FROM_CALLER, id), None)
        if self.pipes and (pipe := self.pipes.get((id, FROM_CALLER))) is not None:
            pipe.end("its call is over")
        self.dirty()

    async def _run(self, id: int, method: Method, who: Caller, args: list[Any], kwargs: dict[str, Any]) -> None:
        caller.set(who)
        try:
            async with method.gate or nullcontext():
                result = None
                if method.gives_stream:
                    async with aclosing(method.function(*args, **kwargs)) as items:
                        async for item in items:
                            await self.send_item(id, FROM_CALLEE, item)
                    self.conversation.end(id, FROM_CALLEE)
                else:
                    result = await method.function(*args, **kwargs)
            self._answer(id, method, result)
        except asyncio.CancelledError:
            if self.over is None:
                self.conversation.fail(id, {"error": "TaskCancelledError", "message": "the method was cancelled"})
        except Exception as error:
            self._fail(id, error)

    def _fail(self, id: int, error: Exception) -> None:
        if not isinstance(error, LatticaError):
            text = "".join(traceback.format_exception(error))[-TRACEBACK_MAX_CHARS:]
            error = CallFailedError(
                f"the method raised {type(error).__name__}: {error!s:.500}",
                type_name=type(error).__name__,
                remote_traceback=text,
            )
        self.conversation.fail(id, error.to_data())
        self.dirty()


def _check_size(size: int, what: str) -> None:
    if size > rpc.BODY_MAX_BYTES:
        raise ConfigError(
            f"{what} has {size} bytes; at most {rpc.BODY_MAX_BYTES} can be sent at once",
            do_next="send it in parts, as a stream",
        )
