"""What a restart elsewhere will need, on the disks of several nodes: constructors' arguments, checkpoints.

    keeper ◄── Keep(content, size, offset, data), in pieces ── owner             content: the CID of the bytes
    asker ── KeptWanted(content) ──► keeper ── Keep … , or NotKept ──► asker

Everything has the name of its content, so it does not matter who sends it: what arrives is verified, then written. What
no actor's row has named for FORGET_S is deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lattica.codec import far
from lattica.mesh.identity import PeerId
from lattica.mesh.roles import Role
from lattica.objectstore.cid import cid_named, cid_text, manifest_of

if TYPE_CHECKING:
    from lattica.node.far_desk import FarDesk
    from lattica.node.far_neighbours import Neighbour

log = logging.getLogger(__name__)
CONTENT_MAX_BYTES = 8 << 20
"""Of one: what a constructor is given, or a checkpoint. Larger ones belong into the object store, under a name."""
ALL_MAX_BYTES = 1 << 30  # on this node's disk
EACH_MAX_BYTES = 512 << 20
EACH_MAX = 16_384
"""Kept here for one member, which may not fill what all share. Less: an actor that has a checkpoint of 64 KiB taken
after each of 100 calls a second has 200 MB in 3,000 contents here, until the older ones are forgotten."""
PIECE_BYTES = 256 << 10
COMING_MAX = 64  # that arrive in pieces at once
COMING_EACH_MAX = 4  # of one node, which sends one after the other
GIVES_MAX = 8  # that are read from disk for one node at once
FORGET_S = 600.0
"""After it is named by no row: the row may still be on its way to us, or a newer one be lost with its writer."""
SOON_S = 30.0  # instead of it for a checkpoint that a newer one has replaced
ASK_S = 10.0  # for a keeper to send it
CID_MAX_BYTES = 40
WORDS_MAX = 200  # of another node's, in our log


class Kept:
    """See the module."""

    def __init__(self, desk: FarDesk, folder: str) -> None:
        self._desk, self.folder = desk, folder
        self._loop = asyncio.get_running_loop()
        self._sizes: dict[str, int] = {}  # file -> bytes
        self._for: dict[str, PeerId] = {}  # file -> the member that had it kept, in this run of the node
        self._counts: dict[PeerId, tuple[int, int]] = {}  # of those: how many, bytes
        self._unwritten: dict[bytes, bytes] = {}  # until they are on disk
        self._coming: dict[tuple[PeerId, bytes], bytearray] = {}
        self._asked: dict[bytes, tuple[PeerId, asyncio.Future[bytes | None]]] = {}
        self._giving: dict[PeerId, int] = {}  # how many are being read for it
        self._unnamed: dict[str, float] = {}  # file -> since when no row has named it
        self._writes: set[asyncio.Future[None]] = set()
        os.makedirs(folder, mode=0o700, exist_ok=True)
        for entry in os.scandir(folder):
            if entry.name.endswith(".new"):
                os.unlink(entry.path)
            else:
                self._sizes[entry.name] = entry.stat().st_size

    def __repr__(self) -> str:
        return f"<Kept: {len(self._sizes)} contents, {sum(self._sizes.values())} bytes>"

    # -- here

    def put(self, data: bytes) -> bytes:
        """Keep it here. Its CID, binary."""
        content = cid_named(manifest_of(data))
        name = cid_text(content)
        if name not in self._sizes:
            self._sizes[name] = len(data)
            self._unwritten[content] = data
            done = self._loop.run_in_executor(None, self._write, name, data)
            self._writes.add(done)
            done.add_done_callback(lambda future: self._written(content, future))
        return content

    def _write(self, name: str, data: bytes) -> None:
        path = os.path.join(self.folder, name)
        with open(f"{path}.new", "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.new", path)

    def _written(self, content: bytes, done: asyncio.Future[None]) -> None:
        self._writes.discard(done)
        self._unwritten.pop(content, None)
        if not done.cancelled() and (error := done.exception()) is not None:
            log.warning("what a restart needs cannot be kept on disk: %s", error)
            self._sizes.pop(cid_text(content), None)

    async def _read(self, content: bytes) -> bytes | None:
        if (data := self._unwritten.get(content)) is not None:
            return data
        name = cid_text(content)
        if name not in self._sizes:
            return None
        path = os.path.join(self.folder, name)
        try:
            data = await self._loop.run_in_executor(None, _file, path)
        except OSError as error:
            log.warning("what a restart needs cannot be read: %s", error)
            return None
        return data if cid_named(manifest_of(data)) == content else None

    def forget_soon(self, content: bytes) -> None:
        """A newer checkpoint has taken its place: in SOON_S nobody asks for it any more."""
        self._unnamed[cid_text(content)] = self._loop.time() - FORGET_S + SOON_S
        self._loop.call_later(SOON_S + 1.0, self._sweep_unnamed)

    def stays(self, content: bytes) -> None:
        """Something names it again."""
        self._unnamed.pop(cid_text(content), None)

    def sweep(self, named: Iterable[bytes]) -> None:
        """named: what actors' rows name now. The rest is deleted, some time later."""
        now, names = self._loop.time(), {cid_text(content) for content in named}
        self._unnamed = {name: self._unnamed.get(name, now) for name in self._sizes if name not in names}
        self._sweep_unnamed()

    def _sweep_unnamed(self) -> None:
        now = self._loop.time()
        for name in [name for name, since in self._unnamed.items() if now - since > FORGET_S]:
            self._count(name, -1)
            self._sizes.pop(name, None)
            self._for.pop(name, None)
            del self._unnamed[name]
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self.folder, name))

    def size(self, content: bytes) -> int:
        """Of what is kept here; 0 for what is not."""
        return self._sizes.get(cid_text(content), 0) if content else 0

    # -- elsewhere

    async def get(self, content: bytes, keepers: Iterable[PeerId]) -> bytes | None:
        """It, from here or from the first of these nodes that has it; None if none has."""
        data = await self._read(content)
        for peer in keepers:
            if data is not None:
                break
            data = await self._ask(peer, content)
        return data

    async def _ask(self, peer: PeerId, content: bytes) -> bytes | None:
        future: asyncio.Future[bytes | None] = self._loop.create_future()
        self._asked[content] = peer, future
        self._desk.neighbour(peer).link.send(far.KeptWanted(content))
        try:
            return await asyncio.wait_for(future, ASK_S)
        except TimeoutError:
            return None
        finally:
            self._asked.pop(content, None)

    async def spread(self, content: bytes, peers: Iterable[PeerId]) -> None:
        """Let these nodes keep it too."""
        data = await self._read(content)
        for peer in peers if data is not None else ():
            assert data is not None
            self._send(self._desk.neighbour(peer), content, data)

    def _send(self, neighbour: Neighbour, content: bytes, data: bytes) -> None:
        for offset in range(0, max(len(data), 1), PIECE_BYTES):
            piece = data[offset : offset + PIECE_BYTES]
            neighbour.link.send(far.Keep(content, len(data), offset, piece), len(piece))

    # -- what other nodes say

    def keep(self, neighbour: Neighbour, message: far.Keep) -> None:
        """A piece of something has come."""
        key, content = (neighbour.peer, message.content), message.content
        wanted = self._asked.get(content, (None,))[0] == neighbour.peer
        if not wanted and Role.SUBMIT not in self._desk.roles_of(neighbour.peer):
            return
        size_holds = 0 <= message.size <= CONTENT_MAX_BYTES and len(content) <= CID_MAX_BYTES
        if not size_holds:
            log.warning("%s wants %d bytes kept, more than may be", neighbour.client.name, message.size)
            return
        if not wanted and not message.offset and (full := self._full(neighbour.peer, message.size)):
            log.warning("%s wants %d bytes kept: %s", neighbour.client.name, message.size, full)
            neighbour.link.send(far.NotKept(content, full))
            return
        if not message.offset:
            of_theirs = sum(peer == neighbour.peer for peer, _ in self._coming)
            if key not in self._coming and (len(self._coming) >= COMING_MAX or of_theirs >= COMING_EACH_MAX):
                return
            self._coming[key] = bytearray()
        coming = self._coming.get(key)
        if coming is None or len(coming) != message.offset or len(coming) + len(message.data) > message.size:
            self._coming.pop(key, None)
            return
        coming += message.data
        if len(coming) < message.size:
            return
        del self._coming[key]
        data = bytes(coming)
        if cid_named(manifest_of(data)) != content:
            log.warning("%s sent something else than it said", neighbour.client.name)
            return
        name = cid_text(content)
        if wanted or name in self._sizes:
            self.put(data)
        elif not self._full(neighbour.peer, len(data)):  # others may have come meanwhile
            self.put(data)
            self._for[name] = neighbour.peer
            self._count(name, 1)
        if wanted:
            self._settle(content, data)

    def _full(self, peer: PeerId, size: int) -> str:
        """Why this node keeps no more for that one; "" if it does."""
        if sum(self._sizes.values()) + size > ALL_MAX_BYTES:
            return f"this node keeps {ALL_MAX_BYTES >> 20} MiB for restarts, and not more"
        contents, in_all = self._counts.get(peer, (0, 0))
        if contents >= EACH_MAX or in_all + size > EACH_MAX_BYTES:
            return f"this node keeps {in_all >> 20} MiB in {contents} contents for you already"
        return ""

    def _count(self, name: str, sign: int) -> None:
        peer = self._for.get(name)
        if peer is not None:
            contents, in_all = self._counts.get(peer, (0, 0))
            self._counts[peer] = contents + sign, in_all + sign * self._sizes.get(name, 0)
            if not self._counts[peer][0]:
                del self._counts[peer]

    def wanted(self, neighbour: Neighbour, message: far.KeptWanted) -> None:
        """They need something that we may keep. Rows tell everybody its name; only who restarts actors needs it."""
        allowed = Role.SUBMIT in self._desk.roles_of(neighbour.peer) and len(message.content) <= CID_MAX_BYTES
        if not allowed or neighbour.link.crowded or self._giving.get(neighbour.peer, 0) >= GIVES_MAX:
            neighbour.link.send(far.NotKept(message.content))
            return
        self._giving[neighbour.peer] = self._giving.get(neighbour.peer, 0) + 1
        task = self._loop.create_task(self._give(neighbour, message.content))
        self._desk.detached.tasks.add(task)
        task.add_done_callback(self._desk.detached.tasks.discard)

    async def _give(self, neighbour: Neighbour, content: bytes) -> None:
        try:
            data = await self._read(content)
        finally:
            self._giving[neighbour.peer] -= 1
            if not self._giving[neighbour.peer]:
                del self._giving[neighbour.peer]
        if data is None:
            neighbour.link.send(far.NotKept(content))
        else:
            self._send(neighbour, content, data)

    def not_kept(self, neighbour: Neighbour, message: far.NotKept) -> None:
        """They do not have it, or do not keep it."""
        if message.reason:
            log.warning("%s does not keep what a restart needs: %s", neighbour.client.name, message.reason[:WORDS_MAX])
        if self._asked.get(message.content, (None,))[0] == neighbour.peer:
            self._settle(message.content, None)

    def parted(self, neighbour: Neighbour) -> None:
        """A node is gone."""
        for key in [key for key in self._coming if key[0] == neighbour.peer]:
            del self._coming[key]
        for content in [content for content, (peer, _) in self._asked.items() if peer == neighbour.peer]:
            self._settle(content, None)

    def _settle(self, content: bytes, data: bytes | None) -> None:
        _, future = self._asked[content]
        if not future.done():
            future.set_result(data)


def _file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
