"""One row of each kind, with every field that it may have, and the golden bytes they must have.

python -m tests.mesh.table.row_examples      write tests/golden/table.json anew: the diff is the change of the format
"""

from __future__ import annotations

import json
from pathlib import Path

from lattica.mesh.table.kinds import (
    ACCUSATION,
    ACTOR,
    CERTIFICATE,
    CLEARANCE,
    EVIDENCE,
    GROUP,
    JOB,
    NAME,
    NEVER,
    NODE,
    SERVICE,
    SETTING,
    Kind,
)
from lattica.mesh.table.rows import BOOT_BITS, Content, Row, statement_row, write_row
from lattica.testing.authority import FakeKey

GOLDEN = Path(__file__).parents[2] / "golden" / "table.json"
MESH = b"m" * 32
KEY, OTHER = FakeKey("writer"), FakeKey("other")
ME = bytes(KEY.peer)
BOOT = 1_800_000_000 << BOOT_BITS | 0xABCDE
HLC = 1_800_000_001_500 << 16 | 7
EXPIRES = 1_800_086_400


def content(kind: Kind | int, key: bytes, body: bytes = b"body", /, **fields: object) -> Content:
    """The content of a row that could be valid; `fields` are other ones than usual."""
    number = kind if isinstance(kind, int) else kind.number
    is_multi = isinstance(kind, Kind) and kind.is_multi
    usual: dict[str, object] = {
        "kind": number, "key": key, "writer": ME, "boot": BOOT, "counter": 5, "hlc": HLC, "expires": EXPIRES,
        "gone": False, "body": body, "epoch": 1 if is_multi else 0,
    }  # fmt: skip
    return Content(**(usual | fields))  # type: ignore[arg-type]


def row(kind: Kind | int, key: bytes, body: bytes = b"body", before: Row | None = None, /, **fields: object) -> Row:
    """Signed by its writer. Raises RemoteProtocolError if it can be none."""
    if before is not None:
        fields = {"epoch": before.content.epoch + 1, "before": before.hash} | fields
    signer = OTHER if fields.get("writer") == OTHER.peer else KEY
    return write_row(content(kind, key, body, **fields), signer.sign, MESH, before)


def _rows() -> dict[str, Row]:
    first = row(NAME, b"learner", b"actor 1", heir=OTHER.peer)
    followed = row(NAME, b"learner", b"actor 2", first, writer=OTHER.peer, counter=9, hlc=HLC + 1, heir=KEY.peer)
    proof = {"hlc": 0, "expires": NEVER, "boot": BOOT, "counter": 5}
    return {
        "node": row(NODE, ME, b"\x81\xa4name\xa1a"),
        "accusation": row(ACCUSATION, bytes(OTHER.peer) + ME, b"\x92\x07\x08"),
        "certificate": row(CERTIFICATE, ME, b"\x92\xc4\x04leaf\xc4\x06issuer"),
        "statement": statement_row(b"what an admin says"),
        "evidence": row(EVIDENCE, ME + BOOT.to_bytes(8, "big") + (5).to_bytes(8, "big"), b"two rows", **proof),
        "clearance": row(CLEARANCE, bytes(OTHER.peer), BOOT.to_bytes(8, "big"), expires=NEVER),
        "service": row(SERVICE, ME + b"shop"),
        "job": row(JOB, b"j" * 16),
        "actor": row(ACTOR, b"a" * 16),
        "group": row(GROUP, b"g" * 16),
        "name": followed,
        "setting": row(SETTING, b"retries", gone=True),
        "kind of a later release": row(77, b"anything", heir=OTHER.peer, epoch=3),
    }


ROWS = _rows()


def encoded() -> dict[str, str]:
    """Bytes in hexadecimal digits, by name."""
    return {name: each.data.hex() for name, each in ROWS.items()}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(encoded(), indent=1) + "\n")
    print(f"{len(encoded())} entries are in {GOLDEN}")
