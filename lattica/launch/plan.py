"""What `up` starts, and in which order, from what was seen on the hosts. Pure.

    a node runs              it stays; its mesh is the cluster's
    it has been in the mesh  it returns by itself, without a ticket
    it is new                it joins by a ticket, once a member runs that may make one
    it is of another mesh    it is left alone, and somebody must decide
    nothing runs             one host goes first: it brings the mesh back, or founds it

Any host may be the first: a mesh has no head. But of two hosts that both were in meshes, the one that the file names
first does not win by that: the mesh with most members among the hosts does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Seen:
    """One host that answered. mesh: that its node is in, or was when it last ran; "" if none. issuer: its node admits
    others."""

    name: str
    running: bool = False
    mesh: str = ""
    issuer: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Names of hosts, in the order of the file. first: starts before all others; None if a node of the mesh runs."""

    mesh: str  # "" if it is to be founded
    first: str | None
    stay: tuple[str, ...]
    bring_back: tuple[str, ...]
    join: tuple[str, ...]
    foreign: dict[str, str]  # host -> the other mesh that it is in

    def __repr__(self) -> str:
        return (
            f"<Plan for {self.mesh[:8] or 'a new mesh'}: first {self.first}, {len(self.stay)} stay, "
            f"{len(self.bring_back)} return, {len(self.join)} join, {len(self.foreign)} foreign>"
        )


def plan_up(hosts: Sequence[Seen], anchor: str = "") -> Plan:
    """What to do that all of `hosts` run in one mesh. anchor: the host whose mesh it must be, if it is in one."""
    mesh = _mesh_of(hosts, anchor)
    ours = [host for host in hosts if host.mesh in ("", mesh)]
    running = [host for host in ours if host.running]
    first = None if running else _first(ours, mesh)
    rest = [host for host in ours if not host.running and host.name != first]
    return Plan(
        mesh,
        first,
        stay=tuple(host.name for host in running),
        bring_back=tuple(host.name for host in rest if host.mesh),
        join=tuple(host.name for host in rest if not host.mesh),
        foreign={host.name: host.mesh for host in hosts if host not in ours},
    )


def _mesh_of(hosts: Sequence[Seen], anchor: str) -> str:
    """That of the anchor; else of those that run, else of those that ran: the most, and the file's first of equals."""
    for chosen in (
        [host for host in hosts if host.name == anchor],
        [host for host in hosts if host.running],
        hosts,
    ):
        meshes = Counter(host.mesh for host in chosen if host.mesh)
        if meshes:
            return meshes.most_common(1)[0][0]  # of equals the first that was counted
    return ""


def _first(ours: Sequence[Seen], mesh: str) -> str | None:
    """Of a mesh that exists, a member that can admit the others, else any member; of a new one, the file's first."""
    members = [host for host in ours if host.mesh == mesh] if mesh else list(ours)
    issuers = [host for host in members if host.issuer]
    return next((host.name for host in (*issuers, *members)), None)


def surplus(found: Iterable[str], wanted: Collection[str]) -> list[str]:
    """Nodes of the cluster that the file does not name any more."""
    return sorted(set(found) - set(wanted))
