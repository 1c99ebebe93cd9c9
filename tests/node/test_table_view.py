"""How rows of the table are shown: readable where somebody knows what they mean, and never an error."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from lattica.mesh.identity import PeerId, short_peer
from lattica.mesh.letters import Accused, NodeInfo
from lattica.mesh.table.kinds import ACCUSATION, CLEARANCE, NODE, SERVICE, SETTING, Kind
from lattica.mesh.table.rows import BOOT_BITS, Content, Row, write_row
from lattica.node import table_view

ANN, BOB = PeerId(b"\xaa" * 32), PeerId(b"\xbb" * 32)
BOOT = 1795700000
HLC_S = 1_795_700_001.0
HLC = int(HLC_S * 1000) << 16
HAS = {"CPU": 2.0, "memory": 2.0**30}


@dataclass
class Shelf:
    """What of a replica is looked at."""

    kept: list[Row] = field(default_factory=list)
    why: str = ""

    def put(self, kind: Kind, key: bytes, body: bytes, **how: Any) -> None:
        epoch = 1 if kind.is_multi else 0
        content = Content(
            kind.number, key, bytes(ANN), BOOT << BOOT_BITS | 7, 3, HLC, 2_000_000_000, False, body, epoch
        )
        self.kept.append(write_row(msgspec.structs.replace(content, **how), lambda _: bytes(64), bytes(32)))

    def all(self) -> Iterable[Row]:
        return self.kept

    def __len__(self) -> int:
        return len(self.kept)

    def root(self) -> bytes:
        return b"\x01" * 16

    def is_visible(self, row: Row) -> bool:
        return not row.content.gone and not self.why

    def distrusts(self, writer: PeerId) -> str:
        return self.why

    def member(self, writer: PeerId) -> None:
        return None


def shown(shelf: Any, kind: str) -> dict[str, Any]:
    """The only row of this kind."""
    [row] = table_view.rows_of(shelf, kind)["rows"]
    return dict(row)


@pytest.mark.parametrize(
    ("kind", "key", "body", "as_key", "says"),
    [
        (ACCUSATION, bytes(BOB + ANN), msgspec.msgpack.encode(Accused(BOOT << BOOT_BITS | 9, 4)),
         f"{short_peer(BOB)} by {short_peer(ANN)}", f"silent since it wrote ({BOOT}, 4)"),
        (NODE, bytes(ANN), msgspec.msgpack.encode(NodeInfo("a", "0.1.0", [], {}, HAS, True)),
         short_peer(ANN), "a; lattica 0.1.0; has left; 2 CPU 1.0 GiB memory"),
        (NODE, bytes(ANN), b"\xc1", short_peer(ANN), "cannot be read: "),
        (SERVICE, bytes(ANN) + b"store", b"\xff\x00", f"{short_peer(ANN)} store", "ff00"),
        (CLEARANCE, bytes(BOB), (BOOT << BOOT_BITS).to_bytes(8, "big"), short_peer(BOB), f"up to boot {BOOT}"),
        (SETTING, b"quota", b"7 of 9", "quota", "7 of 9"),
        (SETTING, b"\x00\xff", b"", "00ff", ""),
        (Kind(99, "later", SETTING.keys, None, 10, 1, 1.0), b"k", b"hello", "k", "hello"),
    ],
)  # fmt: skip
def test_a_row_is_shown_in_words(kind: Kind, key: bytes, body: bytes, as_key: str, says: str) -> None:
    shelf = Shelf()
    shelf.put(kind, key, body)
    row = shown(shelf, kind.name if kind.number != 99 else "99")
    assert row["key"] == as_key and says in row["says"]
    assert (row["boot"], row["counter"], row["written"], row["expires"]) == (BOOT, 3, HLC_S, 2_000_000_000)


def test_why_a_row_does_not_count_is_said_and_its_writer_is_named() -> None:
    shelf: Any = Shelf()
    shelf.put(SETTING, b"a", b"", gone=True)
    assert shown(shelf, "setting")["hidden"] == "a tombstone"
    shelf.why = "it was revoked"
    shelf.put(NODE, bytes(ANN), b"")
    assert shown(shelf, "node")["hidden"] == "it was revoked"
    found = table_view.summary(shelf)
    assert [one["why"] for one in found["distrusted"]] == ["it was revoked"] and found["rows"] == 2
    assert {one["kind"]: one["hidden"] for one in found["kinds"] if one["rows"]} == {"node": 1, "setting": 1}


def test_more_rows_than_are_shown_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_view, "ROWS_MAX", 2)
    shelf: Any = Shelf()
    for number in range(5):
        shelf.put(SETTING, bytes([65 + number]), b"")
    found = table_view.rows_of(shelf, "setting")
    assert [row["key"] for row in found["rows"]] == ["A", "B"] and found["more"] == 3
