"""Peers, their relays and what goes wrong between them, in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import wraps

import pytest

from lattica.errors import LatticaError, PeerUnreachableError, PermissionDeniedError
from lattica.mesh.identity import PeerId, peer_text
from lattica.mesh.nat.behaviour import Behaviour, Dependence
from lattica.mesh.nat.datagrams import BIND, RELAYED, SIGNED_BYTES, write_relayed
from lattica.mesh.nat.routes import Direct, Endpoint, ViaRelay
from lattica.mesh.relay import client
from lattica.mesh.relay.channels import LEASE_S
from lattica.mesh.relay.client import IDLE_S
from lattica.mesh.relay.relays import ALWAYS, AUTO
from lattica.mesh.roles import MEMBER, Role
from lattica.mesh.services import caller
from lattica.testing.loop import run_virtually
from tests.mesh.relay.stage import Link, Network, StagePeer


class Site:
    """Two relays and two peers that listen nowhere."""

    def __init__(self) -> None:
        self.network = Network()
        self.r1, self.r2 = (StagePeer(self.network, number, offers=ALWAYS) for number in (1, 2))
        self.a, self.b = (StagePeer(self.network, number) for number in (11, 12))

    async def start(self) -> None:
        for peer in self.network.peers.values():
            peer.relays.start()
        await asyncio.sleep(1.0)

    async def channel(self) -> tuple[ViaRelay, ViaRelay]:
        """Of both ends, by way of the first relay."""
        there = await self.a.relays.client.relayed(self.b.id, self.r1.id)
        await asyncio.sleep(0.1)
        assert isinstance(there, ViaRelay)
        ((peer, back),) = self.b.routes
        assert peer == self.a.id and isinstance(back, ViaRelay)
        return there, back


@contextlib.asynccontextmanager
async def a_site() -> AsyncIterator[Site]:
    made = Site()
    await made.start()
    try:
        yield made
    finally:
        for peer in made.network.peers.values():
            peer.stop()
        await asyncio.sleep(0)


def story(test: Callable[[Site], Awaitable[None]]) -> Callable[[], None]:
    @wraps(test)
    def run() -> None:
        async def main() -> None:
            async with a_site() as made:
                await test(made)

        run_virtually(main())

    del run.__wrapped__  # type: ignore[attr-defined]
    return run


@story
async def test_who_listens_nowhere_reserves_at_two_relays_and_says_so(site: Site) -> None:
    expected = {f"relay/{peer_text(relay.id)}" for relay in (site.r1, site.r2)}
    assert set(site.a.advertised["relays"]) == expected == set(site.b.advertised["relays"])
    assert site.r1.relays.service.channels.reservations == 2
    assert not site.r1.relays.reserved, "who relays for others needs none"
    assert site.a.relays.holds(site.r1.id) and site.r1.relays.holds(site.a.id)
    assert all(0.015 < one["rtt_ms"] / 1e3 < 0.025 for one in site.a.relays.status()["reservations"])
    assert not site.a.relays.client.channels, "those that only showed that a relay is reached are closed"


@story
async def test_a_channel_carries_datagrams_both_ways_and_both_traversals_hear_of_it(site: Site) -> None:
    there, back = await site.channel()
    assert site.a.routes == [(site.b.id, there)]
    site.a.socket.send(there, [b"one", b"two"])
    site.b.socket.send(back, [b"three"])
    await asyncio.sleep(0.1)
    assert site.b.socket.got == [(back, b"one"), (back, b"two")] and site.a.socket.got == [(there, b"three")]
    assert await site.a.relays.client.relayed(site.b.id, site.r1.id) == there, "it is used again"


@story
async def test_channels_do_not_follow_from_the_random_numbers_that_a_relay_shows_others(site: Site) -> None:
    async with a_site() as other:
        numbers = {(await each.a.relays.client.relayed(each.b.id, each.r1.id)).channel for each in (site, other)}  # type: ignore[union-attr]
    assert len(numbers) == 2


@story
async def test_two_that_call_each_other_at_once_use_one_channel_if_one_was_told_of_it_in_time(site: Site) -> None:
    there, back = await site.channel()
    assert await site.b.relays.client.relayed(site.a.id, site.r1.id) == back
    again = await asyncio.gather(*(site.a.relays.client.relayed(site.b.id, site.r1.id) for _ in range(3)))
    assert again == [there] * 3
    assert len(site.r1.relays.service.channels) == 1


@story
async def test_what_is_sent_before_the_other_end_has_bound_is_not_lost(site: Site) -> None:
    site.b.udp = False
    there = await site.a.relays.client.relayed(site.b.id, site.r1.id)
    site.a.socket.send(there, [b"an Initial"])
    await asyncio.sleep(0.2)
    assert not site.b.socket.got
    site.b.udp = True
    await asyncio.sleep(0.5)
    assert [datagram for _, datagram in site.b.socket.got] == [b"an Initial"]


@story
async def test_a_relay_that_dies_is_got_round_within_three_seconds(site: Site) -> None:
    there, _ = await site.channel()
    link = Link(site.b.id, there)
    site.a.links.add(link)
    site.r1.lives = False
    loop = asyncio.get_running_loop()
    began = loop.time()
    site.a.socket.send(there, [b"into the dark"])
    while link.route == there and loop.time() < began + 10:
        await asyncio.sleep(0.01)
    assert isinstance(link.route, ViaRelay) and link.route.relay == site.r2.id
    assert loop.time() - began < 3.0
    assert (site.b.id, there) not in site.a.routes, "the path table was told that it is gone"
    await asyncio.sleep(12)
    assert site.a.relays.reserved == [site.r2.id]


@story
async def test_a_connection_is_ended_when_no_relay_is_left_so_that_its_session_dials_anew(site: Site) -> None:
    there, _ = await site.channel()
    link = Link(site.b.id, there)
    site.a.links.add(link)
    site.r1.lives = site.r2.lives = False
    site.a.socket.send(there, [b"into the dark"])
    await asyncio.sleep(15)
    assert link.over and "relay" in link.ended


@story
async def test_a_channel_that_nobody_uses_is_closed_at_both_ends_and_at_the_relay(site: Site) -> None:
    await site.channel()
    await asyncio.sleep(IDLE_S + 2 * LEASE_S)
    assert not site.a.relays.client.channels and not site.b.relays.client.channels
    assert len(site.r1.relays.service.channels) == 0
    assert not site.a.routes and not site.b.routes


@story
async def test_a_channel_in_use_outlives_its_lease_by_being_renewed(site: Site) -> None:
    there, _ = await site.channel()
    for _ in range(40):
        site.a.socket.send(there, [b"still here"])
        await asyncio.sleep(LEASE_S / 10)
    assert len(site.r1.relays.service.channels) == 1
    assert len(site.b.socket.got) == 40


@story
async def test_a_relay_with_which_there_is_no_session_any_more_is_used_no_longer_than_the_lease(site: Site) -> None:
    """It was revoked, say, and still answers datagrams."""
    there, _ = await site.channel()
    call = site.a.call

    async def refused(target: PeerId, method: str, *args: object, **options: object) -> object:
        if target == site.r1.id:
            raise PeerUnreachableError("it is revoked")
        return await call(target, method, *args, **options)

    site.a.call = refused  # type: ignore[method-assign]
    for _ in range(15):
        site.a.socket.send(there, [b"x"])
        await asyncio.sleep(LEASE_S / 10)
    assert there not in [channel.route for channel in site.a.relays.client.channels]


@story
async def test_who_is_no_member_any_more_is_relayed_no_more_within_seconds(site: Site) -> None:
    there, _ = await site.channel()
    site.r1.objections[site.b.id] = "it was revoked"
    await asyncio.sleep(6)
    site.a.socket.send(there, [b"x"])
    await asyncio.sleep(0.1)
    assert not site.b.socket.got
    assert not site.r1.relays.service.channels.is_reserved(site.b.id)


@story
async def test_a_relay_that_cannot_be_bound_is_not_reserved_at_though_it_answers_calls(site: Site) -> None:
    """A firewall: sessions that it dialed carry calls, and no datagram comes in."""
    third = StagePeer(site.network, 3, offers=ALWAYS)
    third.relays.start()
    third.at = Endpoint("198.51.100.9", 1)  # not where it says
    third.udp = False
    late = StagePeer(site.network, 13)
    late.relays.start()
    await asyncio.sleep(10)
    assert set(late.relays.reserved) == {site.r1.id, site.r2.id}


@story
async def test_a_relay_that_we_have_dialed_is_named_at_once_and_forgotten_if_no_datagram_comes_back(site: Site) -> None:
    """Just after a join others wait to hear by way of whom we are reached."""
    third = StagePeer(site.network, 3, offers=ALWAYS)
    third.relays.start()
    third.at, third.udp = Endpoint("198.51.100.9", 1), False
    site.r1.lives = site.r2.lives = False
    late = StagePeer(site.network, 13)
    late.dialed.add(third.id)
    late.relays.start()
    await asyncio.sleep(0.5)
    assert late.advertised["relays"] == [f"relay/{peer_text(third.id)}"]
    await asyncio.sleep(15)
    assert late.advertised["relays"] == []


@story
async def test_a_relay_that_tells_of_names_that_nobody_knows_is_not_waited_for(site: Site) -> None:
    asked: list[str] = []

    async def unknown(loop: object, host: str, port: int) -> list[object]:
        asked.append(host)
        await asyncio.sleep(10.0)
        return []

    site.a.addresses_of = lambda peer: [f"name{number}.example:1" for number in range(1000)]  # type: ignore[method-assign]
    began = asyncio.get_running_loop().time()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError):
        patch.setattr(client, "resolve", unknown)
        await site.a.relays.client.reach(site.r1.id)
    assert asyncio.get_running_loop().time() - began < client.RESOLVE_S + 5.0 and len(asked) == 1


@story
async def test_a_relay_is_never_reached_by_way_of_another(site: Site) -> None:
    site.r1.lives = False
    opening = asyncio.ensure_future(site.a.relays.client.relayed(site.b.id, site.r1.id))
    await asyncio.sleep(0)
    with pytest.raises(ConnectionError, match="directly"):
        await site.a.relays.client.relayed(site.r1.id, site.r2.id)
    with pytest.raises(LatticaError):
        await opening


@story
async def test_who_is_not_connected_to_the_relay_cannot_be_called_by_way_of_it(site: Site) -> None:
    site.b.lives = False
    with pytest.raises(PeerUnreachableError, match="not connected to relay"):
        await site.a.relays.client.relayed(site.b.id, site.r1.id)


@story
async def test_a_node_without_the_role_relays_for_nobody(site: Site) -> None:
    other = StagePeer(site.network, 4, offers=ALWAYS, roles=MEMBER & ~Role.RELAY)
    other.relays.start()
    assert not other.relays.offering
    for work in (
        site.a.call(other.id, "relay.reserve"),
        site.a.call(other.id, "relay.open", bytes(site.b.id)),
        site.a.call(other.id, "relay.keep", [1]),
    ):
        with pytest.raises(PermissionDeniedError):
            await work
    other.stop()


@story
async def test_a_member_without_the_role_is_no_relay_whatever_it_says(site: Site) -> None:
    liar = StagePeer(site.network, 5, roles=MEMBER & ~Role.RELAY)
    liar.relays.service._admit = lambda: caller.get().peer  # type: ignore[method-assign]
    site.network.offering.append(liar.id)
    site.network.far[site.r1.at] = site.network.far[site.r2.at] = 0.1  # it is much nearer than the others
    site.a.dialed.add(liar.id)
    late = StagePeer(site.network, 6)
    late.dialed.add(liar.id)
    late.relays.start()
    await asyncio.sleep(1000)
    assert set(late.relays.reserved) == set(site.a.relays.reserved) == {site.r1.id, site.r2.id}
    with pytest.raises(PermissionDeniedError, match="lacks the role relay"):
        await site.a.relays.client.relayed(site.b.id, liar.id)
    liar.stop()
    late.stop()


@story
async def test_what_is_no_channel_or_no_peer_is_refused_and_takes_no_memory(site: Site) -> None:
    nonsense: list[object] = [b"", b"short", 1 << 40, None, "text", [1], -1, True]
    for what in nonsense:
        with pytest.raises((LatticaError, TypeError)):
            await site.a.call(site.r1.id, "relay.open", what)
        await site.a.call(site.r1.id, "relay.close", what)
        assert await site.a.call(site.r1.id, "relay.keep", [what]) == []
    opened = ("relayed.opened", bytes(site.b.id))
    for number, secret in (
        (1, b"short"),
        (1, 1 << 40),
        (-1, bytes(32)),
        (1 << 64, bytes(32)),
        ("x", bytes(32)),
        (None, 1),
    ):
        with pytest.raises(LatticaError):
            await site.r1.call(site.a.id, *opened, number, secret, 600.0)
    for who in nonsense:
        with pytest.raises(LatticaError):
            await site.r1.call(site.a.id, "relayed.opened", who, 2, bytes(32), 600.0)
    assert not site.a.relays.client.channels and len(site.r1.relays.service.channels) == 0


@story
async def test_a_member_at_which_nothing_was_reserved_cannot_tell_of_channels(site: Site) -> None:
    other = StagePeer(site.network, 4, offers=ALWAYS)
    with pytest.raises(PeerUnreachableError, match="no reservation"):
        await other.call(site.a.id, "relayed.opened", bytes(site.b.id), 2, bytes(32), 600.0)
    assert not site.a.relays.client.channels


@story
async def test_a_dial_that_is_given_up_leaves_no_channel_behind(site: Site) -> None:
    site.a.udp = False
    opening = asyncio.ensure_future(site.a.relays.client.relayed(site.b.id, site.r1.id))
    await asyncio.sleep(0.2)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    await asyncio.sleep(0.2)
    assert not site.a.relays.client.channels and len(site.r1.relays.service.channels) == 0


@story
async def test_a_peer_that_moves_tells_its_relay_at_once(site: Site) -> None:
    there, back = await site.channel()
    site.a.at = Endpoint("203.0.113.5", 99)
    site.a.relays.network_changed()
    await asyncio.sleep(0.1)
    site.b.socket.send(back, [b"found you"])
    await asyncio.sleep(0.1)
    assert site.a.socket.got == [(there, b"found you")]


@story
async def test_forged_datagrams_are_neither_answered_nor_passed_on(site: Site) -> None:
    there, back = await site.channel()
    before = len(site.network.sent)
    stranger = Direct(Endpoint("198.51.100.66", 6))
    for peer in (site.r1, site.a, site.b):
        for data in (
            write_relayed(there.channel, b"forged"),
            write_relayed(back.channel, b"forged"),
            write_relayed(there.channel, b""),
            bytes([BIND]) + there.channel.to_bytes(8, "big") + bytes(SIGNED_BYTES - 9),
            bytes([BIND]),
            bytes([RELAYED]),
            bytes([RELAYED]) + bytes(3000),
        ):
            peer.datagrams.arrived(stranger, data)
            peer.datagrams.arrived(there, data)
    await asyncio.sleep(0.2)
    assert len(site.network.sent) == before
    assert not site.a.socket.got and not site.b.socket.got
    site.r1.relays.service.channels.validate()


@story
async def test_what_the_kernel_has_no_room_for_waits_and_goes_on_in_order(site: Site) -> None:
    there, back = await site.channel()
    site.r1.socket.room = 2
    site.a.socket.send(there, [bytes([number]) for number in range(10)])
    await asyncio.sleep(0.2)
    assert len(site.b.socket.got) == 2 and len(site.r1.socket.waits) == 1
    site.r1.socket.room = None
    site.r1.socket.waits.pop()()
    await asyncio.sleep(0.2)
    assert site.b.socket.got == [(back, bytes([number])) for number in range(10)]
    assert site.r1.relays.service.numbers()["forwarded_datagrams_total"] == 10


@story
async def test_a_node_offers_to_relay_when_it_was_reached_from_a_public_address(site: Site) -> None:
    node = StagePeer(site.network, 5, offers=AUTO)
    node.listening = ["10.0.0.5:7411"]
    node.relays.start()
    await asyncio.sleep(5)
    assert not node.relays.offering and node.relays.reserved
    node.relays.reached("10.0.0.9:1234")
    await asyncio.sleep(120)
    assert not node.relays.offering
    node.relays.reached("198.51.100.9:1234")
    await asyncio.sleep(120)
    assert node.relays.offering and not node.relays.reserved and node.advertised["relays"] == []
    node.stop()


@story
async def test_a_node_that_moves_behind_a_router_is_reached_by_relays_again(site: Site) -> None:
    node = StagePeer(site.network, 5, offers=AUTO)
    node.listening = ["198.51.100.5:7411"]
    node.relays.start()
    node.relays.reached("198.51.100.9:1234")
    await asyncio.sleep(5)
    assert node.relays.offering and not node.relays.reserved
    node.relays.network_changed()
    await asyncio.sleep(5)
    assert len(node.relays.reserved) == 2 and len(node.advertised["relays"]) == 2
    node.relays.reached("198.51.100.9:1234")
    await asyncio.sleep(120)
    assert not node.relays.reserved, "it is reached here, too"
    node.stop()


@story
async def test_an_offer_is_taken_back_where_nobody_reaches_the_node_any_more_and_made_again_where_somebody_does(
    site: Site,
) -> None:
    node = StagePeer(site.network, 5, offers=AUTO)
    node.listening = ["198.51.100.5:7411"]
    node.relays.start()
    node.relays.reached("198.51.100.9:1234")
    assert node.id in site.network.offering
    node.relays.network_changed()
    await asyncio.sleep(50)
    assert node.id in site.network.offering, "somebody may still come"
    await asyncio.sleep(150)
    assert node.id not in site.network.offering and not node.relays.offering and len(node.relays.reserved) == 2
    node.relays.reached("198.51.100.9:1234")
    assert node.id in site.network.offering
    await asyncio.sleep(300)
    assert node.id in site.network.offering
    node.stop()


@story
async def test_the_offer_of_an_earlier_life_is_taken_back_by_one_that_nobody_reaches(site: Site) -> None:
    site.network.offering.append(site.a.id)
    site.a.relays._offers = AUTO
    await asyncio.sleep(200)
    assert site.a.id not in site.network.offering and len(site.a.relays.reserved) == 2


@story
async def test_a_node_that_only_dials_stays_with_its_relays_although_its_udp_is_open(site: Site) -> None:
    site.a.relays._offers = AUTO
    site.a.listening = list(site.a.advertised["relays"])
    site.a.traversal.behaviour = Behaviour(udp=True, translated=False, filtering=Dependence.INDEPENDENT)
    await asyncio.sleep(300)
    assert not site.a.relays.offering and len(site.a.relays.reserved) == 2


@story
async def test_a_node_that_was_reached_over_ipv6_alone_needs_relays_for_those_without_it(site: Site) -> None:
    node = StagePeer(site.network, 5, offers=AUTO)
    node.listening = ["10.0.0.5:7411", "[2001:db8::5]:7411"]
    node.relays.start()
    node.relays.reached("[2001:db8::9]:1234")
    await asyncio.sleep(120)
    assert node.relays.offering and len(node.relays.reserved) == 2
    node.stop()


@story
async def test_a_node_that_measured_that_it_is_public_offers_and_one_of_a_driver_does_not(site: Site) -> None:
    node, driver, walled = (StagePeer(site.network, number, offers=AUTO) for number in (5, 6, 7))
    for peer, filtering in ((node, Dependence.INDEPENDENT), (driver, Dependence.INDEPENDENT), (walled, None)):
        peer.listening = ["198.51.100.5:7411"]
        peer.traversal.behaviour = Behaviour(udp=True, translated=False, filtering=filtering)
    driver.gossip.community.info.ephemeral = True
    for peer in (node, driver, walled):
        peer.relays.start()
    await asyncio.sleep(2)
    assert (node.relays.offering, driver.relays.offering, walled.relays.offering) == (True, False, False)
    for peer in (node, driver, walled):
        peer.stop()


@story
async def test_a_relay_that_is_much_nearer_takes_the_place_of_one_that_is_reserved_at(site: Site) -> None:
    site.network.far = {site.r1.at: 0.051, site.r2.at: 0.05}
    late = StagePeer(site.network, 13)
    late.relays.start()
    await asyncio.sleep(5)
    assert late.relays.reserved == [site.r2.id, site.r1.id]
    near, alike = (StagePeer(site.network, number, offers=ALWAYS) for number in (3, 4))
    site.network.far[alike.at] = 0.047
    for peer in (near, alike):
        peer.relays.start()
    await asyncio.sleep(4 * LEASE_S)
    assert late.relays.reserved == [near.id, site.r2.id], "one that is hardly better is not worth a change of address"
    for peer in (near, alike, late):
        peer.stop()


@story
async def test_a_relay_that_leaves_is_got_round_before_a_packet_is_lost_in_it(site: Site) -> None:
    there, _ = await site.channel()
    link = Link(site.b.id, there)
    site.a.links.add(link)
    site.r1.lives = False
    site.a.relays.disconnected(site.r1.id)
    await asyncio.sleep(1.5)
    assert isinstance(link.route, ViaRelay) and link.route.relay == site.r2.id


@story
async def test_a_relay_tells_what_it_counts(site: Site) -> None:
    there, _ = await site.channel()
    site.a.socket.send(there, [b"x" * 100])
    await asyncio.sleep(0.1)
    numbers = site.r1.relays.numbers()
    assert numbers["relay_forwarded_bytes_total"][2] == 109.0 and numbers["relay_channels"][2] == 1.0
    assert {kind for kind, _, _ in numbers.values()} == {"counter", "gauge"}
    (channel,) = site.a.relays.status()["channels"]
    assert channel["relay"] == peer_text(site.r1.id) and channel["way"] == "192.0.2.1:7411"
