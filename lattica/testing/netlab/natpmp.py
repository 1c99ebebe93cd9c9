"""A gateway's NAT-PMP server (RFC 6886): a program of its own that runs in the gateway's namespace until it is killed.

    python -I natpmp.py LAN_ADDRESS FILE

FILE holds the gateway's outer address, and is read for each request: it changes when the gateway roams. Port maps go
into static_* and rstatic_* of the gateway's rules (natrules.py). Standard library only, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PORT = 5351
VERSION = 0
EXTERNAL_ADDRESS, MAP_UDP, MAP_TCP, ANSWER = 0, 1, 2, 128  # opcodes, §3.2 and §3.3
SUCCESS = 0
PROTOCOLS = {MAP_UDP: "udp", MAP_TCP: "tcp"}
REQUEST_MAX_BYTES = 64
FIRST_PORT, LAST_PORT = 1024, 65535
TICK_S = 1.0  # how late a map may end

Key = tuple[str, str, int]
"""(protocol, inner address, inner port)"""


@dataclass(frozen=True, slots=True)
class PortMap:
    """An outer port that leads to an inner one, until it ends."""

    protocol: str
    inner_address: str
    inner_port: int
    outer_port: int
    ends: float  # monotonic seconds

    @property
    def key(self) -> Key:
        return self.protocol, self.inner_address, self.inner_port


class Server:
    """The port maps of one gateway."""

    def __init__(self, outer_address_file: Path) -> None:
        self._file = outer_address_file
        self._born = time.monotonic()
        self._maps: dict[Key, PortMap] = {}

    def answer(self, request: bytes, client: str) -> bytes | None:
        """The answer to one request; None to what is none."""
        if len(request) < 2 or request[0] != VERSION:
            return None
        epoch_s = int(time.monotonic() - self._born)
        if request[1] == EXTERNAL_ADDRESS:
            address = socket.inet_aton(self._outer_address())
            return struct.pack("!BBHI4s", VERSION, ANSWER + EXTERNAL_ADDRESS, SUCCESS, epoch_s, address)
        if request[1] not in PROTOCOLS or len(request) < 12:
            return None
        inner, wanted, lifetime_s = struct.unpack("!HHI", request[4:12])
        key = (PROTOCOLS[request[1]], client, inner)
        outer = self._free_port(key, wanted or inner)
        self._end(key)
        if lifetime_s:
            self._begin(PortMap(*key, outer, time.monotonic() + lifetime_s))
        told = outer if lifetime_s else 0
        return struct.pack("!BBHIHHI", VERSION, ANSWER + request[1], SUCCESS, epoch_s, inner, told, lifetime_s)

    def tick(self) -> None:
        """End what is over."""
        for each in list(self._maps.values()):
            if each.ends < time.monotonic():
                self._end(each.key)

    def _outer_address(self) -> str:
        return self._file.read_text().strip()

    def _free_port(self, key: Key, wanted: int) -> int:
        taken = {each.outer_port for each in self._maps.values() if each.key != key and each.protocol == key[0]}
        return next(port for port in _from(wanted) if port not in taken)

    def _begin(self, new: PortMap) -> None:
        inner = f"{new.inner_address} . {new.inner_port}"
        nft(
            f"add element ip nat static_{new.protocol} {{ {new.outer_port} : {inner} }}\n"
            f"add element ip nat rstatic_{new.protocol} {{ {inner} : {self._outer_address()} . {new.outer_port} }}\n"
        )
        self._maps[new.key] = new

    def _end(self, key: Key) -> None:
        if old := self._maps.pop(key, None):  # two transactions: after a reboot of the gateway neither is there
            nft(f"delete element ip nat static_{old.protocol} {{ {old.outer_port} }}\n")
            nft(f"delete element ip nat rstatic_{old.protocol} {{ {old.inner_address} . {old.inner_port} }}\n")


def _from(wanted: int) -> Iterator[int]:
    """Every port that may be mapped, the wanted one first."""
    start = max(wanted, FIRST_PORT)
    yield from range(start, LAST_PORT + 1)
    yield from range(FIRST_PORT, start)


def nft(text: str) -> None:
    """Give commands to nftables; those that do not apply are no error."""
    subprocess.run(["nft", "-f", "-"], input=text, text=True, capture_output=True, check=False)


def main(address: str, outer_address_file: str) -> None:
    """Answer for one gateway until the process is ended."""
    server = Server(Path(outer_address_file))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as requests:
        requests.bind((address, PORT))
        requests.settimeout(TICK_S)
        print("ready", flush=True)
        while True:
            with contextlib.suppress(TimeoutError):
                request, client = requests.recvfrom(REQUEST_MAX_BYTES)
                if answer := server.answer(request, client[0]):
                    requests.sendto(answer, client)
            server.tick()


if __name__ == "__main__":
    main(*sys.argv[1:])
