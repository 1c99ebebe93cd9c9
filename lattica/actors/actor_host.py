"""The actor that lives in this worker: how its calls run, one after another, in threads, or as coroutines.

    sync      max_concurrency 1, no coroutine methods: calls run in the main thread
    threaded  max_concurrency n: calls start in order, in n threads
    async     any coroutine method: calls run on an event loop with a thread of its own, n at a time

Each concurrency group has threads of its own, or an event loop with a thread of its own, beside that.

The mailbox decides which call may start; this shell runs it and sends the reply.
"""

from __future__ import annotations

import functools
import inspect
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from lattica.actors import context, current, values
from lattica.actors.checkpoints import Checkpoints
from lattica.actors.handles import spec_decoder
from lattica.actors.lines import Line
from lattica.actors.mailbox import KEPT_BYTES_MAX, Mailbox
from lattica.actors.prefetch import Prefetch
from lattica.actors.producing import is_generator
from lattica.codec import messages as m
from lattica.errors import ActorDiedError, ActorUnavailableError, ConfigError, SerializationError, TaskCancelledError
from lattica.errors.actors import ENDED_ON_PURPOSE
from lattica.local import events

if TYPE_CHECKING:
    import asyncio

    from lattica.actors.worker import Caller, Worker

FLUSH_REPLIES = 64
FLUSH_S = 0.5e-3
"""As in the worker: replies leave after this many or this long, and always before the worker waits."""
NOT_KEPT = "this call has run, and its result lay in memory that was let go when its caller was believed dead"
TERMINATE = ("__lattica_terminate__", "__ray_terminate__")
SPECIAL: dict[str, Callable[..., Any]] = {
    "__lattica_ready__": lambda instance: True,
    "__lattica_call__": lambda instance, function, *args, **kwargs: function(instance, *args, **kwargs),
}
"""Methods that every actor has besides its class's: whether its constructor has run, and any function of it."""
SPECIAL.update({name.replace("lattica", "ray"): method for name, method in SPECIAL.items()})


class ExitActor(SystemExit):
    """Ends the actor from inside one of its methods; not an Exception, so that `except Exception` lets it pass."""


def exit_actor() -> None:
    """End the actor that this code runs in, after this call: no restart. Raises ConfigError outside an actor."""
    runtime = current.peek()
    if runtime is None or runtime.place is None or not runtime.place.actor_id:
        raise ConfigError(
            "exit_actor() was called outside an actor", do_next="end another actor with lattica.kill(handle)"
        )
    raise ExitActor


def _is_crash(error: BaseException) -> TypeGuard[SystemExit]:
    """Whether this is `sys.exit()` with a code that says so: by code 0 an actor ends on purpose."""
    return isinstance(error, SystemExit) and not isinstance(error, ExitActor) and error.code != 0


class _Threads:
    """The threads of one concurrency group, as many as calls of it have run at once."""

    def __init__(self, line: Line[m.Call], name: str, main: Callable[[_Threads], None]) -> None:
        self.line, self.name, self._main = line, name, main
        self.work: queue.SimpleQueue[tuple[int, m.Call] | None] = queue.SimpleQueue()
        self._count = 0

    def run(self, entry: tuple[int, m.Call]) -> None:
        """In one that has nothing to do, or in another one."""
        if self.line.running > self._count:
            name = f"lattica-{self.name or 'call'}-{self._count}"
            self._count += 1
            threading.Thread(target=self._main, args=(self,), name=name, daemon=True).start()
        self.work.put(entry)


class _Loop:
    """The event loop of one concurrency group, and what is due there."""

    def __init__(self, line: Line[m.Call], name: str) -> None:
        import asyncio

        import uvloop

        self.line = line
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self.flush_due = False
        self.checkpoint_due: asyncio.TimerHandle | None = None
        started = threading.Event()

        def serve() -> None:
            asyncio.set_event_loop(self.loop)
            self.loop.call_soon(started.set)
            self.loop.run_forever()

        threading.Thread(target=serve, name=f"lattica-{name or 'actor'}-loop", daemon=True).start()
        started.wait()


class ActorHost:
    """One incarnation of one actor."""

    def __init__(self, worker: Worker, message: m.BecomeActor, state_fd: int = -1) -> None:
        """state_fd: to read a large checkpoint from."""
        self.worker, self.runtime, self.message = worker, worker.runtime, message
        self._state_fd = state_fd
        self.spec = spec_decoder.decode(message.spec)
        worker.place.meta = self.spec.meta
        self.runtime.data = self.spec.data
        self.mailbox: Mailbox[m.Call, bytes | m.Reply] = Mailbox(self.spec.max_concurrency, _size_of, self.spec.groups)
        in_main = not self.spec.is_async and self.spec.max_concurrency == 1
        self.prefetch = Prefetch(self.runtime, self.mailbox, self._changed)
        self._main_line = self.mailbox.lines[""] if in_main else None  # the calls that run in the main thread
        self.instance: Any = None
        self.checkpoints = Checkpoints(self.runtime, message.actor, self.spec.class_name, self.spec.checkpoint_s)
        self._names = _Names(self.spec.class_name)
        self._note = worker.events.note  # for `timeline()`; lock held, or no call runs yet
        self._alone = in_main and not self.spec.groups  # all of them do
        self._running: dict[tuple[int, int], context.Running] = {}
        self._canceled_early: set[tuple[int, int]] = set()  # between the mailbox and `_running`
        self._coroutines: dict[tuple[int, int], asyncio.Task[None]] = {}
        self._releasing = False
        self._ending: str | None = None
        self._ready = False
        self._unsent = 0
        self._sent_at = 0.0
        self._io_guards = False
        self._threads: list[_Threads] = []  # of what does not run in the main thread
        self._loops: list[_Loop] = []  # of an async actor; that of no group is the first
        self._coroutine_canceled: type[BaseException] = BaseException  # asyncio's, once there is a loop

    def __repr__(self) -> str:
        return f"<ActorHost {self.spec.class_name}: {self.mailbox}>"

    # -- life (main thread, guard shut)

    def run(self) -> None:
        """Construct it, then serve until it ends."""
        if self.spec.is_async:
            self._start_loops()
        try:
            self._construct()
        except BaseException as error:
            if _is_crash(error):
                self.worker.exit(error, f"{self.spec.class_name}.__init__")
            failed = self.worker.marshal.failed(error, f"{self.spec.class_name}.__init__", self.spec.data)
            with self.runtime.lock:
                self.runtime.tell_node(m.ActorFailed(self.message.actor, failed.data))
                self.runtime.reactor.flush()
            self.runtime.reactor.wait(lambda: self.worker.stopping, timeout=5.0)
            return
        if not self.spec.is_async:
            lines = self.mailbox.lines.items()
            self._threads = [
                _Threads(line, name, self._serve_in_thread) for name, line in lines if line is not self._main_line
            ]
        with self.runtime.lock:
            self._ready = True
            self.runtime.tell_node(m.ActorReady(self.message.actor))
            self.runtime.reactor.flush()
            self.wake()
        if self._main_line is None:
            self.runtime.reactor.wait(self._over)
        else:
            self._serve(self._main_line)
        self._leave()

    def _over(self) -> bool:
        return self._ending is not None or self.worker.stopping or (self._releasing and self.mailbox.drained)

    def _construct(self) -> None:
        spec, worker = self.spec, self.worker
        cls = self.worker.place.actor_class = worker.marshal.load(spec.code, self.message.via)
        call = m.Call(0, self.message.actor, "__init__", spec.args, 1, spec.deps, spec.at)
        args, kwargs = worker.marshal.arguments(call, self.message.via)
        now = context.Running(self.message.actor, "", 0, "__init__")

        def make() -> None:
            token = context.running.set(now)
            began = time.perf_counter()
            try:
                self.instance = cls(*args, **kwargs)
                self.checkpoints.begin(self.instance, self.message.state, self._state_fd)
            finally:
                context.running.reset(token)
                micros = int((time.perf_counter() - began) * 1e6)
                self._note((self._names[call.method], began, micros, events.CALL, 0, call.object, 0))

        if self._loops:
            import asyncio

            asyncio.run_coroutine_threadsafe(_as_coroutine(make), self._loops[0].loop).result()
            return
        guard = self.runtime.guard
        try:
            guard.open()
            make()
        finally:
            guard.on = True

    def _leave(self) -> None:
        reason = self._ending or ("nobody holds a handle of it any more" if self._releasing else "its node ended it")
        runtime, worker = self.runtime, self.worker
        worker.leave()
        runtime.reactor.wait(lambda: runtime.node_died_at is not None or self._all_replied())
        with runtime.lock:
            runtime.tell_node(m.ActorExit(self.message.actor, reason))
        runtime.reactor.wait(lambda: runtime.node_died_at is not None or not runtime.node.stream.unsent)

    def send_all(self, within_s: float) -> None:
        """Have callers take what has been replied, as far as they do it within this time."""
        with self.runtime.lock:
            self.send_now()
        self.runtime.reactor.wait(self._all_replied, within_s)

    def _all_replied(self) -> bool:
        links = [caller.link for caller in self.worker.callers.values()]
        return not any(link.stream.unsent for link in links if link is not None)

    # -- what callers and the node say (lock held)

    def arrived(self, caller: Caller, call: m.Call) -> None:
        """A call came; or it came again over a new connection, and brings no holds of its own."""
        if self.mailbox.past.calls and call.returns >= 0 and self.mailbox.came_back(caller.client, call):
            self._say_to_who_is_back(caller, call)
        elif not self.mailbox.arrived(caller.client, call):
            self._say_again(caller, call)
        elif call.deps or type(call.args) is not bytes:
            self.prefetch.arrived(caller.client, caller.via, call)

    def connected(self, client: int, *, far: bool) -> None:
        """A caller has a connection to us, the first or another one."""
        if far:
            self.mailbox.far.add(client)
        self.mailbox.reconnected(client)

    def wake(self) -> None:
        """Start what may start, in threads or on loops; the main thread finds its own work."""
        mailbox = self.mailbox
        if mailbox.held_up:
            self.prefetch.go_on()
        if not self._ready or self._ending is not None:
            return
        for at in self._loops:
            batch = []
            while entry := mailbox.next(at.line):
                batch.append(entry)
            if batch:
                at.loop.call_soon_threadsafe(self._start_batch, at, batch)
        for threads in self._threads:
            while entry := mailbox.next(threads.line):
                threads.run(entry)

    def _changed(self) -> None:
        """The arguments of a call have come."""
        self.wake()
        self.runtime.reactor.changed()

    def caller_gone(self, client: int) -> None:
        """What it had queued will not run."""
        for call in self.mailbox.forget(client):
            self._discard(client, call)

    def _discard(self, client: int, call: m.Call) -> None:
        """Let go what a call that will not run has brought along."""
        self.worker.producing.withdrawn(client, call.seq)
        if self.prefetch.take(client, call.seq) is None:
            self.worker.discard(call, self.worker.via(client))

    def release(self) -> None:
        """Nobody holds a handle any more: finish what is queued, then end."""
        self._releasing = True
        self.runtime.reactor.changed()

    def cancel(self, caller: Caller, message: m.Cancel) -> None:
        """Stop a call that is queued or runs."""
        key = caller.client, message.seq
        call = self.mailbox.cancel(*key)
        if call is not None:
            self._discard(caller.client, call)
            self._reply(caller.client, message.seq, [self._canceled(call)], 0)
            self.wake()  # it may have held up others
            self.runtime.reactor.flush()
            return
        if key in self.mailbox.running and key not in self._running:
            self._canceled_early.add(key)
        now = self._running.get(key)  # looked at after that, and it is set before it looks: one of the two sees
        if now is None:
            return
        if message.recursive:
            self.worker.cancel_children(now)
        if self._loops:
            now.canceled = True
            task = self._coroutines.get(key)
            if task is not None:
                task.get_loop().call_soon_threadsafe(task.cancel)
        elif self._main_line is None or self.mailbox.line_of(*key) is not self._main_line:
            now.canceled = True  # a thread cannot be broken; its code looks at is_canceled()
        else:
            self.worker.interrupt(now, lambda: self._running.get(key) is now)

    def _canceled(self, call: m.Call) -> m.Failed:
        name = f"{self.spec.class_name}.{call.method}"
        return self.worker.marshal.failed(TaskCancelledError(name=name, task_id=call.object.hex()), name, call.data)

    def _given_up(self, client: int, call: m.Call) -> m.Value:
        """It was cancelled before it began."""
        with self.runtime.lock:
            self._discard(client, call)
        return self._canceled(call)

    # -- running calls

    def _serve(self, line: Line[m.Call]) -> None:
        """In the main thread: calls of no group, one after the other."""
        lock, checkpoints = self.runtime.lock, self.checkpoints
        ran = 0  # calls since the last wait: after a single one, another single one may follow at once
        with lock:
            entry = self._next(line)
        while True:
            if entry is None:
                if self._over():
                    return
                self._unsent = 0  # `wait` sends first
                self._wait(line, spin=ran == 1)
                ran = 0
                with lock:
                    entry = self._next(line)
                continue
            ran += 1
            client, call = entry
            self._send_some()
            out, noted = self._run_call(client, call, in_main=True)
            with lock:
                self._ended(client, call, out, noted)
                entry = self._next(line)
                if entry is None:
                    self.send_now()
            if self._ending is not None:
                return
            if checkpoints.on and checkpoints.note():
                with lock:
                    self.send_now()  # they need not wait for it
                checkpoints.take_if_due()

    def _next(self, line: Line[m.Call]) -> tuple[int, m.Call] | None:
        """The call of this line that may start now. Lock held."""
        entry = None if self._ending is not None else self.mailbox.next(line)
        if self.mailbox.held_up:
            self.prefetch.go_on()
        return entry

    def _send_some(self) -> None:
        """A call is about to run: replies that wait are sent if they are many or have waited, or else guarded."""
        reactor = self.runtime.reactor
        if not self._unsent:
            self._sent_at = time.monotonic()
        elif self._unsent >= FLUSH_REPLIES or time.monotonic() - self._sent_at > FLUSH_S:
            with reactor.lock:
                self.send_now()
        elif not (self._io_guards or reactor.rung):
            reactor.ring()

    def _wait(self, line: Line[m.Call], *, spin: bool) -> None:
        """For the next call, or for a checkpoint to be due."""
        checkpoints, noted, reactor = self.checkpoints, self.worker.events.noted, self.runtime.reactor

        def news() -> bool:
            return len(line.queue) > 0 or self._over() or checkpoints.wanted

        due = False
        if not (noted and reactor.wait(news, events.STORE_S, spin=spin)):
            if noted:
                with self.runtime.lock:  # other threads note too
                    self.worker.events.store()
            due = not reactor.wait(news, checkpoints.left_s(), spin=spin)
        if due or checkpoints.wanted:
            checkpoints.take_if_due()
        checkpoints.wanted = False

    def checkpoint(self) -> None:
        """The node goes: take one as soon as can be. Lock held."""
        self.checkpoints.wanted = self.checkpoints.on
        if self._loops and self.checkpoints.on:
            self._loops[0].loop.call_soon_threadsafe(self.checkpoints.take_if_due)
        self.runtime.reactor.changed()

    def _run_call(self, client: int, call: m.Call, *, in_main: bool) -> tuple[list[m.Value], events.Noted]:
        """In the main thread or one of ours, to the end: for `_ended`."""
        now = context.Running(call.object, call.name, call.attempt, call.method)
        key = client, call.seq
        self._running[key] = now
        token = context.running.set(now)
        kind = events.CALL
        began = time.perf_counter()
        try:
            if self._canceled_early and key in self._canceled_early:
                out = [self._given_up(client, call)]
            else:
                out = self._execute(client, call, in_main=in_main)
        except SystemExit as leaving:
            out = [self._exited(call, leaving)]
        except BaseException as error:
            kind |= events.FAILED
            out = [self.worker.marshal.failed(error, f"{self.spec.class_name}.{call.method}", call.data)]
        finally:
            if self.runtime.forked:
                self.worker.end_child()
            context.running.reset(token)
            self._running.pop(key, None)
            if self._canceled_early:
                self._canceled_early.discard(key)
        micros = int((time.perf_counter() - began) * 1e6)
        thread = 0 if self._alone else threading.get_ident()
        return out, (self._names[call.method], began, micros, kind, call.attempt, call.object, thread)

    def _ended(self, client: int, call: m.Call, out: list[m.Value], noted: events.Noted) -> None:
        """A call has run: note it, queue its reply. Lock held."""
        self._note(noted)
        seq, first, caller = call.seq, out[0], self.worker.callers.get(client)
        reply = m.Reply(seq, out, noted[2])
        if caller is None:
            self.mailbox.finished(client, seq)
            self._reply_to_who_is_gone(client, reply)
            return
        plain = type(first) is bytes and len(out) == 1  # as nearly always
        dropped = self.mailbox.replied(client, seq, first if plain else reply)  # type: ignore[arg-type]
        if dropped:
            self._keep_holds(client, dropped)
        if caller.link is not None:
            self._unsent += 1
            self.runtime.reactor.send(caller.link, reply)

    def _arguments(self, client: int, call: m.Call) -> tuple[Any, dict[str, Any]]:
        if not (call.args or call.deps):
            return (), {}
        kept = self.prefetch.take(client, call.seq) if self.prefetch.kept else None
        return self.worker.marshal.arguments(call, self.worker.via(client), kept)

    def _execute(self, client: int, call: m.Call, *, in_main: bool) -> list[m.Value]:
        """The user's code, with signals let through; arguments and result end with this frame."""
        if call.method in TERMINATE:
            self._ending = "it was asked to terminate"
            return self.worker.marshal.results(None, 1, call.object, client, call.method, call.data)
        guard = self.runtime.guard
        method = getattr(self.instance, call.method, None) or self._method(call.method)
        args, kwargs = self._arguments(client, call) if call.args or call.deps else ((), {})
        try:
            if in_main:
                guard.open()
            result = method(*args, **kwargs)
        finally:
            if in_main:
                guard.on = True
        if result is None and call.returns == 1 and not call.data:
            return [values.NONE]
        if call.returns < 0:
            name, send = f"{self.spec.class_name}.{call.method}", functools.partial(self._send_item, client)
            return self.worker.producing.produce(client, call, result, name, send, keeps=True)
        return self._results(client, call, result)

    def _method(self, name: str) -> Any:
        method = getattr(self.instance, name, None)
        if method is None and name in SPECIAL:
            return functools.partial(SPECIAL[name], self.instance)
        return getattr(self.instance, name) if method is None else method  # raises what says that there is none

    def _results(self, client: int, call: m.Call, result: Any) -> list[m.Value]:
        try:
            if call.returns == 1 or not is_generator(result):
                return self.worker.marshal.results(
                    result, call.returns, call.object, client, call.method, call.data, call.attempt
                )
        except SerializationError:
            if not is_generator(result):
                raise
        return self.worker.producing.several(client, call, result, f"{self.spec.class_name}.{call.method}")

    def _send_item(self, client: int, item: m.Item) -> None:
        """One that a generator has made: soon, and with those that come right after it."""
        with self.runtime.lock:
            caller = self.worker.callers.get(client)
            if caller is None or caller.link is None:
                return  # kept until there is another connection
            self.runtime.reactor.send(caller.link, item)
            self._unsent += 1
            if self._unsent >= FLUSH_REPLIES or time.monotonic() - self._sent_at > FLUSH_S:
                self.send_now()

    def guard_items(self) -> None:
        """User code is about to run on: what has been made does not wait for it."""
        if self._unsent and not self._io_guards and not self.runtime.reactor.rung:
            self.runtime.reactor.ring()

    def _exited(self, call: m.Call, leaving: SystemExit) -> m.Failed:
        """By `exit_actor()` or `sys.exit(0)` it ends on purpose; by another code it crashes, and does not return."""
        if _is_crash(leaving):
            self.worker.exit(leaving, f"{self.spec.class_name}.{call.method}")
        self._ending = "it called exit_actor()" if isinstance(leaving, ExitActor) else "it called sys.exit(0)"
        error = ActorDiedError(
            actor=self.spec.class_name,
            actor_id=self.message.actor.hex(),
            reason=self._ending,
            do_next=ENDED_ON_PURPOSE,
        )
        return self.worker.marshal.failed_by_us(error, data=call.data)

    def _reply(self, client: int, seq: int, out: list[m.Value], micros: int) -> None:
        """To a call that has not run, or not now. Lock held."""
        caller = self.worker.callers.get(client)
        reply = m.Reply(seq, out, micros)
        if caller is None:
            self._reply_to_who_is_gone(client, reply)
            return
        if dropped := self.mailbox.replied(client, seq, reply):
            self._keep_holds(client, dropped)
        if caller.link is not None:
            self._unsent += 1
            self.runtime.reactor.send(caller.link, reply)

    def _reply_to_who_is_gone(self, client: int, reply: m.Reply) -> None:
        """Unless it is back as another caller, and has sent that call again."""
        again = self.mailbox.past.finished(client, reply.seq, reply)
        if again is not None:
            self._reply(*again, for_another(reply) or [self._lost(NOT_KEPT)], reply.micros)

    def _keep_holds(self, client: int, dropped: Sequence[tuple[int, bytes | m.Reply]]) -> None:
        """Of replies that are too many: what they gave, so that the caller can let it go if it asks for one."""
        for seq, kept in dropped:
            given = _given_in(kept)
            if given:
                stub = m.Reply(seq, [m.Failed(b"", given, True)], -1)
                self._keep_holds(client, self.mailbox.replied(client, seq, stub))

    def _say_again(self, caller: Caller, call: m.Call) -> None:
        answered, kept = self.mailbox.repeat(caller.client, call.seq)
        if call.returns < 0:
            self.worker.producing.say_again(caller, call.seq, answered=answered)
        if not answered:
            return  # it is queued or runs
        if isinstance(kept, bytes):
            kept = m.Reply(call.seq, [kept])
        elif kept is None or kept.micros < 0:
            given = [] if kept is None else _given_in(kept)
            kept = m.Reply(call.seq, [m.Failed(self._dropped(call).data, given, True)], -1)
        self.runtime.reactor.send(caller.link, kept)

    def _say_to_who_is_back(self, caller: Caller, call: m.Call) -> None:
        """Its machine was silent for so long that it was believed dead, and it sends what it had sent before that."""
        self.worker.discard(call, caller.via)
        ended, kept = self.mailbox.past.again(call.object, caller.client, call.seq)
        if ended:
            self._reply(caller.client, call.seq, for_another(kept) or [self._lost(NOT_KEPT, call.data)], 0)

    def _dropped(self, call: m.Call) -> m.Failed:
        why = f"more than {KEPT_BYTES_MAX >> 20} MiB of results were unread, and that of {call.method}"
        return self._lost(f"{why}, which has run, was not kept", call.data)

    def _lost(self, why: str, data: bool = False) -> m.Failed:
        name, actor = self.spec.class_name, self.message.actor.hex()
        error = ActorUnavailableError(actor=name, actor_id=actor, reason=f"the connection to it broke, {why}")
        return self.worker.marshal.failed_by_us(error, data=data)

    def send_now(self) -> None:
        """Send replies and items that wait. Lock held."""
        self._unsent = 0
        if len(self.worker.events.noted) >= events.BATCH:
            self.worker.events.store()
        self._sent_at = time.monotonic()
        self.runtime.reactor.flush()

    def guard_replies(self) -> float | None:
        """As `Worker._guard_replies`: replies must not wait behind a long call."""
        if not self._unsent:
            self._io_guards = False
            return None
        self._io_guards = True
        if time.monotonic() - self._sent_at >= FLUSH_S:
            with self.runtime.lock:
                self.send_now()
        return FLUSH_S

    # -- threads

    def _serve_in_thread(self, threads: _Threads) -> None:
        while entry := threads.work.get():
            client, call = entry
            out, noted = self._run_call(client, call, in_main=False)
            with self.runtime.lock:
                self._ended(client, call, out, noted)
                self.send_now()
                self.wake()
                self.runtime.reactor.changed()
                if self.worker.events.noted:
                    self.worker.events.store()
            self.checkpoints.ran()

    # -- coroutines

    def _start_loops(self) -> None:
        import asyncio

        self._coroutine_canceled = asyncio.CancelledError
        self._loops = [_Loop(line, name) for name, line in self.mailbox.lines.items()]

    def _start_batch(self, at: _Loop, batch: list[tuple[int, m.Call]]) -> None:
        for client, call in batch:
            task = at.loop.create_task(self._run_coroutine(at, client, call))
            self._coroutines[client, call.seq] = task

    async def _run_coroutine(self, at: _Loop, client: int, call: m.Call) -> None:
        key = client, call.seq
        now = self._running[key] = context.Running(call.object, call.name, call.attempt, call.method)
        context.running.set(now)  # a task has a context of its own
        kind = events.COROUTINE
        began = time.perf_counter()
        try:
            if key in self._canceled_early:
                out: list[m.Value] = [self._given_up(client, call)]
            elif call.method in TERMINATE:
                self._ending = "it was asked to terminate"
                out = self.worker.marshal.results(None, 1, call.object, client, call.method, call.data)
            else:
                method = self._method(call.method)
                args, kwargs = self._arguments(client, call)
                result = method(*args, **kwargs)
                if inspect.isawaitable(result):
                    result = await result
                if call.returns < 0:
                    name, send = f"{self.spec.class_name}.{call.method}", functools.partial(self._send_soon, at, client)
                    out = await self.worker.producing.produce_async(client, call, result, name, send)
                else:
                    out = self._results(client, call, result)
        except SystemExit as leaving:
            out = [self._exited(call, leaving)]
        except self._coroutine_canceled:
            out = [self._canceled(call)]
        except BaseException as error:
            kind |= events.FAILED
            out = [self.worker.marshal.failed(error, f"{self.spec.class_name}.{call.method}", call.data)]
        finally:
            if self.runtime.forked:
                self.worker.end_child()
            self._running.pop(key, None)
            self._coroutines.pop(key, None)
            self._canceled_early.discard(key)
        micros = int((time.perf_counter() - began) * 1e6)
        noted = self._names[call.method], began, micros, kind, call.attempt, call.object, 0
        with self.runtime.lock:
            self._ended(client, call, out, noted)
        if not at.flush_due:  # one send for all that end in this turn of the loop
            at.flush_due = True
            at.loop.call_soon(self._flush_tick, at)
        self.checkpoints.ran()
        if at.checkpoint_due is None and (left := self.checkpoints.left_s()) is not None:
            at.checkpoint_due = at.loop.call_later(left, self._checkpoint_tick, at)

    def _send_soon(self, at: _Loop, client: int, item: m.Item) -> None:
        """An item of a generator on a loop: with what else is made in this turn of it."""
        caller = self.worker.callers.get(client)
        if caller is not None and caller.link is not None:
            with self.runtime.lock:
                self.runtime.reactor.send(caller.link, item)
            if not at.flush_due:
                at.flush_due = True
                at.loop.call_soon(self._flush_tick, at)

    def _checkpoint_tick(self, at: _Loop) -> None:
        at.checkpoint_due = None
        self.checkpoints.take_if_due()

    def _flush_tick(self, at: _Loop) -> None:
        at.flush_due = False
        with self.runtime.lock:
            self.send_now()
            if self.worker.events.noted:
                self.worker.events.store()
            if len(self.mailbox):
                self.wake()
            if self._releasing or self._ending is not None:
                self.runtime.reactor.changed()


class _Names(dict[str, str]):
    """Of methods, with the class's before them."""

    def __init__(self, class_name: str) -> None:
        super().__init__()
        self._class_name = class_name

    def __missing__(self, method: str) -> str:
        name = self[method] = f"{self._class_name}.{method}"
        return name


KEPT_BYTES_EACH = 256
"""What a kept reply costs beside its values, about: so many small ones are bounded too."""


def _size_of(kept: bytes | m.Reply) -> int:
    """Bytes of memory that it takes, about; what lies in the arena is not ours. Stubs must be kept, and cost little."""
    if isinstance(kept, bytes):
        return KEPT_BYTES_EACH + len(kept)
    return 0 if kept.micros < 0 else sum(map(_value_size, kept.values))


def _value_size(value: Any) -> int:
    if type(value) is m.InArena:
        return 2 * KEPT_BYTES_EACH
    return KEPT_BYTES_EACH + len(value if type(value) is bytes else value.data)


def for_another(kept: bytes | m.Reply | None) -> list[m.Value]:
    """The values of a reply that can be said under another number; none if it gave something to one that is gone."""
    if isinstance(kept, bytes):
        return [kept]
    return [] if kept is None or _given_in(kept) else kept.values


def _given_in(kept: bytes | m.Reply) -> list[bytes]:
    """What the receiver of this reply was given holds on."""
    found: list[bytes] = []
    for value in [] if isinstance(kept, bytes) else kept.values:
        if isinstance(value, m.InArena):
            found.append(value.object)
        elif not isinstance(value, bytes):
            found += value.refs
    return found


async def _as_coroutine(function: Any) -> None:
    function()
