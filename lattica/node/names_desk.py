"""Names of actors in a mesh: claimed before the constructor starts, looked up from any node, given back at the end.

    process ── ActorCreate(name) ──► claim (`scheduler.names`) ──► granted: the actor desk goes on as without a mesh
                                                                   taken:   an error, or the one that has it
    process ── ActorLookup ──► the name's row, here or at its home ──► HoldActor ──► owner: counts a hold for us

The owner of an actor is the node that supervises it: who claimed the name, or by an actor's row whoever restarted it.
A name outlives neither its actor nor, where nobody restarts that, its node.
"""

from __future__ import annotations

import asyncio
import logging
import os
from itertools import count
from typing import TYPE_CHECKING, Any

import msgspec

from lattica.actors.supervision import Plan, no_bearer
from lattica.codec import far
from lattica.codec import messages as m
from lattica.errors import ActorUnavailableError, LatticaError, PeerUnreachableError, RemoteProtocolError
from lattica.mesh.identity import PeerId, peer_text
from lattica.mesh.table.kinds import KEY_MAX_BYTES
from lattica.node.bearers import Bearer, read_bearer, write_bearer
from lattica.node.clients import Client
from lattica.scheduler.claims import CLAIM_BYTES, Holder
from lattica.scheduler.fencing import Life

if TYPE_CHECKING:
    from lattica.node.far_desk import FarDesk
    from lattica.node.far_neighbours import Neighbour

log = logging.getLogger(__name__)
ANSWER_S = 2.0  # for a node's answer to one question, before it is asked again
PAUSE_S = 0.05
PAUSE_MAX_S = 1.0
"""Between tries to reach who has a name, doubled each time: it may be starting, ending, or being restarted."""
LOOKUP_S = 30.0
"""For a bearer that is not to be reached: a death is known after ten seconds, and the restart may wait for ten more."""
ISLAND_S = 3.0  # instead of it on an island, for those who do not answer: a heal may take days
WAITING_MAX = 4096  # creations and lookups at once

UNREACHED = "its node does not answer, or is not connected with this one"


def name_key(namespace: str, name: str) -> bytes:
    """What is claimed."""
    return namespace.encode() + b"\0" + name.encode()


class Pending(msgspec.Struct, eq=False):
    """A creation that waits for its name."""

    client: Client
    request: int
    plan: Plan
    key: bytes
    until: float
    arguments: m.ActorArguments | None = None
    pause_s: float = PAUSE_S


class NamesDesk:
    """See the module."""

    def __init__(self, desk: FarDesk) -> None:
        self._desk, self._node = desk, desk.node
        self._loop = asyncio.get_running_loop()
        self._pending: dict[bytes, Pending] = {}  # claim -> it
        self._borne: dict[bytes, tuple[bytes, bytes]] = {}  # actor of ours -> (name, claim)
        self._claims: dict[bytes, bytes] = {}  # claim -> actor, of what is borne
        self._questions: dict[int, tuple[PeerId, asyncio.Future[Any], bytes]] = {}  # the last: what is to be held
        self._numbers = count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<NamesDesk: {len(self._borne)} borne here, {len(self._pending)} claimed, {len(self._tasks)} looked up>"

    def close(self) -> None:
        """The node ends."""
        for task in list(self._tasks):
            task.cancel()

    # -- creating

    def create(self, client: Client, request: int, plan: Plan) -> None:
        """A process wants an actor of this name: claim it first."""
        key = name_key(plan.namespace, plan.name)
        if len(key) > KEY_MAX_BYTES:
            words = f"a name and its namespace have {len(key) - 1} bytes together, and may have {KEY_MAX_BYTES - 1}"
            self._refuse(client, request, "infeasible", words, plan)
        elif len(self._pending) >= WAITING_MAX:
            self._refuse(client, request, "infeasible", f"{WAITING_MAX} other names are being claimed here", plan)
        else:
            self._claim(Pending(client, request, plan, key, self._loop.time() + LOOKUP_S))

    def arguments(self, client: Client, message: m.ActorArguments) -> bool:
        """Whether this is of an actor that waits for its name; then it is kept."""
        for pending in self._pending.values():
            if pending.plan.actor == message.actor and pending.client is client:
                pending.arguments = message
                return True
        return False

    def _claim(self, pending: Pending) -> None:
        deciding, claim = self._desk.deciding, os.urandom(CLAIM_BYTES)
        self._pending[claim] = pending
        plan = pending.plan
        body = write_bearer(plan.actor, plan.class_name, plan.detached)
        deciding.do(deciding.names.claim(claim, pending.key, body, deciding.now()))

    def claimed(self, claim: bytes) -> None:
        """The name is ours: the constructor may start."""
        pending = self._pending.pop(claim, None)
        if pending is None:
            return
        node, plan = self._node, pending.plan
        self._borne[plan.actor], self._claims[claim] = (pending.key, claim), plan.actor
        if pending.client.number not in node.clients or node.job_desk.is_leaving(pending.client):
            node.store.let_go(plan.holds)
            self.over(plan.actor)
            return
        node.actor_desk.begin(pending.client.number, pending.request, plan)
        if not node.actor_desk.supervisor.bears_name(plan.actor):
            self.over(plan.actor)
        elif pending.arguments is not None:
            node.actor_desk.arguments(pending.client, pending.arguments)

    def taken(self, claim: bytes, held: bytes) -> None:
        """Another claim has it."""
        pending = self._pending.pop(claim, None)
        if pending is None:
            return
        if pending.plan.get_if_exists:
            self._begin(self._join(pending))
        elif self._desk.deciding.holder(pending.key) is None and self._loop.time() < pending.until:
            self._again(pending)  # we know already that it is over, and the name's home does not
        else:
            plan = pending.plan
            words = f"an actor named {plan.name!r} lives in namespace {plan.namespace!r} already"
            self._refuse(pending.client, pending.request, "name-taken", words, plan)

    def failed(self, claim: bytes, reason: str) -> None:
        """Nobody has decided."""
        pending = self._pending.pop(claim, None)
        if pending is not None:
            words = f"the name {pending.plan.name!r} cannot be had: {reason}"
            self._refuse(pending.client, pending.request, "infeasible", words, pending.plan)

    def _again(self, pending: Pending) -> None:
        pause_s, pending.pause_s = pending.pause_s, min(2 * pending.pause_s, PAUSE_MAX_S)
        self._loop.call_later(pause_s, self._claim_again, pending)

    def _claim_again(self, pending: Pending) -> None:
        if not self._desk.is_closing and pending.client.number in self._node.clients:
            self._claim(pending)

    async def _join(self, pending: Pending) -> None:
        """It exists: the creator gets that one."""
        plan, client = pending.plan, pending.client
        try:
            found = await self._bearer(client.number, pending.key, pending.until)
        except LatticaError as error:
            self._refuse(client, pending.request, "infeasible", f"{plan.name!r} exists: {error.message}", plan)
            return
        if found is None:
            self._again(pending)
            return
        actor, _, meta = found
        self._node.tell(client.number, m.ActorAccepted(pending.request, actor, True, meta))
        self._node.store.let_go(plan.holds)

    def _refuse(self, client: Client, request: int, kind: str, reason: str, plan: Plan) -> None:
        self._node.tell(client.number, m.ActorRefused(request, kind, reason))
        self._node.store.let_go(plan.holds)

    # -- bearing

    def knows(self, claim: bytes) -> bool:
        """Whether this claim was made since this node began."""
        return claim in self._claims or claim in self._pending

    def claim_of(self, actor: bytes) -> bytes:
        """By which an actor of ours has its name; empty if it has none."""
        return self._borne[actor][1] if actor in self._borne else b""

    def adopted(self, actor: bytes, claim: bytes, plan: Plan) -> None:
        """A named actor goes on here: watch over its name from now on."""
        key = name_key(plan.namespace, plan.name)
        self._borne[actor], self._claims[claim] = (key, claim), actor
        deciding, body = self._desk.deciding, write_bearer(actor, plan.class_name, plan.detached)
        deciding.do(deciding.names.hold(key, claim, body, deciding.now()))

    def over(self, actor: bytes) -> None:
        """An actor of ours does not bear its name any more."""
        borne = self._borne.pop(actor, None)
        if borne is not None:
            self._claims.pop(borne[1], None)
            deciding = self._desk.deciding
            deciding.do(deciding.names.release(*borne, deciding.now()))

    def gone_on(self, actor: bytes) -> None:
        """An actor goes on elsewhere, and takes its name along."""
        borne = self._borne.pop(actor, None)
        if borne is not None:
            self._claims.pop(borne[1], None)

    def lost(self, claim: bytes, by: Holder | None) -> None:
        """After a partition the name is another's; or somebody has ended what has it."""
        actor = self._claims.pop(claim, None)
        if actor is None:
            return
        self._borne.pop(actor, None)
        how = "its name is another actor's, which came first" if by is not None else "somebody has released its name"
        deciding, life = self._desk.deciding, self._desk.deciding.token(actor)[1]
        if by is not None and life is not None:
            self._desk.detached.offer_state(actor, Life(*life), how)
        known = self._node.actor_desk.supervisor.actors.get(actor)
        deciding.bury(actor)
        self._node.actor_desk.fence(actor, f"it was superseded: {how}", goes_on=False)
        if known is not None and known.plan.detached:
            self._desk.detached.let_go(known.plan)

    # -- looking up

    def lookup(self, client: Client, request: int, name: str, namespace: str) -> None:
        """A process asks for the bearer of a name."""
        if len(self._tasks) >= WAITING_MAX:
            self._node.tell(client.number, m.ActorRefused(request, "unavailable", "too many lookups are under way"))
            return
        self._begin(self._look_up(client.number, request, name, namespace))

    async def _look_up(self, client: int, request: int, name: str, namespace: str) -> None:
        key = name_key(namespace, name)
        try:
            found = None
            if len(key) <= KEY_MAX_BYTES:
                found = await self._bearer(client, key, self._loop.time() + LOOKUP_S)
        except LatticaError as error:
            self._node.tell(client, m.ActorRefused(request, "unavailable", error.message))
            return
        if found is None:
            words = no_bearer(name, namespace, self._node.state.names())
            self._node.tell(client, m.ActorRefused(request, "not-found", words))
        else:
            self._node.tell(client, m.ActorFound(request, *found))

    async def _bearer(self, client: int, key: bytes, until: float) -> tuple[bytes, str, bytes] | None:
        """(actor, class name, meta) of who has this name, and `client` holds it; None: nobody has it.

        Raises ActorUnavailableError if it cannot be reached.
        """
        deciding, pause_s, began = self._desk.deciding, PAUSE_S, self._loop.time()
        while True:
            reason = UNREACHED
            try:
                holder = deciding.holder(key) or await self._asked_home(key)
                bearer = read_bearer(holder.body) if holder is not None else None
                if holder is None or bearer is None:
                    return None
                owner = deciding.owner(holder, bearer)
                found = await self._hold(client, owner, bearer)
                if not isinstance(found, str):
                    return found
                reason = found
            except (PeerUnreachableError, RemoteProtocolError) as error:
                log.info("a name's bearer: %s", error.message)
            now = self._loop.time()
            cut_off = deciding.is_cut_off() and now - began > ISLAND_S
            if now >= until or cut_off:
                island = ", and this node is on a smaller side of its mesh" if cut_off else ""
                raise ActorUnavailableError(f"{reason}{island}", reason=f"{reason}{island}")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    async def _asked_home(self, key: bytes) -> Holder | None:
        """Our table has no such name: its home, where it was claimed, may have one that is on its way to us."""
        deciding = self._desk.deciding
        home = deciding.names.home(key)
        if home is None or home == deciding.me:
            return None
        said = await self._ask(home, lambda number: far.WhoHas(number, key))
        if said.row:
            deciding.take(home, said.row)
        return deciding.holder(key)

    async def _hold(self, client: int, owner: PeerId, bearer: Bearer) -> tuple[bytes, str, bytes] | str:
        """A hold on it for `client`; else why not."""
        node, actor = self._node, bearer.actor
        if owner == self._desk.me:
            plan = node.actor_desk.supervisor.living(actor)
            if plan is None:
                return "it has just ended, or is being started again"
            node.store.give(actor, client)
            return actor, plan.class_name, plan.meta
        said = await self._ask(owner, lambda number: far.HoldActor(number, actor), actor)
        if said.reason:
            return str(said.reason)
        neighbour = self._desk.neighbour(owner)
        effects, keep = node.store.ledger.borrow(client, actor, neighbour.client.number, value=True)
        node.store.perform(effects)
        if not keep:
            neighbour.link.send(far.Returned(actor))
        return actor, said.class_name, said.meta

    def hold(self, neighbour: Neighbour, message: far.HoldActor) -> None:
        """One of their processes has found it by its name."""
        plan = self._node.actor_desk.supervisor.living(message.actor)
        if plan is None or not plan.name:
            answer = far.ActorHeld(message.number, reason="it has just ended, or is being started again")
        else:
            self._node.store.give(message.actor, neighbour.client.number)
            answer = far.ActorHeld(message.number, plan.class_name, plan.meta)
        neighbour.link.send(answer)

    # -- questions to other nodes

    async def _ask(self, peer: PeerId, question: Any, actor: bytes = b"") -> Any:
        """Raises PeerUnreachableError. actor: what the answer holds for us."""
        number = next(self._numbers)
        future: asyncio.Future[Any] = self._loop.create_future()
        self._questions[number] = peer, future, actor
        self._desk.neighbour(peer).link.send(question(number))
        try:
            return await asyncio.wait_for(future, ANSWER_S)
        except TimeoutError as error:
            raise PeerUnreachableError(f"node {peer_text(peer)[:8]} did not answer") from error

    def answered(self, neighbour: Neighbour, message: far.NameRow | far.ActorHeld) -> None:
        """What a node says that was asked."""
        peer, future, actor = self._questions.get(message.number, (None, None, b""))
        if future is None or peer != neighbour.peer:
            return
        del self._questions[message.number]
        if not future.done():
            future.set_result(message)
        elif isinstance(message, far.ActorHeld) and not message.reason:
            neighbour.link.send(far.Returned(actor))  # nobody waits for it any more

    def parted(self, neighbour: Neighbour, how: str) -> None:
        """A node is gone, and with it the answers that it owed."""
        for number, (peer, future, _) in list(self._questions.items()):
            if peer == neighbour.peer:
                del self._questions[number]
                if not future.done():
                    future.set_exception(PeerUnreachableError(how))

    def _begin(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
