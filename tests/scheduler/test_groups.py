"""Two phases of a placement group: no half of one stays behind, whatever is lost, late, twice or dead."""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count
from random import Random

import pytest

from lattica.errors import ConfigError
from lattica.mesh.identity import PeerId
from lattica.scheduler.bundles import Pattern
from lattica.scheduler.demand import NodeView
from lattica.scheduler.groups import ANSWER_S, ASKS_MAX, RENEW_S, Group, Ready, Stuck
from lattica.scheduler.load import Load
from lattica.scheduler.reservations import (
    KEEP_S,
    RESERVE_S,
    Abort,
    Commit,
    Committed,
    Denied,
    Effect,
    Ended,
    Expired,
    Kept,
    Reservations,
    Reserve,
    Reserved,
    Send,
    ToOwner,
)
from lattica.scheduler.resources import ResourcePool, ResourceSet

OWNER, OTHER = PeerId(b"o" * 32), PeerId(b"x" * 32)
GROUP = b"g" * 16
TWO = ResourceSet.of({"CPU": 2})


class Keeper:
    """A node with four CPUs."""

    def __init__(self, cpus: float = 4) -> None:
        self.pool = ResourcePool(ResourceSet.of({"CPU": cpus}))
        self.core = Reservations(self.pool, 100)

    @property
    def free(self) -> float:
        return self.pool.available["CPU"]

    def hear(self, message: Reserve | Commit | Abort, now: float, sender: PeerId = OWNER) -> list[Effect]:
        effects = self.core.receive(sender, message, now)
        self.core.validate()
        return effects

    def reserve(self, now: float, attempt: int = 1) -> int:
        (send,) = self.hear(Reserve(GROUP, attempt, ((0, TWO),)), now)
        assert isinstance(send, Send) and isinstance(send.message, Reserved)
        return send.message.token


# ---- the node ---------------------------------------------------------------------------------------------------


def test_a_reservation_holds_its_amounts_and_ends_by_itself() -> None:
    keeper = Keeper()
    keeper.reserve(0.0)
    assert keeper.free == 2 and keeper.core.next_deadline() == RESERVE_S
    assert keeper.core.tick(RESERVE_S) == [] and keeper.free == 4 and keeper.core.next_deadline() is None


def test_a_commit_after_the_expiry_is_refused_though_nobody_has_taken_the_amounts_and_no_timer_rang() -> None:
    keeper = Keeper()
    token = keeper.reserve(0.0)
    assert keeper.hear(Commit(GROUP, 1, token), RESERVE_S) == [Send(OWNER, Expired(GROUP, 1))]
    assert keeper.free == 4


def test_a_commit_in_time_keeps_the_bundles_and_one_that_comes_twice_changes_nothing() -> None:
    keeper = Keeper()
    token = keeper.reserve(0.0)
    kept, send = keeper.hear(Commit(GROUP, 1, token), 9.0)
    assert isinstance(kept, Kept) and kept.bundles[0][1].resources == TWO and send == Send(OWNER, Committed(GROUP, 1))
    assert keeper.hear(Commit(GROUP, 1, token), 10.0) == [Send(OWNER, Committed(GROUP, 1))]
    assert keeper.core.next_deadline() == 10.0 + KEEP_S  # renewed


@pytest.mark.parametrize("sender, token_off", [(OWNER, 1), (OTHER, 0)])
def test_only_the_owner_with_the_token_commits(sender: PeerId, token_off: int) -> None:
    keeper = Keeper()
    token = keeper.reserve(0.0)
    assert keeper.hear(Commit(GROUP, 1, token + token_off), 1.0, sender) == [Send(sender, Expired(GROUP, 1))]


def test_another_peer_cannot_abort_what_is_not_its_own() -> None:
    keeper = Keeper()
    keeper.reserve(0.0)
    keeper.hear(Abort(GROUP, 1), 1.0, OTHER)
    assert keeper.free == 2


def test_a_node_that_started_again_does_not_know_the_tokens_of_its_earlier_life() -> None:
    token = Keeper().reserve(0.0)
    again = Keeper()
    again.core = Reservations(again.pool, 200)
    assert again.reserve(1.0) != token
    assert again.hear(Commit(GROUP, 1, token), 2.0) == [Send(OWNER, Expired(GROUP, 1))]


def test_all_bundles_of_an_attempt_fit_or_none_is_held() -> None:
    keeper = Keeper()
    (send,) = keeper.hear(Reserve(GROUP, 1, ((0, TWO), (1, TWO), (2, TWO))), 0.0)
    assert isinstance(send, Send) and isinstance(send.message, Denied) and keeper.free == 4
    assert send.message.reason == "bundle 2 does not fit: <ResourcePool: 4 of 4 CPU free>"


def test_a_reserve_that_comes_twice_gets_one_token_and_one_that_comes_after_its_abort_gets_nothing() -> None:
    keeper = Keeper()
    assert keeper.reserve(0.0) == keeper.reserve(0.5) and keeper.free == 2
    assert keeper.hear(Abort(GROUP, 1), 1.0) == [] and keeper.free == 4
    (send,) = keeper.hear(Reserve(GROUP, 1, ((0, TWO),)), 2.0)
    assert isinstance(send, Send) and isinstance(send.message, Denied) and keeper.free == 4


def test_what_runs_in_a_bundle_ends_with_it_whether_removed_silent_or_orphaned() -> None:
    for end in ("abort", "silence", "owner"):
        keeper = Keeper()
        keeper.hear(Commit(GROUP, 1, keeper.reserve(0.0)), 0.0)
        match end:
            case "abort":
                effects = keeper.hear(Abort(GROUP, 1), 1.0)
            case "silence":
                effects = keeper.core.tick(KEEP_S)
            case _:
                effects = keeper.core.owner_gone(OWNER, 1.0)
        assert effects == [Ended(OWNER, GROUP, (0,))] and keeper.free == 4, end


# ---- the owner --------------------------------------------------------------------------------------------------


def test_a_bundle_that_is_committed_anew_is_one_and_does_not_end_with_the_attempt_that_had_it_before() -> None:
    """Its owner took this node for dead, forgot what it keeps, and has placed the bundle here once more."""
    keeper = Keeper()
    keeper.hear(Commit(GROUP, 1, keeper.reserve(0.0, 1)), 0.0)
    first, kept, _ = keeper.hear(Commit(GROUP, 2, keeper.reserve(30.0, 2)), 30.0)
    assert first == Ended(OWNER, GROUP, (0,)) and isinstance(kept, Kept) and keeper.free == 2
    assert keeper.core.tick(KEEP_S) == [] and keeper.free == 2
    assert keeper.hear(Commit(GROUP, 1, 101), 31.0) == [Send(OWNER, Expired(GROUP, 1))]


class Mesh:
    """Owners and keepers; messages take up to 0.1 s, overtake each other, and are lost or doubled at will."""

    def __init__(self, seed: int, nodes: int, loss: float = 0.0) -> None:
        self.rng, self.now, self.loss = Random(seed), 0.0, loss
        self.keepers = {PeerId(bytes([n + 1]) * 32): Keeper() for n in range(nodes)}
        self.view: dict[PeerId, NodeView] = {}
        self.groups: dict[PeerId, Group] = {}
        self.dead: set[PeerId] = set()
        self.log: list[object] = []
        self._heap: list[tuple[float, int, PeerId, PeerId, object]] = []
        self._order = count()
        self._see()

    def add(self, owner: PeerId, bundles: int, pattern: Pattern) -> Group:
        group = self.groups[owner] = Group(GROUP, [TWO] * bundles, pattern, self.view, self.rng)
        self._perform(owner, group.create(self.now))
        return group

    def kill(self, peer: PeerId) -> None:
        self.dead.add(peer)
        self._see()
        for owner, group in self.groups.items():
            self._perform(owner, group.node_gone(peer, self.now))

    def run(self, until: float) -> None:
        while True:
            dues = [(core.next_deadline(), name) for name, core in self._cores()]
            due = min((due for due, _ in dues if due is not None), default=float("inf"))
            mail = self._heap[0][0] if self._heap else float("inf")
            self.now = max(min(due, mail, until), self.now)
            if min(due, mail) > until:
                return
            if mail <= due:
                _, _, sender, to, message = heappop(self._heap)
                for name, core in self._cores():
                    if name == to:
                        self._perform(to, core.receive(sender, message, self.now))  # type: ignore[arg-type]
            else:
                for name, core in self._cores():
                    if (when := core.next_deadline()) is not None and when <= self.now:
                        self._perform(name, core.tick(self.now))
            for _, core in self._cores():
                core.validate()
            self._see()

    def _cores(self) -> list[tuple[PeerId, Group | Reservations]]:
        living = [(peer, keeper.core) for peer, keeper in self.keepers.items() if peer not in self.dead]
        return [*living, *self.groups.items()]

    def _see(self) -> None:
        for peer, keeper in self.keepers.items():
            taken = {"CPU": int((4 - keeper.free) * 10_000)}
            self.view[peer] = NodeView(peer, keeper.pool.total, load=Load(taken), living=peer not in self.dead)

    def _perform(self, name: PeerId, effects: list[Effect] | list[object]) -> None:
        for effect in effects:
            self.log.append(effect)
            if isinstance(effect, Send):
                for _ in range(1 + (self.rng.random() < self.loss / 4)):
                    if self.rng.random() >= self.loss:
                        due = self.now + self.rng.uniform(0, 0.1)
                        heappush(self._heap, (due, next(self._order), name, effect.to, effect.message))


def test_nothing_is_committed_before_everything_is_reserved() -> None:
    mesh = Mesh(1, 3)
    group = mesh.add(OWNER, 3, Pattern.STRICT_SPREAD)
    mesh.run(1.0)
    kinds = [type(e.message) for e in mesh.log if isinstance(e, Send) and isinstance(e.message, Reserved | Commit)]
    assert kinds == [Reserved] * 3 + [Commit] * 3
    assert group.ready and mesh.log[-1] == Ready(group.placed) and len(set(group.placed.values())) == 3


def test_two_groups_that_want_more_than_there_is_do_not_keep_halves_from_each_other() -> None:
    """Both see four free nodes and want three slots of four CPUs each: whoever is later lets go, and waits."""
    for seed in range(20):
        mesh = Mesh(seed, 3)
        first, second = mesh.add(OWNER, 4, Pattern.PACK), mesh.add(OTHER, 4, Pattern.SPREAD)
        mesh.run(30.0)
        assert first.ready != second.ready, f"seed {seed}: {first}, {second}"
        winner, loser = (OWNER, second) if first.ready else (OTHER, first)
        mesh._perform(winner, mesh.groups[winner].remove(mesh.now))
        mesh.run(mesh.now + 15.0)
        assert loser.ready, f"seed {seed}: {loser}"


def test_bundles_of_a_dead_node_are_placed_again_and_the_others_stay() -> None:
    mesh = Mesh(2, 4)
    group = mesh.add(OWNER, 3, Pattern.STRICT_SPREAD)
    mesh.run(1.0)
    before = group.placed
    mesh.kill(before[1])
    mesh.run(5.0)
    assert group.ready and group.placed[1] != before[1]
    assert (group.placed[0], group.placed[2]) == (before[0], before[2])


def test_a_strict_pack_moves_as_one_when_its_node_dies() -> None:
    mesh = Mesh(3, 2)
    group = mesh.add(OWNER, 2, Pattern.STRICT_PACK)
    mesh.run(1.0)
    mesh.kill(group.placed[0])
    mesh.run(5.0)
    assert group.ready and len(set(group.placed.values())) == 1 and group.placed[0] not in mesh.dead


def test_a_node_that_never_answers_is_given_up_and_the_group_says_why() -> None:
    mesh = Mesh(4, 1)
    mesh.loss = 1.0
    group = mesh.add(OWNER, 1, Pattern.PACK)
    mesh.run(ANSWER_S * ASKS_MAX + 0.01)
    assert Stuck("a node does not answer", False) in mesh.log
    mesh.loss = 0.0
    mesh.run(30.0)
    assert group.ready


def test_a_committed_group_is_renewed_for_as_long_as_its_owner_lives_and_no_longer() -> None:
    mesh = Mesh(5, 1)
    mesh.add(OWNER, 1, Pattern.PACK)
    mesh.run(10 * KEEP_S)
    assert mesh.groups[OWNER].ready and sum(keeper.free for keeper in mesh.keepers.values()) == 2
    del mesh.groups[OWNER]
    mesh.run(mesh.now + KEEP_S + RENEW_S)
    assert sum(keeper.free for keeper in mesh.keepers.values()) == 4


@pytest.mark.parametrize("seed", range(40))
def test_lost_late_and_double_messages_and_deaths_leave_whole_groups_and_nothing_else(seed: int) -> None:
    mesh = Mesh(seed, 6, loss=0.3)
    patterns = mesh.rng.sample(list(Pattern), 2)
    groups = [mesh.add(owner, 2, pattern) for owner, pattern in zip((OWNER, OTHER), patterns)]
    for _ in range(2):
        mesh.run(mesh.now + mesh.rng.uniform(0, 20))
        mesh.kill(mesh.rng.choice([peer for peer in mesh.keepers if peer not in mesh.dead]))
    mesh.loss = 0.0
    mesh.run(mesh.now + 2 * KEEP_S)
    assert all(group.ready for group in groups), groups
    free = sum(keeper.free for peer, keeper in mesh.keepers.items() if peer not in mesh.dead)
    assert free == 4 * 4 - 2 * 4, "something is held by nobody"
    for owner, group in zip((OWNER, OTHER), groups):
        mesh._perform(owner, group.remove(mesh.now))
    mesh.run(mesh.now + 1)
    assert sum(keeper.free for peer, keeper in mesh.keepers.items() if peer not in mesh.dead) == 16


def test_a_group_asks_for_something() -> None:
    for wrong in ([], [ResourceSet({})]):
        with pytest.raises(ConfigError):
            Group(GROUP, wrong, Pattern.PACK, {}, Random(1))


def test_an_answer_to_an_attempt_that_was_given_up_is_aborted() -> None:
    group = Group(GROUP, [TWO], Pattern.PACK, {}, Random(1))
    late: ToOwner = Reserved(GROUP, 7, 1)
    assert group.receive(OTHER, late, 0.0) == [Send(OTHER, Abort(GROUP, 7))]
    assert group.receive(OTHER, Denied(GROUP, 7, ""), 0.0) == []


def sent(effects: list[object]) -> list[tuple[PeerId, object]]:
    return [(effect.to, effect.message) for effect in effects if isinstance(effect, Send)]


def test_one_refusal_lets_go_of_what_others_reserved_at_once() -> None:
    """Three nodes are asked; the first holds its bundle already, the second refuses, the third has not answered."""
    view = Mesh(1, 3).view
    group = Group(GROUP, [TWO] * 3, Pattern.STRICT_SPREAD, view, Random(1))
    (one, reserve), (two, other), (three, last) = sent(group.create(0.0))  # type: ignore[arg-type]
    assert isinstance(reserve, Reserve) and isinstance(other, Reserve) and isinstance(last, Reserve)
    assert group.receive(one, Reserved(GROUP, reserve.attempt, 5), 0.1) == []
    effects = group.receive(two, Denied(GROUP, other.attempt, "full"), 0.2)
    assert sent(effects) == [(one, Abort(GROUP, reserve.attempt)), (three, Abort(GROUP, last.attempt))]  # type: ignore[arg-type]
    assert effects[-1] == Stuck("full", False)


def test_a_busy_node_is_asked_all_the_same_and_another_when_it_has_refused() -> None:
    """Tasks without end keep both nodes full, as far as is known: whoever is asked makes room."""
    view = Mesh(1, 2).view
    for peer, node in list(view.items()):
        view[peer] = NodeView(peer, node.totals, load=Load({"CPU": 40_000}))
    group, now, asked = Group(GROUP, [TWO], Pattern.PACK, view, Random(1)), 0.0, []
    effects = group.create(now)
    for _ in range(12):
        for node, reserve in sent(effects):  # type: ignore[arg-type]
            assert isinstance(reserve, Reserve)
            asked.append((node, now))
            group.receive(node, Denied(GROUP, reserve.attempt, "full"), now)
        due = group.next_deadline()
        assert due is not None
        now = due
        effects = group.tick(now)
    assert {node for node, _ in asked} == set(view)
    assert len(asked) >= 8, "now and then all have refused, and it begins anew"
    assert now < 12 * 3


def test_each_pause_before_another_plan_is_longer_up_to_a_limit() -> None:
    group, now, pauses = Group(GROUP, [TWO], Pattern.PACK, Mesh(1, 1).view, Random(1)), 0.0, []
    effects = group.create(now)
    for _ in range(12):
        ((node, reserve),) = sent(effects)  # type: ignore[arg-type]
        assert isinstance(reserve, Reserve)
        group.receive(node, Denied(GROUP, reserve.attempt, "full"), now)
        due = group.next_deadline()
        assert due is not None
        pauses.append(due - now)
        now = due
        effects = group.tick(now)
    assert all(
        0.5 * wanted <= pause <= 1.5 * wanted for pause, wanted in zip(pauses, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5])
    )
