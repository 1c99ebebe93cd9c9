"""Peers behind real kernels' NATs, with only a ticket: each pair talks, and goes direct where some method leads.

The short form meets a few pairs, once each (a second time where ports are guessed). The whole matrix, with times:
`python -m lattica.testing.nat_matrix`, or `-m "nat and slow"` here.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lattica.testing.nat_matrix import RELAYS, Fleet, all_pairs, attempt, can_be_direct, commands, moves, sites_of
from lattica.testing.nat_matrix.kinds import is_guessed, pair_of
from lattica.testing.netlab import Host, Lab, Unavailable, check

SHORT = (
    "public/port-restricted",
    "double/firewall",
    "port-restricted/symmetric-seq",
    "symmetric/symmetric",
    "udp-blocked/udp-blocked",
    "tcp443-only/full-cone",
    "lan/lan",
)
WAN = "10ms"
DIRECT_S = 30.0
"""However busy this machine is; `nat_matrix` has the times that are promised."""
RELAYED_S = 1.0
RATE, MIB = 100.0, 20.0


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """One lab with every kind that the short form needs, and a mesh of two public peers."""
    try:
        check()
    except Unavailable as error:
        pytest.skip(error.reason)
    kinds = [kind for name in SHORT for kind in pair_of(name)]
    lab = Lab(public={name: Host() for name in RELAYS}, sites=sites_of(kinds, WAN), probe=False)
    with lab, Fleet(lab) as fleet:
        fleet.found()
        yield fleet


@pytest.mark.parametrize("name", SHORT)
def test_a_pair_that_knows_only_the_ticket_talks_and_goes_direct_where_a_method_leads(fleet: Fleet, name: str) -> None:
    pair = pair_of(name)
    for _ in range(2 if is_guessed(pair) else 1):
        made = attempt(fleet, pair, DIRECT_S if can_be_direct(pair) else RELAYED_S)
        assert made.answered, made
        if made.direct or not can_be_direct(pair):
            return
    raise AssertionError(f"{name} stays relayed: {made}")


@pytest.mark.slow
def test_every_pair_does_what_its_types_allow(capfd: pytest.CaptureFixture[str]) -> None:
    try:
        check()
    except Unavailable as error:
        pytest.skip(error.reason)
    code = commands.main(["/".join(pair) for pair in all_pairs()])
    assert code == 0, capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", moves.MOVES)
def test_calls_and_a_stream_outlive_a_change_of_the_path(name: str) -> None:
    try:
        check()
    except Unavailable as error:
        pytest.skip(error.reason)
    assert moves.main([name, "--rate", str(RATE), "--mib", str(MIB)]) == 0
