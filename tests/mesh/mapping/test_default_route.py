"""The kernel's files say who the gateway is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.mesh.mapping.default_route import Gateway, default_gateways, gateway6_of, gateway_of

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT"
DEFAULT6 = "0" * 32 + " 00 " + "0" * 32 + " 00 {via} {metric:08x} 00000001 00000000 {flags:08x} {interface}"


def route(interface: str, destination: str, gateway: str, flags: int, metric: int, mask: str = "00000000") -> str:
    return f"{interface}\t{destination}\t{gateway}\t{flags:04X}\t0\t0\t{metric}\t{mask}\t0\t0\t0"


@pytest.mark.skipif(sys.byteorder != "little", reason="the file holds this machine's own integers")
def test_the_default_route_of_the_least_metric_is_taken() -> None:
    lines = [
        HEAD,
        route("wlan0", "00000000", "0100A8C0", 3, 600),
        route("eth0", "00000000", "0101A8C0", 3, 100),
        route("eth0", "0001A8C0", "00000000", 1, 100, "00FFFFFF"),
    ]
    assert gateway_of(lines) == Gateway("192.168.1.1", "eth0")


def test_routes_that_are_down_or_lead_to_no_gateway_are_none() -> None:
    assert gateway_of([HEAD, route("ppp0", "00000000", "00000000", 1, 0)]) is None
    assert gateway_of([HEAD, route("eth0", "00000000", "0100A8C0", 2, 0)]) is None
    assert gateway_of([HEAD, route("tun0", "00000000", "0100000A", 3, 0, "00000080")]) is None, "half of the world"
    assert gateway6_of([DEFAULT6.format(via="0" * 32, metric=1, flags=0x200200, interface="lo")]) is None


def test_a_link_local_gateway_has_its_interface() -> None:
    via = "fe80000000000000020000fffe000001"
    lines = [DEFAULT6.format(via=via, metric=metric, flags=3, interface=name) for metric, name in ((9, "b"), (4, "a"))]
    assert gateway6_of(lines) == Gateway("fe80::200:ff:fe00:1%a", "a")


def test_where_there_are_no_such_files_there_is_no_gateway(tmp_path: Path) -> None:
    assert default_gateways(tmp_path) == []


@given(st.lists(st.text(alphabet="0123456789abcdefABCDEF \tzeth-", max_size=120), max_size=5))
def test_whatever_the_files_hold_is_no_error(noise: list[str]) -> None:
    gateway_of(noise), gateway6_of(noise)
