"""Which nodes of this user run on this machine, for commands and programs that name none.

    <folder of sockets>/NAME.sock    where the node listens          NAME.json    a NodeFile

The folder is open to this user alone (0700) and tasks of nodes with a key do not see it, so no task of theirs plays a
node. What a killed node has left is known by its process's time of birth.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace

from lattica.errors import ConfigError
from lattica.files import remove
from lattica.node import paths
from lattica.node.paths import NodeFile

ENTRY, SOCKET = ".json", ".sock"


def embedded_socket(session: str, environ: Mapping[str, str] = os.environ) -> str:
    """Where the node of this session folder listens for commands. Raises ConfigError where there is no place for it, as
    in a task of a node with a key."""
    name = os.path.basename(session) + SOCKET
    for folder in (paths.runtime_dir, paths.temporary_sockets):
        path = os.path.join(folder(environ), name)
        if len(os.fsencode(path)) <= paths.SOCKET_PATH_MAX_BYTES:
            return path
    raise ConfigError(
        f"the path of a socket in {os.path.dirname(path)} is too long", do_next="set TMPDIR to a short one"
    )


def announce(node: NodeFile) -> None:
    """Say that this node runs; it listens already."""
    import json

    entry = _entry(node.socket)
    draft = f"{entry}.new"
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
        file.write(json.dumps(asdict(node)))
    os.replace(draft, entry)  # needs no fsync: it is worth nothing after a crash of the machine


def retract(socket: str) -> None:
    """The node that listened there has ended."""
    remove(_entry(socket))


def running_nodes(environ: Mapping[str, str] = os.environ) -> list[NodeFile]:
    """The nodes that run, the oldest first. Removes what killed embedded ones have left."""
    found = []
    for entry in _entries(environ):
        node = paths.read_node(entry)
        socket = entry.removesuffix(ENTRY) + SOCKET
        if node is None or os.path.basename(node.socket) != os.path.basename(socket):
            continue
        if paths.is_running(node):
            found.append(replace(node, socket=socket))
        elif node.embedded:  # of another the next node has the same names
            remove(socket)
            remove(entry)
    return sorted(found, key=lambda node: node.since)


def embedded_on(folder: str, environ: Mapping[str, str] = os.environ) -> NodeFile | None:
    """The node that a program has begun for itself and whose session lies there."""
    return next((node for node in running_nodes(environ) if node.embedded and _is_same(node.data_dir, folder)), None)


def _is_same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def node_elsewhere(place: str, *, named: bool) -> NodeFile:
    """The only node of this user that programs attach to, where none runs on the data directory `place`.

    named: that one is meant, and no other. Raises ConfigError if there is none, or several.
    """
    nodes = running_nodes()
    shared = [node for node in nodes if not node.embedded]
    if len(shared) == 1 and not named:
        return shared[0]
    start = "start one with `lattica start`, or leave address out"
    if len(shared) > 1 and not named:
        places = ", ".join(node.data_dir for node in shared)
        raise ConfigError(
            f"{len(shared)} nodes of yours run on this machine, in {places}",
            do_next=f"say which: address=… or {paths.DATA_DIR_VARIABLE}",
        )
    own = [node for node in nodes if node.embedded and (not named or _is_same(node.data_dir, place))]
    if not own:
        raise ConfigError(f"no node runs on this machine ({place})", do_next=start)
    raise ConfigError(
        f"the node of the program with pid {own[-1].driver} belongs to it alone, and ends with it; no other runs",
        do_next=start,
    )


def _entry(socket: str) -> str:
    return socket.removesuffix(SOCKET) + ENTRY


def _entries(environ: Mapping[str, str]) -> Iterator[str]:
    for folder in paths.socket_folders(environ):
        try:
            with os.scandir(folder) as files:
                names = [file.name for file in files if file.name.endswith(ENTRY) and _is_ours(file)]
        except OSError:
            continue  # hidden from us, or gone
        yield from (os.path.join(folder, name) for name in sorted(names))


def _is_ours(file: os.DirEntry[str]) -> bool:
    found = file.stat(follow_symlinks=False)
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & paths.OTHERS
