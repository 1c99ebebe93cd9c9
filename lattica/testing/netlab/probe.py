"""What a NAT does, measured from behind it (RFC 5780's method): mapping, filtering, hairpins, and TCP's mapping.

A server on two addresses and two ports tells what it saw, and answers from the address and port it was asked for.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from .layout import PROBE_IPS

PORTS = (3478, 3479)
ASKS_MAX = 3  # of one question; a NAT's filtering looks like loss, so each costs ANSWER_S where it is the finding
ANSWER_S = 0.25
TCP_ANSWER_S = 0.6
TCP_FIRST_ANSWER_S = 1.0  # the first connection through a fresh path may need a second SYN
DATAGRAM_MAX_BYTES = 2048

MakeSocket = Callable[[int], socket.socket]
"""socket.SOCK_DGRAM or SOCK_STREAM -> a fresh IPv4 socket in the network that is measured, or serves."""
Address = tuple[str, int]


class ProbeServer:
    """Serves from a thread of this process until closed."""

    def __init__(self, make: MakeSocket) -> None:
        self._udp: dict[tuple[int, int], socket.socket] = {}
        self._tcp: list[socket.socket] = []
        for (i, address), (j, port) in itertools.product(enumerate(PROBE_IPS), enumerate(PORTS)):
            datagrams, listener = make(socket.SOCK_DGRAM), make(socket.SOCK_STREAM)
            self._udp[i, j] = datagrams
            self._tcp.append(listener)
            datagrams.bind((address, port))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
            listener.listen(64)
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._serve, daemon=True, name="netlab-probe")
        self._thread.start()

    def _serve(self) -> None:
        places = {each: place for place, each in self._udp.items()}
        while True:
            waited: list[socket.socket | int] = [*places, *self._tcp, self._stop_read]
            for each in select.select(waited, [], [])[0]:
                if isinstance(each, int):
                    return
                with contextlib.suppress(
                    OSError, ValueError, KeyError
                ):  # a question that makes no sense gets no answer
                    self._answer(each, places.get(each))

    def _answer(self, asked: socket.socket, place: tuple[int, int] | None) -> None:
        if place is None:
            connection, seen = asked.accept()
            with connection:
                connection.sendall(json.dumps({"seen": seen}).encode())
            return
        data, seen = asked.recvfrom(DATAGRAM_MAX_BYTES)
        question = json.loads(data)
        answerer = self._udp[place[0] ^ question.get("other_ip", 0), place[1] ^ question.get("other_port", 0)]
        answerer.sendto(json.dumps({"id": question["id"], "seen": seen}).encode(), seen)

    def close(self) -> None:
        os.write(self._stop_write, b"x")
        self._thread.join(2)
        for each in [*self._udp.values(), *self._tcp]:
            each.close()
        os.close(self._stop_read)
        os.close(self._stop_write)


def measure(make: MakeSocket, *, tcp: bool = True) -> dict[str, Any]:
    """What is between the sockets that `make` makes and the probe server.

    udp: "blocked", or else mapping (eim | adm | apdm), filtering (eif | adf | apdf), hairpin ("no", "external source",
    or the inner source that was seen), port_preserved, seen (outer address at each of the four places).
    tcp_mapping: as mapping, or "blocked".
    """
    found = _udp(_Asker(make))
    if tcp:
        found["tcp_mapping"] = _tcp_mapping(make)
    return found


class _Asker:
    """Asks the server's UDP places, each question again until it is answered or was asked often enough."""

    def __init__(self, make: MakeSocket) -> None:
        self._make = make
        self._ids = itertools.count(1)

    def endpoint(self) -> socket.socket:
        made = self._make(socket.SOCK_DGRAM)
        made.bind(("0.0.0.0", 0))
        return made

    def ask(self, by: socket.socket, place: tuple[int, int] = (0, 0), **question: int) -> Address | None:
        """As what the server saw us; None if no answer came."""
        number = next(self._ids)
        for _ in range(ASKS_MAX):
            by.sendto(json.dumps({"id": number, **question}).encode(), (PROBE_IPS[place[0]], PORTS[place[1]]))
            deadline = time.monotonic() + ANSWER_S
            while (left := deadline - time.monotonic()) > 0:
                by.settimeout(left)
                try:
                    answer = json.loads(by.recv(DATAGRAM_MAX_BYTES))
                except OSError:  # in time nothing came, or a gateway rejects
                    break
                if answer["id"] == number:
                    return answer["seen"][0], answer["seen"][1]
        return None


def _udp(asker: _Asker) -> dict[str, Any]:
    places = list(itertools.product((0, 1), (0, 1)))
    with asker.endpoint() as endpoint:
        seen = [asker.ask(endpoint, place) for place in places]
        first, inner_port = seen[0], endpoint.getsockname()[1]
    if first is None:
        return {"udp": "blocked"}
    return {
        "mapping": _mapping(seen),
        "seen": [f"{each[0]}:{each[1]}" if each else None for each in seen],
        "port_preserved": first[1] == inner_port,
        **_filtering(asker),
    }


def _mapping(seen: Sequence[Hashable]) -> str:
    """seen: the outer addresses at (ip 0, port 0), (ip 0, port 1), (ip 1, port 0), (ip 1, port 1)."""
    if len(set(seen)) == 1:
        return "eim"
    return "adm" if seen[0] == seen[1] and seen[2] == seen[3] else "apdm"


def _filtering(asker: _Asker) -> dict[str, str]:
    with asker.endpoint() as one, asker.endpoint() as other:
        ours = asker.ask(one)
        if asker.ask(one, other_ip=1, other_port=1):
            filtering = "eif"
        elif asker.ask(one, other_port=1):
            filtering = "adf"
        else:
            filtering = "apdf"
        theirs = asker.ask(other)
        return {"filtering": filtering, "hairpin": _hairpin(one, ours, other, theirs) if theirs else "no"}


def _hairpin(one: socket.socket, ours: Address | None, other: socket.socket, theirs: Address) -> str:
    """Does `one` reach `other` by its outer address, and from where does it seem to come?"""
    one.sendto(b'{"id":"hairpin"}', theirs)
    other.settimeout(ANSWER_S)
    try:
        data, source = other.recvfrom(DATAGRAM_MAX_BYTES)
        while b"hairpin" not in data:
            data, source = other.recvfrom(DATAGRAM_MAX_BYTES)
    except OSError:
        return "no"
    return "external source" if source == ours else f"source {source[0]}"


def _tcp_mapping(make: MakeSocket) -> str:
    """From one inner port, which SO_REUSEADDR lets be used again, to the four places."""
    seen: list[tuple[str, int]] = []
    port = 0
    for address, probe_port in itertools.product(PROBE_IPS, PORTS):
        with make(socket.SOCK_STREAM) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            connection.settimeout(TCP_ANSWER_S if seen else TCP_FIRST_ANSWER_S)
            try:
                connection.bind(("0.0.0.0", port))
                port = connection.getsockname()[1]
                connection.connect((address, probe_port))
                source = json.loads(connection.recv(DATAGRAM_MAX_BYTES))["seen"]
                seen.append((source[0], source[1]))
            except (OSError, ValueError):
                if not seen:
                    return "blocked"
    return "eim" if len(set(seen)) == 1 else _mapping(seen) if len(seen) == 4 else "apdm"
