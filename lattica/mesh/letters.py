"""What communities write to each other, what stands in their rows, what they ask of their shells: see `community`."""

from __future__ import annotations

import msgspec

from lattica.mesh import membership as m
from lattica.mesh.identity import PeerId
from lattica.mesh.membership import Keep, MemberChanged, Release, Try
from lattica.mesh.soft_state import Saying
from lattica.mesh.table.reconcile import Fingerprints, Items, More, Want
from lattica.mesh.table.rows import Row

SUMMON_HOPS = 3  # of a summons: as many as there are between any two members of a thousand, nearly always


class NodeInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of a node row. Unknown fields are ignored.

    python: minor versions in which it runs tasks, like "3.11". ephemeral: a driver's own node, which goes with it.
    nat: what the node is behind, a `nat.behaviour.Behaviour` as `exchange.write_behaviour` writes it; b"": not known.
    """

    name: str = ""
    version: str = ""
    addresses: list[str] = []
    labels: dict[str, str] = {}
    resources: dict[str, float] = {}
    left: bool = False
    python: list[str] = []
    ephemeral: bool = False
    nat: bytes = b""


class Accused(msgspec.Struct, array_like=True, frozen=True):
    """The body of an accusation: the accused node row's dot."""

    boot: int
    counter: int


class Probe(msgspec.Struct, frozen=True):
    """answer: it answers one. root: of the sender's table."""

    nonce: int
    answer: bool
    root: bytes
    sayings: tuple[Saying, ...] = ()


class Rows(msgspec.Struct, frozen=True):
    """flood: they are new, and to be passed on."""

    rows: tuple[Row, ...]
    flood: bool


class News(msgspec.Struct, frozen=True):
    """Soft state that has changed."""

    sayings: tuple[Saying, ...]


class Summon(msgspec.Struct, frozen=True):
    """`caller` cannot dial `to`, and asks it to dial. Passed on by those who have sessions with it, or with who may."""

    caller: PeerId
    to: PeerId
    hops: int  # that it may still be passed on


Message = Probe | Rows | News | Summon | m.Ask | m.Heard | Fingerprints | Items | Want | More


class Send(msgspec.Struct, frozen=True):
    """To a peer with whom there is a session; it may be lost."""

    to: PeerId
    message: Message


class RowChanged(msgspec.Struct, frozen=True):
    """What is under this key now, and what was before."""

    row: Row
    before: Row | None


class RowGone(msgspec.Struct, frozen=True):
    """It expired, or its writer may not write such rows any more."""

    row: Row


class BootRaised(msgspec.Struct, frozen=True):
    """Somebody wrote as us under a boot not below ours: what we write has this one from now on."""

    boot: int


class RowRefused(msgspec.Struct, frozen=True):
    """A peer passed on what its writer may not have written."""

    sender: PeerId
    row: Row
    reason: str


Effect = Send | RowChanged | RowGone | BootRaised | RowRefused | Keep | Release | Try | MemberChanged
