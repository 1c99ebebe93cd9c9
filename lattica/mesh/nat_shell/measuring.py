"""What this machine is behind: `nat/measuring` asks some of the peers with whom there are sessions; `nat/answering`
tells those who ask us.

Nobody is asked by a machine that has nothing but loopback addresses, or while no peer with a public address has a
session with us. A peer that is asked opens its second UDP socket for that, and not before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lattica.errors import LatticaError
from lattica.mesh.identity import PeerId, short_peer
from lattica.mesh.nat.answering import Answering, HaveSent
from lattica.mesh.nat.behaviour import Behaviour, Dependence
from lattica.mesh.nat.datagrams import PROBE, Keys
from lattica.mesh.nat.measuring import Glimpsed, Measured, Measurement, Witness
from lattica.mesh.nat.routes import CloseSocket, Endpoint, OpenSocket, Route, SendOver, is_public, is_sendable
from lattica.mesh.nat_shell.sockets import OTHER, Sockets
from lattica.mesh.nat_shell.witnesses import Candidate, candidate_of, pick

if TYPE_CHECKING:
    from lattica.mesh.nat_shell.crossing import Crossing

log = logging.getLogger(__name__)
LOOK_S = 0.1  # after a session began or ended: more do so together
AGAIN_S = [30.0, 120.0, 600.0, 3600.0]
"""Pauses before it is measured again, if no witness knew another peer that could have answered for it."""
ALONE_S = 1.0  # for a second witness to turn up: one alone can say little
ANSWER_FROM_S = 3.0  # for a peer to send an answer of ours
ANSWERS_FROM_MAX = 32  # calls at once by which we ask others to
LEAST_S = 0.001


class Measuring:
    """See the module."""

    def __init__(self, crossing: Crossing, sockets: Sockets) -> None:
        self.core = Measurement(crossing.rng, sockets.numbers)
        self.answering = Answering(None)
        self.witnesses: tuple[Witness, ...] = ()
        self._crossing, self._sockets = crossing, sockets
        self._loop = asyncio.get_running_loop()
        self._port = 0  # of our second socket
        self._useless: set[PeerId] = set()  # those that cannot be asked
        self._first_at: float | None = None  # when there first was somebody to ask
        self._looking: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._engaging: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._again: asyncio.TimerHandle | None = None
        self._pauses = list(AGAIN_S)
        self._stopped = False

    def __repr__(self) -> str:
        return f"<Measuring: {self.core!r}, {len(self.witnesses)} witnesses>"

    def stop(self) -> None:
        self._stopped = True
        for timer in (self._looking, self._timer, self._again):
            if timer is not None:
                timer.cancel()
        for task in (self._engaging, *self._tasks):
            if task is not None:
                task.cancel()

    # -- whom to ask

    def sessions_changed(self, peer: PeerId | None = None) -> None:
        """A session began or ended. peer: it is not there any more."""
        if peer is not None:
            self._useless.discard(peer)
            if not any(witness.peer == peer for witness in self.witnesses):
                return
            self.witnesses = tuple(witness for witness in self.witnesses if witness.peer != peer)
            self.step(self.core.use, self.witnesses)
        if self._looking is None and not self._stopped and self._crossing.door.is_exposed:
            self._looking = self._loop.call_later(LOOK_S, self._look)

    def _candidates(self) -> list[Candidate]:
        told = {
            peer: self._crossing.door.told_of(peer) for peer in self._crossing.sessions() if peer not in self._useless
        }
        if not any(is_public(endpoint) for endpoints in told.values() for endpoint in endpoints):
            return []  # as in a mesh within one machine, or one building
        own = self._crossing.own_hosts
        found = (candidate_of(peer, endpoints, own) for peer, endpoints in told.items())
        return [candidate for candidate in found if candidate is not None]

    def _look(self) -> None:
        self._looking = None
        if self._engaging is not None or self._stopped:
            return
        now_asked = [witness.peer for witness in self.witnesses]
        chosen = pick(self._candidates(), now_asked, self._crossing.rng)
        if len(now_asked) >= 2 or not chosen or {each.peer for each in chosen} <= set(now_asked):
            return
        now = self._loop.time()
        self._first_at = self._first_at or now
        if len(chosen) == 1 and now < self._first_at + ALONE_S:
            self._looking = self._loop.call_at(self._first_at + ALONE_S, self._look)
            return
        self._engaging = self._loop.create_task(self._engage(chosen))
        self._engaging.add_done_callback(self._engaged)

    async def _engage(self, chosen: Sequence[Candidate], *, anew: bool = False) -> None:
        """Have keys with these, and ask them."""
        known = await asyncio.gather(*(self._crossing.keyring.ask(each.peer, asks=True) for each in chosen))
        witnesses: list[Witness] = []
        for candidate, found in zip(chosen, known):
            if found is None:
                self._useless.add(candidate.peer)
            else:
                other = Endpoint(candidate.endpoint.host, found.card.port) if found.card.port else None
                has_others = found.card.has_others
                witnesses.append(
                    Witness(candidate.peer, found.keys, candidate.endpoint, other, candidate.six, has_others)
                )
        if not witnesses or self._stopped:
            return
        before, self.witnesses = self.witnesses, tuple(witnesses)
        self._crossing.watch_network()
        self._crossing.see_tcp()
        log.debug("what this machine is behind: asking %s", ", ".join(short_peer(each.peer) for each in witnesses))
        is_known = self.core.behaviour.udp is not None and (self.core.behaviour.mapping is not None or len(before) > 1)
        if is_known and not anew:
            self.step(self.core.use, self.witnesses)
        else:
            self.step(self.core.measure, self.witnesses, self._crossing.own_hosts)

    def _engaged(self, task: asyncio.Task[None]) -> None:
        self._engaging = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("asking witnesses", exc_info=error)
        if not self._stopped:
            self.sessions_changed()

    def network_changed(self, own: Sequence[str] | None = None) -> None:
        """This machine has other addresses (own), or is seen elsewhere."""
        if self._useless:  # it may have been the network that did not let them answer
            self._useless.clear()
            self.sessions_changed()
        if self.witnesses:
            self.step(partial(self.core.network_changed, own=own))

    def _look_again_later(self, behaviour: Behaviour) -> None:
        """Whether strangers get through could not be asked, while no witness knew one."""
        unsure = behaviour.udp and behaviour.filtering in (Dependence.ADDRESS, None)
        unsure = unsure and not any(each.has_others for each in self.witnesses)
        if unsure and self._again is None and self._pauses:
            self._again = self._loop.call_later(self._pauses.pop(0), self._measure_again)

    def _measure_again(self) -> None:
        self._again = None
        if self._engaging is None and self.witnesses and not self._stopped:
            now_asked = {witness.peer for witness in self.witnesses}
            candidates = [candidate for candidate in self._candidates() if candidate.peer in now_asked]
            self._engaging = self._loop.create_task(self._engage(candidates, anew=True))
            self._engaging.add_done_callback(self._engaged)

    # -- those who ask us

    def serve(self, peer: PeerId) -> tuple[int, bool]:
        """(the port of our second socket, whether others can answer for us): this peer wants us as a witness."""
        if not self._port and self._crossing.door.is_exposed:
            where = self._sockets.open(OTHER)
            if where is not None:
                self._port, self.answering.other = where.port, OTHER
        return self._port, bool(self._others(peer, ""))

    def _others(self, asker: PeerId, host: str) -> list[PeerId]:
        """Who may answer for us, from elsewhere: those whose addresses are public, else any."""
        public = [each.peer for each in self._candidates() if each.peer != asker and each.endpoint.host != host]
        return public or [peer for peer in self._crossing.sessions() if peer != asker]

    def asked_to_answer(self, data: bytes, to: Endpoint) -> None:
        """See `NatService.answer_from`."""
        if is_sendable(to):
            self.step(self.answering.send_for, data, to)

    def _have_sent(self, effect: HaveSent) -> None:
        if len(self._tasks) >= ANSWERS_FROM_MAX or not is_sendable(effect.to):
            return
        others = self._others(effect.asker, effect.to.host)
        if not others:
            return
        task = self._loop.create_task(self._ask_to_send(self._crossing.rng.choice(others), effect))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask_to_send(self, other: PeerId, effect: HaveSent) -> None:
        host, port = effect.to
        try:
            await self._crossing.call(other, "nat.answer_from", effect.data, host, port, timeout_s=ANSWER_FROM_S)
        except LatticaError as error:
            log.debug("%s does not answer for us: %s", short_peer(other), error)

    # -- datagrams

    def received(self, peer: PeerId, keys: Keys, route: Route, data: bytes) -> None:
        """A PROBE or ANSWER of one of `answering.KINDS` that claims to be of this peer."""
        if data[0] == PROBE:
            self.step(self.answering.received, peer, keys, route, data)
        else:
            self.step(self.core.received, route, data)

    # -- cores

    def step(self, verb: Callable[..., Sequence[Any]], *args: Any) -> None:
        """A verb of one of the cores."""
        if self._stopped:
            return
        for effect in verb(*args, self._loop.time()):
            match effect:
                case SendOver():
                    self._sockets.send(effect)
                case OpenSocket(number):
                    where = self._sockets.open(number)
                    if where is not None:
                        self._loop.call_soon(self._opened, number, where)
                case CloseSocket(number):
                    self._sockets.close(number)
                case HaveSent():
                    self._have_sent(effect)
                case Glimpsed(behaviour, observed):
                    self._crossing.glimpsed(behaviour, observed)
                case Measured(behaviour, observed):
                    self._crossing.measured(behaviour, observed)
                    self._look_again_later(behaviour)
                case _:
                    raise AssertionError(f"{effect!r} is not carried out here")
        self._arm()

    def _opened(self, number: int, where: Endpoint) -> None:
        if self.core.awaits(number):
            self.step(self.core.opened, number, where)
        else:
            self._sockets.close(number)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        found = [at for at in (self.core.next_deadline(), self.answering.next_deadline()) if at is not None]
        if found:
            self._timer = self._loop.call_at(max(min(found), self._loop.time() + LEAST_S), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.step(self.core.tick)
        self.step(self.answering.tick)
