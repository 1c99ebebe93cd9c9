"""One driver or worker process: its reactor, its node connection, its objects, tasks and calls, joined.

The rooms below know each other only through this one. Whoever needs the process's runtime gets it as an argument; the
front door (`actors/session.py`) alone holds the current one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lattica.actors import values
from lattica.actors.calls import Calls
from lattica.actors.context import Place
from lattica.actors.environments import Environments
from lattica.actors.objects import INLINE_MAX, Objects
from lattica.actors.refs import BORROWED, Hold, InPlace, Nested, ObjectRef, Releases
from lattica.actors.serials import serials
from lattica.actors.tasks import TaskRecord, Tasks
from lattica.codec import messages as m
from lattica.errors import (
    GetTimeoutError,
    LatticaError,
    LocalNodeDiedError,
    ObjectLostError,
    OwnerDiedError,
    SerializationError,
    TaskError,
)
from lattica.local.descriptors import allow_descriptors
from lattica.local.guard import Guard
from lattica.local.reactor import Link, Reactor
from lattica.local.stream import Stream

if TYPE_CHECKING:  # each costs a start 10 to 50 ms, and most programs never await
    import asyncio
    from concurrent.futures import Future

    from lattica.actors.refs_list import CallSites

AHEAD_SHARE, AHEAD_MAX_BYTES = 8, 64 << 20
"""An eighth of the store is for what a program reads next, which comes back from disk while it reads. More: that pushes
out what it has not read yet; less: it waits for the disk each time."""
AHEAD_MAX = 256  # values that are looked at for that
STORE_S = 1.0
"""A worker that waits for the object store so long says that it waits. At once: another one would be forked for its
CPU, and want room as well; never: what it waits for may be made by a task that needs its CPU."""
STATE_TIMEOUT_S = 10.0
"""The node answers questions about itself in milliseconds; after this it hangs, and the error says so."""


_BYTES = {bytes}


class Runtime:
    """Everything one process has of lattica; see the rooms: `objects`, `tasks`, `calls`, `reactor`."""

    def __init__(self, node: socket.socket) -> None:
        self.token = b""  # the first 8 bytes of every id made here; the node's first message brings it
        self._count = serials()
        self.next_request = itertools.count(1).__next__
        self.next_seq = itertools.count(1).__next__
        self.pid = os.getpid()
        self.forked = False  # this is the copy in a child
        allow_descriptors()
        self.client = 0
        self.job = 0
        self.node_id = b""
        self.namespace = ""
        self.session_dir = ""
        self.config: dict[str, Any] = {}
        releases = Releases()
        self.guard = Guard()
        self.reactor = Reactor(self.guard, self.housekeep, releases)
        self.lock = self.reactor.lock
        self.objects = Objects(self, releases)
        self.tasks = Tasks(self)
        self.calls = Calls(self)
        self.environments = Environments(self)
        self.answers: dict[int, Any] = {}
        self._expected: dict[int, Callable[[Any], None]] = {}
        self._promised: dict[int, ObjectRef] = {}  # requests whose answer becomes the value of a ref
        self.within = b""  # worker: the bundle of a placement group that it runs in
        self.data = False  # of results, data is taken and nothing else, where the program does not say otherwise
        self.node_died_at: float | None = None
        self.refusal = ""  # why the node let us go, if it said so
        self.inquest: Callable[[], tuple[str, str]] = lambda: ("", "")  # how the node ended, and the end of its log
        self._node_death: tuple[str, str] = "", ""  # what is known of that, in words; the end of its log
        self.closing = False
        self.sites = _call_sites()  # where refs are made, if the user wants to know that
        self.waiting: set[object] = set()  # tasks and actors whose arguments are to come: nobody else may hold them
        self.place: Place | None = None  # worker: what it holds and hosts
        self.on_submit: Callable[[ObjectRef], None] | None = None  # worker: remembers children, for recursive cancel
        self.on_client_gone: Callable[[int], None] | None = None  # worker: one of its callers has ended
        self.on_block: Callable[[bool], None] | None = None  # worker: tells the node that it waits
        self.extra: dict[type, Callable[[Any], None]] = {}  # messages that only workers or drivers understand
        self._handlers = self._from_node()
        releases.poke = self._poke
        self._stream = Stream(node, m.FromNode, takes_fds=True)
        self.node: Link = None  # type: ignore[assignment]  # until `listen`

    def _from_node(self) -> dict[type, Callable[[Any], None]]:
        """Who hears which message of the node."""
        return {
            m.LeaseGranted: lambda g: self.tasks.granted(g, self.node.stream.take_fd() if g.connect else None),
            m.LeaseDenied: self.tasks.denied,
            m.LeaseWanted: lambda _: self.tasks.wanted(),
            m.LeaseLost: self.tasks.lost,
            m.Located: self.objects.located,
            m.Lost: self._lost,
            m.Freed: lambda f: self.objects.freed(f.object),
            m.SpanGrant: self.objects.span_granted,
            m.SpanDenied: self.objects.span_denied,
            m.SpanWanted: lambda _: self.objects.return_spans(),
            m.Evict: self.objects.evict,
            m.Forget: self.objects.forget,
            m.NoRoom: self.objects.no_room,
            m.RefsWanted: self._list_refs,
            m.ActorConnected: self._actor_connected,
            m.ActorDown: self._actor_down,
            m.ActorAccepted: self._answer,
            m.ActorRefused: self._answer,
            m.ActorFound: self._answer,
            m.State: self._answer,
            m.ClientGone: self._client_gone,
            m.CancelWanted: self._cancel_for_another,
            m.Refused: self._refused,
            m.InGroup: self._in_group,
        }

    def __repr__(self) -> str:
        return f"<Runtime of client {self.client}, job {self.job}: {self.objects}, {self.tasks}, {self.calls}>"

    def listen(self) -> None:
        """Hear the node from now on; `extra` is filled by then, or a first message would find nobody."""
        with self.lock:
            self.node = self.reactor.node_link = self.reactor.add(self._stream, self)

    def _poke(self) -> None:
        if not self.reactor.rung and not self.reactor.closed:
            self.reactor.ring()

    def housekeep(self) -> None:
        """Do what finalizers left to do. Lock held."""
        if self.objects.releases:
            self.objects.process_releases()

    # -- the node

    def owes(self) -> bool:
        """Whether something that this process submitted has not ended, or cannot be read by others yet. Lock held."""
        return bool(self.waiting) or self.tasks.unfinished or self.calls.unfinished or self.objects.promising

    def tell_node(self, message: Any) -> None:
        """Queue a message to the node. Lock held."""
        if self.node_died_at is None:
            self.reactor.send(self.node, message)

    def nudge_node(self) -> None:
        """Send what is queued for the node soon. Lock held."""
        self.reactor.nudge(self.node, alone=False)

    def connect(self, fd: int, types: Any, handler: Any) -> Link:
        """Talk to a worker or caller over a descriptor that the node sent. Lock held."""
        return self.reactor.add(Stream(socket.socket(fileno=fd), types), handler)

    def received(self, messages: list[Any]) -> None:
        """Messages of the node, in order."""
        handlers = self._handlers
        for message in messages:
            handler = handlers.get(type(message)) or self.extra.get(type(message))
            if handler is not None:
                handler(message)

    def ended(self) -> None:
        """The node is gone: everything that waits for it ends in NodeDiedError."""
        self.node_died_at = time.monotonic()
        self.reactor.node_link = None
        if not self.closing:
            self._node_death = self._how_the_node_died()
        self.tasks.died()
        self.calls.died()
        failure = self.failure(self.node_died_error())
        for ref in [*self.objects.table.values(), *self._promised.values()]:
            if ref._value is None:
                self.objects.settle(ref, failure)
        self._promised.clear()
        hook = self.extra.get(type(None))
        if hook is not None:
            hook(None)

    def node_died_error(self) -> LatticaError:
        """What everything ends in when the node is gone."""
        if self.closing:
            return LocalNodeDiedError(
                "lattica was shut down before this had a result", do_next="get results before lattica.shutdown()"
            )
        how, last_words = self._node_death
        return LocalNodeDiedError(f"{how}; its workers, actors and objects are gone", last_words=last_words)

    def _refused(self, message: m.Refused) -> None:
        self.refusal = message.reason

    def _how_the_node_died(self) -> tuple[str, str]:
        if self.node.why:
            return f"the connection to this machine's node was closed here, for {self.node.why}", ""
        how, last_words = self.inquest()
        if self.refusal:
            return f"this machine's node let this program go: {self.refusal}", last_words
        return f"this machine's node ended{f' ({how})' if how else ''}", last_words

    def ask_node(self, message: Any, timeout: float | None = None) -> Any:
        """Send a request (it has a `request` number) and wait for its answer. Without the lock."""
        request = message.request
        with self.lock:
            self.tell_node(message)
        done = self.wait_until(lambda: request in self.answers or self.node_died_at is not None, timeout)
        with self.lock:
            if request in self.answers:
                return self.answers.pop(request)
        if not done:
            raise GetTimeoutError(f"the node did not answer within {timeout} s")
        raise self.node_died_error()

    def expect(self, request: int, then: Callable[[Any], None]) -> None:
        """Have the answer to a request handed to `then`, with the lock held, instead of waiting for it. Lock held."""
        self._expected[request] = then

    def _answer(self, message: Any) -> None:
        then = self._expected.pop(message.request, None)
        if then is None:
            self.answers[message.request] = message
        else:
            then(message)

    def promise(self, message: Any, then: Callable[[Any], Any]) -> ObjectRef:
        """A ref whose value `then` makes of the node's answer to this, with the lock held: a kept value. Without the
        lock."""
        ref, request = self.new_ref(), message.request

        def answered(answer: Any) -> None:
            del self._promised[request]
            self.objects.settle(ref, then(answer))

        with self.lock:
            if self.node_died_at is not None:
                self.objects.settle(ref, self.failure(self.node_died_error()))
                return ref
            self._promised[request] = ref
            self.expect(request, answered)
            self.tell_node(message)
            self.reactor.flush()
        return ref

    def _list_refs(self, message: m.RefsWanted) -> None:
        from lattica.actors.refs_list import rows  # few programs are ever asked

        self.tell_node(m.Refs(message.request, rows(self)))
        self.nudge_node()

    def _in_group(self, message: m.InGroup) -> None:
        self.within = message.within

    def state(self, what: str) -> Any:
        """What the node says of itself: see `StateRequest`."""
        return self.ask_node(m.StateRequest(self.next_request(), what), STATE_TIMEOUT_S).data

    def _actor_connected(self, message: m.ActorConnected) -> None:
        fd = self.node.stream.take_fd()
        peer = self.calls.peers.get(message.actor)
        if peer is None:
            os.close(fd)
        else:
            peer.connected(message, fd)

    def _actor_down(self, message: m.ActorDown) -> None:
        peer = self.calls.peers.get(message.actor)
        if peer is not None:
            peer.down(message)

    def _client_gone(self, message: m.ClientGone) -> None:
        self.tasks.gone(message.client)
        self.calls.gone(message.client)
        self.objects.hosts.pop(message.client, None)
        if self.on_client_gone is not None:
            self.on_client_gone(message.client)

    def _lost(self, message: m.Lost) -> None:
        if message.object.startswith(self.token):
            self.objects.lost_elsewhere(message)
            return
        self.objects.not_coming(message)
        ref = self.objects.table.get(message.object)
        if ref is not None and ref._value is None:
            error = OwnerDiedError(object_id=message.object.hex(), owner=message.owner, made_at=message.made_at)
            self.objects.settle(ref, self.failure(error))

    # -- values

    def next_serial(self) -> int:
        """The rest of an id, of which the last 16 bits are free: results of one task count up in them."""
        return self._count() << 16

    def new_id(self) -> bytes:
        """An id for an object that has no ref."""
        return self.token + self.next_serial().to_bytes(8, "big")

    def new_ref(self) -> ObjectRef:
        """A ref whose value is still to come."""
        return ObjectRef(self, self.next_serial())

    def new_refs(self, returns: int) -> list[ObjectRef]:
        """Refs for the results of one task, with ids in a row; one that the user does not see if it has none."""
        serial = self._count() << 16  # as `next_serial`
        if self.sites is not None:
            for k in range(max(1, returns)):
                self.sites.note(serial + k)
        if returns == 1:
            return [ObjectRef(self, serial)]
        return [ObjectRef(self, serial + k) for k in range(max(1, returns))]

    def load_ref(self, id: bytes) -> ObjectRef:
        """See `Objects.load_ref`."""
        return self.objects.load_ref(id)

    def load_data_ref(self, id: bytes) -> ObjectRef:
        """See `Objects.load_data_ref`."""
        return self.objects.load_data_ref(id)

    def load_actor(self, id: bytes, meta: bytes) -> Any:
        """The handle of an actor, met while a value is unpickled."""
        from lattica.actors.handles import revive

        with self.lock:
            peer, hold = self.calls.load(id)
        return revive(self, peer, hold, meta)

    def load_data_actor(self, id: bytes, meta: bytes) -> Any:
        """The same, met while data is read: what the actor returns is data, if we have not met it otherwise."""
        from lattica.actors.handles import plain_meta, revive

        meta = plain_meta(meta)
        with self.lock:
            known = id in self.calls.peers
            peer, hold = self.calls.load(id)
            peer.data = peer.data or not known
        return revive(self, peer, hold, meta)

    def private_view(self, address: int, nbytes: int) -> Any:
        """A writable copy-on-write view of arena bytes that are mapped read-only at `address`."""
        return self.objects.arena.private_at(address, nbytes)

    def load(self, value: Any) -> Any:
        """A kept value as the user's object; raises what it is if it is a failure. Without the lock."""
        if type(value) is bytes:
            return values.loads_plain(value, self)
        if type(value) is Nested:
            return values.loads(value.data, self)
        failed = self.objects.failure_of(value)
        if failed is not None:
            raise self._error_of(failed)  # no name for it here: a frame that names what it raises is garbage in a ring
        assert isinstance(value, InPlace)
        hold, objects = value.hold, self.objects
        objects.reading.append(hold)  # as `Objects.read`, and quicker
        try:
            if objects.away(hold):
                self.bring([hold], None)
                assert not objects.away(hold), "who has the ref asks for it again, see `get`"
            return values.loads(objects.arena.read(hold.offset, hold.size), self, hold)
        finally:
            objects.reading.remove(hold)

    def _error_of(self, failed: m.Failed) -> BaseException:
        error = self.load_failure(failed)
        return error.as_instanceof_cause() if isinstance(error, TaskError) else error

    def load_failure(self, failed: m.Failed) -> BaseException:
        """The exception that a failure carries."""
        error = values.loads(failed.data, self)
        return error if isinstance(error, BaseException) else LatticaError(f"a failure that is no exception: {error!r}")

    def failure(self, error: LatticaError) -> m.Failed:
        """An exception of ours as a value, which those can read as well who take data alone."""
        return m.Failed(values.dumps_error(error), [], True)

    # -- get, put, wait

    def put(self, value: Any) -> ObjectRef:
        """Keep a value. Raises ObjectStoreFullError, SerializationError."""
        data = values.dumps(value) if self.place is None or not self.data else _data_if_possible(value)
        ref = self.new_ref()
        if self.sites is not None:
            self.sites.note(ref._serial)
        if data.size <= INLINE_MAX:
            if data.refs:
                for inner in data.refs:
                    self.objects.prepare(inner)
                ref._value = Nested(data.join(), data.refs)
            else:
                ref._value = data.join()
        else:
            for inner in data.refs:
                self.objects.prepare(inner)
            hold = self.objects.store(data, ref.id)
            if not data.refs:
                self.objects.keep(hold)
            else:
                with self.lock:
                    self.objects.seal(hold, contains=[inner.id for inner in data.refs])
                    self.nudge_node()
            ref._value = InPlace(hold)
        return ref

    def get(self, refs: Sequence[ObjectRef], timeout: float | None) -> list[Any]:
        """The values of refs, in order. Raises a failure as soon as there is one, though others have no value yet (as
        Ray does); GetTimeoutError after `timeout` seconds."""
        latest, moved = None if timeout is None else time.monotonic() + timeout, self.objects.moved
        while True:
            if (failed := self.await_all(refs, timeout)) is not None:
                failed._runtime.load(failed._value)
            kept = [ref._value for ref in refs]
            kinds = set(map(type, kept))
            if kinds == _BYTES:  # as nearly always: small, and not lost again
                return [values.loads_plain(data, self) for data in kept]  # type: ignore[arg-type]
            away = [one.hold for one in kept if type(one) is InPlace and one.hold.offset < 0]
            away = [hold for hold in away if hold.id not in moved]
            if not away:
                break
            self.bring(away, timeout)  # what is lost meanwhile has no value then: it is being made again
            timeout = None if latest is None else max(latest - time.monotonic(), 0.0)
        if moved:
            return [self._load_next(refs, at, latest) for at in range(len(refs))]
        return [ref._runtime.load(ref._value) for ref in refs]  # one of an earlier session has its value there

    def _load_next(self, refs: Sequence[ObjectRef], at: int, latest: float | None) -> Any:
        """The value of one of these, which may lie on disk; those behind it are asked for, too."""
        ref = refs[at]
        while True:
            if ref._value is not None and not _is_away(ref):
                return ref._runtime.load(ref._value)
            left = None if latest is None else max(latest - time.monotonic(), 0.0)
            self.await_all((ref,), left)
            if not _is_away(ref):
                continue
            assert isinstance(ref._value, InPlace)
            room = min(self.objects.arena.size_bytes // AHEAD_SHARE, AHEAD_MAX_BYTES)
            hold, ahead = ref._value.hold, _next_away(refs[at + 1 : at + 1 + AHEAD_MAX], room)
            reading = ref._runtime.objects.reading
            reading.append(hold)  # it does not go again before it is read
            try:
                self.bring([hold], left, ahead)
                if ref._value is not None and not _is_away(ref):  # else it was lost, and is being made again
                    return ref._runtime.load(ref._value)
            finally:
                reading.remove(hold)

    def get_one(self, ref: ObjectRef, timeout: float | None) -> Any:
        """The value of one ref."""
        if ref._value is None:
            self._await_one(ref, timeout)
        value = ref._value
        if type(value) is bytes:
            return values.loads_plain(value, self)
        if value is None or (type(value) is InPlace and self.objects.away(value.hold)):
            return self.get((ref,), timeout)[0]
        return self.load(value)

    def bring(self, holds: list[Hold], timeout: float | None, ahead: Sequence[Hold] = ()) -> None:
        """Wait until values that lie on other machines, or on disk, are here, or are being made again. Without the
        lock. ahead: asked for as well, and not waited for.

        Raises ObjectLostError if one will never come, ObjectStoreFullError if there is no room for it, GetTimeoutError.
        """
        with self.lock:
            self.objects.bring([*holds, *ahead])
            self.reactor.flush()
        coming = self.objects.is_coming
        quiet_s = STORE_S if not any(hold.at for hold in holds) else 0.0
        if not self.wait_until(lambda: not any(map(coming, holds)) or self.gone, timeout, quiet_s=quiet_s):
            from lattica.actors import waiting

            first = next(hold for hold in holds if coming(hold))
            reason = waiting.why_away(self, first.id, timeout or 0.0)
            said = f", first {first.id.hex()[:8]}: {reason}" if reason else ""
            raise GetTimeoutError(f"values on other machines or on disk had not come after {timeout} s{said}")
        for hold in holds:
            if self.objects.away(hold):
                if (error := self.lost_error(hold)) is not None:
                    try:
                        raise error
                    finally:
                        del error  # else it and its traceback hold each other, and the arrays of all frames in it
                if self.gone:
                    raise self.node_died_error()

    def lost_error(self, hold: Hold) -> BaseException | None:
        """Why a value that lies elsewhere will never come, if that is known."""
        why = self.objects.lost(hold.id)
        if isinstance(why, m.Failed):
            return self._error_of(why)
        return None if why is None else ObjectLostError(why.owner, object_id=hold.id.hex(), made_at=why.made_at)

    @property
    def gone(self) -> bool:
        """Whether the node is."""
        return self.node_died_at is not None

    def await_all(self, refs: Sequence[ObjectRef], timeout: float | None) -> ObjectRef | None:
        """Wait until every ref has a value; or until one that was waited for has failed, which is the answer."""
        objects, failures = self.objects, self.objects.failures  # before we look: others settle refs meanwhile
        pending = [ref for ref in refs if ref._value is None]
        if not pending:
            return None
        if len(pending) < len(refs) and (failed := _first_failed(refs)) is not None:
            return failed
        at, count, failed = 0, len(pending), None

        def done() -> bool:  # true once, true for ever: another thread may ask first
            nonlocal at, failures, failed
            while at < count and pending[at]._value is not None:
                at += 1
            if objects.failures != failures:  # somebody's
                failures = objects.failures
                failed = _first_failed(pending)
            return at == count or failed is not None

        self._ask(pending)
        if not self.wait_until(done, timeout, spin=count == 1):
            raise self._too_late(refs, pending[at], timeout)
        return failed if at < count else None

    def _await_one(self, ref: ObjectRef, timeout: float | None) -> None:
        """As `await_all`, of one that has no value yet: calls one by one pay for each step here."""
        if ref._flags:
            self._ask((ref,))
        if not self.wait_until(lambda: ref._value is not None, timeout, spin=True):
            raise self._too_late((ref,), ref, timeout)

    def _too_late(self, refs: Sequence[ObjectRef], first: ObjectRef, timeout: float | None) -> GetTimeoutError:
        left = sum(ref._value is None for ref in refs)
        return GetTimeoutError(
            f"{left} of {len(refs)} objects had no value after {timeout} s, first {first.hex()[:8]}"
            f"{self._why(first, timeout or 0.0)}",
            do_next="wait longer, or look with lattica.wait which are ready",
        )

    def _why(self, ref: ObjectRef, timeout: float) -> str:
        from lattica.actors import waiting  # few programs ever need it

        reason = waiting.why(self, ref, timeout)
        return f": {reason}" if reason else ""

    def wait(
        self, refs: list[ObjectRef], num_returns: int, timeout: float | None
    ) -> tuple[list[ObjectRef], list[ObjectRef]]:
        """(ready, rest), both in order, at most `num_returns` ready."""

        def done() -> bool:
            missing = num_returns
            for ref in refs:
                if ref._value is not None:
                    missing -= 1
                    if not missing:
                        return True
            return False

        if not done():
            self._ask(refs)
            self.wait_until(done, timeout)
        if num_returns == 1:  # the usual loop over many, one by one
            for at, ref in enumerate(refs):
                if ref._value is not None:
                    return [ref], refs[:at] + refs[at + 1 :]
            return [], refs
        ready = [ref for ref in refs if ref._value is not None][:num_returns]
        chosen = set(ready)
        return ready, [ref for ref in refs if ref not in chosen]

    def _ask(self, refs: Sequence[ObjectRef]) -> None:
        if any(ref._flags for ref in refs):
            with self.lock:
                self.objects.ask(list(refs))

    def wait_until(
        self, done: Callable[[], bool], timeout: float | None = None, *, spin: bool = False, quiet_s: float = 0.0
    ) -> bool:
        """Block this thread until `done()`. Without the lock. A worker tells the node that it waits, after
        `quiet_s`."""
        if self.guard.in_main_thread:
            self.guard.wrap(signal.SIGINT)
        if self.on_block is None:
            return self.reactor.wait(done, timeout, spin=spin)
        if quiet_s:
            if self.reactor.wait(done, quiet_s if timeout is None else min(timeout, quiet_s)):
                return True
            timeout = None if timeout is None else max(timeout - quiet_s, 0.0)
        self.on_block(True)
        try:
            return self.reactor.wait(done, timeout, spin=spin)
        finally:
            self.on_block(False)

    def when_done(self, ref: ObjectRef, callback: Callable[[ObjectRef], None]) -> None:
        """Call back, with the lock held, when the ref has a value. Lock held."""
        if ref._value is not None:
            callback(ref)
        elif ref._callbacks is None:
            ref._callbacks = [callback]
        else:
            ref._callbacks.append(callback)

    def future(self, ref: ObjectRef) -> Future[Any]:
        """A future of the ref's value; its callbacks run in the thread that hears the reply."""
        from concurrent.futures import Future

        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()

        def deliver() -> None:
            try:
                value = self.get_one(ref, None)
            except BaseException as error:
                future.set_exception(error.with_traceback(None))  # that of this frame, which has the future
            else:
                future.set_result(value)

        with self.lock:
            self.objects.ask([ref])
            if ref._value is None or _is_away(ref):
                self.objects.when_here(ref, lambda: self.reactor.after_dispatch.append(deliver))
                self.reactor.flush()
                return future
        deliver()
        return future

    async def awaitable(self, ref: ObjectRef) -> Any:
        """What `await ref` waits for."""
        if ref._value is None or _is_away(ref):
            import asyncio

            loop = asyncio.get_running_loop()
            waiter: asyncio.Future[None] = loop.create_future()

            def wake() -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(_finish, waiter)

            with self.lock:
                self.objects.ask([ref])
                self.objects.when_here(ref, wake)
                self.reactor.flush()
            await waiter
        return self.get_one(ref, None)

    def cid(self, ref: ObjectRef) -> str:
        """The content id of a ref's serialized bytes; waits for them."""
        self.await_all((ref,), None)
        if self.objects.failure_of(ref._value) is not None:
            self.load(ref._value)  # raises
        if ref._value is None or _is_away(ref):
            self.get((ref,), None)
        return self.objects.cid_of(ref._value)

    # -- cancel

    def cancel(self, ref: ObjectRef, *, force: bool, recursive: bool) -> None:
        """Stop what makes this ref, if it has not ended. One that another process owns is cancelled there, soon."""
        with self.lock:
            record = ref._task
            if isinstance(record, TaskRecord):
                self.tasks.cancel(record, force=force, recursive=recursive)
            elif record is not None:
                if force:
                    raise ValueError("force=True is not possible for actor calls; lattica.kill(actor) ends the actor")
                record.peer.cancel(record, recursive)
            elif ref._value is None and ref._flags & BORROWED:
                self.tell_node(m.CancelObject(ref.id, force, recursive))
                self.reactor.flush()

    def _cancel_for_another(self, message: m.CancelWanted) -> None:
        """Somebody whom we gave this ref wants it cancelled. Who asked for force could not know what it is."""
        ref = self.objects.table.get(message.object)
        if ref is not None and ref._task is not None:
            force = message.force and isinstance(ref._task, TaskRecord)
            self.cancel(ref, force=force, recursive=message.recursive)

    # -- the end

    def close(self) -> None:
        """Close every connection; refs without a value end in an error."""
        self.closing = True
        with self.lock:
            if self.node_died_at is None:
                self.ended()
        self.objects.releases.poke = None
        if self.guard.in_main_thread:
            self.guard.remove()
        self.reactor.close()

    def abandon(self) -> None:
        """In a forked child: nothing of this is ours any more."""
        self.forked = True
        self.objects.releases.poke = None
        self.reactor.abandon()


def _call_sites() -> CallSites | None:
    if not any(name in os.environ for name in ("LATTICA_RECORD_CALL_SITES", "RAY_record_ref_creation_sites")):
        return None
    from lattica.actors.refs_list import call_sites

    return call_sites()


def _data_if_possible(value: Any) -> values.Serialized:
    """Its ref may go to somebody who takes data alone; or it may not, and then anything can be put."""
    try:
        return values.dumps_data(value)
    except SerializationError:
        return values.dumps(value)


def _first_failed(refs: Sequence[ObjectRef]) -> ObjectRef | None:
    """Of those whose failure came as a message, as all but very long ones do."""
    return next((ref for ref in refs if type(ref._value) is m.Failed), None)


def _is_away(ref: ObjectRef) -> bool:
    """Whether its value lies on another machine, or on disk."""
    return type(ref._value) is InPlace and ref._runtime.objects.away(ref._value.hold)


def _next_away(refs: Sequence[ObjectRef], room: int) -> list[Hold]:
    """The first of them that do not lie in memory, so many bytes."""
    found, size = list[Hold](), 0
    for ref in refs:
        value = ref._value
        if isinstance(value, InPlace) and ref._runtime.objects.away(value.hold):
            size += value.hold.size
            if size > room:
                break
            found.append(value.hold)
    return found


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
