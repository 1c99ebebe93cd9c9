"""Every message between the nodes of two machines: leases, jobs, carried connections, borrowed objects, actors.

One conversation per pair of nodes, over one pipe of their mesh session: items are msgpack arrays of messages, in order.
It ends with the session, and with it everything that it speaks of: both sides then begin anew.

    submitter -> host   JobIs, JobOver, AskLease, DropAsk, GiveBack, KillWorker, ToWorker, EndWorker
    host -> submitter   LeaseIs, LeaseNot, Wanted, WorkerOver, FromWorker, Output, JobGone
    either way          Begins                           first, over each pipe: which two links are a pair
                        Open, Carry, Taken, Closed           a connection between a process here and a worker there
                        Took, Returned, Want, Here, Nowhere, Has, Stop      objects, as `node.far_objects` tells
                        ActorWanted, ActorAt, ActorIsDown, ActorEnd    actors, as `node.far_actors` tells
                        Group...                         placement groups, as `node.group_desk` tells
                        Claiming, WhoHas, NameRow, HoldActor, ActorHeld      names, as `node.names_desk` tells
                        Keep, KeptWanted, Kept, NotKept, Unkeep      what restarts need, as `node.kept` tells

Rules of this file. As in `codec.messages`: arrays, the tag first, tags only appended, fields only added at the end with
a default. Numbers of workers, leases, carriers and proxies are the sender's own unless a comment says otherwise; what
workers and callers say to each other (`Carry.data`) is not looked at.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from lattica.errors import RemoteProtocolError

ITEM_MAX_BYTES = 64 << 20
"""Of one item; a frame of a connection travels in pieces of at most 256 KiB."""


TEXT_MAX_CHARS = 256 << 10  # of a name or of words for people: some are kept, with the last lines of a worker
ID_MAX_BYTES = 256  # of a name in the table; ids have 12 to 36
LIST_MAX = 65_536  # bundles of a placement group and their nodes, holders, GPUs
Text = Annotated[str, msgspec.Meta(max_length=TEXT_MAX_CHARS)]
Id = Annotated[bytes, msgspec.Meta(max_length=ID_MAX_BYTES)]
Bundle = Annotated[bytes, msgspec.Meta(max_length=TEXT_MAX_CHARS)]
Life = tuple[int, int, bool]
"""(epoch, incarnation, minority): see `scheduler.fencing`."""


class JobIs(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """A job of which I shall ask something. token: `mesh.tokens`, signed by the node of its root submitter. root: the
    job of which this one is tasks and actors in another environment (`scheduler.environments.variant_of`); empty: none.
    """

    job: Id
    token: bytes
    origin: Id  # PeerId of the node that has its driver
    python: Text = ""
    minor: Text = ""  # "3.11"
    sys_path: list[str] = []
    cwd: Text = "/"
    script: Text = ""
    namespace: Text = ""
    log_to_driver: bool = True
    preload: list[str] = []
    env_vars: dict[str, str] = {}
    packages: list[tuple[str, str]] = []  # (kind, CID), as of `scheduler.environments`
    root: Id = b""
    installs: bytes = b""  # a `scheduler.environments.Installs`, encoded
    setup_s: float = 600.0  # for those


class JobOver(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """Its driver is gone: end its workers. farewell: it waits for the last lines, and for `JobGone`."""

    job: Id
    farewell: bool = False


class AskLease(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """Lend me a worker; answered by `LeaseIs`, now or in its turn, or by `LeaseNot`. limit_s: the longest wait.
    by, life: the detached actor that it is for, or whose process wants it, and in which life."""

    number: int
    job: Id
    resources: dict[str, float]
    limit_s: float = 0.0
    retryable: bool = True
    name: Text = ""
    actor: bool = False
    within: Bundle = b""  # the bundle that it runs in: a `scheduler.given.StrategyGiven`, encoded
    each_s: float = 0.0  # how long those take that wait for the same input, on a node of pace 1; 0: not known
    by: Id = b""
    life: Life | None = None


class DropAsk(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """I no longer want what I asked for."""

    number: int


class LeaseIs(msgspec.Struct, array_like=True, tag=5, frozen=True):
    """The worker is yours."""

    number: int
    lease: int
    worker: int
    pid: int
    gpus: Annotated[list[int], msgspec.Meta(max_length=LIST_MAX)] = []
    load: bytes = b""


class LeaseNot(msgspec.Struct, array_like=True, tag=6, frozen=True):
    """Not here. never: nor ever. load: as of `scheduler.load`. environment: as in `messages.LeaseDenied`."""

    number: int
    reason: Text
    never: bool = False
    load: bytes = b""
    environment: bool = False


class GiveBack(msgspec.Struct, array_like=True, tag=7, frozen=True):
    """I am done with that worker. ran_s, expected_s: as in `messages.LeaseReturn`."""

    lease: int  # the host's number
    ran_s: float = 0.0
    expected_s: float = 0.0


class KillWorker(msgspec.Struct, array_like=True, tag=8, frozen=True):
    """As `messages.WorkerKill`. caller: whose tasks `seq` counts, as the host numbers its proxy for it."""

    lease: int
    seq: int = 0
    why: Text = ""
    caller: int = 0


class Wanted(msgspec.Struct, array_like=True, tag=9, frozen=True):
    """Others wait here: return what you can."""


class WorkerOver(msgspec.Struct, array_like=True, tag=10, frozen=True):
    """That worker is dead, or was let go (then `lease` is 0 and `how` says why). Fields as in `messages.LeaseLost`."""

    worker: int
    lease: int
    started: int = 0
    replies: bytes = b""
    how: Text = ""
    stderr: Text = ""
    out_of_memory: bool = False


class ToWorker(msgspec.Struct, array_like=True, tag=11, frozen=True):
    """Give this to the worker: one encoded message of the node's to it. proxy: by what number I know the worker. key:
    what callers of the actor that it shall be must show, if any."""

    worker: int  # the host's number
    proxy: int
    message: bytes
    life: Life | None = None  # of the detached actor that the worker shall be
    key: Id = b""


class FromWorker(msgspec.Struct, array_like=True, tag=12, frozen=True):
    """The worker says this: one encoded message of a worker to its node."""

    worker: int
    message: bytes


class EndWorker(msgspec.Struct, array_like=True, tag=13, frozen=True):
    """The actor in that worker has ended. kill: at once."""

    worker: int  # the host's number
    kill: bool


class Output(msgspec.Struct, array_like=True, tag=14, frozen=True):
    """What a worker of your job printed; fields as in `messages.LogLines`."""

    job: Id
    who: Text
    pid: int
    stream: int
    lines: list[str]


class JobGone(msgspec.Struct, array_like=True, tag=15, frozen=True):
    """The workers of a job have ended, and their last lines are sent: I do not know it any more."""

    job: Id


class Begins(msgspec.Struct, array_like=True, tag=16, frozen=True):
    """I say what follows over my link `link`. answers: the link of yours that I have heard; 0: none yet. Numbers are
    never used again in one life of a node."""

    link: int
    answers: int = 0


class Open(msgspec.Struct, array_like=True, tag=20, frozen=True):
    """Connect `caller`, a process of mine, with that worker. carrier: even from the lower PeerId, else odd.
    actor, incarnation: what the worker must be; empty for one that I lease. job: of the process. life: of a detached
    actor, the latest that I know. by, by_life: the detached actor that the process is, and in which life. key: as
    `ActorAt` said it."""

    carrier: int
    worker: int  # the host's number
    proxy: int  # by what number I know the worker
    job: Id
    caller: int
    actor: Id = b""
    incarnation: int = 0
    life: Life | None = None
    by: Id = b""
    by_life: Life | None = None
    key: Id = b""


class Opened(msgspec.Struct, array_like=True, tag=21, frozen=True):
    """It is. proxy: by what number the host knows the caller."""

    carrier: int
    proxy: int


class Carry(msgspec.Struct, array_like=True, tag=22, frozen=True):
    """Bytes of the connection, in order."""

    carrier: int
    data: bytes


class Taken(msgspec.Struct, array_like=True, tag=23, frozen=True):
    """So many bytes have been handed on: as many more may be sent."""

    carrier: int
    size: int


class Closed(msgspec.Struct, array_like=True, tag=24, frozen=True):
    """The connection is over. gone: so is the process that had it, and all that it told me has been said."""

    carrier: int
    reason: Text = ""
    gone: bool = False


class Took(msgspec.Struct, array_like=True, tag=30, frozen=True):
    """A process of mine was given `count` holds on `object`; you gave them to `proxy` of yours, and let them go now.
    keep: I hold it from now on, until `Returned`."""

    proxy: int
    object: Id
    count: int
    keep: bool


class Returned(msgspec.Struct, array_like=True, tag=31, frozen=True):
    """Nobody here holds it any more."""

    object: Id


class Want(msgspec.Struct, array_like=True, tag=32, frozen=True):
    """Tell me where it lies, as soon as it does; answered by `Here` or `Nowhere`. now: at once. fetch: bring it to you
    first; I could not have it from those whom you named."""

    object: Id
    now: bool = False
    fetch: bool = False


class Here(msgspec.Struct, array_like=True, tag=33, frozen=True):
    """It has `size` bytes. data: they, if they are few; else ask me for blocks, and `holders`. contains: what it refers
    to; you hold each from now on, until `Returned`. cid: its name by content in binary form, if I know it.
    away: I do not have it, and say nothing of it; those in `holders` do, or know who does: say `Want` to them.
    attempt: by which run of its task it was made: who knows of a later one does not take this."""

    object: Id
    size: int
    failed: bool = False
    contains: list[bytes] = []
    data: bytes = b""
    holders: Annotated[list[Id], msgspec.Meta(max_length=LIST_MAX)] = []
    cid: Id = b""
    away: bool = False
    attempt: int = 0


class Nowhere(msgspec.Struct, array_like=True, tag=34, frozen=True):
    """It will never come; fields as in `messages.Lost`."""

    object: Id
    owner: Text
    made_at: Text = ""


class Has(msgspec.Struct, array_like=True, tag=38, frozen=True):
    """What you lend me lies here now, and I had it from another: name me to whoever wants it. cid: as in `Here`."""

    object: Id
    cid: Id = b""


class Stop(msgspec.Struct, array_like=True, tag=35, frozen=True):
    """Somebody here wants what makes it cancelled; fields as in `messages.CancelObject`."""

    object: Id
    force: bool = False
    recursive: bool = True


class Going(msgspec.Struct, array_like=True, tag=36, frozen=True):
    """I go: fetch what you hold of mine and have not got; answered by `MayGo`."""


class MayGo(msgspec.Struct, array_like=True, tag=37, frozen=True):
    """I have what I want of yours."""


class Claiming(msgspec.Struct, array_like=True, tag=50, frozen=True):
    """A message of `scheduler.claims`, encoded."""

    data: bytes


class WhoHas(msgspec.Struct, array_like=True, tag=51, frozen=True):
    """Who has this name, by your table? Answered by `NameRow`."""

    number: int
    name: Id


class NameRow(msgspec.Struct, array_like=True, tag=52, frozen=True):
    """The row as it travels; empty: nobody has it."""

    number: int
    row: bytes = b""


class HoldActor(msgspec.Struct, array_like=True, tag=53, frozen=True):
    """A process of mine has found this actor by its name. Answered by `ActorHeld`."""

    number: int
    actor: Id


class ActorHeld(msgspec.Struct, array_like=True, tag=54, frozen=True):
    """You hold it from now on, until `Returned`. reason: why you do not."""

    number: int
    class_name: Text = ""
    meta: bytes = b""
    reason: Text = ""


class Keep(msgspec.Struct, array_like=True, tag=55, frozen=True):
    """A piece of what a restart will need. The first, unasked: keep all of it on your disk, under the name of its
    content, and ask me for the rest; answered by `Kept` or `NotKept`."""

    content: Id
    size: int  # of all of it
    offset: int
    data: bytes


class KeptWanted(msgspec.Struct, array_like=True, tag=56, frozen=True):
    """Send me a window of this from there on: answered by `Keep`, in pieces, or by `NotKept`."""

    content: Id
    offset: int = 0


class NotKept(msgspec.Struct, array_like=True, tag=57, frozen=True):
    """I do not have it. reason: why I do not keep what you have sent."""

    content: Id
    reason: Text = ""


class Kept(msgspec.Struct, array_like=True, tag=58, frozen=True):
    """What you wanted kept lies on my disk, whole and verified."""

    content: Id


class Unkeep(msgspec.Struct, array_like=True, tag=59, frozen=True):
    """I need it no more: there is a newer one, or its actor is over."""

    content: Id


class ActorWanted(msgspec.Struct, array_like=True, tag=40, frozen=True):
    """Tell me where this actor is, now and after each restart: `ActorAt`, or `ActorIsDown`."""

    actor: Id


class ActorAt(msgspec.Struct, array_like=True, tag=41, frozen=True):
    """Incarnation `incarnation` is `worker` at `host` (empty: you). key: shows to the host that you have a handle."""

    actor: Id
    incarnation: int
    host: Id
    worker: int  # the host's number
    life: Life | None = None  # of a detached actor
    key: Id = b""


class ActorIsDown(msgspec.Struct, array_like=True, tag=42, frozen=True):
    """As `messages.ActorDown`, encoded."""

    message: bytes


class ActorEnd(msgspec.Struct, array_like=True, tag=43, frozen=True):
    """As `messages.ActorKill`."""

    actor: Id
    no_restart: bool = True


class GroupReserve(msgspec.Struct, array_like=True, tag=70, frozen=True):
    """Reserve these bundles of a placement group of mine. The next six: as in `scheduler.reservations`."""

    group: Id
    attempt: int
    job: Id
    bundles: list[tuple[int, dict[str, float]]]


class GroupCommit(msgspec.Struct, array_like=True, tag=71, frozen=True):
    """Keep them, or keep them longer."""

    group: Id
    attempt: int
    token: int


class GroupAbort(msgspec.Struct, array_like=True, tag=72, frozen=True):
    """They are free again, and what runs in them is to be ended."""

    group: Id
    attempt: int


class GroupReserved(msgspec.Struct, array_like=True, tag=73, frozen=True):
    """They are yours for seconds."""

    group: Id
    attempt: int
    token: int


class GroupDenied(msgspec.Struct, array_like=True, tag=74, frozen=True):
    """They do not fit here now."""

    group: Id
    attempt: int
    reason: Text


class GroupCommitted(msgspec.Struct, array_like=True, tag=75, frozen=True):
    """They are kept."""

    group: Id
    attempt: int


class GroupExpired(msgspec.Struct, array_like=True, tag=76, frozen=True):
    """They are not, or no longer."""

    group: Id
    attempt: int


class GroupWatch(msgspec.Struct, array_like=True, tag=77, frozen=True):
    """Tell me of this group of yours, now and whenever it changes: `GroupIs`."""

    group: Id


class GroupIs(msgspec.Struct, array_like=True, tag=78, frozen=True):
    """What is known of a group of mine. state: as in `node.known_groups`. nodes: of each bundle; empty: none yet."""

    group: Id
    state: Text
    reason: Text = ""
    name: Text = ""
    strategy: Text = ""
    bundles: list[dict[str, float]] = []
    nodes: Annotated[list[Id], msgspec.Meta(max_length=LIST_MAX)] = []


class GroupNamed(msgspec.Struct, array_like=True, tag=80, frozen=True):
    """Which group of your processes, in this namespace, has this name? Answered by `GroupFound`."""

    number: int
    namespace: Text
    name: Text


class GroupFound(msgspec.Struct, array_like=True, tag=81, frozen=True):
    """That one; empty: none."""

    number: int
    group: Id = b""


class GroupEnd(msgspec.Struct, array_like=True, tag=79, frozen=True):
    """Somebody here wants this group of yours removed."""

    group: Id


FarMessage = (
    JobIs | JobOver | AskLease | DropAsk | LeaseIs | LeaseNot | GiveBack | KillWorker | Wanted | WorkerOver | ToWorker
    | FromWorker | EndWorker | Output | JobGone | Begins
    | Open | Opened | Carry | Taken | Closed | Took | Returned | Want | Here
    | Nowhere | Has | Stop | Going | MayGo | ActorWanted | ActorAt | ActorIsDown | ActorEnd | GroupReserve | GroupCommit
    | GroupAbort | GroupReserved | GroupDenied | GroupCommitted | GroupExpired | GroupWatch | GroupIs | GroupEnd
    | GroupNamed | GroupFound
    | Claiming | WhoHas | NameRow | HoldActor | ActorHeld | Keep | KeptWanted | NotKept | Kept | Unkeep
)  # fmt: skip

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[FarMessage])


def encode(messages: list[Any]) -> bytes:
    """One item."""
    return _encoder.encode(messages)


def decode(item: bytes | bytearray | memoryview) -> list[Any]:
    """The messages of one item. Raises RemoteProtocolError."""
    if len(item) > ITEM_MAX_BYTES:
        raise RemoteProtocolError(f"an item of {len(item)} bytes")
    try:
        return _decoder.decode(item)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"undecodable item of {len(item)} bytes: {error}") from error
