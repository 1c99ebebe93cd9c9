"""Ports of real gateways: miniupnpd in a gateway's namespace, asked by PCP, NAT-PMP and UPnP; and netlab's own NAT-PMP.

miniupnpd takes netlab's outer addresses, which are documentation's, for private ones and then maps nothing. So it is
told that it has another (`ext_ip`): what it says of itself is that, and where it is reached is the gateway's own.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lattica.testing.netlab import Lab, Site

MakeLab = Callable[..., Lab]
PORT = 7411
NATPMP_PORT, SSDP_PORT = 5351, 1900
SAID_OUTER = "5.6.7.8"
WITHIN_S = 15.0  # of what a busy machine does late
TABLE = """table inet filter {
chain miniupnpd {
}
chain prerouting_miniupnpd {
}
chain postrouting_miniupnpd {
}
chain prerouting {
type nat hook prerouting priority -110; policy accept;
jump prerouting_miniupnpd
}
}
"""
CONFIG = """ext_ifname=wan
ext_ifname6=wan
ext_ip={outer}
listening_ip=lan
enable_natpmp={natpmp}
enable_upnp={upnp}
secure_mode=yes
min_lifetime=20
upnp_table_name=filter
upnp_nat_table_name=filter
upnp_forward_chain=miniupnpd
upnp_nat_chain=prerouting_miniupnpd
upnp_nat_postrouting_chain=postrouting_miniupnpd
uuid=d9e39e92-968a-4e2b-94d6-a3a5f5cfce29
allow 1-65535 0.0.0.0/0 1-65535
"""
LATTICA = [sys.executable, "-c", "from lattica.cli.main import main; main()"]
KEEPER = """
import asyncio, json, sys
from lattica.mesh.mapping import keeper, mapper, natpmp, pcp
from lattica.mesh.mapping.mapper import Method

mapper.CHECK_S = 0.5
if sys.argv[1] != "all":
    keeper.IPV4_METHODS = (Method(sys.argv[1]),)

async def main():
    def say(found):
        print(json.dumps({"at": [str(each) for each in found.addresses], **found.status()}), flush=True)
    found = keeper.Keeper(int(sys.argv[2]), b"a secret", say)
    found.start()
    loop = asyncio.get_running_loop()
    while True:
        line = await loop.run_in_executor(None, sys.stdin.readline)
        if not line:
            break
        say(found)
    await found.stop()

asyncio.run(main())
"""


class Router:
    """miniupnpd on a site's gateway."""

    def __init__(self, lab: Lab, site: str, folder: Path, *, natpmp: bool, upnp: bool) -> None:
        self._lab, self._site, self._folder = lab, site, folder
        self._last_port = NATPMP_PORT if natpmp else SSDP_PORT  # opened in the order HTTP, SSDP, NAT-PMP
        words = {True: "yes", False: "no"}
        folder.joinpath("miniupnpd.conf").write_text(
            CONFIG.format(outer=SAID_OUTER, natpmp=words[natpmp], upnp=words[upnp])
        )
        self._process: subprocess.Popen[Any] | None = None
        self.start()

    def start(self) -> None:
        """Also again: what it had mapped is forgotten."""
        self.stop()
        clean = "table inet filter\ndelete table inet filter\n"
        self._lab.run(self._site, ["nft", "-f", "-"], input=clean + TABLE, text=True)
        config, pid = str(self._folder / "miniupnpd.conf"), str(self._folder / "miniupnpd.pid")
        command = [miniupnpd(), "-d", "-f", config, "-P", pid]
        with self._folder.joinpath("miniupnpd.log").open("ab") as log:
            self._process = self._lab.popen(self._site, command, stdout=log, stderr=subprocess.STDOUT)
        end = time.monotonic() + WITHIN_S
        while not self._listens():
            assert time.monotonic() < end and self._process.poll() is None, self._log()
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(WITHIN_S)
            self._process = None

    def _listens(self) -> bool:
        """Whether the last of its sockets is open."""
        table = str(self._lab.run(self._site, ["cat", "/proc/net/udp"], capture_output=True, text=True).stdout)
        return any(line.split()[1].endswith(f":{self._last_port:04X}") for line in table.splitlines()[1:])

    def _log(self) -> str:
        return self._folder.joinpath("miniupnpd.log").read_text()

    def rules(self, chain: str = "prerouting_miniupnpd") -> str:
        """What it has mapped."""
        command = ["nft", "list", "chain", "inet", "filter", chain]
        return str(self._lab.run(self._site, command, capture_output=True, text=True).stdout)


def miniupnpd() -> str:
    found = shutil.which("miniupnpd", path="/usr/sbin:/sbin:/usr/bin")
    if found is None:
        pytest.skip("miniupnpd is not installed (apt-get install miniupnpd)")
    return found


class Asker:
    """A keeper of ports in a process of a host's."""

    def __init__(self, lab: Lab, host: str, way: str) -> None:
        command = [sys.executable, "-c", KEEPER, way, str(PORT)]
        self._process = lab.popen(host, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def status(self) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        said: dict[str, Any] = json.loads(self._process.stdout.readline())
        return said

    def until(self, fact: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """What it says once that is so."""
        end = time.monotonic() + WITHIN_S
        while not fact(said := self.status()):
            assert time.monotonic() < end, said
            time.sleep(0.1)
        return said

    def stop(self) -> None:
        if self._process.returncode is None:
            self._process.communicate(timeout=WITHIN_S)


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Callable[..., Router]]:
    made: list[Router] = []

    def make(lab: Lab, site: str, *, natpmp: bool, upnp: bool) -> Router:
        made.append(Router(lab, site, tmp_path, natpmp=natpmp, upnp=upnp))
        return made[-1]

    yield make
    for each in made:
        each.stop()


@pytest.fixture
def asker() -> Iterator[Callable[..., Asker]]:
    made: list[Asker] = []

    def make(lab: Lab, host: str, way: str = "all") -> Asker:
        made.append(Asker(lab, host, way))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def reaches(lab: Lab, far: str, near: str, outer: str, kind: socket.SocketKind) -> bool:
    """Does what `far` sends to the gateway's outer address arrive at `near`?"""
    with lab.socket(near, type=kind) as server, lab.socket(far, type=kind) as client:
        server.bind(("0.0.0.0", PORT))
        for each in (server, client):
            each.settimeout(1.0)
        try:
            if kind is socket.SOCK_DGRAM:
                client.sendto(b"hello", (outer, PORT))
                return server.recv(100) == b"hello"
            server.listen()
            client.connect((outer, PORT))
            return True
        except OSError:
            return False


@pytest.mark.parametrize("way", ["PCP", "NAT-PMP", "UPnP"])
def test_a_real_gateway_maps_our_port_and_takes_it_back(
    netlab: MakeLab, router: Callable[..., Router], asker: Callable[..., Asker], way: str
) -> None:
    lab = netlab(public=["far"], sites={"a": "port-restricted"})
    gateway = router(lab, "a", natpmp=way != "UPnP", upnp=way == "UPnP")
    outer = lab.public_ip("a1")
    assert not reaches(lab, "far", "a1", outer, socket.SOCK_DGRAM)
    asks = asker(lab, "a1", way)
    said = asks.until(lambda said: len(said["gateways"]) == 1 and len(said["gateways"][0]["mapped"]) == 2)
    assert said["at"] == [f"{SAID_OUTER}:{PORT}"] and said["gateways"][0]["method"] == way
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        assert reaches(lab, "far", "a1", outer, kind)
    asks.stop()
    assert "dnat" not in gateway.rules(), "it is given back"


def test_a_gateway_that_was_started_again_maps_anew(
    netlab: MakeLab, router: Callable[..., Router], asker: Callable[..., Asker]
) -> None:
    lab = netlab(public=["far"], sites={"a": "port-restricted"})
    gateway = router(lab, "a", natpmp=True, upnp=False)
    asks = asker(lab, "a1")
    asks.until(lambda said: bool(said["at"]))
    time.sleep(3.0)  # an epoch that has come further than a restart's
    gateway.start()  # with empty rules
    end = time.monotonic() + WITHIN_S
    while gateway.rules().count("dnat") < 2:
        assert time.monotonic() < end, asks.status()
        time.sleep(0.2)
    assert reaches(lab, "far", "a1", lab.public_ip("a1"), socket.SOCK_DGRAM)


def test_a_gateway_is_asked_to_let_others_in_by_ipv6(
    netlab: MakeLab, router: Callable[..., Router], asker: Callable[..., Asker]
) -> None:
    """There is nothing to map: the firewall of the gateway lets others through to our own address."""
    lab = netlab(sites={"a": Site("port-restricted", ipv6="stateful")})
    gateway = router(lab, "a", natpmp=True, upnp=False)
    asks = asker(lab, "a1")
    ours = f"[{lab.ip('a1', v6=True)}]:{PORT}"
    both = {"udp": ours, "tcp": ours}
    said = asks.until(lambda said: len(said["at"]) == 2 and said["gateways"][1]["mapped"] == both)
    assert said["at"] == [f"{SAID_OUTER}:{PORT}", ours]
    assert gateway.rules("miniupnpd").count("accept") == 4, "UDP and TCP, of both families"
    asks.stop()
    assert "accept" not in gateway.rules("miniupnpd")


def test_where_both_older_ways_are_not_served_upnp_is_found(
    netlab: MakeLab, router: Callable[..., Router], asker: Callable[..., Asker]
) -> None:
    lab = netlab(public=["far"], sites={"a": "symmetric"})
    router(lab, "a", natpmp=False, upnp=True)
    said = asker(lab, "a1").until(lambda said: bool(said["at"]))
    assert said["gateways"][0]["tried"] == {"PCP": "not served", "NAT-PMP": "not served"}
    assert reaches(lab, "far", "a1", lab.public_ip("a1"), socket.SOCK_DGRAM)


def test_behind_two_nats_the_inner_one_maps_and_it_is_said_that_this_is_of_no_use(
    netlab: MakeLab, asker: Callable[..., Asker]
) -> None:
    lab = netlab(sites={"isp": Site("cgn", hosts=0), "a": Site("port-restricted portmap", upstream="isp")})
    asks = asker(lab, "a1")
    said = asks.until(lambda said: bool(said["gateways"]) and bool(said["gateways"][0]["mapped"]))
    assert said["at"] == [] and said["gateways"][0]["behind_another"]


def test_nodes_behind_a_gateway_that_maps_ports_are_dialed_by_who_has_only_a_ticket(
    netlab: MakeLab, tmp_path: Path
) -> None:
    """`lattica start` behind a NAT, a ticket, and `lattica join` on a machine outside: the ticket has the address that
    the gateway maps. Nothing is configured."""
    lab = netlab(public=["far"], sites={"a": "port-restricted portmap"})

    def lattica(host: str, *words: str) -> str:
        command = ["env", f"LATTICA_DATA_DIR={tmp_path / host}", *LATTICA, *words]
        done = lab.run(host, command, capture_output=True, text=True, check=False, timeout=60)
        assert not done.returncode, done.stderr
        return str(done.stdout)

    folders = {host: tmp_path / host for host in ("a1", "far")}
    try:
        lattica("a1", "start", "--listen", f":{PORT}", "--num-cpus", "1")
        outer = f"{lab.public_ip('a1')}:{PORT}"
        end = time.monotonic() + WITHIN_S
        while outer not in (words := lattica("a1", "doctor")):
            assert time.monotonic() < end, words
        assert f"maps {outer} here, by NAT-PMP" in words
        ticket = lattica("a1", "ticket").strip()
        said = lattica("far", "join", ticket, "--listen", "none", "--num-cpus", "1")
        assert "none has answered" not in said, said
        assert outer in lattica("far", "peers")
    finally:
        for host in folders:
            with contextlib.suppress(AssertionError):
                lattica(host, "stop")
