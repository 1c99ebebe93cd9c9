"""Stories of two and three peers whose connections break, whose processes restart, and whose directories are copied."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.mesh import wire
from lattica.mesh.dialing import BREACH_FAILURES
from lattica.mesh.identity import PeerId
from lattica.mesh.links import (
    DATAGRAM_RANK,
    STREAM_RANK,
    Attached,
    ClockSample,
    SessionDown,
    SessionUp,
    TwinSeen,
    Unreachable,
    WeAreTwin,
)
from lattica.mesh.liveness import MEASURE_S, WAIT_S, round_trip
from lattica.mesh.peering import STEADY_S
from lattica.mesh.sessions import (
    BACKOFF_S,
    BULK_IDLE_S,
    CONNECTIONS_MAX,
    DEAD_AFTER_S,
    HELLO_S,
    KEEP_S,
    PROBE_S,
    UNREACHABLE_S,
)
from lattica.mesh.wire import BULK, CONTROL, Data, Hello, Pong, Want, data_head, encode
from tests.mesh.ring import UNIX_S, Node, Ring, byes, pair, session_of

# -- beginnings


@pytest.mark.parametrize(("low", "high"), [(1, 2), (2, 1)])
def test_two_peers_agree_on_a_session_whoever_dials(low: int, high: int) -> None:
    ring, ann, bob = pair(low, high)
    assert session_of(ann, bob) == session_of(bob, ann)
    ring.say(ann, bob, b"one")
    ring.say(bob, ann, b"two")
    assert ann.sessions.rtt_s(bob.id) == 0.0 and list(ann.sessions.peers()) == [bob.id]
    assert "1 up, 1 connections" in repr(ann.sessions)


def test_the_round_trip_is_measured_again_while_a_session_is_never_silent() -> None:
    """Gossip goes on; a shorter trip is believed at once, a longer one by and by."""
    ring, ann, bob = pair()

    def talk(seconds: float) -> None:
        for _ in range(int(seconds)):
            ring.say(ann, bob, b"news")
            ring.say(bob, ann, b"news")
            ring.advance(1.0)

    connection = ann.sessions._peerings[bob.id].control
    assert connection is not None
    ann.sessions._peerings[bob.id].rtt_s = connection.rtt_s = 0.4  # of a busy moment
    talk(MEASURE_S + 2)
    assert ann.sessions.rtt_s(bob.id) == 0.0
    assert round_trip(None, 0.2) == 0.2 and round_trip(0.1, 0.5) == pytest.approx(0.2)


@pytest.mark.parametrize("first", ["ann", "bob"])
@pytest.mark.parametrize("beside", [False, True])
def test_of_two_connections_dialed_at_once_both_sides_keep_the_one_of_the_lower_peer(first: str, beside: bool) -> None:
    """Both dial before either hears of the other. beside: hellos of both are under way when the second is accepted."""
    ring = Ring()
    nodes = {"ann": ring.node("ann", 1), "bob": ring.node("bob", 2)}
    ann, bob = nodes["ann"], nodes["bob"]
    ring.hold_dials = True
    ring.perform(ann, ann.sessions.connect(bob.id, ["bob"], ring.now))
    ring.perform(bob, bob.sessions.connect(ann.id, ["ann"], ring.now))
    dials = sorted(ring.dials, key=lambda dial: dial[0].name != first)
    ring.dials.clear()
    for dial in dials:
        ring._dial(*dial)
        if not beside:
            ring.settle()
    ring.settle()
    assert session_of(ann, bob) == session_of(bob, ann)
    assert len(ring.pipes(ann)) == len(ring.pipes(bob)) == 1
    assert ring.carrier(ann, bob).other is ring.carrier(bob, ann)
    kept = ring.ends["ann", ring.carrier(ann, bob).number]
    assert ann.sessions._us.connections[kept.number].dialed, "the one that the lower PeerId has dialed"
    assert len(ann.seen(SessionUp)) == len(bob.seen(SessionUp)) == 1
    ring.say(ann, bob, b"one")
    ring.say(bob, ann, b"two")


def test_a_hello_brings_a_sample_of_the_other_clock() -> None:
    _, ann, bob = pair()
    assert [sample.offset_s for sample in ann.seen(ClockSample)] == [0.0]
    assert ann.seen(Attached)[0].hello.unix_s == UNIX_S and not bob.seen(Attached)[0].resumed


def test_a_peer_that_speaks_another_protocol_is_told_which_and_left_alone() -> None:
    ring = Ring()
    ann, bob = ring.node("ann", 1), ring.node("bob", 2, protocol=9, oldest=9, version="9.0")
    ring.connect(ann, bob)
    ring.advance(60)
    (told,) = ann.seen(Unreachable)
    assert told.final and "speaks protocol" in told.reason and not ann.seen(SessionUp)
    assert not ring.pipes(ann) and not ring.dials


def test_who_says_nothing_is_hung_up_after_a_while() -> None:
    ring = Ring()
    ann, mute = ring.node("ann", 1), ring.node("mute", 2)
    _, end = ring.join(mute, ann)
    ring.perform(ann, ann.sessions.accepted(end.number, mute.paper, ring.now))
    ring.advance(HELLO_S - 1)
    assert end.open
    ring.advance(1.5)
    assert not end.open and byes(end) == ["stale"]
    assert not ann.sessions._peerings, "and forgotten"


def test_one_peer_may_not_open_connections_without_end() -> None:
    ring, ann, bob = pair()
    ends = []
    for _ in range(20):
        _, end = ring.join(bob, ann)
        ring.perform(ann, ann.sessions.accepted(end.number, bob.paper, ring.now))
        ends.append(end)
    assert sum(end.open for end in ends) == CONNECTIONS_MAX - 1


# -- ways of different rank


@pytest.mark.parametrize("better", ["ann", "bob"])
@pytest.mark.parametrize("first", ["ann", "bob"])
@pytest.mark.parametrize("beside", [False, True])
def test_of_two_connections_dialed_at_once_the_better_way_is_kept_whoever_dialed_it(
    better: str, first: str, beside: bool
) -> None:
    ring = Ring()
    nodes = {"ann": ring.node("ann", 1), "bob": ring.node("bob", 2)}
    ann, bob = nodes["ann"], nodes["bob"]
    ring.hold_dials = True
    ring.perform(ann, ann.sessions.connect(bob.id, ["bob"], ring.now))
    ring.perform(bob, bob.sessions.connect(ann.id, ["ann"], ring.now))
    dials = sorted(ring.dials, key=lambda dial: dial[0].name != first)
    ring.dials.clear()
    for node, dial in dials:
        ring.rank = STREAM_RANK if node.name == better else DATAGRAM_RANK
        ring._dial(node, dial)
        if not beside:
            ring.settle()
    ring.settle()
    ring.hold_dials = False
    ring.advance(3 * DEAD_AFTER_S)
    assert ring.carrier(ann, bob).other is ring.carrier(bob, ann)
    kept = ring.carrier(nodes[better], ann if better == "bob" else bob)
    assert nodes[better].sessions._us.connections[kept.number].dialed
    assert len(ring.pipes(ann)) == len(ring.pipes(bob)) == 1
    assert len(ann.seen(SessionUp)) == len(bob.seen(SessionUp)) == 1
    ring.say(ann, bob, b"one")
    ring.say(bob, ann, b"two")


@pytest.mark.parametrize(("low", "high"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("by_dialer", [True, False])
def test_a_better_way_takes_over_with_what_was_under_way_on_both_planes(low: int, high: int, by_dialer: bool) -> None:
    """A session over QUIC, and then one of them reaches the other by TCP."""
    ring = Ring()
    ring.rank = DATAGRAM_RANK
    ann, bob = ring.node("ann", low), ring.node("bob", high)
    ring.connect(ann, bob)
    ring.say(ann, bob, b"much", BULK)
    ring.rank = STREAM_RANK
    old, old_bulk = ring.carrier(ann, bob), ring.carrier(ann, bob, BULK)
    ring.silence(old), ring.silence(old_bulk)  # what is sent now does not arrive by these
    ring.send(ann, bob, b"0")
    ring.send(ann, bob, b"1", BULK)
    one, two = (ann, bob) if by_dialer else (bob, ann)
    ring.perform(one, one.sessions.upgrade(two.id, [two.name]))
    ring.settle()
    ring.advance(1)
    assert sorted(bob.got) == [b"0", b"1", b"much"]
    assert not old.open and not old_bulk.open
    for node, other in ((ann, bob), (bob, ann)):
        for plane in (CONTROL, BULK):
            carrier = ring.carrier(node, other, plane)
            assert node.sessions._us.connections[carrier.number].rank == STREAM_RANK
    assert not ann.seen(SessionDown) and len(ann.seen(SessionUp)) == 1


def test_a_worse_way_takes_over_when_the_dialer_has_lost_the_better_one() -> None:
    """ann's TCP connection broke, bob has not heard of it, and only QUIC is left."""
    ring, ann, bob = pair()
    old = ring.carrier(ann, bob)
    ring.silence(old)
    old.open = False
    ring.rank = DATAGRAM_RANK
    ring.perform(ann, ann.sessions.closed(old.number, "reset", ring.now))
    ring.advance(1)
    ring.say(ann, bob, b"over the other")
    ring.say(bob, ann, b"and back")


def test_an_upgrade_that_fails_changes_nothing_and_is_not_needed_without_a_session() -> None:
    ring, ann, bob = pair()
    old = ring.carrier(ann, bob)
    bob.listens = False
    ring.perform(ann, ann.sessions.upgrade(bob.id))
    ring.settle()
    assert ring.carrier(ann, bob) is old and not ann.seen(Unreachable)
    assert ann.sessions.upgrade(PeerId(bytes(32)), ["nobody"]) == []
    ring.say(ann, bob, b"as before")
    bob.listens = True
    ring.cut(old)
    ring.advance(1)
    ring.say(ann, bob, b"again")


# -- connections die


def test_a_wish_for_bulk_that_was_lost_with_its_connection_is_said_again_over_the_next() -> None:
    """bob cannot dial, so he asks ann to; she has just closed that connection, since her certificates are new."""
    ring, ann, bob = pair()
    old = ring.carrier(ann, bob)
    ring.silence(old)
    ring.send(bob, ann, b"much", BULK)
    ring.perform(ann, ann.sessions.reconnect("its certificates were renewed", ring.now))
    ring.perform(bob, bob.sessions.closed(ring.carrier(bob, ann).number, "closed", ring.now))
    ring.advance(1)
    assert ann.got == [b"much"]


@pytest.mark.parametrize("plane", [CONTROL, BULK])
def test_a_connection_that_breaks_is_replaced_and_nothing_is_lost(plane: int) -> None:
    ring, ann, bob = pair()
    ring.say(ann, bob, b"0", plane)
    for number in range(1, 30):
        ring.cut(ring.carrier(ann, bob, plane))
        ring.send(ann, bob, b"%d" % number, plane)
        if number % 3 == 0:
            ring.settle()
        ring.advance(1.0)
    assert bob.got == [b"%d" % number for number in range(30)]
    assert len(ann.seen(SessionUp)) == 1 and not ann.seen(SessionDown)


def test_a_connection_that_is_dead_without_a_sound_is_noticed_and_replaced() -> None:
    """A NAT forgot it. Something is due, so silence is soon suspect."""
    ring, ann, bob = pair()
    old = ring.carrier(ann, bob)
    ring.silence(old)
    ring.send(ann, bob, b"is anybody there")
    ring.advance(DEAD_AFTER_S + 3)
    assert bob.got == [b"is anybody there"] and not old.open
    assert session_of(ann, bob) == session_of(bob, ann) and not ann.seen(SessionDown)


def test_an_address_that_becomes_known_during_a_dial_is_tried_beside_it() -> None:
    """ann knows bob by the address of his LAN, which leads nowhere from where she is; then his row names a relay."""
    ring = Ring()
    ann, bob = ring.node("ann", 1), ring.node("bob", 2)
    ring.hold_dials = True
    ring.perform(ann, ann.sessions.connect(bob.id, ["10.0.0.1:7411"], ring.now))
    ring.perform(ann, ann.sessions.found(bob.id, ["10.0.0.1:7411", "bob"]))
    (_, slow), beside = ring.dials
    assert beside[1].addresses == ("bob",)
    ring.perform(ann, ann.sessions.found(bob.id, ["10.0.0.1:7411", "bob"]))
    assert len(ring.dials) == 2, "it was not new"
    ring.dials.popleft()
    ring.hold_dials = False
    ring.settle()
    assert ann.seen(SessionUp) and ann.sessions.connection(bob.id) is not None
    ring.perform(ann, ann.sessions.dial_failed(slow.attempt, "timed out", ring.now))
    ring.advance(20)
    assert not ring.dials and not ann.seen(SessionDown) and len(ring.dialed_at) == 1


def test_a_peer_that_is_reached_by_datagrams_is_dialed_at_an_address_that_it_tells_of_later() -> None:
    """Its gateway has mapped a port, a second after the two met by way of a relay; ann's firewall lets no UDP out."""
    ring = Ring()
    ann, bob = ring.node("ann", 1), ring.node("bob", 2)
    ring.rank = DATAGRAM_RANK
    ring.connect(ann, bob)
    relayed = ring.carrier(ann, bob)
    ring.hold_dials = True
    ring.perform(ann, ann.sessions.found(bob.id, ["bob", "relay/x"]))
    assert not ring.dials, "another relay is no better way"
    ring.perform(ann, ann.sessions.found(bob.id, ["bob", "relay/x", "mapped"]))
    ((_, dial),) = ring.dials
    assert dial.addresses == ("mapped",)
    ring.dials.clear()
    ring.dials.append((ann, type(dial)(dial.attempt, bob.id, ("bob",), dial.plane)))
    ring.rank, ring.hold_dials = STREAM_RANK, False
    ring.settle()
    assert ring.carrier(ann, bob) is not relayed and not relayed.open


def test_a_dial_that_fails_beside_another_one_is_no_failure_yet() -> None:
    ring = Ring()
    ann, bob = ring.node("ann", 1), ring.node("bob", 2)
    ring.hold_dials = True
    ring.perform(ann, ann.sessions.connect(bob.id, ["nowhere"], ring.now))
    ring.perform(ann, ann.sessions.found(bob.id, ["bob"]))
    first, second = (dial.attempt for _, dial in ring.dials)
    ring.dials.clear()
    ring.perform(ann, ann.sessions.dial_failed(first, "refused", ring.now))
    ring.advance(5)
    assert not ring.dials, "the second one is under way"
    ring.perform(ann, ann.sessions.dial_failed(second, "refused", ring.now))
    ring.advance(1)
    assert len(ring.dials) == 1


def test_a_new_address_ends_a_pause_and_a_hostile_row_makes_no_more_than_a_few_dials() -> None:
    ring = Ring()
    ann, bob = ring.node("ann", 1), ring.node("bob", 2)
    ring.hold_dials = True
    ring.perform(ann, ann.sessions.connect(bob.id, ["nowhere"], ring.now))
    _, dial = ring.dials.popleft()
    ring.perform(ann, ann.sessions.dial_failed(dial.attempt, "refused", ring.now))
    assert not ring.dials
    for number in range(10):
        ring.perform(ann, ann.sessions.found(bob.id, [f"bob{number}"]))
    assert 1 <= len(ring.dials) <= 3


def test_a_way_that_is_gone_is_replaced_before_it_is_given_up() -> None:
    """The router of ann has another address: what she has sent is never answered, and her kernel tries for minutes."""
    ring, ann, bob = pair()
    ring.say(bob, ann, b"bulk", BULK)
    ring.silence(ring.carrier(ann, bob)), ring.silence(ring.carrier(ann, bob, BULK))
    ring.send(ann, bob, b"call")
    ring.send(bob, ann, b"more bulk", BULK)
    ring.advance(WAIT_S + 0.01)
    assert bob.got == [b"call"] and ann.got == [b"bulk", b"more bulk"] and len(ann.seen(SessionUp)) == 1


def test_a_peer_that_is_only_slow_keeps_the_bulk_that_flows() -> None:
    ring, ann, bob = pair()
    ring.say(bob, ann, b"bulk", BULK)
    bulk = ring.carrier(ann, bob, BULK)
    ring.silence(ring.carrier(ann, bob))
    ring.send(ann, bob, b"call")
    ring.hold_dials = True
    ring.advance(WAIT_S + 0.01)
    ring.say(bob, ann, b"more", BULK)
    ring.hold_dials = False
    ring.advance(0.1)
    assert bob.got == [b"call"] and ring.carrier(ann, bob, BULK) is bulk


def test_bulk_by_a_dead_tcp_connection_goes_on_by_another_way_while_control_is_heard_by_quic() -> None:
    """Both punched their NATs, control by UDP and bulk by TCP; then bob's router got another address. The path table
    has found another path for control; ann has nothing to send, and would not ask for a quarter of a minute."""
    ring = Ring()
    ann, bob = ring.node("ann", 1), ring.node("bob", 2)
    ring.rank = DATAGRAM_RANK
    ring.connect(ann, bob)
    ring.rank = STREAM_RANK
    ring.say(bob, ann, b"1", BULK)
    old = ring.carrier(ann, bob, BULK)
    ring.silence(old)
    ring.rank = DATAGRAM_RANK
    ring.send(bob, ann, b"2", BULK)
    for _ in range(15):
        ring.advance(0.1)
        ring.say(ann, bob, b"alive")
    assert ann.got == [b"1", b"2"] and not ann.seen(SessionDown)
    assert ring.carrier(ann, bob, BULK) is not old


def test_a_process_that_wakes_answers_over_control_first_and_keeps_its_bulk_connection() -> None:
    """It stood still for a second; what it had been asked over both, it answers within a millisecond, control first."""
    ring = Ring()
    ann, bob = ring.node("ann", 1), ring.node("bob", 2)
    ring.rank = DATAGRAM_RANK
    ring.connect(ann, bob)
    ring.rank = STREAM_RANK
    ring.say(bob, ann, b"1", BULK)
    bulk = ring.carrier(bob, ann, BULK)
    ring.silence(bulk)
    ring.send(bob, ann, b"2", BULK)
    ring.advance(WAIT_S + 0.4)
    ring.say(ann, bob, b"awake")
    ring.advance(0.001)
    bulk.silent = bulk.other.silent = False  # type: ignore[union-attr]
    ring.perform(bob, bob.sessions.received(bulk.number, [Pong(0)], ring.now))
    ring.advance(1)
    assert ring.carrier(bob, ann, BULK) is bulk


def test_when_nothing_is_due_silence_is_broken_by_pings() -> None:
    ring, ann, bob = pair()
    ring.advance(300)
    assert len(ring.pipes(ann)) == 1
    ring.silence(ring.carrier(ann, bob))
    ring.advance(30)
    assert len(ring.pipes(ann)) == 1 and ring.carrier(ann, bob).other is ring.carrier(bob, ann)


@pytest.mark.parametrize(("low", "high"), [(1, 2), (2, 1)])
def test_a_half_dead_connection_is_replaced_by_the_one_that_the_other_side_dials(low: int, high: int) -> None:
    """bob's side of the connection is gone, ann's is silent and she does not know: bob dials, and she asks the old
    one whether it lives. Whoever is lower, bob's connection carries the session in the end."""
    ring, ann, bob = pair(low, high)
    bob.sessions.connect(ann.id, ["ann"], ring.now)
    old = ring.carrier(bob, ann)
    ring.silence(old)
    old.open = False
    ring.perform(bob, bob.sessions.closed(old.number, "reset", ring.now))
    ring.advance(PROBE_S + 2 * DEAD_AFTER_S)
    assert ring.carrier(ann, bob).other is ring.carrier(bob, ann)
    assert ring.carrier(bob, ann) is not old and not ann.seen(SessionDown)
    ring.say(ann, bob, b"after")
    ring.say(bob, ann, b"too")


def test_a_session_without_a_connection_is_given_up_in_the_end() -> None:
    ring, ann, bob = pair()
    bob.listens = False
    ring.cut(ring.carrier(ann, bob))
    ring.advance(KEEP_S - 1)
    assert not ann.seen(SessionDown) and not bob.seen(SessionDown)
    ring.advance(2)
    for node in (ann, bob):
        (down,) = node.seen(SessionDown)
        assert "no connection for 60 s" in down.reason
    ring.advance(UNREACHABLE_S)
    assert [told.final for told in ann.seen(Unreachable)] == [False]
    assert not bob.sessions._peerings, "nobody there wanted it"
    bob.listens = True
    ring.advance(BACKOFF_S[1] * 2)
    assert len(ann.seen(SessionUp)) == 2, "ann still wants a session, and dials"


def test_a_session_that_one_side_gave_up_is_never_taken_up_again() -> None:
    """bob's clock ran through the minute, ann's laptop slept: what bob may have run must not come twice."""
    ring, ann, bob = pair()
    ring.send(ann, bob, b"lost")
    first = session_of(ann, bob)
    end = ring.carrier(ann, bob)
    ring.silence(end)
    ring.perform(bob, bob.sessions.disconnect(ann.id, "given up", ring.now))
    ring.cut(end)
    ring.settle()
    ring.advance(5)
    assert len(ann.seen(SessionDown)) == 1 and session_of(ann, bob) != first and bob.got == []
    ring.say(ann, bob, b"fresh")


def test_dialing_pauses_longer_and_longer_and_those_who_wait_are_told() -> None:
    ring = Ring()
    ann, bob = ring.node("ann", 1), ring.node("bob", 2)
    bob.listens = False
    ring.perform(ann, ann.sessions.connect(bob.id, ["bob"], ring.now))
    began = ring.now
    ring.advance(200)
    times = [at - began for at in ring.dialed_at]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert 8 < len(times) < 20 and max(pauses) < BACKOFF_S[1] * 1.5 + 0.1 and pauses[-1] > 10 > 0.5 > pauses[0]
    (told,) = ann.seen(Unreachable)
    assert not told.final and "nobody answered for 10 s" in told.reason


def test_a_dial_that_is_not_wanted_any_more_comes_to_nothing() -> None:
    ring = Ring()
    ann, bob = ring.node("ann", 1), ring.node("bob", 2)
    ring.hold_dials = True
    ring.perform(ann, ann.sessions.connect(bob.id, ["bob"], ring.now))
    ring.perform(ann, ann.sessions.disconnect(bob.id, "changed my mind", ring.now))
    ring.hold_dials = False
    ring.settle()
    ring.advance(20)
    assert not ann.seen(SessionUp) and not bob.seen(SessionUp) and not ring.pipes(ann)
    assert not ann.sessions._peerings and not bob.sessions._peerings


def test_a_dial_that_reaches_another_peer_harms_no_session_with_it() -> None:
    """The address of cyd was bob's before: whoever answers there is not whom ann called, and is not offended."""
    ring, ann, bob = pair()
    cyd = ring.node("cyd", 3)
    cyd.listens = False
    ring.perform(ann, ann.sessions.connect(cyd.id, ["bob"], ring.now))
    ring.settle()
    ring.advance(1)
    assert not bob.seen(SessionDown) and not ann.seen(SessionDown)
    ring.say(ann, bob, b"still here")


# -- ends


def test_a_peer_that_leaves_says_so() -> None:
    ring, ann, bob = pair()
    ring.perform(bob, bob.sessions.stop("maintenance", ring.now))
    ring.settle()
    assert [down.reason for down in ann.seen(SessionDown)] == ["maintenance"]
    assert not ring.pipes(ann)
    ring.perform(bob, bob.sessions.connect(ann.id, ["ann"], ring.now))
    assert not ring.dials, "it has stopped"


def test_a_refused_peer_is_final_and_is_not_dialed_again() -> None:
    ring = Ring()
    ann, bob = ring.node("ann", 1), ring.node("bob", 2)
    bob.refuses.add(ann.id)
    ring.connect(ann, bob)
    ring.advance(300)
    (told,) = ann.seen(Unreachable)
    assert told.final and "it is revoked" in told.reason and not ring.dials
    bob.refuses.clear()
    ring.connect(ann, bob)
    assert ann.seen(SessionUp), "somebody asked again"


def test_a_dial_that_tls_refuses_is_final_too() -> None:
    ring = Ring()
    ann = ring.node("ann", 1)
    bob = ring.node("bob", 2)
    ring.hold_dials = True
    ring.perform(ann, ann.sessions.connect(bob.id, ["bob"], ring.now))
    _, dial = ring.dials.popleft()
    ring.perform(ann, ann.sessions.dial_failed(dial.attempt, "certificate revoked", ring.now, final=True))
    assert ann.seen(Unreachable)[0].final and ann.sessions.next_deadline() is None


def test_a_refusal_of_certificates_that_were_renewed_meanwhile_is_not_final() -> None:
    """Ann dials with a certificate that has expired. While the handshake is under way an issuer renews it; then the
    refusal of the old one comes. She dials again, with the new one."""
    ring = Ring()
    ann = ring.node("ann", 1)
    bob = ring.node("bob", 2)
    ring.hold_dials = True
    ring.perform(ann, ann.sessions.connect(bob.id, ["bob"], ring.now))
    _, dial = ring.dials.popleft()
    ring.perform(ann, ann.sessions.reconnect("its certificates were renewed", ring.now))
    ring.perform(ann, ann.sessions.dial_failed(dial.attempt, "certificate expired", ring.now, final=True))
    assert not ann.seen(Unreachable) and ann.sessions.next_deadline() is not None


def test_a_revocation_ends_the_session_at_once_on_both_sides() -> None:
    ring, ann, bob = pair()
    ring.say(ann, bob, b"bulk too", BULK)
    bob.refuses.add(ann.id)
    ring.perform(bob, bob.sessions.recheck(ring.now))
    ring.settle()
    for node in (ann, bob):
        assert len(node.seen(SessionDown)) == 1 and "revoked" in node.seen(SessionDown)[0].reason
        assert not ring.pipes(node)
    assert ann.seen(Unreachable)[0].final
    ring.advance(120)
    assert not ring.pipes(ann) and not bob.sessions._peerings


def test_a_certificate_that_expires_ends_the_connection_and_not_the_session() -> None:
    ring = Ring()
    ann, bob = ring.node("ann", 1, expires=UNIX_S + 100), ring.node("bob", 2)
    ring.connect(ann, bob)
    ring.say(ann, bob, b"before")
    old = ring.carrier(bob, ann)
    ann.paper = type(ann.paper)(ann.id)  # it was renewed
    ring.advance(99)
    assert old.open
    ring.advance(3)
    assert not old.open and byes(old) == ["stale"]
    ring.say(ann, bob, b"after")
    assert not bob.seen(SessionDown) and [each.resumed for each in bob.seen(Attached)] == [False, True]
    assert bob.sessions.member(ann.id) == ann.paper


def test_a_clock_that_is_behind_by_the_mesh_s_opinion_sees_certificates_expire_in_time() -> None:
    ring = Ring()
    ann, bob = ring.node("ann", 1, expires=UNIX_S + 100), ring.node("bob", 2)
    ring.connect(ann, bob)
    bob.sessions.correction_s = 60.0
    old = ring.carrier(bob, ann)
    ann.paper = type(ann.paper)(ann.id)
    ring.advance(41)
    assert not old.open and bob.sessions.correction_s == 60.0


def test_new_certificates_move_every_session_to_new_connections() -> None:
    ring, ann, bob = pair()
    ring.say(ann, bob, b"bulk", BULK)
    old = [ring.carrier(ann, bob, plane) for plane in (CONTROL, BULK)]
    ring.perform(ann, ann.sessions.reconnect("renewed", ring.now))
    ring.send(ann, bob, b"more", BULK)
    ring.advance(2)
    assert not any(end.open for end in old) and bob.got == [b"bulk", b"more"] and not ann.seen(SessionDown)


def test_what_is_sent_while_certificates_are_renewed_does_not_wait_for_the_new_connection() -> None:
    ring, ann, bob = pair()
    old = ring.carrier(ann, bob)
    ring.hold_dials = True
    ring.perform(ann, ann.sessions.reconnect("renewed", ring.now))
    ring.say(ann, bob, b"meanwhile")
    assert bob.got == [b"meanwhile"] and old.open and len(ring.dials) == 1
    ring.hold_dials = False
    ring.advance(1)
    assert not old.open and ring.carrier(ann, bob) is not old
    ring.say(bob, ann, b"after")
    assert ann.got == [b"after"]


# -- bulk


def test_bulk_has_a_connection_of_its_own_when_there_is_some() -> None:
    ring, ann, bob = pair()
    assert len(ring.pipes(ann)) == 1
    ring.say(ann, bob, b"bulk", BULK)
    assert len(ring.pipes(ann)) == 2
    ring.say(bob, ann, b"bulk back", BULK)
    assert len(ring.pipes(ann)) == 2


def test_who_cannot_dial_asks_the_other_side_for_bulk() -> None:
    """bob sits behind a NAT that ann's dial cannot reach, or the other way round: only one side may be able to."""
    ring, ann, bob = pair()
    ann.listens = False
    ring.say(bob, ann, b"please fetch", BULK)
    assert Want(BULK) in ring.carrier(bob, ann).written
    assert ann.sessions._us.connections[ring.carrier(ann, bob, BULK).number].dialed


def test_a_request_for_bulk_is_remembered_through_a_pause() -> None:
    """ann's bulk connection has just died, so she is pausing when bob, who cannot dial, asks for one."""
    ring, ann, bob = pair()
    ann.listens = False
    ring.say(bob, ann, b"0", BULK)
    ring.cut(ring.carrier(bob, ann, BULK))
    ring.send(bob, ann, b"1", BULK)
    ring.advance(1.0)
    assert ann.got == [b"0", b"1"]


def test_bulk_that_is_cut_goes_on_at_once_by_who_dialed_though_it_only_receives() -> None:
    ring, ann, bob = pair()
    ring.say(bob, ann, b"0", BULK)
    ring.advance(STEADY_S)
    ring.say(bob, ann, b"1", BULK)
    ring.send(bob, ann, b"2", BULK)  # under way
    end = ring.carrier(ann, bob, BULK)
    end.open = False
    ring.perform(ann, ann.sessions.closed(end.number, "the path under it died", ring.now))
    assert [(node.name, dial.plane) for node, dial in ring.dials] == [("ann", BULK)], "bob has not even noticed"
    ring.cut(ring.carrier(bob, ann, BULK))
    ring.settle()
    assert ann.got == [b"0", b"1", b"2"]


def test_bulk_that_is_cut_again_and_again_is_dialed_after_pauses() -> None:
    ring, ann, bob = pair()
    ring.say(ann, bob, b"0", BULK)
    ring.cut(ring.carrier(ann, bob, BULK))
    ring.send(ann, bob, b"1", BULK)
    ring.settle()
    assert bob.got == [b"0"] and len(ring.pipes(ann)) == 1
    ring.advance(0.2)
    assert bob.got == [b"0", b"1"]


def test_bulk_that_is_not_used_is_closed_and_comes_back() -> None:
    ring, ann, bob = pair()
    ring.say(ann, bob, b"bulk", BULK)
    ring.advance(BULK_IDLE_S + 5)
    assert len(ring.pipes(ann)) == 1 and not ann.seen(SessionDown)
    ring.say(bob, ann, b"bulk again", BULK)
    assert len(ring.pipes(ann)) == 2


def test_bulk_of_another_session_is_turned_away() -> None:
    ring, ann, bob = pair()
    ring.say(bob, ann, b"this is our session")
    _, theirs = ring.join(bob, ann)
    ring.perform(ann, ann.sessions.accepted(theirs.number, bob.paper, ring.now))
    me = bob.sessions.me
    hello = Hello(boot=me.boot, instance=me.instance, plane=BULK, session=12345, proposal=54321)
    ring._mail.append((theirs, b"".join(encode(hello))))
    ring.settle()
    assert not theirs.open and byes(theirs) == ["stale"]
    ring.say(ann, bob, b"fine")


# -- peers that break rules


def raw(ring: Ring, by: Node, to: Node, data: bytes) -> None:
    other = ring.carrier(by, to).other
    assert other is not None
    ring._mail.append((other, data))
    ring.settle()


@pytest.mark.parametrize(
    "data",
    [
        b"".join(encode(Hello(boot=1, instance=b""))),
        b"".join(encode(wire.Ack(1 << 40))),
        data_head(1, 7, 0) + b"x",
        data_head(1, 0, 0) + b"x",
        data_head(1, 1, 1 << 50) + b"x",
    ],
    ids=["second hello", "ack of frames never sent", "gap", "frame 0", "ack in data"],
)
def test_a_broken_rule_ends_the_session_and_the_peer_is_dialed_less_and_less(data: bytes) -> None:
    ring = Ring()
    ann, bob = ring.node("ann", 1), ring.node("bob", 2)
    ring.connect(bob, ann)
    pauses = []
    for _ in range(4):
        raw(ring, ann, bob, data)
        assert not ring.pipes(bob) and "broke a rule" in bob.seen(SessionDown)[-1].reason
        assert len(ann.seen(SessionDown)) == len(bob.seen(SessionDown)), "and it is told"
        began = ring.now
        while not bob.sessions.session(ann.id):
            ring.advance(0.1)
        pauses.append(ring.now - began)
    assert pauses[0] > 0.5 * BACKOFF_S[0] * 2 ** (BREACH_FAILURES - 1) and pauses[-1] > 10


def test_a_breach_harms_no_other_session() -> None:
    ring, ann, bob = pair()
    cyd = ring.node("cyd", 3)
    ring.connect(cyd, bob)
    raw(ring, ann, bob, data_head(1, 7, 0) + b"x")
    assert not cyd.seen(SessionDown)
    ring.say(cyd, bob, b"here")
    ring.say(bob, cyd, b"there")


def test_data_before_a_hello_is_a_breach() -> None:
    ring = Ring()
    ann, eve = ring.node("ann", 1), ring.node("eve", 2)
    _, theirs = ring.join(eve, ann)
    ring.perform(ann, ann.sessions.accepted(theirs.number, eve.paper, ring.now))
    ring._mail.append((theirs, data_head(1, 1, 0) + b"x"))
    ring.settle()
    assert not theirs.open and byes(theirs) == ["broken"] and not ann.got


def test_frames_that_were_delivered_are_not_delivered_again_when_replayed() -> None:
    ring, ann, bob = pair()
    ring.say(ann, bob, b"once")
    for _ in range(50):
        raw(ring, ann, bob, data_head(4, 1, 0) + b"once")
    assert bob.got == [b"once"] and not bob.seen(SessionDown)


# -- everything at once


VERBS = ("say", "say", "bulk", "cut", "silence", "advance", "advance", "long", "restart", "reconnect", "deaf")


@given(st.lists(st.tuples(st.sampled_from(VERBS), st.integers(0, 1 << 16)), max_size=40), st.booleans())
def test_whatever_happens_frames_come_once_in_order_and_both_sides_find_each_other(
    steps: list[tuple[str, int]], swap: bool
) -> None:
    ring = Ring()
    ann, bob = ring.node("ann", 2 if swap else 1), ring.node("bob", 1 if swap else 2)
    ring.connect(ann, bob)
    ring.connect(bob, ann)
    boots, sent = {"ann": 1, "bob": 1}, 0
    for verb, number in steps:
        one, two = (ann, bob) if number % 2 else (bob, ann)
        pipes = ring.pipes(one)
        match verb:
            case "say" | "bulk" if one.sessions.session(two.id) is not None:
                sent += 1
                ring.send(one, two, sent.to_bytes(4, "big"), BULK if verb == "bulk" else CONTROL)
                if number % 3:
                    ring.settle()
            case "cut" if pipes:
                ring.cut(pipes[number % len(pipes)])
            case "silence" if pipes:
                ring.silence(pipes[number % len(pipes)])
            case "advance":
                ring.advance((number % 100) / 50)
            case "long":
                ring.advance(number % 80)
            case "restart":
                ring.kill(one)
                boots[one.name] += 1
                fresh = ring.node(one.name, one.key, boot=boots[one.name])
                ann, bob = (fresh, bob) if one is ann else (ann, fresh)
                ring.connect(fresh, two)
            case "reconnect":
                ring.perform(one, one.sessions.reconnect("renewed", ring.now))
            case "deaf":
                one.listens = not one.listens
        for node in (ann, bob):
            assert not node.seen(WeAreTwin) and not node.seen(TwinSeen), "nobody copied anything"
            by_plane: Any = [int.from_bytes(payload, "big") for payload in node.got]
            assert len(set(by_plane)) == len(by_plane), "a frame came twice"
    ann.listens = bob.listens = True
    ring.connect(ann, bob)
    ring.connect(bob, ann)
    ring.advance(KEEP_S + 60)
    assert session_of(ann, bob) == session_of(bob, ann)
    assert ring.carrier(ann, bob).other is ring.carrier(bob, ann)
    for plane in (CONTROL, BULK):
        ring.say(ann, bob, b"last from ann %d" % plane, plane)
        ring.say(bob, ann, b"last from bob %d" % plane, plane)
    assert Data not in map(type, ring.carrier(ann, bob).written[:1])
