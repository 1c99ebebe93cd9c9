"""From options to a running node, and to its clean end."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from random import Random
from typing import TYPE_CHECKING

import msgspec

from lattica._version import __version__
from lattica.codec.messages import PROTOCOL
from lattica.errors import ConfigError, LatticaError
from lattica.files import remove
from lattica.node import gpus, node_log, paths, running
from lattica.node.last_words import NODE_LOG, last_words
from lattica.node.loop import EpollLoop, Loop
from lattica.node.memory_monitor import THRESHOLD
from lattica.node.memory_readings import STORE_SHARE, MemoryReader
from lattica.node.server import ANYONE, COMMANDS, Node, Settings
from lattica.node.spawn import NOTHING_HIDDEN, ROOT, SECRET_VARIABLES, fork_zygote, spawn_zygote
from lattica.objectstore.arena import Arena
from lattica.objectstore.suballocator import GRANULE_BYTES
from lattica.scheduler.resources import ResourceSet, parse_request

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Task

    from lattica.node.drain import Drain
    from lattica.node.mesh_desk import MeshDesk

log = logging.getLogger(__name__)
MEMORY_SHARE_KEPT = 0.05
"""Part of the machine's memory that the object store never touches: below it Linux begins to thrash or to kill."""
THRESHOLD_VARIABLE = "LATTICA_MEMORY_THRESHOLD"
"""Environment variable: share of memory (0 to 1) at which the monitor ends workers; more than 1 switches it off."""
LISTEN_VARIABLE = "LATTICA_LISTEN"
"""Environment variable: what --listen is by default."""
ADVERTISE_VARIABLE = "LATTICA_ADVERTISE"
"""Environment variable: what --advertise is by default, with commas between."""
PORT_MAPPING_VARIABLE = "LATTICA_PORT_MAPPING"
"""Environment variable: what --port-mapping is by default; one of `NO` if the gateway is to be asked for no port."""
BIRTHDAY_VARIABLE = "LATTICA_BIRTHDAY"
"""Environment variable: what --birthday is by default; one of `NO` if hundreds of ports are not to be tried."""
SPILL_VARIABLE = "LATTICA_SPILL_DIR"
"""Environment variable: what --spill-dir is by default."""
SPILL_LIMIT_VARIABLE = "LATTICA_SPILL_LIMIT"
"""Environment variable: what --spill-limit is by default, in bytes."""
NODE_ID_BYTES = 16
LISTEN_BACKLOG = 128
ANNOUNCE_S = 0.1  # an embedded node listens for commands when its driver's first calls are under way
FREE_PORT = ":0"
NO = ("0", "no", "off", "false")
TICKET_MAX_BYTES = 64 << 10  # ours have 3 KB; a pipe holds no more


class Options(msgspec.Struct, frozen=True):
    """What the command line asked for; None: decide by looking at the machine."""

    attach_fd: int | None
    ready_fd: int | None
    data_dir: str
    num_cpus: float | None
    num_gpus: float | None
    resources: Mapping[str, float]
    object_store_memory: int | None
    memory: int | None  # bytes that tasks may ask for
    preload: list[str]
    hide: list[str]
    listen: str = ""  # as of `mesh_desk.Wish`
    ticket_fd: int | None = None  # reads the ticket: an argument could be seen by every user of the machine
    name: str = ""
    labels: Mapping[str, str] = {}
    grace_s: float = 30.0  # for tasks of others, after SIGTERM
    metrics: str = ""  # PORT or HOST:PORT
    maps_ports: bool = True
    birthday: bool = True  # hundreds of ports may be tried to become direct
    relay: bool = False  # for others, and nothing else
    listen_tls: str = ""  # as of `mesh_desk.Wish`
    advertise: tuple[str, ...] = ()  # HOST:PORT that lead here from outside
    spill_dir: str = ""  # "": the usual place
    spill_limit: int = 0  # bytes; 0: what leaves a part of the disk free


def parse_options(argv: list[str]) -> Options:
    """Pairs of option and value. Raises ConfigError for one that cannot be."""
    known = {
        "--attach-fd", "--ready-fd", "--data-dir", "--num-cpus", "--num-gpus", "--resources", "--object-store-memory",
        "--memory", "--preload", "--hide", "--listen", "--ticket-fd", "--name", "--labels", "--grace", "--metrics",
        "--port-mapping", "--birthday", "--relay", "--listen-tls", "--advertise", "--spill-dir", "--spill-limit",
    }  # fmt: skip
    given = dict(zip(argv[::2], argv[1::2]))
    if len(argv) % 2 or not given.keys() <= known:
        raise ConfigError(f"a node was started with {' '.join(argv)!r}; its options are {', '.join(sorted(known))}")
    try:
        custom = json.loads(given.get("--resources", "{}"))
        if not isinstance(custom, dict):
            raise ValueError("--resources is no JSON object")
        hide = json.loads(given.get("--hide", "[]"))
        if not isinstance(hide, list) or not all(isinstance(folder, str) for folder in hide):
            raise ValueError("--hide is no JSON list of folders")
        labels = json.loads(given.get("--labels", "{}"))
        if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
            raise ValueError("--labels is no JSON object of texts")
        return Options(
            attach_fd=int(given["--attach-fd"]) if "--attach-fd" in given else None,
            ready_fd=int(given["--ready-fd"]) if "--ready-fd" in given else None,
            data_dir=paths.data_dir(given.get("--data-dir")),
            num_cpus=float(given["--num-cpus"]) if "--num-cpus" in given else None,
            num_gpus=float(given["--num-gpus"]) if "--num-gpus" in given else None,
            resources=custom,
            object_store_memory=int(float(given["--object-store-memory"]))
            if "--object-store-memory" in given
            else None,
            memory=int(float(given["--memory"])) if "--memory" in given else None,
            preload=[name for name in given.get("--preload", "").split(",") if name],
            hide=hide,
            listen=given.get("--listen", os.environ.get(LISTEN_VARIABLE, "")),
            ticket_fd=int(given["--ticket-fd"]) if "--ticket-fd" in given else None,
            name=given.get("--name", ""),
            labels=labels,
            grace_s=float(given.get("--grace", "30")),
            metrics=given.get("--metrics", ""),
            maps_ports=given.get("--port-mapping", os.environ.get(PORT_MAPPING_VARIABLE, "")).lower() not in NO,
            birthday=given.get("--birthday", os.environ.get(BIRTHDAY_VARIABLE, "")).lower() not in NO,
            relay=given.get("--relay", "") == "yes",
            listen_tls=given.get("--listen-tls", ""),
            advertise=_addresses(given.get("--advertise", os.environ.get(ADVERTISE_VARIABLE, ""))),
            spill_dir=given.get("--spill-dir", os.environ.get(SPILL_VARIABLE, "")),
            spill_limit=int(float(given.get("--spill-limit", os.environ.get(SPILL_LIMIT_VARIABLE) or "0"))),
        )
    except ValueError as error:
        raise ConfigError(f"an option of the node is no number, or not JSON: {error}") from error


def _addresses(text: str) -> tuple[str, ...]:
    """With commas between. Raises ConfigError for what is none."""
    from lattica.mesh.addresses import split_host

    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for address in found:
        split_host(address)
    return found


def run_embedded(options: Options, import_paths: str, zygote: tuple[int, int, int]) -> None:
    """Serve the driver at the other end of `attach_fd`, and end with it."""
    assert options.attach_fd is not None
    session = paths.open_session(paths.embedded_sessions(), keep=0)
    said = os.dup(2)
    try:
        _log_to(os.path.join(session.path, NODE_LOG))
        driver = socket.socket(fileno=options.attach_fd)
        loop = EpollLoop()
        hidden = _fingerprints(options.hide)
        identity = os.urandom(NODE_ID_BYTES)
        node, arena = _compose(loop, options, identity, session.path, import_paths, hidden, embedded=True)
        node.workers.zygotes.adopt(sys.executable, *zygote)
        node.accept(driver)
        loop.add_signal_handler(signal.SIGTERM, node.close, signal.SIGTERM)
        with _Commands(loop, node, session.path):
            loop.run_forever()
        arena.close()
    except BaseException:
        os.dup2(said, 2)  # the driver reads there why its node did not start; node.log goes with the session
        raise
    finally:
        os.write(said, last_words(session.path))
        session.close(remove=True)


def run_guest(options: Options, import_paths: str) -> None:
    """Serve the driver at the other end of `attach_fd` in the mesh of a ticket, under a key of its own, and leave with
    it. The driver hears `Welcome` as soon as another member is known."""
    assert options.attach_fd is not None
    session = paths.open_session(paths.embedded_sessions(), keep=0)
    said = os.dup(2)
    try:
        _serve_guest(options, import_paths, session)
    except LatticaError as error:
        os.dup2(said, 2)
        sys.exit(str(error))
    except BaseException:
        os.dup2(said, 2)
        raise
    finally:
        os.write(said, last_words(session.path))
        session.close(remove=True)


def _serve_guest(options: Options, import_paths: str, session: paths.Session) -> None:
    import uvloop

    from lattica.node.confine import hide_memory

    assert options.attach_fd is not None
    identity = paths.identity_dir(session.path)
    os.mkdir(identity, mode=0o700)
    with contextlib.suppress(ConfigError):  # in a task of a node with a key: it sees no sockets anyway
        paths.runtime_dir()
    hidden = _fingerprints([identity, *paths.socket_folders(), *options.hide])
    zygote = _begin_zygote(options, import_paths, hidden)
    hide_memory()
    ticket = _read_ticket(options.ticket_fd)
    driver = socket.socket(fileno=options.attach_fd)
    _log_to(os.path.join(session.path, NODE_LOG))

    from lattica.node.mesh_desk import MeshDesk, Wish

    loop = uvloop.new_event_loop()
    nodes: list[Node] = []

    def ended(error: LatticaError) -> None:
        log.critical("%s: %s", type(error).__name__, error)
        for node in nodes:
            node.close(signal.SIGTERM)

    wish = Wish(
        ticket, options.listen or FREE_PORT, options.name, options.labels,
        ephemeral=True, maps_ports=options.maps_ports, birthday=options.birthday,
    )  # fmt: skip
    mesh = loop.run_until_complete(MeshDesk.begin(identity, wish, ended))
    meeting = loop.create_task(mesh.meet())
    loop.add_signal_handler(signal.SIGTERM, meeting.cancel)
    loop.call_soon(signal.pthread_sigmask, signal.SIG_UNBLOCK, [signal.SIGTERM])  # a loop that rests hears nothing
    try:
        loop.run_until_complete(meeting)
    except BaseException:
        loop.run_until_complete(mesh.stop())
        raise
    node, arena = _compose(
        loop, options, mesh.peer.id, session.path, import_paths, hidden, embedded=True, data_dir=session.path
    )
    loop.run_until_complete(_join(node, mesh))
    assert node.runs is not None, "it has just begun"
    node.runs.draining = True  # others' jobs would end with this one
    mesh.offer(node.settings.resources.to_dict() if options.num_cpus else {}, node.load)
    nodes.append(node)
    node.workers.zygotes.adopt(sys.executable, *zygote)
    node.accept(driver)
    loop.add_signal_handler(signal.SIGTERM, node.close, signal.SIGTERM)
    with _Commands(loop, node, session.path):
        loop.run_forever()
    loop.run_until_complete(mesh.stop())
    arena.close()


def run_daemon(options: Options, import_paths: str) -> None:
    """Serve whoever of this user connects, until SIGTERM or `lattica stop`; exit code 1 if it cannot be begun, or must
    not go on."""
    starter = _Starter(options.ready_fd)
    try:
        paths.make_data_dir(options.data_dir)
        lock = paths.lock_data_dir(options.data_dir)
        session = paths.open_session(paths.sessions_of(options.data_dir))
        where = paths.socket_path(options.data_dir)
        try:
            _serve(options, import_paths, session, where, starter)
        finally:
            paths.remove_node_file(options.data_dir)
            running.retract(where)
            if os.path.exists(where):
                os.unlink(where)
            session.close(remove=False)
            os.close(lock)
    except LatticaError as error:
        starter.say_more({"error": str(error)})
        sys.exit(str(error))
    except BaseException as error:
        starter.say_more({"error": f"{type(error).__name__}: {error}"})
        raise


def _serve(options: Options, import_paths: str, session: paths.Session, where: str, starter: _Starter) -> None:
    """Begin, say so, and serve until the end. The zygote starts while the mesh is imported.

    Raises LatticaError if the node has no place in its mesh, or has lost it to another with the same key.
    """
    import uvloop  # embedded nodes import neither it nor the mesh, nor `cryptography`

    identity, hidden, zygote, ticket = _confine(options, import_paths, where)

    from lattica.node.mesh_desk import MeshDesk, Wish

    loop = uvloop.new_event_loop()
    nodes: list[Node] = []
    ends: list[LatticaError] = []

    def ended(error: LatticaError) -> None:
        log.critical("%s: %s", type(error).__name__, error)
        ends.append(error)
        for node in nodes:
            node.close(signal.SIGTERM)

    wish = Wish(
        ticket, options.listen, options.name, options.labels,
        maps_ports=options.maps_ports, birthday=options.birthday, relay=options.relay, listen_tls=options.listen_tls,
        advertise=options.advertise,
    )  # fmt: skip
    mesh = loop.run_until_complete(MeshDesk.begin(identity, wish, ended))
    node, arena = _compose(loop, options, mesh.peer.id, session.path, import_paths, hidden, embedded=False)
    drain = loop.run_until_complete(_join(node, mesh))
    mesh.offer(node.settings.resources.to_dict(), node.load)
    nodes.append(node)
    node.workers.zygotes.adopt(sys.executable, *zygote)
    if options.metrics:
        from lattica.node.metrics import serve_metrics

        server = loop.run_until_complete(serve_metrics(node, options.metrics))
        host, port, *_ = server.sockets[0].getsockname()
        node.metrics_at = f"http://{host}:{port}/metrics"
    listener = _listen(where)
    loop.add_reader(listener.fileno(), _accept, node, listener)
    _bound_log(loop, os.path.join(options.data_dir, NODE_LOG))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, drain.begin, options.grace_s, "it was told to end by a signal")
    loop.call_soon(signal.pthread_sigmask, signal.SIG_UNBLOCK, [signal.SIGTERM])  # a loop that rests hears nothing
    news = _News(loop, node, mesh, options.data_dir, where, starter)
    node.workers.zygotes.when_confined(news.ready)  # so that whoever started us can be told of it
    if not ends:
        loop.run_forever()
    news.close()
    loop.run_until_complete(mesh.stop())
    loop.remove_reader(listener.fileno())
    listener.close()
    arena.close()
    if ends:
        raise ends[0]


def _confine(options: Options, import_paths: str, where: str) -> tuple[str, str, tuple[int, int, int], str]:
    """What a daemon does before it has a secret: (its folder of keys, what workers must not see, the zygote, the
    ticket, "" if none). From here on stdout and stderr are node.log."""
    from lattica.node.confine import hide_memory

    identity = paths.identity_dir(options.data_dir)
    with contextlib.suppress(OSError):  # `load_or_create` says what is wrong
        os.makedirs(identity, mode=0o700, exist_ok=True)  # what is hidden must be there first
    gpus.make_device_files()
    hidden = _fingerprints([*_secret_folders(options, import_paths, where), *options.hide])
    zygote = _begin_zygote(options, import_paths, hidden)
    hide_memory()  # before a key or a ticket is in it
    ticket = _read_ticket(options.ticket_fd)
    _log_to(os.path.join(options.data_dir, NODE_LOG))
    return identity, hidden, zygote, ticket


class _Commands:
    """Where an embedded node listens for commands, and for nobody else: until the end of the block."""

    def __init__(self, loop: Loop, node: Node, session: str) -> None:
        self._loop, self._node, self._session = loop, node, session
        self._listener: socket.socket | None = None

    def __enter__(self) -> None:
        self._loop.call_later(ANNOUNCE_S, self._begin)

    def _begin(self) -> None:
        try:
            where = running.embedded_socket(self._session)
            self._listener = _listen(where)
            self._loop.add_reader(self._listener.fileno(), _accept, self._node, self._listener, COMMANDS)
            running.announce(self._about(where))
        except (ConfigError, OSError) as error:
            log.info("no command finds this node: %s", error)

    def _about(self, where: str) -> paths.NodeFile:
        pid, node = os.getpid(), self._node
        return paths.NodeFile(
            pid, paths.process_birth(pid), where, node.settings.node.hex(), __version__, self._session,
            data_dir=self._session, since=node.started_at, driver=os.getppid(),
        )  # fmt: skip

    def __exit__(self, *exc: object) -> None:
        running.running_nodes()  # sweeps
        if self._listener is None:
            return
        where = self._listener.getsockname()
        running.retract(where)
        remove(where)
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()


class _News:
    """That a daemon serves: in its node file, and to whoever has started it."""

    def __init__(
        self, loop: AbstractEventLoop, node: Node, mesh: MeshDesk, data_dir: str, where: str, starter: _Starter
    ) -> None:
        self._loop, self._node, self._mesh = loop, node, mesh
        self._data_dir, self._where, self._starter = data_dir, where, starter
        self._telling: Task[None] | None = None

    def ready(self) -> None:
        """Workers can be had."""
        pid, mesh = os.getpid(), self._mesh
        session = self._node.settings.session_dir
        about = paths.NodeFile(
            pid, paths.process_birth(pid), self._where, mesh.peer_id, __version__, session,
            data_dir=self._data_dir, since=self._node.started_at,
        )  # fmt: skip
        running.announce(about)
        paths.write_node_file(self._data_dir, about)
        self._starter.say({"pid": pid, "socket": self._where, "node": mesh.peer_id, "protocol": PROTOCOL})
        log.info("node %s (pid %d) serves %s", mesh.peer_id[:8], pid, self._data_dir)
        self._telling = self._loop.create_task(self._tell())

    async def _tell(self) -> None:
        facts: dict[str, object] = {}
        try:
            facts["mesh"] = await self._mesh.met()
            node = self._node
            facts |= {"resources": node.state.resources(), "protection": node.workers.zygotes.protection()}
        except Exception:  # a bug of ours: the node serves all the same, and the command must not wait
            log.exception("what the command wants to know")
        self._starter.say_more(facts)

    def close(self) -> None:
        """The node ends: nobody is told any more."""
        if self._telling is not None:
            self._telling.cancel()


def _begin_zygote(options: Options, import_paths: str, hidden: str) -> tuple[int, int, int]:
    """Before this process has anything that workers must not have, or a thread."""
    if any(name in os.environ for name in SECRET_VARIABLES):  # somebody started this process by hand
        return spawn_zygote(sys.executable, import_paths, options.preload, hidden)
    return fork_zygote(options.preload, hidden)


def _read_ticket(fd: int | None) -> str:
    """What whoever started us wrote there, to its end; "" if nothing."""
    if fd is None:
        return ""
    with open(fd, "rb") as file:
        return file.read(TICKET_MAX_BYTES).decode("ascii", "replace")


def _secret_folders(options: Options, import_paths: str, socket: str) -> list[str]:
    """What to hide from the workers of a daemon, but for what they need to live."""
    places = (sys.prefix, sys.base_prefix, ROOT, os.path.expanduser("~"), os.environ.get("TMPDIR", ""))
    return paths.secret_folders(options.data_dir, socket, [*places, *json.loads(import_paths)])


def _fingerprints(folders: list[str]) -> str:
    if not folders:
        return NOTHING_HIDDEN
    from lattica.node.confine import fingerprints  # ctypes takes 2 ms

    return fingerprints(folders)


async def _join(node: Node, mesh: MeshDesk) -> Drain:
    """Give the node what it does for others of its mesh, and they for it; jobs that are submitted to it, or go on
    here; and its way out, which is returned."""
    from lattica.codec.far import Going, MayGo
    from lattica.node.drain import Drain
    from lattica.node.far_desk import FarDesk
    from lattica.node.job_runs import JobRuns
    from lattica.node.look import Look
    from lattica.node.placer import Placer

    node.mesh = mesh
    placer = Placer(mesh, node.resources, node.book, node.loop, Random(os.urandom(8)))
    node.far = FarDesk(node, mesh, placer, spins=len(os.sched_getaffinity(0)) > 1)
    Look(node, mesh)
    node.runs = JobRuns(node, mesh)
    node.drain = Drain(node, mesh, node.far)
    node.far.answers(Going, node.drain.going)
    node.far.answers(MayGo, node.drain.may_go)
    return node.drain


def _compose(
    loop: Loop,
    options: Options,
    node_id: bytes,
    session_dir: str,
    import_paths: str,
    hidden: str,
    *,
    embedded: bool,
    data_dir: str = "",
) -> tuple[Node, Arena]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # five per worker; the zygote has what the user had
    memory = MemoryReader()
    store_bytes = options.object_store_memory or int(memory.total * STORE_SHARE)
    store_bytes = max(store_bytes // GRANULE_BYTES, 1) * GRANULE_BYTES
    spill_to = paths.spill_folder(options.spill_dir, session_dir, "" if embedded else options.data_dir)
    paths.sweep(spill_to)
    settings = Settings(
        node=node_id,
        session_dir=session_dir,
        resources=_resources(options, memory.total - store_bytes if options.memory is None else options.memory),
        embedded=embedded,
        paths=import_paths,
        data_dir=data_dir if embedded else options.data_dir,
        hidden=hidden,
        labels=options.labels,
        spill_to=spill_to,
        spill_limit=options.spill_limit,
        gpus=gpus.detect() or (gpus.believed() if options.num_gpus else ()),
        memory_threshold=float(os.environ.get(THRESHOLD_VARIABLE, THRESHOLD)),
    )

    def headroom() -> int:
        return memory.room(MEMORY_SHARE_KEPT)

    arena = Arena(store_bytes)
    return Node(loop, settings, arena, memory, headroom), arena


def _resources(options: Options, memory_bytes: int) -> ResourceSet:
    cpus = options.num_cpus if options.num_cpus is not None else len(os.sched_getaffinity(0))
    cards = options.num_gpus if options.num_gpus is not None else len(gpus.detect())
    return parse_request(
        num_cpus=cpus, num_gpus=cards or None, memory=max(memory_bytes, 0) or None, resources=options.resources
    )


def _listen(where: str) -> socket.socket:
    """A unix socket at this path, for this user alone; what a dead node left there is replaced (we have its lock)."""
    if os.path.exists(where):
        os.unlink(where)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(where)
    finally:
        os.umask(before)
    listener.listen(LISTEN_BACKLOG)
    listener.setblocking(False)
    return listener


def _accept(node: Node, listener: socket.socket, kinds: frozenset[str] = ANYONE) -> None:
    try:
        sock, _ = listener.accept()
    except (BlockingIOError, ConnectionAbortedError):
        return
    uid = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[4:8], sys.byteorder)
    if uid != os.geteuid():
        log.warning("a process of user %d was turned away", uid)
        sock.close()
        return
    node.accept(sock, kinds)


def _log_to(path: str) -> None:
    """From now on stdout and stderr of this process, and its log, are this file."""
    node_log.write_to(path)
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("quic").setLevel(logging.WARNING)  # aioquic's: ten lines for each dial, whatever came of it


def _bound_log(loop: AbstractEventLoop, path: str) -> None:
    """Begin it anew whenever it is full."""
    try:
        if node_log.rotate(path):
            log.info("goes on from %s.1", path)
    except OSError as error:
        log.warning("%s cannot be begun anew: %s", path, error.strerror)
    loop.call_later(node_log.LOOK_S, _bound_log, loop, path)


class _Starter:
    """Whoever started us, and is told how it went: by a line of JSON, and by another when we have met the mesh."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def say(self, data: Mapping[str, object]) -> None:
        """A line. It has room in the pipe."""
        if self._fd is not None:
            with contextlib.suppress(OSError):  # it has gone away
                os.write(self._fd, json.dumps(data).encode() + b"\n")

    def say_more(self, data: Mapping[str, object]) -> None:
        """The last line."""
        self.say(data)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
