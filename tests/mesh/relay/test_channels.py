"""What a relay lets through, for whom, and for how long."""

from __future__ import annotations

from collections.abc import Hashable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import ConfigError, PeerUnreachableError
from lattica.mesh.identity import PeerId
from lattica.mesh.nat.datagrams import SIGNED_BYTES, Bind, read_bound, write_bind, write_relayed
from lattica.mesh.nat.routes import Endpoint
from lattica.mesh.relay import channels as module
from lattica.mesh.relay.channels import BINDING_S, LEASE_S, OPENED_MAX, PAIR_MAX, UNBOUND_S, Channels, Grant

A, B, C = (PeerId(bytes([n]) * 32) for n in (1, 2, 3))
AT_A, AT_B, ELSEWHERE = "at a", "at b", "elsewhere"
SEEN = Endpoint("192.0.2.7", 4711)


def relay(seed: int = 7) -> Channels:
    return Channels(Random(seed).randbytes)


def bind(channels: Channels, grant: Grant, where: Hashable, counter: int = 1, now: float = 0.0) -> bytes | None:
    return channels.bind(write_bind(grant.secret, Bind(grant.number, counter)), where, SEEN, now)


def bound_pair(channels: Channels, now: float = 0.0) -> tuple[Grant, Grant]:
    opened = channels.open(A, B, now)
    assert bind(channels, opened.ours, AT_A, now=now) and bind(channels, opened.theirs, AT_B, now=now)
    return opened.ours, opened.theirs


def sent(channels: Channels) -> list[tuple[Hashable, bytes]]:
    return [(where, datagram) for _, where, datagrams in channels.take(1 << 30) for datagram in datagrams]


def test_a_datagram_of_one_end_goes_to_where_the_other_end_is_as_it_is() -> None:
    channels = relay()
    ours, theirs = bound_pair(channels)
    there, back = write_relayed(ours.number, b"hello"), write_relayed(theirs.number, b"and back")
    assert channels.relayed(there, AT_A) and channels.relayed(back, AT_B)
    assert sorted(sent(channels), key=str) == [(AT_A, back), (AT_B, there)]
    assert theirs.number == ours.number ^ 1
    channels.validate()


def test_a_bind_is_answered_by_a_bound_as_long_that_says_from_where_it_came() -> None:
    channels = relay()
    ours = channels.open(A, B, 0.0).ours
    answer = bind(channels, ours, AT_A)
    assert answer is not None and len(answer) == SIGNED_BYTES
    bound = read_bound(ours.secret, answer)
    assert bound is not None and (bound.channel, bound.counter, bound.seen) == (ours.number, 1, SEEN)


def test_what_comes_from_where_its_end_is_not_goes_nowhere() -> None:
    channels = relay()
    ours, _ = bound_pair(channels)
    assert not channels.relayed(write_relayed(ours.number, b"forged"), ELSEWHERE)
    assert not channels.relayed(write_relayed(ours.number ^ 2, b"no such channel"), AT_A)
    assert not sent(channels)
    assert (channels.counts.misplaced, channels.counts.unknown) == (1, 1)


def test_a_forged_or_replayed_bind_moves_nothing_and_is_not_answered() -> None:
    channels = relay()
    ours, theirs = bound_pair(channels)
    assert bind(channels, Grant(ours.number, theirs.secret, 0.0), ELSEWHERE, counter=9) is None
    assert bind(channels, ours, ELSEWHERE, counter=1) is None, "a replay"
    channels.relayed(write_relayed(theirs.number, b"x"), AT_B)
    assert [where for where, _ in sent(channels)] == [AT_A]
    assert channels.counts.forged == 2


def test_an_end_that_has_moved_is_found_there_and_what_it_sent_from_the_old_place_still_goes_on() -> None:
    channels = relay()
    ours, theirs = bound_pair(channels)
    assert bind(channels, ours, ELSEWHERE, counter=2)
    assert channels.relayed(write_relayed(ours.number, b"late"), AT_A)
    assert channels.relayed(write_relayed(theirs.number, b"x"), AT_B)
    assert {where for where, _ in sent(channels)} == {AT_B, ELSEWHERE}


def test_what_is_sent_before_the_other_end_has_bound_waits_for_it() -> None:
    channels = relay()
    opened = channels.open(A, B, 0.0)
    bind(channels, opened.ours, AT_A)
    first = write_relayed(opened.ours.number, b"an Initial")
    assert channels.relayed(first, AT_A)
    assert not sent(channels)
    bind(channels, opened.theirs, AT_B)
    assert sent(channels) == [(AT_B, first)]


def test_a_datagram_that_is_longer_than_a_packet_over_a_relay_is_dropped() -> None:
    channels = relay()
    ours, _ = bound_pair(channels)
    assert not channels.relayed(write_relayed(ours.number, bytes(module.DATAGRAM_MAX_BYTES)), AT_A)
    assert not channels.relayed(write_relayed(ours.number, b""), AT_A)


def test_a_receiver_that_does_not_read_keeps_memory_bounded_and_gets_the_newest() -> None:
    channels = relay()
    ours, _ = bound_pair(channels)
    channels.hold(AT_B)
    for n in range(5_000):
        channels.relayed(write_relayed(ours.number, n.to_bytes(4, "big") * 300), AT_A)
    assert channels.queue.bytes <= 256 << 10
    assert not sent(channels)
    channels.validate()
    channels.resume(AT_B)
    assert sent(channels)[-1][1] == write_relayed(ours.number, (4_999).to_bytes(4, "big") * 300)


def test_an_end_whose_connection_has_ended_is_nowhere_until_it_binds_again() -> None:
    channels = relay()
    _, theirs = bound_pair(channels)
    channels.relayed(write_relayed(theirs.number, b"lost with it"), AT_B)
    channels.gone(AT_A)
    channels.validate()
    assert not sent(channels)
    assert not channels.relayed(write_relayed(theirs.number ^ 1, b"x"), AT_A)


def test_reservations_end_by_themselves_unless_they_are_renewed() -> None:
    channels = relay()
    assert channels.reserve(B, 0.0) == LEASE_S
    channels.reserve(C, 0.0)
    channels.reserve(C, LEASE_S / 2)
    channels.tick(LEASE_S)
    assert not channels.is_reserved(B) and channels.is_reserved(C)


def test_a_channel_ends_when_one_of_its_ends_does_not_come() -> None:
    channels = relay()
    opened = channels.open(A, B, 0.0)
    bind(channels, opened.ours, AT_A, now=0.0)
    channels.tick(UNBOUND_S - 1)
    assert len(channels) == 1
    channels.tick(UNBOUND_S)
    assert len(channels) == 0
    channels.validate()


def test_a_channel_ends_when_one_of_its_ends_has_fallen_silent_and_not_while_both_bind() -> None:
    channels = relay()
    ours, theirs = bound_pair(channels)
    now = 0.0
    for counter in range(2, 30):
        now += 15
        bind(channels, ours, AT_A, counter, now)
        bind(channels, theirs, AT_B, counter, now)
        channels.tick(now)
    assert len(channels) == 1
    channels.tick(now + BINDING_S)
    channels.tick(now + BINDING_S + UNBOUND_S)
    assert len(channels) == 0


def test_a_lease_of_a_channel_ends_although_it_is_used_unless_a_member_renews_it() -> None:
    for renewed in (False, True):
        channels = relay()
        ours, theirs = bound_pair(channels)
        if renewed:
            assert channels.keep(A, [ours.number, 77], LEASE_S / 2) == [ours.number]
            assert channels.keep(C, [ours.number], LEASE_S / 2) == [], "it is not its"
        for counter in range(2, 60):
            bind(channels, ours, AT_A, counter, counter * 15.0)
            bind(channels, theirs, AT_B, counter, counter * 15.0)
            channels.tick(min(counter * 15.0, LEASE_S))
        assert len(channels) == renewed


def test_who_is_no_member_any_more_has_nothing_here() -> None:
    channels = relay()
    ours, theirs = bound_pair(channels)
    channels.open(C, B, 0.0)
    channels.reserve(B, 0.0)
    channels.expel(B)
    channels.validate()
    assert len(channels) == 0 and channels.reservations == 0
    assert bind(channels, theirs, AT_B, 2) is None and bind(channels, ours, AT_A, 2) is None


def test_only_the_owner_of_an_end_closes_its_channel() -> None:
    channels = relay()
    ours, theirs = bound_pair(channels)
    channels.close(C, ours.number)
    channels.close(A, theirs.number)
    channels.close(A, -1)
    assert len(channels) == 1
    channels.close(B, theirs.number)
    assert len(channels) == 0
    channels.validate()


def test_a_member_has_few_channels_to_one_other_and_the_oldest_gives_way() -> None:
    channels = relay()
    first = channels.open(A, B, 0.0).ours
    for n in range(PAIR_MAX):
        channels.open(A, B, 1.0 + n)
    assert len(channels) == PAIR_MAX
    assert channels.keep(A, [first.number], 9.0) == []
    channels.validate()


def test_a_member_opens_a_bounded_number_of_channels_and_no_more_than_so_many_a_second() -> None:
    channels = relay()
    others = [PeerId(n.to_bytes(32, "big")) for n in range(1000, 2000)]
    opened, now = 0, 0.0
    with pytest.raises(PeerUnreachableError, match="a second"):
        for other in others:
            channels.open(A, other, now)
            opened += 1
    assert opened == module.OPENINGS_BURST
    channels.open(C, A, now)  # others are not kept from it
    with pytest.raises(PeerUnreachableError, match=f"has {OPENED_MAX} channels"):
        for other in others[opened:]:
            now += 1 / module.OPENINGS_PER_S
            channels.open(A, other, now)
    channels.open(C, B, now)
    channels.validate()


def test_nobody_opens_a_channel_to_itself() -> None:
    with pytest.raises(ConfigError):
        relay().open(A, A, 0.0)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["open", "bind", "relayed", "take", "hold", "resume", "gone", "tick", "close", "expel", "keep"]
        ),
        st.integers(0, 7),
        st.integers(0, 7),
    ),
    max_size=80,
)


@given(STEPS)
def test_whatever_is_done_with_channels_their_books_hold(steps: list[tuple[str, int, int]]) -> None:
    channels, peers, places = relay(), [A, B, C], [AT_A, AT_B, ELSEWHERE, "fourth"]
    grants: list[tuple[PeerId, Grant]] = []
    now = 0.0
    for counter, (what, one, other) in enumerate(steps, 1):
        where = places[other % 4]
        owner, grant = grants[one % len(grants)] if grants else (A, Grant(2, bytes(32), 0.0))
        match what:
            case "open" if one % 3 != other % 3:
                opened = channels.open(peers[one % 3], peers[other % 3], now)
                grants += [(peers[one % 3], opened.ours), (peers[other % 3], opened.theirs)]
            case "bind":
                bind(channels, grant, where, counter, now)
            case "relayed":
                channels.relayed(write_relayed(grant.number, bytes(100 * other + 1)), where)
            case "take":
                sent(channels)
            case "hold":
                channels.hold(where)
            case "resume":
                channels.resume(where)
            case "gone":
                channels.gone(where)
            case "tick":
                now += 11.0 * other
                channels.tick(now)
            case "close":
                channels.close(owner, grant.number)
            case "expel" if one == other:
                channels.expel(owner)
            case "keep":
                channels.keep(owner, [grant.number], now)
        channels.validate()


@given(st.binary(max_size=80), st.binary(max_size=2100))
def test_noise_is_neither_answered_nor_passed_on(noise: bytes, more: bytes) -> None:
    channels = relay()
    ours, _ = bound_pair(channels)
    number = ours.number.to_bytes(8, "big")
    for data in (noise, b"\x03" + number + noise, b"\x04" + number + noise):
        assert channels.bind(data, ELSEWHERE, SEEN, 1.0) is None
    assert not channels.relayed(more, ELSEWHERE) and not channels.relayed(b"\x05" + number + more, ELSEWHERE)
    channels.validate()
