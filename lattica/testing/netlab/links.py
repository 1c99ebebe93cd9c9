"""Cables made real: veth pairs, with tbf where only a rate is asked for, and linkem for everything else.

linkem (`linkem.c`) holds one TAP device in each of two namespaces and carries frames between them with delay, jitter,
loss, duplication and a rate. It is compiled on first use and kept in the state folder. Kernel netem is not needed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

from .errors import APT, LabError, Unavailable
from .layout import Cable
from .namespaces import NETNS, in_netns, tool
from .topology import Link

SOURCE = Path(__file__).with_name("linkem.c")
CONTROL_TIMEOUT_S = 2.0
RUNNING_TIMEOUT_S = 5.0
SIOCGIFFLAGS, IFF_RUNNING = 0x8913, 0x40  # netdevice(7)
TBF_TICKS = 250
"""tbf's bucket holds a tick's worth at the kernel's slowest usual clock (HZ=250), or it could not reach its rate."""


def linkem(state: Path) -> Path:
    """The emulator's program in the state folder, compiled if it is not there. Raises Unavailable."""
    if not os.path.exists("/dev/net/tun"):
        raise Unavailable("links with delay or loss need /dev/net/tun", do_next="modprobe tun")
    program = state / f"linkem-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}"
    if not program.exists():
        compiler = shutil.which("gcc") or shutil.which("cc")
        if not compiler:
            raise Unavailable("links with delay or loss need a C compiler", do_next=APT)
        state.mkdir(parents=True, exist_ok=True)
        draft = program.with_name(f"{program.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            tool(None, [compiler, "-O2", "-pthread", "-o", str(draft), str(SOURCE)])
        except LabError as error:
            raise Unavailable(f"linkem.c does not compile here: {error.message}", do_next=APT) from error
        draft.rename(program)
    return program


def veth_line(cable: Cable) -> str:
    """For `ip -batch`. The two ends get different interface numbers on purpose: the kernel takes a pair with equal ones
    for something else, and then brings it up as much as a second late."""
    return (
        f"link add name {cable.outer_dev} index {100 + cable.number} netns {cable.outer_ns} type veth "
        f"peer name {cable.inner_dev} index {10000 + cable.number} netns {cable.inner_ns}"
    )


def start_linkem(program: Path, cable: Cable, core: str, control: Path, seed: int) -> subprocess.Popen[bytes]:
    """Run a cable's emulator, from the core's namespace so that it ends with the lab; then both devices exist."""
    words: list[str | Path] = [
        program,
        NETNS / cable.outer_ns,
        cable.outer_dev,
        NETNS / cable.inner_ns,
        cable.inner_dev,
        control,
        str(seed),
    ]
    words += [cable.link.params(up=False), cable.link.params(up=True)]
    with in_netns(core):
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    assert process.stdout and process.stderr
    with process.stdout, process.stderr:
        if process.stdout.readline() == b"ready\n":
            return process
        process.kill()
        said = process.stderr.read().decode(errors="replace").strip()
    process.wait()
    raise LabError(f"linkem did not start for {cable.leaf}: {said or 'it said nothing'}")


def ask_linkem(folder: Path, leaf: str, text: str) -> str:
    """Send one command to the emulator of a leaf's cable; its answer. See the head of linkem.c."""
    me = folder / f"ctl.{os.getpid()}.{threading.get_ident()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as control:
        try:
            control.bind(str(me))
            control.settimeout(CONTROL_TIMEOUT_S)
            control.sendto(text.encode(), str(folder / f"{leaf}.ctl"))
            return control.recv(4096).decode()
        except OSError as error:
            raise LabError(f"the emulator of {leaf} does not answer: {error}") from error
        finally:
            me.unlink(missing_ok=True)


def limit_rate(cable: Cable, link: Link, *, up: bool) -> None:
    """Shape one direction of a veth cable with tbf, or end its shaping where the link has no rate."""
    (ns, dev), rate = cable.end(up=up), link.rate_of(up=up)
    if not rate:
        tool(ns, ["tc", "qdisc", "del", "dev", dev, "root"], check=False)
        return
    burst = int(max(4 * link.mtu, rate / 8 / TBF_TICKS))
    shape = ["rate", f"{rate:.0f}bit", "burst", str(burst), "latency", f"{link.queue * 1e6:.0f}us"]
    tool(ns, ["tc", "qdisc", "replace", "dev", dev, "root", "tbf", *shape])


def wait_until_running(cable: Cable) -> None:
    """Until both ends are up; before that, packets are dropped silently."""
    deadline = time.monotonic() + RUNNING_TIMEOUT_S
    for ns, dev in cable.ends:
        with in_netns(ns):
            probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with probe:
            request = struct.pack("16s24x", dev.encode())
            while not struct.unpack_from("H", fcntl.ioctl(probe, SIOCGIFFLAGS, request), 16)[0] & IFF_RUNNING:
                if time.monotonic() > deadline:
                    raise LabError(f"the interface {dev} in {ns} does not come up")
                time.sleep(0.002)
