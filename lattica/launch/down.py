"""`down`: stop what `up` has started, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from lattica.errors import LatticaError, NodeDiedError
from lattica.launch import nodes, places
from lattica.launch.cluster import CLUSTER_LABEL, Cluster, Host
from lattica.launch.crew import Crew
from lattica.launch.report import Report, report_of
from lattica.node import paths


async def down(cluster: Cluster, hosts: Sequence[Host], crew: Crew, *, purge: bool, force: bool) -> Report:
    """Stop what `up` started. purge: and delete the data directories of a local cluster."""
    report = report_of(cluster, hosts, "?")
    report.data_dir = ""
    rest = places.left_over(cluster, tuple(hosts)) if cluster.provider == "local" else []
    await stop_all(cluster, [*hosts, *rest], crew, report, force=force)
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


async def stop_all(cluster: Cluster, hosts: Sequence[Host], crew: Crew, report: Report, *, force: bool) -> None:
    """Stop the cluster's nodes on these hosts, and say so in the report."""

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
