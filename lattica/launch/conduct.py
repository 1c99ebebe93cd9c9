"""The four verbs of a cluster, each a few steps over all its hosts. Nothing is printed here but progress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lattica.errors import ConfigError, LatticaError, NodeDiedError, PeerUnreachableError
from lattica.launch import nodes, places, shells
from lattica.launch.cluster import CLUSTER_LABEL, HOST_LABEL, Cluster, Host
from lattica.launch.crew import Crew
from lattica.launch.nodes import Facts
from lattica.launch.plan import Plan, Seen, plan_up, surplus
from lattica.launch.shells import shell_of
from lattica.node import paths

SHORT = 8  # characters of an id for people
SEEN_WITHIN_S = 20.0
"""How soon all members must know each other after `up` has started them: 2 s, on a busy machine more."""
SEEN_EVERY_S = 0.5
UNREACHED_CODE = 255  # of `exec`, for a host where the command did not come to run; ssh's own
NOT_FOUND_CODE = 127  # of `exec`, where there is no such command; a shell's own


@dataclass(slots=True)
class Report:
    """How a verb went. state: host -> a word; failed: host -> why."""

    cluster: str
    file: str
    provider: str
    state: dict[str, str] = field(default_factory=dict)
    failed: dict[str, LatticaError] = field(default_factory=dict)
    facts: dict[str, Facts] = field(default_factory=dict)
    mesh: str = ""
    left_over: list[str] = field(default_factory=list)  # nodes of the cluster that the file does not name
    notes: list[str] = field(default_factory=list)
    data_dir: str = ""  # of the node that programs of this machine find, if the cluster has one here

    @property
    def ok(self) -> bool:
        """Whether all hosts are as the verb wants them."""
        return not self.failed and "down" not in self.state.values()

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "cluster": self.cluster,
            "provider": self.provider,
            "mesh": self.mesh,
            "ok": self.ok,
            "data_dir": self.data_dir,
            "hosts": [
                {
                    "host": host,
                    "state": "failed" if host in self.failed else state,
                    "error": self.failed[host].message if host in self.failed else "",
                    "do_next": self.failed[host].do_next if host in self.failed else "",
                }
                | ({} if host not in self.facts else {"node": dict(self.facts[host].said)})
                for host, state in self.state.items()
            ],
            "left_over": self.left_over,
            "notes": self.notes,
        }


def hosts_of(cluster: Cluster) -> tuple[Host, ...]:
    """The cluster's hosts, those of this machine with their data directories."""
    if cluster.provider == "local":
        return places.placed(cluster)
    shells.require_ssh()
    return cluster.hosts


def _report(cluster: Cluster, hosts: Sequence[Host], word: str) -> Report:
    report = Report(
        cluster.name, cluster.file, cluster.provider, {host.name: word for host in hosts}, notes=cluster.warnings
    )
    if cluster.provider == "local":
        report.data_dir = hosts[0].data_dir
    return report


# -- up --------------------------------------------------------------------------------------------------------------


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
        self.report = _report(cluster, hosts, "missing")

    async def run(self, prune: bool) -> Report:
        local = self.cluster.provider == "local"
        facts = await self.crew.each(self.hosts.values(), "looks", self._look)
        self.report.facts = facts
        self.seen = {name: one.seen for name, one in facts.items()}
        self.peer_ids = {name: one.peer_id for name, one in facts.items() if one.running}
        for name in self.peer_ids:
            self.report.state[name] = "runs already"
        anchor = places.FIRST if local else ""
        while (plan := self._plan(anchor)).first is not None:
            await self._start([plan.first], "founds the mesh" if not plan.mesh else "brings the mesh back")
        self._refuse(plan)
        await self._start(plan.bring_back, "returns")
        await self._join(plan)
        self.report.mesh = plan.mesh
        await self._see()
        if local:
            await self._local_rest(prune)
        else:
            await self._ssh_rest(prune)
        self.report.failed = dict(self.crew.failed)
        return self.report

    def _plan(self, anchor: str) -> Plan:
        return plan_up([seen for name, seen in self.seen.items() if name not in self.crew.failed], anchor)

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
            said = await nodes.start(host, self.cluster.name, ticket)
            self.crew.good(host.name, f"started (node {str(said.get('node'))[:SHORT]})")
            return said

        for name, said in (await self.crew.each([self.hosts[name] for name in names], doing, start)).items():
            mesh = said.get("mesh") or {}
            self.seen[name] = Seen(name, True, str(mesh.get("mesh", "")), bool(mesh.get("issuer")))
            self.peer_ids[name] = str(said.get("node"))
            self.report.state[name] = "started"

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
                    do_next="start an issuer of the mesh (`lattica issuer` lists them), and run this again",
                ),
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
            await _stop(self.cluster, rest, self.crew, self.report, force=False)
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


# -- down ------------------------------------------------------------------------------------------------------------


async def down(cluster: Cluster, hosts: Sequence[Host], crew: Crew, *, purge: bool, force: bool) -> Report:
    """Stop what `up` started. purge: and delete the data directories of a local cluster."""
    report = _report(cluster, hosts, "?")
    report.data_dir = ""
    rest = places.left_over(cluster, tuple(hosts)) if cluster.provider == "local" else []
    await _stop(cluster, [*hosts, *rest], crew, report, force=force)
    if purge:
        for host in (*hosts, *rest):
            if host.name in crew.failed:
                continue
            try:
                if places.purge(cluster.name, host.data_dir):
                    report.state[host.name] = f"{report.state[host.name]}, and its data deleted"
            except LatticaError as error:
                crew.fail(host.name, error)
        places.tidy(cluster.name)
    report.failed = dict(crew.failed)
    return report


async def _stop(cluster: Cluster, hosts: Sequence[Host], crew: Crew, report: Report, *, force: bool) -> None:
    async def stop(host: Host) -> str:
        word = await (_stop_local(cluster, host, force) if host.login is None else _stop_far(cluster, host, force))
        crew.good(host.name, word)
        return word

    report.state |= await crew.each(hosts, "stops", stop)


async def _stop_local(cluster: Cluster, host: Host, force: bool) -> str:
    ran = paths.running_node(host.data_dir) is not None
    if not places.owns(cluster.name, host.data_dir):
        return "left: it is not the cluster's" if ran else "did not run"
    await nodes.stop(host, force=force)  # also one that does not run: it removes what a killed node has left
    return "stopped" if ran else "did not run"


async def _stop_far(cluster: Cluster, host: Host, force: bool) -> str:
    facts = await nodes.observe(host)
    if not facts.lattica or not facts.running:
        return "did not run"
    if facts.trouble and not force:
        raise NodeDiedError(facts.trouble.splitlines()[0], do_next="end it with `lattica down --force`")
    owner = (facts.said.get("labels") or {}).get(CLUSTER_LABEL)
    if owner != cluster.name and not facts.trouble:
        whose = f"of the cluster {owner}" if owner else "started by hand"
        return f"left: it is {whose}; `lattica stop` there ends it"
    await nodes.stop(host, force=force)
    return "stopped"


# -- status and exec -------------------------------------------------------------------------------------------------


async def status(cluster: Cluster, hosts: Sequence[Host], crew: Crew) -> Report:
    """What runs where. A host whose node does not answer, or is of another mesh, has failed; one without is `down`."""
    report = _report(cluster, hosts, "down")

    async def look(host: Host) -> Facts:
        facts = await nodes.observe(host)
        crew.good(host.name, "up" if facts.running else "down")
        return facts

    report.facts = await crew.each(hosts, "looks", look)
    meshes = [facts.mesh for facts in report.facts.values() if facts.running and facts.mesh]
    report.mesh = max(meshes, key=meshes.count, default="")
    for name, facts in report.facts.items():
        if facts.running:
            report.state[name] = "no answer" if facts.trouble else "up" if facts.mesh == report.mesh else "other mesh"
        elif not facts.lattica or facts.trouble:
            report.state[name] = "no lattica" if not facts.lattica else "no answer"
    for name, word in report.state.items():
        if word not in ("up", "down") and name not in crew.failed:
            crew.failed[name] = _why_not_up(word, report.facts[name])
    if cluster.provider == "local":
        rest = places.left_over(cluster, tuple(hosts))
        report.left_over = [host.name for host in rest if paths.running_node(host.data_dir) is not None]
    else:
        rows = max((list(facts.said.get("peers") or ()) for facts in report.facts.values()), key=len, default=[])
        report.left_over = surplus(members_of(cluster.name, rows), [host.name for host in hosts])
    report.failed = dict(crew.failed)
    return report


def _why_not_up(word: str, facts: Facts) -> LatticaError:
    if word == "other mesh":
        return ConfigError(f"its node is in another mesh, {facts.mesh[:SHORT]}", do_next="see `lattica up`")
    return NodeDiedError(facts.trouble.splitlines()[0], do_next="look at the log there, or run `lattica up`")


async def execute(
    hosts: Sequence[Host], crew: Crew, words: Sequence[str], show: Callable[[str, str, bool], None]
) -> int:
    """Run a command on every host; the worst of the exit codes. show: is given host, line, and whether of stderr."""

    async def run(host: Host) -> int:
        shell = shell_of(host)
        said: list[str] = []

        def error(line: str) -> None:
            said.append(line)
            show(host.name, line, True)

        code = await shells.stream(shell, shell.command(words), lambda line: show(host.name, line, False), error)
        if code == UNREACHED_CODE and host.login is not None:
            shell.require(shells.Done(code, "", "\n".join(said)))
        return code

    codes = await crew.each(hosts, "runs", run)
    failed = [UNREACHED_CODE if host.login else NOT_FOUND_CODE for host in hosts if host.name in crew.failed]
    return max([*codes.values(), *failed], default=0)
