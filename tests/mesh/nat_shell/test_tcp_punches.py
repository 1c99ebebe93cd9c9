"""Connections that both sides begin, and what members can do that name others' addresses, or have many connections."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from lattica.mesh.identity import PeerId
from lattica.mesh.nat.routes import Endpoint
from lattica.mesh.nat_shell.tcp_punches import EXPECTED_MAX, EXPECTED_S, LOOKED_AT_MAX, TRIED_MAX, TcpPunches
from lattica.testing.loop import run_virtually

PEER = PeerId(bytes(32))
THERE = Endpoint("203.0.113.9", 7411)


class Stage:
    """As much of `Tcp` and of a peer's paths as punches need."""

    def __init__(self, *targets: Endpoint, lower: bool = True) -> None:
        self.cuts: list[str] = []
        self.remotes: list[str] = []
        self.takes: Any = None
        puncher = SimpleNamespace(lower=lower, tcp_targets=targets, accepted="accepted")
        self.paths: Any = SimpleNamespace(peer=PEER, puncher=puncher, step=lambda *args: None)
        self.punches = TcpPunches(self, lambda: [self.paths], lambda peer: self.remotes)  # type: ignore[arg-type]

    def cut(self, remote: str) -> None:
        self.cuts.append(remote)

    def tell(self, targets: Sequence[Endpoint]) -> None:
        self.paths.puncher.tcp_targets = targets

    def comes(self, remote: Endpoint) -> tuple[bool, socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        return self.takes(ours, remote), ours, theirs


def test_a_peer_that_punched_to_anothers_address_does_not_have_that_ones_connection_cut() -> None:
    async def main() -> None:
        stage = Stage()
        stage.punches.punched[PEER] = THERE  # it said that it is there; who is there is another member
        stage.punches.drop(PEER)
        assert stage.cuts == [] and PEER not in stage.punches.punched
        stage.punches.punched[PEER], stage.remotes = THERE, [str(THERE)]
        stage.punches.drop(PEER)
        assert stage.cuts == [str(THERE)]

    run_virtually(main())


def test_hosts_that_are_expected_no_more_make_room_for_others() -> None:
    async def main() -> None:
        stage = Stage()
        for number in range(2 * EXPECTED_MAX):
            stage.punches._expect(stage.paths, Endpoint(f"203.0.113.{number}", 1), asyncio.get_running_loop().time())
        assert len(stage.punches._expected) == EXPECTED_MAX
        await asyncio.sleep(EXPECTED_S + 1)
        stage.punches._expect(stage.paths, THERE, asyncio.get_running_loop().time())
        assert stage.punches.expects(THERE.host)
        for port in range(1, 1000):
            stage.punches._expect(stage.paths, Endpoint(THERE.host, port), asyncio.get_running_loop().time())
        assert len(stage.punches._expected[THERE.host][1]) <= TRIED_MAX

    run_virtually(main())


def test_of_connections_from_an_expected_host_few_are_held_and_all_are_closed_at_the_end() -> None:
    async def main() -> None:
        stage = Stage(THERE)
        came = [stage.comes(Endpoint(THERE.host, number)) for number in range(1, 2 * LOOKED_AT_MAX)]
        held = [ours for taken, ours, _ in came if taken]
        assert len(held) == LOOKED_AT_MAX, "the rest are accepted as usual, within the bounds for strangers"
        stage.punches.stop()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert all(ours.fileno() == -1 for ours in held)
        stage.tell(())
        came.append(stage.comes(Endpoint(THERE.host, 9)))
        assert not came[-1][0], "nothing is expected after the end"
        for _, ours, theirs in came:
            ours.close()
            theirs.close()

    run_virtually(main())
