"""One node, wherever it is: asked, started and stopped by commands that its host's shell runs.

observe   python -c PROBE       one line of JSON: which Python, which lattica, which node
start     lattica start --json  with `--ticket -` and the ticket on stdin
ticket    lattica ticket
stop      lattica stop
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lattica._version import __version__
from lattica.errors import ConfigError, LatticaError, NodeDiedError
from lattica.launch import shells
from lattica.launch.cluster import CLUSTER_LABEL, HOST_LABEL, Host, Start
from lattica.launch.plan import Seen
from lattica.launch.shells import Done, shell_of

MARK = "lattica-probe:"  # before our line: a host's shell may greet whoever logs in
PROBE = f"""import json, sys
facts = {{"python": sys.version.split()[0], "lattica": "", "trouble": ""}}
try:
    from lattica._version import __version__
    facts["lattica"] = __version__
    from lattica.cli.probe import facts as ask
    facts.update(ask())
except Exception as error:
    facts["trouble"] = type(error).__name__ + ": " + str(error)
print({MARK!r} + json.dumps(facts))
"""
COMMAND = "from lattica.cli.main import main; main(prog_name='lattica')"
ASK_S = 60.0
"""For a question: a cold disk takes seconds to load Python, and the connection is waited for as well."""
START_S = 90.0  # it may wait 10 s for the node to serve and 6 s for others to answer, after a cold start
STOP_S = 60.0  # it waits 10 s itself
SETUP_S = 3600.0  # torch from a slow mirror
TICKET_TTL = "1h"  # for one `up`: who has joined stays
LAST_LINES = 8  # of a command that failed


@dataclass(frozen=True, slots=True)
class Facts:
    """What a host answered. `said`: as of `cli.probe.facts`."""

    host: str
    python: str
    lattica: str
    said: Mapping[str, Any]

    @property
    def running(self) -> bool:
        return bool(self.said.get("running"))

    @property
    def mesh(self) -> str:
        return str(self.said.get("mesh") or "")

    @property
    def peer_id(self) -> str:
        return str(self.said.get("peer_id") or "")

    @property
    def trouble(self) -> str:
        return str(self.said.get("trouble") or "")

    @property
    def seen(self) -> Seen:
        """For the plan."""
        return Seen(self.host, self.running, self.mesh, bool(self.said.get("issuer")))


async def observe(host: Host) -> Facts:
    """Ask a host what is there. Raises LatticaError if it cannot be reached, or has no Python to ask."""
    shell = shell_of(host)
    done = await shells.run(shell, shell.python(PROBE), timeout_s=ASK_S)
    for line in done.out.splitlines():
        if line.startswith(MARK):
            said = json.loads(line.removeprefix(MARK))
            return Facts(host.name, str(said.get("python")), str(said.get("lattica")), said)
    raise ConfigError(
        failed(done, f"{host.python} cannot be run there").message,
        do_next="write under `python:` where the Python is that has lattica, like ~/venv/bin/python",
    )


def require_ready(facts: Facts) -> None:
    """Raise ConfigError unless a node of our release can be started, or runs, there."""
    if not facts.lattica:
        raise ConfigError(
            f"its Python {facts.python} has no lattica ({facts.trouble})",
            do_next=f"install lattica {__version__} there, by hand or under `setup:`; or name another Python",
        )
    if facts.lattica.split(".")[:2] != __version__.split(".")[:2]:
        raise ConfigError(
            f"it has lattica {facts.lattica}, and here is {__version__}", do_next="install the same release on both"
        )
    if facts.trouble:
        raise LatticaError(facts.trouble)


async def set_up(host: Host, commands: Sequence[str]) -> None:
    """Run these, one after another. Raises NodeDiedError with what the one that failed said."""
    shell = shell_of(host)
    for command in commands:
        done = await shells.run(shell, shell.command(["sh", "-c", command]), timeout_s=SETUP_S)
        if done.code:
            raise failed(done, f"setup failed at `{command}`")


async def start(host: Host, cluster: str, ticket: str = "") -> dict[str, Any]:
    """Start the node; what it says, as of `lattica start --json`. ticket: "": it founds a mesh, or returns to its own.

    Raises NodeDiedError with the command's own words.
    """
    words = ["start", "--json", "--name", host.name, *start_words(host.start, cluster, host.name)]
    words += ["--ticket", "-"] if ticket else []
    shell = shell_of(host)
    done = await shells.run(shell, shell.python(COMMAND, *words), timeout_s=START_S, said=ticket and ticket + "\n")
    return dict(_json_of(done, "the node did not start"))


def start_words(start: Start, cluster: str, host: str) -> list[str]:
    """Options of `lattica start`."""
    labels = {**start.labels, CLUSTER_LABEL: cluster, HOST_LABEL: host}
    words = ["--labels", ",".join(f"{name}={value}" for name, value in labels.items())]
    for option, value in (
        ("--num-cpus", None if start.num_cpus is None else f"{start.num_cpus:g}"),
        ("--num-gpus", None if start.num_gpus is None else f"{start.num_gpus:g}"),
        ("--resources", json.dumps(dict(start.resources)) if start.resources else None),
        ("--object-store-memory", start.object_store_memory),
        ("--listen", start.listen),
        ("--memory", None if start.memory is None else str(start.memory)),
    ):
        words += [] if value is None else [option, value]
    return words


async def make_ticket(host: Host, cluster: str) -> str:
    """A ticket of the node there, for this `up`."""
    shell = shell_of(host)
    words = ("ticket", "--json", "--ttl", TICKET_TTL, "--label", f"lattica up {cluster}"[:64])
    done = await shells.run(shell, shell.python(COMMAND, *words), timeout_s=ASK_S)
    return str(_json_of(done, "it made no ticket")["ticket"])


async def add_issuer(host: Host, peer_id: str, label: str) -> None:
    """Have the node there, an issuer, make another one. Raises NodeDiedError with what it says against that."""
    shell = shell_of(host)
    words = ("issuer", "add", peer_id, "--label", label, "--json")
    _json_of(await shells.run(shell, shell.python(COMMAND, *words), timeout_s=ASK_S), "it made no other issuer")


async def peers(host: Host) -> list[dict[str, Any]]:
    """The members of the mesh, as the node there knows them."""
    shell = shell_of(host)
    done = await shells.run(shell, shell.python(COMMAND, "peers", "--json"), timeout_s=ASK_S)
    return list(_json_of(done, "it does not say who its peers are"))


async def stop(host: Host, *, force: bool) -> str:
    """Stop the node; what the command says, also if none runs. Raises NodeDiedError if it goes on."""
    shell = shell_of(host)
    words = ("stop", *(("--force",) if force else ()))
    done = await shells.run(shell, shell.python(COMMAND, *words), timeout_s=STOP_S)
    if done.code:
        raise failed(done, "the node was not stopped")
    return done.out.strip()


def _json_of(done: Done, what: str) -> Any:
    """The JSON that it printed, whatever else a login shell has said."""
    if done.code == 0:
        for begin in re.finditer(r"(?m)^[\[{]", done.out):
            try:
                return json.JSONDecoder().raw_decode(done.out, begin.start())[0]
            except ValueError:
                continue
    raise failed(done, what)


def failed(done: Done, what: str) -> NodeDiedError:
    """The error of a command that failed: its own words and next step, which stand last, as of LatticaError."""
    lines = (done.err.strip() or done.out.strip()).splitlines()[-LAST_LINES:]
    words = "\n    ".join(line.strip() for line in lines).removeprefix("Error: ")
    message, _, do_next = words.partition("\n    do next ")
    return NodeDiedError(f"{what}: {message or f'exit code {done.code}'}", do_next=do_next.strip())
