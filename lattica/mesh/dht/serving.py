"""What a peer that serves does for others: it tells whom it knows, and keeps and shows their records."""

from __future__ import annotations

from random import Random

from lattica.errors import RemoteProtocolError
from lattica.mesh.dht.buckets import RoutingTable
from lattica.mesh.dht.keys import Key
from lattica.mesh.dht.messages import Find, Found, Kept, Send, Store
from lattica.mesh.dht.records import Verify, is_signed, read_record
from lattica.mesh.dht.store import RecordStore
from lattica.mesh.identity import PeerId


class Serving:
    """See the module. addresses: where everybody reaches us; () for a client, which is asked by mistake at most."""

    def __init__(self, table: RoutingTable, verify: Verify, mesh: bytes, rng: Random) -> None:
        self.store = RecordStore()
        self.addresses: tuple[str, ...] = ()
        self._table, self._verify, self._mesh, self._rng = table, verify, mesh, rng

    def find(self, sender: PeerId, find: Find, now: float) -> list[Send]:
        """Whom we know that is close, and what we keep."""
        if not self.addresses:
            return []
        contacts = tuple(self._table.closest(find.target, without=sender))
        records = self.store.some_of(find.kind, Key(find.target), now, self._rng) if find.kind else ()
        return [Send(sender, find.addresses, Found(find.ask, contacts, records, self.addresses))]

    def keep(self, sender: PeerId, store: Store, now: float, unix_s: float) -> list[Send]:
        """Keep it, if the sender wrote it. Raises RemoteProtocolError for what it could not have meant."""
        if not self.addresses:
            return []
        record = read_record(store.record)
        if record.writer != sender:
            raise RemoteProtocolError("a peer brings a record that is not its own")
        if not is_signed(record, self._verify, self._mesh):
            raise RemoteProtocolError("a peer brings a record that it has not signed")
        return [Send(sender, (), Kept(store.ask, self.store.keep(record, now, unix_s)))]
