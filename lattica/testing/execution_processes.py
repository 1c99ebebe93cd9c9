"""The processes of a universe: drivers and workers, with the real runtime over pipes that are models.

    driver     a `Runtime`, and a script that submits (`scenarios/execution`)
    worker     a `Runtime`, the order of `actors.worker` and `actors.actor_host`, and a `Body` in place of user code

There are no threads: what blocks in truth is a condition here (`SimWorker.waits_for`), looked at after each event.
"""

from __future__ import annotations

import functools
import heapq
import sys
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Protocol, cast

import msgspec

from lattica.actors import context
from lattica.actors import runtime as runtimes
from lattica.actors.actor_host import NOT_KEPT, for_another
from lattica.actors.mailbox import Mailbox
from lattica.actors.marshal import Marshal
from lattica.actors.prefetch import Prefetch
from lattica.actors.producing import Producing, Run
from lattica.actors.refs import Hold, InPlace, ObjectRef
from lattica.actors.runtime import Runtime
from lattica.actors.serials import serials
from lattica.actors.worker import let_go_inputs, take_back
from lattica.codec import frames
from lattica.codec import messages as m
from lattica.errors import ActorUnavailableError, LatticaError, ObjectLostError, RemoteProtocolError
from lattica.local.reactor import Link
from lattica.scheduler.environments import NOTHING, Environment
from lattica.testing.execution import End, Unit
from lattica.testing.execution_nodes import NodeUnit, SimPage

RING_S = 0.000_5  # until what is queued goes out by itself
REPLY_S = (0.0, 0.001)  # a finished reply lies in the page so long
SPAN_BYTES = 1 << 20


class SimStream:
    """Frames over a pipe: see `local.stream`."""

    def __init__(self, end: End, types: Any, *, takes_fds: bool = False) -> None:
        self.end, self.fd = end, end.fd
        self.closed = self.short = False
        self._decoder = frames.Decoder(types)
        self._messages: list[Any] = []
        self._fds: deque[int] = deque()

    def queue(self, message: Any, fds: Sequence[int] = ()) -> int:
        self._messages.append(message)
        return len(self._messages)

    @property
    def unsealed(self) -> int:
        return len(self._messages)

    @property
    def unsent(self) -> bool:
        return bool(self._messages)

    def flush(self) -> bool:
        if self._messages:
            messages, self._messages = self._messages, []
            if not self.closed:
                self.end.put(bytes(frames.encode(messages)))
        return True

    def receive(self) -> list[Any] | None:
        found = self.drain()
        return found or (None if self.end.over else [])

    def drain(self) -> list[Any]:
        messages: list[Any] = []
        for data, fds in self.end.read():
            self._fds.extend(fds)
            messages += self._decoder.feed(data)
        return messages

    def take_fd(self) -> int:
        return self._fds.popleft()

    def close(self) -> None:
        self.closed = True
        self._messages.clear()
        self.end.close()


class SimReactor:
    """The connections of one process, without a thread: see `local.reactor`."""

    def __init__(self, unit: Unit, guard: Any, housekeep: Callable[[], None], chores: object) -> None:
        self.unit, self.guard, self._housekeep = unit, guard, housekeep
        self.lock = _NoLock()
        self.node_link: Link | None = None
        self.after_dispatch: deque[Callable[[], None]] = deque()
        self.idle_hook = None
        self.closed = self.rung = False
        self.then: Callable[[], None] = lambda: None  # after each event
        self._dirty: dict[Link, None] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._armed = float("inf")

    def add(self, stream: SimStream, handler: Any) -> Link:
        link = Link(cast(Any, stream), handler)
        stream.end.readable = functools.partial(self._read, link)
        if stream.end.unit is None:
            stream.end.belongs(self.unit)
        if stream.end.has_news():
            universe = self.unit.universe
            universe.at(universe.now, self.unit, self._read, link)
        return link

    def remove(self, link: Link) -> None:
        link.stream.close()

    def send(self, link: Link, message: Any) -> None:
        link.stream.queue(message)
        self._dirty[link] = None
        if not self.rung:
            self.ring()

    def nudge(self, link: Link, *, alone: bool) -> None:
        self.flush()

    def flush(self) -> None:
        self._housekeep()
        dirty, self._dirty = self._dirty, {}
        if self.node_link in dirty:
            self.node_link.stream.flush()
        for link in dirty:
            link.stream.flush()

    def ring(self) -> None:
        if not self.rung and self.unit.alive:
            self.rung = True
            universe = self.unit.universe
            universe.at(universe.now + RING_S, self.unit, self._ringing)

    def _ringing(self) -> None:
        self.rung = False
        self.ended_event()

    def call_at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (when, next(self._order), what))
        if when < self._armed:
            self._armed = max(when, self.unit.universe.now)
            self.unit.universe.at(self._armed, self.unit, self._due, self._armed)

    def _due(self, at: float) -> None:
        if at != self._armed:
            return
        now = self.unit.universe.now
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
        self._armed = float("inf")
        if self._timers:
            self._armed = self._timers[0][0]
            self.unit.universe.at(self._armed, self.unit, self._due, self._armed)
        self.ended_event()

    def wait(self, done: Callable[[], bool], timeout: float | None = None, *, spin: bool = False) -> bool:
        if done():
            return True
        raise AssertionError("a process of a universe must not block")

    def changed(self) -> None: ...

    def _read(self, link: Link) -> None:
        if link.stream.closed:
            return
        try:
            messages = link.stream.receive()
            if messages:
                link.handler.received(messages)
                if link.stream.closed:
                    messages = []
                elif link.stream.end.over:  # type: ignore[attr-defined]
                    messages = None
        except RemoteProtocolError as error:
            raise AssertionError(f"{self.unit.name} reads what is no message: {error}") from error
        if messages is None:
            link.stream.close()
            link.handler.ended()
        self.ended_event()

    def ended_event(self) -> None:
        """Something has happened: do what follows of it, and send."""
        while self.after_dispatch:
            self.after_dispatch.popleft()()
        if self.unit.alive:
            self.then()
            self.flush()


class _NoLock:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


class _NoGuard:
    on = in_main_thread = defers_here = False

    def enter(self) -> bool:
        return False

    def leave(self) -> None: ...
    def wrap(self, _: int) -> None: ...


class SimRuntime(Runtime):
    """The real one, over a reactor without a thread."""

    def __init__(self, unit: Unit, node: End, host: NodeUnit) -> None:
        put = {"Reactor": functools.partial(SimReactor, unit), "Stream": SimStream, "Guard": _NoGuard}
        put["allow_descriptors"] = lambda: None
        put["serials"] = functools.partial(serials, unit.universe.urandom)
        before = {name: getattr(runtimes, name) for name in put}
        for name, value in put.items():
            setattr(runtimes, name, value)
        try:
            super().__init__(cast(Any, node))
        finally:
            for name, value in before.items():
                setattr(runtimes, name, value)
        self.unit, self.host = unit, host
        assert host.node is not None
        self.objects.arena = cast(Any, host.node.memory_bytes)

    def connect(self, fd: int, types: Any, handler: Any) -> Link:
        end = self.unit.universe.take(fd, self.unit)
        return cast(Any, self.reactor).add(SimStream(end, types), handler)  # type: ignore[no-any-return]

    def _actor_connected(self, message: m.ActorConnected) -> None:
        fd = self.node.stream.take_fd()
        peer = self.calls.peers.get(message.actor)
        if peer is None:
            self.unit.universe.let_go(fd)
        else:
            peer.connected(message, fd)

    def has_room(self, size: int) -> bool:
        """Whether `size` bytes fit into a span that we have; if not, one is asked for."""
        objects = self.objects
        offset = objects._regions.allocate(size)
        if offset is not None:
            objects._regions.free(offset)
            return True
        if not objects._spans_asked:
            objects._ask_span(size)
            self.reactor.flush()
        return False


class Body(Protocol):
    """What a worker runs in place of user code: made by the scenario from the arguments of a task or call."""

    run_s: float
    room: int  # bytes that its result may take in a span of the store; without it, it waits for one
    items: int  # of a generator
    pause_s: float  # between two of them

    def begin(self, worker: SimWorker) -> list[ObjectRef]:
        """It starts; refs whose values it waits for before it ends."""

    def end(self) -> Any:
        """What it returns; it may raise."""

    def item(self, at: int) -> Any:
        """What a generator makes, when it would have ended."""

    def submitted(self) -> list[ObjectRef]:
        """It is cancelled, and so is what it has submitted: that."""

    def broken(self) -> None:
        """It ends here, by a cancel."""


class SimProcess:
    """What drivers and workers share."""

    def __init__(self, unit: Unit, node: End, host: NodeUnit) -> None:
        self.unit, self.universe, self.host = unit, unit.universe, host
        self.runtime = SimRuntime(unit, node, host)
        self.reactor = cast(SimReactor, self.runtime.reactor)
        self.runtime.extra[type(None)] = lambda _: unit.end()  # the node is gone: so are we

    def listen(self) -> None:
        self.runtime.listen()

    def environment(self) -> Environment:
        """What it has around it."""
        return self.runtime.environments.own or NOTHING

    def is_here(self, ref: ObjectRef) -> bool:
        """Whether its value can be read, or is known to be lost; if it lies elsewhere it is asked for."""
        value = ref._value
        if value is None:
            self.runtime.objects.ask([ref])
            self.reactor.flush()
            return False
        objects = self.runtime.objects
        if isinstance(value, InPlace) and objects.away(value.hold) and objects.lost(value.hold.id) is None:
            if not objects.is_coming(value.hold):
                objects.bring([value.hold])
                self.reactor.flush()
            return False
        return True

    def read(self, ref: ObjectRef) -> Any:
        """The value of what `is_here`. Raises what it is, or ObjectLostError."""
        value = ref._value
        if isinstance(value, InPlace) and self.runtime.objects.away(value.hold):
            lost = self.runtime.objects.lost(value.hold.id)
            assert lost is not None, "a value is neither here nor lost"
            if isinstance(lost, m.Failed):
                raise self.runtime.load_failure(lost)
            raise ObjectLostError(lost.owner, object_id=value.hold.id.hex(), made_at=lost.made_at)
        return self.runtime.get_one(ref, 0)

    def later(self, delay_s: float, do: Callable[[], object]) -> None:
        """Call it, as an event of this process."""
        self.universe.at(self.universe.now + delay_s, self.unit, self._now, do)

    def _now(self, do: Callable[[], object]) -> None:
        do()
        if self.unit.alive:
            self.reactor.ended_event()


class Caller:
    """Somebody who sends a worker tasks or calls."""

    def __init__(self, worker: SimWorker, client: int, far: bool) -> None:
        self.worker, self.client, self.via = worker, client, client if far else 0
        self.link: Any = None

    def received(self, messages: list[Any]) -> None:
        worker = self.worker
        for message in messages:
            match message:
                case m.Task():
                    worker.queue.append((self, message))
                case m.Call():
                    assert worker.mailbox is not None, "a call for what is no actor"
                    worker.arrived(self, message)
                case m.Export(key, value):
                    worker.exports[key] = value
                case m.Reclaim(wanted):
                    worker.give_back(self, wanted)
                case m.Cancel():
                    worker.cancel(self, message)
                case m.Taken():
                    worker.producing.told(self.client, message)
        if worker.blocked and worker.queue:
            worker.give_back(self, len(worker.queue), blocked=True)

    def ended(self) -> None:
        worker = self.worker
        if worker.callers.get(self.client) is not self:
            return
        if worker.mailbox is not None:
            self.link = None
            return
        del worker.callers[self.client]
        worker.producing.caller_gone(self.client)
        worker.queue = deque(entry for entry in worker.queue if entry[0] is not self)


class SimWorker(SimProcess):
    """One worker. bodies: makes what runs of a task's or call's arguments; judge: is told of what begins."""

    def __init__(self, unit: Unit, node: End, host: NodeUnit, page: SimPage, client: int, bodies: Any) -> None:
        super().__init__(unit, node, host)
        self.page, self.bodies = page, bodies
        self.runtime.client = client
        self.runtime.place = self.place = context.Place()
        self.marshal = Marshal(self.runtime, self.place)
        self.producing = Producing(cast(Any, self))
        self.run: Run | None = None  # the generator that runs
        self.queue: deque[tuple[Caller, m.Task]] = deque()
        self.callers: dict[int, Caller] = {}
        self.exports: dict[bytes, m.Value] = {}
        self.mailbox: Mailbox[m.Call, bytes | m.Reply] | None = None
        self.prefetch: Prefetch = None  # type: ignore[assignment]  # with the mailbox
        self.actor: m.BecomeActor | None = None
        self.constructed = self.releasing = self.left = self.stopping = self.blocked = self.owes = False
        self.running: tuple[Caller, m.Task | m.Call] | None = None
        self.body: Body | None = None  # of what runs, while a cancel can break it
        self.canceled = False  # what runs, maybe before its body begins
        self.waits_for: Callable[[], bool] | None = None
        self.go_on: Callable[[], None] | None = None
        extra = self.runtime.extra
        extra[m.JobSetup] = self._job_setup
        extra[m.NewCaller] = self._new_caller
        extra[m.BecomeActor] = self._become_actor
        extra[m.ActorRelease] = self._release
        extra[m.Exit] = self._exit
        self.runtime.on_client_gone = self._caller_gone
        self.reactor.then = self.step
        self.listen()

    # -- the node

    def _job_setup(self, message: m.JobSetup) -> None:
        self.runtime.job, self.runtime.node_id, self.runtime.token = message.job, message.node, message.token
        self.runtime.namespace, self.runtime.config = message.namespace, message.config
        if (around := message.config.get("environment")) is not None:
            self.runtime.environments.own = msgspec.convert(around, Environment)

    def _new_caller(self, message: m.NewCaller) -> None:
        caller = self.callers.get(message.client)
        if caller is None or self.mailbox is None:
            caller = self.callers[message.client] = Caller(self, message.client, message.far)
        elif caller.link is not None:
            self.reactor.remove(caller.link)
        caller.link = self.runtime.connect(self.runtime.node.stream.take_fd(), m.ToWorker, caller)
        if self.mailbox is not None:
            if message.far:
                self.mailbox.far.add(message.client)
            self.mailbox.reconnected(message.client)

    def _caller_gone(self, client: int) -> None:
        caller = self.callers.get(client)
        if caller is None:
            return
        if caller.link is not None:
            caller.received(caller.link.stream.drain())
            self.reactor.remove(caller.link)
        caller.ended()
        if self.mailbox is not None:
            for call in self.mailbox.forget(client):
                self._discard(caller, call)
            del self.callers[client]
            self.producing.caller_gone(client)

    def _become_actor(self, message: m.BecomeActor) -> None:
        self.callers.clear()
        self.actor = message
        self.place.actor_id, self.place.incarnation = message.actor, message.incarnation
        self.mailbox = Mailbox(1, lambda kept: 64)
        self.prefetch = Prefetch(self.runtime, self.mailbox, lambda: None)
        body = self.bodies.actor(self, message)
        self.later(body.run_s, functools.partial(self._constructed, body))

    def _constructed(self, body: Body) -> None:
        assert self.actor is not None
        try:
            body.end()
        except Exception as error:
            self.runtime.tell_node(m.ActorFailed(self.actor.actor, self.marshal.failed(error, "an actor").data))
            self.left = True
            return
        self.constructed = True
        self.runtime.tell_node(m.ActorReady(self.actor.actor))

    def _release(self, _: m.ActorRelease) -> None:
        self.releasing = True

    def _exit(self, _: m.Exit) -> None:
        self.stopping = True

    # -- what to do next

    def step(self) -> None:
        """After each event."""
        while self.unit.alive:
            if self.waits_for is not None:
                if not self.waits_for():
                    return
                go_on, self.waits_for, self.go_on = self.go_on, None, None
                if self.blocked:
                    self._block(False)
                assert go_on is not None
                go_on()
            elif self.running is not None or self.left:
                return
            elif self.mailbox is not None:
                if not self.constructed:
                    return
                self.prefetch.go_on()
                entry = self.mailbox.next()
                if entry is None:
                    if self.releasing and self.mailbox.drained:
                        self.leave("nobody holds a handle of it any more")
                    return
                client, call = entry
                caller = self.callers.get(client) or Caller(self, client, False)
                self._start(caller, call)
            elif self.queue:
                self._start(*self.queue.popleft())
            elif self.stopping:
                self.unit.end()
                return
            else:
                if self.owes and not self.runtime.owes():
                    self.owes = False
                    self.runtime.tell_node(m.Owes(False))
                return

    def leave(self, why: str) -> None:
        """The actor ends on purpose; we end with the node's connection."""
        assert self.actor is not None
        self.left = True
        self.runtime.tell_node(m.ActorExit(self.actor.actor, why))

    def wait(self, until: Callable[[], bool], then: Callable[[], None]) -> None:
        """What would block: the node hears of it."""
        if until():
            then()
            return
        self.waits_for, self.go_on = until, then
        self._block(True)

    def _block(self, blocked: bool) -> None:
        self.blocked = blocked
        if blocked and self.running is not None and isinstance(self.running[1], m.Task):
            self.give_back(self.running[0], len(self.queue), blocked=True)
        self.runtime.tell_node(m.Blocked(blocked))

    # -- running

    def _start(self, caller: Caller, task: m.Task | m.Call) -> None:
        self.running = caller, task
        if isinstance(task, m.Task):
            if self.page.client != caller.client:
                self._send_replies()
                self.page.client, self.page.started = caller.client, 0
            self.page.started = task.seq
        objects = self.runtime.objects
        fetched = self.prefetch.take(caller.client, task.seq) if self.mailbox is not None else None
        kept = fetched or [objects.from_wire(value, caller.via) for value in (task.args, *task.deps)]
        holds = [value.hold for value in kept if isinstance(value, InPlace)]
        away = [hold for hold in holds if objects.away(hold)]
        objects.bring([hold for hold in away if not fetched or objects.lost(hold.id) is None])
        self._fetch(kept, holds)

    def _fetch(self, kept: list[Any], holds: list[Hold]) -> None:
        coming = self.runtime.objects.is_coming
        self.wait(lambda: not any(map(coming, holds)), functools.partial(self._fetched, kept, holds))

    def _fetched(self, kept: list[Any], holds: list[Hold]) -> None:
        objects = self.runtime.objects
        for hold in holds:
            if objects.away(hold) and (lost := objects.lost(hold.id)) is not None:
                how = lost.owner if isinstance(lost, m.Lost) else "its owner says that it cannot be made again"
                self._reply([self.marshal.failed_by_us(ObjectLostError(how, object_id=hold.id.hex()))])
                return
        if away := [hold for hold in holds if objects.away(hold)]:  # it went to disk while others came
            objects.bring(away)
            self._fetch(kept, holds)
        else:
            self._loaded(kept)

    def _loaded(self, kept: list[Any]) -> None:
        assert self.running is not None
        caller, task = self.running
        try:
            loaded = [self.runtime.load(value) for value in kept]
        except LatticaError as error:
            self._reply([self.marshal.failed(error, "a task")])
            return
        if self.canceled:
            self._reply([self._canceled(task)])
            return
        self.body = body = self.bodies.body(self, caller, task, loaded[0], loaded[1:])
        refs = body.begin(self)
        del kept, loaded
        self.later(body.run_s, functools.partial(self._ran, body, refs))

    def _ran(self, body: Body, refs: list[ObjectRef]) -> None:
        if self.body is not body:
            return
        self.runtime.objects.ask([ref for ref in refs if ref._value is None])
        self.wait(lambda: all(self.is_here(ref) for ref in refs), functools.partial(self._finish, body))

    def _finish(self, body: Body) -> None:
        if body.room and not self.runtime.has_room(body.room):
            self.wait(lambda: self.runtime.has_room(body.room), functools.partial(self._finish, body))
            return
        assert self.running is not None
        caller, task = self.running
        if task.returns < 0:
            try:
                body.end()
            except Exception as error:
                self.body = None
                self._reply([self.marshal.failed(error, "a task")])
                return
            self.run = self.producing.begin(caller.client, task, keeps=self.mailbox is not None)
            self._produce(body)
            return
        self.body = None
        try:
            out = self.marshal.results(
                body.end(), task.returns, task.object, caller.client, "a task", attempt=task.attempt
            )
        except Exception as error:
            out = [self.marshal.failed(error, "a task")]
        self._reply(out)

    def _produce(self, body: Body) -> None:
        """The next item of a generator, as soon as it may be made and there is room for it."""
        run = self.run
        if self.body is body and run is not None:
            ready = lambda: run.producer.may_make and (not body.room or self.runtime.has_room(body.room))  # noqa: E731
            self.wait(ready, functools.partial(self._make, body, run))

    def _make(self, body: Body, run: Run) -> None:
        at = run.producer.made
        if run.producer.over or at == body.items:
            self.body = None
            self._reply([self.producing.nothing(run.call)])
            return
        self.producing.made(run, body.item(at), "a task", functools.partial(self._send_item, run))
        self.later(body.pause_s, functools.partial(self._produce, body))

    def _send_item(self, run: Run, item: m.Item) -> None:
        if run.keeps:
            caller = self.callers.get(run.client)
            if caller is not None and caller.link is not None:
                self.reactor.send(caller.link, item)
        else:
            self._to_page(item)

    def _to_page(self, message: m.Reply | m.Item) -> None:
        self.reactor.flush()
        self.page.items += frames.encode_one(message)
        self.page.count += 1
        self.later(self.universe.rng.uniform(*REPLY_S), self._send_replies)

    def _reply(self, out: list[m.Value]) -> None:
        if self.run is not None:
            self.producing.end(self.run)
            self.run = None
        assert self.running is not None
        (caller, task), self.running, self.canceled = self.running, None, False
        reply = m.Reply(task.seq, out, 1000)
        if self.mailbox is not None:
            self.mailbox.finished(caller.client, task.seq)
            self._answer(caller.client, reply)
            return
        if not self.owes and self.runtime.owes():
            self.owes = True
            self.runtime.tell_node(m.Owes(True))
        self._to_page(reply)

    def _answer(self, client: int, reply: m.Reply) -> None:
        """To a call; kept in case that it is asked for again."""
        assert self.mailbox is not None
        caller = self.callers.get(client)
        if caller is None:
            again = self.mailbox.past.finished(client, reply.seq, reply)
            if again is not None:
                self._answer(again[0], m.Reply(again[1], self._for_another(reply), reply.micros))
            return
        value = reply.values[0]
        plain = type(value) is bytes and len(reply.values) == 1
        self.mailbox.replied(client, reply.seq, value if plain else reply)  # type: ignore[arg-type]
        if caller.link is not None:
            self.reactor.send(caller.link, reply)

    def _send_replies(self) -> None:
        page = self.page
        caller = self.callers.get(page.client)
        if page.count and caller is not None:
            self.reactor.flush()
            items = frames.join(page.count, page.items) + page.items
            caller.link.stream.flush()
            caller.link.stream.end.put(items)
        page.count, page.items = 0, b""

    # -- calls

    def arrived(self, caller: Caller, call: m.Call) -> None:
        assert self.mailbox is not None
        if call.returns >= 0 and self.mailbox.came_back(caller.client, call):
            let_go_inputs(self.runtime, call, caller.via)
            ended, past = self.mailbox.past.again(call.object, caller.client, call.seq)
            if ended:
                self._answer(caller.client, m.Reply(call.seq, self._for_another(past)))
            return
        if self.mailbox.arrived(caller.client, call):
            self.prefetch.arrived(caller.client, caller.via, call)
            return
        answered, kept = self.mailbox.repeat(caller.client, call.seq)
        if call.returns < 0:
            self.producing.say_again(cast(Any, caller), call.seq, answered=answered)
        if answered:
            assert kept is not None, "a reply was dropped, and there are few"
            self.reactor.send(caller.link, m.Reply(call.seq, [kept]) if isinstance(kept, bytes) else kept)

    def _for_another(self, kept: bytes | m.Reply | None) -> list[m.Value]:
        return for_another(kept) or [self.marshal.failed_by_us(ActorUnavailableError(reason=NOT_KEPT))]

    # -- cancel: as of `actors.worker` and `actors.actor_host`

    def cancel(self, caller: Caller, message: m.Cancel) -> None:
        """Stop what is queued or runs."""
        if self.mailbox is not None:
            call = self.mailbox.cancel(caller.client, message.seq)
            if call is not None:
                self._discard(caller, call)
                self.producing.withdrawn(caller.client, call.seq)
                self._answer(caller.client, m.Reply(call.seq, [self._canceled(call)]))
                return
        for entry in self.queue:
            if entry[0] is caller and entry[1].seq == message.seq:
                self.queue.remove(entry)
                let_go_inputs(self.runtime, entry[1], caller.via)
                self.producing.withdrawn(caller.client, message.seq)
                self.reactor.send(caller.link, m.Reply(message.seq, [self._canceled(entry[1])]))
                return
        if self.running is not None and self.running[0] is caller and self.running[1].seq == message.seq:
            self.canceled = True
            if self.body is not None:
                for ref in self.body.submitted() if message.recursive else ():
                    self.runtime.cancel(ref, force=False, recursive=True)
                self._break()

    def is_to_come(self, client: int, seq: int) -> bool:
        """As of `actors.worker`."""
        if self.mailbox is not None:
            return (client, seq) in self.mailbox
        here = [*self.queue, *([self.running] if self.running is not None else [])]
        return any(caller.client == client and task.seq == seq for caller, task in here)

    def _discard(self, caller: Caller, call: m.Call) -> None:
        if self.prefetch.take(caller.client, call.seq) is None:
            let_go_inputs(self.runtime, call, caller.via)

    def _canceled(self, task: m.Task | m.Call) -> m.Failed:
        return self.marshal.failed(context.Canceled(task.object.hex()), "a task")

    def _break(self) -> None:
        """Out of user code, as by a signal."""
        assert self.running is not None and self.body is not None
        self.body.broken()
        self.body = self.waits_for = self.go_on = None
        if self.blocked:
            self._block(False)
        self._reply([self._canceled(self.running[1])])

    # -- back

    def give_back(self, caller: Caller, wanted: int, *, blocked: bool = False) -> None:
        """As of `actors.worker`."""
        tasks = take_back(self.queue, caller, wanted, keep=0 if self.running is not None else 1)
        for task in tasks:
            let_go_inputs(self.runtime, task, caller.via)
            self.producing.withdrawn(caller.client, task.seq)
        if caller.link is not None:
            self.reactor.send(caller.link, m.Returned([task.seq for task in reversed(tasks)], blocked))


class SimDriver(SimProcess):
    """One driver; `act` is the scenario's."""

    def __init__(self, unit: Unit, node: End, host: NodeUnit, ready: Callable[[SimDriver], None]) -> None:
        super().__init__(unit, node, host)
        self.ready = ready
        self.runtime.extra[m.Welcome] = self._welcome
        self.listen()

    def hello(self, namespace: str) -> m.Hello:
        job: dict[str, object] = {"namespace": namespace, "log_to_driver": False}
        return m.Hello(m.PROTOCOL, 1, "driver", sys.executable, job)

    def _welcome(self, message: m.Welcome) -> None:
        runtime = self.runtime
        runtime.client, runtime.job, runtime.node_id = message.client, message.job, message.node
        runtime.token, runtime.config = message.token, message.config
        runtime.namespace = str(message.config.get("namespace", ""))
        self.ready(self)
