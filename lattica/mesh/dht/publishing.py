"""What this peer says of itself in the DHT, and says again before it expires, until it no longer wants to."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from lattica.errors import ConfigError
from lattica.mesh.dht.agenda import Agenda
from lattica.mesh.dht.keys import Key, peer_key, value_key
from lattica.mesh.dht.records import (
    NAME_MAX_BYTES,
    PEER,
    PROVIDER,
    VALUE,
    VALUE_MAX_BYTES,
    Content,
    Record,
    Sign,
    write_record,
)
from lattica.mesh.identity import PeerId, peer_id_of

REPUBLISH_PART = 1 / 3
"""Of its time to live, after which a record is stored again: the round may fail once and nothing has expired."""
RETRY_S = 30.0  # after nobody kept it
OWN_MAX = 1024
"""Each costs a look-up and 20 stores every 20 minutes: so many are one a second, and what a server keeps of us."""


@dataclass(slots=True, eq=False)
class Storing:
    """One record on its way to the K closest. open: how many have not said yet whether they keep it."""

    key: Key
    open: int
    count: int = 0


@dataclass(slots=True)
class Own:
    """One record that we want to be found. count: how many keep it."""

    kind: int
    key: Key
    name: str = ""
    value: bytes = b""
    count: int = 0


class Publisher:
    """See the module. boot: the number of this start, above all earlier ones; seq counts within it."""

    def __init__(self, public_key: bytes, sign: Sign, mesh: bytes, boot: int, ttl_s: float, rng: Random) -> None:
        self.me: PeerId = peer_id_of(public_key)
        self.addresses: tuple[str, ...] = ()
        self._public_key, self._sign, self._mesh, self._boot = public_key, sign, mesh, boot
        self._ttl_s, self._rng = ttl_s, rng
        self._own: dict[Key, Own] = {}
        self._seq = 0
        self.agenda: Agenda[Key] = Agenda()

    def __len__(self) -> int:
        return len(self._own)

    def provide(self, key: Key) -> Key:
        """Say that we have this, or take part in it. Raises ConfigError if that is too much."""
        if key == peer_key(self.me):
            raise ConfigError("a peer cannot provide itself", do_next="nothing: others find it by `find_peer`")
        return self._want(Own(PROVIDER, key))

    def put(self, name: str, value: bytes) -> Key:
        """Say this under a name of ours. Raises ConfigError for what is too long, or too much."""
        if len(value) > VALUE_MAX_BYTES:
            raise ConfigError(
                f"a record of {len(value)} bytes is too long for the DHT, which takes {VALUE_MAX_BYTES}",
                do_next="put the value into the object store, and provide its content id",
            )
        if len(name.encode(errors="replace")) > NAME_MAX_BYTES or not name.isprintable():
            raise ConfigError(
                f"{name!r:.80} is no name for a record", do_next=f"use at most {NAME_MAX_BYTES} bytes of printable text"
            )
        return self._want(Own(VALUE, value_key(self.me, name), name, value))

    def withdraw(self, key: Key) -> None:
        """Say it no more; what others keep of it expires."""
        self._own.pop(key, None)
        self.agenda.drop(key)

    def moved(self, addresses: tuple[str, ...], now: float) -> None:
        """We are at these: our peer record says so, and everything else is said again with them."""
        key = peer_key(self.me)
        if addresses == self.addresses and key in self._own:
            return
        self.addresses = addresses
        self._own.setdefault(key, Own(PEER, key))
        for own in self._own.values():
            if own.kind != VALUE:
                self.agenda.put(own.key, now)

    def write(self, key: Key, unix_s: float) -> Record | None:
        """A fresh record, later than all before; None if it is not wanted any more."""
        own = self._own.get(key)
        if own is None:
            return None
        self._seq += 1
        addresses = () if own.kind == VALUE else self.addresses
        expires = int(unix_s + self._ttl_s)
        content = Content(
            own.kind, own.key, self._public_key, self._boot, self._seq, expires, addresses, own.name, own.value
        )
        return write_record(content, self._sign, self._mesh)

    def hurry(self, now: float) -> None:
        """What nobody keeps yet is tried again at once: now we know others."""
        for own in self._own.values():
            if not own.count and own.key in self.agenda:
                self.agenda.put(own.key, now)

    def next_deadline(self) -> float | None:
        """When the next record is to be stored again."""
        return self.agenda.next()

    def stored(self, key: Key, count: int, now: float) -> None:
        """So many keep it: when to store it again, not in step with others."""
        if key in self._own:
            self._own[key].count = count
            wait_s = min(self._ttl_s * REPUBLISH_PART, RETRY_S if not count else self._ttl_s)
            self.agenda.put(key, now + wait_s * self._rng.uniform(0.75, 1.0))

    def _want(self, own: Own) -> Key:
        if own.key not in self._own and len(self._own) >= OWN_MAX:
            raise ConfigError(
                f"this peer has {len(self._own)} records in the DHT, as many as it may",
                do_next="withdraw some, or provide one key for several contents",
            )
        self._own[own.key] = own
        return own.key
