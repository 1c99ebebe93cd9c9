"""Objects that three machines lend each other: nothing held is freed, and all is freed at the end, whoever dies."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from lattica.codec import messages as m
from lattica.node.far_lending import LEASE_S
from lattica.testing.far_objects import DELAY_S, NO_PATH_S, PAST_S, SPAN_BYTES, Process, World
from lattica.testing.loop import run_virtually

SHARES = 8
SEEDS = 480 if os.environ.get("LATTICA_LONG_SIM") else 96  # CI plays the many (.ci/run)


async def live(seed: int, deaths: int) -> tuple[int, int]:
    world = World(seed, machines=2 + seed % 2)
    await world.run(steps=150, deaths=deaths)
    return world.reads, world.losses


@pytest.mark.parametrize("share", range(SHARES))
def test_what_is_held_is_read_and_what_nobody_holds_is_freed(share: int) -> None:
    reads = sum(run_virtually(live(seed, deaths=0))[0] for seed in range(share, SEEDS, SHARES))
    assert reads > SEEDS


@pytest.mark.parametrize("share", range(SHARES))
def test_a_machine_that_dies_takes_only_what_lay_there_alone(share: int) -> None:
    told = [run_virtually(live(seed, deaths=1)) for seed in range(share, SEEDS, SHARES)]
    assert sum(reads for reads, _ in told) > SEEDS / 2


@pytest.mark.parametrize("share", range(SHARES))
def test_machines_without_a_path_to_each_other_read_what_a_third_one_brings(share: int) -> None:
    async def live(seed: int) -> int:
        world = World(seed, machines=4, cut=[(0, 1), (2, 3)][: 1 + seed % 2])
        await world.run(steps=150, deaths=seed % 3 == 2)
        return world.reads

    assert sum(run_virtually(live(seed)) for seed in range(share, SEEDS, SHARES)) > SEEDS / 2


@pytest.mark.parametrize("share", range(SHARES))
def test_machines_that_are_silent_for_a_while_leave_nothing_behind(share: int) -> None:
    """Each pair lends again what it had lent, and all is freed at the end."""

    async def live(seed: int) -> int:
        world = World(seed, machines=2 + seed % 2)
        await world.run(steps=150, deaths=0, silences=1 + seed % 3)
        return world.reads

    assert sum(run_virtually(live(seed)) for seed in range(share, SEEDS // 4, SHARES)) > SEEDS / 8


# -- what is lent on


SEEDS_OF_STORIES = 20
Story = Callable[[World, Process, Process, Process, bytes], Awaitable[None]]


def tell(story: Story, machines: int = 3, met: bool = True, cut: list[tuple[int, int]] | None = None) -> None:
    """What b made is lent to a, and by a to c, who hold it; with several delays. b keeps nothing itself."""

    async def act(seed: int) -> None:
        world = World(seed, machines, processes=1, cut=cut or [], met=met)
        a, b, c, *_ = world.processes
        object_ = b.put()
        b.send(object_, a)
        await past()
        b.drop(object_)
        a.send(object_, c)
        await past()
        await story(world, a, b, c, object_)
        for process in world.living:
            for each in list(process.counts):
                process.drop(each)
        await past(PAST_S)
        for machine in world.machines:
            assert machine.closing or not machine.store.ledger._entries, f"seed {seed}: {machine.store.ledger!r}"
            machine.objects.holders.validate()
            assert not machine.objects.fetching.wanted and not machine.objects.searching.seeking

    for seed in range(SEEDS_OF_STORIES):
        run_virtually(act(seed))


async def past(seconds: float = 1.0) -> None:
    """Nothing is on its way any more."""
    await asyncio.sleep(seconds)


async def is_read(process: Process, object_: bytes, within_s: float = 1.0) -> None:
    before = process.machine.world.reads
    process.read(object_)
    await past(within_s)
    assert not process.asked and process.machine.world.reads == before + 1, process.machine.world.heard


def test_what_lies_further_is_read_there_and_not_brought_to_its_lender() -> None:
    async def story(world: World, a: Process, b: Process, c: Process, object_: bytes) -> None:
        await is_read(c, object_)
        assert not a.machine.store.memory, "it went through the lender's node"
        assert world.heard["Here away"] == world.heard["Here"] == world.heard["Has"] == 1

    tell(story)


def test_a_value_that_waits_for_its_place_is_sent_on_when_that_is_known() -> None:
    """c asks a, which owns the object and does not know yet that b has made it."""

    async def act(seed: int) -> None:
        world = World(seed, 3, processes=1)
        a, b, c = world.processes
        object_ = a.promise()
        a.send(object_, c)
        a.send(object_, b)
        await past()
        c.read(object_)
        await past()
        b.make(object_, a)
        await past()
        assert world.reads == 1 and not a.machine.store.memory, world.heard

    for seed in range(SEEDS_OF_STORIES):
        run_virtually(act(seed))


def test_the_lender_brings_what_the_borrower_has_no_path_to() -> None:
    async def story(world: World, a: Process, b: Process, c: Process, object_: bytes) -> None:
        await is_read(c, object_, NO_PATH_S + 1.0)
        assert a.machine.store.memory

    tell(story, cut=[(1, 2)])


def test_a_lender_that_dies_after_its_hint_takes_nothing_along() -> None:
    """Between the hint and the answer of the one it named: that drops what the dead one had borrowed, but later."""

    async def story(world: World, a: Process, b: Process, c: Process, object_: bytes) -> None:
        c.read(object_)
        while not world.heard["Here away"]:
            await asyncio.sleep(DELAY_S[0] / 4)
        world.kill(a.machine)
        await past(2.0)
        assert not c.asked and world.reads == 1, world.heard

    tell(story)


def test_what_nobody_had_read_yet_outlives_its_lender() -> None:
    async def story(world: World, a: Process, b: Process, c: Process, object_: bytes) -> None:
        world.kill(a.machine)
        await past(5.0)
        await is_read(c, object_)

    tell(story)


def test_who_has_read_it_is_named_when_the_maker_is_gone() -> None:
    async def story(world: World, a: Process, b: Process, c: Process, object_: bytes) -> None:
        await is_read(c, object_)
        world.kill(b.machine)
        await is_read(a, object_, 5.0)
        assert not world.heard["find_providers"]

    tell(story)


def test_a_holder_whom_nobody_here_knows_is_found_by_the_content() -> None:
    """c read it, and said so to a; d has it from c. Then b and c are gone: a knows d by the CID alone."""

    async def story(world: World, a: Process, b: Process, c: Process, object_: bytes) -> None:
        d = world.processes[3]
        await is_read(c, object_)
        c.send(object_, d)
        await past()
        await is_read(d, object_)
        assert d.machine.me not in a.machine.neighbours
        world.kill(b.machine)
        world.kill(c.machine)
        await is_read(a, object_, 10.0)
        assert world.heard["find_providers"]

    tell(story, machines=4, met=False)


def test_what_lay_at_the_dead_alone_is_lost_and_said_to_be() -> None:
    async def story(world: World, a: Process, b: Process, c: Process, object_: bytes) -> None:
        world.kill(b.machine)
        c.read(object_)
        await past(10.0)
        assert not c.asked and world.losses == 1

    tell(story)


def test_a_lender_with_a_wrong_word_costs_time_and_no_value() -> None:
    """It names itself, who asks, nobody that there is, and one that has never heard of it."""

    async def story(world: World, a: Process, b: Process, c: Process, object_: bytes) -> None:
        nonsense = [a.machine.me, c.machine.me, world.machines[3].me]
        serving = a.machine.objects.serving
        elsewhere = serving.elsewhere
        serving.elsewhere = lambda *_: elsewhere(*_) and nonsense  # type: ignore[method-assign]
        await is_read(c, object_, 2.0)
        assert a.machine.store.memory

    tell(story, machines=4)


# -- what is out of reach for a while


@pytest.mark.parametrize("mutual", [True, False])
@pytest.mark.parametrize("seconds", [0.5, 12.0, 45.0])
def test_what_was_borrowed_and_not_read_is_read_after_a_silence(seconds: float, mutual: bool) -> None:
    """a borrows from b. One of them stands still; each believes the other dead for a while, and lets it go."""

    async def story(world: World, a: Process, b: Process, c: Process, object_: bytes) -> None:
        if mutual or seconds < 1.0:  # else a lives on in the belief that b takes what it says
            world.silence(a.machine, [b.machine, c.machine], seconds, mutual=mutual)
        await past(seconds + 2.0)
        await is_read(a, object_, 3.0)
        assert not world.losses

    tell(story)


def test_who_waits_while_a_lender_is_believed_dead_gets_the_value_when_that_is_back() -> None:
    async def story(world: World, a: Process, b: Process, c: Process, object_: bytes) -> None:
        world.silence(b.machine, [a.machine, c.machine], 40.0)
        await past(5.0)
        a.read(object_)
        await past(30.0)
        assert a.asked and not world.losses, "it is not lost yet"
        await past(12.0)
        assert not a.asked and world.reads == 1 and not world.losses

    tell(story)


def test_who_waits_hears_that_it_is_lost_when_the_lease_has_ended() -> None:
    async def story(world: World, a: Process, b: Process, c: Process, object_: bytes) -> None:
        a.read(object_)
        world.silence(b.machine, [a.machine, c.machine], 1e6)
        await past(LEASE_S - 1.0)
        assert a.asked and not world.losses
        await past(5.0)
        assert not a.asked and world.losses == 1
        a.read(object_)
        await past(5.0)
        assert not a.asked, "nor does anybody wait for another minute"

    tell(story)


def test_who_waits_for_what_a_killed_machine_has_lent_is_told_at_once() -> None:
    """It refuses connections: it does not come back for it."""

    async def story(world: World, a: Process, b: Process, c: Process, object_: bytes) -> None:
        world.kill(b.machine)
        world.kill(c.machine)
        await past(2.0)
        a.read(object_)
        await past(5.0)
        assert not a.asked and world.losses == 1

    tell(story)


def test_who_reads_right_after_a_silence_waits_until_its_lender_hears_it_again() -> None:
    """a finds its links ended, and asks; b believes it dead for some seconds more."""

    async def story(world: World, a: Process, b: Process, c: Process, object_: bytes) -> None:
        world.silence(a.machine, [b.machine, c.machine], 5.0, mutual=False)
        await is_read(a, object_, 12.0)

    tell(story)


def test_a_lease_ends_when_its_node_does_not_come_back_for_a_minute() -> None:
    async def story(world: World, a: Process, b: Process, c: Process, object_: bytes) -> None:
        world.silence(a.machine, [b.machine, c.machine], 1e6)
        await past(50.0)
        assert b.machine.store.memory
        await past(15.0)
        assert not b.machine.store.memory

    tell(story)


def doubt(one: Process, other: Process) -> None:
    """The node of `one` cannot reach the other's, as of `Silence.faltered`."""
    neighbour = one.machine.neighbours[other.machine.me]
    neighbour.doubtful = True
    one.machine.objects.doubted(neighbour, "it cannot be reached")


async def result(seed: int, read: bool) -> tuple[World, list[Process], bytes]:
    """What b made for a, whose owner that is; c borrows it from a, and may have read it."""
    world = World(seed, 3, processes=1)
    a, b, c = world.processes
    object_ = a.promise()
    a.send(object_, b)
    await past()
    b.make(object_, a)
    b.drop(object_)
    await past()
    a.send(object_, c)
    await past()
    if read:
        await is_read(c, object_)
        assert not a.machine.store.memory
    return world, [a, b, c], object_


@pytest.mark.parametrize("seed", range(SEEDS_OF_STORIES))
def test_a_result_whose_maker_is_out_of_reach_is_had_from_who_has_read_it_and_not_made_again(seed: int) -> None:
    async def act() -> None:
        world, (a, b, _), object_ = await result(seed, read=True)
        doubt(a, b)
        await past()
        assert not world.doubts and a.machine.store.memory, "its owner would have made another value"
        world.kill(b.machine)
        await is_read(a, object_, 2.0)
        assert not world.doubts and not world.losses

    run_virtually(act())


@pytest.mark.parametrize("read", [False, True])
def test_a_result_that_nobody_else_has_is_made_again_at_once(read: bool) -> None:
    """c holds it and has not read it; or c, which has, is gone as well."""

    async def act(seed: int) -> None:
        world, (a, b, c), _ = await result(seed, read)
        if read:
            world.kill(c.machine)
            await past()
        doubt(a, b)
        await past(0.3)
        assert world.doubts == 1

    for seed in range(SEEDS_OF_STORIES):
        run_virtually(act(seed))


@pytest.mark.parametrize("read", [False, True], ids=["not read", "read"])
def test_what_two_nodes_lend_each_other_and_the_disk_of_one_has_lost_is_its_owners_to_make(read: bool) -> None:
    """b made it for a, which lends it to b again after that loss. Each waited for the other if a had not read it (world
    `execution`, long seed 256); if it had, each kept it for the other for ever (long seed 589)."""

    async def act(seed: int) -> None:
        world = World(seed, 2, processes=1)
        a, b = world.processes
        object_ = a.promise()
        a.send(object_, b)
        await past()
        b.make(object_, a)
        b.drop(object_)
        await past()
        if read:
            await is_read(a, object_)
        store = b.machine.store
        place = store.ledger.place(object_)
        assert place is not None and store.ledger.evict(object_, place[0])
        store.perform(store.ledger.spoiled(object_, "the file is gone"))
        a.send(object_, b)
        await past()
        await is_read(b, object_)  # that it cannot be made again
        a.drop(object_), b.drop(object_)
        await past()
        assert not any(machine.store.ledger._entries for machine in world.machines)

    for seed in range(SEEDS_OF_STORIES):
        run_virtually(act(seed))


@pytest.mark.parametrize("attempt", [0, 1])
def test_what_an_earlier_run_made_is_not_given_for_what_a_later_one_has(attempt: int) -> None:
    """c has read the result, and is silent when its maker dies: a has it made again, on d. c is back, and d dies. Had
    nobody made it again (attempt 0), c's copy would be the one."""

    async def act(seed: int) -> None:
        world = World(seed, 4, processes=1)
        a, b, c, d = world.processes
        object_ = a.promise()
        a.send(object_, b)
        a.send(object_, d)
        await past()
        b.make(object_, a)
        b.drop(object_)
        await past()
        a.send(object_, c)
        await past()
        await is_read(c, object_)
        world.silence(c.machine, [a.machine, b.machine, d.machine], 6.0)
        world.kill(b.machine)
        await past(2.0)
        assert world.doubts >= 1
        if attempt:
            d.make(object_, a, attempt)
        await past(6.0)
        world.kill(d.machine)
        await past(2.0)
        a.read(object_)
        await past(10.0)
        assert (world.losses, bool(a.machine.store.memory)) == ((1, True) if attempt else (0, True))
        await is_read(c, object_)

    for seed in range(SEEDS_OF_STORIES):
        run_virtually(act(seed))


def test_a_copy_that_is_found_while_its_lender_is_dying_is_taken_once() -> None:
    """The verdict on b comes between a's question and c's answer."""

    async def act(seed: int) -> None:
        world, (a, b, c), object_ = await result(seed, read=True)
        doubt(a, b)
        b.machine.closing = True
        world.deaths += 1
        a.machine.part(b.machine)
        c.machine.part(b.machine)
        await is_read(a, object_, 2.0)
        assert not world.doubts and not world.losses

    for seed in range(SEEDS_OF_STORIES):
        run_virtually(act(seed))


def test_who_gives_up_waiting_is_told_where_it_hangs() -> None:
    async def story(world: World, a: Process, b: Process, c: Process, object_: bytes) -> None:
        why = a.machine.objects.why
        assert "which lends it, has not said that it has a value" in why(object_)
        world.silence(b.machine, [a.machine, c.machine], 30.0)
        a.read(object_)
        assert "a copy is looked for: its machine is gone" in why(object_)
        await past(8.0)
        assert "its machine is gone; it is waited for" in why(object_)
        await past(30.0)
        assert not a.asked and world.reads == 1

    tell(story)


def test_room_that_comes_as_its_fetch_is_cancelled_or_later_is_given_back() -> None:
    async def story() -> None:
        machine = World(1, machines=1, processes=0).machines[0]
        grants: list[Callable[[], object]] = []

        def grant_later(client: Any, message: m.SpanRequest) -> None:
            grants.append(lambda: client.send(m.SpanGrant(message.request, machine.store.room(SPAN_BYTES), SPAN_BYTES)))

        machine.store.span = grant_later  # type: ignore[method-assign]
        one, other = (asyncio.create_task(machine.objects.reserve(SPAN_BYTES)) for _ in range(2))
        await asyncio.sleep(0)
        grants[0]()
        one.cancel()
        other.cancel()
        await asyncio.wait([one, other])
        grants[1]()
        assert one.cancelled() and other.cancelled()
        assert "0 objects, 0 of 0 MiB in 2 spans" in repr(machine.objects.room)

    run_virtually(story())
