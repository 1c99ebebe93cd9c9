"""A mesh without a head, of real nodes: it outlives its founder, takes back who returns, and puts out who is revoked.

The form with 12 nodes is in `slow/test_long_community.py`; `pytest -s` prints how long things took.
"""

from __future__ import annotations

from tests.e2e.communities import Machines, a_stall_and_a_revocation, deaths_and_returns


def test_a_mesh_outlives_its_founder_and_takes_back_who_returns(machine: Machines) -> None:
    print("", *deaths_and_returns(machine, count=5, killed=2), sep="\n  ")


def test_a_stall_is_no_death_and_a_revocation_closes_sessions_everywhere(machine: Machines) -> None:
    print("", *a_stall_and_a_revocation(machine, count=4), sep="\n  ")
