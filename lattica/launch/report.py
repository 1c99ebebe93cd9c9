"""How a verb went, for people and for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lattica.errors import LatticaError
from lattica.launch import places, shells
from lattica.launch.cluster import Cluster, Host
from lattica.launch.nodes import Facts


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


def report_of(cluster: Cluster, hosts: Sequence[Host], word: str) -> Report:
    """At the beginning: of every host the same word."""
    report = Report(
        cluster.name, cluster.file, cluster.provider, {host.name: word for host in hosts}, notes=cluster.warnings
    )
    if cluster.provider == "local":
        report.data_dir = hosts[0].data_dir
    return report
