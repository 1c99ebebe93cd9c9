"""The command `lattica`: which verbs there are, and how a failure is said.

A verb's file is imported when the verb is run: `lattica --help` waits for none of them. Exit codes: 0 done, 1 not done
(why and what to do next stand on stderr), 2 wrong options.
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

from lattica._version import __version__
from lattica.errors import LatticaError

VERBS = {
    "start": "Start this machine's node.",
    "stop": "End the node.",
    "drain": "Let a node finish what it does for others, and end it.",
    "status": "Show what the node has and does.",
    "join": "Start this machine's node, in the mesh of a ticket.",
    "relay": "Carry what nodes of a mesh send each other, and nothing else.",
    "ticket": "Make a ticket, by which others join.",
    "dial": "Reach a member that cannot reach this node.",
    "peers": "List the nodes of the mesh.",
    "table": "Show what all nodes of the mesh know.",
    "whoami": "Show who this node is in its mesh.",
    "revoke": "Put a peer or an issuer out of the mesh.",
    "adopt": "Declare this side of a mesh that was cut apart the whole.",
    "issuer": "List the nodes that admit others; make one.",
    "leave": "Forget the mesh.",
    "submit": "Run a script on the mesh.",
    "job": "List jobs, stop one, read what it prints, fetch what it wrote.",
    "list": "List tasks, actors, workers, objects, nodes or jobs of the mesh.",
    "memory": "Show which objects there are, and who holds them.",
    "logs": "Show what a job, an actor or a worker prints.",
    "top": "Watch machines and workers, live.",
    "timeline": "Write down what ran when, for a trace viewer.",
    "doctor": "Look for what is wrong, and say what to do.",
    "up": "Start the nodes of a cluster's file.",
    "down": "Stop the nodes of a cluster's file.",
    "exec": "Run a command on every host of a cluster's file.",
}
"""Verb -> its line in `lattica --help`; the verb is `command` in the file of its name."""


class Verbs(click.Group):
    """A group that loads the verb it is asked for, and words errors for people."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"lattica.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        verb = args[0]
        if verb not in VERBS and not verb.startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(verb, VERBS, 1)
            ctx.fail(f"No such command {verb!r}.{f' Did you mean {near[0]!r}?' if near else ''}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except LatticaError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message=f"lattica {__version__}, Python {sys.version.split()[0]}")
def main() -> None:
    """\b
    lattica start                      start this machine's node
    python my_program.py               whose lattica.init() finds it
    lattica status                     see what it does
    lattica ticket                     make a ticket, for another machine to
    lattica join TICKET                join the mesh of this one
    lattica peers                      see who is there
    lattica submit my_program.py       run it on the mesh, which goes on when this machine ends
    lattica up cluster.yaml            or all of it, by a file that names the machines

    A program that only calls lattica.init() needs no command: it starts a node of its own, which ends with it. status,
    list, memory, top, logs and timeline show that one, too.

    LATTICA_DATA_DIR says which node of this machine is meant, if there are several.
    """
