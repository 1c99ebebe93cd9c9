"""Noise, forged first packets and bent real ones on the UDP socket: nothing breaks, nothing is kept, nobody is answered
more than they sent. With LATTICA_FUZZ (`make fuzz`) there are a million of them."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from lattica.mesh.nat.routes import Direct, Endpoint, Route
from lattica.mesh.transport import quic_engine
from lattica.mesh.transport.path_socket import Connected, PathSocket
from lattica.mesh.transport.quic_packets import CID_BYTES, Initial, Resets, Retries, destination_of, initial_of
from lattica.testing.loop import run_virtually
from tests.mesh.transport.quic_net import Net, until
from tests.mesh.transport.quic_pairs import configurations, the_mesh

FORGED = 1_000_000 if os.environ.get("LATTICA_FUZZ") else 20_000


@functools.cache
def real_initial() -> bytes:
    return quic_engine.dial(configurations(the_mesh().member()), 0.0).datagrams(0.0)[0]


@functools.cache
def returned_initial() -> bytes:
    """With a token, of another key."""
    dialing = quic_engine.dial(configurations(the_mesh().member()), 0.0)
    initial = initial_of(dialing.datagrams(0.0)[0])
    assert initial is not None
    dialing.receive([Retries(b"another key" * 2 + bytes(10)).answer(initial, b"x", b"12345678", 0.0)], 0.0)
    return dialing.datagrams(0.0)[0]


def bent(data: bytes, places: dict[int, int]) -> bytes:
    out = bytearray(data)
    for at, byte in places.items():
        out[at % min(len(out), 120)] = byte  # where there is something to be misread
    return bytes(out)


places = st.dictionaries(st.integers(0, 119), st.integers(0, 255), max_size=8)
noise = st.one_of(
    st.binary(max_size=100),
    st.binary(max_size=40).map(lambda head: head + bytes(1200)),
    places.map(lambda p: bent(real_initial(), p)),
    places.map(lambda p: bent(returned_initial(), p)),
)


@given(noise)
def test_noise_is_read_as_a_first_packet_or_as_nothing(data: bytes) -> None:
    id, initial = destination_of(data), initial_of(data)
    if initial is not None:
        assert initial.destination == id and CID_BYTES <= len(initial.destination) <= 20
        answer = Retries(bytes(32)).answer(initial, b"somewhere", bytes(8), 5.0)
        assert len(answer) < len(data) / 3 and destination_of(answer) == (initial.source or b"")
        assert Retries(bytes(32)).original(initial, b"somewhere", 5.0) is None


@given(st.binary(min_size=8, max_size=20), st.binary(max_size=20), st.binary(max_size=30), st.floats(0, 1e6))
def test_a_token_that_is_returned_is_known_and_no_bent_one_is(
    destination: bytes, source: bytes, address: bytes, now: float
) -> None:
    retries, id = Retries(b"k" * 32), b"new id of 8"[:8]
    answer = retries.answer(Initial(destination, source, b""), address, id, now)
    token = answer[7 + len(source) + len(id) : -16]
    assert retries.original(Initial(id, source, token), address, now + 0.1) == destination
    assert retries.original(Initial(id, source, token), address + b"?", now + 0.1) is None
    assert retries.original(Initial(b"other id", source, token), address, now + 0.1) is None
    assert retries.original(Initial(id, source, token), address, now + 11) is None
    for at in range(len(token)):
        false = token[:at] + bytes([token[at] ^ 1]) + token[at + 1 :]
        assert retries.original(Initial(id, source, false), address, now + 0.1) is None


@given(st.lists(noise, min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_a_live_connection_outlives_noise_with_its_connection_id(pieces: list[bytes], rng: Random) -> None:
    async def run() -> None:
        net = Net()
        one, two = net.node(), net.node()
        here, there = await net.connected(one, two)
        ids = list(two.quic.socket.ids)
        route = two.quic.streams[there].link.route
        for piece in pieces:
            id = rng.choice(ids)
            for datagram in (piece, bytes([0x40]) + id + piece, b"\xe0\0\0\0\1\x08" + id + piece):
                two.quic.socket.arrived(route, datagram)
        one.data(here, b"as before")
        await until(lambda: any(getattr(f, "payload", b"") == b"as before" for f in two.hears.frames[there]))
        assert len(two.quic.links) == 1
        await one.quic.close()
        await two.quic.close()

    run_virtually(run())


class Counted(PathSocket):
    """Counts what it would send."""

    sent_bytes = sent = longest = 0

    def send(self, route: Route, datagrams: Sequence[bytes], ttl: int = 0) -> None:
        self.sent += len(datagrams)
        self.sent_bytes += sum(map(len, datagrams))
        self.longest = max(self.longest, *map(len, datagrams))


def test_forged_noise_by_the_million_makes_no_state_and_costs_little() -> None:
    """Random bytes, forged and bent first packets with and without tokens, from a thousand addresses."""

    async def run() -> tuple[Counted, int, float]:
        begun: list[Initial] = []

        def stranger(initial: Initial, original: bytes, route: Route) -> Connected | None:
            begun.append(initial)
            return None

        rng = Random(7)
        sock = Counted(stranger)
        sock.resets = Resets(lambda: b"of this node")
        routes = [Direct(Endpoint(f"192.0.2.{n % 256}", 1000 + n)) for n in range(1000)]
        kinds = [real_initial(), returned_initial()]
        received, spent = 0, 0.0
        for start in range(0, FORGED, 1000):
            batch = []
            for _ in range(min(1000, FORGED - start)):
                kind = rng.randrange(4)
                if kind < 2:
                    datagram = bent(
                        kinds[kind], {rng.randrange(120): rng.randrange(256) for _ in range(rng.randrange(4))}
                    )
                elif kind == 2:
                    datagram = bytes([0xC0, 0, 0, 0, 1, 8]) + rng.randbytes(40) + bytes(1200)
                else:
                    datagram = rng.randbytes(rng.choice((1, 9, 21, 64, 1200)))
                batch.append((routes[rng.randrange(1000)], datagram))
                received += len(datagram)
            began = time.process_time()
            for route, datagram in batch:
                sock.arrived(route, datagram)
            spent += time.process_time() - began
        assert not begun and not sock.ids and not sock._routes
        return sock, received, spent / FORGED

    sock, received, each_s = run_virtually(run())
    print(
        f"{FORGED:,} datagrams, {each_s * 1e6:.1f} us of CPU each; {sock.sent:,} answers, the longest {sock.longest} B"
    )
    assert sock.sent_bytes < received / 5 and sock.longest < 130


def test_strangers_do_not_make_a_node_load_aioquic() -> None:
    """3.5 MiB and 0.2 s, which nodes save that only speak TCP."""
    code = (
        "import asyncio, sys, lattica.mesh.peer\n"
        "from lattica.mesh.transport.path_socket import PathSocket\n"
        "from lattica.mesh.nat.routes import Direct, Endpoint\n"
        "async def main():\n"
        "    sock = PathSocket(lambda *_: None)\n"
        "    sock.arrived(Direct(Endpoint('127.0.0.1', 9)), bytes([0xC0, 0, 0, 0, 1, 8]) + bytes(1300))\n"
        "    sock.close()\n"
        "asyncio.run(main())\n"
        "print('aioquic' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
