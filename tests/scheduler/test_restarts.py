"""Who restarts a detached actor, when, and which of two lives goes on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from lattica.errors import RemoteProtocolError
from lattica.ids import ActorId
from lattica.mesh.identity import PeerId
from lattica.mesh.roles import MEMBER, Role
from lattica.scheduler.fencing import Life
from lattica.scheduler.rendezvous import Standing, order
from lattica.scheduler.restarts import (
    AGAIN_S,
    BEGIN_S,
    ENDLESS,
    LATE_S,
    PROMOTE_S,
    RANK_S,
    SETTLE_S,
    SPEC_MAX_BYTES,
    Fenced,
    Record,
    Restart,
    Restarts,
    Write,
    read_record,
    write_record,
)

P = [PeerId(bytes([number]) * 32) for number in range(6)]
ACTOR = ActorId(b"a" * 16)
HOST = P[0]
REST = order(ACTOR, P[1:])  # who restarts it, in turn
NOW = 100.0  # when its host is found dead
WALL = 1.75e9


def core_of(me: PeerId, *, island: bool = False) -> Restarts:
    core = Restarts(me, 0.0, WALL, is_island=island)
    lives(core, P, 0.0)
    return core


def lives(core: Restarts, peers: Iterable[PeerId], now: float) -> list[Any]:
    return core.members_changed([Standing(peer, MEMBER) for peer in peers], now)


def original(*, available: bool = False, left: int = ENDLESS, host: PeerId = HOST) -> Record:
    return Record(Life(1, 1 << 40), host, available, left, b"spec")


def after_a_death(me: PeerId, record: Record, *, island: bool = False) -> Restarts:
    """A peer that has found the actor's host dead at NOW."""
    core = core_of(me, island=island)
    core.record_changed(ACTOR, record, 1.0)
    lives(core, P[1:], NOW)
    return core


def live(core: Restarts, until: float) -> list[Any]:
    effects: list[Any] = []
    while (due := core.next_deadline()) is not None and due <= until:
        effects += core.tick(due)
        core.validate()
    return effects


def restarted(me: PeerId, record: Record, *, island: bool = False) -> tuple[Restarts, Record]:
    """A peer that has restarted the actor, and its new record, which the table has taken."""
    core = after_a_death(me, record, island=island)
    (effect,) = live(core, NOW + 60)
    assert isinstance(effect, Restart)
    assert core.record_changed(ACTOR, effect.record, NOW + 60) == []
    return core, effect.record


def test_the_first_in_order_restarts_it_when_things_have_settled() -> None:
    core = after_a_death(REST[0], original())
    assert live(core, NOW + SETTLE_S - 0.1) == []
    (effect,) = live(core, NOW + SETTLE_S)
    assert isinstance(effect, Restart) and effect.record.host == REST[0] and effect.record.spec == b"spec"
    assert ACTOR in core.running and core.next_deadline() is None


@pytest.mark.parametrize("place", range(5))
def test_each_in_order_waits_two_seconds_longer(place: int) -> None:
    core = after_a_death(REST[place], original())
    assert core.next_deadline() == NOW + SETTLE_S + place * RANK_S


def test_the_second_in_order_does_nothing_when_the_first_has_restarted_it() -> None:
    _, record = restarted(REST[0], original())
    core = after_a_death(REST[1], original())
    core.record_changed(ACTOR, record, NOW + SETTLE_S + 0.5)
    assert live(core, NOW + 1000) == []


def test_a_host_that_was_not_dead_after_all_keeps_its_actor() -> None:
    core = after_a_death(REST[0], original())
    lives(core, P, NOW + 1)
    assert live(core, NOW + 1000) == []


def test_an_island_restarts_nothing_and_the_whole_side_after_its_end_only_what_is_still_dead() -> None:
    core = after_a_death(REST[0], original(), island=True)
    assert live(core, NOW + 1000) == []
    core.island(False, NOW + 1000)
    assert live(core, NOW + 1000 + SETTLE_S - 0.1) == []
    assert [type(effect) for effect in live(core, NOW + 1000 + SETTLE_S)] == [Restart]


def test_epochs_and_incarnations_grow_with_each_restart() -> None:
    record = original()
    lives_had = [record.life]
    for turn in range(3):
        _, record = restarted(REST[turn], msgspec.structs.replace(record, host=HOST))
        lives_had.append(record.life)
    assert lives_had == sorted(lives_had) and [life.epoch for life in lives_had] == [1, 2, 3, 4]
    assert len({life.incarnation for life in lives_had}) == 4


def test_restarts_are_counted_and_end() -> None:
    _, record = restarted(REST[0], original(left=1))
    assert record.restarts_left == 0
    assert live(after_a_death(REST[0], original(left=0)), NOW + 1000) == []


def test_ephemeral_nodes_and_those_without_the_role_restart_nothing() -> None:
    for standing in (Standing(REST[0], MEMBER, ephemeral=True), Standing(REST[0], Role.EXECUTE)):
        core = core_of(REST[0])
        core.record_changed(ACTOR, original(), 1.0)
        core.members_changed([standing], NOW)
        assert live(core, NOW + 1000) == []


def test_a_node_that_begins_again_restarts_its_own_actors_once_it_has_heard_of_others() -> None:
    """Its process was gone for three seconds; nobody has noticed. But perhaps it was gone for a day."""
    core = core_of(HOST)
    core.record_changed(ACTOR, original(), 0.0)
    assert live(core, BEGIN_S - 0.1) == []
    (effect,) = live(core, BEGIN_S)
    assert isinstance(effect, Restart) and effect.record.life.epoch == 2


def test_an_actor_whose_process_ended_here_is_restarted_here() -> None:
    core, record = restarted(REST[0], original())
    core.ended(ACTOR, NOW + 100)
    (effect,) = live(core, NOW + 100)
    assert isinstance(effect, Restart) and effect.record.life > record.life
    core.record_changed(ACTOR, effect.record, NOW + 100)
    core.finished(ACTOR)
    assert core.record_changed(ACTOR, None, NOW + 101) == [] and live(core, NOW + 1000) == []


def test_a_restart_that_the_table_does_not_take_is_tried_again() -> None:
    core = after_a_death(REST[0], original())
    live(core, NOW + SETTLE_S)
    core.failed(ACTOR, NOW + SETTLE_S)
    assert ACTOR not in core.running and core.next_deadline() == NOW + SETTLE_S + AGAIN_S


def test_a_process_that_stood_still_restarts_nothing_before_it_has_heard_of_others() -> None:
    core = after_a_death(REST[0], original())
    late = NOW + SETTLE_S + LATE_S + 0.1
    assert core.tick(late) == []
    assert [type(effect) for effect in live(core, late + SETTLE_S)] == [Restart]


def test_of_two_that_restarted_it_at_once_one_goes_on_and_the_other_is_told() -> None:
    """Their views differed. The table keeps either row; both hosts judge by the two lives."""
    cores = [restarted(REST[0], original()), restarted(REST[1], original())]
    cores.sort(key=lambda one: one[1].standing)
    (loser, low), (winner, high) = cores
    assert low.life != high.life and low.life.epoch == high.life.epoch
    assert winner.record_changed(ACTOR, low, NOW + 70) == [Write(ACTOR, high)]
    assert loser.record_changed(ACTOR, high, NOW + 70) == [Fenced(ACTOR, low.life, high)]
    assert ACTOR in winner.running and ACTOR not in loser.running


def test_an_original_that_was_cut_off_loses_to_the_restart_of_the_larger_side() -> None:
    core, record = core_of(HOST), original()
    (begun,) = core.begin(ACTOR, b"spec", 1.0, available=False, restarts=ENDLESS)
    assert isinstance(begun, Write)
    core.record_changed(ACTOR, begun.record, 1.0)
    _, record = restarted(REST[0], begun.record)
    assert core.record_changed(ACTOR, record, NOW + 100) == [Fenced(ACTOR, begun.record.life, record)]


def test_an_available_actor_is_restarted_by_an_island_and_loses_to_the_original() -> None:
    host = core_of(HOST)
    (begun,) = host.begin(ACTOR, b"spec", 1.0, available=True, restarts=ENDLESS)
    assert isinstance(begun, Write)
    host.record_changed(ACTOR, begun.record, 1.0)
    island, minority = restarted(REST[0], begun.record, island=True)
    assert minority.life.minority and minority.life.epoch == 1
    assert host.record_changed(ACTOR, minority, NOW + 100) == [Write(ACTOR, begun.record)]
    assert island.record_changed(ACTOR, begun.record, NOW + 101) == [Fenced(ACTOR, minority.life, begun.record)]


def test_a_minority_life_loses_to_a_restart_of_the_larger_side_too() -> None:
    island, minority = restarted(REST[0], original(available=True), island=True)
    whole, record = restarted(REST[1], original(available=True))
    assert whole.record_changed(ACTOR, minority, NOW + 100) == [Write(ACTOR, record)]
    assert island.record_changed(ACTOR, record, NOW + 101) == [Fenced(ACTOR, minority.life, record)]


def test_a_minority_life_that_nobody_contradicts_becomes_a_usual_one() -> None:
    """The original did die. Its actor goes on with what the island has of it."""
    core, minority = restarted(REST[0], original(available=True), island=True)
    assert live(core, NOW + 1000) == []
    core.island(False, NOW + 1000)
    (effect,) = live(core, NOW + 1000 + PROMOTE_S)
    assert effect == Write(ACTOR, msgspec.structs.replace(minority, life=Life(2, minority.life.incarnation)))
    assert core.record_changed(ACTOR, effect.record, NOW + 1011) == [] and core.running[ACTOR] == effect.record


def test_an_actor_that_somebody_ends_is_told_so() -> None:
    core, record = restarted(REST[0], original())
    assert core.record_changed(ACTOR, None, NOW + 100) == [Fenced(ACTOR, record.life, None)]


def test_a_clock_that_is_behind_still_gives_later_incarnations() -> None:
    ahead = Record(Life(1, int((WALL + 900) * 1000) << 16), HOST, False, ENDLESS, b"")
    _, record = restarted(REST[0], ahead)
    assert record.life.incarnation > ahead.life.incarnation


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"noise",
        write_record(original(host=PeerId(b"short"))),
        write_record(msgspec.structs.replace(original(), life=Life(-1, 0))),
        write_record(msgspec.structs.replace(original(), restarts_left=-2)),
        write_record(msgspec.structs.replace(original(), spec=bytes(SPEC_MAX_BYTES + 1))),
    ],
)
def test_a_row_that_is_none_of_an_actor_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        read_record(body)


def test_a_record_has_its_golden_bytes() -> None:
    record = Record(Life(2, 7, True), P[1], True, ENDLESS, b"spec")
    golden = "95930207c3c420" + "01" * 32 + "c3ffc40473706563"
    assert write_record(record).hex() == golden and read_record(bytes.fromhex(golden)) == record
