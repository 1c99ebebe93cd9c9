"""What a node counts, for Prometheus: plain text over HTTP/1.1 at a port of this machine.

Only numbers and names of resources: no names of actors, scripts or peers. Whoever reaches the port may read them, so it
is the loopback's unless the user names another address.
Source: https://prometheus.io/docs/instrumenting/exposition_formats/ (text format 0.0.4)
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable
from time import process_time, time
from typing import TYPE_CHECKING

from lattica._version import __version__
from lattica.errors import ConfigError

if TYPE_CHECKING:
    from lattica.node.server import Node

log = logging.getLogger(__name__)
HOST = "127.0.0.1"
HEAD_MAX_BYTES = 8 << 10  # of a request
READ_S = 5.0
CONNECTIONS_MAX = 16  # at once; a scraper needs one
TYPE = "text/plain; version=0.0.4; charset=utf-8"
Sample = tuple[dict[str, str], float]


async def serve_metrics(node: Node, where: str) -> asyncio.Server:
    """Answer at this PORT or HOST:PORT. Raises ConfigError if it cannot be had."""
    host, _, port = where.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{where!r:.60} is no port for metrics", do_next="give a number, or HOST:PORT")
    open_now = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now
        open_now += 1
        try:
            if open_now <= CONNECTIONS_MAX:
                async with asyncio.timeout(READ_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                writer.write(respond(node, head))
                async with asyncio.timeout(READ_S):
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            open_now -= 1
            writer.close()

    try:
        server = await asyncio.start_server(answer, host.strip("[]") or HOST, int(port), limit=HEAD_MAX_BYTES)
    except OSError as error:
        raise ConfigError(
            f"metrics cannot be served at {where}: {error.strerror or error}", do_next="choose another --metrics-port"
        ) from error
    log.info("metrics at http://%s:%d/metrics", *server.sockets[0].getsockname()[:2])
    return server


def respond(node: Node, head: bytes) -> bytes:
    """The whole answer to a request with this head."""
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) != 3 or words[0] not in (b"GET", b"HEAD"):
        return _response("405 Method Not Allowed", "only GET is answered\n")
    if words[1].partition(b"?")[0] not in (b"/metrics", b"/"):
        return _response("404 Not Found", "metrics are at /metrics\n")
    whole = _response("200 OK", text(node))
    return whole if words[0] == b"GET" else whole.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


def _response(status: str, body: str) -> bytes:
    data = body.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: {TYPE}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    return head.encode() + data


def text(node: Node) -> str:
    """All metrics as they are now."""
    lines: list[str] = []
    for name, kind, about, samples in _metrics(node):
        lines += [f"# HELP lattica_{name} {about}", f"# TYPE lattica_{name} {kind}"]
        lines += [f"lattica_{name}{_labels(labels)} {value:.17g}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def _labels(labels: dict[str, str]) -> str:
    escaped = (
        f'{name}="{value.translate({92: chr(92) * 2, 34: chr(92) + chr(34), 10: chr(92) + "n"})}"'
        for name, value in labels.items()
    )
    return "{" + ",".join(escaped) + "}" if labels else ""


def _metrics(node: Node) -> Iterable[tuple[str, str, str, list[Sample]]]:
    """(name, kind, help, samples)."""
    state = node.state
    resources, memory, workers = state.resources(), state.memory(), state.workers()
    yield "info", "gauge", "The release that runs.", [({"version": __version__}, 1.0)]
    yield "uptime_seconds", "gauge", "Since the node began.", [({}, time() - node.started_at)]
    yield "process_cpu_seconds_total", "counter", "Processor time of the node's own process.", [({}, process_time())]
    yield "draining", "gauge", "Whether the node takes nothing new.", [({}, float(node.draining or node.closing))]
    for which in ("total", "available"):
        samples = [({"resource": name}, float(amount)) for name, amount in resources[which].items()]
        yield f"resource_{which}", "gauge", f"Resources of this node: {which}.", samples
    states = Counter(str(worker["state"]) for worker in workers)
    yield "workers", "gauge", "Worker processes.", [({"state": name}, n) for name, n in sorted(states.items())]
    yield "worker_memory_bytes", "gauge", "Resident in workers.", [({}, float(sum(w["rss_bytes"] for w in workers)))]
    yield "leases", "gauge", "Workers that are lent to somebody.", [({}, float(len(node.book.leases)))]
    yield "requests_waiting", "gauge", "Requests for a worker that wait here.", [({}, float(node.book.waiting))]
    yield (
        "drivers",
        "gauge",
        "Jobs whose driver lives.",
        [({}, float(sum(not job.ended and not job.root for job in node.jobs.values())))],
    )
    actors = Counter(str(actor["state"]).lower() for actor in state.actors())
    yield "actors", "gauge", "Actors that this node owns.", [({"state": name}, n) for name, n in sorted(actors.items())]
    yield "objects", "gauge", "Objects that lie here.", [({}, float(memory["objects"]))]
    for name, what in (("arena", "that objects may take"), ("used", "that objects take"), ("backed", "of the machine")):
        yield f"object_store_{name}_bytes", "gauge", f"Shared memory {what}.", [({}, float(memory[f"{name}_bytes"]))]
    yield "object_store_spilled_bytes", "gauge", "Of objects on disk.", [({}, float(memory["spilled_bytes"]))]
    for name, what in (("spilled", "written to disk"), ("restored", "read back from disk")):
        total = float(memory.get(f"{name}_total_bytes", 0))
        yield f"object_store_{name}_bytes_total", "counter", f"Of objects that were {what}.", [({}, total)]
    if node.mesh is not None:
        from lattica.node.roster import counts

        peer = node.mesh.peer
        members = counts(peer.gossip.community.states().values())
        yield "members", "gauge", "Members of the mesh.", [({"state": name}, n) for name, n in members.items()]
        yield "sessions", "gauge", "Connections with members.", [({}, float(sum(1 for _ in peer.sessions.peers())))]
        yield "table_rows", "gauge", "Rows of the table.", [({}, float(len(peer.gossip.community.replica)))]
        if peer.relays is not None:
            for name, (kind, about, value) in peer.relays.numbers().items():
                yield name, kind, about, [({}, value)]
    if node.far is not None:
        yield (
            "leases_elsewhere",
            "gauge",
            "Workers of other nodes lent to us.",
            [({}, float(len(node.far.workers.leases)))],
        )
        yield "tasks_unplaced", "gauge", "Requests that look for a node.", [({}, float(len(node.far.placing.wishes)))]
