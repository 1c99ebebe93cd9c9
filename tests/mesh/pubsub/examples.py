"""Peers for tests of topics, and one of every message with the golden bytes it must have.

python -m tests.mesh.pubsub.examples      write tests/golden/pubsub.json anew: the diff is the change of the wire
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from lattica.mesh import publications as p
from lattica.mesh.identity import PeerId
from lattica.mesh.publications import Have, Message, Publication, Run, Want, to_sign
from lattica.mesh.pubsub import Effect, Published, PubSub, Send
from lattica.testing.authority import FAKE_CHECKS, FakeKey

GOLDEN = Path(__file__).parents[2] / "golden" / "pubsub.json"
MESH = b"m" * 32
ANN, BOB, CYD, DAN = (FakeKey(name) for name in ("ann", "bob", "cyd", "dan"))
KEYS = {key.peer: key for key in (ANN, BOB, CYD, DAN, *(FakeKey(f"peer {number}") for number in range(20)))}


def publication(
    number: int = 1, by: FakeKey = ANN, *, boot: int = 5, topic: str = "steps", body: bytes = b"4096", age_ms: int = 0
) -> Publication:
    """A signed one."""
    signature = by.sign(to_sign(by.peer, boot, number, topic, body, MESH))
    return Publication(by.peer, boot, number, topic, body, signature, age_ms)


MESSAGES: list[Message] = [
    publication(7, boot=1 << 40, topic="wetter/München", age_ms=1500),
    Have((Run(ANN.peer, 1 << 40, 1, 7), Run(BOB.peer, 2, 9, 9))),
    Want((Run(ANN.peer, 1 << 40, 3, 4),)),
]


def encoded() -> dict[str, str]:
    """Bytes in hexadecimal digits, by name."""
    return {type(message).__name__: p.encode(message).hex() for message in MESSAGES}


def core(key: FakeKey, *links: PeerId, boot: int = 5, knows: Any = KEYS) -> PubSub:
    """One that has these links. knows: whose signatures it can verify."""

    def verify(publisher: PeerId, signature: bytes, data: bytes) -> bool:
        return publisher in knows and FAKE_CHECKS.signed(KEYS[publisher].public_key, signature, data)

    made = PubSub(key.peer, boot, Random(1), sign=key.sign, verify=verify, mesh=MESH)
    for peer in links:
        assert made.connected(peer, 0.0) == []
    return made


def sent(effects: list[Effect]) -> list[tuple[PeerId, Message]]:
    """What is sent to whom."""
    return [(effect.to, effect.message) for effect in effects if isinstance(effect, Send)]


def given(effects: list[Effect]) -> list[Published]:
    """What subscribers here are given."""
    return [effect for effect in effects if isinstance(effect, Published)]


class Peers:
    """Cores that hear each other at once, but for what `lost` says is lost."""

    def __init__(self, *keys: FakeKey) -> None:
        self.cores = {key.peer: core(key) for key in keys}
        self.given: list[tuple[PeerId, Published]] = []
        self.sent: list[tuple[PeerId, PeerId, Message]] = []
        self.lost: Any = lambda sender, to, message: False
        self.now = 0.0

    def link(self, one: FakeKey, other: FakeKey) -> None:
        self.tell(one, "connected", other.peer)
        self.tell(other, "connected", one.peer)

    def tell(self, key: FakeKey, verb: str, *args: Any) -> None:
        """A wish of one of them, and all that comes of it."""
        self._carry(key.peer, getattr(self.cores[key.peer], verb)(*args, self.now))

    def run(self, until: float) -> None:
        """Tick whoever wants to be."""
        while True:
            dues = {peer: due for peer, one in self.cores.items() if (due := one.next_deadline()) is not None}
            peer = min(dues, key=lambda peer: dues[peer], default=None)
            if peer is None or dues[peer] > until:
                self.now = until
                return
            self.now = max(self.now, dues[peer])
            self._carry(peer, self.cores[peer].tick(self.now))

    def _carry(self, sender: PeerId, effects: list[Effect]) -> None:
        todo = [(sender, effect) for effect in effects]
        while todo:
            sender, effect = todo.pop(0)
            if isinstance(effect, Published):
                self.given.append((sender, effect))
                continue
            self.sent.append((sender, effect.to, effect.message))
            if effect.to in self.cores and not self.lost(sender, effect.to, effect.message):
                receiver = self.cores[effect.to]
                message = p.decode(p.encode(effect.message))
                todo += [(effect.to, each) for each in receiver.receive(sender, message, self.now)]
                receiver.validate()


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(encoded(), indent=1) + "\n")
    print(f"{len(encoded())} entries are in {GOLDEN}")
