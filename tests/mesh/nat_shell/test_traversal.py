"""What a node does when its machine gets another address, whatever its sessions go by."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from lattica.mesh.identity import PeerId
from lattica.mesh.nat.routes import Endpoint
from lattica.mesh.nat_shell import network
from lattica.mesh.nat_shell.traversal import Traversal

PEER = PeerId(bytes(32))


class Watch:
    """Says what the test wants."""

    made: ClassVar[list[Watch]] = []

    def __init__(self, changed: Any) -> None:
        self.changed, self.hosts, self.stopped = changed, ["192.168.1.5"], False
        Watch.made.append(self)

    def stop(self) -> None:
        self.stopped = True


def traversal(listening: list[str], said: list[str], *, everywhere: bool = False) -> Traversal:
    peer: Any = SimpleNamespace(
        listening=listening,
        rebound=lambda: said.append("rebound"),
        look_around=lambda: said.append("looked"),
        listens_everywhere=everywhere,
        serve=lambda *args, **how: None,
        path_of=lambda peer: "192.168.1.7:7411",
        addresses_of=lambda peer: ("192.168.1.7:7411",),
        sessions=SimpleNamespace(is_dialed=lambda peer: True),
    )
    quic: Any = SimpleNamespace(socket=SimpleNamespace(), links_of=lambda peer: [])
    return Traversal(peer, quic)


def test_a_node_whose_sessions_all_go_by_tcp_within_one_network_tells_where_it_is_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(network, "NetworkWatch", Watch)
    monkeypatch.setattr(Watch, "made", [])
    said: list[str] = []
    door = traversal(["192.168.1.5:7411"], said)
    door.on_network.append(lambda: said.append("mapped anew"))
    assert door.hosts is None, "who has no session needs no watch"
    door.connected(PEER)
    door.connected(PEER)
    (watch,) = Watch.made
    watch.changed(["192.168.1.6"])
    assert said == ["looked", "rebound", "mapped anew"] and door._crossing is None
    door.stop()
    assert watch.stopped


def test_what_the_user_says_leads_here_is_told_to_those_who_want_to_be_direct_if_it_is_a_number() -> None:
    door = traversal(["192.168.1.5:7411"], [])
    door.configure(["home.example.org:7411", "203.0.113.7:17411", "127.0.0.1:7411"])
    assert door.configured == (Endpoint("203.0.113.7", 17411),)


def test_a_node_of_this_machine_alone_watches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "NetworkWatch", Watch)
    monkeypatch.setattr(Watch, "made", [])
    traversal(["127.0.0.1:7411"], []).connected(PEER)
    assert Watch.made == []


def test_a_node_that_was_started_before_its_network_was_there_looks_around_with_its_first_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(network, "NetworkWatch", Watch)
    monkeypatch.setattr(Watch, "made", [])
    said: list[str] = []
    traversal(["127.0.0.1:7411"], said, everywhere=True).connected(PEER)
    assert len(Watch.made) == 1 and said == ["looked"]
