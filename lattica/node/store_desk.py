"""Objects, carried out: the ledger knows who holds what, the allocator who may write where; this desk tells."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from lattica.codec import messages as m
from lattica.errors import RemoteProtocolError
from lattica.node import fullness
from lattica.node.clients import Client
from lattica.node.loop import Timer, Work
from lattica.objectstore.arena import Arena
from lattica.objectstore.ledger import (
    Adopt,
    Effect,
    Forgotten,
    FreeRegion,
    Ledger,
    Tell,
    Unborrowed,
    Unreferenced,
    Wanted,
)
from lattica.objectstore.spans import SpanAllocator
from lattica.objectstore.suballocator import rounded

if TYPE_CHECKING:
    from lattica.node.server import Node
    from lattica.node.spill_desk import SpillDesk

log = logging.getLogger(__name__)
MIB = 1 << 20
INLINE_BACKING_BYTES = 64 * MIB
"""So much memory is asked of the kernel on the loop itself (7 ms at 9 GB/s); more in a thread, or others would wait."""
PATIENCE_S = 4.0
"""How long a full store is waited for before the request is denied; the promise to users is five seconds."""
PATIENCE_MAX_S = 60.0
"""The same while objects go to disk: a disk that writes 50 MB/s takes 20 s for what needs a GiB."""
ASK_PAUSE_S = 0.1
"""Between two calls for unused spans, which go on while requests wait: a span may become empty at any time."""
AGAIN_S = 0.5  # before it is looked again whether whoever waits for the disk can be helped
LOW_WATER_BYTES = 256 * MIB
"""Free memory that stays backed: what a program puts and drops in turn need not be faulted in again (1 GB/s)."""
IDLE_S = 30.0
"""Backed memory beyond the low water goes back to the machine when nobody has wanted it for so long."""
WAITING_MAX = 10_000  # span requests of all clients; each waits at most PATIENCE_MAX_S


class Waiting(msgspec.Struct, eq=False):
    """A span request that does not fit now."""

    client: Client
    request: int
    size: int
    since: float = 0.0
    denial: Timer | None = None

    def settle(self) -> None:
        """It is answered."""
        if self.denial is not None:
            self.denial.cancel()


class StoreDesk:
    """The machine's object store, as its clients meet it."""

    def __init__(self, node: Node, arena: Arena, headroom: Callable[[], int]) -> None:
        self._node, self.headroom = node, headroom
        self.arena = arena
        self.ledger = Ledger()
        self.spans = SpanAllocator(arena.size_bytes)
        self.waiting: list[Waiting] = []
        self.reserved: tuple[Waiting, tuple[int, int]] | None = None  # where room is made for a request
        self.pins: dict[bytes, int] = {}  # what the node itself reads, and how often
        self.spill: SpillDesk | None = None  # once the store was full
        self.spill_to, self.spill_limit = "", 0  # as of `Settings`
        self._asking: Timer | None = None
        self._backing = 0  # threads that ask the kernel for memory now
        self._punching: Timer | None = None

    # -- clients

    def joined(self, client: int, token: bytes) -> None:
        """A client that makes ids beginning with `token` may speak from now on."""
        self.ledger.client_joined(client, token)

    def gone(self, client: Client, how: str) -> None:
        """All that it wrote has been read, and it has ended. how: words for what it was and how it ended."""
        for waiting in [waiting for waiting in self.waiting if waiting.client is client]:
            waiting.settle()
            self.waiting.remove(waiting)
        self.perform(self.ledger.client_gone(client.number, how))
        if self.spill is not None:
            self.spill.client_gone(client.number)

    # -- counts

    def seal(self, client: Client, message: m.Seal) -> None:
        if not self.spans.owns(client.number, message.offset, message.size):
            raise RemoteProtocolError(
                f"it sealed {message.size} bytes at {message.offset}, which lie in no span of its own"
            )
        self.perform(
            self.ledger.seal(
                client.number,
                message.object,
                message.offset,
                message.size,
                message.to,
                message.failed,
                message.contains,
                message.attempt,
            )
        )
        self.perform(self.ledger.made_here(message.object))
        if self.spill is not None:
            self.spill.sealed(message.object)
            self.spill.touched(message.object, message.to or client.number)

    def gave(self, client: Client, message: m.Give) -> None:
        if self.spill is not None:
            self.spill.touched(message.object, message.to)
        self.perform(self.ledger.give(client.number, message.object, message.to, message.count))

    def hold(self, client: Client, message: m.Hold) -> None:
        if self.spill is not None:
            self.spill.touched(message.object, client.number)
        self.perform(self.ledger.hold(client.number, message.object))

    def drop(self, client: Client, message: m.Drop) -> None:
        if self.spill is not None:
            self.spill.touched(message.object, client.number)
        self.perform(self.ledger.drop(client.number, message.object, message.count))

    def promise(self, client: Client, message: m.Promise) -> None:
        self.perform(self.ledger.promise(client.number, message.object, message.made_at))

    def resolve(self, client: Client, message: m.Resolve) -> None:
        self.perform(self.ledger.resolve(client.number, message.objects, bytes_too=message.here))
        if self._node.far is not None:
            self._node.far.objects.fetching.resolve(message.objects)

    def imported(self, client: Client, message: m.FromAfar) -> None:
        """A process elsewhere gave it something."""
        if self._node.far is None:
            raise RemoteProtocolError("it was given something from another machine, and there is none")
        self._node.far.objects.lending.imported(client, message)

    def unheard(self, client: Client, message: m.Unheard) -> None:
        self.perform(self.ledger.unheard(client.number, message.objects, message.maker, message.attempt))

    def cancel(self, _: Client, message: m.CancelObject) -> None:
        """Only the owner of an object knows what makes it."""
        if self._node.far is not None:
            self._node.far.objects.lending.cancel(message)
            return
        owner = self.ledger.owner(message.object)
        if owner is not None:
            self._node.tell(owner, m.CancelWanted(message.object, message.force, message.recursive))

    # -- for the actor desk

    def track(self, client: int, actor: bytes) -> None:
        """`client` has created this actor and holds it."""
        self.perform(self.ledger.track(client, actor))

    def give(self, object_: bytes, to: int) -> None:
        """The node gives one hold to a client, or to itself."""
        if self.spill is not None:
            self.spill.given(object_, to)
        self.perform(self.ledger.give(m.NODE, object_, to))

    def let_go(self, objects: Iterable[bytes]) -> None:
        """The node lets one hold on each go."""
        for object_ in objects:
            self.perform(self.ledger.drop(m.NODE, object_))

    # -- for those who read in the arena

    def pin(self, object_: bytes) -> None:
        """The node reads it: it stays where it is, until `unpin`."""
        self.pins[object_] = self.pins.get(object_, 0) + 1
        if self.spill is not None:
            self.spill.used(object_)

    def unpin(self, object_: bytes) -> None:
        """The node has read it."""
        self.pins[object_] -= 1
        if not self.pins[object_]:
            del self.pins[object_]

    def bring_back(self, object_: bytes, then: Callable[[bool], object]) -> None:
        """Have `then` told, now or later, whether it lies in memory."""
        if self.spill is not None and self.ledger.is_spilled(object_):
            self.spill.wanted(object_, then)
        else:
            then(self.ledger.place(object_) is not None)

    def perform(self, effects: Sequence[Effect]) -> None:
        """Carry out what the ledger decided."""
        freed, spill = False, self.spill
        for effect in effects:
            match effect:
                case Tell(client, message):
                    if spill is not None:
                        if type(message) is m.Located:
                            spill.told(client, message)
                        elif type(message) is m.Freed:
                            spill.freed(message.object)
                    self._node.tell(client, message)
                case FreeRegion(offset, size, object_):
                    self.spans.free_region(offset, size, self._node.now())
                    freed = True
                    if spill is not None:
                        spill.freed(object_)
                case Forgotten(object_):
                    if spill is not None:
                        spill.freed(object_)
                case Wanted(object_):
                    assert spill is not None, "only a spill desk evicts"
                    spill.wanted(object_)
                case Adopt(client, live):
                    self.spans.adopt(client, live, self._node.now())
                    freed = True
                case Unreferenced(actor):
                    self._node.actor_desk.unreferenced(actor)
                case Unborrowed(lender, object_) if self._node.far is not None:
                    self._node.far.objects.unborrowed(lender, object_)
                    self._node.far.actors.unborrowed(object_)
        if freed:
            self.memory_came_free()

    # -- spans

    def span(self, client: Client, message: m.SpanRequest) -> None:
        """Grant a span, at once or when there is room, for which objects go to disk; deny it after PATIENCE_S,
        while they are being written after PATIENCE_MAX_S."""
        if message.size <= 0 or len(self.waiting) >= WAITING_MAX:
            raise RemoteProtocolError(f"it asked for {message.size} bytes while {len(self.waiting)} requests wait")
        if message.size > self.spans.capacity_bytes:
            client.send(m.SpanDenied(message.request, fullness.never(message.size, self.spans.capacity_bytes)))
        elif message.size < message.wish <= self.spans.free_bytes and self._grant(
            client, message.request, message.wish
        ):
            return
        elif not self._grant(client, message.request, message.size):
            waiting = Waiting(client, message.request, message.size, self._node.now())
            waiting.denial = self._node.loop.call_later(PATIENCE_S, self._deny, waiting)
            self.waiting.append(waiting)
            self._ask_for_spans()
            self.press()

    def cancel_span(self, client: Client, message: m.SpanCancel) -> None:
        """It has found room in a span that it has."""
        for waiting in self.waiting:
            if waiting.client is client and waiting.request == message.request:
                waiting.settle()
                self.waiting.remove(waiting)
                client.send(m.SpanDenied(message.request, "it is not wanted any more"))
                return

    def press(self) -> None:
        """Requests wait: have objects go to disk."""
        if self.waiting and self.spill is None and self.spill_to and not self._node.closing:
            from lattica.node.spill_desk import SpillDesk

            self.spill = SpillDesk(self._node, self.spill_to, self.spill_limit)
        if self.waiting and self.spill is not None:
            self.spill.press()

    def evicted(self, client: Client, message: m.Evicted) -> None:
        if self.spill is not None:
            self.spill.evicted(client, message)

    def span_back(self, client: Client, message: m.SpanReturn) -> None:
        self.spans.release(message.offset, message.size, client.number, self._node.now())
        self.memory_came_free()

    def _grant(self, client: Client, request: int, size: int) -> bool:
        """Whether the span was found; its grant is sent once it is backed."""
        offset = self.spans.allocate(size, client.number, self._kept_for_another(client, request))
        if offset is None:
            return False
        size = rounded(size, self.spans.granularity)
        cold = self.spans.unbacked(offset, size)
        cold_bytes = sum(length for _, length in cold)
        if cold_bytes > self.headroom():
            self.spans.release(offset, size, client.number, self._node.now())
            return False
        grant = m.SpanGrant(request, offset, size)
        if cold_bytes <= INLINE_BACKING_BYTES:
            try:
                self._back(cold)
            except OSError as error:
                return self._not_backed(client, offset, size, error)
            self._backed(cold)
            client.send(grant)
            return True
        self._backing += 1
        future = self._node.loop.run_in_executor(None, self._back, cold)
        future.add_done_callback(lambda done: self._backed_aside(client, grant, cold, done))
        return True

    def _kept_for_another(self, client: Client, request: int) -> tuple[int, int]:
        """(start, stop) of where room is being made: requests that are small, or come later, would take it piece by
        piece."""
        if self.reserved is None:
            return (0, 0)
        waiting, window = self.reserved
        if waiting not in self.waiting:
            self.reserved = None
            return (0, 0)
        return (0, 0) if waiting.client is client and waiting.request == request else window

    def _back(self, parts: Sequence[tuple[int, int]]) -> None:
        for offset, size in parts:
            self.arena.back(offset, size)

    def _backed(self, parts: Sequence[tuple[int, int]]) -> None:
        for offset, size in parts:
            self.spans.mark_backed(offset, size)

    def _backed_aside(self, client: Client, grant: m.SpanGrant, cold: Sequence[tuple[int, int]], done: Work) -> None:
        """The thread is done. The client may have died meanwhile: its span is free again, and backed all the same."""
        self._backing -= 1
        error = done.exception()
        if error is None:
            self._backed(cold)
            client.send(grant)
        elif client.number in self._node.clients:
            self._not_backed(client, grant.offset, grant.size, error)
            client.send(m.SpanDenied(grant.request, self._why_denied(grant.size)))

    def _not_backed(self, client: Client, offset: int, size: int, error: BaseException) -> bool:
        log.warning("%d bytes of shared memory could not be had: %s", size, error)
        self.spans.release(offset, size, client.number, self._node.now())
        return False

    def memory_came_free(self) -> None:
        """Whoever waits may find room now."""
        for waiting in list(self.waiting):
            if self._grant(waiting.client, waiting.request, waiting.size):
                waiting.settle()
                self.waiting.remove(waiting)
        self._ask_for_spans()
        if self._punching is None and self.spans.punchable(float("inf"), LOW_WATER_BYTES, 0.0):
            self._punching = self._node.loop.call_later(IDLE_S, self._punch)

    def _ask_for_spans(self) -> None:
        if self.waiting and self._asking is None and not self._node.closing:
            for client in self._node.clients.values():
                client.send(m.SpanWanted())
            self._asking = self._node.loop.call_later(ASK_PAUSE_S, self._ask_again)

    def _ask_again(self) -> None:
        self._asking = None
        self._ask_for_spans()
        self.press()

    def _deny(self, waiting: Waiting) -> None:
        waited_s, spill = self._node.now() - waiting.since, self.spill
        if spill is not None and waited_s < PATIENCE_MAX_S and spill.may_yet_fit(waiting.client.number, waiting.size):
            waiting.denial = self._node.loop.call_later(AGAIN_S, self._deny, waiting)
            return
        self.waiting.remove(waiting)
        trouble = spill.trouble if spill is not None else ""
        waiting.client.send(m.SpanDenied(waiting.request, self._why_denied(waiting.size, waited_s), bool(trouble)))

    def _why_denied(self, size: int, waited_s: float = 0.0) -> str:
        node, spans, spill = self._node, self.spans, self.spill
        words = [
            fullness.full(
                size,
                spans.used_bytes,
                spans.capacity_bytes,
                node.mesh.peer.name if node.mesh is not None else "",
                waited_s=waited_s,
                machine_left=self.headroom() if spans.largest_free_bytes >= size else None,
                writing=spill.writing_bytes if spill is not None else 0,
                trouble=spill.trouble if spill is not None else "",
            )
        ]
        if spill is not None and not spill.trouble:
            words.append(fullness.kept(*spill.kept(), node.clients))
        words.append(fullness.taken(spans.owners(), node.clients))
        return "; ".join(filter(None, words))

    # -- giving memory back to the machine

    def _punch(self) -> None:
        self._punching = None
        if not self._backing:  # a thread may be backing what came free in the meantime
            for offset, size in self.spans.punchable(self._node.now(), LOW_WATER_BYTES, IDLE_S):
                self.arena.punch(offset, size)
                self.spans.mark_punched(offset, size)
        if self.spans.punchable(float("inf"), LOW_WATER_BYTES, 0.0) and not self._node.closing:
            self._punching = self._node.loop.call_later(IDLE_S, self._punch)
