"""Which way the gateway gives us ports, and how they are kept. One gateway, one inner port, UDP and TCP.

    begin(now)                        the gateway is known: ask it
    received(data, now)               a datagram from its port 5351
    refused(now)                      nobody listens there
    upnp_answered(answer, now)        as asked by `AskUpnp`
    release(now)                      the node ends: give the ports back
    tick(now) · next_deadline() · told(protocol) · mapped(protocol) · status()

PCP first, then NAT-PMP, which share a port, then UPnP. A way that gives no port within ASKS_MAX questions, or says no,
is left for the next; after the last all are tried again, AGAIN_S later. Of a gateway that gives ports by one way no
other is asked. At half the lifetime a mapping is asked for again until it ends. Every CHECK_S the gateway is asked for
its epoch: one that has forgotten (it was started again) is asked for all ports at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum

import msgspec
from blake3 import blake3

from lattica.mesh.mapping import natpmp, pcp
from lattica.mesh.mapping.pcp import Protocol
from lattica.mesh.nat.routes import Endpoint, is_private, is_public

ASK_S = 0.25  # RFC 6886 §3.1: before the second question, then twice as long each time
ASKS_MAX = 3  # without a mapping, of each way: 1.75 s, within a LAN
ASK_MAX_S = 64.0  # between questions about a mapping that runs out
LIFETIME_S = 3600
"""Asked for. Longer: fewer questions, and a node that was killed leaves its port open for longer; the RFCs name two
hours as a good value for machines that are switched off in the evening."""
LIFETIME_MAX_S = 86_400  # believed of a gateway that gives more
RENEW_MIN_S = 30.0  # between answers and the next question, however short a lifetime it gives
CHECK_S = 60.0  # between questions for the epoch: how long a gateway that was started again goes unnoticed
CHECK_SOON_S = 2.0  # while its outer address is not known
UPNP_RENEW_S = 600.0  # it has no epoch: mappings are made anew so often
AGAIN_S = 900.0  # after all ways were tried in vain


class Method(Enum):
    """How a router is asked for a port."""

    PCP = "PCP"
    NAT_PMP = "NAT-PMP"
    UPNP = "UPnP"


IPV4_METHODS = (Method.PCP, Method.NAT_PMP, Method.UPNP)
IPV6_METHODS = (Method.PCP,)


class Send(msgspec.Struct, frozen=True):
    """Send this to port 5351 of the gateway."""

    data: bytes


class AskUpnp(msgspec.Struct, frozen=True):
    """Have the gateway map our port by UPnP; lifetime 0: have it end what it mapped. The former is answered by
    `upnp_answered`, in bounded time."""

    lifetime_s: int


class Changed(msgspec.Struct, frozen=True):
    """`told` answers differently."""


class UpnpAnswer(msgspec.Struct, frozen=True):
    """host: the outer address. udp, tcp: outer ports, 0: none. lifetime_s: 0: without end. why: if nothing came of
    it. url: where the gateway describes itself, which saves the next search."""

    host: str = ""
    udp: int = 0
    tcp: int = 0
    lifetime_s: int = 0
    why: str = ""
    url: str = ""


Effect = Send | AskUpnp | Changed


class _Wish(msgspec.Struct):
    """A mapping that we want, or have."""

    protocol: Protocol
    nonce: bytes
    port: int = 0  # outer; 0: none
    host: str = ""  # outer
    expires: float = 0.0
    asks: int = 0  # since the last answer
    ask_at: float = float("inf")
    why: str = ""  # not, by the way that is being tried


class Mapper:
    """See the module."""

    def __init__(self, port: int, client: str, secret: bytes, methods: Sequence[Method] = IPV4_METHODS) -> None:
        """client: our address as the gateway sees it. secret: of this node, the same after a restart: it renews what it
        left behind, which a gateway allows nobody else."""
        self.port, self.client, self._methods = port, client, tuple(methods)
        self._wishes = [
            _Wish(protocol, blake3(secret + bytes([protocol]) + port.to_bytes(2)).digest(pcp.NONCE_BYTES))
            for protocol in (Protocol.UDP, Protocol.TCP)
        ]
        self.method: Method | None = None  # that is being tried, or has given ports
        self._tried: dict[Method, str] = {}
        self._again_at = float("inf")
        self._check_at = float("inf")
        self._upnp_at = float("inf")
        self._host = ""  # outer, as NAT-PMP tells it
        self._epoch: tuple[int, float] | None = None
        self._told: tuple[Endpoint | None, ...] = (None, None)

    def __repr__(self) -> str:
        found = ", ".join(f"{w.protocol.name} {w.host}:{w.port}" for w in self._wishes if w.port) or "nothing"
        return f"<Mapper of port {self.port}: {found}{f' by {self.method.value}' if self.method else ''}>"

    # -- verbs

    def begin(self, now: float) -> list[Effect]:
        """Try one way after the other."""
        self._again_at = self._check_at = self._upnp_at = float("inf")
        self._tried.clear()
        self.method = None
        return self._next(now)

    def received(self, data: bytes, now: float) -> list[Effect]:
        if self.method is Method.PCP:
            self._heard_pcp(data, now)
        elif self.method is Method.NAT_PMP:
            self._heard_natpmp(data, now)
        return self._settle(now)

    def refused(self, now: float) -> list[Effect]:
        """Nobody listens at its port 5351. One that has given ports may be starting again."""
        if self.method not in (Method.PCP, Method.NAT_PMP) or self._has_any():
            return []
        for method in (Method.PCP, Method.NAT_PMP):
            self._tried[method] = "not served"
        self._drop_questions()
        return self._next(now)

    def upnp_answered(self, answer: UpnpAnswer, now: float) -> list[Effect]:
        if self.method is not Method.UPNP:
            return []
        lifetime_s = min(answer.lifetime_s or LIFETIME_MAX_S, LIFETIME_MAX_S)
        for wish, port in zip(self._wishes, (answer.udp, answer.tcp)):
            if port and not answer.why:
                wish.port, wish.host, wish.why = port, answer.host, ""
                wish.expires = now + lifetime_s
            elif not wish.port:
                wish.why = answer.why or "refused"
        if self._has_any():
            self._upnp_at = now + (CHECK_S if answer.why else min(lifetime_s / 2, UPNP_RENEW_S))
        return self._settle(now)

    def tick(self, now: float) -> list[Effect]:
        if self._again_at <= now:
            return self.begin(now)
        had = self._has_any()
        for wish in self._wishes:
            if wish.port and wish.expires <= now:
                wish.port, wish.host, wish.asks = 0, "", 0
                wish.ask_at = float("inf") if self.method is Method.UPNP else now
        if had and not self._has_any():
            return [*self._changes(), *self.begin(now)]
        effects: list[Effect] = []
        for wish in self._wishes:
            if wish.ask_at <= now:
                effects += self._ask(wish, now)
        if self._check_at <= now:
            self._check_at = now + CHECK_S
            ask = pcp.write_announce(self.client) if self.method is Method.PCP else natpmp.write_address()
            effects.append(Send(ask))
        if self._upnp_at <= now:
            self._upnp_at = float("inf")
            effects.append(AskUpnp(LIFETIME_S))
        return effects + self._settle(now)

    def next_deadline(self) -> float | None:
        """When to call `tick`; None: never."""
        times = [self._again_at, self._check_at, self._upnp_at]
        for wish in self._wishes:
            times += [wish.ask_at, *([wish.expires] if wish.port else [])]
        soonest = min(times)
        return None if soonest == float("inf") else soonest

    def release(self, now: float) -> list[Effect]:
        """Give back what we have; asked once, for nobody waits."""
        effects: list[Effect] = []
        held = [wish for wish in self._wishes if wish.port]
        if self.method is Method.UPNP and held:
            effects.append(AskUpnp(0))
        elif held:
            effects += [Send(self._question(wish, 0)) for wish in held]
        for wish in self._wishes:
            wish.port, wish.host = 0, ""
        self._drop_questions()
        self.method = None
        self._again_at = self._check_at = self._upnp_at = float("inf")
        return effects + self._changes()

    # -- what we have

    def told(self, protocol: Protocol) -> Endpoint | None:
        """Where the gateway says that our port is; its outer address may itself be behind a NAT."""
        found = (wish for wish in self._wishes if wish.protocol is protocol and wish.port and wish.host)
        return next((Endpoint(wish.host, wish.port) for wish in found), None)

    def mapped(self, protocol: Protocol) -> Endpoint | None:
        """Where others reach our port from outside."""
        found = self.told(protocol)
        return found if found is not None and is_public(found) else None

    @property
    def outer_hosts(self) -> list[str]:
        """What the gateway says that its outer address is."""
        return sorted({wish.host for wish in self._wishes if wish.port and wish.host})

    def status(self) -> dict[str, object]:
        """Plain data, for `words`."""
        return {
            "method": self.method.value if self.method is not None and self._has_any() else "",
            "busy": self.method is not None and not self._has_any(),
            "mapped": {
                w.protocol.name.lower(): str(Endpoint(w.host, w.port)) for w in self._wishes if w.port and w.host
            },
            "behind_another": any(is_private(host) for host in self.outer_hosts),
            "tried": {method.value: why for method, why in self._tried.items()},
        }

    def validate(self) -> None:
        """Assert what always holds."""
        if self._has_any():
            assert self.method is not None, "a mapping is kept by the way that made it"
            assert self._again_at == float("inf"), "what is mapped is not looked for"
        for wish in self._wishes:
            assert 0 <= wish.port <= 0xFFFF
            assert bool(wish.port) or not wish.host, "no address without a port"
        busy = self.method is Method.UPNP or self.next_deadline() is not None
        assert self.method is None or busy, "what is under way has a deadline"

    # -- asking

    def _has_any(self) -> bool:
        return any(wish.port for wish in self._wishes)

    def _drop_questions(self) -> None:
        for wish in self._wishes:
            wish.asks, wish.ask_at = 0, float("inf")

    def _next(self, now: float) -> list[Effect]:
        """The next way that was not tried; after the last, rest."""
        left = [method for method in self._methods if method not in self._tried]
        self._epoch, self._host = None, ""
        if not left:
            self.method, self._again_at = None, now + AGAIN_S
            self._drop_questions()
            return self._changes()
        self.method = left[0]
        self._check_at = float("inf")
        for wish in self._wishes:
            wish.why, wish.asks, wish.ask_at = "", 0, now
        if self.method is Method.UPNP:
            self._drop_questions()
            return [AskUpnp(LIFETIME_S)]
        return self.tick(now)

    def _ask(self, wish: _Wish, now: float) -> list[Effect]:
        """The next question about this mapping, unless there were enough."""
        if not wish.port and wish.asks >= ASKS_MAX:
            wish.why, wish.ask_at, wish.asks = wish.why or "no answer", float("inf"), 0
            return []
        wish.why = ""
        wish.ask_at = now + min(ASK_S * 2 ** min(wish.asks, 16), ASK_MAX_S)
        wish.asks += 1
        effects: list[Effect] = [Send(self._question(wish, LIFETIME_S))]
        if self.method is Method.NAT_PMP and not self._host and wish is self._wishes[0]:
            effects.insert(0, Send(natpmp.write_address()))
        return effects

    def _question(self, wish: _Wish, lifetime_s: int) -> bytes:
        if self.method is Method.PCP:
            outer = Endpoint(wish.host or ("::" if ":" in self.client else "0.0.0.0"), wish.port or self.port)
            suggested = outer if lifetime_s else None
            return pcp.write_map(self.client, wish.protocol, self.port, wish.nonce, lifetime_s, suggested)
        opcode = natpmp.MAP_UDP if wish.protocol is Protocol.UDP else natpmp.MAP_TCP
        return natpmp.write_map(opcode, self.port, (wish.port or self.port) if lifetime_s else 0, lifetime_s)

    # -- hearing

    def _heard_pcp(self, data: bytes, now: float) -> None:
        answer = pcp.read(data)
        if answer is None:
            older = natpmp.read(data)
            if older is not None and older.result == natpmp.Result.UNSUPPORTED_VERSION and not self._has_any():
                self._refuse_all("it speaks NAT-PMP")
            return
        about = answer.mapping
        wish = next((w for w in self._wishes if about is not None and self._is_about(w, about)), None)
        if answer.result == pcp.Result.UNSUPP_VERSION and not self._has_any():
            self._refuse_all(pcp.result_text(answer.result))
        elif wish is not None and about is not None and answer.result:
            self._refuse(wish, pcp.result_text(answer.result))
        elif wish is not None and about is not None and about.outer.port and answer.lifetime_s:
            self._granted(wish, about.outer, answer.lifetime_s, now)
        self._heard_epoch(answer.epoch_s, pcp.has_forgotten, wish, now)

    def _is_about(self, wish: _Wish, mapping: pcp.Mapping) -> bool:
        return (mapping.nonce, mapping.protocol, mapping.inner_port) == (wish.nonce, wish.protocol, self.port)

    def _heard_natpmp(self, data: bytes, now: float) -> None:
        answer = natpmp.read(data)
        if answer is None or answer.result == natpmp.Result.UNSUPPORTED_VERSION:
            return  # the latter is about an earlier question, in PCP
        wanted = {natpmp.MAP_UDP: Protocol.UDP, natpmp.MAP_TCP: Protocol.TCP}.get(answer.opcode)
        wish = next((w for w in self._wishes if w.protocol is wanted), None)
        match answer.says:
            case natpmp.Address(host):
                self._host = host
                for each in self._wishes:
                    each.host = host if each.port else ""
                if not host and not self._has_any():
                    self._refuse_all("it has no outer address")
                    return
            case natpmp.Mapping(inner, outer, lifetime_s) if wish and inner == self.port and outer and lifetime_s:
                self._granted(wish, Endpoint(self._host, outer), lifetime_s, now)
            case None if answer.result:
                if wish is not None:
                    self._refuse(wish, natpmp.result_text(answer.result))
                elif answer.opcode == natpmp.ADDRESS and not self._has_any():
                    self._refuse_all(natpmp.result_text(answer.result))
        self._heard_epoch(answer.epoch_s, natpmp.has_forgotten, wish, now)

    def _granted(self, wish: _Wish, outer: Endpoint, lifetime_s: int, now: float) -> None:
        lifetime_s = min(lifetime_s, LIFETIME_MAX_S)
        wish.port, wish.host, wish.why = outer.port, outer.host, ""
        wish.expires = now + lifetime_s
        wish.asks, wish.ask_at = 0, now + max(lifetime_s / 2, RENEW_MIN_S)
        if self._check_at == float("inf"):
            self._check_at = now + (CHECK_S if outer.host else CHECK_SOON_S)

    def _refuse(self, wish: _Wish, why: str) -> None:
        """It says no. What it gave before holds until its end: it may say yes again."""
        wish.why = why
        if not wish.port:
            wish.asks, wish.ask_at = 0, float("inf")

    def _refuse_all(self, why: str) -> None:
        for wish in self._wishes:
            wish.why, wish.asks, wish.ask_at = why, 0, float("inf")

    def _heard_epoch(
        self, epoch_s: int, has_forgotten: Callable[[int, int, float], bool], answered: _Wish | None, now: float
    ) -> None:
        before, self._epoch = self._epoch, (epoch_s, now)
        if before is not None and has_forgotten(before[0], epoch_s, now - before[1]):
            for wish in self._wishes:
                if wish.port and wish is not answered:
                    wish.asks, wish.ask_at = 0, now

    # -- what follows

    def _settle(self, now: float) -> list[Effect]:
        """Go on to the next way once this one has said no to all; and say what has changed."""
        effects = self._changes()
        if self.method is None or any(not wish.port and not wish.why for wish in self._wishes):
            return effects
        if self._has_any():
            for wish in self._wishes:
                if not wish.port and wish.ask_at == float("inf") and self.method is not Method.UPNP:
                    wish.ask_at = now + AGAIN_S  # one of the two is better than none
            return effects
        self._tried[self.method] = " and ".join(dict.fromkeys(wish.why for wish in self._wishes))
        return effects + self._next(now)

    def _changes(self) -> list[Effect]:
        told = tuple(self.told(wish.protocol) for wish in self._wishes)
        if told == self._told:
            return []
        self._told = told
        return [Changed()]
