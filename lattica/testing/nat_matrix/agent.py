"""A peer in a process of its own, inside one host of a lab, that does what it is told.

    in   {"id": 1, "do": "begin", "ticket": "lat1..."}        one JSON object a line, on stdin
    out  {"id": 1, "peer": "...", "at": 12.5}                 or {"id": 1, "error": "..."}, in any order

The process may have one peer after another: each is a new identity on new ports, so a pair meets as strangers without
a process being started for it. Times are of CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import uvloop

from lattica.errors import LatticaError
from lattica.mesh.addresses import split_host
from lattica.mesh.identity import parse_peer, peer_text
from lattica.mesh.mapping.keeper import Keeper
from lattica.mesh.peer import Peer
from lattica.mesh.services import method, service
from lattica.mesh.wire import BULK

POLL_S = 0.01  # how often it is looked whether something has become true
AGAIN_S = 0.02  # after a call that was refused at once
NOISE = os.urandom(1 << 20)  # that nobody compresses
JOIN_S = 20.0
CALL_S = 30.0
TICK_S = 0.01  # between two handfuls of calls

Answer = Mapping[str, Any]


@service("far")
class Far:
    """What the other side calls. Every call has a number, so one that ran twice is seen."""

    def __init__(self) -> None:
        self.ran: dict[str, Counter[int]] = {}

    @method()
    def echo(self, number: int) -> int:
        return number

    @method()
    def count(self, run: str, number: int) -> int:
        self.ran.setdefault(run, Counter())[number] += 1
        return number

    @method()
    def tally(self, run: str) -> list[int]:
        """[calls that ran, of them more than once]."""
        ran = self.ran.pop(run, Counter())
        return [len(ran), sum(1 for times in ran.values() if times > 1)]

    @method()
    def cpu(self) -> float:
        """Seconds that this process has computed."""
        return time.process_time()

    @method()
    async def blob(self, items: int, item_bytes: int, seconds: float) -> AsyncIterator[bytes]:
        """So many numbered items, or as many as go out in so many seconds (0: no limit)."""
        end = time.monotonic() + seconds if seconds else float("inf")
        for number in range(items):
            if time.monotonic() > end:
                return
            yield number.to_bytes(8, "little") + NOISE[: item_bytes - 8]


class Agent:
    """See the module."""

    def __init__(self) -> None:
        self.peer: Peer | None = None
        self.keeper: Keeper | None = None  # of ports of the gateway, as a node has one
        self.far = Far()

    # -- life

    async def begin(
        self, ticket: str = "", listen: str = ":0", transports: list[str] | None = None, relay: bool = False
    ) -> Answer:
        """Found a mesh, or join that of the ticket; answered when there is a session with somebody."""
        await self.end()
        options: dict[str, Any] = {"listen": listen or None, "relaying": "always" if relay else "auto"}
        if transports:
            options["transports"] = tuple(transports)
        began = time.monotonic()
        peer = Peer.join(ticket, **options) if ticket else Peer.found(**options)
        self.far = Far()
        peer.serve(self.far, offered=False)
        await peer.start()
        self.peer = peer
        if not relay:
            self.keeper = _keeper(peer)
            self.keeper.start()
        if ticket and not await _until(lambda: bool(peer.peers()), JOIN_S):
            raise LatticaError(f"nobody of the ticket has answered within {JOIN_S:g} s")
        return {"peer": peer_text(peer.id), "listening": peer.listening, "at": time.monotonic(), "began": began}

    async def end(self) -> Answer:
        """Stop being a peer."""
        peer, self.peer = self.peer, None
        keeper, self.keeper = self.keeper, None
        if keeper is not None:
            await keeper.stop()
        if peer is not None:
            await peer.stop()
        return {}

    async def ticket(self) -> Answer:
        return {"ticket": self._peer.ticket()}

    # -- looking

    async def peers(self) -> Answer:
        return {"peers": self._peer.peers()}

    async def behaviour(self) -> Answer:
        """What it has found out that it is behind."""
        return {"words": _behaviour(self._peer)}

    async def records(self, peer: str) -> Answer:
        """Attempts to become direct with that peer."""
        return {"records": _records(self._peer, peer)}

    async def watch(self, peer: str, within_s: float) -> Answer:
        """Until there is a path to that peer without a relay, or the time is up; then what path there is."""
        found = await _until(lambda: _is_direct(self._row(peer)), within_s)
        return {"direct": bool(found), "at": time.monotonic(), **self._row(peer), "method": _method(self._peer, peer)}

    def _row(self, peer: str) -> dict[str, Any]:
        rows = self._peer.peers()
        return next((row for row in rows if row["peer_id"] == peer), {})

    # -- calling

    async def first_call(self, peer: str, within_s: float) -> Answer:
        """Call until there is an answer: when it came, and what failed before."""
        failed: list[str] = []
        end = time.monotonic() + within_s
        while (now := time.monotonic()) < end:
            try:
                await self._peer.call(peer, "far.echo", 1, timeout_s=end - now)
                return {"at": time.monotonic(), "failed": failed}
            except (LatticaError, TimeoutError) as error:
                failed.append(str(error).partition("\n")[0])
                await asyncio.sleep(AGAIN_S)
        raise LatticaError(f"no answer within {within_s:g} s: {failed[-1] if failed else 'no reason'}")

    async def calls(self, peer: str, run: str, rate: float, seconds: float) -> Answer:
        """So many calls a second. How many failed or ran twice, and the longest time without an answer."""
        load = _Load(self._peer, peer, run)
        began = time.monotonic()
        due = 0.0
        while (now := time.monotonic() - began) < seconds:
            due = min(now, seconds) * rate
            while load.sent < due:
                load.begin()
            await asyncio.sleep(TICK_S)
        await load.finished()
        ran, twice = await self._peer.call(peer, "far.tally", run, timeout_s=CALL_S)
        return {**load.result(), "ran": ran, "twice": twice}

    async def flight(self, peer: str, in_flight: int, seconds: float) -> Answer:
        """As many calls as are answered while so many are under way."""
        end = time.monotonic() + seconds
        answered = 0

        async def one() -> None:
            nonlocal answered
            while time.monotonic() < end:
                await self._peer.call(peer, "far.echo", 1, timeout_s=CALL_S)
                answered += 1

        began = time.monotonic()
        await asyncio.gather(*(one() for _ in range(in_flight)))
        return {"answered": answered, "took_s": time.monotonic() - began}

    async def pull(self, peer: str, mib: float, seconds: float = 0.0, item_kib: int = 256) -> Answer:
        """A stream of that peer's: (MiB) long, or as long as lasts these seconds. Items must come in order."""
        items = max(1, round(mib * 1024 / item_kib))
        there = await self._peer.call(peer, "far.cpu", timeout_s=CALL_S)
        here, began = time.process_time(), time.monotonic()
        gaps, total = _Gaps(began), 0
        async with await self._peer.stream(peer, "far.blob", items, item_kib << 10, seconds) as stream:
            expected = 0
            async for item in stream:
                assert int.from_bytes(item[:8], "little") == expected, f"item {expected} is missing"
                expected += 1
                total += len(item)
                gaps.saw(time.monotonic())
        took_s = time.monotonic() - began
        cpu_s = time.process_time() - here + await self._peer.call(peer, "far.cpu", timeout_s=CALL_S) - there
        number = self._peer.sessions.connection(parse_peer(peer), BULK)
        bulk = " ".join(self._peer._transport.path(number)) if number is not None else ""
        gap = {"gap_s": gaps.longest, "gap_at": gaps.at}
        return {"bytes": total, "took_s": took_s, "cpu_s": cpu_s, "bulk": bulk, **gap}

    @property
    def _peer(self) -> Peer:
        if self.peer is None:
            raise LatticaError("there is no peer here: begin")
        return self.peer


class _Gaps:
    """The longest time between two events."""

    def __init__(self, began: float) -> None:
        self.last, self.longest, self.at = began, 0.0, began

    def saw(self, now: float) -> None:
        if now - self.last > self.longest:
            self.longest, self.at = now - self.last, self.last
        self.last = now


class _Load:
    """Numbered calls in flight."""

    def __init__(self, peer: Peer, target: str, run: str) -> None:
        self._peer, self._target, self._run = peer, target, run
        self._under_way: set[asyncio.Task[None]] = set()
        self._gaps = _Gaps(time.monotonic())
        self.sent = 0
        self.took_s: list[float] = []
        self.failed: list[str] = []

    def begin(self) -> None:
        task = asyncio.ensure_future(self._one(self.sent))
        self.sent += 1
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _one(self, number: int) -> None:
        began = time.monotonic()
        try:
            answer = await self._peer.call(self._target, "far.count", self._run, number, timeout_s=CALL_S)
            assert answer == number, f"call {number} was answered by {answer}"
        except (LatticaError, TimeoutError) as error:
            self.failed.append(str(error).partition("\n")[0])
            return
        now = time.monotonic()
        self.took_s.append(now - began)
        self._gaps.saw(now)

    async def finished(self) -> None:
        if self._under_way:
            await asyncio.wait(self._under_way)

    def result(self) -> Answer:
        took = sorted(self.took_s) or [0.0]
        return {
            "sent": self.sent,
            "answered": len(self.took_s),
            "failed": len(self.failed),
            "reasons": self.failed[:3],
            "p50_s": took[len(took) // 2],
            "p99_s": took[int(len(took) * 0.99)],
            "max_s": took[-1],
            "gap_s": self._gaps.longest,
            "gap_at": self._gaps.at,
        }


async def _until(fact: Callable[[], Any], within_s: float) -> Any:
    end = time.monotonic() + within_s
    while not (said := fact()) and time.monotonic() < end:
        await asyncio.sleep(POLL_S)
    return said


def _keeper(peer: Peer) -> Keeper:
    """Who asks the gateway for ports that lead here."""

    def changed(keeper: Keeper) -> None:
        peer.advertise("mapped", [str(endpoint) for endpoint in keeper.addresses])
        if peer.traversal is not None:
            peer.traversal.set_mapped(keeper.udp)

    return Keeper(split_host(peer.listening[0])[1], os.urandom(32), changed)


def _is_direct(row: Mapping[str, Any]) -> bool:
    return str(row.get("path", "")).startswith("direct")


def _behaviour(peer: Peer) -> str:
    return peer.traversal.behaviour.words if peer.traversal is not None else "not measured"


def _records(peer: Peer, other: str) -> list[dict[str, Any]]:
    """What was tried to become direct with that peer, the oldest first."""
    records = peer.traversal.records if peer.traversal is not None else ()
    return [record.plain() for record in records if peer_text(record.peer) == other]


def _method(peer: Peer, other: str) -> str:
    """By which method the two became direct, as the last record that went well says."""
    worked = [record["method"] for record in _records(peer, other) if record["direct"]]
    return worked[-1] if worked else ""


# -- the line to who tells it what to do


async def serve() -> None:
    """Carry out commands, a line of JSON each, until standard input ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    agent, tasks = Agent(), set[asyncio.Task[None]]()
    while line := await reader.readline():  # nobody is there any more: end
        task = asyncio.ensure_future(_carry_out(agent, json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await agent.end()


async def _carry_out(agent: Agent, order: dict[str, Any]) -> None:
    number, verb = order.pop("id"), order.pop("do")
    try:
        do: Callable[..., Awaitable[Answer]] = getattr(agent, verb)
        said: Answer = await do(**order)
    except Exception as error:
        logging.getLogger(__name__).exception("%s", verb)
        said = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps({"id": number, **said}), flush=True)


if __name__ == "__main__":
    logging.basicConfig(
        level=os.environ.get("LATTICA_AGENT_LOG", "INFO"),
        format="%(asctime)s.%(msecs)03d %(name)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
    )
    uvloop.run(serve())
