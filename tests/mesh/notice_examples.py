"""One of each message of the community, and the golden bytes they must have.

python -m tests.mesh.notice_examples      write tests/golden/notices.json anew: the diff is the change of the wire
"""

from __future__ import annotations

import json
from pathlib import Path

from lattica.mesh import notices
from lattica.mesh.identity import PeerId
from lattica.mesh.letters import Message, News, Probe, Rows, Summon
from lattica.mesh.membership import Ask, Heard
from lattica.mesh.soft_state import Saying
from lattica.mesh.table.reconcile import Few, Fingerprints, Items, More, Sums, Want
from tests.mesh.table.row_examples import ROWS

GOLDEN = Path(__file__).parents[1] / "golden" / "notices.json"
PEER, OTHER = PeerId(bytes(range(32))), PeerId(bytes(range(32, 64)))
SAYINGS = (Saying(b"8 bytes.", 1 << 50, 1500, b"8 free"), Saying(b"another.", 7, 0, b""))

MESSAGES: list[Message] = [
    Probe(1 << 31, True, b"r" * 16, SAYINGS),
    Rows((ROWS["service"], ROWS["name"]), True),
    Ask(PEER),
    Heard(PEER),
    News(SAYINGS),
    Summon(PEER, OTHER, 1),
    Fingerprints([Sums(0x1A, 0xA1 << 56, bytes(range(128)))]),
    Items([Few(0x1A3, 0xA3 << 56, (0xA31 << 52).to_bytes(8, "big") + b"hash....")]),
    Want((5).to_bytes(8, "big") + (6).to_bytes(8, "big")),
    More([(0x1A3, 0xA35 << 52)]),
]


def encoded() -> dict[str, str]:
    """Protocol and bytes in hexadecimal digits, by name."""
    found = {type(message).__name__: notices.encode(message) for message in MESSAGES}
    return {name: f"{protocol} {body.hex()}" for name, (protocol, body) in found.items()}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(encoded(), indent=1) + "\n")
    print(f"{len(encoded())} entries are in {GOLDEN}")
