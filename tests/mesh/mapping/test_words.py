"""What a person is told of port mappings, and what is made of the program that speaks UPnP."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.mesh.mapping.keeper import upnp_answer
from lattica.mesh.mapping.mapper import UpnpAnswer
from lattica.mesh.mapping.words import words_of


@pytest.mark.parametrize(
    ("gateway", "said"),
    [
        (
            {"method": "PCP", "mapped": {"udp": "203.0.113.7:7411", "tcp": "203.0.113.7:7411"}},
            "the gateway 192.168.1.1 maps 203.0.113.7:7411 here, by PCP",
        ),
        (
            {"method": "UPnP", "mapped": {"udp": "100.64.0.9:7411"}, "behind_another": True},
            (
                "the gateway 192.168.1.1 maps UDP 100.64.0.9:7411 here, by UPnP; "
                "but it is behind another NAT, so that is of no use outside"
            ),
        ),
        ({"busy": True}, "the gateway 192.168.1.1 is being asked for a port"),
        (
            {"tried": {"PCP": "no answer", "UPnP": "no answer"}},
            "the gateway 192.168.1.1 maps no port (PCP: no answer, UPnP: no answer)",
        ),
    ],
)
def test_it_is_told_in_words_what_the_gateway_does(gateway: dict[str, Any], said: str) -> None:
    words, do_next = words_of({"looked": True, "gateways": [{"gateway": "192.168.1.1", **gateway}]})
    assert words == said
    assert bool(do_next) == ("tried" in gateway), "what would help is said where something would"


def test_it_is_told_why_nothing_was_asked() -> None:
    assert words_of({"off": "it is switched off"})[0] == "no port of the gateway is asked for: it is switched off"
    assert "no default gateway" in words_of({"looked": True, "gateways": []})[0]
    assert words_of({}) == ("no gateway was asked for a port yet", "")


def test_what_the_program_says_is_read() -> None:
    line = b'{"host": "203.0.113.7", "udp": 7411, "tcp": 7412, "lifetime_s": 60, "url": "http://192.168.1.1/d.xml"}\n'
    assert upnp_answer(line) == UpnpAnswer("203.0.113.7", 7411, 7412, 60, url="http://192.168.1.1/d.xml")
    assert upnp_answer(b'{"why": "no answer"}') == UpnpAnswer(why="no answer")


@given(st.binary(max_size=100) | st.sampled_from([b"[]", b"7", b'{"udp": "x"}', b'{"udp": 9e9, "host": "1.2.3.4"}']))
def test_noise_of_the_program_is_a_refusal(line: bytes) -> None:
    assert upnp_answer(line).why


@pytest.mark.parametrize("host", ["", "::1", "example.org", "1.2.3", "999.1.1.1"])
def test_an_outer_address_that_is_none_is_a_refusal(host: str) -> None:
    assert upnp_answer(b'{"udp": 1, "tcp": 1, "lifetime_s": 1, "host": "%s"}' % host.encode()).why
