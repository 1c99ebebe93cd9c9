"""Real peers behind real kernels' NATs, pair by pair: who answers whom, who becomes direct, by which method, how soon.

    python -m lattica.testing.nat_matrix                              every pair, five attempts each
    python -m lattica.testing.nat_matrix symmetric/port-restricted --attempts 20
    python -m lattica.testing.nat_matrix --mixed 200                  random pairs of the population in `kinds.MIXED`

Two public hosts of a network lab (lattica.testing.netlab, so root) are a mesh and relay; all others join with its
ticket and nothing else. docs/testing.md, docs/design/0015-paths.md.
"""

from .attempts import Attempt, attempt
from .fleet import RELAYS, Fleet, Told
from .kinds import KINDS, MIXED, all_pairs, can_be_direct, hosts_of, sites_of

__all__ = [
    "KINDS",
    "MIXED",
    "RELAYS",
    "Attempt",
    "Fleet",
    "Told",
    "all_pairs",
    "attempt",
    "can_be_direct",
    "hosts_of",
    "sites_of",
]
