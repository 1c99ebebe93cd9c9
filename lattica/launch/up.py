"""`up`: look at all hosts, start what does not run, and see that they know each other.

look, set up  ►  plan  ►  the first, if nothing runs  ►  who returns  ►  a ticket, and who joins  ►  do all see all?
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lattica.errors import ConfigError, LatticaError, NodeDiedError, PeerUnreachableError
from lattica.launch import nodes, places
from lattica.launch.cluster import CLUSTER_LABEL, HOST_LABEL, Cluster, Host
from lattica.launch.crew import Crew
from lattica.launch.down import stop_all
from lattica.launch.nodes import Facts
from lattica.launch.plan import Plan, Seen, plan_up, surplus
from lattica.launch.report import Report, report_of
from lattica.node import paths
from lattica.node.memory_readings import MemoryReader

SHORT = 8  # characters of an id for people
SEEN_WITHIN_S = 20.0
"""How soon all members must know each other after `up` has started them: 2 s, on a busy machine more."""
SEEN_EVERY_S = 0.5
ISSUERS = 2  # nodes that admit others: with the last one lost, nobody new can join
UNKNOWN = "unknown"  # the mesh that a host may have founded, which does not answer any more


async def up(cluster: Cluster, hosts: Sequence[Host], crew: Crew, *, prune: bool) -> Report:
    """Start what does not run, so that all hosts have a node in one mesh; `prune`: stop what the file does not name."""
    return await _Up(cluster, hosts, crew).run(prune)


class _Up:
    """One `up`: what was seen of the hosts, which each start changes."""

    def __init__(self, cluster: Cluster, hosts: Sequence[Host], crew: Crew) -> None:
        self.cluster, self.crew = cluster, crew
        self.hosts = {host.name: host for host in hosts}
        self.seen: dict[str, Seen] = {}
        self.peer_ids: dict[str, str] = {}
        self.rows: Sequence[dict[str, Any]] = ()  # the mesh's members, as one of the nodes knows them
        self.report = report_of(cluster, hosts, "missing")

    async def run(self, prune: bool) -> Report:
        local = self.cluster.provider == "local"
        facts = await self.crew.each(self.hosts.values(), "looks", self._look)
        self.report.facts = facts
        self.seen = {name: one.seen for name, one in facts.items()}
        self.peer_ids = {name: one.peer_id for name, one in facts.items() if one.running}
        for name in self.peer_ids:
            self.report.state[name] = "runs already"
        plan = await self._begin(places.FIRST if local else "")
        self._refuse(plan)
        await self._start(plan.bring_back, "returns")
        await self._join(plan)
        self.report.mesh = plan.mesh
        await self._see()
        await self._second_issuer(plan.mesh)
        if local:
            await self._local_rest(prune)
        else:
            await self._ssh_rest(prune)
        self.report.failed = dict(self.crew.failed)
        return self.report

    async def _begin(self, anchor: str) -> Plan:
        """See to it that one node of the mesh runs; what is left to do."""
        mesh = ""
        while True:
            plan = plan_up([seen for name, seen in self.seen.items() if name not in self.crew.failed], anchor)
            if mesh and plan.mesh != mesh:
                return self._asleep(mesh, plan)
            mesh = plan.mesh
            if plan.first is None:
                return plan
            await self._start([plan.first], "brings the mesh back" if mesh else "founds the mesh")
            mesh = mesh or await self._founded(plan.first)
            if mesh == UNKNOWN:
                return self._asleep(mesh, plan)

    async def _founded(self, name: str) -> str:
        """The mesh that this host has begun. One that failed late, say after too long a start, has begun one, too: two
        meshes in a cluster would be much harder to mend than none."""
        if name in self.crew.failed:
            try:
                return (await nodes.observe(self.hosts[name])).mesh
            except LatticaError:
                return UNKNOWN
        return self.seen[name].mesh

    def _asleep(self, mesh: str, plan: Plan) -> Plan:
        """No member could be started. The others do not found a second mesh: the first one will wake some day."""
        for name in self.seen:
            if name not in self.crew.failed:
                error = NodeDiedError(
                    f"the cluster is the mesh {mesh[:SHORT]}, and none of its members could be started",
                    do_next="mend one of the hosts that failed; or have them forget that mesh: `lattica leave` there",
                )
                self.crew.fail(name, error)
        return replace(plan, mesh=mesh, first=None, bring_back=(), join=(), foreign={})

    async def _look(self, host: Host) -> Facts:
        """What is there; after the set-up, if no node runs."""
        facts: Facts | None = None
        try:
            facts = await nodes.observe(host)
        except ConfigError:  # there is no such Python: perhaps the set-up makes it
            if not self.cluster.setup:
                raise
        if facts is None or (self.cluster.setup and not facts.running):
            self.crew.busy(host, "sets up")
            await nodes.set_up(host, self.cluster.setup)
            facts = await nodes.observe(host)
        nodes.require_ready(facts)
        if facts.running:
            self.crew.good(host.name, f"runs already (node {facts.peer_id[:SHORT]})")
        return facts

    async def _start(self, names: Sequence[str], doing: str, ticket: str = "") -> None:
        async def start(host: Host) -> dict[str, Any]:
            if self.cluster.provider == "local":
                host = places.claim(self.cluster.name, host)
                host = replace(host, start=places.share(host.start, len(self.hosts), MemoryReader().total))
            said = await nodes.start(host, self.cluster.name, ticket)
            self.crew.good(host.name, f"started (node {str(said.get('node'))[:SHORT]})")
            return said

        for name, said in (await self.crew.each([self.hosts[name] for name in names], doing, start)).items():
            mesh = said.get("mesh") or {}
            self.seen[name] = Seen(name, True, str(mesh.get("mesh", "")), bool(mesh.get("issuer")))
            self.peer_ids[name] = str(said.get("node"))
            self.report.state[name] = "started"
            if mesh.get("how") == "founded" and mesh.get("recovery_file") and self.cluster.provider != "local":
                self.report.notes.append(
                    f"{name} has {mesh['recovery_file']}: whoever has this file rules the mesh; move it to a safe place"
                )

    def _refuse(self, plan: Plan) -> None:
        remedy = (
            "`lattica down --purge` with this file, then `lattica up`"
            if self.cluster.provider == "local"
            else "on that host `lattica stop` and `lattica leave` free it for this one"
        )
        for name, mesh in plan.foreign.items():
            error = ConfigError(
                f"its node is in the mesh {mesh[:SHORT]}, and the cluster is {plan.mesh[:SHORT]}", do_next=remedy
            )
            self.crew.fail(name, error)

    async def _join(self, plan: Plan) -> None:
        """Those that are new, by a ticket of whoever may make one."""
        if not plan.join:
            return
        issuers = [host for name, host in self.hosts.items() if self._is_issuer(name, plan.mesh)]
        why: LatticaError | None = None
        for issuer in issuers:
            try:
                ticket = await nodes.make_ticket(issuer, self.cluster.name)
            except LatticaError as error:
                why = error
                continue
            return await self._start(plan.join, "joins", ticket)
        for name in plan.join:
            self.crew.fail(
                name,
                why
                or NodeDiedError(
                    "it needs a ticket, and no node of the cluster that runs may make one",
                    do_next=self._admit_again(),
                ),
            )

    def _admit_again(self) -> str:
        """What helps a cluster that has lost all its issuers."""
        anew = "or begin anew: `lattica down --purge` with this file, then `lattica up`; "
        return (
            "bring back a host whose node is an issuer; or on a host that runs `lattica issuer recover FILE`, with the "
            "recovery file that the first host has written (docs/guide/mesh.md); "
            f"{anew if self.cluster.provider == 'local' else ''}then run this again"
        )

    async def _second_issuer(self, mesh: str) -> None:
        """So that the mesh admits and renews when the host that founded it is lost."""
        running = [name for name in self.peer_ids if name not in self.crew.failed]
        issuers = [name for name in running if self._is_issuer(name, mesh)]
        others = [name for name in running if name not in issuers and self.seen[name].mesh == mesh]
        if not issuers or len(issuers) >= ISSUERS or not others:
            return
        chosen = others[0]
        try:
            await nodes.add_issuer(self.hosts[issuers[0]], self.peer_ids[chosen], chosen)
        except LatticaError as error:
            self.report.notes.append(
                f"only {issuers[0]} admits nodes to this mesh ({error.message}): if it is lost, none can join; "
                "its recovery file makes another: `lattica issuer recover FILE` on one of the others"
            )

    def _is_issuer(self, name: str, mesh: str) -> bool:
        seen = self.seen.get(name)
        return seen is not None and seen.running and seen.issuer and seen.mesh == mesh and name not in self.crew.failed

    async def _see(self) -> None:
        """Wait until one node knows all others as living; those that it does not are not up."""
        running = [name for name, seen in self.seen.items() if seen.running and name not in self.crew.failed]
        if not running:
            return
        witness, deadline = self.hosts[running[0]], time.monotonic() + SEEN_WITHIN_S
        while True:
            try:
                rows = await nodes.peers(witness)
            except LatticaError as error:
                self.crew.fail(witness.name, error)
                return
            self.rows = rows
            states = {row.get("peer_id"): str(row.get("state")) for row in rows}
            absent = [name for name in running if states.get(self.peer_ids[name]) != "alive"]
            if not absent or time.monotonic() > deadline:
                break
            await asyncio.sleep(SEEN_EVERY_S)
        for name in absent:
            state = states.get(self.peer_ids[name], "unknown")
            self.crew.fail(
                name,
                PeerUnreachableError(
                    f"its node runs, but is {state} to the node of {witness.name} after {SEEN_WITHIN_S:g} s",
                    do_next="look at its `lattica doctor`: can the hosts reach each other's ports?",
                ),
            )

    async def _local_rest(self, prune: bool) -> None:
        hosts = tuple(self.hosts.values())
        if not places.owns(self.cluster.name, hosts[0].data_dir) and hosts[0].name not in self.crew.failed:
            self.report.notes.append(
                f"{hosts[0].name} is your own node on {hosts[0].data_dir}, which ran already; `lattica down` leaves it"
            )
        rest = places.left_over(self.cluster, hosts)
        if prune and rest:
            await stop_all(self.cluster, rest, self.crew, self.report, force=False)
        else:
            self.report.left_over = [host.name for host in rest if paths.running_node(host.data_dir) is not None]

    async def _ssh_rest(self, prune: bool) -> None:
        found = members_of(self.cluster.name, self.rows)
        rest = surplus(found, self.hosts)
        if prune and self.cluster.template is not None:
            chosen = [found_host(self.cluster.template, name) for name in rest]
            await self.crew.each(chosen, "stops", lambda host: _prune(host, found[host.name], self))
        else:
            self.report.left_over = rest


async def _prune(host: Host, peer_id: str, up: _Up) -> None:
    """Stop a node that the mesh told of. Its labels are its own words: what runs on the host must be that very peer."""
    facts = await nodes.observe(host)
    if facts.peer_id != peer_id:
        raise ConfigError(
            f"the peer {peer_id[:SHORT]} says that it is on {host.name}, and is not",
            do_next="stop it where it is, or put it out of the mesh with `lattica revoke`",
        )
    await nodes.stop(host, force=False)
    up.crew.good(host.name, "stopped: the file does not name it")
    up.report.state[host.name] = "pruned"


def members_of(cluster: str, rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Host -> peer id, of living members whose labels say that they are of this cluster."""
    found = {}
    for row in rows:
        labels = row.get("labels") or {}
        if labels.get(CLUSTER_LABEL) == cluster and labels.get(HOST_LABEL) and row.get("state") == "alive":
            found[str(labels[HOST_LABEL])] = str(row.get("peer_id"))
    return found


def found_host(template: Host, name: str) -> Host:
    """A host that the file does not name, as ssh would reach it."""
    assert template.login is not None
    return replace(template, name=name, login=replace(template.login, host=name))
