"""The lab is what it says: NATs as measured, links as timed, faults that hold and heal, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lattica.testing.netlab import Host, Lab, LabError, Site, Unavailable, check, selftest, state
from lattica.testing.netlab.namespaces import NETNS, lives, processes_in, start_time

MakeLab = Callable[..., Lab]
ARRIVES_S = 2.0  # for a packet that should; a busy machine may keep this process waiting
LOST_S = 0.2  # for a packet that should not: above every delay in these tests
SLACK_S = 0.05  # what a busy machine may add to a round trip
PORT = 7000
NETLAB = [sys.executable, "-m", "lattica.testing.netlab"]


def passes(lab: Lab, source: str, target: str, *, address: str = "", wait_s: float = ARRIVES_S) -> bool:
    """Does a datagram sent in `source` to `target`'s address arrive there? Both sockets are of this process."""
    with lab.socket(source) as sender, lab.socket(target) as receiver:
        receiver.bind(("0.0.0.0", PORT))
        receiver.settimeout(wait_s)
        try:
            sender.sendto(b"hello", (address or lab.ip(target), PORT))
            return receiver.recv(100) == b"hello"
        except OSError:
            return False


def lost(lab: Lab, source: str, target: str) -> bool:
    return not passes(lab, source, target, wait_s=LOST_S)


def round_trip_s(lab: Lab, one: str, other: str) -> float:
    """The shortest of five: what a busy machine adds is not the link's."""
    took = []
    with lab.socket(one) as ours, lab.socket(other) as theirs:
        ours.settimeout(ARRIVES_S)
        theirs.settimeout(ARRIVES_S)
        theirs.bind(("0.0.0.0", PORT))
        for _ in range(5):
            began = time.perf_counter()
            ours.sendto(b"ping", (lab.ip(other), PORT))
            _, source = theirs.recvfrom(100)
            theirs.sendto(b"pong", source)
            ours.recv(100)
            took.append(time.perf_counter() - began)
    return min(took)


# ---- NATs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured() -> Iterator[dict[str, selftest.Finding]]:
    """Every NAT type in one lab."""
    try:
        check()
    except Unavailable as error:
        pytest.skip(error.reason)
    built, expected = selftest.sites()
    with Lab(sites=built) as lab:
        yield {each.nat: each for each in selftest.findings(lab, expected)}


@pytest.mark.parametrize("nat", [nat for nat, _ in selftest.sites()[1].values()])
def test_a_nat_measures_as_the_type_it_was_built_as(measured: dict[str, selftest.Finding], nat: str) -> None:
    assert measured[nat].ok, measured[nat]


def test_a_gateway_without_port_maps_lets_no_stranger_in_and_one_with_them_does(netlab: MakeLab) -> None:
    """NAT-PMP, RFC 6886 §3.3: ask for an outer port, be told which, and be reached there until it ends."""
    lab = netlab(public=["far"], sites={"a": "port-restricted portmap"})
    outer = lab.public_ip("a1")
    assert not passes(lab, "far", "a1", address=outer, wait_s=LOST_S)
    gateway = str(lab.lans["a"][1])
    with lab.socket("a1") as client:
        client.settimeout(ARRIVES_S)
        client.sendto(struct.pack("!BBHHHI", 0, 1, 0, PORT, PORT, 60), (gateway, 5351))
        _, opcode, result, _, inner, mapped, life = struct.unpack("!BBHIHHI", client.recv(100))
    assert (opcode, result, inner, mapped, life) == (129, 0, PORT, PORT, 60)
    assert passes(lab, "far", "a1", address=outer)
    lab.nat_reboot("a")
    assert not passes(lab, "far", "a1", address=outer, wait_s=LOST_S)


def test_a_rebooted_or_changed_gateway_forgets_its_mappings(netlab: MakeLab) -> None:
    lab = netlab(public=["far"], sites={"a": "full-cone"})

    def far_sees(client: socket.socket, server: socket.socket) -> tuple[str, int] | None:
        client.sendto(b"hello", (lab.ip("far"), PORT))
        try:
            source: tuple[str, int] = server.recvfrom(100)[1]
        except TimeoutError:
            return None
        return source

    with lab.socket("a1") as client, lab.socket("far") as server:
        server.bind(("0.0.0.0", PORT))
        server.settimeout(ARRIVES_S)
        client.settimeout(LOST_S)
        mapped = far_sees(client, server)
        assert mapped is not None
        server.sendto(b"in", mapped)
        assert client.recv(100) == b"in"
        lab.nat_reboot("a")
        server.sendto(b"in", mapped)
        with pytest.raises(TimeoutError):
            client.recv(100)
        lab.nat_set("a", udp=False)
        server.settimeout(LOST_S)
        assert far_sees(client, server) is None
        lab.nat_set("a", udp=True)
        server.settimeout(ARRIVES_S)
        assert far_sees(client, server) is not None


def test_a_site_that_roams_is_seen_under_another_address(netlab: MakeLab) -> None:
    lab = netlab(sites={"a": "port-restricted"})
    before = lab.probe("a1", tcp=False)["seen"][0].partition(":")[0]
    after = lab.roam("a")
    assert before != after
    assert lab.probe("a1", tcp=False)["seen"][0].partition(":")[0] == after == lab.public_ip("a1")


def test_whoever_goes_on_sending_while_a_site_roams_is_seen_under_its_new_address(netlab: MakeLab) -> None:
    lab = netlab(public={"far": Host()}, sites={"a": "port-restricted"})
    with lab.socket("a1") as client, lab.socket("far") as server:
        server.bind(("0.0.0.0", PORT))
        server.settimeout(LOST_S)
        roamed = threading.Event()

        def go_on() -> None:
            while not roamed.wait(0.001):
                client.sendto(b"before", (lab.ip("far"), PORT))

        sender = threading.Thread(target=go_on)
        sender.start()
        assert server.recv(100) == b"before"
        after = lab.roam("a")
        roamed.set()
        sender.join()
        client.sendto(b"after", (lab.ip("far"), PORT))
        said, source = server.recvfrom(100)
        while said != b"after":
            said, source = server.recvfrom(100)
        assert source[0] == after
        assert lab.roam("a", forget=False) != after
        client.sendto(b"kept", (lab.ip("far"), PORT))
        assert server.recvfrom(100)[1][0] == after, "unless its gateway keeps old flows"


# ---- links ----------------------------------------------------------------------------------------------------------


def test_a_link_has_the_delay_it_was_given_and_gets_another_while_it_runs(netlab: MakeLab) -> None:
    lab = netlab(public={"near": Host(), "far": Host("30ms")})
    assert 0.06 <= round_trip_s(lab, "near", "far") < 0.06 + SLACK_S
    lab.shape("far", "5ms")
    assert 0.01 <= round_trip_s(lab, "near", "far") < 0.01 + SLACK_S
    with pytest.raises(LabError, match="plain cable"):
        lab.shape("near", "5ms")


def test_a_link_loses_the_share_it_was_given(netlab: MakeLab) -> None:
    lab = netlab(public={"near": Host(), "far": Host("loss 20%")})
    with lab.socket("near") as sender, lab.socket("far") as receiver:
        receiver.bind(("0.0.0.0", PORT))
        for _ in range(2_000):
            sender.sendto(b"x", (lab.ip("far"), PORT))
        deadline = time.monotonic() + ARRIVES_S
        while (stats := lab.link_stats("far")["ab"])["rx"] < 2_000 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert 300 <= stats["lost"] <= 500, stats  # 400; five standard deviations of 2,000 draws are 90


@pytest.mark.parametrize("link", ["16mbit", "16mbit emulated"])
def test_a_link_with_a_rate_carries_that_much_and_no_more(netlab: MakeLab, link: str) -> None:
    lab = netlab(public={"near": Host(), "far": Host(link)})
    size = 1_000_000
    with lab.socket("far", type=socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", PORT))
        listener.listen()
        feed = f"import socket; socket.create_connection(('{lab.ip('far')}', {PORT})).sendall(bytes({size}))"
        sender = lab.popen("near", [sys.executable, "-c", feed])
        listener.settimeout(ARRIVES_S * 5)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(ARRIVES_S)
            began, received = time.perf_counter(), 0
            while data := connection.recv(1 << 16):
                received += len(data)
            took = time.perf_counter() - began
        assert sender.wait(ARRIVES_S) == 0
    assert received == size
    assert 0.8 * 8 * size / 16e6 < took < 3 * 8 * size / 16e6


# ---- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", ["", "emulated"])
@pytest.mark.parametrize("mode", ["blackhole", "down"])
def test_what_is_cut_is_lost_until_it_is_healed(netlab: MakeLab, link: str, mode: str) -> None:
    lab = netlab(public={"near": Host(), "far": Host(link)}, sites={"a": Site(wan=link)})
    for leaf, source in (("far", "near"), ("a", "a1")):
        assert passes(lab, source, "far")
        lab.cut(leaf, mode)
        assert lost(lab, source, "far")
        lab.heal(leaf)
        assert passes(lab, source, "far")


def test_a_partition_parts_two_groups_and_leaves_others_between_them(netlab: MakeLab) -> None:
    lab = netlab(public=["relay", "left", "right"], sites={"a": Site("public", hosts=2)})
    lab.partition(["left", "a1"], ["right", "a2"])
    assert lost(lab, "left", "right")
    assert lost(lab, "right", "a1")
    assert lost(lab, "a1", "a2"), "two hosts of one LAN"
    assert passes(lab, "left", "relay")
    assert passes(lab, "relay", "right")
    lab.unpartition()
    assert passes(lab, "left", "right")
    assert passes(lab, "a1", "a2")


def test_killing_a_host_ends_its_processes_and_keeps_its_network(netlab: MakeLab) -> None:
    lab = netlab(public=["one", "other"])
    one, other = (lab.popen(host, ["sleep", "60"]) for host in ("one", "other"))
    assert lab.kill("one") == [one.pid]
    assert one.wait(ARRIVES_S) == -signal.SIGKILL
    assert other.poll() is None
    assert passes(lab, "other", "one")
    lab.down()
    assert other.wait(ARRIVES_S) == -signal.SIGKILL


# ---- nothing is left ------------------------------------------------------------------------------------------------


def leftovers(name: str, processes: list[tuple[int, int | None]]) -> list[str]:
    """Namespaces, files and living processes of a lab."""
    spaces = [ns for ns in os.listdir(NETNS) if ns.startswith(f"nl-{name}-")] if NETNS.is_dir() else []
    files = [str(state.STATE / name)] if (state.STATE / name).exists() else []
    return spaces + files + [f"process {process[0]}" for process in processes if lives(process)]


EVERYTHING = {"public": {"far": Host("1ms")}, "sites": {"a": "full-cone portmap"}}


def test_a_lab_that_ends_leaves_no_namespace_no_process_and_no_file(netlab: MakeLab) -> None:
    """Its own emulator and NAT-PMP server, and a program that somebody forgot in a host."""
    lab = netlab(**EVERYTHING)
    forgotten = lab.popen("a1", ["sleep", "60"])
    processes = [*lab.helpers, *processes_in(node.ns for node in lab.nodes.values())]
    assert len(lab.helpers) == 2
    assert (forgotten.pid, start_time(forgotten.pid)) in processes
    lab.down()
    lab.down()
    assert leftovers(lab.name, processes) == []
    assert forgotten.wait(ARRIVES_S) == -signal.SIGKILL


def test_a_lab_that_cannot_be_built_leaves_nothing(netlab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    netlab()
    lab = Lab(**EVERYTHING)
    monkeypatch.setattr(lab, "set_timeouts", lambda site: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lab.up()
    assert leftovers(lab.name, lab.helpers) == []


def test_the_next_lab_ends_one_whose_maker_was_killed(netlab: MakeLab, tmp_path: Path) -> None:
    netlab()
    program = tmp_path / "maker.py"
    program.write_text(
        "import time, json\n"
        "from lattica.testing.netlab import Host, Lab\n"
        "lab = Lab(public={'far': Host('1ms')}, sites={'a': 'full-cone portmap'}).up()\n"
        "lab.popen('a1', ['sleep', '60'])\n"
        "print(lab.name, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout
        name = maker.stdout.readline().strip()
        processes = processes_in(ns for ns in os.listdir(NETNS) if ns.startswith(f"nl-{name}-"))
        assert len(processes) == 3, "an emulator, a NAT-PMP server, and a program"
        maker.kill()
    assert leftovers(name, processes), "it had no chance to end its lab"
    netlab()
    assert leftovers(name, processes) == []


def test_a_lab_in_use_by_its_maker_is_not_ended_by_the_next_one_nor_by_who_changed_it(netlab: MakeLab) -> None:
    lab = netlab(public={"far": Host("emulated")})
    subprocess.run([*NETLAB, "shape", lab.name, "far", "1ms"], check=True)  # saves the lab's state, and ends
    netlab()
    assert passes(lab, "probe", "far")


# ---- the command line -----------------------------------------------------------------------------------------------


def test_a_lab_from_a_file_outlives_the_command_that_built_it(netlab: MakeLab, tmp_path: Path) -> None:
    netlab()
    name = f"t{os.getpid():x}"
    plan = tmp_path / "plan.toml"
    plan.write_text('[public.far]\nlink = "emulated"\n[site.a]\nnat = "full-cone"\nhosts = 2\n')

    def netlab_says(*words: str, code: int = 0) -> str:
        done = subprocess.run([*NETLAB, *words], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout

    try:
        assert "hosts far probe a1 a2" in netlab_says("up", str(plan), name)
        assert name in netlab_says("list").splitlines()
        assert "10.1.0.10" in netlab_says("exec", name, "a1", "--", "ip", "-4", "addr")
        assert json.loads(netlab_says("probe", name, "a2"))["filtering"] == "eif"
        netlab_says("nat-set", name, "a", "filtering=apdf")
        assert json.loads(netlab_says("probe", name, "a2"))["filtering"] == "apdf"
        netlab_says("cut", name, "far")
        with Lab.attach(name).socket("a1") as client:
            client.sendto(b"x", (Lab.attach(name).ip("far"), PORT))
        netlab_says("heal", name, "far")
        netlab_says("up", str(plan), name, code=1)
    finally:
        netlab_says("down", name)
    assert leftovers(name, []) == []
    netlab_says("down", name, code=1)
