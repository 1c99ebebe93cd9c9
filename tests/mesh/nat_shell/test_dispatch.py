"""Who gets the datagrams that are not QUIC's."""

from __future__ import annotations

from lattica.mesh.nat.datagrams import BIND, PROBE, PUNCH, RELAYED
from lattica.mesh.nat.routes import Direct, Endpoint, Route
from lattica.mesh.nat_shell.dispatch import Datagrams

FROM = Direct(Endpoint("192.0.2.7", 7411))


def test_a_datagram_goes_to_the_handler_of_its_first_byte_and_one_without_a_handler_is_dropped() -> None:
    datagrams = Datagrams()
    probes: list[tuple[Route, bytes]] = []
    relayed: list[tuple[Route, bytes]] = []
    datagrams.on(PROBE, lambda route, data: probes.append((route, data)))
    datagrams.on(RELAYED, lambda route, data: relayed.append((route, data)))
    for first in (PUNCH, PROBE, BIND, RELAYED, 0x3F):
        datagrams.arrived(FROM, bytes([first, 7]))
    assert probes == [(FROM, bytes([PROBE, 7]))]
    assert relayed == [(FROM, bytes([RELAYED, 7]))]


def test_a_later_handler_takes_the_place_of_an_earlier_one() -> None:
    datagrams = Datagrams()
    heard: list[str] = []
    datagrams.on(BIND, lambda route, data: heard.append("first"))
    datagrams.on(BIND, lambda route, data: heard.append("second"))
    datagrams.arrived(FROM, bytes([BIND]))
    assert heard == ["second"]
