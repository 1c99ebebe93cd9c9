"""`status` and `exec`: what runs on the hosts, and a command on each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lattica.errors import ConfigError, LatticaError, NodeDiedError
from lattica.launch import nodes, places, shells
from lattica.launch.cluster import Cluster, Host
from lattica.launch.crew import Crew
from lattica.launch.nodes import Facts
from lattica.launch.plan import surplus
from lattica.launch.report import Report, report_of
from lattica.launch.shells import shell_of
from lattica.launch.up import members_of
from lattica.node import paths

SHORT = 8  # characters of an id for people
UNREACHED_CODE = 255  # of `exec`, for a host where the command did not come to run; ssh's own
NOT_FOUND_CODE = 127  # of `exec`, where there is no such command; a shell's own


async def status(cluster: Cluster, hosts: Sequence[Host], crew: Crew) -> Report:
    """What runs where. A host whose node does not answer, or is of another mesh, has failed; one without is `down`."""
    report = report_of(cluster, hosts, "down")

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
) -> tuple[int, dict[str, int]]:
    """Run a command on every host; the worst of the exit codes, and that of each where it came to run.

    show: is given host, line, and whether of stderr.
    """

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
    return max([*codes.values(), *failed], default=0), codes
