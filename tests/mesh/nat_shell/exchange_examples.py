"""One of each message about NATs, and the golden bytes they must have.

python -m tests.mesh.nat_shell.exchange_examples      write tests/golden/nat.json anew
"""

from __future__ import annotations

import json
from pathlib import Path

from lattica.mesh.nat.attempts import (
    Again,
    Go,
    Introduce,
    Introduced,
    Introduction,
    Later,
    Message,
    Prepare,
    Readiness,
    Ready,
)
from lattica.mesh.nat.behaviour import Allocation, Behaviour, Dependence
from lattica.mesh.nat.candidates import Candidate, Source
from lattica.mesh.nat.methods import Method
from lattica.mesh.nat.routes import Endpoint
from lattica.mesh.nat_shell.exchange import Card, write_card, write_message

GOLDEN = Path(__file__).parents[2] / "golden" / "nat.json"
BEHAVIOUR = Behaviour(
    True, True, Dependence.ADDRESS_AND_PORT, Dependence.ADDRESS, Allocation.SEQUENTIAL, 2, 30.0, False, True, True, True
)
INTRODUCTION = Introduction(
    BEHAVIOUR,
    (
        Candidate(Source.OBSERVED, Endpoint("192.0.2.7", 41_000)),
        Candidate(Source.LAN, Endpoint("10.0.0.7", 7411)),
        Candidate(Source.HOST, Endpoint("2001:db8::7", 7411)),
    ),
    (Endpoint("192.0.2.7", 7411),),
    False,
)
READINESS = Readiness(Endpoint("192.0.2.9", 5000), (5001, 5002))
CARD = Card(bytes(range(32)), True, 40_000, True)
MESSAGES: list[Message] = [
    Introduce(1, INTRODUCTION),
    Introduced(1, INTRODUCTION),
    Prepare(1, 3, Method.SIMULTANEOUS),
    Ready(1, 3, READINESS, 0.25),
    Go(1, 3, Method.PREDICTION, READINESS),
    Later(1, 30.0),
    Again(1),
]


def encoded() -> dict[str, str]:
    """Bytes in hexadecimal digits, by name."""
    found = {type(message).__name__: write_message(message) for message in MESSAGES} | {"Card": write_card(CARD)}
    return {name: body.hex() for name, body in found.items()}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(encoded(), indent=1) + "\n")
    print(f"{len(encoded())} entries are in {GOLDEN}")
