"""The plan of a network lab, before anything of it is made: words become links and NATs, and every node has a place."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest

from lattica.errors import ConfigError
from lattica.testing.netlab import PRESETS, Host, Lab, LabError, Link, Nat, Site, Unavailable, links, machine, selftest
from lattica.testing.netlab.natrules import gateway_rules
from lattica.testing.netlab.topology import nat_of


def test_a_link_is_read_from_words() -> None:
    link = Link.of("20ms 50mbit/10mbit jitter 3ms loss 0.5% burst 4 queue 200ms reorder dup 0.001 mtu 1400")
    assert link == Link(0.02, 0.003, 50e6, 10e6, 0.005, 4, 0.001, 0.2, True, mtu=1400)
    assert (link.rate_of(up=False), link.rate_of(up=True)) == (50e6, 10e6)
    assert Link.of({"delay": "20ms", "rate": "1gbit"}) == Link(0.02, rate=1e9)
    assert Link.of(None) == Link()


@pytest.mark.parametrize("words", ["20 ms", "fast", "loss", "loss much", "queue 5", "5kB"])
def test_words_that_mean_nothing_are_named(words: str) -> None:
    with pytest.raises(ConfigError, match=words.split()[0]):
        Link.of(words)


def test_only_a_link_with_more_than_a_rate_needs_the_emulator() -> None:
    assert not Link.of("50mbit mtu 1400").needs_linkem
    assert all(Link.of(words).needs_linkem for words in ("1ms", "loss 1%", "jitter 1ms", "dup 1%", "emulated"))


def test_a_nat_is_a_preset_with_changes() -> None:
    changed = nat_of("port-restricted hairpin portmap unsolicited=accept udp_stream=5 udp=no")
    assert changed == Nat(hairpin=True, portmap=True, unsolicited="accept", udp_stream=5, udp=False)
    assert nat_of({"preset": "full-cone", "hairpin": True}) == Nat("eim", "eif", hairpin=True)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("half-cone", "half-cone"),
        ("full-cone hairpn", "hairpn"),
        ("full-cone udp_stream=soon", "udp_stream"),
        ("full-cone filtering=none", "eif, adf, apdf"),
        ("symmetric hairpin", "endpoint-dependent"),
    ],
)
def test_a_nat_that_cannot_be_is_refused_by_name(spec: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        nat_of(spec)


def test_every_preset_is_measured_by_the_selftest() -> None:
    assert PRESETS.keys() <= selftest.SINGLE.keys()


@pytest.mark.parametrize(("nat", "ipv6"), list(itertools.product(PRESETS, ["none", "open", "stateful"])))
def test_a_ruleset_replaces_the_one_before_and_closes_what_it_opens(nat: str, ipv6: str) -> None:
    rules = gateway_rules(PRESETS[nat], "203.0.113.9", ipv6)
    assert rules.startswith("table ip nat\ndelete table ip nat\n")
    assert rules.count("{") == rules.count("}")


def test_every_node_has_a_place_an_address_and_a_way_to_the_core() -> None:
    lab = Lab(
        public={"relay": None, "far": "80ms"},
        sites={
            "c": Site("full-cone", upstream="isp"),
            "isp": Site("cgn", hosts=0),
            "a": Site("port-restricted", hosts=2),
            "b": Site("public", hosts=["x", "y"], ipv6="open"),
        },
        name="plan",
    )
    assert lab.hosts() == ["relay", "far", "probe", "c1", "a1", "a2", "x", "y"]
    assert lab.hosts("b") == ["x", "y"]
    assert [lab.ip(host) for host in ("relay", "far", "probe")] == ["198.51.100.10", "198.51.100.11", "198.51.100.2"]
    assert lab.path("c1") == [("core", "c4", "203.0.113.11"), ("isp", "p5", "100.64.2.100"), ("c", "p6", "10.1.0.10")]
    assert lab.public_ip("c1") == lab.public_ip("c") == lab.ip("isp") == "203.0.113.11"
    assert lab.public_ip("x") == lab.ip("x") == "192.0.2.18"
    assert lab.ip("x", v6=True) == "2001:db8:0:4::a"
    macs = [cable.mac(inner=inner) for cable in lab.cables.values() for inner in (False, True)]
    assert len(set(macs)) == len(macs)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"sites": {"a": Site(upstream="b"), "b": Site(upstream="a")}}, "circle"),
        ({"sites": {"a": Site(upstream="isp")}}, "isp"),
        ({"sites": {"isp": Site("public"), "a": Site(upstream="isp")}}, "must do NAT"),
        ({"public": ["a1"], "sites": {"a": "full-cone"}}, "two nodes are called 'a1'"),
        ({"public": ["a host"]}, "a host"),
        ({"name": "No"}, "No"),
        ({"sites": {"a": {"nat": "full-cone", "host": 2}}}, "host"),
    ],
)
def test_a_topology_that_cannot_be_is_refused_before_anything_is_made(plan: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Lab(**plan)


def test_a_node_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(LabError, match="relay, probe"):
        Lab(public={"relay": Host()}).ip("rely")


def test_a_machine_without_the_programs_is_told_which_and_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "nft" else f"/usr/sbin/{name}")
    machine._missing.cache_clear()
    try:
        with pytest.raises(Unavailable) as caught:
            machine.check()
    finally:
        machine._missing.cache_clear()
    assert "`nft`" in caught.value.reason
    assert "apt-get install iproute2 nftables" in caught.value.reason


def test_links_with_delay_say_that_they_need_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.path.exists", lambda path: True)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(Unavailable, match="C compiler"):
        links.linkem(tmp_path)


def test_the_emulators_source_is_part_of_the_package() -> None:
    assert "linkem NS_A DEV_A NS_B DEV_B CTL_SOCKET SEED PARAMS_AB PARAMS_BA" in links.SOURCE.read_text()
