"""Packages between nodes: whoever runs a job fetches what its script needs from whoever keeps it.

    packages.read(cid, offset)     a piece of a package that this node keeps

Files are unpacked in a folder of the node's own among the sessions of embedded nodes, which tasks see, and which is
deleted at the node's end, or by the next session when it was killed. Of what no job uses any more the latest stay.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from time import time_ns
from typing import TYPE_CHECKING

from lattica.errors import ConfigError, LatticaError, ObjectLostError, RemoteProtocolError
from lattica.mesh.identity import PeerId, short_peer
from lattica.mesh.roles import Role
from lattica.mesh.services import method, service
from lattica.node import paths
from lattica.node.packages import PACKED_MAX_BYTES, Packed, Shelf, unpack
from lattica.objectstore.cid import cid_of

if TYPE_CHECKING:
    from lattica.mesh.peer import Peer

log = logging.getLogger(__name__)
PIECE_BYTES = 2 << 20
PIECE_S = 20.0  # for a piece: at 1 Mbit/s
READERS = Role.EXECUTE | Role.SUBMIT
FETCHES_AT_ONCE = 4  # each has up to 120 MiB in memory until its bytes are compared with its name
UNUSED_MAX = 8
"""Folders of jobs that are over: the next run of a script often needs the same, and each may have 100 MiB."""


@service("packages")
class PackageService:
    """See the module."""

    def __init__(self, desk: PackageDesk) -> None:
        self._desk = desk

    @method(role=READERS, idempotent=True, limit=8)
    async def read(self, cid: str, offset: int) -> bytes:
        """At most PIECE_BYTES from there on; nothing at its end. Raises ObjectLostError."""
        return await self._desk.piece(cid, offset)


class PackageDesk:
    """What this node keeps and unpacks."""

    def __init__(
        self,
        peer: Peer,
        folder: str,
        wanted: Callable[[], Iterable[str]] = tuple,
        others: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        """folder: of the shelf. wanted: packages that must not go. others: folders of drivers with packages."""
        self.peer, self.shelf = peer, Shelf(folder)
        self._wanted, self._others = wanted, others
        self._session: paths.Session | None = None
        self._last: tuple[str, bytes] = "", b""  # of which pieces are asked for just now
        self._coming: dict[str, asyncio.Future[bytes]] = {}
        self._gate = asyncio.Semaphore(FETCHES_AT_ONCE)
        self._unpacked: dict[str, int] = {}  # name -> jobs that use it; the latest that was let go last
        self._deleting: set[asyncio.Future[None]] = set()
        peer.serve(PackageService(self), offered=False)

    def __repr__(self) -> str:
        return f"<PackageDesk: {self.shelf!r}, {len(self._coming)} on their way>"

    def close(self) -> None:
        """The node ends."""
        if self._session is not None:
            self._session.close(remove=True)
            self._session = None
        paths.sweep_embedded()

    async def piece(self, cid: str, offset: int) -> bytes:
        """For another node."""
        if self._last[0] != cid:
            self._last = cid, await asyncio.to_thread(_demand, cid, [self.shelf, *map(Shelf, set(self._others()))])
        data = self._last[1]
        if offset + PIECE_BYTES >= len(data):
            self._last = "", b""
        return data[max(offset, 0) : offset + PIECE_BYTES]

    async def local(self, cid: str) -> bytes:
        """Its bytes, if this node or a driver here keeps them. Raises ObjectLostError."""
        return await asyncio.to_thread(_demand, cid, [self.shelf, *map(Shelf, set(self._others()))])

    async def put(self, cid: str, data: bytes) -> None:
        """Keep it here, from whoever had it."""
        await asyncio.to_thread(self.shelf.put, Packed(cid, data), list(self._wanted()))

    async def bring(self, cid: str, holders: Sequence[PeerId]) -> bytes:
        """Its bytes, from here or from one of these. Raises ObjectLostError."""
        data = await asyncio.to_thread(self.shelf.get, cid)
        if data is not None:
            return data
        if cid not in self._coming:
            coming = self._coming[cid] = asyncio.ensure_future(self._fetch(cid, holders))
            coming.add_done_callback(lambda _: self._coming.pop(cid, None))
        return await asyncio.shield(self._coming[cid])

    async def _fetch(self, cid: str, holders: Sequence[PeerId]) -> bytes:
        troubles = []
        for holder in holders:
            if holder == self.peer.id:
                continue
            try:
                async with self._gate:
                    data = await self._read(cid, holder)
            except (LatticaError, TimeoutError) as error:
                troubles.append(f"{short_peer(holder)}: {str(error).partition(chr(10))[0] or 'it did not answer'}")
                continue
            await asyncio.to_thread(self.shelf.put, Packed(cid, data), list(self._wanted()))
            return data
        raise ObjectLostError(
            f"package {cid[:16]} is to be had from nobody" + (f" ({'; '.join(troubles)})" if troubles else ""),
            do_next="submit the job again from where its files are",
        )

    async def _read(self, cid: str, holder: PeerId) -> bytes:
        data = bytearray()
        while True:
            piece = await self.peer.call(holder, "packages.read", cid, len(data), timeout_s=PIECE_S, idempotent=True)
            if not isinstance(piece, bytes | bytearray | memoryview) or len(data) + len(piece) > PACKED_MAX_BYTES:
                raise RemoteProtocolError(f"{short_peer(holder)} sent something else than package {cid[:16]}")
            data += piece
            if len(piece) < PIECE_BYTES:
                break
        whole = bytes(data)
        if await asyncio.to_thread(cid_of, whole) != cid:
            raise RemoteProtocolError(f"{short_peer(holder)} sent other bytes than package {cid[:16]}")
        return whole

    async def unpacked(self, cid: str, holders: Sequence[PeerId], name: str) -> str:
        """A folder of this name with the package's files, as it is, if it is there already. Let it go by `release`."""
        place = os.path.join(self._folder(), name)
        if name not in self._unpacked:
            data = await self.bring(cid, holders)
            await asyncio.to_thread(_unpack, data, place)
        self._unpacked[name] = self._unpacked.get(name, 0) + 1
        return place

    def place_of(self, name: str) -> str:
        """The folder of this name; "" if it is not there, or not any more."""
        return os.path.join(self._folder(), name) if name in self._unpacked else ""

    def release(self, name: str) -> None:
        """One job less uses it."""
        if name not in self._unpacked or self._session is None:
            return
        self._unpacked[name] = self._unpacked.pop(name) - 1
        unused = [name for name, users in self._unpacked.items() if users <= 0]
        for old in unused[: max(len(unused) - UNUSED_MAX, 0)]:
            del self._unpacked[old]
            place, doomed = os.path.join(self._folder(), old), os.path.join(self._folder(), f"{old}.{time_ns()}.old")
            with suppress(OSError):
                os.rename(place, doomed)  # at once: it may be unpacked again
            task = asyncio.ensure_future(asyncio.to_thread(_remove, doomed))
            self._deleting.add(task)
            task.add_done_callback(self._deleting.discard)

    def _folder(self) -> str:
        if self._session is None:
            self._session = paths.open_session(paths.embedded_sessions(), keep=0)
        return self._session.path


def _demand(cid: str, shelves: Sequence[Shelf]) -> bytes:
    for shelf in shelves:
        if (data := shelf.get(cid)) is not None:
            return data
    raise ObjectLostError(f"package {cid[:16]} is not on this node")


def _remove(place: str) -> None:
    import shutil

    shutil.rmtree(place, ignore_errors=True)


def _unpack(data: bytes, place: str) -> None:
    """The folder is whole as soon as it is there; another may be faster."""
    draft = f"{place}.{os.urandom(4).hex()}.new"
    try:
        unpack(data, draft)
        os.rename(draft, place)
    except OSError as error:
        if not os.path.isdir(place):
            raise ConfigError(f"{place} cannot be made: {error.strerror}") from error
    finally:
        _remove(draft)
