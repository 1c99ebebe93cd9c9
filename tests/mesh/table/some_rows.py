"""Rows to fill tables with, signed by keys of simulated worlds."""

from __future__ import annotations

from lattica.mesh.table.kinds import SERVICE
from lattica.mesh.table.rows import Content, Row, write_row
from lattica.testing.authority import FakeKey

MESH = b"m" * 32
KEY = FakeKey("writer")
EXPIRES = 2_000_000_000


def some_row(number: int, version: int = 1, body: bytes = b"here") -> Row:
    """The row of this number; of two versions the later one wins."""
    key = KEY.peer + number.to_bytes(4, "big")
    content = Content(SERVICE.number, key, KEY.peer, 7 << 20, version, version << 16, EXPIRES, False, body)
    return write_row(content, KEY.sign, MESH)


def some_rows(count: int, body_bytes: int = 4) -> list[Row]:
    return [some_row(number, body=b"b" * body_bytes) for number in range(count)]
