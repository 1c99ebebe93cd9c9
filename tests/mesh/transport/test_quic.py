"""QUIC as a transport: dialing, streams that share a connection, bounds, and what strangers can do."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Coroutine
from time import time
from typing import Any

import pytest

from lattica.mesh import wire
from lattica.mesh.certificates import DAY_S
from lattica.mesh.effects import Dial
from lattica.mesh.identity import PeerId, peer_text
from lattica.mesh.nat.routes import ViaRelay
from lattica.mesh.transport import quic, quic_engine
from lattica.mesh.transport.quic import Quic
from lattica.mesh.transport.quic_link import BUFFERED_MAX_BYTES, BULK_UNSENT_MAX_BYTES
from lattica.mesh.transport.quic_packets import RESET_BYTES, RESETS_MAX
from lattica.mesh.wire import BULK, CONTROL, Bye
from lattica.testing.loop import run_virtually
from tests.mesh.transport.quic_net import Net, Node, mesh_of_today, until
from tests.mesh.transport.quic_pairs import Mesh

MIB = 1 << 20


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        run_virtually(test(*args, **kwargs))

    return run


async def closed(*nodes: Node) -> None:
    for node in nodes:
        await node.quic.close()


def payloads(node: Node, number: int) -> list[bytes]:
    return [bytes(frame.payload) for frame in node.hears.frames.get(number, []) if isinstance(frame, wire.Data)]


@virtual
async def test_whoever_dials_and_whoever_is_dialed_learn_who_the_other_is_and_frames_go_both_ways() -> None:
    net = Net()
    one, two = net.node(), net.node()
    here, there = await net.connected(one, two)
    assert one.hears.dialed_ == [(1, here, two.keys.peer)]
    assert two.hears.accepted_ == [(there, one.keys.peer)]
    for seq in range(1, 6):
        one.data(here, bytes([seq]) * 5_000, seq)
        two.data(there, bytes([seq]) * 3, seq)
    await until(lambda: len(payloads(two, there)) == 5 and len(payloads(one, here)) == 5)
    assert payloads(two, there) == [bytes([seq]) * 5_000 for seq in range(1, 6)]
    assert one.quic.path(here)[0] == two.quic.path(there)[0] == "quic"
    await closed(one, two)


@virtual
async def test_a_first_call_needs_four_round_trips() -> None:
    """Retry, handshake, its confirmation, hello."""
    net = Net(delay_s=0.05)
    one, two = net.node(), net.node()
    began = asyncio.get_running_loop().time()
    await net.connected(one, two)
    assert asyncio.get_running_loop().time() - began <= 4 * 0.1 + 0.02
    await closed(one, two)


@virtual
async def test_another_peer_at_that_address_is_not_taken_for_the_one_that_was_called() -> None:
    net = Net()
    one, two, three = net.node(), net.node(), net.node()
    one.quic.dial(Dial(1, three.keys.peer, (two.address,)))
    await until(lambda: bool(one.hears.failed))
    assert "it is" in one.hears.failed[0][1] and not one.hears.failed[0][2]
    assert two.hears.accepted_ == [] and one.hears.dialed_ == []
    one.quic.dial(Dial(2, three.keys.peer, (two.address, three.address)))
    await until(lambda: bool(one.hears.dialed_))
    assert one.hears.dialed_[0][2] == three.keys.peer
    await closed(one, two, three)


@virtual
async def test_a_dial_that_nobody_answers_fails_in_time_and_leaves_nothing() -> None:
    net = Net()
    one, two = net.node(), net.node()
    net.dead.add(two.keys.peer)
    began = asyncio.get_running_loop().time()
    one.quic.dial(Dial(1, two.keys.peer, (two.address,)))
    await until(lambda: bool(one.hears.failed))
    assert asyncio.get_running_loop().time() - began < 6.5
    assert one.hears.failed == [(1, "no answer within 6 s", False)]
    await asyncio.sleep(10)
    assert not one.quic.links and not one.quic.socket.ids
    one.quic.dial(Dial(2, two.keys.peer, ()))
    await until(lambda: len(one.hears.failed) == 2)
    assert one.hears.failed[1] == (2, "no address is known", False)
    await closed(one, two)


@virtual
async def test_a_dial_that_is_given_up_says_nothing_and_leaves_nothing() -> None:
    net = Net()
    one, two = net.node(), net.node()
    one.quic.dial(Dial(1, two.keys.peer, (two.address,)))
    await asyncio.sleep(0.03)
    one.quic.give_up(1)
    await asyncio.sleep(10)
    assert (one.hears.dialed_, one.hears.failed, two.hears.accepted_) == ([], [], [])
    assert not one.quic.links and not two.quic.links and not two.quic.socket.ids
    await closed(one, two)


@virtual
async def test_certificates_that_are_not_accepted_end_a_dial_for_good_on_both_sides() -> None:
    net = Net()
    ours, old = mesh_of_today(), mesh_of_today().member(at=time() - 31 * DAY_S)
    one, two, stranger = net.node(), net.node(old), net.node(Mesh(time()).member())
    one.quic.dial(Dial(1, two.keys.peer, (two.address,)))
    await until(lambda: bool(one.hears.failed))
    assert one.hears.failed[0][2] and "has expired" in one.hears.failed[0][1]
    two.quic.dial(Dial(1, one.keys.peer, (one.address,)))
    stranger.keys.root = ours.top.root
    stranger.quic.dial(Dial(1, one.keys.peer, (one.address,)))
    await until(lambda: bool(two.hears.failed and stranger.hears.failed))
    assert two.hears.failed[0][2] and "not accepted" in two.hears.failed[0][1]
    assert stranger.hears.failed[0][2] and "your certificate is not accepted" in stranger.hears.failed[0][1]
    assert one.hears.accepted_ == [] and one.hears.refused_
    await closed(one, two, stranger)


# -- streams ---------------------------------------------------------------------------------------------------------


@virtual
async def test_bulk_joins_the_connection_that_carries_control_and_needs_no_handshake() -> None:
    net = Net(delay_s=0.1)
    one, two = net.node(), net.node()
    await net.connected(one, two)
    began = asyncio.get_running_loop().time()
    two.quic.dial(Dial(7, one.keys.peer, (one.address,), BULK))  # either side may
    await until(lambda: bool(two.hears.dialed_))
    assert asyncio.get_running_loop().time() - began < 0.1
    number = two.hears.dialed_[0][1]
    two.say(number, BULK, b"much")
    await until(lambda: bool(one.hears.accepted_))
    there = one.hears.accepted_[0][0]
    await until(lambda: payloads(one, there) == [b"much"])
    assert len(one.quic.links) == len(two.quic.links) == 1
    assert one.quic.streams[there].plane == BULK, "its hello says so"
    await closed(one, two)


@virtual
async def test_a_dial_of_control_makes_a_connection_of_its_own() -> None:
    """The one there is may be dead, or show old certificates."""
    net = Net()
    one, two = net.node(), net.node()
    await net.connected(one, two)
    await net.connected(one, two, attempt=2)
    assert len(one.quic.links) == 2
    await closed(one, two)


@virtual
async def test_bulk_does_not_join_a_connection_that_shows_old_certificates() -> None:
    net = Net()
    one, two = net.node(), net.node()
    await net.connected(one, two)
    one.keys.chain = mesh_of_today().member().chain  # as after a renewal, whatever it says
    assert one.quic.carries(two.keys.peer) is None
    assert two.quic.carries(one.keys.peer) is not None
    await closed(one, two)


@virtual
async def test_the_last_words_arrive_and_then_the_connection_is_gone_on_both_sides() -> None:
    net = Net(loss=0.1)
    one, two = net.node(), net.node()
    here, there = await net.connected(one, two)
    one.quic.write(here, wire.encode(Bye("leaving", "so long")))
    one.quic.hang_up(here)
    one.quic.flush()
    await until(lambda: bool(two.hears.closed_))
    assert any(isinstance(frame, Bye) and frame.text == "so long" for frame in two.hears.frames[there])
    assert two.hears.closed_ == [(there, "the other side closed it")] and one.hears.closed_ == []
    assert one.quic.path(here) == ("", "")
    await asyncio.sleep(20)
    assert not one.quic.links and not two.quic.links
    assert not one.quic.socket.ids and not two.quic.socket.ids
    await closed(one, two)


@virtual
async def test_one_stream_ends_and_the_other_goes_on() -> None:
    net = Net()
    one, two = net.node(), net.node()
    here, there = await net.connected(one, two)
    bulk, bulk_there = await net.connected(one, two, plane=BULK, attempt=2)
    one.quic.hang_up(bulk)
    one.quic.flush()
    await until(lambda: two.hears.closed_ == [(bulk_there, "the other side closed it")])
    await asyncio.sleep(20)
    one.data(here, b"still here")
    await until(lambda: payloads(two, there) == [b"still here"])
    assert len(one.quic.links) == 1 and len(next(iter(one.quic.links)).streams) == 1
    await closed(one, two)


@virtual
async def test_a_side_that_closes_tells_the_other_at_once() -> None:
    net = Net()
    one, two = net.node(), net.node()
    _, there = await net.connected(one, two)
    await one.quic.close()
    await until(lambda: bool(two.hears.closed_), 1.0)
    assert two.hears.closed_[0][0] == there
    await two.quic.close()


@virtual
async def test_a_connection_whose_other_side_vanished_ends_by_itself() -> None:
    net = Net()
    one, two = net.node(), net.node()
    here, _ = await net.connected(one, two)
    net.dead.add(two.keys.peer)
    one.data(here, b"is anybody there")
    await until(lambda: bool(one.hears.closed_), 60)
    assert one.hears.closed_ == [(here, "it was silent for 30 s")] and not one.quic.links
    await closed(one, two)


@virtual
async def test_a_side_that_was_started_again_says_so_to_who_still_talks_to_it() -> None:
    """RFC 9000 §10.3. A node is killed and begins again at the same address, with the same key and no memory: without
    a word of it the other would wait for half a minute."""
    net = Net()
    one, two = net.node(), net.node()
    here, _ = await net.connected(one, two)
    again = net.node(two.keys)  # in its place
    began = asyncio.get_running_loop().time()
    one.data(here, b"is anybody there")
    await until(lambda: bool(one.hears.closed_), 5)
    assert one.hears.closed_ == [(here, "the other side was started again")]
    assert asyncio.get_running_loop().time() - began < 0.1
    assert not one.quic.socket.tokens and not again.quic.links
    await closed(one, two, again)


@virtual
async def test_nobody_else_can_reset_a_connection() -> None:
    net = Net()
    one, two = net.node(), net.node()
    here, there = await net.connected(one, two)
    stranger = net.node()
    [token] = one.quic.socket.tokens
    for forged in (stranger.quic.socket.resets.token(b"12345678"), token[:-1] + bytes([token[-1] ^ 1]), bytes(16)):
        one.quic.socket.arrived(ViaRelay(two.keys.peer, 1), b"@" + os.urandom(8) + forged)
    one.data(here, b"still here")
    await until(lambda: payloads(two, there) == [b"still here"])
    assert not one.hears.closed_
    await closed(one, two, stranger)


@virtual
async def test_resets_are_short_and_few_and_two_who_forgot_do_not_answer_each_other() -> None:
    net = Net()
    one, two = net.node(), net.node()
    for _ in range(1000):
        two.quic.socket.arrived(ViaRelay(one.keys.peer, 1), b"@" + os.urandom(60))
    await asyncio.sleep(0.5)
    answers = [datagram for _, to, datagram in net.carried if to == one.keys.peer]
    assert len(answers) == RESETS_MAX and {len(answer) for answer in answers} == {RESET_BYTES}
    assert len(net.carried) == RESETS_MAX, "a reset is not answered"
    await closed(one, two)


@virtual
async def test_frames_that_break_a_rule_are_told_and_nothing_after_them() -> None:
    net = Net()
    one, two = net.node(), net.node()
    here, there = await net.connected(one, two)
    one.quic.write(here, (b"\xff\xff\xff\xff\x02",))
    one.quic.flush()
    await until(lambda: bool(two.hears.broken_))
    assert two.hears.broken_[0][0] == there and "was announced" in two.hears.broken_[0][1]
    await closed(one, two)


# -- bounds ------------------------------------------------------------------------------------------------------------


@virtual
async def test_no_more_lies_in_the_engine_than_keeps_the_path_busy() -> None:
    net = Net(delay_s=0.05)
    one, two = net.node(), net.node()
    bulk, there = await net.connected(one, two, plane=BULK)
    for seq in range(1, 5):
        one.data(bulk, bytes(MIB), seq)
    (link,) = one.quic.links
    stream = one.quic.streams[bulk]
    most = unsent = 0
    while len(two.hears.frames.get(there, [])) < 5:
        most = max(most, link.engine.unacked(stream.id))
        unsent = max(unsent, link.engine.unsent(stream.id))
        await asyncio.sleep(0.005)
    assert 100_000 < most <= BUFFERED_MAX_BYTES and unsent <= BULK_UNSENT_MAX_BYTES
    assert payloads(two, there) == [bytes(MIB)] * 4
    await closed(one, two)


@virtual
async def test_a_word_of_the_control_plane_does_not_wait_for_bulk() -> None:
    """3 MiB under way on a link of 2 MB/s."""
    net = Net(delay_s=0.01)
    net.bytes_s = 2e6
    one, two = net.node(), net.node()
    here, there = await net.connected(one, two)
    bulk, _ = await net.connected(one, two, plane=BULK, attempt=2)
    for seq in range(1, 4):
        one.data(bulk, bytes(MIB), seq)
    await asyncio.sleep(0.2)
    longest = 0.0
    for seq in range(1, 20):
        began = asyncio.get_running_loop().time()
        one.data(here, b"ping", seq)
        await until(lambda seq=seq: len(payloads(two, there)) == seq)
        longest = max(longest, asyncio.get_running_loop().time() - began)
        await asyncio.sleep(0.01)
    assert longest < 0.1, f"{longest * 1e3:.0f} ms"
    await closed(one, two)


@virtual
async def test_a_side_that_takes_nothing_is_dropped_before_it_fills_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quic, "QUEUE_MAX_BYTES", 3 * MIB)
    net = Net()
    one, two = net.node(), net.node()
    here, _ = await net.connected(one, two)
    net.dead.add(two.keys.peer)
    for seq in range(1, 7):
        one.data(here, bytes(MIB), seq)
    assert one.hears.broken_ and one.hears.broken_[0][0] == here
    assert one.quic.streams[here].queued == 0
    await closed(one, two)


# -- routes ------------------------------------------------------------------------------------------------------------


@virtual
async def test_a_connection_goes_on_when_a_nat_gives_the_other_side_another_address() -> None:
    net = Net()
    one, two = net.node(), net.node()
    here, there = await net.connected(one, two)
    await asyncio.sleep(2)
    one.channel = 2
    one.data(here, b"from elsewhere")
    await until(lambda: payloads(two, there) == [b"from elsewhere"])
    assert two.quic.streams[there].link.route == ViaRelay(one.keys.peer, 2)
    two.data(there, b"heard")
    await until(lambda: payloads(one, here) == [b"heard"])
    await closed(one, two)


@virtual
async def test_what_comes_from_elsewhere_moves_nothing_while_the_route_is_alive_or_if_it_is_old() -> None:
    """Somebody on the way sends a copy from their own address, sooner or later."""
    net = Net()
    one, two = net.node(), net.node()
    here, there = await net.connected(one, two)
    elsewhere = ViaRelay(one.keys.peer, 99)
    net.carried.clear()
    one.data(here, b"x")
    ((_, _, packet),) = net.carried
    two.quic.socket.arrived(elsewhere, packet)  # sooner: but the route was alive just now
    assert two.quic.streams[there].link.route != elsewhere
    await asyncio.sleep(5)
    two.quic.socket.arrived(elsewhere, packet)  # later: but it is not new
    assert two.quic.streams[there].link.route != elsewhere
    await closed(one, two)


@virtual
async def test_a_path_table_hears_of_packets_and_says_which_route_they_take() -> None:
    class Table:
        def __init__(self) -> None:
            self.came: list[Any] = []
            self.went = self.over = 0

        def heard(self, link: Any, route: Any) -> None:
            self.came.append(route)

        def sent(self, link: Any) -> None:
            self.went += 1

        def gone(self, link: Any) -> None:
            self.over += 1

    net = Net()
    one, two = net.node(), net.node()
    table = Table()
    two.quic.guide_of = lambda peer: table if peer == one.keys.peer else None
    here, there = await net.connected(one, two)
    went = table.went
    assert went and table.came[-1] == ViaRelay(one.keys.peer, 1)
    await asyncio.sleep(5)
    one.channel = 2
    one.data(here, b"from elsewhere")
    await until(lambda: bool(payloads(two, there)))
    link = two.quic.streams[there].link
    assert table.came[-1] == ViaRelay(one.keys.peer, 2)
    assert link.route == ViaRelay(one.keys.peer, 1), "until the table says so"
    link.take(ViaRelay(one.keys.peer, 2))
    assert link.engine.rtt_s is None, "nothing is known of the new path"
    two.data(there, b"heard")
    await until(lambda: payloads(one, here) == [b"heard"])
    assert table.went > went
    await closed(one, two)


# -- strangers ---------------------------------------------------------------------------------------------------------


def first_packet(node: Node) -> bytes:
    """An Initial of somebody who has read the protocol."""
    return quic_engine.dial(node.quic._made(), 0.0).datagrams(0.0)[0]


@virtual
async def test_a_forged_first_packet_is_answered_by_less_and_makes_no_connection() -> None:
    net = Net()
    one, victim = net.node(), net.node()
    packet = first_packet(victim)
    for _ in range(100):
        one.quic.socket.arrived(ViaRelay(victim.keys.peer, 1), packet)
    assert len(net.carried) == 100
    assert all(len(answer) < len(packet) / 10 for _, _, answer in net.carried)
    assert not one.quic.links and not one.quic.socket.ids
    await closed(one, victim)


@virtual
async def test_a_token_is_good_for_the_address_it_was_sent_to_and_for_ten_seconds() -> None:
    net = Net()
    one, thief = net.node(), net.node()
    dialing = quic_engine.dial(thief.quic._made(), 0.0)
    route = ViaRelay(thief.keys.peer, 1)
    one.quic.socket.arrived(route, dialing.datagrams(0.0)[0])
    dialing.receive([net.carried[-1][2]], 0.0)
    (returned,) = dialing.datagrams(0.0)
    net.carried.clear()
    one.quic.socket.arrived(ViaRelay(thief.keys.peer, 2), returned)
    assert not one.quic.links, "from another address it is a stranger's"
    await asyncio.sleep(11)
    one.quic.socket.arrived(route, returned)
    assert not one.quic.links, "too late"
    assert len(net.carried) == 2, "each was answered by a Retry"
    await closed(one, thief)


@virtual
async def test_who_comes_by_a_proven_route_is_not_asked_for_a_token() -> None:
    """A channel of a relay: a round trip less until two peers who both lie far from it talk."""
    net = Net()
    one, two = net.node(), net.node()
    two.quic.socket.is_proven = lambda route: isinstance(route, ViaRelay)
    one.quic.dial(Dial(1, two.keys.peer, (two.address,)))
    await asyncio.sleep(0.011)
    assert len(two.quic.links) == 1
    await until(lambda: bool(one.hears.dialed_))
    await closed(one, two)


@pytest.mark.parametrize("first_s", [0.05, 60.0, None])
def test_of_two_relays_one_handshake_is_enough_and_a_dead_one_delays_nobody(first_s: float | None) -> None:
    """first_s: until the first has opened its channel; None: it cannot."""
    relays = [PeerId(bytes([number]) * 32) for number in (1, 2)]

    @virtual
    async def story() -> None:
        net = Net()
        one, two = net.node(), net.node()

        async def relayed(peer: PeerId, relay: PeerId) -> ViaRelay:
            if relay == relays[0] and first_s is None:
                raise ConnectionError("it is gone")
            await asyncio.sleep((first_s or 0.0) if relay == relays[0] else 0.06)
            return ViaRelay(two.keys.peer, 1)

        one.quic.relayed = relayed
        loop, most = asyncio.get_running_loop(), 0
        one.quic.dial(Dial(1, two.keys.peer, tuple(f"relay/{peer_text(relay)}" for relay in relays)))
        while not one.hears.dialed_ and loop.time() < 1:
            most = max(most, len(one.quic.links))
            await asyncio.sleep(0.001)
        assert most == 1 and loop.time() < 0.2
        await closed(one, two)

    story()


@virtual
async def test_handshakes_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quic, "PENDING_MAX", 3)
    net = Net()
    one = net.node()
    others = [net.node() for _ in range(5)]
    for other in others:
        other.quic.dial(Dial(1, one.keys.peer, (one.address,)))
    await asyncio.sleep(0.045)  # Retries are returned
    assert len(one.quic.links) == 3
    await asyncio.sleep(3)
    assert sum(bool(other.hears.dialed_) for other in others) == 5, "the others try again by themselves"
    await closed(one, *others)


@virtual
async def test_one_place_that_begins_handshakes_and_ends_none_keeps_out_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quic, "PENDING_OF_PLACE_MAX", 3)
    net = Net()
    one, two, other = net.node(), net.node(), net.node()
    for attempt in range(8):
        two.quic.dial(Dial(attempt, one.keys.peer, (one.address,)))
    await asyncio.sleep(0.045)
    net.dead.add(two.keys.peer)
    assert len(one.quic.pending) == 3
    await net.connected(other, one)
    assert asyncio.get_running_loop().time() < 0.5
    await closed(one, two, other)


@virtual
async def test_one_who_begins_a_handshake_and_says_nothing_more_is_forgotten() -> None:
    net = Net()
    one, two = net.node(), net.node()
    two.quic.dial(Dial(1, one.keys.peer, (one.address,)))
    await asyncio.sleep(0.035)
    assert len(one.quic.links) == 1
    net.dead.add(two.keys.peer)
    await asyncio.sleep(15)
    assert not one.quic.links and not one.quic.socket.ids and not one.quic.pending
    assert one.hears.refused_[0][1] == "it did not finish the handshake in time"
    await closed(one, two)


@virtual
async def test_noise_leaves_nothing() -> None:
    net = Net()
    one, two = net.node(), net.node()
    here, there = await net.connected(one, two)
    ids = list(two.quic.socket.ids)
    before = len(net.carried)
    for size in (1, 2, 7, 9, 20, 100, 1200, 1400):
        for _ in range(50):
            noise = os.urandom(size)
            two.quic.socket.arrived(ViaRelay(one.keys.peer, 5), noise)
            two.quic.socket.arrived(ViaRelay(one.keys.peer, 5), bytes([0x40 | noise[0] & 0x3F]) + ids[0] + noise)
    assert len(two.quic.links) == 1 and list(two.quic.socket.ids) == ids
    assert all(len(answer) < 120 for _, _, answer in net.carried[before:])
    one.data(here, b"unmoved")
    await until(lambda: payloads(two, there) == [b"unmoved"])
    await closed(one, two)


def test_a_transport_says_in_its_repr_what_it_has() -> None:
    async def run() -> None:
        node = Net().node()
        assert repr(node.quic) == "<Quic: 0 connections, 0 streams, <PathSocket: 0 sockets, 0 connection ids>>"
        assert isinstance(node.quic, Quic)
        await node.quic.close()

    run_virtually(run())


assert CONTROL < BULK
