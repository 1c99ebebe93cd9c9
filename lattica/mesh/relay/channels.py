"""The channels of a relay: who has one, from where each end uses it, and what waits to be passed on.

    open(caller, called)            two ends, each with a number and a key; the numbers differ in their last bit
    BIND(number, counter, MAC)      the end is where this came from, now      ->  BOUND, as long
    RELAYED(number, payload)        from where that end is: goes on to the other end as it is

A datagram keeps the number of the end that sent it, so nothing in it is rewritten: a forged one costs a look-up, a
forged BIND that and one MAC, and neither is answered. What is sent to an end that has not bound waits, within the
bounds of `fair_queue`.

Where an end is, is anything that can be compared and hashed: the shell's route, or its connection. `now` is monotonic
seconds. Leases end by themselves: a reservation, a channel (`keep` renews both, which takes a session, and with it a
valid certificate), and a binding.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import cast

import msgspec

from lattica.errors import ConfigError, LatticaError, PeerUnreachableError
from lattica.mesh.identity import PeerId, short_peer
from lattica.mesh.nat.datagrams import (
    CHANNEL_MAX,
    ID_BYTES,
    RELAYED_HEAD_BYTES,
    SECRET_BYTES,
    Bound,
    read_bind,
    write_bound,
)
from lattica.mesh.nat.routes import Endpoint
from lattica.mesh.relay.fair_queue import FairQueue, Lane, Pair

LEASE_S = 600.0  # of reservations and channels; holders renew at half of it
BINDING_S = 60.0
"""An end that has not bound for so long, four of its keep-alives, is nowhere."""
UNBOUND_S = 30.0  # after which a channel with an end that is nowhere ends: the time to be told, and to dial
CHANNELS_MAX = 16_384  # of this relay: 1 KiB each without what waits
OPENED_MAX = 512
"""Channels that one member has opened and that are open: it may talk with so many. Those that others opened to it do
not count, or they could use up what it has."""
PAIR_MAX = 4  # channels that one member has opened to one other; the oldest gives way
RESERVATIONS_MAX = 16_384
OPENINGS_BURST, OPENINGS_PER_S = 128.0, 16.0
"""Channels that one member may open at once, and then: each makes us call another."""
DATAGRAM_MAX_BYTES = 2048  # RELAYED as a whole; a packet of QUIC over a relay has 1,200


class Grant(msgspec.Struct, frozen=True):
    """One end of a channel, for its owner. number: what it sends with; what it receives has the last bit inverted."""

    number: int
    secret: bytes
    lease_s: float


class Opened(msgspec.Struct, frozen=True):
    """The two ends of a channel."""

    ours: Grant
    theirs: Grant


class End:
    """One of the two. lane: what waits to be sent to it."""

    __slots__ = (
        "bound_at", "channel", "counter", "former", "key", "lane", "number", "other", "peer", "secret", "where",
    )  # fmt: skip

    def __init__(self, number: int, secret: bytes, peer: PeerId, pair: Pair) -> None:
        self.number, self.secret, self.peer = number, secret, peer
        self.key = number.to_bytes(ID_BYTES, "big")
        self.counter = 0
        self.where: Hashable = None
        self.former: Hashable = None  # where it was before: what it sent from there may still come
        self.bound_at = float("-inf")
        self.lane = Lane(self, pair)
        self.lane.held = True
        self.other: End = self
        self.channel: Channel

    def __repr__(self) -> str:
        where = "nowhere" if self.where is None else f"at {self.where}"
        return f"<End {self.number:x} of {short_peer(self.peer)}, {where}>"


class Channel:
    """What one member opened to another."""

    __slots__ = ("called", "caller", "opened_at", "until")

    def __init__(self, caller: End, called: End, now: float) -> None:
        self.caller, self.called = caller, called
        self.opened_at, self.until = now, now + LEASE_S
        caller.other, called.other = called, caller
        caller.lane.other, called.lane.other = called.lane, caller.lane
        caller.channel = called.channel = self

    def __repr__(self) -> str:
        return f"<Channel {self.caller!r} to {self.called!r}>"

    @property
    def ends(self) -> tuple[End, End]:
        return self.caller, self.called


class Counts(msgspec.Struct):
    """Since the beginning, for metrics."""

    forwarded: int = 0  # datagrams
    forwarded_bytes: int = 0
    unknown: int = 0  # RELAYED or BIND of no channel, or too long
    misplaced: int = 0  # RELAYED from where its end is not
    forged: int = 0  # BIND with a wrong MAC, or an old counter
    opened: int = 0


class Channels:
    """See the module."""

    def __init__(self, random_bytes: Callable[[int], bytes], queue: FairQueue | None = None) -> None:
        """random_bytes(n): secrets and numbers of channels."""
        self.queue = queue or FairQueue()
        self.counts = Counts()
        self._random = random_bytes
        self._ends: dict[bytes, End] = {}  # by the eight bytes of the number
        self._reserved: dict[PeerId, float] = {}  # until when
        self._opened: dict[PeerId, dict[Channel, None]] = {}  # by whom, oldest first
        self._pairs: dict[tuple[PeerId, PeerId], tuple[Pair, set[Channel]]] = {}
        self._at: dict[Hashable, set[End]] = {}
        self._held: set[Hashable] = set()  # where nothing can be sent to now
        self._allowance: dict[PeerId, tuple[float, float]] = {}  # (openings left, as of when)

    def __repr__(self) -> str:
        return f"<Channels: {len(self)}, {len(self._reserved)} reservations, {self.queue!r}>"

    def __len__(self) -> int:
        return len(self._ends) // 2

    @property
    def reservations(self) -> int:
        return len(self._reserved)

    def members(self) -> set[PeerId]:
        """Who has a reservation or an end here."""
        return {*self._reserved, *(end.peer for end in self._ends.values())}

    # -- leases

    def reserve(self, peer: PeerId, now: float) -> float:
        """Tell this peer when another opens a channel to it, for so many seconds. Raises LatticaError if there are too
        many."""
        if peer not in self._reserved and len(self._reserved) >= RESERVATIONS_MAX:
            raise LatticaError(f"this relay has {RESERVATIONS_MAX} reservations", do_next="ask another relay")
        self._reserved[peer] = now + LEASE_S
        return LEASE_S

    def release(self, peer: PeerId) -> None:
        """It does not want to be told any more."""
        self._reserved.pop(peer, None)

    def is_reserved(self, peer: PeerId) -> bool:
        """Whether this peer wants to be told when others open channels to it."""
        return peer in self._reserved

    def open(self, caller: PeerId, called: PeerId, now: float) -> Opened:
        """A channel between the two, asked for by `caller`; that `called` can be told is for the shell to see.

        Raises ConfigError for a call of oneself, PeerUnreachableError beyond what this relay or the caller may have.
        """
        if caller == called:
            raise ConfigError("a peer does not call itself by way of a relay", do_next="call the method directly")
        opened = self._opened.get(caller, {})
        to_it = [channel for channel in opened if channel.called.peer == called]
        if len(to_it) >= PAIR_MAX:
            self._close(to_it[0])
        if len(self) >= CHANNELS_MAX:
            raise PeerUnreachableError(f"this relay has {CHANNELS_MAX} channels", do_next="ask another relay")
        if len(opened) >= OPENED_MAX:
            raise PeerUnreachableError(
                f"peer {short_peer(caller)} has {OPENED_MAX} channels here", do_next="close some, or use another relay"
            )
        self._spend_opening(caller, now)
        return self._make(caller, called, now)

    def keep(self, peer: PeerId, numbers: Sequence[int], now: float) -> list[int]:
        """Renew the leases of this peer's channels; those that are there."""
        kept = [end for number in numbers if (end := self._owned(peer, number)) is not None]
        for end in kept:
            end.channel.until = now + LEASE_S
        return [end.number for end in kept]

    def close(self, peer: PeerId, number: int) -> None:
        """An end is not needed any more."""
        end = self._owned(peer, number)
        if end is not None:
            self._close(end.channel)

    def expel(self, peer: PeerId) -> None:
        """This peer is no member any more."""
        self.release(peer)
        for end in [end for end in self._ends.values() if end.peer == peer]:
            if end.key in self._ends:
                self._close(end.channel)

    # -- datagrams

    def bind(self, data: bytes, where: Hashable, seen: Endpoint, now: float) -> bytes | None:
        """A BIND came from there; the BOUND to send back there, or None. seen: where it came from, as told to it."""
        end = self._ends.get(data[1:9])
        if end is None:
            self.counts.unknown += 1
            return None
        bind = read_bind(end.secret, data)
        if bind is None or bind.counter <= end.counter:
            self.counts.forged += 1
            return None
        end.counter, end.bound_at = bind.counter, now
        if where != end.where:
            self._place(end, where)
        return write_bound(end.secret, Bound(end.number, bind.counter, seen))

    def relayed(self, data: bytes, where: Hashable) -> bool:
        """A RELAYED came from there; whether it waits to go on now. Called for each packet."""
        end = self._ends.get(data[1:9])
        if end is None or not RELAYED_HEAD_BYTES < len(data) <= DATAGRAM_MAX_BYTES:
            self.counts.unknown += 1
            return False
        if where is not end.where and where != end.where and (where != end.former or where is None):
            self.counts.misplaced += 1
            return False
        self.queue.put(end.other.lane, data)
        return True

    def take(self, most: int) -> Iterator[tuple[Lane, Hashable, list[bytes]]]:
        """What to send where, about so many bytes. `put_back` if it cannot be."""
        counts = self.counts
        for lane, datagrams in self.queue.take(most):
            counts.forwarded += len(datagrams)
            counts.forwarded_bytes += sum(map(len, datagrams))
            yield lane, cast("End", lane.owner).where, datagrams

    def put_back(self, lane: Lane, datagrams: list[bytes]) -> None:
        """These were taken, and could not be sent."""
        self.counts.forwarded -= len(datagrams)
        self.counts.forwarded_bytes -= sum(map(len, datagrams))
        self.queue.put_back(lane, datagrams)

    def hold(self, where: Hashable) -> None:
        """Nothing can be sent to there now: a connection that is not read."""
        self._held.add(where)
        for end in self._at.get(where, ()):
            self.queue.hold(end.lane)

    def resume(self, where: Hashable) -> None:
        """It can again."""
        self._held.discard(where)
        for end in self._at.get(where, ()):
            self.queue.release(end.lane)

    def gone(self, where: Hashable) -> None:
        """A connection has ended: the ends there are nowhere."""
        self._held.discard(where)
        for end in list(self._at.get(where, ())):
            self._place(end, None)

    # -- time

    def tick(self, now: float) -> None:
        """End what has expired; every few seconds is enough."""
        for peer in [peer for peer, until in self._reserved.items() if until <= now]:
            del self._reserved[peer]
        for end in list(self._ends.values()):
            if end.where is not None and end.bound_at + BINDING_S <= now:
                self._place(end, None)
        for channel in {end.channel for end in self._ends.values()}:
            if channel.until <= now or any(self._lost(end, now) for end in channel.ends):
                self._close(channel)
        full = [peer for peer in self._allowance if self._left(peer, now) >= OPENINGS_BURST]
        for peer in full:
            del self._allowance[peer]

    def validate(self) -> None:
        """Every invariant."""
        self.queue.validate()
        assert len(self) <= CHANNELS_MAX and len(self._reserved) <= RESERVATIONS_MAX
        for key, end in self._ends.items():
            assert end.key == key and end.other.other is end and end.other.number == end.number ^ 1
            assert end.other.key in self._ends, "a channel with one end"
            assert (end.where is not None) == (end in self._at.get(end.where, ()))
            assert end.lane.held == (end.where is None or end.where in self._held)
        for where, ends in self._at.items():
            assert ends and where is not None
            assert all(end.where == where and end.key in self._ends for end in ends)
        assert sum(map(len, self._opened.values())) == len(self)
        assert all(0 < len(opened) <= OPENED_MAX for opened in self._opened.values())
        assert sum(len(channels) for _, channels in self._pairs.values()) == len(self)

    # -- inside

    def _owned(self, peer: PeerId, number: int) -> End | None:
        if not 0 <= number <= CHANNEL_MAX:
            return None
        end = self._ends.get(number.to_bytes(ID_BYTES, "big"))
        return end if end is not None and end.peer == peer else None

    def _make(self, caller: PeerId, called: PeerId, now: float) -> Opened:
        number = int.from_bytes(self._random(ID_BYTES), "big") & ~1
        while number.to_bytes(ID_BYTES, "big") in self._ends:
            number = int.from_bytes(self._random(ID_BYTES), "big") & ~1
        names = (caller, called) if caller < called else (called, caller)
        pair, channels = self._pairs.setdefault(names, (Pair(), set()))
        ours = End(number, self._random(SECRET_BYTES), caller, pair)
        theirs = End(number | 1, self._random(SECRET_BYTES), called, pair)
        channel = Channel(ours, theirs, now)
        self._ends[ours.key], self._ends[theirs.key] = ours, theirs
        self._opened.setdefault(caller, {})[channel] = None
        channels.add(channel)
        self.counts.opened += 1
        return Opened(*(Grant(end.number, end.secret, LEASE_S) for end in channel.ends))

    def _close(self, channel: Channel) -> None:
        for end in channel.ends:
            self._place(end, None)
            del self._ends[end.key]
        caller, called = channel.caller.peer, channel.called.peer
        del self._opened[caller][channel]
        if not self._opened[caller]:
            del self._opened[caller]
        names = (caller, called) if caller < called else (called, caller)
        channels = self._pairs[names][1]
        channels.remove(channel)
        if not channels:
            del self._pairs[names]

    def _place(self, end: End, where: Hashable) -> None:
        """The end is there from now on; None: nowhere, and what waits for it is dropped."""
        if end.where is not None:
            there = self._at[end.where]
            there.discard(end)
            if not there:
                del self._at[end.where]
        end.former, end.where = end.where, where
        if where is None:
            end.former = None
            self.queue.hold(end.lane)
            self.queue.clear(end.lane)
            return
        self._at.setdefault(where, set()).add(end)
        if where in self._held:
            self.queue.hold(end.lane)
        else:
            self.queue.release(end.lane)

    def _lost(self, end: End, now: float) -> bool:
        """It has been nowhere for too long."""
        since = max(end.channel.opened_at, end.bound_at + BINDING_S)
        return end.where is None and since + UNBOUND_S <= now

    def _left(self, peer: PeerId, now: float) -> float:
        left, at = self._allowance.get(peer, (OPENINGS_BURST, now))
        return min(left + (now - at) * OPENINGS_PER_S, OPENINGS_BURST)

    def _spend_opening(self, peer: PeerId, now: float) -> None:
        left = self._left(peer, now)
        if left < 1:
            raise PeerUnreachableError(
                f"peer {short_peer(peer)} opens more than {OPENINGS_PER_S:g} channels a second here",
                do_next="wait a moment, or use another relay",
            )
        self._allowance[peer] = left - 1, now
