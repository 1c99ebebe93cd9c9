"""TCP and QUIC as one transport: which of them a dial takes, and what the owner hears of it."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass, field
from typing import Any

import pytest

from lattica.errors import ConfigError
from lattica.mesh.effects import NOBODY_LISTENS, Dial
from lattica.mesh.identity import PeerId
from lattica.mesh.links import DATAGRAM_RANK, STREAM_RANK
from lattica.mesh.transport import path_socket
from lattica.mesh.transport.ways import QUIC_AFTER_S, QUIC_BULK_AFTER_S, REFUSED_S, RELAY_AFTER_S, Ways
from lattica.mesh.wire import BULK, CONTROL
from tests.mesh.conftest import PlainMember
from tests.mesh.transport.quic_net import Hears, mesh_of_today
from tests.mesh.transport.test_quic import virtual

PEER = PeerId(b"p" * 32)
MEMBER = PlainMember(PEER)


@dataclass
class Scripted:
    """A side that does nothing by itself."""

    name: str
    dials: list[tuple[float, Dial]] = field(default_factory=list)
    given_up: list[int] = field(default_factory=list)
    written: list[tuple[int, Any]] = field(default_factory=list)
    hung_up: list[int] = field(default_factory=list)
    carries_control: bool = False

    def is_ready(self, peer: PeerId, plane: int) -> bool:
        return False

    def dial(self, dial: Dial) -> None:
        self.dials.append((asyncio.get_running_loop().time(), dial))

    def give_up(self, attempt: int) -> None:
        self.given_up.append(attempt)

    def write(self, number: int, frame: Any) -> None:
        self.written.append((number, frame))

    def hang_up(self, number: int) -> None:
        self.hung_up.append(number)

    def path(self, number: int) -> tuple[str, str]:
        return self.name, str(number)

    def carries(self, peer: PeerId) -> Any:
        return self if self.carries_control else None

    def flush(self) -> None: ...
    async def close(self) -> None: ...


class Better(Hears):
    """Hears of better ways, too."""

    def __init__(self) -> None:
        super().__init__()
        self.betters: list[PeerId] = []
        self.ranks: list[int] = []

    def better(self, peer: PeerId, plane: int = 0) -> None:
        self.betters.append(peer)

    def dialed(self, attempt: int, number: int, member: Any, rank: int = 0) -> None:
        super().dialed(attempt, number, member)
        self.ranks.append(rank)

    def accepted(self, number: int, member: Any, rank: int = 0) -> None:
        super().accepted(number, member)
        self.ranks.append(rank)


class Stage:
    def __init__(self) -> None:
        self.hears = Better()
        self.ways = Ways(self.hears, None, mesh_of_today().member())  # type: ignore[arg-type]
        self.tcp_owner, self.quic_owner = self.ways.tcp._owner, self.ways.quic.owner  # type: ignore[union-attr]
        self.tcp, self.quic = Scripted("tcp+tls"), Scripted("quic")
        self.ways.tcp, self.ways.quic = self.tcp, self.quic  # type: ignore[assignment]

    def dial(self, *addresses: str, attempt: int = 1, plane: int = CONTROL) -> None:
        self.ways.dial(Dial(attempt, PEER, addresses or ("192.0.2.1:7",), plane))


@virtual
async def test_tcp_is_tried_first_and_quic_only_when_it_has_not_answered_for_a_while() -> None:
    stage = Stage()
    stage.dial()
    assert len(stage.tcp.dials) == 1 and not stage.quic.dials
    await asyncio.sleep(QUIC_AFTER_S + 0.01)
    assert len(stage.quic.dials) == 1
    stage.tcp_owner.dialed(1, 7, MEMBER)
    assert stage.hears.dialed_ == [(1, 14, PEER)] and stage.hears.ranks == [STREAM_RANK]
    assert stage.quic.given_up == [1]


@virtual
async def test_a_dial_that_tcp_answers_at_once_never_touches_quic() -> None:
    stage = Stage()
    stage.dial()
    stage.tcp_owner.dialed(1, 7, MEMBER)
    await asyncio.sleep(10)
    assert not stage.quic.dials


@virtual
async def test_when_quic_is_faster_a_late_tcp_is_hung_up_and_told_of_as_the_better_way() -> None:
    stage = Stage()
    stage.dial()
    await asyncio.sleep(0.4)
    stage.quic_owner.dialed(1, 7, MEMBER)
    assert stage.hears.dialed_ == [(1, 15, PEER)] and stage.hears.ranks == [DATAGRAM_RANK]
    assert stage.hears.betters == []
    stage.tcp_owner.dialed(1, 9, MEMBER)
    await asyncio.sleep(0)
    assert stage.tcp.hung_up == [9] and stage.hears.betters == [PEER] and len(stage.hears.dialed_) == 1
    stage.tcp_owner.dial_failed(1, "late", False)
    assert not stage.hears.failed


@virtual
async def test_quic_begins_when_tcp_has_failed_and_the_dial_fails_when_both_have() -> None:
    stage = Stage()
    stage.dial()
    stage.tcp_owner.dial_failed(1, "192.0.2.1:7: no route to host", False)
    assert len(stage.quic.dials) == 1 and not stage.hears.failed
    stage.quic_owner.dial_failed(1, "no answer within 6 s", False)
    assert stage.hears.failed == [(1, "192.0.2.1:7: no route to host; no answer within 6 s", False)]
    await asyncio.sleep(10)
    assert len(stage.quic.dials) == 1


@virtual
async def test_a_certificate_that_is_not_accepted_ends_the_dial_whoever_says_so() -> None:
    stage = Stage()
    stage.dial()
    stage.tcp_owner.dial_failed(1, "it refuses our certificate", True)
    assert stage.hears.failed == [(1, "it refuses our certificate", True)]
    await asyncio.sleep(1)
    assert not stage.quic.dials


@virtual
async def test_that_nobody_listens_there_is_told_at_once_and_doubted_the_next_time() -> None:
    """Whoever waits for the peer may ask elsewhere. But a firewall may have said it, which lets UDP pass."""
    stage = Stage()
    refused = f"192.0.2.1:7: {NOBODY_LISTENS}"
    stage.dial()
    stage.tcp_owner.dial_failed(1, refused, False)
    assert stage.hears.failed == [(1, refused, False)] and not stage.quic.dials
    stage.dial(attempt=2)
    assert len(stage.quic.dials) == 1, "both at once"
    stage.tcp_owner.dial_failed(2, refused, False)
    await asyncio.sleep(REFUSED_S - 0.1)
    assert len(stage.hears.failed) == 1
    await asyncio.sleep(0.2)
    assert stage.hears.failed[1] == (2, refused, False) and stage.quic.given_up == [2]
    stage.dial(attempt=3)
    assert len(stage.quic.dials) == 2
    stage.tcp_owner.dial_failed(3, refused, False)
    stage.quic_owner.dialed(3, 1, MEMBER)
    assert stage.hears.dialed_ == [(3, 3, PEER)]
    await asyncio.sleep(5)
    assert len(stage.hears.failed) == 2


@virtual
async def test_addresses_by_way_of_a_relay_are_quics_at_once_or_soon_if_tcp_may_work() -> None:
    stage = Stage()
    stage.dial("relay/x")
    assert not stage.tcp.dials and stage.quic.dials[0][1].addresses == ("relay/x",)
    stage.dial("192.0.2.1:7", "relay/x", attempt=2)
    assert stage.tcp.dials[0][1].addresses == ("192.0.2.1:7",) and len(stage.quic.dials) == 1
    await asyncio.sleep(RELAY_AFTER_S + 0.01)
    assert stage.quic.dials[1][1].addresses == ("192.0.2.1:7", "relay/x")


@virtual
async def test_bulk_joins_quic_if_the_control_plane_is_there_and_else_gives_tcp_time() -> None:
    stage = Stage()
    stage.quic.carries_control = True
    stage.dial(plane=BULK)
    assert not stage.tcp.dials and len(stage.quic.dials) == 1
    stage.quic.carries_control = False
    stage.dial(plane=BULK, attempt=2)
    await asyncio.sleep(QUIC_BULK_AFTER_S - 0.1)
    assert len(stage.tcp.dials) == 1 and len(stage.quic.dials) == 1
    await asyncio.sleep(0.2)
    assert len(stage.quic.dials) == 2


@virtual
async def test_numbers_of_the_two_never_meet() -> None:
    stage = Stage()
    stage.tcp_owner.accepted(5, MEMBER)
    stage.quic_owner.accepted(5, MEMBER)
    (tcp, _), (quic, _) = stage.hears.accepted_
    assert tcp != quic and stage.hears.ranks == [STREAM_RANK, DATAGRAM_RANK]
    stage.ways.write(tcp, (b"a",)), stage.ways.write(quic, (b"b",))
    assert stage.tcp.written == [(5, (b"a",))] and stage.quic.written == [(5, (b"b",))]
    assert stage.ways.path(tcp) == ("tcp+tls", "5") and stage.ways.path(quic) == ("quic", "5")
    for owner, number in ((stage.tcp_owner, tcp), (stage.quic_owner, quic)):
        owner.received(5, []), owner.broken(5, "x"), owner.closed(5, "y")
        assert stage.hears.broken_[-1] == (number, "x") and stage.hears.closed_[-1] == (number, "y")
    stage.ways.hang_up(quic)
    assert stage.quic.hung_up == [5] and not stage.tcp.hung_up


@virtual
async def test_one_of_the_two_alone_is_what_it_is() -> None:
    hears = Better()
    ways = Ways(hears, None, mesh_of_today().member(), only=("quic",))  # type: ignore[arg-type]
    assert ways.tcp is None
    ways.dial(Dial(1, PEER, ()))
    await asyncio.sleep(0.1)
    assert hears.failed == [(1, "no address is known", False)]
    await ways.close()


@virtual
async def test_both_listen_at_one_port_and_give_it_back_when_one_of_them_cannot() -> None:
    """The first free UDP port is taken for TCP, and another one is found; a port that was asked for is not another."""
    ways = Ways(Better(), None, mesh_of_today().member())  # type: ignore[arg-type]
    assert ways.tcp is not None and ways.quic is not None
    tried: list[str] = []
    stopped: list[int] = []

    async def udp(address: str) -> list[str]:
        return ["127.0.0.1:70" if address.endswith(":0") and not tried else "127.0.0.1:71"]

    async def tcp(address: str) -> list[str]:
        tried.append(address)
        if address.endswith("70"):
            raise ConfigError("taken", do_next="take another")
        return [address]

    ways.quic.listen, ways.tcp.listen = udp, tcp  # type: ignore[method-assign]
    ways.quic.stop_listening = lambda: stopped.append(1)  # type: ignore[method-assign]
    assert await ways.listen("127.0.0.1:0") == ["127.0.0.1:71"]
    assert tried == ["127.0.0.1:70", "127.0.0.1:71"] and stopped == [1]
    tried.clear()

    async def taken(address: str) -> list[str]:
        raise ConfigError("taken", do_next="take another")

    ways.tcp.listen = taken  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="taken"):
        await ways.listen("127.0.0.1:7411")
    assert stopped == [1, 1]
    await ways.close()


async def test_where_udp_is_withheld_tcp_alone_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(family: int, where: Any) -> Any:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(path_socket, "_bound", denied)
    ways = Ways(Hears(), None, mesh_of_today().member())  # type: ignore[arg-type]
    (address,) = await ways.listen("127.0.0.1:0")
    assert ways.tcp is not None and ways.quic is not None
    assert address.startswith("127.0.0.1:") and ways.tcp._listeners and not ways.quic.socket._sockets
    ways.quic.socket._loopback = False
    assert ways.quic.socket.port == 0
    await ways.close()
