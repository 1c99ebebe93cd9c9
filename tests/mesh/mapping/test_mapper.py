"""The mapper beside a gateway that is a value, on a clock that the test moves."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.mesh.mapping import natpmp, pcp
from lattica.mesh.mapping.mapper import (
    AGAIN_S,
    CHECK_S,
    IPV6_METHODS,
    LIFETIME_S,
    AskUpnp,
    Changed,
    Effect,
    Mapper,
    Send,
    UpnpAnswer,
)
from lattica.mesh.mapping.pcp import Protocol
from lattica.mesh.nat.routes import Endpoint, pack

CLIENT, PORT = "192.168.1.7", 7411
OUTER = "203.0.113.7"
DELAY_S = 0.002


@dataclass
class Gateway:
    """Answers as far as it speaks PCP or NAT-PMP; keeps what it mapped."""

    pcp: bool = True
    natpmp: bool = True
    outer: str = OUTER
    lifetime_s: int = LIFETIME_S
    result: int = 0
    deaf: bool = False
    born: float = 0.0
    maps: dict[int, tuple[int, float]] = field(default_factory=dict)  # protocol -> outer port, end
    nonces: dict[int, bytes] = field(default_factory=dict)
    asked: list[bytes] = field(default_factory=list)

    def answer(self, data: bytes, now: float) -> bytes | None:
        self.asked.append(data)
        if self.deaf:
            return None
        if data[0] == pcp.VERSION:
            return self._pcp(data, now) if self.pcp else self._says_version_0(now) if self.natpmp else None
        return self._natpmp(data, now) if self.natpmp else None

    def restart(self, now: float) -> None:
        self.born = now
        self.maps.clear(), self.nonces.clear()

    def _says_version_0(self, now: float) -> bytes:
        """RFC 6886 §9: what a server of NAT-PMP says to any other version."""
        return struct.pack("!BBHI", 0, 128, natpmp.Result.UNSUPPORTED_VERSION, int(now - self.born))

    def _head(self, opcode: int, result: int, now: float) -> bytes:
        return struct.pack("!BBBBII12x", 2, 128 + opcode, 0, result, self.lifetime_s, int(now - self.born))

    def _pcp(self, data: bytes, now: float) -> bytes:
        if data[1] == pcp.ANNOUNCE:
            return self._head(pcp.ANNOUNCE, 0, now)
        lifetime_s, nonce, protocol = int.from_bytes(data[4:8]), data[24:36], data[36]
        port = int.from_bytes(data[42:44]) or PORT
        result = self.result
        if self.nonces.setdefault(protocol, nonce) != nonce:
            result = pcp.Result.NOT_AUTHORIZED
        if not result:
            self._map(protocol, port, lifetime_s, now)
        outer = pack(Endpoint(self.outer, port))
        return self._head(pcp.MAP, result, now) + data[24:42] + outer[16:] + outer[:16]

    def _natpmp(self, data: bytes, now: float) -> bytes:
        epoch_s = int(now - self.born)
        if data[1] == natpmp.ADDRESS:
            host = pack(Endpoint(self.outer, 0))[12:16]
            return struct.pack("!BBHI4s", 0, 128, self.result, epoch_s, host)
        inner, port, lifetime_s = struct.unpack("!HHI", data[4:12])
        if not self.result:
            self._map(Protocol.UDP if data[1] == natpmp.MAP_UDP else Protocol.TCP, port or inner, lifetime_s, now)
        return struct.pack(
            "!BBHIHHI", 0, 128 + data[1], self.result, epoch_s, inner, port, min(lifetime_s, self.lifetime_s)
        )

    def _map(self, protocol: int, port: int, lifetime_s: int, now: float) -> None:
        self.maps.pop(protocol, None)
        if lifetime_s:
            self.maps[protocol] = port, now + self.lifetime_s


class Bench:
    """A mapper, a gateway and a clock. Effects are carried out as they come."""

    def __init__(self, gateway: Gateway, mapper: Mapper | None = None, now: float = 0.0) -> None:
        self.gateway, self.now = gateway, now
        self.mapper = mapper or Mapper(PORT, CLIENT, b"secret")
        self.upnp: list[int] = []
        self.changes = 0
        self._answers: list[tuple[float, bytes]] = []
        self.carry_out(self.mapper.begin(self.now))

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(data):
                    answer = self.gateway.answer(data, self.now)
                    if answer is not None:
                        self._answers.append((self.now + DELAY_S, answer))
                case AskUpnp(lifetime_s):
                    self.upnp.append(lifetime_s)
                case Changed():
                    self.changes += 1
        self.mapper.validate()

    def run(self, until: float) -> None:
        while True:
            due = self.mapper.next_deadline()
            times = [at for at, _ in self._answers] + ([due] if due is not None else [])
            if not times or min(times) > until:
                self.now = until
                return
            self.now = max(self.now, min(times))
            if self._answers and self._answers[0][0] <= self.now:
                self.carry_out(self.mapper.received(self._answers.pop(0)[1], self.now))
            else:
                self.carry_out(self.mapper.tick(self.now))

    @property
    def mapped(self) -> tuple[Endpoint | None, Endpoint | None]:
        return self.mapper.mapped(Protocol.UDP), self.mapper.mapped(Protocol.TCP)


BOTH = (Endpoint(OUTER, PORT), Endpoint(OUTER, PORT))


def test_a_gateway_that_speaks_pcp_maps_both_ports_at_once() -> None:
    bench = Bench(Gateway(natpmp=False))
    bench.run(1.0)
    assert bench.mapped == BOTH and bench.gateway.maps.keys() == {Protocol.UDP, Protocol.TCP}
    assert bench.mapper.status()["method"] == "PCP" and not bench.upnp


def test_a_gateway_that_says_that_it_speaks_natpmp_is_asked_so_at_once() -> None:
    bench = Bench(Gateway(pcp=False))
    bench.run(0.1)
    assert bench.mapped == BOTH and bench.mapper.status()["method"] == "NAT-PMP"


def test_questions_are_asked_three_times_and_then_in_the_next_way() -> None:
    """RFC 6886 §3.1: a quarter of a second, then twice as long each time."""
    bench = Bench(Gateway(deaf=True))
    bench.run(1.7)
    assert len(bench.gateway.asked) == 6, "for UDP and TCP at 0, 0.25 and 0.75 s"
    bench.run(4.0)
    assert bench.upnp == [LIFETIME_S] and bench.mapped == (None, None)
    assert bench.mapper.status()["tried"] == {"PCP": "no answer", "NAT-PMP": "no answer"}


def test_where_nobody_listens_upnp_is_asked_at_once() -> None:
    bench = Bench(Gateway(deaf=True))
    bench.carry_out(bench.mapper.refused(0.01))
    assert bench.upnp == [LIFETIME_S]
    bench.carry_out(bench.mapper.upnp_answered(UpnpAnswer(OUTER, PORT, PORT, LIFETIME_S), 2.0))
    assert bench.mapped == BOTH and bench.mapper.status()["method"] == "UPnP"
    bench.run(650.0)
    assert bench.upnp == [LIFETIME_S, LIFETIME_S], "it has no epoch, so it is asked more often"
    bench.carry_out(bench.mapper.release(651.0))
    assert bench.upnp[-1] == 0 and bench.mapped == (None, None)


def test_a_gateway_that_maps_nothing_is_left_alone_for_a_quarter_of_an_hour() -> None:
    bench = Bench(Gateway(deaf=True))
    bench.run(4.0)
    bench.carry_out(bench.mapper.upnp_answered(UpnpAnswer(why="no answer"), 6.0))
    asked = len(bench.gateway.asked)
    bench.run(AGAIN_S)
    assert len(bench.gateway.asked) == asked and not bench.changes
    bench.gateway.deaf = False
    bench.run(AGAIN_S + 7.0)
    assert bench.mapped == BOTH


def test_a_mapping_is_renewed_at_half_its_life_as_long_as_the_node_runs() -> None:
    bench = Bench(Gateway())
    for hour in range(1, 25):
        bench.run(hour * 3600.0)
        assert bench.mapped == BOTH and all(end > bench.now for _, end in bench.gateway.maps.values())
    renewals = [data for data in bench.gateway.asked if data[1] == pcp.MAP]
    assert len(renewals) == pytest.approx(2 * (1 + 24 * 2), abs=4)
    assert bench.changes == 2, "once for each protocol"


def test_a_gateway_that_falls_silent_keeps_its_mapping_until_that_ends() -> None:
    bench = Bench(Gateway())
    bench.run(10.0)
    bench.gateway.deaf = True
    bench.run(LIFETIME_S - 1.0)
    assert bench.mapped == BOTH
    asked = len(bench.gateway.asked)
    assert asked < 250, "questions about what runs out come ever more rarely"
    bench.run(LIFETIME_S + 3.0)
    assert bench.mapped == (None, None) and bench.changes >= 3


@pytest.mark.parametrize("speaks", [{"natpmp": False}, {"pcp": False}])
def test_a_gateway_that_was_started_again_is_asked_anew_within_a_minute(speaks: dict[str, bool]) -> None:
    bench = Bench(Gateway(**speaks))
    bench.run(100.0)
    bench.gateway.restart(100.0)
    bench.run(100.0 + CHECK_S + 1.0)
    assert bench.gateway.maps.keys() == {Protocol.UDP, Protocol.TCP} and bench.mapped == BOTH


def test_another_outer_address_is_noticed_within_a_minute() -> None:
    bench = Bench(Gateway(pcp=False))
    bench.run(100.0)
    bench.gateway.outer = "203.0.113.99"
    bench.run(100.0 + CHECK_S + 1.0)
    assert bench.mapped == (Endpoint("203.0.113.99", PORT),) * 2


def test_an_outer_address_that_is_private_is_of_no_use_and_is_said() -> None:
    """Two NATs: the inner one maps, and nobody outside reaches it."""
    bench = Bench(Gateway(outer="100.64.3.2"))
    bench.run(1.0)
    assert bench.mapped == (None, None)
    assert bench.mapper.told(Protocol.UDP) == Endpoint("100.64.3.2", PORT), "who traverses NATs wants to know"
    assert bench.mapper.status()["behind_another"] and bench.mapper.outer_hosts == ["100.64.3.2"]


def test_a_node_that_was_killed_and_comes_back_renews_what_it_left_behind() -> None:
    """RFC 6887 §11.3: who has another nonce is refused. It comes of the node's own secret."""
    gateway = Gateway(natpmp=False)
    Bench(gateway).run(1.0)
    again = Bench(gateway, Mapper(PORT, CLIENT, b"secret"), now=5.0)
    again.run(6.0)
    assert again.mapped == BOTH
    stranger = Bench(gateway, Mapper(PORT, CLIENT, b"another"), now=7.0)
    stranger.run(20.0)
    assert stranger.mapped == (None, None) and stranger.mapper.status()["tried"]["PCP"] == "NOT_AUTHORIZED"  # type: ignore[index]


def test_at_the_end_the_ports_are_given_back() -> None:
    for gateway in (Gateway(natpmp=False), Gateway(pcp=False)):
        bench = Bench(gateway)
        bench.run(1.0)
        assert gateway.maps
        bench.carry_out(bench.mapper.release(2.0))
        assert not gateway.maps and bench.mapped == (None, None) and bench.mapper.next_deadline() is None


def test_one_protocol_is_better_than_none_and_the_other_is_asked_for_again() -> None:
    class Choosy(Gateway):
        def answer(self, data: bytes, now: float) -> bytes | None:
            self.result = pcp.Result.USER_EX_QUOTA if data[1] == pcp.MAP and data[36] == Protocol.TCP else 0
            return super().answer(data, now)

    bench = Bench(Choosy(natpmp=False))
    bench.run(30.0)
    assert bench.mapped == (Endpoint(OUTER, PORT), None) and not bench.upnp
    bench.gateway.__class__ = Gateway
    bench.gateway.result = 0
    bench.run(AGAIN_S + 31.0)
    assert bench.mapped == BOTH


def test_ipv6_is_asked_by_pcp_alone() -> None:
    mapper = Mapper(PORT, "2001:db8::7", b"secret", IPV6_METHODS)
    bench = Bench(Gateway(outer="2001:db8::7"), mapper)
    bench.run(1.0)
    assert bench.mapped == (Endpoint("2001:db8::7", PORT),) * 2
    deaf = Bench(Gateway(deaf=True), Mapper(PORT, "2001:db8::7", b"secret", IPV6_METHODS))
    deaf.run(30.0)
    assert not deaf.upnp and all(data[0] == pcp.VERSION for data in deaf.gateway.asked)


def test_an_answer_to_somebody_else_is_not_ours() -> None:
    """Another nonce, another port, another protocol: nothing is believed."""
    mapper = Mapper(PORT, CLIENT, b"secret")
    sent = [effect.data for effect in mapper.begin(0.0) if isinstance(effect, Send)]
    ours = Gateway().answer(sent[0], 0.0)
    assert ours is not None
    for position in (24, 36, 40):
        bent = bytearray(ours)
        bent[position] ^= 1
        assert mapper.received(bytes(bent), 0.1) == []
    assert Changed() in mapper.received(ours, 0.1)


@given(st.data())
def test_whatever_a_gateway_says_the_mapper_keeps_its_rules_and_asks_little(data: st.DataObject) -> None:
    """Noise, bent answers, silence, refusals and ticks in any order; at most a few questions a second."""
    mapper = Mapper(PORT, CLIENT, b"secret")
    gateway = Gateway(pcp=data.draw(st.booleans()), natpmp=data.draw(st.booleans()))
    now, sent = 0.0, 0
    answers: list[bytes] = []

    def carry_out(effects: list[Effect]) -> None:
        nonlocal sent
        for effect in effects:
            if isinstance(effect, Send):
                sent += 1
                answer = gateway.answer(effect.data, now)
                if answer is not None:
                    answers.append(answer)
        mapper.validate()

    carry_out(mapper.begin(now))
    for _ in range(data.draw(st.integers(0, 25))):
        now += data.draw(st.sampled_from([0.0, 0.01, 0.3, 5.0, 100.0, 2000.0]))
        match data.draw(st.integers(0, 6)):
            case 0:
                carry_out(mapper.received(data.draw(st.binary(max_size=80)), now))
            case 1 if answers:
                bent = bytearray(answers.pop())
                bent[data.draw(st.integers(0, len(bent) - 1))] = data.draw(st.integers(0, 255))
                carry_out(mapper.received(bytes(bent), now))
            case 2:
                carry_out(mapper.refused(now))
            case 3:
                answer = UpnpAnswer(OUTER, data.draw(st.integers(0, 65535)), 0, data.draw(st.integers(0, 10**6)))
                carry_out(mapper.upnp_answered(answer, now))
            case 4 if answers:
                carry_out(mapper.received(answers.pop(), now))
            case _:
                carry_out(mapper.tick(now))
        due = mapper.next_deadline()
        assert due is None or due >= 0
    assert sent <= 8 + 8 * 41


@pytest.mark.parametrize("outer", ["224.0.0.7", "0.0.0.0", "240.1.2.3", "127.0.0.1"])
def test_an_outer_address_that_is_nobodys_is_told_to_nobody(outer: str) -> None:
    mapper = Mapper(PORT, CLIENT, b"secret")
    for wish in mapper._wishes:
        wish.host, wish.port = outer, PORT
    assert mapper.told(Protocol.UDP) == Endpoint(outer, PORT) and mapper.mapped(Protocol.UDP) is None
