"""Datagrams that wait at a relay: whose turn it is, and what goes when too much waits."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from lattica.mesh.relay.fair_queue import (
    CHANNEL_MAX_BYTES,
    DATAGRAM_COST_BYTES,
    LANE_QUANTUM_BYTES,
    QUANTUM_BYTES,
    FairQueue,
    Lane,
    Pair,
)


def channel(name: str, pair: Pair | None = None) -> tuple[Lane, Lane]:
    pair = pair or Pair()
    up, down = Lane(f"{name} up", pair), Lane(f"{name} down", pair)
    up.other, down.other = down, up
    return up, down


def drain(queue: FairQueue, most: int = 1 << 30) -> list[tuple[object, bytes]]:
    return [(lane.owner, datagram) for lane, datagrams in queue.take(most) for datagram in datagrams]


def test_datagrams_of_one_lane_come_out_in_the_order_in_which_they_went_in() -> None:
    queue = FairQueue()
    up, _ = channel("a")
    sent = [bytes([n]) * 100 for n in range(200)]
    for datagram in sent:
        queue.put(up, datagram)
    assert [datagram for _, datagram in drain(queue)] == sent
    assert not queue.ready and queue.bytes == 0


def test_a_pair_that_waits_behind_a_busy_one_has_its_turn_after_one_quantum() -> None:
    queue = FairQueue()
    busy, _ = channel("busy")
    shy, _ = channel("shy")
    for _ in range(150):
        queue.put(busy, bytes(1200))
    queue.put(shy, b"x" * 100)
    order = [owner for owner, _ in drain(queue)]
    before = order.index("shy up")
    assert before * (1200 + DATAGRAM_COST_BYTES) <= QUANTUM_BYTES


def test_many_channels_between_two_peers_get_no_more_than_one_between_two_others() -> None:
    queue = FairQueue()
    many, one = Pair(), Pair()
    greedy = [channel(f"greedy {n}", many)[0] for n in range(10)]
    modest, _ = channel("modest", one)
    got = {"greedy": 0, "modest": 0}
    for _ in range(400):
        for lane in [*greedy, modest]:
            for _ in range(10):
                queue.put(lane, bytes(1200))
        for owner, datagram in drain(queue, 20_000):
            got[str(owner).split()[0]] += len(datagram)
    assert abs(got["greedy"] - got["modest"]) < 0.1 * got["modest"], got


def test_what_a_peer_acknowledges_does_not_wait_for_all_that_it_acknowledges() -> None:
    queue = FairQueue()
    data, acknowledgements = channel("a")
    for _ in range(100):
        queue.put(data, bytes(1200))
    queue.put(acknowledgements, b"ack")
    order = [datagram for _, datagram in drain(queue)]
    assert order.index(b"ack") * 1200 <= LANE_QUANTUM_BYTES


def test_a_lane_that_is_held_keeps_its_newest_datagrams_within_the_bound_of_its_channel() -> None:
    queue = FairQueue()
    up, _ = channel("stalled")
    queue.hold(up)
    for n in range(10_000):
        queue.put(up, n.to_bytes(4, "big") * 300)
        assert queue.bytes <= CHANNEL_MAX_BYTES
    assert not queue.ready
    queue.validate()
    queue.release(up)
    assert drain(queue)[-1][1][:4] == (9_999).to_bytes(4, "big")


def test_a_stalled_lane_leaves_room_for_the_other_way_of_its_channel() -> None:
    queue = FairQueue()
    stalled, other = channel("a")
    queue.hold(stalled)
    for _ in range(1000):
        queue.put(stalled, bytes(1200))
    for _ in range(20):
        queue.put(other, bytes(1000))
    assert len(drain(queue)) == 20


def test_many_small_datagrams_take_no_more_memory_than_few_large_ones() -> None:
    queue = FairQueue()
    up, _ = channel("small")
    queue.hold(up)
    for _ in range(20_000):
        queue.put(up, b"x")
    assert len(up.queue) <= CHANNEL_MAX_BYTES // (DATAGRAM_COST_BYTES + 1)


def test_with_all_of_its_memory_used_the_longest_queues_are_cut_and_the_short_ones_kept() -> None:
    queue = FairQueue(total_max=1 << 20)
    long = [channel(f"long {n}")[0] for n in range(8)]
    short = [channel(f"short {n}")[0] for n in range(8)]
    for lane in [*long, *short]:
        queue.hold(lane)
    for lane in short:
        queue.put(lane, bytes(1200))
    for _ in range(200):
        for lane in long:
            queue.put(lane, bytes(1200))
            assert queue.bytes <= 1 << 20
    queue.validate()
    assert all(len(lane.queue) == 1 for lane in short)
    assert max(lane.bytes for lane in long) - min(lane.bytes for lane in long) <= 1 << 17


def test_what_could_not_be_sent_is_sent_first_and_in_order_when_it_is_put_back() -> None:
    queue = FairQueue()
    up, _ = channel("a")
    sent = [bytes([n]) * 50 for n in range(20)]
    for datagram in sent:
        queue.put(up, datagram)
    ((lane, taken),) = queue.take(500)
    queue.put_back(lane, taken)
    queue.validate()
    assert [datagram for _, datagram in drain(queue)] == sent


def test_fifty_pairs_that_send_at_very_different_rates_get_equal_shares_of_a_link_that_is_too_small() -> None:
    """A link of 100 Mbit/s, offered twelve times of it; each wants from twice to thirty times its share."""
    rng, queue = Random(7), FairQueue()
    lanes = [channel(str(n))[0] for n in range(50)]
    tick_s, link_bytes = 0.001, 100e6 / 8 * 0.001
    share = link_bytes / 50
    wants = [share * rng.uniform(2, 30) for _ in lanes]
    owed, got, credit = [0.0] * 50, [0] * 50, 0.0
    for tick in range(2000):
        for n, lane in enumerate(lanes):
            owed[n] += wants[n]
            while owed[n] >= 1200:
                size = rng.choice((1200, 1200, 600))
                owed[n] -= size
                queue.put(lane, bytes(size))
        credit = min(credit + link_bytes, 2 * link_bytes)
        for lane, datagrams in queue.take(int(credit)):
            size = sum(len(datagram) for datagram in datagrams)
            credit -= size + len(datagrams) * DATAGRAM_COST_BYTES
            if tick * tick_s > 0.5:
                got[int(str(lane.owner).split()[0])] += size
    equal = sum(got) / 50
    assert all(abs(each - equal) < 0.2 * equal for each in got), (min(got) / equal, max(got) / equal)


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "take", "put back", "hold", "release", "clear"]),
        st.integers(0, 5),
        st.integers(0, 2000),
    ),
    max_size=200,
)


@given(OPERATIONS)
def test_whatever_happens_the_bounds_and_the_books_hold(operations: list[tuple[str, int, int]]) -> None:
    queue = FairQueue(channel_max=6_000, total_max=12_000)
    pairs = [Pair(), Pair()]
    lanes = [lane for n in range(3) for lane in channel(str(n), pairs[n % 2])]
    put = taken = 0
    for what, which, size in operations:
        lane = lanes[which]
        match what:
            case "put":
                queue.put(lane, bytes(size))
                put += 1
            case "take":
                taken += sum(len(datagrams) for _, datagrams in queue.take(size))
            case "put back":
                for back, datagrams in reversed(queue.take(size)):
                    queue.put_back(back, datagrams)
            case "hold":
                queue.hold(lane)
            case "release":
                queue.release(lane)
            case "clear":
                queue.clear(lane)
        queue.validate()
    assert put == taken + queue.dropped + sum(len(lane.queue) for lane in lanes)
