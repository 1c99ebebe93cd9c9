"""From options to a running node and to its clean end."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import sys
import tempfile

import uvloop

from lattica.node.server import Node, Settings
from lattica.scheduler.resources import parse_request


class Printed:
    def feed(self, client: int, stream: int, data: bytes) -> None:
        os.write(2, data)

    def finish(self, client: int) -> str:
        return ""


def run(options: dict[str, str], paths: str, zygote: tuple[int, int]) -> None:
    """Serve until the driver or a signal ends it."""
    cpus = float(options.get("--num-cpus") or os.cpu_count() or 1)
    resources = parse_request(num_cpus=cpus, resources=json.loads(options.get("--resources", "{}")))
    session_dir = tempfile.mkdtemp(prefix="lattica-")
    arena_bytes = int(options.get("--object-store-memory") or 1 << 30)
    arena_fd = os.memfd_create("lattica-arena", os.MFD_CLOEXEC)
    os.ftruncate(arena_fd, arena_bytes)
    loop = uvloop.new_event_loop()
    logging.basicConfig(level=logging.INFO)
    node = Node(loop, Settings(os.urandom(16), session_dir, resources, True, paths), Printed(), arena_fd, arena_bytes)
    node.workers.zygotes.adopt(sys.executable, *zygote)
    node.accept(socket.socket(fileno=int(options["--attach-fd"])))
    loop.run_forever()
    shutil.rmtree(session_dir, ignore_errors=True)
