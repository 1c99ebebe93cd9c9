"""The ways to one peer to which there is a QUIC connection: its path table, its puncher, and their one timer.

It lives from the moment both have keys until the session or the last QUIC connection is over. It is the `Guide` of
those connections: they tell it what comes and goes, and it tells them which route to take.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from random import Random
from time import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from lattica.mesh.alarm import Alarm
from lattica.mesh.identity import PeerId, short_peer
from lattica.mesh.nat.attempts import Attempted, BecameDirect, Introduction, Message, Situation, StaysRelayed, Tell
from lattica.mesh.nat.datagrams import Keys
from lattica.mesh.nat.methods import Method
from lattica.mesh.nat.path import PathForgotten, PathLost, PathProven, SeenAs, Suspected, Switched
from lattica.mesh.nat.paths import PathTable
from lattica.mesh.nat.punching import Puncher
from lattica.mesh.nat.rounds import Budget
from lattica.mesh.nat.routes import (
    CloseSocket,
    ConnectTcp,
    Direct,
    Endpoint,
    OpenSocket,
    Route,
    SendOver,
    ViaRelay,
    route_text,
)
from lattica.mesh.nat_shell.records import Record, Records
from lattica.mesh.nat_shell.sockets import Sockets, fresh_of

if TYPE_CHECKING:
    from lattica.mesh.transport.quic_link import QuicLink

log = logging.getLogger(__name__)
UNUSED_S = 10.0
"""After the last connection is over: the next one, for a certificate that was renewed, say, takes the path that there
is. Longer: mappings and sockets are kept alive for nothing."""
BULK_AGAIN_S = 300.0  # between tries of TCP for bulk
BULK_AFTER_S = 5.0  # after what was direct has died
LEAST_S = 0.001
"""A core that says it is due now, and then again, shall not keep the loop from everything else."""


class Shell(Protocol):
    """Whoever keeps all of these."""

    sockets: Sockets
    budget: Budget
    records: Records

    def links_of(self, peer: PeerId) -> Sequence[QuicLink]: ...
    def unused(self, paths: PeerPaths) -> None: ...
    def tell(self, peer: PeerId, message: Message) -> None: ...
    def doubt(self, relay: PeerId) -> None: ...
    def path_died(self, paths: PeerPaths) -> None: ...
    def seen_as(self, route: Direct, endpoint: Endpoint) -> None: ...
    def connect_tcp(self, paths: PeerPaths, effect: ConnectTcp) -> None: ...
    def became_direct(self, paths: PeerPaths, effect: BecameDirect) -> None: ...


def is_news(before: Introduction, now: Introduction) -> bool:
    """Whether what was tried in vain may succeed now."""
    same = msgspec.structs.replace(now.behaviour, lifetime_s=before.behaviour.lifetime_s) == before.behaviour
    return not same or (set(now.candidates), now.tcp) != (set(before.candidates), before.tcp)


class PeerPaths:
    """See the module."""

    def __init__(self, shell: Shell, peer: PeerId, keys: Keys, rng: Random, *, lower: bool) -> None:
        """lower: our PeerId is the lower one."""
        self.peer = peer
        self.table = PathTable(keys, rng)
        self.puncher = Puncher(keys, rng, shell.sockets.numbers, shell.budget, self.table.uses, lower=lower)
        self.method: Method | None = None  # by which it became direct; None: it was to be reached as it is, or is not
        self.relayed_s: float | None = None  # the last round trip by way of a relay
        self.stays: str = ""  # why it is relayed, as far as was tried
        self._shell = shell
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(self._tick)
        self._over = False
        self._bulk_at = float("-inf")  # from when on TCP may be tried for it

    def __repr__(self) -> str:
        return f"<PeerPaths of {short_peer(self.peer)}: {self.table!r}, {self.puncher!r}>"

    # -- what connections tell

    def heard(self, link: QuicLink, route: Route) -> None:
        """Packets of a connection came by this route."""
        effects = self.table.heard(route, self._loop.time())
        if effects:
            self.perform(effects)
        current = self.table.current
        if current is not None and link.route is not current:
            link.take(current)  # a connection that is younger than our choice

    def sent(self, link: QuicLink) -> None:
        """Packets of a connection went."""
        if self.table.sent(self._loop.time()):
            self._arm()

    def gone(self, link: QuicLink) -> None:
        """A connection has ended."""
        if not self._over:
            self._loop.call_later(UNUSED_S, self._look_whether_used)

    def _look_whether_used(self) -> None:
        if not self._over and not self._shell.links_of(self.peer):
            self._shell.unused(self)

    def bulk_began(self) -> None:
        """Much is to be carried by QUIC: try whether TCP, which carries many times as much, gets through as well."""
        now = self._loop.time()
        if not self.is_relayed and now >= self._bulk_at:
            self._bulk_at = now + BULK_AGAIN_S
            self.step(partial(self.puncher.punch, methods=(Method.TCP,)))

    # -- what the shell tells

    @property
    def is_relayed(self) -> bool:
        """Whether its packets go by way of a relay, as far as we send them."""
        if self.table.current is not None:
            return isinstance(self.table.current, ViaRelay)
        return any(isinstance(link.route, ViaRelay) for link in self._shell.links_of(self.peer))

    def step(self, verb: Callable[..., Sequence[Any]], *args: Any) -> None:
        """A verb of the table or of the puncher."""
        if not self._over:
            self.perform(verb(*args, self._loop.time()))

    def add(self, routes: Iterable[Route]) -> None:
        """By these it may be reached."""
        for route in routes:
            self.step(self.table.add, route)

    def situate(self, situation: Situation) -> None:
        """This is known of ourselves: become direct, if we are not, and if it is news."""
        before, self.puncher.situation = self.puncher.situation, situation
        if self.is_relayed and (before is None or is_news(before.introduction, situation.introduction)):
            self.step(self.puncher.again)

    def close(self) -> None:
        """It is over; fresh sockets that lead there are closed."""
        self._over = True
        self._alarm.cancel()
        for path in self.table.paths:
            if (number := fresh_of(path.route)) is not None:
                self._shell.sockets.close(number)
        for number in self.puncher.sockets:
            self._shell.sockets.close(number)

    # -- time

    def _arm(self) -> None:
        """A timer that comes too early asks again; setting one for each packet would cost more."""
        if self._over:
            return
        found = [at for at in (self.table.next_deadline(), self.puncher.next_deadline()) if at is not None]
        due = min(found, default=None)
        if due is not None:
            self._alarm.set(max(due, self._loop.time() + LEAST_S))

    def _tick(self) -> None:
        now = self._loop.time()
        self.perform([*self.table.tick(now), *self.puncher.tick(now)])

    # -- effects

    def perform(self, effects: Sequence[Any]) -> None:
        """Carry out what the cores ask for."""
        for effect in effects:
            match effect:
                case SendOver():
                    self._shell.sockets.send(effect)
                case OpenSocket(number):
                    self._open(number)
                case CloseSocket(number):
                    self._shell.sockets.close(number)
                case Tell(message):
                    self._shell.tell(self.peer, message)
                case ConnectTcp():
                    self._shell.connect_tcp(self, effect)
                case _:
                    self._event(effect)
        self._arm()

    def _event(self, effect: Any) -> None:
        match effect:
            case Switched():
                self._switched(effect)
            case PathProven(route, rtt_s):
                if isinstance(route, ViaRelay):
                    self.relayed_s = rtt_s
                self.step(self.puncher.proven, route)
            case Suspected(route):
                log.debug("%s: nothing comes by %s", short_peer(self.peer), route)
                for relay in {path.route.relay for path in self.table.paths if isinstance(path.route, ViaRelay)}:
                    self._shell.doubt(relay)
            case PathLost(route, reason):
                log.info("the path to %s by %s is lost: %s", short_peer(self.peer), route, reason)
            case PathForgotten(route):
                number = fresh_of(route)
                if number is not None and not self.table.uses(number) and number not in self.puncher.sockets:
                    self._shell.sockets.close(number)
            case SeenAs(route, endpoint):
                self._shell.seen_as(route, endpoint)
            case Attempted(method, number, direct, took_s, shots, reason):
                name = method.value if method is not None else ""
                self._record(Record(self.peer, time(), name, direct, reason, number, took_s, shots))
            case BecameDirect(method):
                if method is not Method.TCP:
                    self.method = method
                self.stays = ""
                self._shell.became_direct(self, effect)
            case StaysRelayed(reason, again_s):
                log.info("%s stays as it is: %s; again in %.0f s", short_peer(self.peer), reason, again_s)
                self.stays = reason if self.is_relayed else ""
                self._record(Record(self.peer, time(), "", False, reason))
            case _:
                raise AssertionError(f"{effect!r} is not carried out here")

    def _record(self, record: Record) -> None:
        self._shell.records.add(record)

    def _switched(self, effect: Switched) -> None:
        route, was, reason = effect.route, effect.was, effect.reason
        log.info("%s: %s in place of %s: %s", short_peer(self.peer), route_text(route), route_text(was), reason)
        if route is not None:
            for link in self._shell.links_of(self.peer):
                link.take(route, lost=effect.lost)
        if isinstance(was, Direct) and isinstance(route, ViaRelay):
            self._shell.path_died(self)
            self._bulk_at = min(self._bulk_at, self._loop.time() + BULK_AFTER_S)
        if not isinstance(route, Direct):
            self.method = None
        if isinstance(route, ViaRelay):
            self.step(self.puncher.punch)
        elif any(link.carries_bulk for link in self._shell.links_of(self.peer)):
            self.bulk_began()

    def _open(self, number: int) -> None:
        where = self._shell.sockets.open(number)
        if where is not None:  # else what waits for it gives up in time
            self._loop.call_soon(self._opened, number, where)

    def _opened(self, number: int, where: Endpoint) -> None:
        if self._over:
            self._shell.sockets.close(number)
        else:
            self.step(self.puncher.opened, number, where)
