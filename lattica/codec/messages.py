"""Every message between the processes of one machine.

Three conversations, each over a unix socket (`lattica.local.stream`) that carries frames of messages (`codec.frames`):

    client -> node, node -> client     a client is a driver, a worker or a command; the node numbers them: `client`
    node -> zygote, zygote -> node     fork me a worker; this one ended
    caller -> worker, worker -> caller the path of a call; the node is not on it

Rules of this file. Messages are msgpack arrays, the tag first (`msgspec`, `array_like`): tags are only ever appended,
and fields only ever added at the end with a default, so that unknown trailing fields are ignored by older readers.
Ids are bytes, sizes and offsets are bytes, times are seconds unless the name says otherwise.

Who holds what is told to the node by *signed counts*: each process tells the node, on its own connection and in its own
order, what it gave to whom (`Give`, `Seal(to=...)`), what it took from a container (`Hold`) and what it let go
(`Drop`). A giver tells the node before it tells the receiver, so an object that travels is never without a holder; a
count may be negative for a moment, when the receiver's `Drop` overtakes the giver's `Give`.

The file is longer than most: it is a list, and tags are seen to be free because all of them stand here.
"""

from __future__ import annotations

import msgspec

NODE = 0
"""The node's own client number: what it holds (arguments of restartable actors) is held by client 0."""

# -- values as they travel -------------------------------------------------------------------------------------------


class WithRefs(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """A small serialized value that contains refs or actor handles; the sender gave each of them to the receiver."""

    data: bytes
    refs: list[bytes]


class InArena(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """A serialized value that lies in the machine's arena; the receiver was given a hold on `object`."""

    object: bytes
    offset: int
    size: int
    data: bool = False  # to be read as data, or not at all


class Failed(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """A serialized exception. `system`: the machine failed, not the user's code."""

    data: bytes
    refs: list[bytes] = []
    system: bool = False


Value = bytes | WithRefs | InArena | Failed
"""Plain `bytes` are a small serialized value without refs: the common case, and the cheapest."""

# -- client -> node --------------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, array_like=True, tag=1):
    """First message of a driver or a command; answered by `Welcome` (with the arena's descriptor) or `Refused`."""

    protocol: int
    pid: int
    kind: str  # "driver" | "command"
    python: str = ""  # sys.executable of the driver: workers of its job run under the same
    job: dict[
        str, object
    ] = {}  # {"sys_path": [...], "cwd": str, "script": str, "namespace": str, "log_to_driver": bool, "preload": [...]}


class Seal(msgspec.Struct, array_like=True, tag=2):
    """An object of mine now lies in the arena and may be shared. Adds one hold for client `to` (0: for the sender).

    `contains`: ids of the refs inside it; the node holds them as long as this object lives. `attempt`: by which run of
    its task it was made, from 0.
    """

    object: bytes
    offset: int
    size: int
    to: int = 0
    failed: bool = False  # the value is a serialized exception
    contains: list[bytes] = []
    attempt: int = 0


class Give(msgspec.Struct, array_like=True, tag=3):
    """I gave `count` holds on `object` to client `to`."""

    object: bytes
    to: int
    count: int = 1


class Hold(msgspec.Struct, array_like=True, tag=4):
    """I took a hold on `object`, which lies inside an object that I hold."""

    object: bytes


class Drop(msgspec.Struct, array_like=True, tag=5):
    """I let `count` holds on `object` go."""

    object: bytes
    count: int = 1


class Promise(msgspec.Struct, array_like=True, tag=6):
    """I own `object`; its value is still being made, and a `Seal` will follow. Adds one hold for the sender."""

    object: bytes
    made_at: str = ""  # "file:line" of the call, for the error when the owner dies


class Resolve(msgspec.Struct, array_like=True, tag=7):
    """Tell me (`Located` or `Lost`) where these lie, now or as soon as they are sealed. here: I want to read them: what
    lies on disk comes back first, or `NoRoom` says why not."""

    objects: list[bytes]
    here: bool = False


class SpanRequest(msgspec.Struct, array_like=True, tag=8):
    """I need `size` bytes of arena in one piece; answered by `SpanGrant` or `SpanDenied` within 5 s.

    `wish`: more would be welcome, up to this many, since more objects will follow.
    """

    request: int
    size: int
    wish: int = 0


class SpanReturn(msgspec.Struct, array_like=True, tag=9):
    """A span of mine holds nothing any more."""

    offset: int
    size: int


class LeaseRequest(msgspec.Struct, array_like=True, tag=10):
    """I have tasks of one scheduling class and no worker for them; answered by `LeaseGranted`, `LeaseDenied` or
    nothing yet."""

    request: int
    resources: dict[str, float]
    retryable: bool = True  # the memory monitor kills retryable tasks' workers first
    name: str = ""  # function name, for `lattica status`
    given: bytes = b""  # where it may run: a `scheduler.given.DemandGiven`, encoded; empty: anywhere
    inputs: list[tuple[bytes, int]] = []  # the largest arguments of the first such task: (object, bytes)
    work_s: float = 0.0  # how long one takes; 0: not known
    environment: bytes = b""  # the key of an `EnvironmentIs`; empty: the sender's own


class LeaseCancel(msgspec.Struct, array_like=True, tag=11):
    """I no longer want what I asked for with `request`. (If the grant has overtaken it, I return the lease.)"""

    request: int


class LeaseReturn(msgspec.Struct, array_like=True, tag=12):
    """I am done with this worker; it has nothing of mine in its queue. ran_s: how long the last task of mine took
    there, expected_s: how long such tasks usually take; 0: not known."""

    lease: int
    ran_s: float = 0.0
    expected_s: float = 0.0


class WorkerKill(msgspec.Struct, array_like=True, tag=13):
    """Kill the worker that I lease, if it has not begun a task after `seq` (0: in any case); I will hear `LeaseLost`.
    `why`: words, for what that says of its end."""

    lease: int
    seq: int = 0
    why: str = ""


class Blocked(msgspec.Struct, array_like=True, tag=14):
    """I, a worker, wait for others (`True`) or run again (`False`): my CPUs are free meanwhile."""

    blocked: bool


class ActorCreate(msgspec.Struct, array_like=True, tag=15):
    """Start an actor; answered by `ActorAccepted` or `ActorRefused`. The sender is connected to it at once, as by
    `ActorConnect`.

    `spec` is opaque to the node and handed to the worker (`BecomeActor`). `holds`: objects that the arguments need; the
    sender gave them to client 0, and the node gives them on to each worker that becomes this actor.
    The sender holds one count on the id `actor` itself, as it does for an object: the actor ends when nobody holds it.
    """

    request: int
    actor: bytes
    spec: bytes
    resources: dict[str, float]
    class_name: str
    name: str = ""  # "" : anonymous
    namespace: str = ""
    detached: bool = False
    get_if_exists: bool = False
    max_restarts: int = 0  # -1: without end
    holds: list[bytes] = []
    meta: bytes = b""  # opaque: what a handle made by `get_actor` needs to know (methods, options)
    announced: bool = False  # its arguments are still being made: `spec` and `holds` follow in `ActorArguments`
    given: bytes = b""  # where it may live: a `scheduler.given.DemandGiven`, encoded; empty: anywhere
    available: bool = False  # of a detached one: a smaller side of a mesh may restart it, too
    inputs: list[tuple[bytes, int]] = []  # as in `LeaseRequest`
    environment: bytes = b""  # as in `LeaseRequest`


class ActorConnect(msgspec.Struct, array_like=True, tag=16):
    """Connect me to this actor, now and after each restart: `ActorConnected` with a descriptor, or `ActorDead`."""

    actor: bytes


class ActorLookup(msgspec.Struct, array_like=True, tag=17):
    """Which living actor bears this name? Answered by `ActorFound` (adding one hold on it for the sender) or
    `ActorRefused`."""

    request: int
    name: str
    namespace: str


class ActorKill(msgspec.Struct, array_like=True, tag=18):
    """Kill the actor's process now; `no_restart=False` lets its restarts count."""

    actor: bytes
    no_restart: bool = True


class ActorReady(msgspec.Struct, array_like=True, tag=19):
    """I, a worker, have run the constructor."""

    actor: bytes


class ActorFailed(msgspec.Struct, array_like=True, tag=20):
    """My constructor raised: the actor is dead, without restart. `error` is a serialized exception."""

    actor: bytes
    error: bytes


class ActorExit(msgspec.Struct, array_like=True, tag=21):
    """I, an actor, end on purpose (`exit_actor`, or after `ActorRelease`): no restart. I exit when I read EOF."""

    actor: bytes
    reason: str = ""


class StateRequest(msgspec.Struct, array_like=True, tag=22):
    """Answered by `State`. `what`: "nodes", "resources", "status", "actors", "names", "jobs", "workers", "memory",
    "protection"."""

    request: int
    what: str


class Shutdown(msgspec.Struct, array_like=True, tag=23):
    """I, a driver, end: finish my job, send me the last output lines, then close my connection. A command with
    `node=True` ends the whole node."""

    node: bool = False


class ActorArguments(msgspec.Struct, array_like=True, tag=24):
    """What an announced actor waited for: `spec` and `holds` as in `ActorCreate`; or `error`, a serialized exception:
    an argument failed, and the actor is dead."""

    actor: bytes
    spec: bytes = b""
    holds: list[bytes] = []
    error: bytes = b""
    inputs: list[tuple[bytes, int]] = []  # as in `LeaseRequest`


class Owes(msgspec.Struct, array_like=True, tag=25):
    """I, a worker, have submitted tasks or calls that go on after my own task (`True`), or they have all ended
    (`False`): meanwhile I am not to be ended for want of work, nor to become an actor, whose end would be theirs.
    retires: I take no more tasks, and am to be ended as soon as nobody leases me and I owe nothing."""

    owes: bool
    retires: bool = False


class CancelObject(msgspec.Struct, array_like=True, tag=26):
    """Stop what makes this object, which another process owns: that one hears `CancelWanted`, if it lives."""

    object: bytes
    force: bool = False
    recursive: bool = True


class MeshRequest(msgspec.Struct, array_like=True, tag=27):
    """I, a command, ask for something of the mesh; answered by `MeshAnswer`, maybe seconds later. verb: as in
    `node.mesh_desk`."""

    request: int
    verb: str
    data: dict[str, object] = {}


class Unheard(msgspec.Struct, array_like=True, tag=28):
    """Client `maker` died under tasks or calls of mine, which make these objects. If it had sealed one for me in this
    attempt, I have not heard of that and never will: its hold is nobody's."""

    objects: list[bytes]
    maker: int
    attempt: int = 0


class FromAfar(msgspec.Struct, array_like=True, tag=29):
    """`via`, a process of another machine that I am connected with, gave me one hold on this object or actor.
    value: its bytes lie there. attempt: as of `Seal`, if I own it."""

    object: bytes
    via: int
    value: bool = False
    attempt: int = 0


class ActorCheckpoint(msgspec.Struct, array_like=True, tag=33):
    """I, an actor, have taken a checkpoint: give it to my next incarnation (`BecomeActor.state`). A large one is
    `object`, on which I have given the node a hold; between nodes it is `size` bytes with the CID `content`."""

    actor: bytes
    state: bytes
    object: bytes = b""
    content: bytes = b""
    size: int = 0


class Evicted(msgspec.Struct, array_like=True, tag=36):
    """My answer to `Evict`: where these lie I do not know any more, unless the node tells me again (`Located`); and
    these are `kept`: arrays of mine lie over them."""

    round: int
    objects: list[bytes] = []
    kept: list[bytes] = []


class Refs(msgspec.Struct, array_like=True, tag=37):
    """My answer to `RefsWanted`: msgpack, a list of a dict for each object that I have a ref or a view of."""

    request: int
    rows: bytes


class SpanCancel(msgspec.Struct, array_like=True, tag=38):
    """I have found room in a span of mine: do not make any for this request. (It is answered all the same.)"""

    request: int


class Why(msgspec.Struct, array_like=True, tag=34):
    """Why does it wait, and where is it? Answered by `State`: {"why": words}, "" if nothing is known. of: a lease
    request of mine; actor: one that I call, at `worker` if I am connected with it; worker alone: of a task of mine;
    object: that others make, or that lies elsewhere."""

    request: int
    of: int = 0
    actor: bytes = b""
    worker: int = 0
    object: bytes = b""


class EnvironmentIs(msgspec.Struct, array_like=True, tag=35):
    """I shall ask for workers with this around them, by its key. data: a `scheduler.environments.Environment`."""

    key: bytes
    data: bytes


class GroupCreate(msgspec.Struct, array_like=True, tag=30):
    """Keep these bundles for a placement group of mine, which my job's end ends if it is not detached; answered by
    `State`: {} or {"error": words}. strategy: as in `scheduler.bundles.Pattern`. selectors: of the bundles, in order,
    as `scheduler.labels` reads them; none at all, or one for each. target: rather on this node, if all are on one."""

    request: int
    group: bytes
    bundles: list[dict[str, float]]
    strategy: str
    name: str = ""
    selectors: list[dict[str, str]] = []
    target: bytes = b""
    detached: bool = False


class GroupRemove(msgspec.Struct, array_like=True, tag=31):
    """End this group, and what runs in it. owner: the node that has made it."""

    group: bytes
    owner: bytes


class GroupWanted(msgspec.Struct, array_like=True, tag=32):
    """How is this group (of that owner; of that name; neither: all that are known here)? Answered by `State`: a list of
    what `node.known_groups` tells. ready: as soon as it has all its bundles, or never will."""

    request: int
    group: bytes = b""
    owner: bytes = b""
    name: str = ""
    ready: bool = False


# -- node -> client --------------------------------------------------------------------------------------------------


class Welcome(msgspec.Struct, array_like=True, tag=40):
    """You are client number `client` of job `job`. One descriptor comes with it: the arena."""

    client: int
    job: int
    node: bytes
    session_dir: str
    arena_bytes: int
    config: dict[str, object] = {}  # {"inline_max": int, "num_cpus": ..., "embedded": bool, "namespace": str, ...}
    token: bytes = b""  # the first 8 bytes of every id that you make


class Refused(msgspec.Struct, array_like=True, tag=41):
    """The node does not serve you; say `reason` to the user, and close."""

    reason: str


class Located(msgspec.Struct, array_like=True, tag=42):
    """The object lies here; sent once per `Resolve`. offset: -1 on disk, for who did not want to read it."""

    object: bytes
    offset: int
    size: int
    failed: bool = False


class Lost(msgspec.Struct, array_like=True, tag=43):
    """The object will never come. `owner`: words for who it was and how it ended. doubtful: it may; to its owner, who
    can perhaps make it anew."""

    object: bytes
    owner: str
    made_at: str = ""
    doubtful: bool = False


class Freed(msgspec.Struct, array_like=True, tag=44):
    """Nobody holds this object of yours any more: its bytes are free again."""

    object: bytes


class SpanGrant(msgspec.Struct, array_like=True, tag=45):
    """This part of the arena is yours to write; it is backed by memory already."""

    request: int
    offset: int
    size: int


class SpanDenied(msgspec.Struct, array_like=True, tag=46):
    """The store is full and stayed so. `detail` says who holds what and what to do; disk: the disk it spills to is
    full, too."""

    request: int
    detail: str
    disk: bool = False


class SpanWanted(msgspec.Struct, array_like=True, tag=47):
    """Memory is short: return every span that holds nothing."""


class Evict(msgspec.Struct, array_like=True, tag=85):
    """Memory is short: forget where these lie, but for those that arrays of yours lie over; answered by `Evicted`. What
    comes to you as `InArena` of one of these from now on is asked for before it is read. seal: first seal every region
    of yours that nobody else knows."""

    round: int
    objects: list[bytes] = []
    seal: bool = False


class Forget(msgspec.Struct, array_like=True, tag=86):
    """These objects of earlier `Evict`s are gone: nobody will speak of them again."""

    objects: list[bytes]


class NoRoom(msgspec.Struct, array_like=True, tag=87):
    """You wait for this object, which lies on disk, and there is no memory to read it into. disk: as of
    `SpanDenied`."""

    object: bytes
    detail: str
    disk: bool = False


class RefsWanted(msgspec.Struct, array_like=True, tag=88):
    """What do you have refs of? Answered by `Refs`."""

    request: int


class LeaseGranted(msgspec.Struct, array_like=True, tag=48):
    """Worker `client` is yours. A descriptor comes with it if `connect` (else you have the connection from before).

    Your tasks' sequence numbers on that connection go on where they were.
    """

    request: int
    lease: int
    client: int
    pid: int
    connect: bool
    gpus: list[int] = []
    far: bool = False  # on another machine: what it gives is to be imported
    host: int = 0  # that machine, by a number of the node's


class LeaseDenied(msgspec.Struct, array_like=True, tag=49):
    """This can never be granted here. removed: its placement group was removed. environment: what its workers need
    around them could not be made."""

    request: int
    reason: str
    removed: bool = False
    environment: bool = False


class LeaseWanted(msgspec.Struct, array_like=True, tag=50):
    """Others wait: return idle leases now, and take unstarted tasks back from the busy ones if you hold several."""


class LeaseLost(msgspec.Struct, array_like=True, tag=51):
    """The worker died. `started`: sequence number of the task that was running (0: none); `replies`: finished but
    unsent replies, one frame body; `how`: words ("killed by SIGKILL", "exit code 3", "out of memory: ..."); `stderr`:
    its last lines.
    """

    lease: int
    client: int
    started: int
    replies: bytes
    how: str
    stderr: str
    out_of_memory: bool = False
    unknown: bool = False  # nobody knows what had begun: the machine is gone


class ActorAccepted(msgspec.Struct, array_like=True, tag=52):
    """`actor` is the one you asked for, or, with `existing`, the one that bears the name already (`meta` is its
    own)."""

    request: int
    actor: bytes
    existing: bool = False
    meta: bytes = b""


class ActorRefused(msgspec.Struct, array_like=True, tag=53):
    """`kind`: "name-taken", "infeasible", "not-found", "unavailable"."""

    request: int
    kind: str
    reason: str


class ActorConnected(msgspec.Struct, array_like=True, tag=54):
    """Calls of incarnation `incarnation` go to worker `client` over the descriptor that comes with it."""

    actor: bytes
    incarnation: int
    client: int
    pid: int
    far: bool = False  # on another machine: what it gives is to be imported
    host: int = 0  # that machine, by a number of the node's


class ActorDown(msgspec.Struct, array_like=True, tag=55):
    """Incarnation `incarnation` ended. `restarting`: another `ActorConnected` will follow; else the actor is dead for
    good.

    `error`: the constructor's exception, serialized, or empty. `intended`: `kill`, `exit_actor` or out of scope.
    `fenced`: another life of it won. `unavailable`: it cannot be reached now; it is not dead. `removed`: its placement
    group was, and it can be nowhere else. `environment`: what it needs around it could not be made.
    """

    actor: bytes
    incarnation: int
    restarting: bool
    how: str
    stderr: str = ""
    error: bytes = b""
    intended: bool = False
    out_of_memory: bool = False
    fenced: bool = False
    unavailable: bool = False
    removed: bool = False
    environment: bool = False


class ActorFound(msgspec.Struct, array_like=True, tag=56):
    """The bearer of the name."""

    request: int
    actor: bytes
    class_name: str
    meta: bytes


class State(msgspec.Struct, array_like=True, tag=57):
    """Answer to `StateRequest`: plain data."""

    request: int
    data: object


class LogLines(msgspec.Struct, array_like=True, tag=58):
    """Lines that a worker of your job printed. `who`: task or actor name; `stream`: 1 stdout, 2 stderr."""

    who: str
    pid: int
    stream: int
    lines: list[str]


class BecomeActor(msgspec.Struct, array_like=True, tag=59):
    """Worker: you are this actor from now on."""

    actor: bytes
    incarnation: int
    spec: bytes
    resources: dict[str, float]
    gpus: list[int] = []
    name: str = ""
    namespace: str = ""
    via: int = 0  # of another machine: what `spec` holds is to be imported
    state: bytes = b""  # of the incarnation before, as it was in `ActorCheckpoint`
    content: bytes = b""  # of a large one, between nodes: its CID
    size: int = 0  # of a large one, whose descriptor comes with this


class NewCaller(msgspec.Struct, array_like=True, tag=60):
    """Worker: client `client` may call you over the descriptor that comes with it. far: it is on another machine, and
    what it gives is to be imported."""

    client: int
    far: bool = False


class Leased(msgspec.Struct, array_like=True, tag=61):
    """Worker: your next tasks have these resources and GPUs; they come from `client`."""

    lease: int
    client: int
    resources: dict[str, float]
    gpus: list[int] = []


class ActorRelease(msgspec.Struct, array_like=True, tag=62):
    """Worker: nobody holds your actor any more; finish what is queued, say `ActorExit`, and end."""

    actor: bytes


class CheckpointWanted(msgspec.Struct, array_like=True, tag=69):
    """Worker: your actor moves; take a checkpoint now, if its class offers one."""

    actor: bytes


class Exit(msgspec.Struct, array_like=True, tag=63):
    """Worker: you are not needed any more; end."""


class JobSetup(msgspec.Struct, array_like=True, tag=64):
    """Worker: the job that you belong to for life. First message after the fork. The arena's descriptor comes with
    it."""

    client: int
    job: int
    node: bytes
    session_dir: str
    arena_bytes: int
    sys_path: list[str]
    cwd: str
    script: str
    namespace: str
    config: dict[str, object] = {}
    token: bytes = b""  # the first 8 bytes of every id that you make


class ClientGone(msgspec.Struct, array_like=True, tag=65):
    """A client that you were connected to (you called it or it called you) has ended."""

    client: int


class CancelWanted(msgspec.Struct, array_like=True, tag=66):
    """Somebody to whom you gave this object wants it cancelled; fields as in `lattica.cancel`."""

    object: bytes
    force: bool = False
    recursive: bool = True


class MeshAnswer(msgspec.Struct, array_like=True, tag=67):
    """Answer to `MeshRequest`: plain data; or `error`, as of `LatticaError.to_data` (empty: none)."""

    request: int
    data: object = None
    error: dict[str, object] = {}


class InGroup(msgspec.Struct, array_like=True, tag=68):
    """Worker: what you run from now on runs in this bundle of a placement group, a `scheduler.given.StrategyGiven`,
    encoded; empty: in none."""

    within: bytes


# -- node <-> zygote -------------------------------------------------------------------------------------------------


class Fork(msgspec.Struct, array_like=True, tag=80):
    """Node to zygote: fork worker `client`. Descriptors: its node connection, its page, its stdout, its stderr."""

    client: int
    name: str


class Forked(msgspec.Struct, array_like=True, tag=81):
    """Zygote to node: worker `client` is process `pid`."""

    client: int
    pid: int


class Exited(msgspec.Struct, array_like=True, tag=82):
    """Zygote to node: process `pid` ended; `status` as of waitpid."""

    pid: int
    status: int


class Import(msgspec.Struct, array_like=True, tag=83):
    """Node to zygote: import these, quietly, so that workers have them already; failures are no matter."""

    modules: list[str]


class Confined(msgspec.Struct, array_like=True, tag=84):
    """Zygote to node, first of all if it was given folders to hide: what keeps its workers from them (`mounts`), and
    from undoing that or reading it from other processes (`landlock`). `reason`: why not all of it holds."""

    mounts: bool
    landlock: bool
    reason: str = ""


# -- caller <-> worker -----------------------------------------------------------------------------------------------


class Export(msgspec.Struct, array_like=True, tag=100):
    """The code of a function: sent once per connection, before the first task that needs it. max_calls: a worker ends
    when it has run the function so often; 0: never for that."""

    key: bytes
    value: Value
    max_calls: int = 0


class Task(msgspec.Struct, array_like=True, tag=101):
    """Run a function. `args` is the serialized `(args, kwargs)`, empty for none; `deps` are values of the top-level
    refs, put at the positions (or keyword names) `at`. `object` is the id of the first result; the others count up
    from it. `returns` below zero: its results are to be sent one by one, see `actors.streams`."""

    seq: int
    object: bytes
    function: bytes
    args: Value
    returns: int = 1
    deps: list[Value] = []
    at: list[int | str] = []
    name: str = ""
    attempt: int = 0
    data: bool = False  # what it returns or raises shall be data, and what it submits likewise


class Call(msgspec.Struct, array_like=True, tag=102):
    """Call a method of the actor; fields as in `Task`. `acked`: all replies up to this sequence number have arrived.

    After a reconnect to the same incarnation it is sent again as it was, with the holds that were given for it then.
    """

    seq: int
    object: bytes
    method: str
    args: Value
    returns: int = 1
    deps: list[Value] = []
    at: list[int | str] = []
    attempt: int = 0
    acked: int = 0
    data: bool = False  # as in `Task`
    group: str = ""  # the concurrency group that it runs in; empty: none
    name: str = ""  # what its caller calls it; empty: by its class and method


class Reply(msgspec.Struct, array_like=True, tag=103):
    """What it returned: `returns` values, or one `Failed`. `micros`: run time of the user's code in microseconds; -1:
    it ran, and what it returned is not kept any more. The receiver then has a hold on each of the failure's `refs`."""

    seq: int
    values: list[Value]
    micros: int = 0


class Cancel(msgspec.Struct, array_like=True, tag=104):
    """Stop that task if it has not finished; it is answered by a `Reply` in any case."""

    seq: int
    recursive: bool = True


class Reclaim(msgspec.Struct, array_like=True, tag=105):
    """Give unstarted tasks back, the newest first, at most `count`; answered by `Returned` (perhaps empty)."""

    count: int


class Returned(msgspec.Struct, array_like=True, tag=106):
    """These were not started and will not be: they are yours again. `blocked`: send no more until I have replied."""

    seqs: list[int]
    blocked: bool = False


class Taken(msgspec.Struct, array_like=True, tag=107):
    """Of what that generator makes, `heard` items have come, and `taken` are the user's. `blocks`: of ids for more of
    them. `over`: nobody wants more. `first`: said before the task or call, which has run before."""

    seq: int
    heard: int
    taken: int
    blocks: list[bytes] = []
    over: bool = False
    first: bool = False


class Item(msgspec.Struct, array_like=True, tag=108):
    """A generator has made its item number `at`, from 0. A `Reply` of one value, None or a failure, ends it."""

    seq: int
    at: int
    value: Value


FromClient = (
    Hello | Seal | Give | Hold | Drop | Promise | Resolve | SpanRequest | SpanReturn | LeaseRequest | LeaseCancel
    | LeaseReturn | WorkerKill | Blocked | ActorCreate | ActorConnect | ActorLookup | ActorKill | ActorReady
    | ActorFailed | ActorExit | ActorArguments | StateRequest | Shutdown | Owes | CancelObject | MeshRequest | Unheard
    | FromAfar | GroupCreate | GroupRemove | GroupWanted | ActorCheckpoint | Why | Evicted | Refs | SpanCancel
    | EnvironmentIs
)  # fmt: skip
FromNode = (
    Welcome | Refused | Located | Lost | Freed | SpanGrant | SpanDenied | SpanWanted | LeaseGranted | LeaseDenied
    | LeaseWanted | LeaseLost | ActorAccepted | ActorRefused | ActorConnected | ActorDown | ActorFound | State
    | LogLines | BecomeActor | NewCaller | Leased | ActorRelease | Exit | JobSetup | ClientGone | CancelWanted
    | MeshAnswer | InGroup | CheckpointWanted | Evict | Forget | NoRoom | RefsWanted
)  # fmt: skip
ToZygote = Fork | Import
FromZygote = Forked | Exited | Confined
ToWorker = Export | Task | Call | Cancel | Reclaim | Taken
FromWorker = Reply | Returned | Item

PROTOCOL = 1
"""Version of this file, in `Hello`; a node refuses another major version and says which side to update."""
