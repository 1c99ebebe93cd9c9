"""Time and networks that a test controls: simulated worlds for protocol cores, a virtual clock for asyncio code.

    from lattica.testing import Calls, Faults, Link, Send, World, attach, run_virtually

A world drives cores that do no I/O of their own (`world`), over links and connections that lose, delay and break
(`links`, `connections`), on machines that crash and wake with wrong clocks (`host`), by faults drawn from its seed
(`faults`), while judges who see only events look on (`checkers`). `python -m lattica.testing.sim` plays the worlds of
lattica itself; docs/testing.md shows how to write one.
"""

from __future__ import annotations

from lattica.testing.checkers import Agreement, Bounded, Calls, Streams, attach
from lattica.testing.faults import CLOCKS, CONNECTIONS, DISKS, NETWORK, PROCESSES, Faults
from lattica.testing.host import Disk, Host, HostClock
from lattica.testing.links import DATAGRAMS, FOREVER, SOCKET, Link
from lattica.testing.loop import Deadlock, VirtualClockLoop, run_virtually
from lattica.testing.messages import Closed, Send
from lattica.testing.world import Core, World

__all__ = [
    # a world and what is in it
    "World",
    "Core",
    "Send",
    "Closed",
    "Host",
    "HostClock",
    "Disk",
    # its dials
    "Link",
    "SOCKET",
    "DATAGRAMS",
    "FOREVER",
    # what breaks
    "Faults",
    "CONNECTIONS",
    "NETWORK",
    "PROCESSES",
    "CLOCKS",
    "DISKS",
    # who judges
    "attach",
    "Calls",
    "Streams",
    "Agreement",
    "Bounded",
    # asyncio code on virtual time
    "run_virtually",
    "VirtualClockLoop",
    "Deadlock",
]
