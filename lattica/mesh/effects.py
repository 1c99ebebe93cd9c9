"""What the mesh's protocol cores ask of their shell: connections to dial, frames to write, connections to end.

    core -> shell   Dial · Transmit · Hangup, and events, which are whatever is none of these
    shell -> core   dialed · dial_failed · accepted · received · closed · tick       (verbs; each returns effects)

The shell is `peer.py` over TCP or memory, or a simulated world. Connections are numbered by the shell, attempts by the
core; who is at the other end (`Member`) is what the transport authenticated, never what a frame says.
"""

from __future__ import annotations

import msgspec

from lattica.mesh.identity import PeerId
from lattica.mesh.wire import CONTROL, Frame

NOBODY_LISTENS = "nobody listens there"
"""In the reason of a dial that failed: a machine answered, and no process."""


class Dial(msgspec.Struct, frozen=True):
    """Connect to this peer at one of these addresses, whichever answers first as that peer; answered by `dialed` or
    `dial_failed`."""

    attempt: int
    peer: PeerId
    addresses: tuple[str, ...]  # best first
    plane: int = CONTROL  # that the connection is for


class Transmit(msgspec.Struct, frozen=True):
    """Write this frame to the connection, after those before it."""

    connection: int
    frame: Frame


class Hangup(msgspec.Struct, frozen=True):
    """Write what was transmitted, then close; no verb follows for this connection. reason: words for the log."""

    connection: int
    reason: str
