"""What a peer tells of itself, and what of it is worth a datagram to whom."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lattica.mesh.nat.candidates import (
    CANDIDATES_MAX,
    TARGETS_MAX,
    Candidate,
    Source,
    are_near,
    gather,
    observed_of,
    share_ipv6,
    targets,
)
from lattica.mesh.nat.routes import Endpoint

LAN, OTHER_LAN = Endpoint("192.168.1.2", 7411), Endpoint("192.168.1.3", 7411)
OUTER, OTHER_OUTER = Endpoint("203.0.113.1", 7411), Endpoint("203.0.113.9", 5000)
SIX, OTHER_SIX = Endpoint("2001:db8::1", 7411), Endpoint("2001:db8::2", 7411)
CONFIGURED = Endpoint("198.51.100.80", 443)

endpoints = st.builds(Endpoint, st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str), st.integers(0, 65535))
some = st.lists(endpoints, max_size=30)


def test_an_endpoint_is_told_once_by_its_best_source_and_the_best_come_first() -> None:
    told = gather([LAN, SIX, Endpoint("127.0.0.1", 7411), Endpoint("fe80::1", 7411)], [OUTER], [OUTER], [CONFIGURED])
    assert told == (
        Candidate(Source.CONFIGURED, CONFIGURED),
        Candidate(Source.MAPPED, OUTER),
        Candidate(Source.HOST, SIX),
        Candidate(Source.LAN, LAN),
    )


def test_lan_addresses_are_tried_first_and_only_behind_a_common_nat() -> None:
    ours, near, far = gather([LAN], [OUTER]), gather([OTHER_LAN], [OUTER]), gather([OTHER_LAN], [OTHER_OUTER])
    assert are_near(ours, near) and targets(ours, near) == (OTHER_LAN, OUTER)
    assert not are_near(ours, far) and targets(ours, far) == (OTHER_OUTER,)


def test_an_address_that_is_ours_too_is_not_tried() -> None:
    assert targets(gather([LAN], [OUTER]), gather([LAN], [OUTER])) == (OUTER,), "two homes behind one carrier"


def test_ipv6_is_tried_first_where_both_have_it() -> None:
    ours, theirs = gather([LAN, SIX], [OUTER]), gather([OTHER_LAN, OTHER_SIX], [OTHER_OUTER])
    assert share_ipv6(ours, theirs) and targets(ours, theirs) == (OTHER_SIX, OTHER_OUTER)
    assert not share_ipv6(gather([LAN], [OUTER]), theirs)
    assert targets(gather([LAN], [OUTER]), theirs) == (OTHER_OUTER,)


def test_methods_that_guess_ports_take_the_observed_address() -> None:
    assert observed_of(gather([LAN, SIX], [OUTER], [], [CONFIGURED])) == OUTER
    assert observed_of(gather([LAN, SIX])) is None
    assert observed_of(gather([OUTER])) == OUTER, "a public host"


@given(some, some, some, some)
def test_whatever_is_told_is_bounded(
    one: list[Endpoint], two: list[Endpoint], three: list[Endpoint], four: list[Endpoint]
) -> None:
    ours, theirs = gather(one, two, three, four), gather(four, three, two, one)
    assert len(ours) <= CANDIDATES_MAX and len({each.endpoint for each in ours}) == len(ours)
    assert len(targets(ours, theirs)) <= TARGETS_MAX
    observed_of(ours)
