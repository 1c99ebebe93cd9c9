"""Which objects go to disk, in which order, and that none goes while anybody may read it."""

from __future__ import annotations

from collections import deque
from itertools import count
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.codec.messages import NODE, Freed, Located, Lost
from lattica.objectstore.ledger import Adopt, Forgotten, FreeRegion, Ledger, Tell, Wanted
from lattica.objectstore.spill import GRACE_S, KEPT_S, SILENT_S, WRITES_MAX, Ask, Forget, Out, Spiller, State, Write
from tests.conftest import examples

A, B, C = 1, 2, 3
MIB = 1 << 20


def id_of(number: int, owner: int = A) -> bytes:
    return owner.to_bytes(8, "big") + number.to_bytes(8, "big")


X, Y, Z = (id_of(number) for number in (1, 2, 3))


# -- the ledger's part


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger()
    for client in (A, B):
        ledger.client_joined(client, client.to_bytes(8, "big"))
    return ledger


def test_what_is_evicted_has_no_place_and_is_told_of_again_when_it_is_back(ledger: Ledger) -> None:
    ledger.seal(A, X, 64, 10)
    ledger.give(A, X, B)
    assert ledger.evict(X, 64) == (A, 10)
    assert ledger.place(X) is None and ledger.size_here(X) == 10 and ledger.is_spilled(X)
    assert ledger.resolve(B, [X], bytes_too=False) == [Tell(B, Located(X, -1, 10))]
    assert ledger.resolve(B, [X]) == [Wanted(X)]
    assert ledger.resolve(B, [X]) == [], "one answer is owed, not two"
    ledger.validate()
    ledger.client_joined(C)
    assert ledger.restored(X, C, 128) == [Tell(B, Located(X, 128, 10))]
    assert ledger.place(X) == (128, 10, False, ())
    ledger.validate()
    assert [*ledger.drop(A, X), *ledger.drop(B, X)] == [Tell(C, Freed(X))]


def test_what_is_freed_while_it_is_on_disk_frees_no_region(ledger: Ledger) -> None:
    ledger.seal(A, X, 64, 10)
    ledger.evict(X, 64)
    assert ledger.drop(A, X) == [Forgotten(X)]
    ledger.validate()


def test_an_object_that_was_sealed_anew_is_not_evicted_in_its_place(ledger: Ledger) -> None:
    ledger.seal(A, X, 64, 10)
    assert ledger.evict(X, 128) is None
    ledger.seal(B, X, 128, 10, to=A, attempt=1)
    assert ledger.evict(X, 128) is None, "somebody may read what the earlier attempt has made"


def test_the_region_of_a_dead_maker_is_the_nodes_when_its_object_goes_to_disk(ledger: Ledger) -> None:
    ledger.seal(A, X, 64, 10, to=B)
    assert ledger.client_gone(A, "exit code 1") == [Adopt(A, [(64, 10)])]
    assert ledger.evict(X, 64) == (NODE, 10)
    assert ledger.client_gone(B, "exit code 0") == [Adopt(B, []), Forgotten(X)]


def test_the_owner_of_a_spoiled_object_is_told_and_answers_for_it(ledger: Ledger) -> None:
    ledger.seal(A, Y, 0, 10)
    ledger.seal(A, X, 64, 10, contains=[Y])
    ledger.give(A, X, B)
    ledger.drop(A, Y)
    ledger.evict(X, 64)
    assert ledger.resolve(B, [X]) == [Wanted(X)]
    assert ledger.spoiled(X, "its file is damaged") == [Tell(A, Lost(X, "its file is damaged")), Tell(A, Freed(Y))]
    ledger.validate()
    assert ledger.seal(A, X, 192, 10) == [Tell(B, Located(X, 192, 10))]
    ledger.validate()


def test_whoever_waits_for_a_spoiled_object_without_an_owner_hears_that_it_is_lost(ledger: Ledger) -> None:
    object = id_of(1, owner=9)
    ledger.seal(A, object, 64, 10)
    ledger.give(A, object, B)
    ledger.evict(object, 64)
    ledger.resolve(B, [object])
    assert ledger.spoiled(object, "damaged") == [Tell(B, Lost(object, "damaged"))]
    ledger.validate()


def test_what_another_machine_lends_us_and_is_spoiled_here_is_waited_for_from_there(ledger: Ledger) -> None:
    """Its owner had it made anew on that very machine, which lent it already: it waited for itself for ever (world
    `execution`, seed 33)."""
    lender, store = 4, 5
    ledger.client_joined(lender)
    ledger.client_joined(store)
    ledger.borrow(A, X, lender, value=True, attempt=2)
    ledger.seal(store, X, 64, 10, attempt=2)
    ledger.drop(store, X)
    ledger.evict(X, 64)
    assert ledger.resolve(A, [X]) == [Wanted(X)]
    assert ledger.spoiled(X, "damaged") == []
    assert ledger.lent_by(lender) == [X] and ledger.awaited(X) and ledger.attempt(X) == 2
    ledger.validate()
    assert ledger.seal(store, X, 128, 10, attempt=2) == [Tell(A, Located(X, 128, 10))]
    ledger.evict(X, 128)
    ledger.client_gone(lender, "it crashed")
    assert ledger.spoiled(X, "damaged again") == [Tell(A, Lost(X, "damaged again"))]
    assert ledger.lender(X) is None
    ledger.validate()


def test_what_is_spoiled_after_its_lender_has_gone_is_its_owners_to_make(ledger: Ledger) -> None:
    """The loan of a node that is gone is with the node's own client, which fetches: that would wait for itself (world
    `execution`, long seed 653)."""
    lender, store = 4, 5
    ledger.client_joined(lender)
    ledger.client_joined(store)
    ledger.borrow(A, X, lender, value=True)
    ledger.relend(X, store)
    ledger.client_gone(lender, "it crashed")
    ledger.seal(store, X, 64, 10)
    ledger.drop(store, X)
    ledger.evict(X, 64)
    assert ledger.spoiled(X, "damaged") == [Tell(A, Lost(X, "damaged"))]
    ledger.validate()


# -- the choice


def spiller(holders: dict[bytes, set[int]] | None = None) -> Spiller:
    return Spiller(lambda object: (holders or {}).get(object, set()))


def pieces(*owners: int | None) -> list[tuple[int, int, int | None]]:
    """Of 8 bytes each."""
    return [(at * 8, at * 8 + 8, owner) for at, owner in enumerate(owners)]


def written(effects: list[object]) -> list[bytes]:
    return [region.object for effect in effects if isinstance(effect, Write) for region in effect.regions]


def test_what_was_used_the_longest_ago_goes_first() -> None:
    core = spiller()
    for at, (object, used) in enumerate([(X, 3.0), (Y, 1.0), (Z, 2.0)]):
        core.sealed(object, at * 8, 8, used)
    assert written(core.make_room(8, 0, pieces(A, A, A), A, 5.0)) == [Y]
    core.validate()


def test_room_in_one_piece_is_made_where_neighbours_are_old() -> None:
    core = spiller()
    for at, used in enumerate([1.0, 9.0, 2.0, 3.0]):
        core.sealed(id_of(at), at * 8, 8, used)
    assert written(core.make_room(16, 0, pieces(A, A, A, A), A, 10.0)) == [id_of(2), id_of(3)]


def test_free_neighbours_count_and_cost_nothing() -> None:
    core = spiller()
    for at, used in [(0, 1.0), (1, 1.0), (3, 1.0)]:
        core.sealed(id_of(at), at * 8, 8, used)
    assert written(core.make_room(16, 0, pieces(A, A, None, A), A, 10.0)) == [id_of(1)]


def test_a_span_of_which_nothing_is_known_is_left_alone() -> None:
    core = spiller()
    core.sealed(X, 0, 8, 1.0)
    assert written(core.make_room(16, 0, pieces(A, B), B, 10.0)) == [], "no two neighbours can be emptied"
    assert written(core.make_room(8, 0, pieces(A, B), B, 10.0)) == [X]


def test_where_no_span_can_be_emptied_the_asker_gets_room_in_its_own() -> None:
    core = Spiller(lambda _: (), pinned={Y})
    core.sealed(X, 0, 4, 1.0)
    core.sealed(Y, 4, 4, 2.0)
    assert written(core.make_room(4, 0, pieces(A), B, 10.0)) == []
    assert written(core.make_room(4, 0, pieces(A), A, 10.0)) == [X]


def test_more_goes_than_is_needed_up_to_the_goal() -> None:
    core = spiller()
    for at in range(4):
        core.sealed(id_of(at), at * 8, 8, float(at))
    assert written(core.make_room(8, 20, pieces(A, A, A, A), A, 10.0)) == [id_of(0), id_of(1), id_of(2)]


def test_every_holder_is_asked_and_those_who_hold_it_by_then_as_well() -> None:
    holders = {X: {A}}
    core = spiller(holders)
    core.sealed(X, 0, 8, 0.0)
    assert core.make_room(8, 0, pieces(A), A, 1.0) == [Ask(A, [X], 1)]
    assert core.make_room(8, 0, pieces(A), A, 1.0) == [], "it was asked already"
    holders[X] = {A, B}
    assert core.answered(A, 1, [X], [], 1.0) == [Ask(B, [X], 1)]
    (write,) = core.answered(B, 1, [X], [], 1.0)
    assert isinstance(write, Write)
    (out,) = core.written(write, well=True)
    assert isinstance(out, Out) and out.region.object == X
    core.validate()


def test_an_object_under_an_array_stays_and_is_asked_for_again_later() -> None:
    core = spiller({X: {A}})
    core.sealed(X, 0, 8, 0.0)
    core.make_room(8, 0, pieces(A), A, 1.0)
    assert core.answered(A, 1, [], [X], 1.0) == []
    assert core.kept_bytes() == ({A: 8}, 0)
    assert core.make_room(8, 0, pieces(A), A, 1.0 + KEPT_S / 2) == []
    assert core.make_room(8, 0, pieces(A), A, 1.1 + KEPT_S) == [Ask(A, [X], 3)]


def test_an_old_object_under_an_array_is_not_asked_for_again_before_others_that_are_younger() -> None:
    core = spiller({X: {A}})
    core.sealed(X, 0, 8, 0.0)
    core.sealed(Y, 8, 8, 1.0)
    assert core.make_room(8, 0, pieces(A, A), B, 2.0) == [Ask(A, [X], 1)]
    core.answered(A, 1, [], [X], 2.0)
    assert written(core.make_room(8, 0, pieces(A, A), B, 2.1 + KEPT_S)) == [Y]


def test_an_object_that_somebody_asked_for_meanwhile_stays() -> None:
    core = spiller()
    core.sealed(X, 0, 8, 0.0)
    (write,) = core.make_room(8, 0, pieces(A), A, 1.0)
    core.used(X, 1.5)
    assert isinstance(write, Write) and core.written(write, well=True) == []
    (out,) = core.make_room(8, 0, pieces(A), A, 2.0)
    assert isinstance(out, Out), "it is on disk already"


def test_what_came_back_is_left_for_a_moment_and_needs_no_second_writing() -> None:
    core = spiller()
    core.sealed(X, 0, 8, 0.0, restored=True)
    assert core.make_room(8, 0, pieces(A), A, GRACE_S / 2) == []
    (out,) = core.make_room(8, 0, pieces(A), A, GRACE_S * 2)
    assert isinstance(out, Out)


def test_whoever_does_not_answer_is_not_counted_on_and_may_die() -> None:
    core = spiller({X: {A}})
    core.sealed(X, 0, 8, 0.0)
    core.make_room(8, 0, pieces(A), A, 1.0)
    assert core.leaving_bytes(1.0) == 8 and core.leaving_bytes(1.1 + SILENT_S) == 0
    assert written(core.client_gone(A)) == [X]


def test_room_cannot_be_made_where_arrays_lie_and_can_where_something_is_just_being_written() -> None:
    core = spiller({X: {A}})
    core.sealed(X, 8, 8, 0.0)
    core.make_room(8, 0, pieces(B, A, B), A, 1.0)
    assert core.could_fit(24, pieces(B, A, B), B, 1.0), "nobody has said that it stays"
    core.answered(A, 1, [], [X], 1.0)
    assert core.could_fit(8, pieces(B, A, B), B, 9.0) and not core.could_fit(16, pieces(B, A, B), B, 9.0)


def test_few_files_are_written_at_once_and_a_failed_write_keeps_its_objects() -> None:
    core = spiller()
    for at in range(WRITES_MAX + 1):
        core.sealed(id_of(at), at * 100 * MIB, 100 * MIB, float(at))
    whole = [(at * 100 * MIB, (at + 1) * 100 * MIB, A) for at in range(WRITES_MAX + 1)]
    effects = core.make_room(1, 1 << 40, whole, A, 9.0)
    assert len(effects) == WRITES_MAX
    (following,) = core.written(effects[0], well=False)  # type: ignore[arg-type]
    assert written([following]) == [id_of(WRITES_MAX)]
    core.validate()
    assert core.regions[id_of(0)].state is State.STAYS and not core.regions[id_of(0)].filed


# -- the agreement, with processes whose messages take their time


class Agreement:
    """Three processes pass refs with offsets in them to each other, look at what they have, and let go of it, while
    objects are evicted and come back elsewhere. Messages between two processes keep their order, and nothing else does.

    Safety: whoever reads a region finds the object there that it looks for.
    """

    def __init__(self, rng: Random) -> None:
        self.rng, self.outs, self.reads = rng, 0, 0
        self.ledger, self.now = Ledger(), 0.0
        self.core = Spiller(lambda object: [each for each in self.ledger.holders(object) if each != NODE])
        self.memory: dict[int, bytes] = {}
        self.offsets = count(64, 64)
        self.old: list[int] = []
        self.numbers = count(1)
        self.disk: set[bytes] = set()
        self.writes: list[Write] = []
        self.wanted: list[bytes] = []
        self.mail: dict[tuple[int, int], deque[tuple[object, ...]]] = {}
        self.refs: dict[int, dict[bytes, list[int]]] = {A: {}, B: {}, C: {}}  # counts, and the offset as last heard
        self.moved: dict[int, dict[bytes, int]] = {A: {}, B: {}, C: {}}
        self.views: dict[int, set[tuple[bytes, int]]] = {A: set(), B: set(), C: set()}
        self.waits: set[tuple[int, bytes]] = set()
        for client in (A, B, C, 9):
            self.ledger.client_joined(client, client.to_bytes(8, "big"))

    def send(self, sender: int, to: int, *message: object) -> None:
        self.mail.setdefault((sender, to), deque()).append(message)

    def step(self) -> None:
        """Something happens."""
        doing = [self.put, self.give, self.drop, self.look, self.look_away, self.deliver, self.press, self.write]
        self.rng.choices([*doing, self.bring_back], [2, 4, 1, 6, 2, 30, 3, 3, 3])[0]()
        self.ledger.validate()
        self.core.validate()

    # the processes

    def put(self) -> None:
        client = self.rng.choice((A, B, C))
        object = id_of(next(self.numbers), client)
        if len(self.memory) + len(self.disk) < 8:
            offset = self.old.pop() if self.old else next(self.offsets)
            assert offset not in self.memory
            self.memory[offset] = object
            self.refs[client][object] = [1, offset]
            self.send(client, NODE, "seal", object, offset)

    def one(self) -> tuple[int, bytes] | None:
        """A process, and an object that it has a ref of."""
        held = [(client, object) for client, refs in self.refs.items() for object in refs]
        return self.rng.choice(held) if held else None

    def give(self) -> None:
        if found := self.one():
            client, object = found
            to = self.rng.choice([each for each in (A, B, C) if each != client])
            self.send(client, NODE, "give", object, to)
            self.send(client, to, "ref", object, self.place(client, object))

    def drop(self) -> None:
        found = self.one()
        if found and not any(object == found[1] for object, _ in self.views[found[0]]):  # a view keeps the hold
            counted, _ = self.refs[found[0]].pop(found[1])
            self.send(found[0], NODE, "drop", found[1], counted)

    def place(self, client: int, object: bytes) -> int:
        return self.moved[client].get(object, self.refs[client][object][1])

    def look(self) -> None:
        if not (found := self.one()):
            return
        client, object = found
        at = self.place(client, object)
        if at >= 0:
            self.reads += 1
            assert self.memory.get(at) == object, f"{client} reads {self.memory.get(at)} in place of {object}"
            if self.rng.random() < 0.3:
                self.views[client].add((object, at))
        elif (client, object) not in self.waits:
            self.waits.add((client, object))
            self.send(client, NODE, "resolve", object)

    def look_away(self) -> None:
        self.views[self.rng.choice((A, B, C))].clear()

    def deliver(self) -> None:
        ways = [way for way, mail in self.mail.items() if mail]
        if ways:
            way = self.rng.choice(ways)
            message = self.mail[way].popleft()
            if way[1] == NODE:
                self.node_hears(way[0], *message)
            else:
                self.process_hears(way[1], *message)

    def process_hears(self, client: int, kind: str, object: bytes, offset: int = 0) -> None:
        refs, moved = self.refs[client], self.moved[client]
        if kind == "ref":
            known = refs.setdefault(object, [0, offset])
            known[0] += 1
        elif kind == "evict":
            if any(each == object for each, _ in self.views[client]):
                self.send(client, NODE, "kept", object, offset)
            else:
                moved[object] = -1
                self.send(client, NODE, "gone", object, offset)
        elif kind == "located":
            self.waits.discard((client, object))
            if object in moved:
                moved[object] = offset
            if object in refs:
                refs[object][1] = offset
        elif kind == "forget":
            moved.pop(object, None)

    # the node

    def node_hears(self, client: int, kind: str, object: bytes, more: int = 0) -> None:
        ledger = self.ledger
        if kind == "seal":
            self.core.sealed(object, more, 64, self.now)
            self.perform(ledger.seal(client, object, more, 64))
        elif kind == "give":
            self.core.touched(object, more)
            self.perform(ledger.give(client, object, more))
        elif kind == "drop":
            self.core.touched(object, client)
            self.perform(ledger.drop(client, object, more))
        elif kind == "resolve":
            self.perform(ledger.resolve(client, [object]))
        elif kind == "gone":
            self.spill(self.core.answered(client, more, [object], [], self.now))
        elif kind == "kept":
            self.spill(self.core.answered(client, more, [], [object], self.now))

    def perform(self, effects: list[object]) -> None:
        for effect in effects:
            match effect:
                case Tell(client, Located(object, offset)):
                    self.core.used(object, self.now)
                    self.send(NODE, client, "located", object, offset)
                case Tell(_, Freed(object)) | Forgotten(object) | FreeRegion(_, _, object):
                    region = self.core.regions.get(object)
                    if region is not None:
                        self.free(region.offset, object)
                    self.spill(self.core.freed(object))
                    self.disk.discard(object)
                case Wanted(object):
                    self.wanted.append(object)

    def free(self, offset: int, object: bytes) -> None:
        assert self.memory.pop(offset) == object
        for client, views in self.views.items():
            assert (object, offset) not in views, f"freed under a view of {client}"
        self.old.append(offset)

    def spill(self, effects: list[object]) -> None:
        for effect in effects:
            match effect:
                case Ask(client, objects, round):
                    for object in objects:
                        self.send(NODE, client, "evict", object, round)
                case Forget(client, object):
                    self.send(NODE, client, "forget", object)
                case Write():
                    self.writes.append(effect)
                case Out(region):
                    assert self.ledger.evict(region.object, region.offset) is not None
                    for views in self.views.values():
                        assert (region.object, region.offset) not in views, "an array lies over what goes"
                    self.free(region.offset, region.object)
                    self.outs += 1
                    self.disk.add(region.object)

    def press(self) -> None:
        self.now += 0.5
        need, spans = self.rng.randint(1, 3), [(at, at + 64, A) for at in sorted(self.memory)]
        self.spill(self.core.make_room(64 * need, 64 * need, spans, A, self.now))

    def write(self) -> None:
        if self.writes:
            self.spill(self.core.written(self.writes.pop(0), well=self.rng.random() < 0.8))

    def bring_back(self) -> None:
        if self.wanted and self.ledger.is_spilled(object := self.wanted.pop(0)):
            offset = self.old.pop(0) if self.old else next(self.offsets)
            self.memory[offset] = object
            self.core.sealed(object, offset, 64, self.now, restored=True)
            self.perform(self.ledger.restored(object, 9, offset))

    def settle(self) -> None:
        """No more is begun: everybody reads what he has."""
        for _ in range(20):
            while any(self.mail.values()) or self.writes or self.wanted:
                self.deliver()
                self.write()
                self.bring_back()
            for client, refs in self.refs.items():
                for object in refs:
                    if self.place(client, object) < 0 and (client, object) not in self.waits:
                        self.waits.add((client, object))
                        self.send(client, NODE, "resolve", object)
        hanging = [(client, object) for client, object in self.waits if object in self.refs[client]]
        assert not hanging, "an answer has never come"
        for client, refs in self.refs.items():
            for object in refs:
                assert self.memory[self.place(client, object)] == object


@examples(40, deadline=None)
@given(st.integers(0, 1 << 32))
def test_nobody_reads_another_object_in_place_of_one_that_went_to_disk(seed: int) -> None:
    world = Agreement(Random(seed))
    for _ in range(400):
        world.step()
    world.settle()


def test_worlds_of_the_agreement_do_spill_and_read_back() -> None:
    worlds = [Agreement(Random(seed)) for seed in range(10)]
    for world in worlds:
        for _ in range(400):
            world.step()
    assert sum(world.outs for world in worlds) > 30 and sum(world.reads for world in worlds) > 100
