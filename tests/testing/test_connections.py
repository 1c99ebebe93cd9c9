"""Connections carry frames in order until they break, and each end learns of that as over TCP."""

from __future__ import annotations

import pytest

from lattica.errors import RemoteProtocolError
from lattica.mesh import wire
from lattica.testing import FOREVER, Link
from lattica.testing.connections import PATIENCE_S, mesh_frames
from tests.testing.talker import Talker, connected, heard, number, told, when, world_of

RESET = [("connection reset",)]
CLOSED = [("the other side closed it",)]
TIMED_OUT = [("connection timed out",)]


# -- carrying


def test_frames_arrive_in_order_and_those_that_come_together_in_one_call() -> None:
    world = connected(link=Link(delay_s=(0.01, 0.5)))
    for n in range(100):
        world.after(n / 100, world.tell, "ann", "write", n)
    world.run(until=5)
    assert heard(world) == list(range(100))
    assert 1 < len(told(world, "bob", "received")) < 100


def test_both_directions_are_independent() -> None:
    world = connected()
    world.tell("ann", "write", 1)
    world.tell("bob", "write", 2)
    world.run(until=2)
    assert heard(world, "bob") == [1] and heard(world, "ann") == [2]


def test_loss_on_the_link_shows_as_delay_only() -> None:
    world = connected()
    world.link = Link(delay_s=(0.001, 0.001), loss=0.3)
    world.run(until=5)
    for n in range(200):
        world.after(n / 100, world.tell, "ann", "write", n)
    world.run(until=20)
    assert heard(world) == list(range(200))
    assert max(when(world, "bob", "received")) > 7


def test_a_narrow_link_carries_so_many_bytes_a_second_over_all_connections_together() -> None:
    world = connected(link=Link(delay_s=(0.001, 0.001), bytes_per_s=1000))
    world.tell("ann", "write", bytes(500), (bytes(200), memoryview(bytes(300))), bytes(1000))
    world.run(until=9)
    at = when(world, "bob", "received")
    assert at == [pytest.approx(1.5, abs=0.01), pytest.approx(2, abs=0.01), pytest.approx(3, abs=0.01)]


def test_what_was_written_before_hanging_up_arrives_and_then_the_end() -> None:
    world = connected()
    world.tell("ann", "write", 1, 2, 3)
    world.tell("ann", "hang_up")
    world.run(until=2)
    assert heard(world) == [1, 2, 3] and told(world, "bob", "closed") == CLOSED
    assert not told(world, "ann", "closed"), "who hangs up hears nothing more"
    assert not world.connections.of("ann") and not world.connections.of("bob")


def test_writing_over_a_connection_that_is_no_more_is_lost_without_a_word() -> None:
    world = connected()
    world.tell("ann", "hang_up")
    world.tell("ann", "write", 1)
    world.tell("ann", "hang_up")
    world.run(until=2)
    assert heard(world) == [] and world.tally["frames lost"] == 1


def test_a_core_that_uses_the_connection_of_another_is_found() -> None:
    world = connected()
    world.core("bob").numbers = world.core("ann").numbers
    with pytest.raises(AssertionError, match="bob transmits over connection 1 of ann"):
        world.tell("bob", "write", 1)


# -- breaking


def test_a_severed_connection_loses_everything_from_some_frame_on_and_tells_both_ends() -> None:
    kept = set()
    for seed in range(40):
        world = connected(seed=seed)
        world.tell("ann", "write", *range(10))
        world.connections.sever(number(world))
        world.tell("ann", "write", "too late")
        world.run(until=3)
        got = heard(world)
        assert got == list(range(len(got)))
        kept.add(len(got))
        assert told(world, "ann", "closed") == told(world, "bob", "closed") == RESET
    assert kept == set(range(11)), "from nothing to all"


def test_the_ends_of_a_severed_connection_hear_so_each_in_its_own_time() -> None:
    first = set()
    for seed in range(20):
        world = connected(seed=seed)
        world.connections.sever(number(world))
        world.run(until=3)
        first.add(when(world, "ann", "closed") < when(world, "bob", "closed"))
    assert first == {True, False}


def test_a_connection_is_severed_even_where_nothing_gets_through() -> None:
    world = connected()
    world.cut("ann", "bob")
    world.clog("bob", "ann", FOREVER)
    world.connections.sever(number(world))
    world.run(until=3)
    assert told(world, "ann", "closed") == told(world, "bob", "closed") == RESET


def test_a_half_open_end_hears_of_it_when_it_writes() -> None:
    world = connected()
    world.connections.half_open(number(world, "ann"))
    world.run(until=1000)
    assert told(world, "bob", "closed") == TIMED_OUT and not told(world, "ann", "closed")
    world.tell("ann", "write", 1)
    world.run(until=1001)
    assert told(world, "ann", "closed") == RESET and heard(world) == []


def test_a_silently_half_open_end_hears_nothing_until_it_has_written_in_vain_for_long() -> None:
    world = connected()
    world.connections.half_open(number(world, "ann"), silent=True)
    world.run(until=1000)
    world.tell("ann", "write", 1)
    world.run(until=1000 + PATIENCE_S - 1)
    assert not told(world, "ann", "closed")
    world.run(until=1000 + PATIENCE_S + 1)
    assert told(world, "ann", "closed") == TIMED_OUT


def test_whoever_never_loses_patience_hears_nothing_for_ever() -> None:
    world = connected()
    world.connections.patience_s = FOREVER
    world.connections.swallow(number(world))
    world.tell("ann", "write", 1)
    world.run(until=1e6)
    assert not told(world, "ann", "closed") and heard(world) == []


def test_a_swallowed_connection_times_out_at_the_end_that_writes() -> None:
    world = connected()
    world.connections.swallow(number(world))
    world.tell("ann", "write", 1)
    world.run(until=100)
    assert told(world, "ann", "closed") == TIMED_OUT and not told(world, "bob", "closed") and heard(world) == []


def test_a_clogged_connection_stalls_one_way_and_then_delivers_all_together() -> None:
    world = connected()
    world.connections.clog(number(world, "bob"), 60)
    world.run(until=2)
    for n in range(10):
        world.after(n, world.tell, "ann", "write", n)
    world.tell("bob", "write", "free")
    world.run(until=60.9)
    assert heard(world) == [] and heard(world, "ann") == ["free"]
    world.run(until=70)
    assert told(world, "bob", "received") == [tuple(range(10))] and not told(world, "ann", "closed")


def test_a_clogged_direction_clogs_its_connections() -> None:
    world = connected()
    world.clog("ann", "bob", 5)
    world.tell("ann", "write", 1, 2)
    world.run(until=5.9)
    assert heard(world) == []
    world.run(until=7)
    assert heard(world) == [1, 2]


def test_a_clog_for_ever_ends_when_the_world_heals_and_frames_flow_again() -> None:
    world = connected()
    world.clog("ann", "bob", FOREVER)
    world.connections.clog(number(world, "ann"), FOREVER)
    world.tell("ann", "write", 1)
    world.tell("bob", "write", 2)
    world.run(until=500)
    assert heard(world) == heard(world, "ann") == []
    world.heal()
    world.run(until=501)
    world.tell("ann", "write", 3)
    world.tell("bob", "write", 4)
    world.run(until=502)
    assert heard(world) == [1, 3] and heard(world, "ann") == [2, 4]


# -- networks and machines


def test_a_short_cut_only_delays() -> None:
    world = connected()
    world.cut("ann", "bob")
    world.tell("ann", "write", 1)
    world.run(until=10)
    world.tell("ann", "write", 2)
    world.mend("ann", "bob")
    world.run(until=11)
    assert heard(world) == [1, 2] and not told(world, "ann", "closed")


def test_a_long_cut_ends_the_connection_for_who_writes_and_the_other_is_told_when_it_writes() -> None:
    world = connected()
    world.cut("ann", "bob")
    world.tell("ann", "write", 1)
    world.run(until=100)
    assert told(world, "ann", "closed") == TIMED_OUT and not told(world, "bob", "closed")
    world.heal()
    world.run(until=200)
    assert not told(world, "bob", "closed")
    world.tell("bob", "write", 2)
    world.run(until=201)
    assert told(world, "bob", "closed") == RESET and heard(world, "ann") == []


def test_a_cut_of_the_way_back_delivers_and_still_ends_the_connection_for_the_writer() -> None:
    world = connected()
    world.cut("bob", "ann", both=False)
    world.tell("ann", "write", 1)
    world.run(until=100)
    assert heard(world) == [1]
    assert told(world, "ann", "closed") == TIMED_OUT


def test_a_cut_of_the_way_back_that_is_mended_in_time_harms_nobody() -> None:
    world = connected()
    world.cut("bob", "ann", both=False)
    world.tell("ann", "write", 1)
    world.run(until=10)
    world.heal()
    world.run(until=100)
    assert not told(world, "ann", "closed")


def test_a_crashed_process_closes_its_connections_after_what_it_had_written() -> None:
    world = connected()
    world.tell("ann", "write", 1, 2)
    world.crash("ann")
    world.run(until=2)
    assert heard(world) == [1, 2] and told(world, "bob", "closed") == CLOSED


def test_a_machine_without_power_closes_nothing() -> None:
    world = connected()
    world.crash("ann", power=True)
    world.run(until=500)
    assert not told(world, "bob", "closed")
    world.tell("bob", "write", 1)
    world.run(until=530)
    assert told(world, "bob", "closed") == TIMED_OUT


def test_a_machine_that_is_back_answers_for_the_connections_it_has_forgotten() -> None:
    world = connected()
    world.crash("ann", power=True)
    world.tell("bob", "write", 1)
    world.run(until=5)
    world.restart("ann")
    world.run(until=6)
    assert told(world, "bob", "closed") == RESET and heard(world, "ann") == []


def test_a_restarted_process_hears_nothing_over_its_predecessors_connections() -> None:
    world = connected()
    world.tell("bob", "write", 1)
    world.crash("ann")
    world.restart("ann")
    world.tell("bob", "write", 2)
    world.run(until=3)
    assert heard(world, "ann") == [] and len(told(world, "bob", "closed")) == 1


def test_a_paused_process_finds_its_frames_when_it_goes_on() -> None:
    world = connected()
    world.pause("bob")
    world.tell("ann", "write", 1)
    world.run(until=100)
    assert heard(world) == [] and not told(world, "ann", "closed"), "its kernel acknowledges"
    world.resume("bob")
    assert heard(world) == [1]


def test_a_suspended_host_wakes_to_connections_that_others_have_given_up() -> None:
    world = connected()
    world.suspend("bob")
    world.tell("ann", "write", 1)
    world.run(until=100)
    assert told(world, "ann", "closed") == TIMED_OUT and heard(world) == []
    world.wake("bob")
    world.run(until=101)
    assert not told(world, "bob", "closed")
    world.tell("bob", "write", 2)
    world.run(until=102)
    assert told(world, "bob", "closed") == RESET


def test_a_suspended_host_that_wakes_in_time_misses_nothing() -> None:
    world = connected()
    world.suspend("bob")
    world.tell("ann", "write", 1)
    world.run(until=10)
    world.wake("bob")
    world.run(until=11)
    assert heard(world) == [1] and not told(world, "ann", "closed")


# -- bytes


def test_frames_of_the_wire_are_decoded_on_their_way() -> None:
    world = connected()
    world.connections.decode = mesh_frames()
    world.tell("ann", "write", wire.encode(wire.Ping(7)), (wire.data_head(3, 1, 0), b"abc"))
    world.run(until=2)
    ping, data = heard(world)
    assert ping == wire.Ping(7) and (data.seq, bytes(data.payload)) == (1, b"abc")


def test_a_frame_that_cannot_be_decoded_ends_the_connection_after_those_before_it() -> None:
    world = connected()
    world.connections.decode = mesh_frames()
    world.tell("ann", "write", wire.encode(wire.Ping(7)), (b"\x01\x00\x00\x00\xff",), wire.encode(wire.Ping(8)))
    world.run(until=2)
    assert heard(world) == [wire.Ping(7)]
    assert "kind 255" in told(world, "bob", "closed")[0][0] and told(world, "ann", "closed")


def test_a_core_that_wants_to_know_who_broke_a_rule_is_told_so_instead() -> None:
    class Judge(Talker):
        def broken(self, connection: int, reason: str, now: float) -> list[object]:
            return [*self.closed(connection, f"broken: {reason}", now), *self.hang_up(now)]

    world = world_of(core=Judge)
    world.connections.decode = mesh_frames()
    world.tell("ann", "dial", "bob:1")
    world.run(until=1)
    world.tell("ann", "write", (b"junk!",))
    world.run(until=2)
    assert told(world, "bob", "closed")[0][0].startswith("broken: ") and told(world, "ann", "closed") == CLOSED


def test_the_decoder_goes_on_after_a_frame_that_it_refused() -> None:
    decode = mesh_frames()
    for bad in (
        (b"\xff\xff\xff\xff\x01",),
        (b"\x01",),
        (b"",),
        (*wire.encode(wire.Ping(1)), *wire.encode(wire.Ping(2))),
    ):
        with pytest.raises(RemoteProtocolError):
            decode(bad)
        assert decode(wire.encode(wire.Ping(1))) == wire.Ping(1)


# -- all together


@pytest.mark.parametrize("seed", range(30))
def test_whatever_breaks_frames_come_in_order_without_gaps_and_nothing_comes_after_the_end(seed: int) -> None:
    world = world_of(seed=seed)
    rng, breaking = world.rng, ["sever", "half_open", "swallow", "clog", "cut", "mend", "suspend", "wake", "crash"]

    def break_something() -> None:
        numbers = world.connections.of("ann")
        match rng.choice(breaking):
            case "cut":
                world.cut("ann", "bob", both=rng.random() < 0.5)
            case "mend":
                world.mend("ann", "bob")
            case "suspend":
                world.suspend("bob")
            case "wake":
                world.wake("bob")
            case "crash" if world.is_alive("bob"):
                world.crash("bob", power=rng.random() < 0.5)
                world.after(5, world.restart, "bob")
            case "clog" if numbers:
                world.connections.clog(rng.choice(numbers), rng.uniform(0, 10))
            case "sever" | "half_open" | "swallow" as verb if numbers:
                getattr(world.connections, verb)(rng.choice(numbers))

    def write(name: str, item: int) -> None:
        core = world.core(name)
        if world.is_alive(name) and core.numbers:
            world.tell(name, "write", (core.numbers[-1], item))

    for n in range(20):
        world.after(n * 15, world.tell, "ann", "dial", "bob:1")
        world.after(rng.uniform(0, 300), break_something)
    for n in range(2000):
        world.after(n * 0.15, write, rng.choice(["ann", "bob"]), n)
    world.run(until=300)
    world.heal()
    world.run(until=400)
    for name in ("ann", "bob"):
        last: dict[int, list[int]] = {}
        for via, item in heard(world, name):
            last.setdefault(via, []).append(item)
        for items in last.values():
            assert items == sorted(set(items))
    assert repr(world.connections).endswith(" 0 stalled>") or world.connections.of("ann")
