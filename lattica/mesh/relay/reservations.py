"""At which relays this node can be called: looked for, reserved at, renewed, and told to others.

Of those who offer to relay (a row of a service in the table) up to CANDIDATES_MAX are asked, and the RESERVATIONS with
the shortest round trip stand in this node's addresses as `relay/PEER`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from lattica.errors import LatticaError
from lattica.mesh import tls
from lattica.mesh.identity import PeerId, peer_text, short_peer
from lattica.mesh.relay.client import RENEW_S, RelayClient
from lattica.mesh.relay.service import OFFER
from lattica.mesh.table.kinds import SERVICE
from lattica.mesh.transport.quic import RELAY

if TYPE_CHECKING:
    from lattica.mesh.peer import Peer
    from lattica.mesh.table.rows import Row

log = logging.getLogger(__name__)
RESERVATIONS = 2
"""When one relay dies, others still reach us by way of the other."""
CANDIDATES_MAX = 6  # asked for a reservation, to find the nearest
FIRST_LOOK_S = 0.3
LOOK_S = (2.0, 60.0)  # between looks for relays while there are too few, and else; the first one doubles
RESERVE_S = 5.0  # for a relay to answer
NEARER_SHARE, NEARER_S = 0.25, 0.005  # of a round trip, by which another relay must be better than one that we have
SHUN_S = 60.0  # for which one that did not is left alone
SOURCE = "relays"  # of addresses, for `Peer.advertise`


class Reservations:
    """See the module."""

    def __init__(self, peer: Peer, client: RelayClient, wanted: Callable[[], bool]) -> None:
        """wanted: whether this node needs any, asked at each look."""
        self._peer, self._client, self._wanted = peer, client, wanted
        self._loop = asyncio.get_running_loop()
        self._reserved: dict[PeerId, float] = {}  # relay -> round trip, nearest first
        self._shunned: dict[PeerId, float] = {}  # that could not be reached -> until when
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._renewed_at = self._loop.time()
        self._pause_s = LOOK_S[0]
        self._news = False  # another relay was heard of while we looked
        self._stopped = False

    def __repr__(self) -> str:
        return f"<Reservations: at {', '.join(map(short_peer, self._reserved)) or 'no relay'}>"

    def __contains__(self, relay: object) -> bool:
        return relay in self._reserved

    @property
    def round_trips(self) -> dict[PeerId, float]:
        """Seconds to each relay at which there is one, nearest first."""
        return dict(self._reserved)

    def start(self) -> None:
        """The peer's gossip is there."""
        self._peer.gossip.watch(SERVICE, self._heard_of)
        self._look_in(FIRST_LOOK_S)

    def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()

    def doubt(self, relay: PeerId) -> None:
        """Whether this relay still has our reservation must be asked; others are told of another one meanwhile."""
        if self._reserved.pop(relay, None) is not None:
            self._pause_s = LOOK_S[0] / 2
            if self._looking is None:
                self._look_in(0.0)

    def look_soon(self) -> None:
        """Whether this node needs any may have changed."""
        if self._timer is not None:
            self._pause_s = LOOK_S[0] / 2
            self._look_in(LOOK_S[0])

    # -- looking

    def _heard_of(self, row: Row | None, before: Row | None) -> None:
        """Of a service: just after a join, the first relays come so, and nobody reaches us before we have reserved."""
        if row is None or before is not None or not row.key.endswith(OFFER.encode()):
            return
        if len(self._reserved) < RESERVATIONS and self._wanted():
            self._news = self._looking is not None
            if not self._news:
                self._look_in(0.0)  # what else came with it is taken in by then

    def _look(self) -> None:
        self._timer = None
        if self._looking is None:
            self._looking = self._loop.create_task(self._reserve())
            self._looking.add_done_callback(self._looked)

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._looking = None
        if self._stopped:
            return
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("looking for relays", exc_info=error)
        enough = len(self._reserved) >= RESERVATIONS or not self._wanted()
        self._pause_s = LOOK_S[1] if enough else min(self._pause_s * 2, LOOK_S[1])
        news, self._news = self._news and not enough, False
        self._look_in(0.0 if news else self._pause_s)

    def _look_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._stopped:
            self._timer = self._loop.call_later(seconds, self._look)

    async def _reserve(self) -> None:
        """Renew what is due, and have as many reservations as there should be."""
        others = 0
        if self._loop.time() - self._renewed_at >= RENEW_S:
            self._renewed_at = self._loop.time()
            await self._client.renew()
            for relay in list(self._reserved):
                await self._ask(relay)
            others = 1  # there may be a nearer one by now
        if not self._wanted():
            for relay in list(self._reserved):
                self._drop(relay)
        else:
            others = CANDIDATES_MAX if len(self._reserved) < RESERVATIONS else others
            before = set(self._reserved)
            await asyncio.gather(*(self._ask(relay) for relay in self._others()[:others]))
            self._keep_the_nearest(before)
        self._advertise()

    def _others(self) -> list[PeerId]:
        """Relays at which we have no reservation, in no order."""
        now = self._loop.time()
        self._shunned = {relay: until for relay, until in self._shunned.items() if until > now}
        known = self._peer.gossip.known_providers(OFFER)
        found = [relay for relay in known if relay not in self._reserved and relay not in self._shunned]
        self._peer.rng.shuffle(found)
        return found

    def _keep_the_nearest(self, before: set[PeerId]) -> None:
        """Of more relays than we need those stay at which we reserved before, unless another is nearer by far: others
        have our addresses."""

        def distance(item: tuple[PeerId, float]) -> float:
            relay, rtt_s = item
            return rtt_s if relay in before else max(rtt_s / (1 - NEARER_SHARE), rtt_s + NEARER_S)

        for relay, _ in sorted(self._reserved.items(), key=distance)[RESERVATIONS:]:
            self._drop(relay)

    async def _ask(self, relay: PeerId) -> None:
        """Reserve there, and see whether it can be reached, and how quickly; forget it if not: a firewall may keep out
        datagrams of ours, and let it dial us. One that we have dialed counts meanwhile: just after a join, others wait
        to hear by which relays we are reached."""
        sessions = self._peer.sessions
        self._client.expect(relay)
        try:
            await self._peer.call(relay, "relay.reserve", timeout_s=RESERVE_S, idempotent=True)
            self._client.admit(relay)
            rtt_s = self._reserved.get(relay)
            if rtt_s is None and sessions.is_dialed(relay):
                self._add(relay, sessions.rtt_s(relay) or RESERVE_S)
            rtt_s = rtt_s or await self._client.reach(relay)
        except (LatticaError, OSError) as error:
            log.info("relay %s: %s", short_peer(relay), tls.words(error))
            self._shunned[relay] = self._loop.time() + SHUN_S
            if self._reserved.pop(relay, None) is not None:
                self._advertise()
            return
        self._add(relay, rtt_s)

    def _add(self, relay: PeerId, rtt_s: float) -> None:
        """We are reached by way of this one, too."""
        self._reserved[relay] = rtt_s
        self._reserved = dict(sorted(self._reserved.items(), key=lambda item: item[1]))
        if len(self._reserved) <= RESERVATIONS:
            self._advertise()  # at once: another one that is asked may be dead

    def _drop(self, relay: PeerId) -> None:
        """It is not needed any more."""
        self._reserved.pop(relay, None)
        if self._peer.has_session(relay):
            task = self._loop.create_task(self._release(relay))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _release(self, relay: PeerId) -> None:
        await self._peer.call(relay, "relay.release", timeout_s=RESERVE_S, idempotent=True)

    def _advertise(self) -> None:
        self._peer.advertise(SOURCE, [RELAY + peer_text(relay) for relay in self._reserved])
