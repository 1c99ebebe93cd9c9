"""A relay in a process of its own: `python -m tests.e2e.relay_process FOLDER HOST:PORT [TICKET]`; founds a mesh, or
joins that of the ticket, prints a ticket of its own ("" if it is no issuer), and relays."""

from __future__ import annotations

import asyncio
import sys
import time

import uvloop

from lattica.mesh import credentials
from lattica.mesh.peer import Peer
from lattica.mesh.roles import EVERYTHING
from lattica.mesh.tickets import parse_ticket
from tests.e2e.mesh_process import die_with_parent


async def main(folder: str, listen: str, ticket: str = "") -> None:
    now = time.time()
    mine = credentials.join(folder, parse_ticket(ticket), now) if ticket else credentials.found(folder, now, None)
    async with Peer(mine, listen=listen, name="relay", relaying="always") as peer:
        for other, addresses in parse_ticket(ticket).peers if ticket else ():
            await peer.connect(other, addresses, timeout_s=10)
        print(peer.steward.ticket(EVERYTHING, 3600.0) if not ticket else "", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    die_with_parent()
    uvloop.run(main(*sys.argv[1:]))
