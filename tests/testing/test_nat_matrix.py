"""The plan of the matrix: pairs have places in a lab, and what is expected of them follows from the table of NATs."""

from __future__ import annotations

import pytest

from lattica.errors import ConfigError
from lattica.testing.nat_matrix import KINDS, MIXED, all_pairs, can_be_direct, hosts_of, sites_of
from lattica.testing.nat_matrix.attempts import NEVER, Attempt, Line
from lattica.testing.nat_matrix.commands import missed
from lattica.testing.nat_matrix.kinds import is_guessed, pair_of
from lattica.testing.netlab import Lab


def test_every_pair_has_two_hosts_of_its_own_in_the_lab_of_its_kinds() -> None:
    hosts = Lab(sites=sites_of(KINDS, "20ms")).hosts()
    for pair in all_pairs():
        one, other = hosts_of(pair)
        assert one != other and {one, other} <= set(hosts), pair


def test_the_population_is_of_a_hundred_hosts_whose_kinds_exist() -> None:
    assert sum(MIXED.values()) == 100 and set(MIXED) <= set(KINDS)


@pytest.mark.parametrize(
    "pair, direct",
    [
        ("port-restricted/symmetric", True),
        ("firewall/symmetric", True),
        ("symmetric-seq/symmetric-seq", True),
        ("symmetric/symmetric", False),
        ("symmetric/symmetric-seq", False),
        ("portmap/symmetric", True),
        ("udp-blocked/udp-blocked", True),
        ("udp-blocked/symmetric", False),
        ("full-cone/udp-blocked", True),
        ("public/tcp443-only", False),
        ("ipv6/ipv6", True),
        ("lan/lan", True),
    ],
)
def test_which_pairs_can_be_direct(pair: str, direct: bool) -> None:
    assert can_be_direct(pair_of(pair)) is direct


def test_only_pairs_that_guess_ports_may_miss_now_and_then() -> None:
    guessed = {"/".join(pair) for pair in all_pairs() if is_guessed(pair)}
    assert "port-restricted/symmetric" in guessed and "symmetric-seq/symmetric-seq" in guessed
    assert not guessed & {"public/symmetric", "full-cone/symmetric", "symmetric/symmetric", "firewall/double"}


def test_one_attempt_without_an_answer_or_a_direct_path_is_told_where_all_must_go_well() -> None:
    pair = pair_of("double/firewall")
    good, relayed = Attempt(pair, 0.2, 0.5), Attempt(pair, 0.2, NEVER)
    assert not missed([Line(pair, [good] * 5)])
    assert missed([Line(pair, [good] * 4 + [relayed])]) == ["double/firewall"]
    assert missed([Line(pair_of("symmetric/symmetric"), [relayed] * 4 + [Attempt(pair)])])


def test_what_is_no_pair_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match="port-restricted"):
        pair_of("symmetric/moon")
