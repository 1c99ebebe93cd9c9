"""Objects, carried out: the ledger knows who holds what, the allocator who may write where; this desk tells."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from lattica.codec import messages as m
from lattica.errors import RemoteProtocolError
from lattica.node.clients import Client
from lattica.node.loop import Timer, Work
from lattica.objectstore.arena import Arena
from lattica.objectstore.ledger import Adopt, Effect, FreeRegion, Ledger, Tell, Unborrowed, Unreferenced
from lattica.objectstore.spans import SpanAllocator
from lattica.objectstore.suballocator import rounded

if TYPE_CHECKING:
    from lattica.node.server import Node

log = logging.getLogger(__name__)
MIB = 1 << 20
INLINE_BACKING_BYTES = 64 * MIB
"""So much memory is asked of the kernel on the loop itself (7 ms at 9 GB/s); more in a thread, or others would wait."""
PATIENCE_S = 4.0
"""How long a full store is waited for before the request is denied; the promise to users is five seconds."""
ASK_PAUSE_S = 0.1
"""Between two calls for unused spans, which go on while requests wait: a span may become empty at any time."""
LOW_WATER_BYTES = 256 * MIB
"""Free memory that stays backed: what a program puts and drops in turn need not be faulted in again (1 GB/s)."""
IDLE_S = 30.0
"""Backed memory beyond the low water goes back to the machine when nobody has wanted it for so long."""
WAITING_MAX = 10_000  # span requests of all clients; each waits at most PATIENCE_S


class Waiting(msgspec.Struct, eq=False):
    """A span request that does not fit now."""

    client: Client
    request: int
    size: int
    denial: Timer | None = None

    def settle(self) -> None:
        """It is answered."""
        if self.denial is not None:
            self.denial.cancel()


class StoreDesk:
    """The machine's object store, as its clients meet it."""

    def __init__(self, node: Node, arena: Arena, headroom: Callable[[], int]) -> None:
        self._node, self._headroom = node, headroom
        self.arena = arena
        self.ledger = Ledger()
        self.spans = SpanAllocator(arena.size_bytes)
        self._waiting: list[Waiting] = []
        self._asking: Timer | None = None
        self._backing = 0  # threads that ask the kernel for memory now
        self._punching: Timer | None = None

    # -- clients

    def joined(self, client: int, token: bytes) -> None:
        """A client that makes ids beginning with `token` may speak from now on."""
        self.ledger.client_joined(client, token)

    def gone(self, client: Client, how: str) -> None:
        """All that it wrote has been read, and it has ended. how: words for what it was and how it ended."""
        for waiting in [waiting for waiting in self._waiting if waiting.client is client]:
            waiting.settle()
            self._waiting.remove(waiting)
        self.perform(self.ledger.client_gone(client.number, how))

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

    def gave(self, client: Client, message: m.Give) -> None:
        self.perform(self.ledger.give(client.number, message.object, message.to, message.count))

    def hold(self, client: Client, message: m.Hold) -> None:
        self.perform(self.ledger.hold(client.number, message.object))

    def drop(self, client: Client, message: m.Drop) -> None:
        self.perform(self.ledger.drop(client.number, message.object, message.count))

    def promise(self, client: Client, message: m.Promise) -> None:
        self.perform(self.ledger.promise(client.number, message.object, message.made_at))

    def resolve(self, client: Client, message: m.Resolve) -> None:
        self.perform(self.ledger.resolve(client.number, message.objects))
        if self._node.far is not None:
            self._node.far.objects.resolve(message.objects)

    def imported(self, client: Client, message: m.FromAfar) -> None:
        """A process elsewhere gave it something."""
        if self._node.far is None:
            raise RemoteProtocolError("it was given something from another machine, and there is none")
        self._node.far.objects.imported(client, message)

    def unheard(self, client: Client, message: m.Unheard) -> None:
        self.perform(self.ledger.unheard(client.number, message.objects, message.maker))

    def cancel(self, _: Client, message: m.CancelObject) -> None:
        """Only the owner of an object knows what makes it."""
        if self._node.far is not None:
            self._node.far.objects.cancel(message)
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
        self.perform(self.ledger.give(m.NODE, object_, to))

    def let_go(self, objects: Iterable[bytes]) -> None:
        """The node lets one hold on each go."""
        for object_ in objects:
            self.perform(self.ledger.drop(m.NODE, object_))

    def perform(self, effects: Sequence[Effect]) -> None:
        """Carry out what the ledger decided."""
        freed = False
        for effect in effects:
            match effect:
                case Tell(client, message):
                    self._node.tell(client, message)
                case FreeRegion(offset, size):
                    self.spans.free_region(offset, size, self._node.now())
                    freed = True
                case Adopt(client, live):
                    self.spans.adopt(client, live, self._node.now())
                    freed = True
                case Unreferenced(actor):
                    self._node.actor_desk.unreferenced(actor)
                case Unborrowed(lender, object_) if self._node.far is not None:
                    self._node.far.objects.unborrowed(lender, object_)
                    self._node.far.actors.unborrowed(object_)
        if freed:
            self._memory_came_free()

    # -- spans

    def span(self, client: Client, message: m.SpanRequest) -> None:
        """Grant a span, at once or when there is room; deny it after PATIENCE_S."""
        if message.size <= 0 or len(self._waiting) >= WAITING_MAX:
            raise RemoteProtocolError(f"it asked for {message.size} bytes while {len(self._waiting)} requests wait")
        if message.size > self.spans.capacity_bytes:
            client.send(m.SpanDenied(message.request, self._why_never(message.size)))
        elif message.size < message.wish <= self.spans.free_bytes and self._grant(
            client, message.request, message.wish
        ):
            return
        elif not self._grant(client, message.request, message.size):
            waiting = Waiting(client, message.request, message.size)
            waiting.denial = self._node.loop.call_later(PATIENCE_S, self._deny, waiting)
            self._waiting.append(waiting)
            self._ask_for_spans()

    def span_back(self, client: Client, message: m.SpanReturn) -> None:
        self.spans.release(message.offset, message.size, client.number, self._node.now())
        self._memory_came_free()

    def _grant(self, client: Client, request: int, size: int) -> bool:
        """Whether the span was found; its grant is sent once it is backed."""
        offset = self.spans.allocate(size, client.number)
        if offset is None:
            return False
        size = rounded(size, self.spans.granularity)
        cold = self.spans.unbacked(offset, size)
        cold_bytes = sum(length for _, length in cold)
        if cold_bytes > self._headroom():
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

    def _memory_came_free(self) -> None:
        for waiting in list(self._waiting):
            if self._grant(waiting.client, waiting.request, waiting.size):
                waiting.settle()
                self._waiting.remove(waiting)
        self._ask_for_spans()
        if self._punching is None and self.spans.punchable(float("inf"), LOW_WATER_BYTES, 0.0):
            self._punching = self._node.loop.call_later(IDLE_S, self._punch)

    def _ask_for_spans(self) -> None:
        if self._waiting and self._asking is None and not self._node.closing:
            for client in self._node.clients.values():
                client.send(m.SpanWanted())
            self._asking = self._node.loop.call_later(ASK_PAUSE_S, self._ask_again)

    def _ask_again(self) -> None:
        self._asking = None
        self._ask_for_spans()

    def _deny(self, waiting: Waiting) -> None:
        self._waiting.remove(waiting)
        waiting.client.send(m.SpanDenied(waiting.request, self._why_denied(waiting.size)))

    def _why_never(self, size: int) -> str:
        quota = self.spans.capacity_bytes // MIB
        return (
            f"an object of {-(-size // MIB)} MiB is larger than the whole object store ({quota} MiB); "
            "start with a larger object_store_memory, or put smaller parts"
        )

    def _why_denied(self, size: int) -> str:
        spans = self.spans
        quota, used, backed = spans.capacity_bytes // MIB, spans.used_bytes // MIB, spans.backed_bytes // MIB
        full = f"{-(-size // MIB)} MiB do not fit: the object store holds {used} of {quota} MiB ({backed} MiB backed)"
        room = self._headroom() // MIB
        if spans.largest_free_bytes >= size:
            full += f", and the machine has only {room} MiB of memory left for it"
        held = sorted(spans.owners().items(), key=lambda owner: -owner[1])[:3]
        most = ", ".join(f"{self._who(client)} {size // MIB} MiB" for client, size in held)
        return f"{full}; most is held by: {most}. Drop refs, or start with a larger object_store_memory"

    def _who(self, number: int) -> str:
        client = self._node.clients.get(number)
        if client is None:
            return "values of ended processes"
        return f"{client.kind} {number}{f' ({client.name})' if client.name else ''}, pid {client.pid}:"

    # -- giving memory back to the machine

    def _punch(self) -> None:
        self._punching = None
        if not self._backing:  # a thread may be backing what came free in the meantime
            for offset, size in self.spans.punchable(self._node.now(), LOW_WATER_BYTES, IDLE_S):
                self.arena.punch(offset, size)
                self.spans.mark_punched(offset, size)
        if self.spans.punchable(float("inf"), LOW_WATER_BYTES, 0.0) and not self._node.closing:
            self._punching = self._node.loop.call_later(IDLE_S, self._punch)
