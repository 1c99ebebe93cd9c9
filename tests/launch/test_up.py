"""`up` over hosts that a dictionary plays."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lattica._version import __version__
from lattica.errors import LatticaError, NodeDiedError, PeerUnreachableError
from lattica.launch import up as verb
from lattica.launch.cluster import Cluster, Host, Login, Start
from lattica.launch.crew import Crew
from lattica.launch.nodes import Facts
from lattica.launch.progress import Silence
from lattica.launch.report import Report


class Hosts:
    """Stands in for `lattica.launch.nodes`. said: as of `cli.probe.facts`; broken: hosts whose node does not start."""

    def __init__(self, said: dict[str, dict[str, Any]], broken: tuple[str, ...] = ()) -> None:
        self.said, self.broken = said, broken
        self.did: list[str] = []
        self.unseen: set[str] = set()
        self.issuers: list[str] = []  # that were made
        self.leaves: dict[str, Any] | None = {}  # what a broken host says after it has failed; None: nothing

    async def observe(self, host: Host) -> Facts:
        if host.name in self.broken and f"start {host.name}" in self.did:
            if self.leaves is None:
                raise PeerUnreachableError("no answer within 60 s")
            return Facts(host.name, "3.11", __version__, self.leaves)
        return Facts(host.name, "3.11", __version__, self.said[host.name])

    def require_ready(self, facts: Facts) -> None:
        pass

    async def start(self, host: Host, cluster: str, ticket: str = "") -> dict[str, Any]:
        self.did.append(f"start {host.name}" + (f" by {ticket}" if ticket else ""))
        if host.name in self.broken:
            raise NodeDiedError("the disk is full")
        said = self.said[host.name]
        mesh = said.get("mesh") or (ticket.partition("/")[0] if ticket else "new")
        self.said[host.name] = said | {"running": True, "mesh": mesh, "peer_id": host.name, "issuer": not ticket}
        return {"node": host.name, "mesh": self.said[host.name]}

    async def make_ticket(self, host: Host, cluster: str) -> str:
        if host.name in self.broken:
            raise NodeDiedError("no answer")
        return f"{self.said[host.name]['mesh']}/{host.name}"

    async def add_issuer(self, host: Host, peer_id: str, label: str) -> None:
        if self.said[host.name].get("cannot"):
            raise NodeDiedError("it may not make others")
        self.issuers.append(f"{peer_id} by {host.name}")

    async def peers(self, host: Host) -> list[dict[str, Any]]:
        return [{"peer_id": name, "state": "dead" if name in self.unseen else "alive"} for name in self.said]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(verb, "SEEN_WITHIN_S", 0.0)

    def run(hosts: Hosts) -> Report:
        monkeypatch.setattr(verb, "nodes", hosts)
        chosen = [Host(name, Start(), Login(name)) for name in hosts.said]
        cluster = Cluster("lab", "lab.yaml", "ssh", tuple(chosen), template=Host("", Start(), Login("")))

        async def all_of_it() -> Report:
            return await verb.up(cluster, chosen, Crew(Silence()), prune=False)

        return asyncio.run(all_of_it())

    return run


def member(mesh: str, name: str, *, running: bool = False, issuer: bool = False) -> dict[str, Any]:
    return {"mesh": mesh, "peer_id": name, "running": running, "issuer": issuer}


def why(report: Report) -> dict[str, str]:
    return {name: error.message for name, error in report.failed.items()}


def test_the_first_founds_and_the_others_join_by_its_ticket(run: Any) -> None:
    hosts = Hosts({"a": {}, "b": {}, "c": {}})
    report = run(hosts)
    assert hosts.did == ["start a", "start b by new/a", "start c by new/a"]
    assert report.ok and report.mesh == "new"
    assert hosts.issuers == ["b by a"], "if a is lost, b admits"


def test_if_the_first_cannot_found_the_next_does(run: Any) -> None:
    hosts = Hosts({"a": {}, "b": {}, "c": {}}, broken=("a",))
    report = run(hosts)
    assert hosts.did == ["start a", "start b", "start c by new/b"]
    assert why(report) == {"a": "the disk is full"} and not report.ok


@pytest.mark.parametrize("leaves", [{"mesh": "half"}, None])
def test_after_a_founder_that_failed_late_nobody_else_founds(run: Any, leaves: dict[str, Any] | None) -> None:
    """a has made its mesh, and then took too long to serve, or the line broke. A mesh of b's would split the cluster as
    soon as a is mended."""
    hosts = Hosts({"a": {}, "b": {}}, broken=("a",))
    hosts.leaves = leaves
    report = run(hosts)
    assert hosts.did == ["start a"]
    assert set(report.failed) == {"a", "b"}


def test_while_the_mesh_sleeps_no_second_one_is_founded(run: Any) -> None:
    """Of the mesh m only a is left, and its disk is full. b, who is new, must wait for it."""
    hosts = Hosts({"b": {}, "a": member("m", "a", issuer=True)}, broken=("a",))
    report = run(hosts)
    assert hosts.did == ["start a"]
    assert why(report)["b"] == "the cluster is the mesh m, and none of its members could be started"


def test_two_issuers_are_enough_and_one_that_may_make_no_other_is_told_of(run: Any) -> None:
    said = {name: member("m", name, running=True, issuer=name != "c") for name in ("a", "b", "c")}
    hosts = Hosts(said)
    assert run(hosts).notes == [] and hosts.issuers == []
    hosts = Hosts({"b": said["b"] | {"cannot": True}, "c": said["c"]})
    report = run(hosts)
    assert report.ok and "only b admits nodes to this mesh (it may not make others)" in report.notes[0]


def test_a_second_issuer_makes_the_ticket_if_the_first_does_not(run: Any) -> None:
    said = {name: member("m", name, running=True, issuer=True) for name in ("a", "b")}
    hosts = Hosts(said | {"c": {}}, broken=("a",))
    assert run(hosts).ok
    assert hosts.did == ["start c by m/b"]


def test_without_an_issuer_a_new_host_says_so(run: Any) -> None:
    report = run(Hosts({"a": member("m", "a", running=True), "b": {}}))
    assert "no node of the cluster that runs may make one" in why(report)["b"]


def test_a_host_of_another_mesh_is_left_and_named(run: Any) -> None:
    hosts = Hosts({"a": member("m", "a", running=True), "b": member("other", "b")})
    report = run(hosts)
    assert hosts.did == []
    assert why(report) == {"b": "its node is in the mesh other, and the cluster is m"}


def test_a_node_that_the_others_do_not_see_is_not_up(run: Any) -> None:
    hosts = Hosts({"a": {}, "b": {}})
    hosts.unseen = {"b"}
    assert "its node runs, but is dead to the node of a" in why(run(hosts))["b"]


def test_when_all_hosts_fail_each_says_why(run: Any) -> None:
    hosts = Hosts({"a": {}, "b": {}}, broken=("a", "b"))
    report = run(hosts)
    assert why(report) == dict.fromkeys("ab", "the disk is full")
    assert all(isinstance(error, LatticaError) for error in report.failed.values())
