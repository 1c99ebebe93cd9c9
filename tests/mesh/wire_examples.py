"""One of every frame, message and value between two peers, and the golden bytes they must have.

python -m tests.mesh.wire_examples      write tests/golden/mesh.json anew: the diff is the change of the wire
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np

from lattica.mesh import messages as m
from lattica.mesh import values, wire
from lattica.mesh.bodies import Outgoing
from lattica.mesh.compression import Packer

GOLDEN = Path(__file__).parents[1] / "golden" / "mesh.json"
INSTANCE = b"instance"

FRAMES: list[Any] = [
    wire.Hello(
        boot=1 << 40, instance=INSTANCE, plane=1, session=1 << 62, proposal=7, received=9, unix_s=1.5e9, protocol=2,
        oldest=2, name="gpu-2", version="0.4.0", addresses=["192.0.2.7:7411", "[2001:db8::7]:7411"],
        packs=["zstd"],
    ),
    wire.Ack(1 << 33),
    wire.Ping(1 << 34),
    wire.Pong(1 << 35),
    wire.Want(1),
    wire.Bye("twin", "its directory was copied", 7, INSTANCE, b"p" * 64),
    wire.Prove(INSTANCE),
    wire.Proof(b"p" * 64),
]  # fmt: skip
DATA = wire.Data(1 << 33, 1 << 34, b"payload")

MESSAGES: list[Any] = [
    m.Call(1 << 33, "kv.get", 2500, 3, b"arguments"),
    m.Result(7, m.Packed(b"compressed", 4096)),
    m.Failure(7, {"error": "ConfigError", "message": "no such shelf"}),
    m.Cancel(7),
    m.Item(7, 1, m.Large(5, 1 << 20)),
    m.End(7, 1),
    m.Credit(7, 1, 1 << 20),
    m.Grant(1 << 20, 1),
    m.Notice(1, b"anything"),
]

VALUES: dict[str, Any] = {
    "plain": [None, True, -7, 2.5, "text", b"bytes", {"key": [1, 2]}],
    "buffers": [[b"long" * 2000], {"weights": np.arange(6, dtype="<f4").reshape(2, 3)}],
}


class Always(Packer):
    """Compresses everything."""

    def pack(self, parts: Any, size: int) -> bytes | None:
        return self._zstd(b"".join(parts))


def chunks(packer: Packer | None) -> list[bytes]:
    """A body of more than one chunk, and a second one that is abandoned, as they go over bulk."""
    going = Outgoing(packer)
    body = bytes(range(256)) * 2100
    going.body(1, 0, [body], len(body))
    going.body(2, 0, [body], len(body))
    going.announced(2)
    going.drop(2, 0)
    return [b"".join(frame) for _, frame, _ in going.flush(1 << 30)]


def join(frame: wire.Frame) -> bytes:
    """A frame as it is written."""
    return b"".join(frame)


def members(union: Any) -> set[str]:
    """Names of the types of a union."""
    return {kind.__name__ for kind in get_args(union)}


def encoded() -> dict[str, str]:
    """Bytes in hexadecimal digits, by name; of long ones the beginning, and how many there are."""
    found: dict[str, bytes] = {f"frame {type(frame).__name__}": join(wire.encode(frame)) for frame in FRAMES}
    payload = bytes(DATA.payload)
    found["frame Data"] = wire.data_head(len(payload), DATA.seq, DATA.ack) + payload
    found |= {f"message {type(message).__name__}": m.encode([message]) for message in MESSAGES}
    found |= {f"value {name}": join(values.encode(value)[0]) for name, value in VALUES.items()}
    found |= {f"chunk {index}": chunk for index, chunk in enumerate(chunks(None))}
    return {
        name: data.hex() if len(data) < 600 else f"{data[:300].hex()}... {len(data)}" for name, data in found.items()
    }


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(encoded(), indent=1) + "\n")
    print(f"{len(encoded())} entries are in {GOLDEN}")
