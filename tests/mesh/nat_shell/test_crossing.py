"""What a peer's word about our own address brings about, and another network."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from lattica.mesh.identity import PeerId
from lattica.mesh.nat.routes import Direct, Endpoint
from lattica.mesh.nat_shell.crossing import DOUBTED_AGAIN_S, Crossing
from lattica.mesh.nat_shell.measuring import Measuring

ROUTE = Direct(Endpoint("203.0.113.9", 7411))


def test_a_peer_that_tells_of_another_address_each_second_does_not_keep_us_from_measuring() -> None:
    measured: list[float] = []
    clock = SimpleNamespace(now=0.0)
    shell: Any = SimpleNamespace(
        door=SimpleNamespace(observed=(Endpoint("198.51.100.1", 7411),)),
        own_hosts=["10.0.0.2"],
        _outer="",
        _doubted_at=float("-inf"),
        _loop=SimpleNamespace(time=lambda: clock.now),
        measuring=SimpleNamespace(network_changed=lambda: measured.append(clock.now)),
    )
    for second in range(120):
        clock.now = float(second)
        Crossing.seen_as(shell, ROUTE, Endpoint(f"192.0.2.{second + 1}", 7411))
    assert len(measured) == 120 / DOUBTED_AGAIN_S, "the first at once, since it may be true"


def test_peers_that_did_not_answer_in_one_network_are_asked_again_in_another() -> None:
    looks: list[str] = []
    shell: Any = SimpleNamespace(
        _useless={PeerId(bytes(32))}, witnesses=(), sessions_changed=lambda: looks.append("look")
    )
    Measuring.network_changed(shell)
    assert not shell._useless and looks == ["look"]
