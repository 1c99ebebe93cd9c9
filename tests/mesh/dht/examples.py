"""Peers, keys and records for tests of the DHT, and one of every message with the golden bytes it must have.

python -m tests.mesh.dht.examples      write tests/golden/dht.json anew: the diff is the change of the wire
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from lattica.mesh.dht import messages as m
from lattica.mesh.dht.events import Effect
from lattica.mesh.dht.kademlia import Kademlia
from lattica.mesh.dht.keys import Key, content_key, peer_key, topic_key, value_key
from lattica.mesh.dht.messages import Contact
from lattica.mesh.dht.records import PEER, PROVIDER, VALUE, Content, Record, write_record
from lattica.mesh.identity import PeerId
from lattica.testing.authority import FAKE_CHECKS, FakeKey

GOLDEN = Path(__file__).parents[2] / "golden" / "dht.json"
MESH = b"m" * 32
AT = 1_800_000_000
ANN, BOB, CYD = FakeKey("ann"), FakeKey("bob"), FakeKey("cyd")
MANY = [FakeKey(f"peer {number}") for number in range(30)]
CONTENT, TOPIC = content_key(b"weights"), topic_key("training")
ADDRESSES = ("192.0.2.7:7411", "[2001:db8::7]:7411")


def contents(key: FakeKey = ANN) -> dict[str, Content]:
    """One of each kind."""
    common: dict[str, Any] = {"public_key": key.public_key, "boot": 1 << 40, "seq": 7, "expires": AT + 3600}
    return {
        "peer": Content(PEER, peer_key(key.peer), addresses=ADDRESSES, **common),
        "provider": Content(PROVIDER, CONTENT, addresses=ADDRESSES, **common),
        "value": Content(VALUE, value_key(key.peer, "step"), name="step", value=b"4096", **common),
    }


def record(kind: str = "provider", by: FakeKey = ANN, /, **changes: Any) -> Record:
    """A signed one, with some fields changed."""
    return write_record(msgspec.structs.replace(contents(by)[kind], **changes), by.sign, MESH)


MESSAGES: list[m.Message] = [
    m.Find(1 << 40, CONTENT, PROVIDER, ADDRESSES),
    m.Found(7, (Contact(BOB.peer, ADDRESSES), Contact(CYD.peer, ())), (record().data,), ADDRESSES),
    m.Store(8, record("value").data),
    m.Kept(8, True),
]


def encoded() -> dict[str, str]:
    """Bytes in hexadecimal digits, by name."""
    found = {f"message {type(message).__name__}": m.encode(message) for message in MESSAGES}
    found |= {f"record {kind}": record(kind).data for kind in contents()}
    found |= {f"key {name}": bytes(key) for name, key in keys().items()}
    return {name: data.hex() for name, data in found.items()}


def keys() -> dict[str, Key]:
    """One of each purpose: where things are looked for must never change."""
    return {"content": CONTENT, "topic": TOPIC, "value": value_key(ANN.peer, "step")}


# -- cores -------------------------------------------------------------------------------------------------------------


def peer_at(number: int) -> PeerId:
    """A peer that stands at this number."""
    return PeerId(number.to_bytes(32, "big"))


def core(key: FakeKey, *, serves: bool = True, seed: int = 1, ttl_s: float = 3600.0) -> Kademlia:
    """One that is at its own first 4 hex digits, at time 0, and has said so to nobody."""
    made = Kademlia(
        key.public_key, Random(seed), sign=key.sign, verify=FAKE_CHECKS.signed, mesh=MESH, boot=1, wall_offset=AT,
        ttl_s=ttl_s,
    )  # fmt: skip
    made.reachable([home_of(key.peer)], serves, 0.0)
    return made


def home_of(peer: PeerId) -> str:
    """Its address."""
    return f"{peer[:2].hex()}:7411"


def to(key: FakeKey) -> tuple[str, ...]:
    """Its addresses."""
    return (home_of(key.peer),)


def sends(effects: list[Any], kind: type = m.Find) -> list[m.Send]:
    """Those of one kind of message."""
    return [effect for effect in effects if isinstance(effect, m.Send) and isinstance(effect.message, kind)]


def events(peers: Peers, key: FakeKey, kind: type) -> list[Any]:
    """What one was told, of one kind."""
    return [event for event in peers.events[key.peer] if isinstance(event, kind)]


class Peers:
    """Cores that hear each other at once, until some are silent; the events of each."""

    def __init__(self, *keys: FakeKey, serves: bool = True) -> None:
        self.cores = {key.peer: core(key, serves=serves, seed=number) for number, key in enumerate(keys)}
        self.silent: set[PeerId] = set()
        self.events: dict[PeerId, list[Any]] = {peer: [] for peer in self.cores}
        self.now = 0.0

    def introduce(self) -> None:
        """All know all that serve."""
        for one in self.cores.values():
            for other in self.cores.values():
                if one is not other:
                    one.saw(other.peer, (home_of(other.peer),), other.serves, self.now)

    def carry(self, sender: PeerId, effects: list[Effect]) -> None:
        """Deliver, and what comes of it."""
        todo = [(sender, effect) for effect in effects]
        while todo:
            sender, effect = todo.pop(0)
            if not isinstance(effect, m.Send):
                self.events[sender].append(effect)
            elif effect.peer in self.cores and effect.peer not in self.silent:
                said = m.decode(m.encode(effect.message))
                receiver = self.cores[effect.peer]
                todo += [(receiver.peer, each) for each in receiver.receive(sender, said, self.now)]
                receiver.validate()

    def tell(self, peer: PeerId, verb: str, *args: Any) -> None:
        """A wish of one of them."""
        self.carry(peer, getattr(self.cores[peer], verb)(*args, self.now))

    def run(self, until: float) -> None:
        """Tick whoever wants to be."""
        while True:
            dues = {peer: due for peer, one in self.cores.items() if (due := one.next_deadline()) is not None}
            living = {peer: due for peer, due in dues.items() if peer not in self.silent}
            peer = min(living, key=lambda peer: living[peer], default=None)
            if peer is None or living[peer] > until:
                self.now = until
                return
            self.now = max(self.now, living[peer])
            self.tell(peer, "tick")


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(encoded(), indent=1) + "\n")
    print(f"{len(encoded())} entries are in {GOLDEN}")
