"""Where a node's things lie on disk, and which node is running there.

    $LATTICA_DATA_DIR | $XDG_DATA_HOME/lattica | ~/.local/share/lattica     data directory of `lattica start`
        lock, node.json, node.log, identity/, sessions/<begun>-<pid>/logs/
    $LATTICA_CACHE_DIR | $XDG_CACHE_HOME/lattica | ~/.cache/lattica        virtual environments of jobs
    $XDG_RUNTIME_DIR/lattica | <temporary>/lattica-<uid>/sockets            sockets, and who listens there (`running`)
    <temporary>/lattica-<uid>/sessions/<begun>-<pid>/logs/                  embedded nodes, deleted at their end

Who is alive is told by locks that the kernel drops with their holder (flock), and by a process's time of birth; never
by a pid alone, which another process may bear by now. Paths are `str`: `pathlib` and `tempfile` cost a start 10 ms.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from lattica.errors import ConfigError
from lattica.files import remove, write_private

DATA_DIR_VARIABLE = "LATTICA_DATA_DIR"
CACHE_DIR_VARIABLE = "LATTICA_CACHE_DIR"
SOCKET_PATH_MAX_BYTES = 107
"""sizeof(sun_path) of AF_UNIX is 108 on Linux, with the final zero."""
NODE_FILE = "node.json"
NODE_FILE_MAX_BYTES = 64 << 10  # ours has 300; what is longer was not written by us
VAR_TMP = "/var/tmp"  # on disk where /tmp is not
SESSIONS_KEPT = 4
"""Ended sessions whose logs a data directory keeps: enough to look back at a crash and at the starts after it."""
OTHERS = 0o077  # mode bits of everybody but the owner


# -- folders ---------------------------------------------------------------------------------------------------------


def data_dir(given: str | None = None, environ: Mapping[str, str] = os.environ) -> str:
    """The data directory that a command or driver means: `given`, else as the environment says. It need not exist."""
    home = environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return os.path.abspath(given or environ.get(DATA_DIR_VARIABLE) or os.path.join(home, "lattica"))


def cache_dir(environ: Mapping[str, str] = os.environ) -> str:
    """Where this user's nodes keep what can be made again. It need not exist."""
    home = environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.abspath(environ.get(CACHE_DIR_VARIABLE) or os.path.join(home, "lattica"))


def make_data_dir(path: str) -> None:
    """Create it (0700) if it is not there. Raises ConfigError if others may write in it: they could replace the key."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        found = os.stat(path)
    except OSError as error:
        raise ConfigError(
            f"the data directory {path} cannot be made: {error.strerror}",
            do_next=f"choose another with --data-dir or {DATA_DIR_VARIABLE}",
        ) from error
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"the data directory {path} belongs to user {found.st_uid}, not to you",
            do_next=f"choose your own with --data-dir or {DATA_DIR_VARIABLE}",
        )
    if found.st_mode & 0o022:
        raise ConfigError(f"others may write in the data directory {path}", do_next=f"chmod go-w {path}")


def identity_dir(data_dir: str) -> str:
    """Where keys and certificates lie: no task sees it."""
    return os.path.join(data_dir, "identity")


def runtime_dir(environ: Mapping[str, str] = os.environ) -> str:
    """The folder for sockets, made and checked: $XDG_RUNTIME_DIR/lattica if that is ours, else a temporary one."""
    base = environ.get("XDG_RUNTIME_DIR", "")
    if base.startswith("/") and _is_own_folder(base):
        return _private_folder(os.path.join(base, "lattica"))
    return temporary_sockets(environ)


def socket_folders(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Where nodes of this user may listen, of those folders that are there and this user's alone."""
    base = environ.get("XDG_RUNTIME_DIR", "")
    temporary = os.path.join(os.path.abspath(environ.get("TMPDIR") or "/tmp"), f"lattica-{os.geteuid()}")
    folders = [os.path.join(temporary, "sockets")] if _is_private(temporary) else []
    if base.startswith("/"):
        folders.append(os.path.join(base, "lattica"))
    return [folder for folder in folders if _is_private(folder)]


def temporary_sockets(environ: Mapping[str, str]) -> str:
    """Apart from the sessions there: a program that a task runs may start an embedded node of its own."""
    return _private_folder(os.path.join(temporary_dir(environ), "sockets"))


def temporary_dir(environ: Mapping[str, str] = os.environ) -> str:
    """This user's folder under the temporary directory, made and checked. Raises ConfigError if another user has it."""
    base = environ.get("TMPDIR") or "/tmp"
    return _private_folder(os.path.join(os.path.abspath(base), f"lattica-{os.geteuid()}"))


def socket_path(data_dir: str, environ: Mapping[str, str] = os.environ) -> str:
    """Where the node of this data directory listens: short, whatever the directory is called.

    Clients read it from the node file, so they need not see the same environment.
    """
    name = _socket_name(data_dir)
    for folder in (runtime_dir, temporary_sockets, lambda _: temporary_sockets({})):
        path = os.path.join(folder(environ), name)
        if len(os.fsencode(path)) <= SOCKET_PATH_MAX_BYTES:
            return path
    raise AssertionError("a socket under /tmp/lattica-<uid> has a short path")


def _socket_name(data_dir: str) -> str:
    import hashlib

    return hashlib.blake2b(os.fsencode(os.path.realpath(data_dir)), digest_size=8).hexdigest() + ".sock"


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


def _is_own_folder(path: str) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _is_private(path: str) -> bool:
    return _is_own_folder(path) and not os.lstat(path).st_mode & OTHERS


def _private_folder(path: str) -> str:
    """Make `path` (0700), or check that nobody else made it or can look into it: others may write beside it."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be made: {error.strerror}", do_next="set TMPDIR to a folder that you may write in"
        ) from error
    found = os.lstat(path)  # lstat: a symlink would lead our sockets to a place of somebody's choice
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        whose = "is no folder" if found.st_uid == os.geteuid() else f"belongs to user {found.st_uid}"
        raise ConfigError(
            f"{path} {whose}, and lattica keeps its sockets and sessions there",
            do_next="remove it, or set TMPDIR to a folder of your own",
        )
    if found.st_mode & OTHERS:
        raise ConfigError(f"{path} is open to others (mode {found.st_mode & 0o777:03o})", do_next=f"chmod 700 {path}")
    return path


def secret_folders(home: str, socket: str, needed: Iterable[str], environ: Mapping[str, str] = os.environ) -> list[str]:
    """Where a task has no business: its node's data directory `home`, the folder of that node's socket, and the user's
    usual data directory, where another node may have a key. Real paths, of those that are there.

    needed: paths that workers cannot do without. Of a data directory that holds one only `identity` is secret.
    """
    usual = data_dir(None, {name: environ[name] for name in environ if name != DATA_DIR_VARIABLE})
    reals = [os.path.realpath(path) for path in needed if path]
    folders = []
    for place in dict.fromkeys(map(os.path.realpath, (home, usual))):
        folders.append(identity_dir(place) if any(within(path, place) for path in reals) else place)
    return [folder for folder in (*folders, os.path.realpath(os.path.dirname(socket))) if os.path.isdir(folder)]


def within(path: str, folder: str) -> bool:
    """Whether the one is the other, or lies in it, by their names."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


# -- which node runs here --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeFile:
    """`node.json`: who runs on this data directory, and where it listens. `birth`: as of `process_birth`."""

    pid: int
    birth: str
    socket: str
    node: str  # id, as people see it
    version: str
    session_dir: str = ""
    data_dir: str = ""  # of an embedded node: its session
    since: float = 0.0  # Unix time
    driver: int = 0  # pid of the only program that it serves; 0: whoever comes

    @property
    def embedded(self) -> bool:
        """Whether a program has begun it for itself."""
        return self.driver != 0


def process_birth(pid: int) -> str:
    """When this process began: the machine's boot id and clock ticks since then; "" if no such process lives."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            rest = file.read().rpartition(b")")[2].split()  # the name before it may hold spaces and parentheses
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    state, ticks = rest[0], rest[19]  # fields 3 and 22, proc(5)
    return "" if state in (b"Z", b"X") else f"{boot}/{int(ticks)}"


def write_node_file(data_dir: str, node: NodeFile) -> None:
    """Say that this node is ready."""
    import json

    write_private(os.path.join(data_dir, NODE_FILE), json.dumps(asdict(node), indent=2).encode() + b"\n")


def remove_node_file(data_dir: str) -> None:
    """Say that no node runs here any more."""
    remove(os.path.join(data_dir, NODE_FILE))


def read_node_file(data_dir: str) -> NodeFile | None:
    """What the last node wrote, whether it lives or not; None if there is none, or nothing that a node wrote."""
    return read_node(os.path.join(data_dir, NODE_FILE))


def read_node(path: str) -> NodeFile | None:
    """What a node wrote there of itself, whether it lives or not; None if there is no such thing."""
    import json

    try:
        with open(path, "rb") as file:
            found = json.loads(file.read(NODE_FILE_MAX_BYTES))
        known = {field.name: found[field.name] for field in fields(NodeFile) if field.name in found}
        node = NodeFile(**known)
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None
    texts = (node.birth, node.socket, node.node, node.version, node.session_dir, node.data_dir)
    numbers = type(node.pid) is int and type(node.driver) is int and isinstance(node.since, int | float)
    return node if numbers and all(isinstance(text, str) for text in texts) else None


def running_node(data_dir: str) -> NodeFile | None:
    """The node that runs on this data directory, or None. Raises ConfigError if the directory may not be read."""
    try:
        node = read_node_file(data_dir)
    except PermissionError as error:
        raise ConfigError(
            f"{error.filename} may not be read by you", do_next=f"name your own with --data-dir or {DATA_DIR_VARIABLE}"
        ) from error
    return node if node is not None and is_running(node) else None


def is_running(node: NodeFile) -> bool:
    """Whether the process that wrote this lives."""
    return node.pid > 0 and bool(node.birth) and process_birth(node.pid) == node.birth


def sweep_dead_node(data_dir: str) -> None:
    """Remove the node file and the socket of a node that was killed here; nothing, where one lives, begins or ends."""
    if read_node_file(data_dir) is None:
        return
    try:
        lock = lock_data_dir(data_dir)
    except ConfigError:
        return
    try:
        node = read_node_file(data_dir)  # as it is now that nobody else writes it
        if node is None:
            return
        if os.path.basename(node.socket) == _socket_name(data_dir) and _is_socket(node.socket):
            remove(node.socket)
            remove(node.socket.removesuffix(".sock") + ".json")  # as of `running`
        remove_node_file(data_dir)
    finally:
        os.close(lock)


def lock_data_dir(data_dir: str) -> int:
    """Keep other nodes off this data directory until the returned descriptor is closed or this process ends.

    Raises ConfigError if one has it, perhaps on another machine that shares the file system.
    """
    try:
        lock = os.open(os.path.join(data_dir, "lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigError(
            f"the data directory {data_dir} cannot be used: {error.strerror}",
            do_next=f"choose another with --data-dir or {DATA_DIR_VARIABLE}; tasks cannot use that of their node",
        ) from error
    if _try_lock(lock):
        return lock
    os.close(lock)
    node = running_node(data_dir)
    if node is not None:
        raise ConfigError(
            f"a node (pid {node.pid}) runs on {data_dir} already",
            do_next=f"use it, end it with `lattica stop`, or start this one with {DATA_DIR_VARIABLE} elsewhere",
        )
    raise ConfigError(
        f"a node that starts or ends, or one on another machine, has the data directory {data_dir}",
        do_next=f"try again, or start this one with {DATA_DIR_VARIABLE} elsewhere",
    )


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# -- sessions --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Session:
    """One node's folder from its start to its end. The lock on the folder itself also keeps systemd-tmpfiles away."""

    path: str
    _lock: int

    @property
    def logs(self) -> str:
        """The folder of the workers' output."""
        return os.path.join(self.path, "logs")

    def shared(self) -> int:
        """Its lock, which others may share from now on; in place of `close`, whoever asks for it closes it."""
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        return self._lock

    def close(self, *, remove: bool) -> None:
        """The node ends: delete the folder, or leave it for who looks for the logs."""
        if remove:
            _remove_tree(self.path)
        os.close(self._lock)


def open_session(parent: str, *, keep: int = SESSIONS_KEPT, inside: Sequence[str] = ("logs",)) -> Session:
    """Make and lock a new session folder in `parent`; of those whose node is dead only the `keep` newest are left.

    parent: `sessions_of(data_dir)`, or `embedded_sessions()` with keep=0. inside: folders in it.
    """
    os.makedirs(parent, mode=0o700, exist_ok=True)
    _sweep(parent, keep)
    name = f"{time.time_ns()}-{os.getpid()}"  # sorts by age
    draft, path = os.path.join(parent, f".{name}"), os.path.join(parent, name)
    os.mkdir(draft, 0o700)
    lock = os.open(draft, os.O_RDONLY | os.O_DIRECTORY)
    _try_lock(lock)
    for name in inside:
        os.mkdir(os.path.join(draft, name), 0o700)
    os.rename(draft, path)  # locked before it has a name that others sweep
    return Session(path, lock)


def sessions_of(data_dir: str) -> str:
    """Where the sessions of a node begun by `lattica start` lie."""
    return os.path.join(data_dir, "sessions")


def embedded_sessions(environ: Mapping[str, str] = os.environ) -> str:
    """Where the sessions of embedded nodes of this user lie."""
    return os.path.join(temporary_dir(environ), "sessions")


def spill_folder(given: str, session_dir: str, data_dir: str) -> str:
    """Where a node makes its folder of spilled objects. given: by the user; data_dir: "" of an embedded node."""
    own = f"lattica-spill-{os.geteuid()}"
    if given:
        return os.path.join(os.path.abspath(given), own)
    usual = os.path.join(data_dir or session_dir, "spill")
    return os.path.join(VAR_TMP, own) if in_memory(os.path.dirname(usual)) and not in_memory(VAR_TMP) else usual


def in_memory(path: str) -> bool:
    """Whether a folder lies in memory (tmpfs): what is spilled there has gone nowhere."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            mounts = [line.split(b" ") for line in file]
    except OSError:
        return False
    here, found = os.fsencode(os.path.realpath(path)), (b"", b"")
    for mount in mounts:
        place, kind = mount[4], mount[mount.index(b"-") + 1]
        inside = here == place or here.startswith(place.rstrip(b"/") + b"/")
        if inside and len(place) >= len(found[0]):
            found = place, kind
    return found[1] in (b"tmpfs", b"ramfs")


def sweep_embedded() -> None:
    """Delete what killed nodes and drivers have left among the sessions of embedded nodes."""
    parent = embedded_sessions()
    if os.path.isdir(parent):
        _sweep(parent, 0)


def sweep(parent: str) -> None:
    """Delete the folders in `parent`, if it is there, that no living node holds."""
    if os.path.isdir(parent):
        _sweep(parent, 0)


def _sweep(parent: str, keep: int) -> None:
    dead = list(_dead_sessions(parent))
    for path, _ in dead[: max(len(dead) - keep, 0)]:
        _remove_tree(path)
    for _, lock in dead:
        os.close(lock)


def _dead_sessions(parent: str) -> Iterator[tuple[str, int]]:
    """(path, our lock on it) of every session folder that no living node holds, the oldest first."""
    with os.scandir(parent) as entries:
        ours = [
            entry
            for entry in entries
            if re.fullmatch(r"\d+-\d+", entry.name)
            and entry.is_dir(follow_symlinks=False)
            and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
        ]
    for entry in sorted(ours, key=lambda entry: entry.name):
        try:
            lock = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # another node sweeps too
        if _try_lock(lock):
            yield entry.path, lock
        else:
            os.close(lock)


def _remove_tree(path: str) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)
