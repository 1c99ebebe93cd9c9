"""What a restart elsewhere will need, on the disks of several nodes: constructors' arguments, checkpoints.

    owner ── Keep(content, size, 0, the first piece) ──► keeper     an offer. content: the CID of the bytes
    keeper ── KeptWanted(content, offset) ──► owner                 for each window of the rest, as it writes
    owner ── Keep(content, size, offset, a piece) … ──► keeper
    keeper ── Kept(content) ──► owner                               it is whole, verified and on disk; or NotKept
    asker ── KeptWanted(content, 0) ──► keeper ── Keep … ──► asker      after a death; or NotKept
    owner ── Unkeep(content) ──► keeper                             there is a newer one

Everything has the name of its content, so it does not matter who sends it: what arrives is verified before it is there.
Who receives asks for each window, so nobody is sent more than it writes, and a link is never full of it. What no
actor's row has named for FORGET_S, nor anybody has offered again, is deleted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from lattica.codec import far
from lattica.mesh.identity import PeerId
from lattica.mesh.roles import Role
from lattica.node.contents import Contents, Draft
from lattica.objectstore.cid import cid_named, cid_text, manifest_of

if TYPE_CHECKING:
    from lattica.node.far_desk import FarDesk
    from lattica.node.far_neighbours import Neighbour
    from lattica.node.loop import Timer

log = logging.getLogger(__name__)
CONTENT_MAX_BYTES = 256 << 20
"""Of one: a learner of 64 million float32. Larger ones belong into the object store, under a name."""
ALL_MAX_BYTES = 8 << 30  # on this node's disk, for other members
EACH_MAX_BYTES = 2 << 30
EACH_MAX = 16_384
"""Kept here for one member, which may not fill what all share. Less: an actor that has a checkpoint of 256 MiB taken
every ten seconds has five here, until the older ones are forgotten; one of 64 KiB after each of 100 calls a second has
3,000."""
PIECE_BYTES = 256 << 10
WINDOW_BYTES = 1 << 20
"""Asked for at once. Less: 50 ms of way allow 5 MB/s; more: others wait longer on a slow link, 0.8 s at 10 Mbit/s."""
COMING_MAX = 64  # that arrive in pieces at once
COMING_EACH_MAX = 4  # of one node
GIVES_MAX = 8  # windows that are read from disk for one node at once
FORGET_S = 600.0
"""After it is named by no row: the row may still be on its way to us, or a newer one be lost with its writer."""
SOON_S = 30.0  # instead of it for a checkpoint that a newer one has replaced
SWEEP_S = 5.0  # at the most often
ASK_S = 10.0  # of silence, of one from whom a piece, or the word that all of it is kept, is to come
CROWDED_S = 5.0  # for a link that is full to have room again
LOOK_S = 0.05
CID_MAX_BYTES = 40
WORDS_MAX = 200  # of another node's, in our log


class Coming:
    """One content on its way here, from one node. size: -1 until the first piece has come."""

    def __init__(self, size: int = -1, first: bytes = b"") -> None:
        self.size, self.have, self.limit = size, len(first), len(first)
        self.pieces = [first] if first else []
        self.failed = ""
        self.heard = asyncio.Event()
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing."""
        return self.have == self.size

    def take(self, message: far.Keep) -> None:
        """A piece: the next one, or it is all over."""
        size = message.size if self.size < 0 else self.size
        end = self.have + len(message.data)
        fits = (
            message.size == size <= CONTENT_MAX_BYTES and message.offset == self.have and end <= min(size, self.limit)
        )
        if not fits or not (message.data or size == 0):
            self.fail("it sent something else than was asked for")
            return
        self.size, self.have = size, end
        self.pieces.append(message.data)
        self.heard.set()

    def fail(self, why: str) -> None:
        """No more of it will come."""
        self.failed = self.failed or why
        self.heard.set()


class Offer:
    """What some nodes were asked to keep, and how they answer."""

    def __init__(self, content: bytes, peers: Iterable[PeerId]) -> None:
        self.content, self.peers = content, frozenset(peers)
        self.silent, self.keep = set(self.peers), set[PeerId]()
        self.heard = asyncio.Event()


class Kept:
    """See the module. `named`: what actors' rows, and actors of this node, name now."""

    def __init__(self, desk: FarDesk, folder: str) -> None:
        self._desk, self.folder = desk, folder
        self._loop = asyncio.get_running_loop()
        self.disk = Contents(folder)
        self.named: Callable[[], Iterable[bytes]] = tuple
        self._for: dict[str, PeerId] = {}  # file -> the member that had it kept, in this run of the node
        self._counts: dict[PeerId, tuple[int, int]] = {}  # of those: how many, bytes
        self._coming: dict[tuple[PeerId, bytes], Coming] = {}
        self._offered: dict[tuple[PeerId, bytes], int] = {}  # those of them that others want kept: bytes
        self._offers: list[Offer] = []
        self._may_have: set[tuple[PeerId, bytes]] = set()  # besides those that may submit
        self._giving: dict[PeerId, int] = {}  # how many windows are being read for it
        self._unnamed: dict[str, float] = {}  # file that no row names -> when it is deleted
        self._sweeping: Timer | None = None
        self._sweep_at = 0.0
        self._tasks: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"<Kept: {self.disk!r}, {len(self._coming)} on their way>"

    def close(self) -> None:
        """The node ends."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for task in list(self._tasks):
            task.cancel()

    # -- here

    def put(self, data: bytes) -> bytes:
        """Keep it here. Its CID, binary."""
        return self.disk.put(data)

    def forget_soon(self, content: bytes, after_s: float = SOON_S) -> None:
        """A newer checkpoint has taken its place: soon nobody asks for it any more."""
        name, at = cid_text(content), self._loop.time() + after_s
        if name in self.disk.sizes:
            self._unnamed[name] = min(self._unnamed.get(name, at), at)
            self._sweep_later()

    def stays(self, content: bytes) -> None:
        """Something names it again."""
        self._unnamed.pop(cid_text(content), None)

    def sweep(self) -> None:
        """What nothing names any more is deleted, some time later."""
        now, names = self._loop.time(), {cid_text(content) for content in self.named()}
        for name in self.disk.sizes:
            if name not in names:
                self._unnamed.setdefault(name, now + FORGET_S)
        for name in names & self._unnamed.keys():
            del self._unnamed[name]
        for name in [name for name, at in self._unnamed.items() if at <= now or name not in self.disk.sizes]:
            self._count(name, -1)
            self._for.pop(name, None)
            del self._unnamed[name]
            self.disk.forget(name)
        self._sweep_later()

    def _sweep_later(self) -> None:
        if not self._unnamed:
            return
        at = max(min(self._unnamed.values()), self._loop.time() + SWEEP_S)
        if self._sweeping is not None:
            if self._sweep_at <= at:
                return
            self._sweeping.cancel()
        self._sweep_at, self._sweeping = at, self._loop.call_at(at, self._sweep_now)

    def _sweep_now(self) -> None:
        self._sweeping = None
        self.sweep()

    def size(self, content: bytes) -> int:
        """Of what is kept here; 0 for what is not."""
        return self.disk.size(content)

    # -- elsewhere

    async def get(self, content: bytes, keepers: Iterable[PeerId]) -> bytes | None:
        """It, from here or from the first of these nodes that has it; None if none has. Of small ones."""
        data = await self.disk.read(content)
        for peer in keepers:
            if data is not None:
                break
            if await self._ask(peer, content):
                data = await self.disk.read(content)
        return data

    async def bring(self, content: bytes, keepers: Iterable[PeerId]) -> bool:
        """Have it on this disk, from the first of these nodes that has it; whether it is, undamaged."""
        if await self.disk.whole(content):
            return True
        for peer in keepers:
            if await self._ask(peer, content):
                return True
        return False

    async def _ask(self, peer: PeerId, content: bytes) -> bool:
        """Whether it has come from there."""
        key = peer, content
        if (coming := self._coming.get(key)) is None:
            coming = self._coming[key] = Coming()
            self._begin(self._pull(peer, content, coming))
        return await asyncio.shield(coming.done)

    async def spread(self, content: bytes, peers: Iterable[PeerId], enough: int = 0) -> int:
        """Let these nodes keep it too. enough: so many are waited for; how many have it on disk, as far as heard."""
        peers = list(peers)
        piece = await self.disk.piece(content, 0, PIECE_BYTES) if peers else None
        if piece is None:
            return 0
        offer, size = Offer(content, peers), self.size(content)
        self._offers.append(offer)
        try:
            for peer in peers:
                self._desk.neighbour(peer).link.send(far.Keep(content, size, 0, piece), len(piece))
            while len(offer.keep) < enough and offer.silent:
                offer.heard.clear()
                await asyncio.wait_for(offer.heard.wait(), ASK_S)
        except TimeoutError:
            pass
        finally:
            self._offers.remove(offer)
        return len(offer.keep)

    def unkeep(self, content: bytes, peers: Iterable[PeerId]) -> None:
        """These need not keep it any more, for us."""
        for peer in peers:
            self._desk.neighbour(peer).link.send(far.Unkeep(content))

    def may_have(self, peer: PeerId, content: bytes) -> None:
        """It runs an actor of ours, and will ask for this."""
        self._may_have.add((peer, content))

    # -- what other nodes say

    def keep(self, neighbour: Neighbour, message: far.Keep) -> None:
        """A piece of what we have asked for; or an offer."""
        key, content = (neighbour.peer, message.content), message.content
        coming = self._coming.get(key)
        if coming is not None:
            if message.offset or not coming.have:  # else it offers again what is on its way
                coming.take(message)
            return
        if message.offset or Role.SUBMIT not in self._desk.roles_of(neighbour.peer):
            return
        if reason := self._objection(neighbour.peer, message):
            log.warning("%s wants %d bytes kept: %s", neighbour.client.name, message.size, reason)
            neighbour.link.send(far.NotKept(content[:CID_MAX_BYTES], reason))
            return
        is_new = content not in self.disk
        if is_new and len(message.data) == message.size:
            if cid_named(manifest_of(message.data)) != content:
                log.warning("%s sent something else than it said", neighbour.client.name)
                return
            self.disk.put(message.data)
            self._is_of(cid_text(content), neighbour.peer)
        elif is_new:
            coming = self._coming[key] = Coming(message.size, message.data)
            self._offered[key] = message.size
        self._begin(self._keep_for(neighbour, content, coming))

    def _objection(self, peer: PeerId, message: far.Keep) -> str:
        """Why an offer is not taken; "" if it is."""
        if not 0 <= message.size <= CONTENT_MAX_BYTES or len(message.content) > CID_MAX_BYTES:
            return f"one content may have {CONTENT_MAX_BYTES >> 20} MiB"
        if len(message.data) > min(message.size, PIECE_BYTES):
            return "that is more than it has"
        if message.content in self.disk:
            return ""
        if len(message.data) < message.size:
            of_theirs = sum(each == peer for each, _ in self._offered)
            if len(self._coming) >= COMING_MAX or of_theirs >= COMING_EACH_MAX:
                return f"{len(self._coming)} others are on their way"
        return self._full(peer, message.size)

    async def _keep_for(self, neighbour: Neighbour, content: bytes, coming: Coming | None) -> None:
        """Have it here for another node, and say so. coming: the rest of it, unless all of it has come."""
        name, is_new = cid_text(content), coming is not None
        if coming is not None:
            here = await self._pull(neighbour.peer, content, coming)
            self._is_of(name, neighbour.peer)
        else:
            here = await self.disk.written(content)
        if here and (is_new or name in self._unnamed or self._for.get(name) == neighbour.peer):
            self._unnamed[name] = self._loop.time() + FORGET_S  # its row may come later, and for some there is none
            self._sweep_later()
        neighbour.link.send(far.Kept(content) if here else far.NotKept(content, "it cannot be written here"))

    def _is_of(self, name: str, peer: PeerId) -> None:
        if name in self.disk.sizes and name not in self._for:
            self._for[name] = peer
            self._count(name, 1)

    async def _pull(self, peer: PeerId, content: bytes, coming: Coming) -> bool:
        """Have it come, window by window, and write it; whether it is here."""
        here = False
        draft: Draft | None = None
        run = self._loop.run_in_executor
        try:
            while not (coming.is_whole and not coming.pieces):
                if coming.have == coming.limit and not coming.is_whole:
                    coming.limit += WINDOW_BYTES
                    self._desk.neighbour(peer).link.send(far.KeptWanted(content, coming.have))
                if not coming.pieces and not coming.failed:
                    coming.heard.clear()
                    await asyncio.wait_for(coming.heard.wait(), ASK_S)
                if coming.failed:
                    break
                pieces, coming.pieces = coming.pieces, []
                if draft is None:
                    draft = await self._open_draft(coming.size)
                await run(None, draft.write, pieces)
            if draft is not None and coming.is_whole:
                here = await run(None, draft.named) == content
                if here:
                    await self.disk.take(draft, content, coming.size)
                else:
                    log.warning("node %s sent something else than it said", peer.hex()[:8])
        except TimeoutError:
            pass
        except OSError as error:
            log.warning("what a restart needs cannot be kept on disk: %s", error)
        finally:
            self._coming.pop((peer, content), None)
            self._offered.pop((peer, content), None)
            if not coming.done.done():
                coming.done.set_result(here)
            if draft is not None:
                draft.drop()
        return here

    async def _open_draft(self, size: int) -> Draft:
        """A new draft. Who is cancelled meanwhile leaves none behind: the thread goes on and opens its file."""
        making = self._loop.run_in_executor(None, Draft, self.folder, size)
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(_drop)
            raise

    def _full(self, peer: PeerId, size: int) -> str:
        """Why this node keeps no more for that one; "" if it does."""
        if self.disk.total_bytes + sum(self._offered.values()) + size > ALL_MAX_BYTES:
            return f"this node keeps {ALL_MAX_BYTES >> 20} MiB for restarts, and not more"
        contents, in_all = self._counts.get(peer, (0, 0))
        coming = sum(size for (each, _), size in self._offered.items() if each == peer)
        if contents >= EACH_MAX or in_all + coming + size > EACH_MAX_BYTES:
            return f"this node keeps {in_all + coming >> 20} MiB in {contents} contents for you already"
        return ""

    def _count(self, name: str, sign: int) -> None:
        peer = self._for.get(name)
        if peer is not None:
            contents, in_all = self._counts.get(peer, (0, 0))
            self._counts[peer] = contents + sign, in_all + sign * self.disk.sizes.get(name, 0)
            if not self._counts[peer][0]:
                del self._counts[peer]

    def wanted(self, neighbour: Neighbour, message: far.KeptWanted) -> None:
        """They need something that we may keep. Rows tell everybody its name; only who restarts actors needs it, and
        whom we have asked to keep it, or to run it."""
        peer, content = neighbour.peer, message.content
        offered = [offer for offer in self._offers if offer.content == content and peer in offer.peers]
        for offer in offered:
            offer.heard.set()  # it is at work
        allowed = Role.SUBMIT in self._desk.roles_of(peer) or offered or (peer, content) in self._may_have
        busy = self._giving.get(peer, 0) >= GIVES_MAX
        if not allowed or busy or not 0 <= message.offset <= CONTENT_MAX_BYTES or len(content) > CID_MAX_BYTES:
            neighbour.link.send(far.NotKept(content))
            return
        self._giving[peer] = self._giving.get(peer, 0) + 1
        self._begin(self._give(neighbour, content, message.offset))

    async def _give(self, neighbour: Neighbour, content: bytes, offset: int) -> None:
        """A window of it."""
        try:
            until = self._loop.time() + CROWDED_S
            while neighbour.link.crowded and self._loop.time() < until:
                await asyncio.sleep(LOOK_S)
            data = None if neighbour.link.crowded else await self.disk.piece(content, offset, WINDOW_BYTES)
        finally:
            self._giving[neighbour.peer] -= 1
            if not self._giving[neighbour.peer]:
                del self._giving[neighbour.peer]
        size = self.size(content)
        if data is None or (not data and size):
            neighbour.link.send(far.NotKept(content))
            return
        for at in range(0, max(len(data), 1), PIECE_BYTES):
            piece = data[at : at + PIECE_BYTES]
            neighbour.link.send(far.Keep(content, size, offset + at, piece), len(piece))

    def kept(self, neighbour: Neighbour, message: far.Kept) -> None:
        """They have it on their disk."""
        self._answered(neighbour.peer, message.content, True)

    def not_kept(self, neighbour: Neighbour, message: far.NotKept) -> None:
        """They do not have it, or do not keep it."""
        if message.reason:
            log.warning("%s does not keep what a restart needs: %s", neighbour.client.name, message.reason[:WORDS_MAX])
        if (coming := self._coming.get((neighbour.peer, message.content))) is not None:
            coming.fail("it is not there")
        self._answered(neighbour.peer, message.content, False)

    def _answered(self, peer: PeerId, content: bytes, keeps: bool) -> None:
        for offer in self._offers:
            if offer.content == content and peer in offer.silent:
                offer.silent.discard(peer)
                if keeps:
                    offer.keep.add(peer)
                offer.heard.set()

    def unkeep_here(self, neighbour: Neighbour, message: far.Unkeep) -> None:
        """They need it no more; others may."""
        if self._for.get(cid_text(message.content[:CID_MAX_BYTES])) == neighbour.peer:
            self.forget_soon(message.content, 0.0)  # no row names it, so its owner alone would ask

    def parted(self, neighbour: Neighbour) -> None:
        """A node is gone."""
        for (peer, _), coming in self._coming.items():
            if peer == neighbour.peer:
                coming.fail("it is gone")
        for offer in self._offers:
            self._answered(neighbour.peer, offer.content, False)
        self._may_have = {each for each in self._may_have if each[0] != neighbour.peer}

    def _begin(self, work: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _drop(making: asyncio.Future[Draft]) -> None:
    if not making.cancelled() and making.exception() is None:
        making.result().drop()
