"""Who dials meets somebody, is refused, or waits in vain; and learns which."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from lattica.mesh.effects import Dial
from lattica.testing import Link, World
from tests.testing.talker import Talker, connected, heard, told, when, world_of

SLOW = Link(delay_s=(0.1, 0.1))


def test_a_dial_tells_both_sides_who_the_other_is() -> None:
    world = connected()
    assert told(world, "ann", "dialed") == [(1, "bob")] and told(world, "bob", "accepted") == [("ann",)]
    assert world.core("ann").numbers != world.core("bob").numbers, "each end has a number of its own"


def test_the_dialer_is_connected_after_two_round_trips_and_the_acceptor_half_a_one_later() -> None:
    world = world_of(link=SLOW)
    world.tell("ann", "dial", "bob:1")
    world.run(until=1)
    assert when(world, "ann", "dialed") == [pytest.approx(0.4)] and when(world, "bob", "accepted") == [
        pytest.approx(0.5)
    ]


def test_a_participant_is_known_by_its_credential() -> None:
    class Certified(Talker):
        def credential(self) -> str:
            return "a certificate"

    world = world_of(core=Certified)
    world.tell("ann", "dial", "bob:1")
    world.run(until=1)
    assert told(world, "ann", "dialed") == [(1, "a certificate")]


def test_a_dead_process_refuses_at_once() -> None:
    world = world_of()
    world.crash("bob")
    world.tell("ann", "dial", "bob:1")
    world.run(until=0.2)
    assert told(world, "ann", "dial_failed") == [(1, "refused", False)]


def test_an_address_where_nobody_listens_fails_at_once() -> None:
    world = world_of()
    world.connections.unlisten("bob:1")
    world.tell("ann", "dial", "bob:1")
    world.tell("ann", "dial")
    world.run(until=0.2)
    assert told(world, "ann", "dial_failed") == [
        (2, "there is no address to dial", False),
        (1, "nobody is there", False),
    ]


@pytest.mark.parametrize("one_way", [("ann", "bob"), ("bob", "ann")])
def test_a_dial_across_a_cut_times_out(one_way: tuple[str, str]) -> None:
    world = world_of()
    world.cut(*one_way, both=False)
    world.tell("ann", "dial", "bob:1")
    world.run(until=9)
    assert not told(world, "ann", "dial_failed")
    world.run(until=11)
    assert told(world, "ann", "dial_failed") == [(1, "timed out", False)]


def test_a_dial_across_a_cut_that_is_mended_in_time_succeeds() -> None:
    world = world_of()
    world.cut("ann", "bob")
    world.tell("ann", "dial", "bob:1")
    world.after(5, world.mend, "ann", "bob")
    world.run(until=7)
    assert told(world, "ann", "dialed")


@pytest.mark.parametrize("fault", ["pause", "suspend", "power", "clog"])
def test_a_dial_to_a_host_that_does_not_answer_times_out(fault: str) -> None:
    world = world_of()
    match fault:
        case "power":
            world.crash("bob", power=True)
        case "clog":
            world.clog("ann", "bob", 100)
        case _:
            getattr(world, fault)("bob")
    world.tell("ann", "dial", "bob:1")
    world.run(until=11)
    assert told(world, "ann", "dial_failed") == [(1, "timed out", False)]


def test_the_address_that_answers_first_is_taken_and_the_others_are_left_alone() -> None:
    world = world_of("ann", "bob", "cid")
    world.cut("ann", "bob")
    world.tell("ann", "dial", "bob:1", "cid:1")
    world.run(until=20)
    assert told(world, "ann", "dialed") == [(1, "cid")] and not told(world, "ann", "dial_failed")
    assert when(world, "ann", "dialed")[0] < 0.4, "a quarter of a second after the first"


def test_the_next_address_is_tried_at_once_when_one_refuses() -> None:
    world = world_of("ann", "bob", "cid", link=Link(delay_s=(0.001, 0.001)))
    world.crash("bob")
    world.tell("ann", "dial", "bob:1", "cid:1")
    world.run(until=0.1)
    assert told(world, "ann", "dialed") == [(1, "cid")]


def test_a_dial_fails_once_when_all_addresses_have() -> None:
    world = world_of("ann", "bob", "cid")
    world.crash("bob")
    world.cut("ann", "cid")
    world.tell("ann", "dial", "bob:1", "cid:1", "nowhere:1")
    world.run(until=30)
    assert told(world, "ann", "dial_failed") == [(1, "timed out", False)]


def test_an_address_where_another_peer_answers_is_as_good_as_none() -> None:
    class Choosy(Talker):
        def find(self, peer: str, *addresses: str) -> list[object]:
            *known, _now = addresses
            return [Dial(1, peer, tuple(known))]  # type: ignore[arg-type]

    world = world_of("ann", "bob", "cid", core=Choosy)
    world.tell("ann", "find", "cid", "bob:1", "cid:1")
    world.run(until=2)
    assert told(world, "ann", "dialed") == [(1, "cid")]
    world.tell("ann", "find", "cid", "bob:1")
    world.run(until=4)
    assert told(world, "ann", "dial_failed") == [(1, "another peer answers: 'bob'", False)]
    assert not told(world, "bob", "accepted")


def test_a_dialer_that_crashes_meanwhile_hears_nothing_of_it_when_it_is_back() -> None:
    world = world_of(link=SLOW)
    world.tell("ann", "dial", "bob:1")
    world.run(until=0.05)
    world.crash("ann")
    world.restart("ann")
    world.run(until=5)
    assert not world.core("ann").numbers and not told(world, "bob", "accepted")


def test_an_acceptor_that_crashes_during_the_handshake_is_a_failure_or_a_close() -> None:
    world = world_of(link=SLOW)
    world.tell("ann", "dial", "bob:1")
    world.run(until=0.15)  # Bob's SYN-ACK is under way
    world.crash("bob")
    world.run(until=5)
    assert told(world, "ann", "dial_failed") == [(1, "closed during the handshake", False)]
    world.restart("bob")
    world.tell("ann", "dial", "bob:1")
    world.run(until=5.45)  # Ann has her connection, Bob not yet
    assert told(world, "ann", "dialed") == [(2, "bob")] and not told(world, "bob", "accepted")
    world.crash("bob")
    world.run(until=10)
    assert len(told(world, "ann", "closed")) == 1 and not told(world, "bob", "accepted")


@dataclass(frozen=True, slots=True)
class Certificate:
    expires: float


class Member(Talker):
    def credential(self) -> Certificate:
        return Certificate(self.expires)

    expires = float("inf")


def verified() -> World:
    world = world_of(core=Member)
    world.connections.verify = lambda shown, unix_s: "it has expired" if shown.expires < unix_s else ""
    return world


def test_a_dialer_that_does_not_like_the_other_certificate_fails_for_good_and_nobody_is_accepted() -> None:
    world = verified()
    world.core("bob").expires = 1.0
    world.tell("ann", "dial", "bob:1")
    world.run(until=1)
    assert told(world, "ann", "dial_failed") == [(1, "it has expired", True)]
    assert not told(world, "bob", "accepted")


def test_a_dialer_whose_certificate_is_not_liked_is_connected_before_it_is_refused() -> None:
    """In TLS 1.3 the client's handshake is complete before the server has looked at its certificate."""
    world = verified()
    world.core("ann").expires = 1.0
    world.tell("ann", "dial", "bob:1")
    world.run(until=0.1)
    world.tell("ann", "write", "hello")
    world.run(until=1)
    assert told(world, "ann", "dialed") and len(told(world, "ann", "closed")) == 1
    assert not told(world, "bob", "accepted") and heard(world) == []


def test_certificates_are_judged_by_the_clock_of_who_judges() -> None:
    world = verified()
    world.core("bob").expires = world.host("ann").clock.unix_s() + 1000
    world.set_clock("ann", offset_s=2000)
    world.tell("ann", "dial", "bob:1")
    world.run(until=1)
    assert told(world, "ann", "dial_failed") == [(1, "it has expired", True)]


def test_one_may_dial_oneself() -> None:
    world = world_of()
    world.tell("ann", "dial", "ann:1")
    world.run(until=1)
    assert told(world, "ann", "dialed") == [(1, "ann")] and told(world, "ann", "accepted") == [("ann",)]
    world.tell("ann", "write", "hello")
    world.run(until=2)
    assert heard(world, "ann") == ["hello"]


def test_an_address_may_move_to_another_participant() -> None:
    world = world_of("ann", "bob", "cid")
    world.listen("bob:1", "cid")
    world.tell("ann", "dial", "bob:1")
    world.run(until=1)
    assert told(world, "ann", "dialed") == [(1, "cid")]
