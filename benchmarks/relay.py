"""What a relay does with raw senders over loopback.

    python benchmarks/relay.py [--pairs 50] [--mbit 100] [--overload 2400] [--seconds 5]

Three sittings: all pairs send the same, together `--mbit`; the same while one more pair sends 50 Mbit/s to a receiver
that does not read (over TLS); and all send `--overload` together, some thrice as much as others, which is more than
the relay can pass on. For each: the least and the greatest share of a pair by the mean, what was passed on, CPU of the
relay's process for each datagram, and its memory. Relay, senders and receivers are processes of their own, on one
machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import selectors
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # the package beside this file, from whatever directory

import uvloop

from lattica.mesh.identity import PeerId
from lattica.mesh.nat.datagrams import Bind, write_bind, write_relayed
from lattica.mesh.peer import Peer
from lattica.mesh.relay.channels import Grant
from lattica.mesh.relay.framed import Framed
from lattica.mesh.transport.tcp import Failures

PAYLOAD_BYTES = 1200
STALLED_MBIT = 50.0
SEGMENTS = 32  # of one piece that the kernel cuts, when senders send more than Python could one by one
UDP_SEGMENT = 103  # linux/udp.h
SHARE_MAX = 0.2  # that a pair's share may be away from the mean


def facts() -> dict[str, float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/statm") as file:
        rss = int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    return {"cpu_s": used.ru_utime + used.ru_stime, "rss_mib": rss / 2**20}


# -- the relay -------------------------------------------------------------------------------------------------------


async def relay(pairs: int) -> None:
    """A real peer that relays, with channels between members that nobody has met. Answers each line with its facts."""
    async with Peer.found(listen="127.0.0.1:0", relaying="always") as peer:
        assert peer.relays is not None
        channels, loop = peer.relays.service.channels, asyncio.get_running_loop()
        grants = []
        for number in range(pairs):
            caller, called = (PeerId(bytes([2 * number + side]) * 32) for side in (0, 1))
            opened = channels.open(caller, called, loop.time())
            grants.append([[each.number, each.secret.hex()] for each in (opened.ours, opened.theirs)])
        where = peer.listening[0].rpartition(":")
        print(json.dumps({"at": [where[0], int(where[2])], "grants": grants, "ticket": peer.ticket()}), flush=True)
        while await loop.run_in_executor(None, sys.stdin.readline):
            numbers = peer.relays.service.numbers()
            print(json.dumps(facts() | {"queued_mib": numbers["queued_bytes"] / 2**20} | numbers), flush=True)


class Relay:
    """The process that relays, from outside."""

    def __init__(self, pairs: int) -> None:
        command = [sys.executable, __file__, "--relay", str(pairs)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        told = self._line()
        self.at = (told["at"][0], told["at"][1])
        self.ticket: str = told["ticket"]
        self.grants = [
            [Grant(number, bytes.fromhex(secret), 0.0) for number, secret in both] for both in told["grants"]
        ]

    def _line(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def facts(self) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: dict[str, float] = self._line()
        return found

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


# -- receivers -------------------------------------------------------------------------------------------------------


def bound(at: tuple[str, int], grant: Grant, counter: int = 1) -> socket.socket:
    """A socket that uses this end of a channel."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.connect(at)
    sock.settimeout(2)
    sock.send(write_bind(grant.secret, Bind(grant.number, counter)))
    assert len(sock.recv(100)) == 64, "the relay has not answered"
    sock.setblocking(False)
    return sock


def receive(at: tuple[str, int], grants: list[Grant]) -> None:
    """Count what comes, until stdin ends; each line on stdin is answered with the bytes of each end."""
    socks = [bound(at, grant) for grant in grants]
    got = [0] * len(socks)
    selector = selectors.DefaultSelector()
    for number, sock in enumerate(socks):
        selector.register(sock, selectors.EVENT_READ, number)
    selector.register(sys.stdin, selectors.EVENT_READ, -1)
    print("bound", flush=True)
    while True:
        for key, _ in selector.select():
            if key.data < 0:
                if not sys.stdin.readline():
                    return
                print(json.dumps(got), flush=True)
                continue
            try:
                for _ in range(64):
                    got[key.data] += len(socks[key.data].recv(2048)) - 9
            except BlockingIOError:
                pass


class Receivers:
    """Their process, from outside."""

    def __init__(self, relay: Relay) -> None:
        command = [sys.executable, __file__, "--receive", json.dumps([relay.at, _plain([b for _, b in relay.grants])])]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "bound\n"

    def counts(self) -> list[int]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: list[int] = json.loads(self._process.stdout.readline())
        return found

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


def _plain(grants: list[Grant]) -> list[list[Any]]:
    return [[grant.number, grant.secret.hex()] for grant in grants]


# -- senders ---------------------------------------------------------------------------------------------------------


def send(socks: list[socket.socket], numbers: list[int], rates: list[float], seconds: float, segments: int = 1) -> int:
    """Send at these rates, bytes a second each, in pieces that the kernel cuts into so many; how many datagrams."""
    pieces = [[write_relayed(number, os.urandom(PAYLOAD_BYTES))] * segments for number in numbers]
    cut = [(socket.SOL_UDP, UDP_SEGMENT, (PAYLOAD_BYTES + 9).to_bytes(2, sys.byteorder))]
    began = time.monotonic()
    due = [began] * len(socks)
    count = 0
    while (now := time.monotonic()) < began + seconds:
        for number, at in enumerate(due):
            if at <= now:
                count += segments
                due[number] = at + segments * PAYLOAD_BYTES / rates[number]
                try:
                    socks[number].sendmsg(pieces[number], cut if segments > 1 else [])
                except (BlockingIOError, ConnectionRefusedError):
                    pass
        time.sleep(max(min(due) - time.monotonic(), 0.0002))
    return count


# -- sittings --------------------------------------------------------------------------------------------------------


def report(words: str, before: dict[str, float], after: dict[str, float], sent: int, got: list[int]) -> None:
    mean = sum(got) / len(got)
    least, most = min(got) / mean, max(got) / mean
    passed = after["forwarded_datagrams_total"] - before["forwarded_datagrams_total"]
    cpu_us = (after["cpu_s"] - before["cpu_s"]) / max(passed, 1) * 1e6
    fair = "met" if least >= 1 - SHARE_MAX and most <= 1 + SHARE_MAX else "missed"
    print(
        f"{words}: shares {least:.2f} to {most:.2f} of the mean (within a fifth: {fair});"
        f" {passed:,.0f} of {sent:,} datagrams passed on; {cpu_us:.1f} us of CPU each;"
        f" {after['rss_mib']:.0f} MiB ({after['rss_mib'] - before['rss_mib']:+.1f}),"
        f" {after['queued_mib']:.2f} MiB wait, {after['dropped_datagrams_total']:,.0f} dropped",
        flush=True,
    )


async def stalled(relay: Relay, grant: Grant) -> tuple[Peer, Framed]:
    """A member that binds its end over TLS and then reads nothing."""
    peer = await Peer.join(relay.ticket, listen=None).start()
    (other, addresses), *_ = peer._first
    assert peer.relays is not None and peer.relays.client._tcp is not None
    failed, answered = Failures(), asyncio.Event()
    context = peer.steward.contexts.relay_client()
    found = await peer.relays.client._tcp.race(other, addresses, context, failed)
    assert found is not None, failed.reasons
    framed = Framed(found[0], lambda _, data: answered.set())
    found[0].release()
    framed.send([write_bind(grant.secret, Bind(grant.number, 1))])
    await asyncio.wait_for(answered.wait(), 5)
    assert found[0]._transport is not None
    found[0]._transport.pause_reading()
    return peer, framed


async def sit(pairs: int, mbit: float, overload: float, seconds: float) -> None:
    relay = Relay(pairs + 1)
    *both, (extra_from, extra_to) = relay.grants
    relay.grants = both
    receivers = Receivers(relay)
    socks = [bound(relay.at, ours) for ours, _ in both]
    numbers = [ours.number for ours, _ in both]
    rate = mbit * 1e6 / 8 / pairs
    loop = asyncio.get_running_loop()

    async def one(words: str, work: Any) -> None:
        before, had = relay.facts(), receivers.counts()
        sent = await loop.run_in_executor(None, work)
        after, has = relay.facts(), receivers.counts()
        report(words, before, after, sent, [now - then for now, then in zip(has, had, strict=True)][:pairs])

    await one(f"{pairs} pairs, {mbit:g} Mbit/s", lambda: send(socks, numbers, [rate] * pairs, seconds))
    peer, framed = await stalled(relay, extra_to)
    more = [*socks, bound(relay.at, extra_from)]
    rates = [*([rate] * pairs), STALLED_MBIT * 1e6 / 8]
    await one("one more receiver does not read", lambda: send(more, [*numbers, extra_from.number], rates, seconds))
    framed.close()
    await peer.stop()
    weights = [1 + number % 3 for number in range(pairs)]
    rates = [weight * overload * 1e6 / 8 / sum(weights) for weight in weights]
    await one(f"{overload:g} Mbit/s, by weights of 1 to 3", lambda: send(socks, numbers, rates, seconds, SEGMENTS))
    receivers.end()
    relay.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--mbit", type=float, default=100.0)
    parser.add_argument("--overload", type=float, default=2400.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--relay", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--receive", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.relay:
        uvloop.run(relay(given.relay))
    elif given.receive:
        (host, port), ends = json.loads(given.receive)
        receive((host, port), [Grant(number, bytes.fromhex(secret), 0.0) for number, secret in ends])
    else:
        uvloop.run(sit(given.pairs, given.mbit, given.overload, given.seconds))


if __name__ == "__main__":
    main()
