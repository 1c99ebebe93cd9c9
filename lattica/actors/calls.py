"""Actor calls of one process on their way, and what it knows of each actor that it has a handle of.

Calls to one actor leave in submission order, whatever thread made them; the head of the queue waits for its arguments.
While the actor restarts they wait here. What was sent and not answered when its process died ends in an error ("may
have run"), or is sent again to the next incarnation if the call has retries. If only the connection broke, it is sent
again over another one to the same incarnation, which runs nothing twice (see `mailbox`). Methods are called with the
reactor's lock held.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from lattica.actors.given_up import GivenUp
from lattica.actors.mailbox import Unanswered
from lattica.actors.records import Record, data_alone, fail, failed_dep, finish
from lattica.actors.refs import ActorHold
from lattica.actors.values import is_data, not_data
from lattica.codec import messages as m
from lattica.errors import (
    ActorDiedError,
    ActorFencedError,
    ActorPlacementGroupRemovedError,
    ActorUnavailableError,
    LatticaError,
    OutOfMemoryError,
    PendingCallsLimitExceededError,
    RuntimeEnvSetupError,
    TaskCancelledError,
)
from lattica.errors.actors import ENDED_ON_PURPOSE
from lattica.local.reactor import FLUSH_MESSAGES

if TYPE_CHECKING:
    from lattica.actors.runtime import Runtime
    from lattica.local.reactor import Link


class CallRecord(Record, eq=False):
    """One call until its refs have values. `hold` keeps the actor alive meanwhile."""

    peer: ActorPeer
    hold: ActorHold
    method: str
    group: str = ""
    name: str = ""

    def __repr__(self) -> str:
        return f"<Call {self.peer.class_name}.{self.method}: {'sent' if self.seq else 'queued'}>"

    @property
    def data(self) -> bool:
        """See `Record`."""
        return self.peer.data

    def rerun(self) -> bool:
        """Send it before the others."""
        if self.peer.dead is not None:
            return False
        self.spend_retry()
        self.peer.queue.appendleft(self)
        self.peer.pump()
        return True


class ActorPeer:
    """An actor as this process sees it: where it is, what waits for it, what it owes us."""

    __slots__ = (
        "broken", "calls", "cancels", "class_name", "client", "data", "dead", "given", "held", "hold", "id",
        "incarnation", "inflight", "is_gone", "killed", "link", "max_pending", "queue", "runtime", "unanswered", "via",
    )  # fmt: skip

    def __init__(self, runtime: Runtime, calls: Calls, id: bytes, class_name: str = "", max_pending: int = -1) -> None:
        self.runtime, self.calls = runtime, calls
        self.id, self.class_name, self.max_pending = id, class_name, max_pending
        self.data = runtime.data  # of what it returns, data is taken and nothing else
        self.link: Link | None = None
        self.client = 0
        self.via = 0  # `client`, if that is on another machine
        self.incarnation = 0
        self.is_gone = False  # the process `client`; of its actor the node has yet to say so
        self.broken: Link | None = None  # a connection that has ended, and the node has not said why
        self.killed = False  # by us: this incarnation shall take no more calls
        self.queue: deque[CallRecord] = deque()
        self.unanswered: Unanswered[CallRecord] = Unanswered()
        self.inflight = self.unanswered.calls
        self.given: dict[int, m.Call] = {}  # what is in flight and gave this incarnation something, as it was sent
        self.cancels: dict[int, m.Cancel] = {}  # of what is in flight
        self.dead: LatticaError | None = None
        self.hold: weakref.ref[ActorHold] | None = None
        self.held = 0  # what the node has been told that we hold, by us or by who gave it to us

    def __repr__(self) -> str:
        state = "dead" if self.dead else "connected" if self.link else "connecting"
        calls = f"{len(self.queue)} queued, {len(self.inflight)} in flight"
        return f"<ActorPeer {self.class_name} {self.id.hex()[:4]}: {state}, {calls}>"

    # -- out

    def submit(self, call: CallRecord) -> None:
        """Send it, or queue it behind the others."""
        if self.dead is not None:
            fail(self.runtime, call, self.dead)
            return
        if self.max_pending >= 0 and self.max_pending <= len(self.queue) + len(self.inflight):
            raise PendingCallsLimitExceededError(
                f"{self.class_name} has {self.max_pending} calls pending already, its max_pending_calls",
                do_next="wait for some of them with lattica.wait before the next call",
            )
        if call.deps:
            waiting = [ref for ref in call.deps if ref._value is None]
            self.runtime.objects.ask(waiting)
            call.missing = len(waiting)
            for ref in waiting:
                self.runtime.when_done(ref, lambda _ref: self._dep_ready(call))
        link = self.link
        if link is None:
            self.queue.append(call)
            return
        if self.queue or call.missing or self.killed:
            self.queue.append(call)
            self.pump()
        else:
            self._send(call, link)
        self.runtime.reactor.nudge(link, alone=len(self.inflight) == 1)

    def _dep_ready(self, call: CallRecord) -> None:
        call.missing -= 1
        if not call.missing and self.link is not None:
            self.pump()

    def pump(self) -> None:
        """Send from the head of the queue as long as the head has its arguments."""
        queue = self.queue
        while queue and self.link is not None and not self.killed:
            if queue[0].missing:
                return
            self._send(queue.popleft(), self.link)
            self._divide()

    def _divide(self) -> None:
        """Many at once leave in frames of a length that the other side takes."""
        if self.link is not None and self.link.stream.unsealed >= FLUSH_MESSAGES:
            self.link.stream.flush()

    def _send(self, call: CallRecord, link: Link) -> None:
        runtime = self.runtime
        deps: list[m.Value] = []
        if call.deps:
            failed = failed_dep(runtime, call)
            if failed is not None:
                finish(runtime, call, [failed], final=True)
                return
            deps = [runtime.objects.dep_to_wire(ref, self.client) for ref in call.deps]
        call.seq = seq = runtime.next_seq()
        inflight = self.inflight
        acked = self.unanswered.acked if inflight else seq - 1
        inflight[seq] = call
        args = call.args
        wire = args if type(args) is bytes else runtime.objects.to_wire(args, self.client)
        message = m.Call(
            seq,
            call.refs[0].id,
            call.method,
            wire,
            call.returns,
            deps,
            call.at,
            call.attempt,
            acked,
            self.data,
            call.group,
            call.name,
        )
        if deps or wire is not args:
            self.given[seq] = message
        if call.returns < 0:
            call.stream.begins(link)  # type: ignore[attr-defined]
        runtime.reactor.send(link, message)

    # -- back

    def received(self, messages: list[Any]) -> None:
        """Replies of the actor's worker."""
        inflight = self.inflight
        for message in messages:
            if type(message) is m.Reply:
                call = inflight.pop(message.seq, None)
                if call is None or message.micros < 0:
                    self._received_rarely(call, message)
                    continue
                try:
                    values = message.values
                    if self.data:
                        values = data_alone(self.runtime, call, values, f"{self.class_name}.{call.method}")
                    finish(self.runtime, call, values, via=self.via, data=self.data)
                except Exception:
                    self.unanswered.put_back(message.seq, call)  # or its refs would wait for ever
                    raise
            elif type(message) is m.Item:
                self._item(message)
        self.unanswered.heard(len(messages))
        if self.given or self.cancels:
            self._forget_answered(messages)

    def _item(self, item: m.Item) -> None:
        call: Any = self.inflight.get(item.seq)
        if call is not None:
            call.stream.came(item, self.via)
        else:
            self.calls.let_go(item, self.client, self.via)

    def _forget_answered(self, replies: list[Any]) -> None:
        for reply in replies:
            if type(reply) is m.Reply:
                self.given.pop(reply.seq, None)
                self.cancels.pop(reply.seq, None)

    def _received_rarely(self, call: CallRecord | None, reply: m.Reply) -> None:
        """The reply of a call that we gave up, or the word that there is no reply any more: we were given things."""
        self.calls.let_go(reply, self.client, self.via)
        if call is None:
            return
        if call.retries_left and not call.canceled:
            call.spend_retry()
            self.queue.appendleft(call)
            self.pump()
        else:
            values = reply.values
            if self.data:
                values = data_alone(self.runtime, call, values, f"{self.class_name}.{call.method}")
            finish(self.runtime, call, values, final=True)

    def ended(self) -> None:
        """End of stream: what it means is the node's to say (`ActorDown`). If that says nothing the actor lives, only
        the connection broke, and another one is asked for."""
        broken = self.broken = self.link
        self.link = None
        now = time.monotonic()

        def silent() -> None:
            if self.broken is broken and self.calls.peers.get(self.id) is self:
                self._reconnect(broken.why if broken is not None else "")

        self.runtime.reactor.call_at(now + self.unanswered.broke(now), silent)

    def _reconnect(self, why: str) -> None:
        """Ask for another connection; what is owed goes over it again, unless that has broken too many already."""
        if self.unanswered.hopeless:
            breaks = self.unanswered.breaks
            for call in self._take_all():
                reason = f"the connection to it broke {breaks} times in a row ({why or 'it ended'}), and this call may"
                fail(self.runtime, call, self._unavailable(f"{reason} have run"))
        self.runtime.tell_node(m.ActorConnect(self.id))

    def _send_again(self) -> None:
        """Over a new connection to the same incarnation, in order: what it has heard already it does not do twice. The
        holds in it were given when it was first sent."""
        assert self.link is not None
        for seq, call in self.inflight.items():
            message = self.given.get(seq)
            if message is None:
                assert type(call.args) is bytes and not call.deps, "it gave something, and nobody knows what"
                message = m.Call(
                    seq,
                    call.refs[0].id,
                    call.method,
                    call.args,
                    call.returns,
                    [],
                    call.at,
                    call.attempt,
                    0,
                    self.data,
                    call.group,
                    call.name,
                )
            if call.returns < 0:
                call.stream.goes_on(self.link)  # type: ignore[attr-defined]
            self.runtime.reactor.send(self.link, message)
            if seq in self.cancels:
                self.runtime.reactor.send(self.link, self.cancels[seq])
            self._divide()

    # -- the actor's life

    def kill(self, no_restart: bool) -> None:
        """End its process. Calls made from now on are for the next one, or for nobody."""
        self.killed = self.link is not None or self.broken is not None
        self.runtime.tell_node(m.ActorKill(self.id, no_restart))
        self.runtime.reactor.flush()

    def connected(self, message: m.ActorConnected, fd: int) -> None:
        """An incarnation takes our calls: another one, or the same over another connection."""
        same = message.incarnation == self.incarnation and message.client == self.client
        if self.link is not None and same:
            self.runtime.reactor.remove(self.link)
        if not same:
            self._leave()
            self._repeat_or_fail("it was restarted, and this call may have run")
        self.incarnation, self.client, self.killed = message.incarnation, message.client, self.killed and same
        self.dead = None  # it may have been out of reach
        self.broken = None
        self.via = message.client if message.far else 0
        self.is_gone = False
        self.calls.by_client[self.client] = self
        if message.far:
            self.runtime.objects.hosts[message.client] = message.host
        self.link = self.runtime.connect(fd, m.FromWorker, self)
        self.unanswered.connected(time.monotonic())
        self._send_again()
        self.pump()

    def down(self, message: m.ActorDown) -> None:
        """This incarnation ended: hear its last replies, then retry or fail what it still owes us."""
        self._leave()
        self.killed, self.broken = False, None
        if message.restarting or isinstance(self.dead, ActorUnavailableError):
            self.dead = None  # until it is said again: a node that was believed dead may come back, and its actors
        if not message.restarting and self.dead is None:
            self.dead = self._death(message)
        words = f"{message.how}; it is being restarted, and this call may have run"
        fenced = self._fenced(message.how) if message.fenced else None
        self._repeat_or_fail(words, out_of_memory=message.how if message.out_of_memory else "", fenced=fenced)
        if self.dead is not None:
            while self.queue:
                fail(self.runtime, self.queue.popleft(), self.dead)

    def _leave(self) -> None:
        """Hear the last replies; no more is asked over this connection. But its process may live: see `given_up`."""
        link, self.link = self.link, None
        if link is None:
            return
        self.received(link.stream.drain())
        if self.via or not (self.inflight or self.calls.given_up.awaits(self.client)):
            self.runtime.reactor.remove(link)
            return
        for seq, call in self.inflight.items():
            if call.returns < 0:  # nobody takes more of it
                self.runtime.reactor.send(link, m.Taken(seq, 0, 0, over=True))
        self.calls.listen_on(link, self.client)

    def _repeat_or_fail(self, words: str, out_of_memory: str = "", fenced: LatticaError | None = None) -> None:
        """The incarnation that we were connected with is gone, and what it owed us: to the next, or to its end."""
        for call in reversed(self._take_all()):
            if self.dead is None and call.retries_left and not call.canceled:
                call.spend_retry()
                self.queue.appendleft(call)
            elif call.canceled:
                fail(self.runtime, call, TaskCancelledError(name=f"{self.class_name}.{call.method}"))
            elif out_of_memory:
                fail(self.runtime, call, OutOfMemoryError(f"actor {self.class_name}: {out_of_memory}"))
            else:
                fail(self.runtime, call, self.dead or fenced or self._unavailable(words))

    def _take_all(self) -> list[CallRecord]:
        self.given.clear()
        self.cancels.clear()
        for seq, call in self.inflight.items() if not self.via else ():
            self.calls.given_up.add(self.client, seq, call.attempt, call.unheard)
        if self.is_gone:
            self.calls.gone(self.client)
        return self.unanswered.take_all()

    def _death(self, message: m.ActorDown) -> LatticaError:
        if message.unavailable:
            return self._unavailable(message.how)
        if message.fenced:
            return self._fenced(message.how)
        if message.removed:
            which = f"actor {self.class_name} ({self.id.hex()[:8]})"
            return ActorPlacementGroupRemovedError(f"{which} is over: {message.how}")
        if message.environment:
            return RuntimeEnvSetupError(f"actor {self.class_name} ({self.id.hex()[:8]}): {message.how}")
        error = ActorDiedError(actor=self.class_name, actor_id=self.id.hex(), reason=message.how)
        if message.error:
            failed = m.Failed(message.error)
            if self.data and not is_data(failed.data):
                failed = self.runtime.failure(not_data(f"what the constructor of {self.class_name} raised"))
            cause = self.runtime.load_failure(failed)
            error = ActorDiedError(
                actor=self.class_name,
                actor_id=self.id.hex(),
                reason=message.how,
                init_failed=True,
                cause_text=str(cause),
                do_next="mend what its constructor raised, below, and make a new actor",
            )
        elif message.stderr and not message.intended:
            error.cause_text = "last words on its stderr:\n" + message.stderr
        if message.intended:
            error.do_next = ENDED_ON_PURPOSE
        return error

    def _fenced(self, reason: str) -> LatticaError:
        return ActorFencedError(actor=self.class_name, actor_id=self.id.hex(), reason=reason)

    def _unavailable(self, reason: str) -> LatticaError:
        return ActorUnavailableError(actor=self.class_name, actor_id=self.id.hex(), reason=reason)

    def cancel(self, call: CallRecord, recursive: bool) -> None:
        """Stop a call that has not ended."""
        call.canceled = True
        if call.seq and call.seq in self.inflight:
            message = self.cancels[call.seq] = m.Cancel(call.seq, recursive)
            if self.link is not None:
                self.runtime.reactor.send(self.link, message)
                self.runtime.reactor.flush()
            return
        if call in self.queue:
            self.queue.remove(call)
        fail(self.runtime, call, TaskCancelledError(name=f"{self.class_name}.{call.method}"))
        self.pump()  # it may have been the head, which the others waited for
        self.runtime.reactor.flush()
        self.runtime.reactor.changed()


class _Late:
    """A connection with a process that is said to be gone: of what that still says, nobody waits for anything."""

    __slots__ = ("calls", "client", "link")

    def __init__(self, calls: Calls, client: int, link: Link) -> None:
        self.calls, self.client, self.link = calls, client, link

    def received(self, messages: list[Any]) -> None:
        for message in messages:
            self.calls.let_go(message, self.client)

    def ended(self) -> None:
        self.calls.late[self.client].remove(self)
        self.calls.runtime.reactor.remove(self.link)


class Calls:
    """The actors that this process has handles of."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.peers: dict[bytes, ActorPeer] = {}
        self.by_client: dict[int, ActorPeer] = {}  # those that live
        self.given_up = GivenUp()
        self.late: dict[int, list[_Late]] = {}  # by client, until that is gone

    def __repr__(self) -> str:
        return f"<Calls: {len(self.peers)} actors>"

    @property
    def unfinished(self) -> bool:
        """Whether calls are queued or run."""
        return any(peer.queue or peer.inflight for peer in self.peers.values())

    def created(self, id: bytes, class_name: str, max_pending: int) -> tuple[ActorPeer, ActorHold]:
        """An actor that this process makes: the node counts one hold for us with `ActorCreate`, and connects us."""
        peer = self.peers[id] = ActorPeer(self.runtime, self, id, class_name, max_pending)
        return peer, self._held(peer, 1)

    def adopt(self, id: bytes, count: int = 1) -> ActorHold:
        """We were given `count` holds on an actor."""
        peer = self.peers.get(id)
        if peer is None:
            peer = self.peers[id] = ActorPeer(self.runtime, self, id)
            self.runtime.tell_node(m.ActorConnect(id))
        return self._held(peer, count)

    def _held(self, peer: ActorPeer, more: int) -> ActorHold:
        peer.held += more
        hold = peer.hold() if peer.hold is not None else None
        if hold is None:
            hold = ActorHold(self.runtime.objects.releases, peer.id)
            peer.hold = hold.watch()
        return hold

    def load(self, id: bytes) -> tuple[ActorPeer, ActorHold]:
        """The actor whose handle is being unpickled: adopted with its message, or held by the value that we read."""
        peer = self.peers.get(id)
        hold = peer.hold() if peer is not None and peer.hold is not None else None
        if hold is None:
            self.runtime.tell_node(m.Hold(id))
            hold = self.adopt(id)
        return self.peers[id], hold

    def found(self, id: bytes) -> ActorHold:
        """It was found by its name, so it lives, whatever was said of it before: as `adopt`."""
        peer = self.peers.get(id)
        if peer is not None and peer.dead is not None:
            peer.dead = None
            self.runtime.tell_node(m.ActorConnect(id))
        return self.adopt(id)

    def released(self, id: bytes) -> None:
        """No handle of it was left here, and no call: the node may end it, unless a handle has come meanwhile."""
        peer = self.peers.get(id)
        if peer is None or peer.hold is None or peer.hold() is not None:
            return
        del self.peers[id]
        self.by_client.pop(peer.client, None)
        peer._leave()
        if peer.held:
            self.runtime.tell_node(m.Drop(id, peer.held))

    # -- what nobody waits for any more

    def listen_on(self, link: Link, client: int) -> None:
        """Until its other end, which may live, is gone."""
        link.handler = late = _Late(self, client, link)
        self.late.setdefault(client, []).append(late)

    def let_go(self, message: m.Reply | m.Item, client: int, via: int = 0) -> None:
        """What came for a call that we gave up, or that is made again: we were given things."""
        from_wire = self.runtime.objects.from_wire
        if isinstance(message, m.Item):
            from_wire(message.value, via)
            if isinstance(message.value, m.InArena):
                self.given_up.heard(client, message.seq, message.value.object)
            return
        for value in message.values:
            from_wire(m.WithRefs(b"", value.refs) if type(value) is m.Failed else value, via)
        self.given_up.replied(client, message.seq)

    def gone(self, client: int) -> None:
        """A process has ended, and the node has read all that it wrote."""
        peer = self.by_client.pop(client, None)
        if peer is not None and peer.client == client:
            peer.is_gone = True
        for late in self.late.pop(client, ()):
            late.received(late.link.stream.drain())
            self.runtime.reactor.remove(late.link)
        for attempt, objects in self.given_up.gone(client):
            self.runtime.tell_node(m.Unheard(objects, client, attempt))

    def died(self) -> None:
        """The node is gone, and with it every actor."""
        for peer in list(self.peers.values()):
            peer.dead = self.runtime.node_died_error()
            for call in [*peer.inflight.values(), *peer.queue]:
                fail(self.runtime, call, peer.dead)
            peer._take_all()
            peer.queue.clear()
