"""What asks to run in a placement group, until it has its worker or is denied.

    LeaseRequest with a group ──► GroupAsks.wish ──► the bundle's book, here or by AskLease there

Rules of this file. What asks for a group waits here until all its bundles are kept, then in the book of its bundle's
node. What asks for any bundle goes where least of this node's things are, and on to the next if it waits there for
AGAIN_S: nobody knows whose worker will be free first. When a bundle ends, what waited for it comes back here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from lattica.codec import messages as m
from lattica.ids import short
from lattica.mesh.identity import PeerId, short_peer
from lattica.node.clients import Client
from lattica.node.known_groups import CREATED, OVER, REMOVED, RESCHEDULING, UNSCHEDULABLE, Known
from lattica.scheduler.demand import Demand, fits
from lattica.scheduler.given import ANY_BUNDLE, DemandGiven, StrategyGiven, decode, encode_within
from lattica.scheduler.resources import ResourceSet, in_bundle

if TYPE_CHECKING:
    from lattica.node.server import Node

AGAIN_S = 0.5  # between two looks at what waits
NOTHING = ResourceSet({})


class Ask(msgspec.Struct, eq=False):
    """A request of a client of ours, or for an actor, to run in a group, until it is granted or denied.

    bundle: the one that it named. index, at: where it waits now; at is None while it waits here. needs: what else its
    node must be.
    """

    client: int
    request: int
    job: int
    resources: ResourceSet
    retryable: bool
    name: str
    actor: bool
    given: StrategyGiven
    needs: Demand
    index: int = ANY_BUNDLE
    at: PeerId | None = None
    look_at: float = 0.0


class GroupAsks:
    """What this node's clients and actors have asked to run in placement groups.

    group: what is known of a group, by its owner and its id; asks the owner if that is nothing.
    number: of a bundle of (owner, group, index) that is kept here. arm: a deadline of ours may have changed.
    """

    def __init__(
        self,
        node: Node,
        group: Callable[[bytes, bytes], Known],
        number: Callable[[PeerId, bytes, int], int | None],
        arm: Callable[[], None],
    ) -> None:
        self._node, self._group, self._number, self._arm = node, group, number, arm
        self.me = PeerId(node.settings.node)
        self._asks: dict[tuple[int, int], Ask] = {}

    def __len__(self) -> int:
        return len(self._asks)

    def wish(self, client: Client, message: m.LeaseRequest, resources: ResourceSet, job: int) -> bool:
        """Whether it is for a group, which is seen to. job: that the worker is of.

        Raises ConfigError for what cannot be meant.
        """
        given = decode(message.given)
        if not given.strategy.group:
            return False
        self._ask(given, client.number, message.request, job, resources, message.retryable, message.name, False)
        return True

    def wish_for_actor(self, number: int, job: int, resources: ResourceSet, name: str, data: bytes) -> bool:
        """The same for a request of the actor desk."""
        given = decode(data)
        if not given.strategy.group:
            return False
        self._ask(given, m.NODE, number, job, resources, False, name, True)
        return True

    def _ask(
        self, given: DemandGiven, client: int, request: int, job: int, resources: ResourceSet, retryable: bool,
        name: str, actor: bool,
    ) -> None:  # fmt: skip
        demand = given.to_demand(self.me)
        needs = Demand(NOTHING, demand.labels, demand.python, site=demand.site, trust=demand.trust)
        ask = Ask(client, request, job, resources, retryable, name, actor, given.strategy, needs)
        self._asks[client, request] = ask
        self._place(ask)
        self._arm()

    def canceled(self, client: int, request: int) -> bool:
        """Its client wants it no more; whether it was one of ours, which waits nowhere now."""
        ask = self._asks.pop((client, request), None)
        if ask is not None:
            self._withdraw(ask)
        return ask is not None

    def granted(self, client: int, request: int) -> None:
        """It has its worker; or never will, and its client knows."""
        self._asks.pop((client, request), None)

    def came_back(self, client: int, request: int) -> bool:
        """The node of its bundle does not take it, or not now; whether it is one of ours."""
        ask = self._asks.get((client, request))
        if ask is not None:
            ask.at, ask.look_at = None, self._node.now() + AGAIN_S
            self._arm()
        return ask is not None

    def client_gone(self, client: int) -> None:
        """Whatever it has asked for is void."""
        for key in [key for key in self._asks if key[0] == client]:
            self._withdraw(self._asks.pop(key))

    def changed(self, known: Known) -> None:
        """More is known of a group, or its bundles have moved: look at what waits for it."""
        for ask in [ask for ask in self._asks.values() if ask.given.group == known.id]:
            if (ask.client, ask.request) not in self._asks:
                continue
            if ask.at is not None and known.places.get(ask.index) != ask.at:
                self._withdraw(ask)
            if ask.at is None:
                self._place(ask)

    def next_deadline(self) -> float | None:
        """When to call `tick`; None while nothing waits."""
        return min((ask.look_at for ask in self._asks.values()), default=None)

    def tick(self, now: float) -> None:
        """Look again at what has waited for AGAIN_S."""
        for ask in [ask for ask in self._asks.values() if ask.look_at <= now]:
            self._look_again(ask, now)

    # -- where it waits

    def why(self, client: int, request: int) -> str:
        """Why one of ours waits, in words; "" if it is none."""
        ask = self._asks.get((client, request))
        if ask is None:
            return ""
        known = self._group(ask.given.owner, ask.given.group)
        called = f"placement group {short(known.id)}"
        if ask.at is None:
            return f"{called} is {known.state or 'not known here yet'}" + (f": {known.reason}" if known.reason else "")
        where = "this node" if ask.at == self.me else f"node {short_peer(ask.at)}"
        return f"it is queued for bundle {ask.index} of {called}, on {where}"

    def _place(self, ask: Ask, but: int = ANY_BUNDLE) -> None:
        """Let it wait where its bundle is, if that can be. but: not there, where it has waited already."""
        known = self._group(ask.given.owner, ask.given.group)
        ask.look_at = self._node.now() + AGAIN_S
        if reason := self._objection(known, ask):
            self._deny(ask, reason, removed=known.state == REMOVED)
            return
        if known.state not in (CREATED, RESCHEDULING):
            return
        able = [
            index
            for index in self._able(known, ask)
            if index in known.places and index != but and self._suits(known, index, ask)
        ]
        if not able:
            return
        here = [index for index in able if known.places[index] == self.me and self._fits(known, index, ask)]
        index = min(here or able, key=lambda index: self._outstanding(known, index))
        ask.index, ask.at = index, known.places[index]
        within = encode_within(
            StrategyGiven(group=known.id, bundle=index, captures=ask.given.captures, owner=known.owner)
        )
        if ask.at == self.me:
            self._queue(ask, known, within)
        elif self._node.far is not None:
            self._node.far.placing.ask_of_bundle(
                ask.at, ask.client, ask.request, ask.job, Demand(ask.resources), within,
                retryable=ask.retryable, name=ask.name, actor=ask.actor,
            )  # fmt: skip

    def _objection(self, known: Known, ask: Ask) -> str:
        """Why it can never run in the group; "" if it may, as far as is known."""
        if known.state in OVER:
            return self._over(known)
        if not known.state:
            return ""
        called, index = f"placement group {short(known.id)}", ask.given.bundle
        if index >= len(known.bundles):
            return f"{called} has {len(known.bundles)} bundles, and none of number {index}"
        able = self._able(known, ask)
        if not able:
            amounts = ", ".join(f"{amount:g} {name}" for name, amount in ask.resources.items())
            which = f"bundle {index} of {called} does not have" if index >= 0 else f"no bundle of {called} has"
            return f"{which} {amounts}"
        if all(index in known.places for index in able) and not any(self._suits(known, index, ask) for index in able):
            return f"no bundle of {called} lies on a node that it may run on"
        return ""

    @staticmethod
    def _over(known: Known) -> str:
        how = "cannot be placed" if known.state == UNSCHEDULABLE else "is removed"
        return f"placement group {short(known.id)} {how}: {known.reason}"

    @staticmethod
    def _able(known: Known, ask: Ask) -> list[int]:
        """Bundles that hold it when nothing else is in them."""
        named = ask.given.bundle
        return [
            index
            for index, bundle in enumerate(known.bundles)
            if named in (ANY_BUNDLE, index)
            and all(bundle.units.get(name, 0) >= units for name, units in ask.resources.units.items())
        ]

    def _suits(self, known: Known, index: int, ask: Ask) -> bool:
        needs = ask.needs
        if self._node.far is None or not (needs.labels or needs.site or needs.trust or needs.python):
            return True
        view = self._node.far.placer.views().get(known.places[index])
        return view is not None and fits(needs, view)

    def _fits(self, known: Known, index: int, ask: Ask) -> bool:
        """Whether this bundle of our own has room for it now."""
        number = self._number(known.owner, known.id, index)
        return number is not None and self._node.resources.fits(ask.resources.in_bundle(number))

    def _outstanding(self, known: Known, index: int) -> int:
        """How much of ours is in a bundle, or waits for it."""
        there = known.places[index]
        waiting = sum(
            ask.index == index and ask.at is not None for ask in self._asks.values() if ask.given.group == known.id
        )
        if there == self.me:
            number = self._number(known.owner, known.id, index)
            return waiting + (0 if number is None else len(self._node.book.leases_of(in_bundle(number, ""))))
        far_desk = self._node.far
        return waiting + (0 if far_desk is None else far_desk.workers.leases_in(known.id, index))

    def _queue(self, ask: Ask, known: Known, within: bytes) -> None:
        number = self._number(known.owner, known.id, ask.index)
        if number is None:  # the owner thinks so, and we are told in a moment
            ask.at = None
            return
        node = self._node
        node.lease_desk.perform(
            node.book.request(
                ask.client, ask.request, ask.job, ask.resources.in_bundle(number), node.now(),
                retryable=ask.retryable, name=ask.name, within=within,
            )
        )  # fmt: skip

    def _look_again(self, ask: Ask, now: float) -> None:
        """It waits still: here, or in one of several bundles, of which another may have room by now."""
        if (ask.client, ask.request) not in self._asks:
            return
        ask.look_at = now + AGAIN_S
        if ask.at is None:
            self._place(ask)
            return
        known = self._group(ask.given.owner, ask.given.group)
        others = [index for index in self._able(known, ask) if index != ask.index and index in known.places]
        if ask.given.bundle == ANY_BUNDLE and others:
            before = ask.index
            self._withdraw(ask)
            self._place(ask, but=before)

    def _withdraw(self, ask: Ask) -> None:
        """It waits nowhere now."""
        at, ask.at = ask.at, None
        if at == self.me:
            self._node.lease_desk.perform(self._node.book.cancel(ask.client, ask.request, self._node.now()))
        elif at is not None and self._node.far is not None:
            self._node.far.placing.canceled(ask.client, ask.request)

    def _deny(self, ask: Ask, reason: str, *, removed: bool) -> None:
        del self._asks[ask.client, ask.request]
        if ask.actor:
            self._node.actor_desk.denied(ask.request, reason, removed=removed)
        else:
            self._node.tell(ask.client, m.LeaseDenied(ask.request, reason, removed))
