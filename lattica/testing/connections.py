"""Connections that participants dial and lose: TCP with TLS as a protocol core sees it.

    core -> world   Dial · Transmit · Hangup                                    (effects, from lattica.mesh.effects)
    world -> core   dialed · dial_failed · accepted · received · closed         (verbs; each returns effects)
    world -> core   credential()     whom the other end will see; its name if the core has no such method
    world -> core   broken(...)      instead of `closed`, if the core has it, for a frame that cannot be decoded

    world.listen("10.0.0.1:4242", "ann")
    world.connections.decode = mesh_frames()          # what `received` gets for what was transmitted
    for number in world.connections.between("ann", "bob"):
        world.connections.sever(number)

Frames arrive in order, those that arrive together in one `received`. Each end has a number of its own. What a closing
or crashed process had written still arrives. How it differs from a textbook's connection is how TCP does:

- a dial to a dead process fails fast; one to a host out of reach fails after CONNECT_S, unless that heals meanwhile
- a frame that meets a cut waits for it to heal; its writer hears `closed` after `patience_s` without acknowledgement,
  the other end hears nothing until it writes
- what is sent to an end that is no more is answered by a reset, unless the network swallows that too
- the dialer has its connection before the other side has looked at its certificate
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any

from lattica.errors import RemoteProtocolError
from lattica.mesh.effects import Hangup, Transmit
from lattica.mesh.wire import Decoder
from lattica.testing.dialing import Dialing

if TYPE_CHECKING:
    from lattica.testing.world import World

PATIENCE_S = 20.0  # TCP_USER_TIMEOUT: unacknowledged for so long, and the connection is over
RETRANSMIT_S = (0.2, 0.5)  # what a lost segment adds, and how long after healing a stalled frame goes on
NOTICE_S = (0.0, 0.5)  # until an end hears that its connection was severed


class _Fin:
    """Last in a pipe: the end hears that its connection is closed."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


class _Welcome:
    """First in the acceptor's pipe: the dialer's certificate."""

    __slots__ = ("credential",)

    def __init__(self, credential: object) -> None:
        self.credential = credential


class _End:
    """One end of a connection, and the pipe that leads to it."""

    __slots__ = (
        "boot", "broken", "clogged_until", "deaf", "doubted", "flowing", "last_due", "number", "open", "other", "owner",
        "pipe", "stalled_since", "unheard_since", "waits_until",
    )  # fmt: skip

    def __init__(self, number: int, owner: str, boot: int) -> None:
        self.number, self.owner, self.boot = number, owner, boot
        self.other = self
        self.open = False  # the owner believes in it
        self.broken = False  # what the owner transmits is lost
        self.deaf = False  # what is on its way here is swallowed, and so is the answer
        self.pipe: deque[tuple[float, Any]] = deque()  # (due, frame)
        self.last_due = 0.0
        self.flowing = False  # a `_flow` is on the heap
        self.clogged_until = 0.0
        self.waits_until = 0.0  # a `_flow` at the end of a clog is on the heap
        self.stalled_since: float | None = None  # the first frame of the pipe meets an obstacle
        self.unheard_since: float | None = None  # its frames arrive, but acknowledgements do not come back
        self.doubted = False  # a `_give_up` of its owner is on the heap


def mesh_frames() -> Callable[[Any], Any]:
    """A `decode` for cores that transmit what `lattica.mesh.wire` encodes, a frame at a time."""
    decoder: Decoder | None = None

    def decode(frame: Any) -> Any:
        nonlocal decoder
        if decoder is None:  # the last one is in the middle of what it refused
            decoder = Decoder()
            decoder.trust()
        fresh, decoder = decoder, None
        decoded = fresh.feed(b"".join(frame))
        if len(decoded) != 1:
            raise RemoteProtocolError(f"it sent {len(decoded)} frames as one")
        decoder = fresh
        return decoded[0]

    return decode


class Connections:
    """All dialed connections of a world; `world.connections`. Attributes without underscore may be set at any time.

    patience_s: how long a writer waits for acknowledgements. decode: from what was transmitted to what is received.
    verify: (the other side's credential, this host's unix time) -> "" or why its handshake fails.
    """

    def __init__(self, world: World) -> None:
        self.patience_s = PATIENCE_S
        self.decode: Callable[[Any], Any] | None = None
        self.verify: Callable[[Any, float], str] | None = None
        self._world = world
        self._random = world.rng.random
        self._ends: dict[int, _End] = {}  # those whose owner believes in them
        self._stalled: dict[int, _End] = {}
        self._numbers = count(1)
        self._free_at: dict[tuple[str, str], float] = {}  # when a direction with limited width has carried what it has
        self._dialing = Dialing(world, self)
        world.perform_by(Transmit, self._transmit)
        world.perform_by(Hangup, self._hang_up)

    def __repr__(self) -> str:
        return f"<Connections: {len(self._ends)} ends open, {len(self._stalled)} stalled>"

    # ---- what is known ------------------------------------------------------------------------------------------

    def listen(self, address: str, name: str) -> None:
        """From now on this address leads to this participant, and to no other."""
        self._dialing.listen(address, name)

    def unlisten(self, address: str) -> None:
        """Nobody is at this address any more; connections stay."""
        self._dialing.unlisten(address)

    def of(self, name: str) -> list[int]:
        """The numbers of this participant's ends, oldest first."""
        return [end.number for end in self._ends.values() if end.open and end.owner == name]

    def between(self, one: str, other: str) -> list[int]:
        """The numbers of one's ends of connections to the other."""
        return [number for number in self.of(one) if self._ends[number].other.owner == other]

    def peer_of(self, number: int) -> int | None:
        """The number of the other end, if its owner believes in it too."""
        end = self._ends.get(number)
        return end.other.number if end and end.other.open else None

    # ---- faults -------------------------------------------------------------------------------------------------

    def sever(self, number: int) -> None:
        """Break it in the middle: what is in flight is lost from some frame on, and both ends hear so, each in time."""
        end = self._ends.get(number)
        if end is None or end.broken:
            return
        self._tell(end, "severed")
        for half in (end, end.other):
            self._break(half, self._uniform(*NOTICE_S))

    def half_open(self, number: int, *, silent: bool = False) -> None:
        """The other end is told that it is closed, this one is not: it hears so when it writes; silent: never, but for
        `patience_s` of writing in vain."""
        end = self._ends.get(number)
        if end is None or not end.other.open:
            return
        self._tell(end, "half-open, silently" if silent else "half-open")
        other = end.other
        self._lose_tail(end)
        end.deaf = other.deaf = silent
        self._close(other, "connection timed out")

    def swallow(self, number: int) -> None:
        """A box in the middle has forgotten this connection: from now on nothing arrives, either way, and nobody is
        told, but for `patience_s` of writing in vain."""
        end = self._ends.get(number)
        if end is None or not end.other.open:
            return
        self._tell(end, "swallowed")
        for half in (end, end.other):
            half.deaf = True
            half.pipe.clear()

    def clog(self, number: int, for_s: float) -> None:
        """Frames to the owner of this number wait so long, and then arrive together."""
        end = self._ends.get(number)
        if end is not None:
            self._tell(end, f"clogged for {for_s:g} s")
            end.clogged_until = max(end.clogged_until, self._world.now + for_s)

    def _tell(self, end: _End, what: str) -> None:
        self._world.count("connection faults")
        self._world.note(end.owner, f"has its connection {end.number} to {end.other.owner} {what}")

    # ---- told by the world --------------------------------------------------------------------------------------

    def crashed(self, name: str, *, dark: bool) -> None:
        """Its process is no more. dark: neither is its kernel, which would have closed its connections."""
        for end in [end for end in self._ends.values() if end.owner == name]:
            self._forget(end)
            if dark:
                self._lose_tail(end.other)
            elif not end.broken:
                self._put(end.other, _Fin("the other side closed it"))

    def healed(self) -> None:
        """No connection is clogged any more; those that are broken stay so."""
        for end in [*self._ends.values(), *self._stalled.values()]:
            end.clogged_until = 0.0
        self.resume()

    def resume(self) -> None:
        """An obstacle may be gone: stalled frames go on, each a retransmission later."""
        for end in self._stalled.values():
            if not end.flowing:
                end.flowing = True
                self._world.at(self._world.now + self._uniform(0, RETRANSMIT_S[1]), self._flow, end)

    # ---- told by the dialing -------------------------------------------------------------------------------------

    def credential(self, name: str) -> object:
        """What the others see of it."""
        show = getattr(self._world.core(name), "credential", None)
        return show() if show is not None else name

    def join(self, dialer: str, acceptor: str) -> int:
        """They are connected, and the acceptor will learn so. Returns the number of the dialer's end."""
        world = self._world
        mine, its = (_End(next(self._numbers), name, world.boot_of(name)) for name in (dialer, acceptor))
        mine.other, its.other = its, mine
        mine.open = True
        self._ends[mine.number] = mine
        self._ends[its.number] = its  # a crash of its owner must find it
        world.count("connections")
        self._put(its, _Welcome(self.credential(dialer)))
        return mine.number

    # ---- frames -------------------------------------------------------------------------------------------------

    def _welcome(self, end: _End, credential: object) -> None:
        """The acceptor's end of the handshake."""
        clock = self._world.host(end.owner).clock
        if self.verify is not None and (why := self.verify(credential, clock.unix_s())):
            self._forget(end)
            self._put(end.other, _Fin(why))
            return
        end.open = True
        self._world.deliver(end.owner, end.boot, "accepted", (end.number, credential))

    def _transmit(self, name: str, effect: Transmit) -> None:
        end = self._ends.get(effect.connection)
        if end is None or not end.open or end.broken:
            self._world.count("frames lost")  # it will hear so
            return
        assert end.owner == name, f"{name} transmits over connection {end.number} of {end.owner}"
        self._world.tally["sent"] += 1
        self._put(end.other, effect.frame)

    def _hang_up(self, name: str, effect: Hangup) -> None:
        end = self._ends.get(effect.connection)
        if end is None or not end.open:
            return
        assert end.owner == name, f"{name} hangs up connection {end.number} of {end.owner}"
        self._forget(end)
        if not end.broken:
            self._put(end.other, _Fin("the other side closed it"))

    def _put(self, end: _End, item: object, more_s: float = 0.0) -> None:
        """On its way to this end, behind what is already."""
        world = self._world
        due = world.now + self.one_way_s(end.other.owner, end.owner, item) + more_s
        if due < end.last_due:
            due = end.last_due
        end.last_due = due
        if end.deaf:
            self._stall(end)
            return
        end.pipe.append((due, item))
        if not end.flowing and end.stalled_since is None and end.waits_until <= world.now:
            end.flowing = True
            world.at(due, self._flow, end)

    def _flow(self, end: _End) -> None:
        """What is due at this end comes out, unless something is in the way."""
        end.flowing = False
        world, pipe, writer = self._world, end.pipe, end.other
        now = world.now
        if not end.broken:
            if world.obstacles.clogged_until or end.clogged_until > now:
                free_at = max(end.clogged_until, world.obstacles.clogged_until.get((writer.owner, end.owner), 0.0))
                if free_at > now:
                    self._wait(end, free_at)
                    return
            if self.apart(writer.owner, end.owner):
                self._stall(end)
                return
        end.waits_until = 0.0
        if not pipe:
            return
        end.stalled_since = None
        self._stalled.pop(end.number, None)
        frames = []
        last: _Fin | None = None
        while pipe and pipe[0][0] <= now:
            item = pipe.popleft()[1]
            if type(item) is _Fin:
                last = item
                break
            if type(item) is _Welcome:
                self._welcome(end, item.credential)
            else:
                frames.append(item)
        if frames:
            self._arrive(end, frames)
        if last is not None:
            self._close(end, last.reason)
        elif pipe and not end.flowing:
            end.flowing = True
            world.at(max(pipe[0][0], now), self._flow, end)

    def _arrive(self, end: _End, frames: list[Any]) -> None:
        world, writer = self._world, end.other
        if not end.open:
            self._reset(writer)
            return
        if world.obstacles.cut_since and (end.owner, writer.owner) in world.obstacles.cut_since:
            if writer.unheard_since is None:
                writer.unheard_since = world.now
            self._doubt(writer)
        else:
            writer.unheard_since = None
        if self.decode is None:
            world.deliver(end.owner, end.boot, "received", (end.number, frames))
            return
        decoded: list[Any] = []
        broken = ""
        try:
            for frame in frames:
                decoded.append(self.decode(frame))
        except RemoteProtocolError as error:
            broken = str(error)
        if decoded:
            world.deliver(end.owner, end.boot, "received", (end.number, decoded))
        if broken and end.open:
            self._broke_a_rule(end, broken)

    def _broke_a_rule(self, end: _End, why: str) -> None:
        if hasattr(self._world.core(end.owner), "broken"):
            self._world.deliver(end.owner, end.boot, "broken", (end.number, why))
        else:
            self._put(end.other, _Fin("the other side closed it"))
            self._close(end, why)

    # ---- ends ---------------------------------------------------------------------------------------------------

    def _forget(self, end: _End) -> None:
        """Its owner does not believe in it any more. What is still on its way here will be answered by a reset."""
        end.open = False
        self._ends.pop(end.number, None)
        if end.other.number not in self._ends:
            for half in (end, end.other):
                half.pipe.clear()
                self._stalled.pop(half.number, None)

    def _close(self, end: _End, reason: str) -> None:
        known = end.open
        self._forget(end)
        if known:
            self._world.deliver(end.owner, end.boot, "closed", (end.number, reason))

    def _reset(self, end: _End) -> None:
        """The host at the other end knows nothing of this connection, and says so."""
        if not end.open or end.broken:
            return
        if self.apart(end.other.owner, end.owner):
            end.unheard_since = self._world.now if end.unheard_since is None else end.unheard_since
            self._doubt(end)
        else:
            self._break(end, 0.0)

    def _break(self, end: _End, more_s: float) -> None:
        """Its owner will hear that this connection is no more, whatever is in the way."""
        end.broken, end.deaf, end.stalled_since, end.waits_until = True, False, None, 0.0
        self._stalled.pop(end.number, None)
        self._lose_tail(end)
        self._put(end, _Fin("connection reset"), more_s)

    def _lose_tail(self, end: _End) -> None:
        """Of what is on its way here, everything from some frame on is lost."""
        keep = int(self._random() * (len(end.pipe) + 1))
        while len(end.pipe) > keep:
            self._world.count("frames lost")
            end.pipe.pop()

    # ---- waiting ------------------------------------------------------------------------------------------------

    def apart(self, sender: str, receiver: str) -> bool:
        """Nothing gets from one to the other now."""
        world = self._world
        return (sender, receiver) in world.obstacles.cut_since or not world.is_up(receiver)

    def blocked(self, sender: str, receiver: str) -> bool:
        """As `apart`, or it has to wait."""
        obstacles = self._world.obstacles
        return self.apart(sender, receiver) or obstacles.clogged_until.get((sender, receiver), 0.0) > self._world.now

    def _wait(self, end: _End, until: float) -> None:
        self._stalled[end.number] = end
        if end.waits_until < until:
            end.waits_until = until
            if until < math.inf:
                self._world.at(until, self._flow, end)

    def _stall(self, end: _End) -> None:
        """Its first frame meets an obstacle. `resume` tries again; the writer does not wait for ever."""
        if end.stalled_since is None:
            end.stalled_since = self._world.now
        self._stalled[end.number] = end
        self._doubt(end.other)

    def _doubt(self, writer: _End) -> None:
        if writer.open and not writer.doubted and self.patience_s < math.inf:
            writer.doubted = True
            self._world.at(self._world.now + self.patience_s, self._give_up, writer)

    def _give_up(self, writer: _End) -> None:
        """Nothing was acknowledged for `patience_s`, or it has been meanwhile."""
        world = self._world
        writer.doubted = False
        if not writer.open or not world.is_up(writer.owner):
            return
        if writer.unheard_since is not None and not self.apart(writer.other.owner, writer.owner):
            writer.unheard_since = None
            if writer.other.number not in self._ends:
                self._reset(writer)
                return
        since = [s for s in (writer.other.stalled_since, writer.unheard_since) if s is not None]
        if not since:
            return
        if world.now - min(since) < self.patience_s * 0.999:
            self._doubt(writer)
            return
        self._lose_tail(writer.other)
        self._close(writer, "connection timed out")

    # ---- dials --------------------------------------------------------------------------------------------------

    def _uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self._random()

    def one_way_s(self, sender: str, receiver: str, item: object = None) -> float:
        """Seconds for one way. A loss shows as the time of a retransmission."""
        world = self._world
        link = world.links.get((sender, receiver), world.link) if world.links else world.link
        low, high = link.delay_s
        delay_s = low + (high - low) * self._random()
        if link.loss and self._random() < link.loss:
            delay_s += self._uniform(*RETRANSMIT_S)
        if link.bytes_per_s and item is not None:
            ends = sender, receiver
            free_at = max(self._free_at.get(ends, 0.0), world.now) + _size_of(item) / link.bytes_per_s
            self._free_at[ends] = free_at
            delay_s += free_at - world.now
        return delay_s


def _size_of(frame: Any) -> int:
    """Bytes on the wire; a frame that is no bytes weighs nothing."""
    if isinstance(frame, bytes | bytearray | memoryview):
        return len(frame)
    if isinstance(frame, tuple | list) and all(isinstance(part, bytes | bytearray | memoryview) for part in frame):
        return sum(map(len, frame))
    return 0
