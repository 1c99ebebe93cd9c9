"""A few cores that hear each other at once."""

from __future__ import annotations

import pytest

from lattica.mesh.dht.kademlia import Kademlia
from tests.mesh.dht.examples import ANN, BOB, CYD, MANY, Peers, core


@pytest.fixture
def ann() -> Kademlia:
    """A server that has met nobody."""
    return core(ANN)


@pytest.fixture
def three() -> Peers:
    """Ann, Bob and Cyd, who all serve and know each other."""
    return _met(Peers(ANN, BOB, CYD))


@pytest.fixture
def many() -> Peers:
    """More than are close to any key."""
    return _met(Peers(*MANY))


def _met(peers: Peers) -> Peers:
    peers.introduce()
    peers.run(60.0)
    return peers
