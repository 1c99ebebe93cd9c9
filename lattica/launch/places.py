"""Where the nodes of a local cluster live, and which of these data directories are the cluster's.

    <data directory>                                 node-0: where `lattica submit`, `status` and init() look by default
    $XDG_DATA_HOME/lattica/clusters/<name>/node-1    all others; and node-0, if the place above is another cluster's,
                                                     else a link to it
        cluster.json                                 {"cluster", "host", "made", "port"}: who made the folder

    the data directory has ...                       `up`                          `down`       `down --purge`
    nothing                                          makes it, and it is ours      stops it     deletes it
    a node of yours, which does not run              starts it                     stops it     leaves it
    a node of yours, which runs                      takes it; the others join it  leaves it    leaves it
    another cluster's cluster.json                   puts node-0 beside node-1     stops ours   deletes ours

The port is kept, since members look for each other where they last were.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from lattica.errors import ConfigError
from lattica.files import remove, write_private
from lattica.launch.cluster import Cluster, Host, Start
from lattica.node import paths
from lattica.node.memory_readings import STORE_SHARE

MARK_FILE = "cluster.json"
MARK_BYTES_MAX = 4096
FIRST = "node-0"
LISTEN_HOST = "127.0.0.1"
KEPT = ("clusters", "lock")
"""In the usual data directory lie the folders of all clusters; and its lock, by which nobody starts there meanwhile."""


@dataclass(frozen=True, slots=True)
class Mark:
    """`cluster.json`. made: `up` made the folder, so `down --purge` may delete it. port: 0 until one was chosen."""

    cluster: str
    host: str
    made: bool
    port: int = 0


def folder_of(cluster: str, environ: Mapping[str, str] = os.environ) -> str:
    """The folder of a cluster's data directories, in the usual one: tasks of all nodes are kept out of it."""
    usual = paths.data_dir(None, {name: environ[name] for name in environ if name != paths.DATA_DIR_VARIABLE})
    return os.path.join(usual, "clusters", cluster)


def placed(cluster: Cluster, environ: Mapping[str, str] = os.environ) -> tuple[Host, ...]:
    """The cluster's hosts with their data directories; nothing is made."""
    folder = folder_of(cluster.name, environ)
    return tuple(
        replace(host, data_dir=_first_place(cluster.name, environ) if host.name == FIRST else f"{folder}/{host.name}")
        for host in cluster.hosts
    )


def _first_place(cluster: str, environ: Mapping[str, str]) -> str:
    """Where it was before, whatever LATTICA_DATA_DIR says now; else where it may be."""
    own = os.path.join(folder_of(cluster, environ), FIRST)
    if owns(cluster, own):
        return os.path.realpath(own)
    default = paths.data_dir(None, environ)
    mark = read_mark(default)
    return default if mark is None or mark.cluster == cluster else own


def left_over(cluster: Cluster, hosts: tuple[Host, ...], environ: Mapping[str, str] = os.environ) -> list[Host]:
    """Nodes of this cluster on this machine that are not among `hosts`: the file once named more."""
    folder = folder_of(cluster.name, environ)
    known = {os.path.realpath(host.data_dir) for host in hosts}
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    return [
        replace(cluster.hosts[0], name=name, data_dir=os.path.join(folder, name))
        for name in names
        if os.path.realpath(os.path.join(folder, name)) not in known and owns(cluster.name, os.path.join(folder, name))
    ]


def read_mark(data_dir: str) -> Mark | None:
    """None if there is none, or none of ours."""
    try:
        with open(os.path.join(data_dir, MARK_FILE), "rb") as file:
            found = json.loads(file.read(MARK_BYTES_MAX))
        mark = Mark(found["cluster"], found["host"], found["made"], found["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    kinds = (str, str, bool, int)
    return mark if all(type(value) is kind for value, kind in zip(asdict(mark).values(), kinds)) else None


def owns(cluster: str, data_dir: str) -> bool:
    """Whether a node of this data directory is the cluster's to stop."""
    mark = read_mark(data_dir)
    return mark is not None and mark.cluster == cluster


def claim(cluster: str, host: Host, environ: Mapping[str, str] = os.environ) -> Host:
    """Make the data directory ready for a node of this cluster: the host with the address to listen at.

    Raises ConfigError if it cannot be made, or is another cluster's by now.
    """
    mark = read_mark(host.data_dir)
    if mark is not None and mark.cluster != cluster:
        raise ConfigError(
            f"{host.data_dir} is of the cluster {mark.cluster}", do_next="try again, or give the clusters other names"
        )
    if mark is None:
        new = not os.path.isdir(paths.identity_dir(host.data_dir))
        paths.make_data_dir(host.data_dir)
        mark = Mark(cluster, host.name, made=new)
    mark = replace(mark, port=mark.port if mark.port and _is_free(mark.port) else _free_port())
    write_private(os.path.join(host.data_dir, MARK_FILE), json.dumps(asdict(mark), indent=2).encode() + b"\n")
    _link(os.path.join(folder_of(cluster, environ), host.name), host.data_dir)
    return replace(host, start=replace(host.start, listen=f"{LISTEN_HOST}:{mark.port}"))


def size_bytes(text: str) -> int:
    """Of `4GiB`, `4g`, `500MB`, `1048576`, as a cluster's file has passed it (`cluster.SIZE`)."""
    found = re.fullmatch(r"(?i)([\d.]+)\s*([kmgt]?)(i?)(b?)", text.strip())
    assert found is not None, "a size that the file's reader let through"
    base = 1000 if found[2] and found[4] and not found[3] else 1024
    return int(float(found[1]) * base ** " kmgt".index(found[2].lower() or " "))


def share(start: Start, nodes: int, total_bytes: int) -> Start:
    """What one of several nodes of this machine offers as `memory`: all of them together have what there is."""
    given = start.object_store_memory
    store_bytes = size_bytes(given) if given else int(total_bytes * STORE_SHARE)
    return start if nodes == 1 else replace(start, memory=max(total_bytes // nodes - store_bytes, 0))


def _link(path: str, data_dir: str) -> None:
    """The cluster's folder leads to all its nodes, also to one that lives elsewhere."""
    if os.path.realpath(path) == os.path.realpath(data_dir):
        return
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    try:
        if os.path.islink(path):  # to a place that is not the cluster's any more
            os.unlink(path)
        os.symlink(data_dir, path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be made: {error.strerror}", do_next="remove what is there") from error


def _is_free(port: int) -> bool:
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tcp.bind((LISTEN_HOST, port))
            udp.bind((LISTEN_HOST, port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    """One that nobody has this moment. Another may be faster, and then the node says so."""
    with socket.socket() as sock:
        sock.bind((LISTEN_HOST, 0))
        return int(sock.getsockname()[1])


def purge(cluster: str, data_dir: str) -> bool:
    """Delete the data directory if `up` made it for this cluster; else only what says that it is the cluster's.

    Whether it was deleted. Raises ConfigError if a node runs there.
    """
    mark = read_mark(data_dir)
    if mark is None or mark.cluster != cluster:
        return False
    lock = paths.lock_data_dir(data_dir)
    try:
        if not mark.made:
            remove(os.path.join(data_dir, MARK_FILE))
            return False
        for name in _contents(data_dir):
            path = os.path.join(data_dir, name)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                remove(path)
        remove(os.path.join(data_dir, "lock"))
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be deleted: {error.strerror}") from error
    finally:
        os.close(lock)
    _remove_if_empty(data_dir)
    return True


def tidy(cluster: str, environ: Mapping[str, str] = os.environ) -> None:
    """Remove the cluster's folder, if no node is left in it; and those above it that only clusters had."""
    folder = folder_of(cluster, environ)
    first = os.path.join(folder, FIRST)
    if os.path.islink(first) and not owns(cluster, first):
        remove(first)
    for place in (folder, os.path.dirname(folder), os.path.dirname(os.path.dirname(folder))):
        _remove_if_empty(place)


def _contents(data_dir: str) -> Iterator[str]:
    """What is a node's; the mark comes last, so that a purge that was cut off can go on."""
    names = [name for name in os.listdir(data_dir) if name not in (*KEPT, MARK_FILE)]
    yield from (*names, MARK_FILE)


def _remove_if_empty(folder: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(folder)
