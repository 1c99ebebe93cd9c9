"""How a result that is lost is made again: which tasks a process remembers, with what, and for how long.

    keep        a task has ended, and a result of it lies in a store: in memory, on disk, or on another machine
    released    no ref of it is left here
    make_again  it is lost: its task runs once more, after those whose results it needs and that are gone by now

A task's arguments are kept with it, at most LINEAGE_MAX_BYTES of all. Those that are results themselves, of tasks that
are remembered, are not: their tasks are, for as long as something may be made of them, and run first if need be. That
goes on from argument to argument, DEPTH_MAX tasks deep: the argument at that depth is kept, as if it had been put. Each
run spends a retry of its task. Every task that is to run is looked at before the first one does, so that nothing runs
for what cannot be had in the end.

Sources: Moritz et al., "Ray" (2018), Wang et al., "Ownership" (2021): whoever called a task makes its results again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from lattica.actors import records
from lattica.actors.refs import PROMISED, SHARED, Hold, InPlace, Nested, ObjectRef
from lattica.codec import messages as m

if TYPE_CHECKING:
    from lattica.actors.records import Record
    from lattica.actors.runtime import Runtime

LINEAGE_MAX_BYTES = 64 << 20
"""Arguments kept of tasks that have ended, since their results may be lost. Less: more results are lost for good with a
machine; more: memory of every program that leaves results where they are."""
LINEAGE_SHARE = 16
"""Of the store, for the same: they lie there, and a small store is soon full."""
TASK_BYTES = 1 << 10  # of what is remembered of one task, beside its arguments
DEPTH_MAX = 1_000
"""Tasks that run one after the other, at most, to make one value again. More: whoever waits for it waits as long as the
program has run; less: more values of a long chain are kept for it."""

NO_TASK = "no task has made it: what was put, or returned by an actor, is not made again"
NO_RETRIES = "its task was called with max_retries=0"
SPENT = "its task has run again as often as its max_retries allow"
CANCELED = "its task was cancelled"
EVICTED = (
    f"what its task was called with was let go: of that the latest {LINEAGE_MAX_BYTES >> 20} MiB are kept, "
    f"or 1/{LINEAGE_SHARE} of the store"
)


class Origin(NamedTuple):
    """An argument that can be made again: result `at` of that task."""

    lineage: Lineage
    at: int


class Lineage:
    """One task: its record, and what that forgets when it has ended.

    users: results of it that have refs here, and arguments of others in `deps` of theirs. depth: of tasks that are
    needed for it, it included.
    """

    __slots__ = ("args", "deps", "depth", "evicted", "ids", "record", "refs", "size", "users")

    def __init__(self, record: Record, deps: list[ObjectRef | Origin]) -> None:
        self.record, self.args, self.deps = record, record.args, deps
        self.ids = [ref.id for ref in record.refs]
        self.refs = [weakref.ref(ref) for ref in record.refs]
        self.users, self.evicted = 0, False
        self.depth: int = 1 + max((dep.lineage.depth for dep in deps if isinstance(dep, Origin)), default=0)
        kept = sum(_size_of(dep._value) for dep in deps if isinstance(dep, ObjectRef))
        self.size = TASK_BYTES + _size_of(self.args) + kept

    def __repr__(self) -> str:
        return f"<Lineage of {self.record!r}: {self.size} bytes, {self.depth} deep>"

    @property
    def runs(self) -> bool:
        """Whether its task has not ended."""
        return bool(self.record.refs)

    @property
    def objection(self) -> str:
        """Why it cannot run again; "" if it can, or does."""
        record = self.record
        if self.runs:
            return ""
        if record.canceled:
            return CANCELED
        if not record.retries_left:
            return SPENT if record.attempt else NO_RETRIES
        return EVICTED if self.evicted else ""

    def origins(self) -> Iterable[Origin]:
        """Its arguments that may have to be made again."""
        return (dep for dep in self.deps if isinstance(dep, Origin))

    # -- its results, by their places; a generator's are told apart by other means

    def place(self, id: bytes) -> int:
        """Which result this is."""
        return self.ids.index(id)

    def id_at(self, at: int) -> bytes:
        """The id of that result."""
        return self.ids[at]

    def ref(self, at: int) -> ObjectRef | None:
        """Its ref here, if it has one."""
        return self.refs[at]()

    def has_ref(self, at: int, ref: ObjectRef) -> None:
        """This is its ref from now on."""
        self.refs[at] = weakref.ref(ref)

    def forgets(self, at: int) -> None:
        """Nobody will ask for that result."""

    def awaits(self, at: int, ref: ObjectRef) -> None:
        """Its task runs, and is to give this ref a value."""
        self.record.refs[at] = ref

    def begins(self, runtime: Runtime) -> None:
        """Its task is about to run again: its record needs somewhere to put what it makes."""
        self.record.refs = [_alive(runtime, self, at) for at in range(len(self.ids))]


class Lineages:
    """What one process could make again, by the ids of objects. See the module. Methods are called with the lock held.

    max_bytes: of arguments and tasks together, as it is now.
    """

    def __init__(self, max_bytes: Callable[[], int]) -> None:
        self._max_bytes = max_bytes
        self._of: dict[bytes, Lineage | str] = {}  # a str: why it cannot be made again
        self._kept: dict[Lineage, None] = {}  # that have arguments, the oldest first
        self.size = 0

    def __repr__(self) -> str:
        return f"<Lineages of {len(self._of)} objects: {len(self._kept)} tasks, {self.size} bytes>"

    # -- what is remembered

    def keep(self, record: Record) -> None:
        """It has ended, for the first time or again; its refs have their values."""
        stored = {ref.id for ref in record.refs if type(ref._value) is InPlace}
        lineage = None
        for ref in record.refs if self._of else ():
            known = self._of.get(ref.id)
            if isinstance(known, Lineage) and known.record is record:
                lineage = known
            elif known is not None:
                self.released(ref.id)
        if lineage is not None:
            self._ran_again(lineage, stored)
        elif not record.repeatable or not record.retries_left:
            why = NO_TASK if not record.repeatable else SPENT if record.attempt else NO_RETRIES
            self._of.update(dict.fromkeys(stored, why))
        elif stored:
            self._add(Lineage(record, [self.kept_as(dep) for dep in record.deps]), stored)

    def kept_as(self, dep: ObjectRef) -> ObjectRef | Origin:
        """An argument: its task, if that is remembered; else the value."""
        known = self._of.get(dep.id) if type(dep._value) is InPlace else None
        if not isinstance(known, Lineage) or known.objection or known.depth >= DEPTH_MAX:
            return dep
        return Origin(known, known.place(dep.id))

    def keep_item(self, lineage: Lineage, id: bytes) -> None:
        """The task makes one after the other, and has made this one."""
        if not lineage.users and not lineage.evicted:
            self._add(lineage, {id})
        else:
            self._of[id] = lineage
            lineage.users += 1

    def cannot(self, id: bytes, why: str) -> None:
        """This one is in a store, and cannot be made again."""
        self._of[id] = why

    def _add(self, lineage: Lineage, stored: set[bytes]) -> None:
        lineage.users = len(stored)
        self._of.update(dict.fromkeys(stored, lineage))
        for origin in lineage.origins():
            origin.lineage.users += 1
        self._kept[lineage] = None
        self.size += lineage.size
        while self._kept and self.size > self._max_bytes():
            oldest = next(iter(self._kept))
            oldest.evicted = True
            self._let_go(self._emptied(oldest))

    def _ran_again(self, lineage: Lineage, stored: set[bytes]) -> None:
        for id in lineage.ids:
            if id not in stored:
                self.released(id, gone=True)
            elif id not in self._of:
                self._of[id] = lineage
                lineage.users += 1

    def released(self, id: bytes, *, gone: bool = False) -> None:
        """A hold on it has ended: unless a ref of it is left here, nobody will ask for it. gone: whatever is left."""
        lineage = self._of.get(id)
        if isinstance(lineage, Lineage):
            at = lineage.place(id)
            if not gone and lineage.ref(at) is not None:
                return
            lineage.forgets(at)
            self._let_go([lineage])
        self._of.pop(id, None)

    def _let_go(self, lineages: list[Lineage]) -> None:
        """One user less of each. A list, not recursion: chains may be long."""
        while lineages:
            lineage = lineages.pop()
            lineage.users -= 1
            if not lineage.users:
                lineages += self._emptied(lineage)

    def _emptied(self, lineage: Lineage) -> list[Lineage]:
        """It forgets its arguments: the tasks of which it needs nothing any more."""
        if lineage not in self._kept:
            return []
        del self._kept[lineage]
        self.size -= lineage.size
        needed = [origin.lineage for origin in lineage.origins()]
        lineage.args, lineage.deps, lineage.size = b"", [], 0
        return needed

    # -- making again

    def has(self, id: bytes) -> bool:
        """Whether the task of this one can run again, and has ended."""
        lineage = self._of.get(id)
        return isinstance(lineage, Lineage) and not lineage.runs and not lineage.objection

    def make_again(self, runtime: Runtime, id: bytes) -> str:
        """This one is lost: "" if it will have a value again; else why not."""
        runtime.objects.process_releases()  # what nobody has any more, is to be made again as well
        lineage = self._of.get(id)
        if not isinstance(lineage, Lineage):
            return lineage or NO_TASK
        needed = self.needed(lineage, lineage.place(id))
        if isinstance(needed, str):
            return needed
        revived = [self._revive(runtime, each, at, id) for each, results in needed.items() for at in results]
        for each in needed:
            if not each.runs:
                _run(runtime, each)
        del revived  # their records have them now
        return ""

    def needed(self, lineage: Lineage, at: int) -> dict[Lineage, set[int]] | str:
        """The tasks that are to run, or do, so that result `at` of this one has a value, and which results of theirs
        are wanted; or why that cannot be."""
        wanted, queue = {lineage: {at}}, [lineage]
        for each in queue:
            if why := each.objection:
                return why if each is lineage else f"one of its arguments is lost too, and {why}"
            for origin in () if each.runs else each.origins():
                if origin.lineage.ref(origin.at) is not None:
                    continue  # it has a value; if that is lost as well, it is told
                if origin.lineage not in wanted:
                    wanted[origin.lineage] = set()
                    queue.append(origin.lineage)
                wanted[origin.lineage].add(origin.at)
        return wanted

    def _revive(self, runtime: Runtime, lineage: Lineage, at: int, lost: bytes) -> ObjectRef:
        """Give this result a ref without a value. lost: the one that the node asks for, and counts our holds on."""
        objects, id = runtime.objects, lineage.id_at(at)
        ref = lineage.ref(at) or objects.table.get(id) or ObjectRef(runtime, id=id)
        if type(ref._value) is InPlace:
            ref._hold = ref._value.hold
        elif ref._hold is None:
            ref._hold = Hold(objects.releases, id)
        if id != lost:
            ref._hold.count += 1
            runtime.tell_node(m.Promise(id, lineage.record.made_at))
        ref._value, ref._task, ref._flags = None, lineage.record, ref._flags | SHARED | PROMISED
        objects.table[id] = ref
        lineage.has_ref(at, ref)
        if lineage.runs:
            lineage.awaits(at, ref)
        if id not in self._of:
            self._of[id] = lineage
            lineage.users += 1
        return ref

    def validate(self) -> None:
        """Assert that what is counted twice is the same, and that nothing is kept for nobody."""
        users: dict[Lineage, int] = {}
        for known in self._of.values():
            if isinstance(known, Lineage):
                users[known] = users.get(known, 0) + 1
        for lineage in self._kept:
            for origin in lineage.origins():
                users[origin.lineage] = users.get(origin.lineage, 0) + 1
        assert all(users.get(lineage) == lineage.users for lineage in self._kept), "a task is remembered for nobody"
        assert all(lineage.users == count for lineage, count in users.items()), "a task's users are miscounted"
        assert self.size == sum(lineage.size for lineage in self._kept) <= self._max_bytes(), "more is kept than may be"


def _run(runtime: Runtime, lineage: Lineage) -> None:
    record = lineage.record
    record.args = lineage.args
    record.deps = [_alive(runtime, *dep) if isinstance(dep, Origin) else dep for dep in lineage.deps]
    lineage.begins(runtime)
    if not record.rerun():
        records.fail(runtime, record, runtime.node_died_error())


def _alive(runtime: Runtime, lineage: Lineage, at: int) -> ObjectRef:
    """A ref of this result; one that nobody wants has none, and its task must have somewhere to put it."""
    ref = lineage.ref(at)
    if ref is None:
        ref = ObjectRef(runtime, id=lineage.id_at(at))
        lineage.has_ref(at, ref)
    return ref


def _size_of(value: Any) -> int:
    match value:
        case bytes():
            return len(value)
        case Nested():
            return len(value.data)
        case InPlace():
            return value.hold.size
        case Hold():
            return value.size
    return 0
