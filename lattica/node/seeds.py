"""What a detached actor's row says of it, and what the actor grows from on any node."""

from __future__ import annotations

import msgspec

from lattica.mesh.papers import DAMAGED

VERSION = 1
BESIDE = "beside"


class Paper(msgspec.Struct, array_like=True, frozen=True):
    """Of an actor's row, what `scheduler.restarts` does not look at. content: the CID of its `Seed`."""

    version: int
    content: bytes
    class_name: str
    name: str
    namespace: str
    claim: bytes  # by which it has its name
    incarnation: int  # the last that its row tells of
    state: bytes = b""  # the CID of its last checkpoint that another node keeps, if there is another
    before: bytes = b""  # of the one before it: a machine that is lost midway may have taken the last one along
    packages: list[bytes] = []  # the CIDs of those that its seed names


class Held(msgspec.Struct, array_like=True, frozen=True):
    """An object that the constructor's arguments refer to."""

    object: bytes
    failed: bool
    contains: list[bytes]
    data: bytes


class Package(msgspec.Struct, array_like=True, frozen=True):
    """A package of its `runtime_env`. kind: as of `environment.Travels`; or BESIDE: the modules beside its script."""

    kind: str
    cid: str
    content: bytes  # the same name, binary


class Seed(msgspec.Struct, array_like=True, frozen=True):
    """What an actor grows from, on any node. holds: as in `messages.ActorCreate`."""

    spec: bytes
    resources: dict[str, float]
    class_name: str
    name: str
    namespace: str
    meta: bytes
    given: bytes
    python: str
    minor: str
    sys_path: list[str]
    cwd: str
    script: str
    log_to_driver: bool
    preload: list[str]
    holds: list[bytes]
    objects: list[Held]
    env_vars: dict[str, str] = {}
    packages: list[Package] = []
    installs: bytes = b""  # as in `far.JobIs`, and the next
    setup_s: float = 600.0


_paper = msgspec.msgpack.Decoder(Paper).decode
_seed = msgspec.msgpack.Decoder(Seed).decode
_encode = msgspec.msgpack.Encoder().encode


def write(what: Paper | Seed) -> bytes:
    """For a row, or for disks."""
    return _encode(what)


def read_seed(data: bytes) -> Seed:
    """Raises what `DAMAGED` names if this release cannot read it."""
    return _seed(data)


def read_paper(spec: bytes) -> Paper | None:
    """None if this release cannot read it."""
    try:
        paper = _paper(spec)
    except DAMAGED:
        return None
    return paper if paper.version == VERSION else None
