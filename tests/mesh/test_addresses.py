"""Addresses as text, and what noise makes of them."""

from __future__ import annotations

import asyncio
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import ConfigError
from lattica.mesh.addresses import TEXT_MAX_CHARS, host_text, ranked, reachable, resolve, split_host


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.0.2.7:7411", "192.0.2.7", 7411),
        ("[2001:db8::7]:7411", "2001:db8::7", 7411),
        ("gpu.example.org:80", "gpu.example.org", 80),
        (":0", "", 0),
        ("[::]:65535", "::", 65535),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, host: str, port: int) -> None:
    assert split_host(text) == (host, port)
    assert not host or host_text(host, port) == text


@pytest.mark.parametrize(
    "text",
    ["", "host", "host:", "host:x", "host:-1", "host:65536", "::1:80", "host:٣", "h" * TEXT_MAX_CHARS + ":1",
     "host:" + "9" * 5000, "host: 80", "host:1_0", "a host:80", "host\r\nX: y:80", "[::1\r\n\r\n]:80", "host\x00:80"],
)  # fmt: skip
def test_what_is_no_address_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ConfigError, match="is no address") as caught:
        split_host(text)
    assert "HOST:PORT" in str(caught.value) and len(str(caught.value)) < 400


@given(st.one_of(st.text(), st.text(alphabet="[]:%.0123456789abcdef")))
def test_whatever_text_is_an_address_or_refused(text: str) -> None:
    try:
        host, port = split_host(text)
    except ConfigError:
        return
    assert 0 <= port <= 65535 and len(host) <= TEXT_MAX_CHARS


@given(st.ip_addresses().map(str), st.integers(0, 65535))
def test_the_address_of_every_interface_can_be_written_and_read(host: str, port: int) -> None:
    assert split_host(host_text(host, port)) == (host, port)


def test_global_addresses_are_told_first_and_loopback_last() -> None:
    addresses = ["127.0.0.1:7", "[fe80::1%eth0]:7", "relay/3ab7", "10.0.0.7:7", "8.8.8.8:7", "box.example.org:7"]
    assert ranked([*addresses, "10.0.0.7:7"]) == [
        "8.8.8.8:7", "box.example.org:7", "10.0.0.7:7", "relay/3ab7", "[fe80::1%eth0]:7", "127.0.0.1:7",
    ]  # fmt: skip


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a\0b", "." * 10, "\ud800"])
async def test_a_name_that_cannot_be_one_is_an_unknown_host(host: str) -> None:
    """Peers tell us their addresses: a bent one must not keep the others from being dialed."""
    with pytest.raises(OSError):
        await resolve(asyncio.get_running_loop(), host, 80)


async def test_a_number_is_resolved_without_asking_anybody() -> None:
    found = await resolve(asyncio.get_running_loop(), "127.0.0.1", 80)
    assert (socket.AF_INET, ("127.0.0.1", 80)) in found


def test_an_address_with_a_second_port_is_told_beside_the_first() -> None:
    assert reachable(["192.0.2.7:7411", "192.0.2.7:443"]) == ["192.0.2.7:7411", "192.0.2.7:443"]
