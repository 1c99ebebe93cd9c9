"""The ends of an example: what each script of this folder is called with, and how it starts the other ends by itself.

    python metadata.py                        both ends, in two processes of this machine
    python metadata.py --listen :7411         one end: founds a mesh, prints its ticket, serves until Ctrl-C
    python metadata.py --ticket ticket.txt    the other end, elsewhere; or LATTICA_TICKET=lat1… without the option

Not part of what the examples show.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

from lattica import mesh
from lattica.errors import LatticaError

HERE = "127.0.0.1:0"
VARIABLE = "LATTICA_TICKET"  # where arguments, which every user of a machine can see, are no place for a secret
TICKET_S = 3600.0  # how long others can join
READY_S = 30.0  # for another end to begin

Use = Callable[[mesh.Peer, mesh.PeerId], Awaitable[None]]


def parser(about: str) -> argparse.ArgumentParser:
    """The options that all have in common."""
    made = argparse.ArgumentParser(description=about)
    made.add_argument("--listen", metavar="HOST:PORT", help="be the end that serves: on this machine, at this address")
    made.add_argument("--ticket", metavar="TICKET", help="a ticket of the end that serves, or a file with one")
    return made


def ticket_of(options: argparse.Namespace) -> str:
    """The ticket that the user means; "" if none."""
    given: str = options.ticket or os.environ.get(VARIABLE, "")
    return given if not given or given.startswith("lat") else Path(given).read_text()


def run(work: Coroutine[Any, Any, None]) -> int:
    """Run it; the exit code. What people can do something about is said without a traceback."""
    try:
        uvloop.run(work)
    except LatticaError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def two_ends(about: str, service: Callable[[], object], use: Use, roles: mesh.Role) -> int:
    """An example of one service and one user of it. roles: what the ticket gives the user."""
    options = parser(about).parse_args()
    if options.listen is not None:
        return run(serve(options.listen, service(), roles))
    ticket = ticket_of(options)
    return run(there(use, ticket) if ticket else both(use))


async def serve(listen: str, service: object, roles: mesh.Role) -> None:
    """Found a mesh, serve, and let others join."""
    async with mesh.Peer.found(listen=listen) as peer:
        peer.serve(service)
        await until_told(peer.ticket(roles, ttl_s=TICKET_S))


async def there(use: Use, ticket: str) -> None:
    """Join the mesh of a ticket, and use the first peer that it names."""
    async with mesh.Peer.join(ticket) as peer:
        await use(peer, peer.credentials.peers[0][0])


async def both(use: Use) -> None:
    """Start the other end, and use it."""
    async with another("--listen", HERE) as (_, ticket):
        await there(use, ticket)


@contextlib.asynccontextmanager
async def another(*options: str) -> AsyncIterator[tuple[Process, str]]:
    """This script in another process, and the first line that it prints. It ends with the block."""
    one_thread = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # several ends share the cores of one machine
    process = await asyncio.create_subprocess_exec(
        sys.executable, sys.argv[0], *options, stdin=DEVNULL, stdout=PIPE, env=os.environ | one_thread
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(READY_S):
            line = (await process.stdout.readline()).decode().strip()
        if not line:
            sys.exit("the other end did not begin")
        yield process, line
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def until_told(line: str) -> None:
    """Print this line, which says that we are ready, and return at Ctrl-C or SIGTERM."""
    told, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told.set)
    print(line, flush=True)
    await told.wait()
