"""Who holds what on one machine: the node's ledger.

    client -> node   Seal, Give, Hold, Drop, Promise, Resolve, Unheard          node -> client   Located, Lost, Freed

Rules of this file. Clients tell signed changes, each in its own order; there is no order between two clients. A giver
tells the node before it tells the receiver, and gives only what it holds. From that follows: once the first hold on an
object has been told (`Promise`, `Seal`, `track`), its counts are all zero only when nobody holds it and nothing is on
its way. For if a change were still untold, take the earliest `Give` among them: its giver held the object then, has not
told a `Drop` since, and got no later hold that could hide it, so its count is above zero. A count below zero means that
a `Give` is still on its way, and keeps the object as a count above zero does. (The hold that a `Seal` gives to the
submitter of a task is the one that comes from no holder. It matters only to what is not sealed yet: there, who waits
for the object keeps what is known of it.)

That proof needs one thing of the shell: a client is `client_gone` only after all it wrote has been read, for a process
may give, tell and die. What others tell of a client that is gone is ignored, and so is what it told itself.

A sealed object holds the objects inside it, as a client would. Bytes outlive their maker: the region of a dead client
is adopted by the node. What was promised by the dead, or never told of, is lost, unless a `Seal` on another connection
still brings it: an executor's reply may have been read by the owner that died, before its `Seal` was read by the node.

Another machine's node is a client like any other: it holds what its processes hold, and what it lends to ours stands
here as its promise until the bytes have been fetched (`borrow`, `Unborrowed`).

A sealed object may lie on disk for a while (`evict`, `restored`): nobody may read its region then, and whoever wants
its bytes waits until they are back (`Wanted`). See `spill` for what is to go there and when.

One file, though a long one: the verbs are few lines each, and the invariants that `validate` states bind all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from lattica.codec.messages import NODE, Freed, Located, Lost
from lattica.errors import RemoteProtocolError

TOKEN_BYTES = 8
"""An object's id begins with the token of the process that owns it."""

OWNER_UNKNOWN = "its owner has ended, and nobody else had been told where the value is"


class Tell(msgspec.Struct, frozen=True):
    """Send `message` to `client`."""

    client: int
    message: Located | Lost | Freed


class FreeRegion(msgspec.Struct, frozen=True):
    """Nobody holds this adopted region of the arena any more."""

    offset: int
    size: int
    object: bytes = b""


class Forgotten(msgspec.Struct, frozen=True):
    """Nobody holds this object any more, and no region is to be freed for it: it was on disk, or `Adopt` says so."""

    object: bytes


class Wanted(msgspec.Struct, frozen=True):
    """Somebody waits for the bytes of this object, which lies on disk."""

    object: bytes


class Adopt(msgspec.Struct, frozen=True):
    """All spans of `client`, who is gone, are free but for the `live` regions (offset, size): others hold those."""

    client: int
    live: list[tuple[int, int]]


class Unreferenced(msgspec.Struct, frozen=True):
    """Nobody has a handle of this actor any more."""

    actor: bytes


class Unborrowed(msgspec.Struct, frozen=True):
    """Nobody here holds what `lender`, another machine's node, lends us: tell it."""

    lender: int
    object: bytes


Effect = Tell | FreeRegion | Forgotten | Wanted | Adopt | Unreferenced | Unborrowed

SPILLED = -1
"""In place of the offset of what lies on disk."""


class _Sealed:
    """The object lies here, at SPILLED on disk. `maker`: client whose span it is, NODE once that is gone; `author`: who
    that was; `to`: who was given a hold; `attempt`: by which run of its task it was made; `run`: by which, as its maker
    counts, who may not have heard of some."""

    __slots__ = ("attempt", "author", "contains", "earlier", "failed", "maker", "offset", "run", "size", "to")

    def __init__(
        self, maker: int, offset: int, size: int, to: int, failed: bool, contains: Sequence[bytes], attempt: int = 0
    ) -> None:
        self.maker = self.author = maker
        self.attempt = self.run = attempt
        self.offset, self.size, self.to = offset, size, to
        self.failed, self.contains = failed, contains
        self.earlier: _Sealed | None = None  # by an earlier attempt at the same task: somebody may be reading it

    def attempts(self) -> Iterator[_Sealed]:
        seal: _Sealed | None = self
        while seal is not None:
            yield seal
            seal = seal.earlier


class _Promised(msgspec.Struct, frozen=True):
    owner: int
    made_at: str
    attempt: int = 0  # what comes is of this one or a later one


class _Lost(msgspec.Struct, frozen=True):
    how: str
    made_at: str


class _Actor(msgspec.Struct, frozen=True):
    pass


class _Entry:
    """What is known of one id. `state` is None until its `Promise` or `Seal` has been read."""

    __slots__ = ("holders", "state", "waiters")

    def __init__(self) -> None:
        self.holders = 0  # clients whose count is not zero, and sealed objects that contain it
        self.state: _Sealed | _Promised | _Lost | _Actor | None = None
        self.waiters: list[int] = []


class _Client:
    __slots__ = ("answers_for", "counts", "made", "token", "waits")

    def __init__(self, token: bytes) -> None:
        self.token = token
        self.counts: dict[bytes, int] = {}  # never zero
        self.waits: dict[bytes, None] = {}  # what it has asked for and not been told
        self.answers_for: dict[bytes, None] = {}  # what is lost if it goes: promised by it, or its own and asked for
        self.made: dict[bytes, None] = {}  # objects that lie in its spans


class ClientView(msgspec.Struct, frozen=True):
    """One client, for `lattica status` and for the words of a full store; sizes in bytes."""

    client: int
    held: int
    held_bytes: int
    made: int
    made_bytes: int
    waiting: int


class ObjectView(msgspec.Struct, frozen=True):
    """One object, for `lattica list objects`. state: "here", "spilled", "failed" (here, an error), "promised", "lost",
    "unknown". owner: the client whose id it is, if that lives; lender: who lends it to us; holders: clients that hold
    it, and objects here that contain it."""

    object: bytes
    state: str
    size: int
    owner: int | None
    lender: int | None
    holders: int
    made_at: str


class Ledger:
    """Counts per object and client. Verbs return what the node has to do, in order; see the rules above."""

    def __init__(self) -> None:
        self._entries: dict[bytes, _Entry] = {}
        self._clients: dict[int, _Client] = {NODE: _Client(b"")}
        self._owners: dict[bytes, int] = {}  # token -> client
        self._borrowed: dict[bytes, int] = {}  # object -> client that lends it
        self._doubted: set[bytes] = set()  # borrowed, and its owner was told that it may be lost

    def __repr__(self) -> str:
        return f"<Ledger {len(self._entries)} ids of {len(self._clients) - 1} clients, {self.pending} asked for>"

    @property
    def pending(self) -> int:
        """Answers owed: pairs of a client and an object that it waits for."""
        return sum(len(client.waits) for client in self._clients.values())

    def owner(self, object: bytes) -> int | None:
        """The client that made this id, if it still lives."""
        return self._owners.get(object[:TOKEN_BYTES])

    def client_joined(self, client: int, token: bytes = b"") -> None:
        """Client `client` may speak, and be spoken of, from now on; it owns the ids that begin with `token`, if any.

        Raises RemoteProtocolError if another client has this token.
        """
        assert client not in self._clients, "client numbers are never reused"
        if token in self._owners:
            raise RemoteProtocolError(f"client {client} says that its ids begin like those of {self._owners[token]}")
        self._clients[client] = _Client(token)
        if token:
            self._owners[token] = client

    def give(self, client: int, object: bytes, to: int, count: int = 1) -> list[Effect]:
        """`client` gave `count` holds to client `to`. `client` NODE: the node itself gives, or has given the handle."""
        receiver = self._clients.get(to)
        if receiver is None or client not in self._clients:
            return []
        return self._add(receiver, object, count)

    def hold(self, client: int, object: bytes) -> list[Effect]:
        """`client` took a hold from a container that it holds."""
        holder = self._clients.get(client)
        return [] if holder is None else self._add(holder, object, 1)

    def drop(self, client: int, object: bytes, count: int = 1) -> list[Effect]:
        """`client` let `count` holds go."""
        holder = self._clients.get(client)
        return [] if holder is None else self._add(holder, object, -count)

    def track(self, client: int, object: bytes) -> list[Effect]:
        """`object` is an actor that `client` has created: adds its hold; `Unreferenced` follows when nobody has one."""
        holder = self._clients.get(client)
        if holder is None:
            return []
        entry = self._entry(object)
        self._settle(object, entry)  # another node's until now, perhaps
        entry.state = _Actor()
        return self._add(holder, object, 1)

    def promise(self, client: int, object: bytes, made_at: str = "") -> list[Effect]:
        """`client` owns `object`, whose value is still being made: adds its hold."""
        owner = self._clients.get(client)
        if owner is None:
            return []
        entry = self._entry(object)
        effects = self._ours_after_all(client, object)
        if effects or entry.state is None or isinstance(entry.state, _Lost):
            self._settle(object, entry)
            entry.state = _Promised(client, made_at)
            owner.answers_for[object] = None
        return effects + self._add(owner, object, 1)

    def seal(
        self,
        client: int,
        object: bytes,
        offset: int,
        size: int,
        to: int = 0,
        failed: bool = False,
        contains: Sequence[bytes] = (),
        attempt: int = 0,
    ) -> list[Effect]:
        """`object` lies in a span of `client`: adds a hold for `to` (0: for `client`), and its own on what it contains.

        A task that runs again after its worker died seals its result a second time. The submitter never heard of the
        first: see `unheard`.
        """
        maker = self._clients.get(client)
        if maker is None:
            return []
        entry = self._entry(object)
        earlier = entry.state if isinstance(entry.state, _Sealed) else None
        made_anew = object in self._doubted and client == self.owner(object)
        run, attempt = attempt, max(attempt, self.attempt(object) + made_anew)
        self._settle(object, entry)
        inside = tuple(inner for inner in contains if inner != object)
        to = to or client
        entry.state = _Sealed(client, offset, size, to, failed, inside, attempt)
        entry.state.earlier, entry.state.run = earlier, run
        maker.made[object] = None
        for inner in inside:
            self._entry(inner).holders += 1
        effects = self._ours_after_all(client, object)
        effects += [Tell(waiter, Located(object, offset, size, failed)) for waiter in entry.waiters]
        self._answered(object, entry)
        holder = self._clients.get(to)
        if holder is not None:
            return effects + self._add(holder, object, 1)
        if not entry.holders:
            self._fall(object, entry, effects)
        return effects

    def borrow(
        self, client: int, object: bytes, lender: int, *, value: bool, attempt: int = 0
    ) -> tuple[list[Effect], bool]:
        """`lender`, another machine's node, gave `client` a hold. Effects, and whether we borrow it from there by now.

        value: its bytes lie there; else it may be promised. attempt: of those, as far as `client` knows. One of ours
        that nobody here held any more may come back: its owner does not make it again. (If its first hold is merely
        untold, `promise` or `seal` give it back.)
        """
        holder, owner = self._clients.get(client), self._clients.get(lender)
        if holder is None or owner is None:
            return [], False
        entry = self._entry(object)
        before = self._borrowed.get(object)
        later = object in self._doubted or attempt > self.attempt(object)
        anew = value and later and client == self.owner(object) and before != lender
        known = isinstance(entry.state, _Sealed | _Actor) or (before is not None and not anew)
        keep = not known and (value or entry.state is None or isinstance(entry.state, _Lost))
        effects: list[Effect] = []
        if keep:
            if before is not None:  # else never: two that lend each other what a third one has would both wait
                effects.append(Unborrowed(before, object))
            attempt = max(attempt, self.attempt(object))
            self._settle(object, entry)
            entry.state = _Promised(lender, "", attempt)
            owner.answers_for[object] = None
            self._borrowed[object] = lender
            self._doubted.discard(object)
        return effects + self._add(holder, object, 1), keep

    def inherit(self, client: int, object: bytes, how: str) -> list[Effect]:
        """`client` took a hold that somebody elsewhere had given who is gone, and with it what it gave.

        What others lend us, or have here, stays. Else its owner is told, as by `lost`; also if that is `client` itself,
        which was given a result of its own and would wait for nobody.
        """
        holder = self._clients.get(client)
        effects = self._add(holder, object, 1) if holder is not None else []
        entry, owner = self._entries.get(object), self.owner(object)
        if holder is None or entry is None or object in self._borrowed:
            return effects
        if entry.state is None:
            self._settle(object, entry)
            if owner is None:
                self._lose(client, object, how, effects)
                return effects
            entry.state = _Promised(owner, "")
            self._clients[owner].answers_for[object] = None
        elif not (isinstance(entry.state, _Promised) and entry.state.owner == owner == client):
            return effects
        if owner in entry.waiters:
            entry.waiters.remove(owner)
            del self._clients[owner].waits[object]
        return [*effects, Tell(owner, Lost(object, how))]

    def made_here(self, object: bytes) -> list[Effect]:
        """A client of ours has sealed it: if another node lends it to us, that loan goes back.

        It may have been given to us before we were asked to make it; two nodes that lend each other the same thing
        would keep it for ever.
        """
        entry, lender = self._entries.get(object), self._borrowed.get(object)
        if entry is None or not isinstance(entry.state, _Sealed) or lender is None:
            return []
        del self._borrowed[object]
        return [Unborrowed(lender, object)] if lender in self._clients else []

    def attempt(self, object: bytes) -> int:
        """By which run of its task it was made, or at least will be, as far as is known here; from 0."""
        entry = self._entries.get(object)
        return entry.state.attempt if entry is not None and isinstance(entry.state, _Sealed | _Promised) else 0

    def later(self, object: bytes, attempt: int) -> None:
        """Who lends it to us knows that it was made by this run: what an earlier one has made is not it."""
        entry = self._entries.get(object)
        if entry is not None and isinstance(entry.state, _Promised) and attempt > entry.state.attempt:
            entry.state = msgspec.structs.replace(entry.state, attempt=attempt)

    def lender(self, object: bytes) -> int | None:
        """Who lends it to us; None if nobody does."""
        return self._borrowed.get(object)

    def awaited(self, object: bytes) -> bool:
        """Whether a client waits to be told where it lies."""
        entry = self._entries.get(object)
        return entry is not None and bool(entry.waiters)

    def waiters(self, object: bytes) -> list[int]:
        """Who waits to be told where it lies."""
        entry = self._entries.get(object)
        return [] if entry is None else list(entry.waiters)

    def unwait(self, client: int, object: bytes) -> list[Effect]:
        """`client` hears elsewhere where it lies."""
        entry, effects = self._entries.get(object), list[Effect]()
        if entry is None or client not in entry.waiters:
            return effects
        if not entry.holders and len(entry.waiters) == 1:
            self._settle(object, entry)
            self._forget(object, effects)
        elif entry.state is None and len(entry.waiters) == 1:
            self._settle(object, entry)
        entry.waiters.remove(client)
        del self._clients[client].waits[object]
        return effects

    def holds(self, client: int, object: bytes) -> bool:
        """Whether `client` holds it."""
        found = self._clients.get(client)
        return found is not None and object in found.counts

    def kept_for(self, client: int) -> int:
        """How many ids are known here because `client` holds them or waits for them."""
        found = self._clients.get(client)
        return 0 if found is None else len(found.counts) + len(found.waits)

    def held_by(self, client: int) -> list[bytes]:
        """What `client` holds."""
        found = self._clients.get(client)
        return [] if found is None else list(found.counts)

    def held(self, object: bytes) -> bool:
        """Whether anybody holds it."""
        entry = self._entries.get(object)
        return entry is not None and entry.holders > 0

    def place(self, object: bytes) -> tuple[int, int, bool, Sequence[bytes]] | None:
        """(offset, size, whether it is a failure, what it contains) of an object that lies here."""
        entry = self._entries.get(object)
        if entry is None or not isinstance(entry.state, _Sealed) or entry.state.offset == SPILLED:
            return None
        return entry.state.offset, entry.state.size, entry.state.failed, entry.state.contains

    def size_here(self, object: bytes) -> int | None:
        """Bytes of an object that lies here, in memory or on disk; None of one that does not."""
        entry = self._entries.get(object)
        return entry.state.size if entry is not None and isinstance(entry.state, _Sealed) else None

    # -- on disk

    def is_spilled(self, object: bytes) -> bool:
        """Whether it lies on disk."""
        entry = self._entries.get(object)
        return entry is not None and isinstance(entry.state, _Sealed) and entry.state.offset == SPILLED

    def sealed(self) -> Iterator[tuple[bytes, int, int]]:
        """(object, offset, size) of each that lies in memory and may be spilled: no failure, and one attempt alone."""
        for object, entry in self._entries.items():
            state = entry.state
            if type(state) is _Sealed and state.offset >= 0 and state.size and not state.failed and not state.earlier:
                yield object, state.offset, state.size

    def holders(self, object: bytes) -> list[int]:
        """The clients that hold it, the node too."""
        return [number for number, client in self._clients.items() if object in client.counts]

    def evict(self, object: bytes, offset: int) -> tuple[int, int] | None:
        """It lies on disk from now on: (whose span its region is in, bytes of that), for whom it is free. None, and
        nothing has changed, if it is not the one at `offset` any more."""
        entry = self._entries.get(object)
        state = None if entry is None else entry.state
        if not isinstance(state, _Sealed) or state.offset != offset or offset < 0 or state.earlier is not None:
            return None
        maker = state.maker
        if maker in self._clients:
            self._clients[maker].made.pop(object, None)
        state.maker, state.offset = NODE, SPILLED
        return maker, state.size

    def restored(self, object: bytes, client: int, offset: int) -> list[Effect]:
        """What lay on disk lies in a span of `client` now."""
        entry, maker = self._entries[object], self._clients[client]
        state = entry.state
        assert isinstance(state, _Sealed) and state.offset == SPILLED, "only what lies on disk comes from there"
        state.maker, state.offset = client, offset
        maker.made[object] = None
        effects: list[Effect] = [Tell(each, Located(object, offset, state.size)) for each in entry.waiters]
        self._answered(object, entry)
        return effects

    def spoiled(self, object: bytes, how: str) -> list[Effect]:
        """What lay on disk cannot be read: it is lost. Who lends it to us has it still; else its owner, if that is a
        client here, makes it anew if it can."""
        entry, effects = self._entries.get(object), list[Effect]()
        if entry is None or not isinstance(entry.state, _Sealed) or entry.state.offset != SPILLED:
            return effects
        state, owner, lender = entry.state, self.owner(object), self._borrowed.get(object)
        if lender is not None and (lender not in self._clients or lender == state.author):
            del self._borrowed[object]  # it is gone: its loan is with whom has fetched it
            lender = None
        if lender is not None:
            entry.state = _Promised(lender, "", state.attempt)
            self._clients[lender].answers_for[object] = None
        elif owner is None:
            entry.state = _Lost(how, "")
            effects.extend(Tell(waiter, Lost(object, how)) for waiter in entry.waiters)
            self._answered(object, entry)
        else:
            entry.state = _Promised(owner, "", state.attempt + 1)
            self._clients[owner].answers_for[object] = None
            if owner in entry.waiters:
                entry.waiters.remove(owner)
                del self._clients[owner].waits[object]
            effects.append(Tell(owner, Lost(object, how)))
        for seal in state.attempts():
            if seal is not state:
                self._free(object, seal, effects)
            for inner in seal.contains:
                self._lower(inner, effects)
        return effects

    # -- what we borrow

    def lent_by(self, lender: int) -> list[bytes]:
        """What `lender` lends us and has not come yet."""
        client = self._clients.get(lender)
        return [] if client is None else [each for each in client.answers_for if self._borrowed.get(each) == lender]

    def doubted(self, object: bytes, how: str) -> list[Effect]:
        """What we borrow, and is not here, may never come: its owner, if it is a client here, may make it anew."""
        entry, owner = self._entries.get(object), self.owner(object)
        if entry is None or not isinstance(entry.state, _Promised) or object not in self._borrowed or owner is None:
            return []
        self._doubted.add(object)
        return [Tell(owner, Lost(object, how, doubtful=True))]

    def relend(self, object: bytes, lender: int) -> None:
        """Another one answers for what we borrow and what has not come."""
        entry = self._entries.get(object)
        if entry is not None and isinstance(entry.state, _Promised) and object in self._borrowed:
            self._settle(object, entry)
            entry.state = msgspec.structs.replace(entry.state, owner=lender)
            self._clients[lender].answers_for[object] = None
            self._borrowed[object] = lender

    def keep_alone(self, object: bytes) -> list[Effect]:
        """What we borrow is here, and whoever lends it need not keep it for us any more."""
        entry, lender = self._entries.get(object), self._borrowed.get(object)
        if entry is None or lender is None or not isinstance(entry.state, _Sealed):
            return []
        del self._borrowed[object]
        return [Unborrowed(lender, object)]

    def lost(self, object: bytes, how: str, made_at: str = "") -> list[Effect]:
        """What we borrow will never come from where it was. If its owner is a client of ours it is told, and answers
        for the object from now on: it makes it anew, or seals a failure. Else whoever waits for it is told."""
        entry, effects = self._entries.get(object), list[Effect]()
        if entry is None or not isinstance(entry.state, _Promised):
            return effects
        owner = self.owner(object)
        if owner is None or (object not in self._borrowed and entry.state.owner == owner):
            self._settle(object, entry)
            self._lose(entry.state.owner, object, how, effects, made_at)
            return effects
        self._settle(object, entry)
        self._borrowed.pop(object, None)
        self._doubted.discard(object)
        entry.state = _Promised(owner, made_at or entry.state.made_at, entry.state.attempt + 1)
        self._clients[owner].answers_for[object] = None
        if owner in entry.waiters:
            entry.waiters.remove(owner)
            del self._clients[owner].waits[object]
        return [Tell(owner, Lost(object, how, made_at))]

    def unheard(self, client: int, objects: Sequence[bytes], maker: int, attempt: int = 0) -> list[Effect]:
        """`maker` has died, and `client` never heard of what it had sealed of these for it in this attempt, as `maker`
        counts: those holds end.

        Whatever overtakes whatever else: the node has read all that `maker` wrote before anybody hears of its death.
        """
        holder = self._clients.get(client)
        effects: list[Effect] = []
        if holder is None or maker in self._clients:
            return effects
        for object in objects:
            for seal in list(self._attempts(object)):
                if seal.author == maker and seal.to == client and seal.run == attempt:
                    seal.to = NODE
                    effects += self._add(holder, object, -1)
        return effects

    def resolve(self, client: int, objects: Sequence[bytes], *, bytes_too: bool = True) -> list[Effect]:
        """Tell `client` once where each of these lies or that it is lost: now, or when that is known. bytes_too: what
        lies on disk comes back first; else `client` hears that it is there."""
        asker = self._clients.get(client)
        effects: list[Effect] = []
        if asker is None:
            return effects
        for object in objects:
            entry = self._entries.get(object)
            state = None if entry is None else entry.state
            owner = self.owner(object) if state is None else NODE
            match state:
                case _Sealed(offset=at) if at == SPILLED and bytes_too:
                    if entry is not None and object not in asker.waits:
                        entry.waiters.append(client)
                        asker.waits[object] = None
                        effects.append(Wanted(object))
                case _Sealed():
                    effects.append(Tell(client, Located(object, state.offset, state.size, state.failed)))
                case _Lost():
                    effects.append(Tell(client, Lost(object, state.how, state.made_at)))
                case None if owner is None:
                    effects.append(Tell(client, Lost(object, OWNER_UNKNOWN)))
                case _ if object not in asker.waits:
                    if state is None and owner is not None:
                        self._clients[owner].answers_for[object] = None
                    self._entry(object).waiters.append(client)
                    asker.waits[object] = None
        return effects

    def client_gone(self, client: int, how: str) -> list[Effect]:
        """All that `client` wrote has been read, and it has ended; `how`: words for what it was and how it ended.

        The first effect is `Adopt`. Then follow `Lost` to those who waited for its promises, and what is free now.
        """
        gone = self._clients.pop(client, None)
        if gone is None:
            return []
        assert client != NODE, "the node outlives its ledger"
        self._owners.pop(gone.token, None)
        effects: list[Effect] = []
        for object in gone.waits:
            entry = self._entries[object]
            if entry.waiters == [client] and (entry.state is None or not entry.holders):
                self._settle(object, entry)
                if not entry.holders:
                    self._forget(object, effects)
            entry.waiters.remove(client)
        for object in gone.counts:
            self._lower(object, effects)
        for object in gone.answers_for:
            self._lose(client, object, how, effects)
        live = []
        for object in gone.made:
            for seal in self._attempts(object):
                if seal.maker == client:
                    seal.maker = NODE
                    live.append((seal.offset, seal.size))
        effects.insert(0, Adopt(client, live))
        if len(self._clients) == 1 and not self._clients[NODE].counts:
            self._clear(effects)
        return effects

    def views(self) -> list[ClientView]:
        """What each client holds, has made in memory and waits for; NODE's `made` are the regions that it has
        adopted."""
        made = dict.fromkeys(self._clients, (0, 0))
        for object in self._entries:
            for seal in self._attempts(object):
                if seal.offset != SPILLED:
                    count, size = made[seal.maker]
                    made[seal.maker] = (count + 1, size + seal.size)
        return [
            ClientView(number, len(client.counts), self._bytes(client.counts), *made[number], len(client.waits))
            for number, client in self._clients.items()
        ]

    def objects(self) -> Iterator[ObjectView]:
        """Every object that is known here, no actors."""
        for object, entry in self._entries.items():
            state, size, made_at = "unknown", 0, ""
            match entry.state:
                case _Actor():
                    continue
                case _Sealed(size=size, failed=failed, offset=offset):
                    state = "failed" if failed else "spilled" if offset == SPILLED else "here"
                case _Promised(made_at=made_at):
                    state = "promised"
                case _Lost(made_at=made_at):
                    state = "lost"
            lender = self._borrowed.get(object)
            yield ObjectView(object, state, size, self.owner(object), lender, entry.holders, made_at)

    def validate(self) -> None:
        """Assert that every number kept twice is the same in both places, and that nothing is kept for nobody."""
        clients, entries = self._clients, self._entries
        holders: dict[bytes, int] = {}
        # What an entry says of a client is looked up there, and counted: no client says more than the entries do.
        waits = answers = made = 0
        for client in clients.values():
            for object, count in client.counts.items():
                assert count, "a count of zero"
                holders[object] = holders.get(object, 0) + 1
            waits += len(client.waits)
            answers += len(client.answers_for)
            made += len(client.made)
        for object, entry in entries.items():
            state, waiters = entry.state, entry.waiters
            assert entry.holders or waiters, "an entry is kept for nobody"
            if waiters:
                assert len(set(waiters)) == len(waiters), "one client waits twice"
                on_disk = type(state) is _Sealed and state.offset == SPILLED
                assert on_disk or not isinstance(state, _Sealed | _Lost), "an answer is due"
                for number in waiters:
                    assert object in clients[number].waits, "lost waiters"
                waits -= len(waiters)
            if type(state) is _Sealed:
                made -= self._validate_seals(object, state, holders)
                continue
            owner = self._owner_of(object, entry)
            if owner is not None:
                assert object in clients[owner].answers_for, "the wrong client answers for an id"
                answers -= 1
            assert owner is not None or not (state is None and waiters), "an answer can never come"
        assert not waits, "a client waits for what does not know it"
        assert not answers, "two owners of one id, or one of what needs none"
        assert not made, "a maker remembers what it did not make, or what is gone"
        assert holders == {object: entry.holders for object, entry in entries.items() if entry.holders}, "wrong holders"
        assert self._borrowed.keys() <= entries.keys(), "what nobody holds is still borrowed"

    def _validate_seals(self, object: bytes, state: _Sealed, holders: dict[bytes, int]) -> int:
        """Add what contains others to their `holders`; how many clients have made it, in one attempt or more."""
        if state.earlier is None and not state.contains:
            makers = {state.maker}
        else:
            makers = set()
            for seal in state.attempts():
                makers.add(seal.maker)
                for inner in seal.contains:
                    holders[inner] = holders.get(inner, 0) + 1
        makers.discard(NODE)
        for maker in makers:
            assert object in self._clients[maker].made, "a maker forgot what it made"
        return len(makers)

    def _ours_after_all(self, client: int, object: bytes) -> list[Effect]:
        """Two that borrow one object from each other would both keep it for ever."""
        if self.owner(object) != client or object not in self._borrowed:
            return []
        return [Unborrowed(self._borrowed.pop(object), object)]

    def _entry(self, object: bytes) -> _Entry:
        entry = self._entries.get(object)
        if entry is None:
            entry = self._entries[object] = _Entry()
        return entry

    def _add(self, holder: _Client, object: bytes, change: int) -> list[Effect]:
        effects: list[Effect] = []
        counts = holder.counts
        before = counts.get(object, 0)
        if before + change:
            counts[object] = before + change
            if not before:
                self._entry(object).holders += 1
        elif before:
            del counts[object]
            self._lower(object, effects)
        return effects

    def _lower(self, object: bytes, effects: list[Effect]) -> None:
        entry = self._entries[object]
        entry.holders -= 1
        if not entry.holders:
            self._fall(object, entry, effects)

    def _fall(self, object: bytes, entry: _Entry, effects: list[Effect]) -> None:
        """Nobody holds `object`: forget it, and what only it held. A list, not recursion: chains may be long."""
        falling = [(object, entry)]
        while falling:
            object, entry = falling.pop()
            if entry.waiters and (entry.state is None or isinstance(entry.state, _Promised)):
                continue  # the first hold is on its way, or the one that an executor's `Seal` gives to the owner
            self._settle(object, entry)
            self._answered(object, entry)
            self._forget(object, effects)
            match entry.state:
                case _Sealed():
                    for seal in entry.state.attempts():
                        self._free(object, seal, effects)
                        for inner in seal.contains:
                            below = self._entries[inner]
                            below.holders -= 1
                            if not below.holders:
                                falling.append((inner, below))
                case _Actor():
                    effects.append(Unreferenced(object))

    def _forget(self, object: bytes, effects: list[Effect]) -> None:
        del self._entries[object]
        lender = self._borrowed.pop(object, None)
        self._doubted.discard(object)
        if lender is not None and lender in self._clients:
            effects.append(Unborrowed(lender, object))

    def _free(self, object: bytes, seal: _Sealed, effects: list[Effect]) -> None:
        if seal.offset == SPILLED:
            effects.append(Forgotten(object))
        elif seal.maker == NODE:
            effects.append(FreeRegion(seal.offset, seal.size, object))
        elif (maker := self._clients.get(seal.maker)) is not None:
            maker.made.pop(object, None)
            effects.append(Tell(seal.maker, Freed(object)))
        else:  # the maker is going this moment, and `Adopt` leaves the region out
            effects.append(Forgotten(object))

    def _lose(self, owner: int, object: bytes, how: str, effects: list[Effect], made_at: str = "") -> None:
        """`owner` answered for `object`, and is gone."""
        entry = self._entries.get(object)
        if entry is None:
            return
        if isinstance(entry.state, _Promised):
            made_at = made_at or entry.state.made_at
        entry.state = _Lost(how, made_at)
        effects.extend(Tell(waiter, Lost(object, how, made_at)) for waiter in entry.waiters)
        self._answered(object, entry)
        if not entry.holders:
            self._forget(object, effects)

    def _answered(self, object: bytes, entry: _Entry) -> None:
        for waiter in entry.waiters:
            del self._clients[waiter].waits[object]
        entry.waiters.clear()

    def _settle(self, object: bytes, entry: _Entry) -> None:
        """Whoever answers for `object` until it is sealed need not any more."""
        owner = self._owner_of(object, entry)
        if owner is not None and owner in self._clients:
            del self._clients[owner].answers_for[object]

    def _owner_of(self, object: bytes, entry: _Entry) -> int | None:
        """The client in whose `answers_for` this id is."""
        if isinstance(entry.state, _Promised):
            return entry.state.owner
        return self.owner(object) if entry.state is None and entry.waiters else None

    def _attempts(self, object: bytes) -> Iterator[_Sealed]:
        entry = self._entries.get(object)
        if entry is not None and isinstance(entry.state, _Sealed):
            yield from entry.state.attempts()

    def _bytes(self, objects: Iterable[bytes]) -> int:
        return sum(seal.size for object in objects for seal in self._attempts(object))

    def _clear(self, effects: list[Effect]) -> None:
        """All clients are gone: what is left are values that hold each other in a ring."""
        for object, entry in self._entries.items():
            for seal in self._attempts(object):
                spilled = seal.offset == SPILLED
                effects.append(Forgotten(object) if spilled else FreeRegion(seal.offset, seal.size, object))
            if isinstance(entry.state, _Actor):
                effects.append(Unreferenced(object))
        self._entries.clear()
        self._borrowed.clear()
        self._doubted.clear()
