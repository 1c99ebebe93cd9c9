"""Which tasks a process remembers, and how it makes what is lost again by them."""

from __future__ import annotations

import gc
from collections import deque
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lattica.actors import lineage as core
from lattica.actors.lineage import CANCELED, EVICTED, NO_RETRIES, NO_TASK, SPENT, TASK_BYTES, Lineages
from lattica.actors.records import Record
from lattica.actors.refs import PROMISED, SHARED, Hold, InPlace, ObjectRef, Releases
from lattica.codec import messages as m

BIG = 200 << 10


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> None:
    """These tests collect garbage thousands of times: what others have left need not be looked at each time."""
    gc.collect()
    gc.freeze()


class Work(Record, eq=False):
    """A task that says when it runs again."""

    process: Process
    repeatable: ClassVar[bool] = True

    def rerun(self) -> bool:
        self.spend_retry()
        self.process.running.append(self)
        return True


class Call(Work, eq=False):
    """Of an actor."""

    repeatable: ClassVar[bool] = False


def work(
    process: Process, deps: list[ObjectRef], refs: list[ObjectRef], retries: int, args: bytes, kind: type[Work] = Work
) -> Work:
    return kind(args, deps, list(range(len(deps))), refs, len(refs), retries, False, process)


class Process:
    """One that calls tasks, as far as lineage is concerned. told: what its node hears. running: what it waits for."""

    def __init__(self, max_bytes: int = core.LINEAGE_MAX_BYTES) -> None:
        self.lineage = Lineages(lambda: max_bytes)
        self.releases, self.table = Releases(), WeakValueDictionary[bytes, ObjectRef]()
        self.told: list[Any] = []
        self.running: deque[Work] = deque()
        self.objects = self.runtime = self
        self.made = 0

    def tell_node(self, message: Any) -> None:
        self.told.append(message)

    def process_releases(self) -> None:
        while self.releases:
            id, _, count, _ = self.releases.popleft()
            if count:
                self.lineage.released(id)
                self.told.append(m.Drop(id, count))

    def call(
        self, *deps: ObjectRef, retries: int = 3, results: int = 1, args: bytes = b"", kind: type[Work] = Work
    ) -> list[ObjectRef]:
        """The results of a task that has ended, all in a store."""
        refs = [self.ref() for _ in range(results)]
        self.end(work(self, list(deps), refs, retries, args, kind))
        return refs

    def one(self, *deps: ObjectRef, **how: Any) -> ObjectRef:
        return self.call(*deps, **how)[0]

    def ref(self) -> ObjectRef:
        self.made += 1
        return ObjectRef(self, id=self.made.to_bytes(16, "big"))  # type: ignore[arg-type]

    def put(self, size: int = BIG) -> ObjectRef:
        ref = self.ref()
        ref._value = InPlace(Hold(self.releases, ref.id, 0, size, 1))
        return ref

    def end(self, work: Work, value: Any = None) -> None:
        """As `records.finish` does."""
        for ref in work.refs:
            if ref._value is None:
                ref._value = value or InPlace(ref._hold or Hold(self.releases, ref.id, 0, BIG, 1))
        self.lineage.keep(work)
        work.refs, work.args, work.deps = [], b"", []
        self.let_go()

    def let_go(self) -> None:
        """What nobody has is gone."""
        gc.collect()
        self.process_releases()
        self.lineage.validate()

    def again(self, id: bytes) -> str:
        """The node says that this one is lost."""
        why = self.lineage.make_again(self, id)  # type: ignore[arg-type]
        self.lineage.validate()
        return why

    def run(self) -> list[bytes]:
        """All that runs ends, arguments first: what each was called with."""
        ran = []
        while self.running:
            work = self.running.popleft()
            if any(dep._value is None for dep in work.deps):
                self.running.append(work)
                continue
            ran.append(work.args)
            self.end(work)
        return ran


@pytest.fixture
def process() -> Process:
    return Process()


# -- one task -------------------------------------------------------------------------------------------------------


def test_a_lost_result_is_made_again_by_its_task_with_the_same_arguments_for_one_retry(process: Process) -> None:
    given_ = process.put()
    ref = process.one(given_, args=b"args", retries=2)
    assert process.again(ref.id) == ""
    (work,) = process.running
    assert (work.args, work.deps, work.refs, work.retries_left, work.attempt) == (b"args", [given_], [ref], 1, 1)
    assert ref._value is None and ref._task is work and ref._flags & (SHARED | PROMISED) == SHARED | PROMISED
    assert process.told == [], "the node knows who waits for what: it has told us"
    process.run()
    assert isinstance(ref._value, InPlace) and process.again(ref.id) == ""


def test_it_is_made_again_as_often_as_there_are_retries_and_then_it_is_said_why_not(process: Process) -> None:
    ref = process.one(retries=2)
    for _ in range(2):
        assert process.again(ref.id) == ""
        process.run()
    assert process.again(ref.id) == SPENT and not process.running
    endless = process.one(retries=-1)
    for _ in range(5):
        assert process.again(endless.id) == ""
        process.run()


def test_what_cannot_be_made_again_says_why(process: Process) -> None:
    assert process.again(process.one(retries=0).id) == NO_RETRIES
    assert process.again(process.one(kind=Call).id) == NO_TASK
    assert process.again(process.put().id) == NO_TASK
    canceled = process.ref()
    given_up = work(process, [], [canceled], 3, b"")
    process.end(given_up)
    given_up.canceled = True
    assert process.again(canceled.id) == CANCELED


def test_two_losses_of_one_result_make_it_once(process: Process) -> None:
    ref = process.one()
    assert process.again(ref.id) == process.again(ref.id) == ""
    assert len(process.running) == 1


def test_of_several_results_the_lost_one_is_waited_for_and_the_others_stay(process: Process) -> None:
    one, two, three = process.call(results=3)
    kept, third = one._value, three.id
    del three
    process.let_go()
    assert process.again(two.id) == ""
    (work,) = process.running
    assert work.refs[:2] == [one, two] and work.refs[2].id == third, "its task has three results"
    process.run()
    assert one._value is kept and isinstance(two._value, InPlace)
    assert process.again(one.id) == "", "another one may be lost later"


def test_a_small_result_is_in_no_store_and_nothing_is_remembered_for_it(process: Process) -> None:
    ref = process.ref()
    process.end(work(process, [process.put()], [ref], 3, b""), value=b"small")
    assert process.lineage.size == 0 and not process.lineage.has(ref.id)


def test_a_result_that_is_small_the_second_time_is_remembered_no_more(process: Process) -> None:
    ref = process.one()
    process.again(ref.id)
    process.end(process.running.popleft(), value=b"small")
    assert process.lineage.size == 0 and not process.lineage.has(ref.id)


# -- what is kept ---------------------------------------------------------------------------------------------------


def test_a_task_is_forgotten_with_the_last_ref_of_its_results(process: Process) -> None:
    one, two = process.call(process.put(), results=2)
    assert process.lineage.size == TASK_BYTES + BIG
    first = one.id
    del one
    process.let_go()
    assert process.lineage.size == TASK_BYTES + BIG and process.again(first) == NO_TASK
    del two
    process.let_go()
    assert process.lineage.size == 0 and repr(process.lineage) == "<Lineages of 0 objects: 0 tasks, 0 bytes>"


def test_a_second_hold_that_ends_does_not_make_a_result_forgotten(process: Process) -> None:
    """Its task ran again for the sake of another result, and this one came once more."""
    ref = process.one()
    Hold(process.releases, ref.id, 0, BIG, 1)
    process.let_go()
    assert process.again(ref.id) == ""


def test_what_was_put_is_kept_with_the_task_and_what_a_task_has_made_is_not(process: Process) -> None:
    put, made = process.put(), process.one()
    ids = put.id, made.id
    ref = process.one(put, made)
    process.told.clear()
    del put, made
    process.let_go()
    assert process.told == [m.Drop(ids[1], 1)]
    del ref
    process.let_go()
    assert m.Drop(ids[0], 1) in process.told[1:]


def test_beyond_the_bound_the_oldest_arguments_are_let_go_and_it_is_said(process: Process) -> None:
    process = Process(max_bytes=3 * (TASK_BYTES + BIG))
    refs = [process.one(process.put()) for _ in range(4)]
    assert process.lineage.size == 3 * (TASK_BYTES + BIG)
    assert process.again(refs[0].id) == EVICTED and not process.running
    assert [process.again(ref.id) for ref in refs[1:]] == ["", "", ""]


def test_arguments_larger_than_the_bound_are_not_kept_at_all(process: Process) -> None:
    process = Process(max_bytes=BIG)
    ref = process.one(process.put(2 * BIG))
    assert process.lineage.size == 0 and process.again(ref.id) == EVICTED


# -- arguments that are gone too ------------------------------------------------------------------------------------


def chain(process: Process, length: int) -> ObjectRef:
    """The last of so many tasks, each of which had the result of the one before; the others' are gone."""
    ref = process.one(args=b"first")
    for _ in range(length - 1):
        ref = process.one(ref)
    process.let_go()
    return ref


def test_arguments_that_are_gone_are_made_again_first_and_go_when_they_were_used(process: Process) -> None:
    ref = chain(process, 4)
    assert process.again(ref.id) == ""
    assert len(process.running) == 4
    promised = [told.object for told in process.told if isinstance(told, m.Promise)]
    assert len(set(promised)) == 3 and ref.id not in promised
    process.told.clear()
    assert process.run() == [b"first", b"", b"", b""]
    assert {told.object for told in process.told if isinstance(told, m.Drop)} == set(promised)
    assert process.again(ref.id) == "", "and once more"
    assert [work.retries_left for work in process.running] == [1, 1, 1, 1]


def test_an_argument_that_is_still_here_is_not_made_again(process: Process) -> None:
    first = process.one()
    middle = process.one(first)
    last = process.one(middle)
    del first
    process.let_go()
    assert process.again(last.id) == ""
    (work,) = process.running
    assert work.deps == [middle]


def test_an_argument_that_two_have_in_common_is_made_again_once(process: Process) -> None:
    shared = process.one(args=b"shared")
    one, two = process.one(shared), process.one(shared)
    both = process.one(one, two)
    del shared, one, two
    process.let_go()
    assert process.again(both.id) == ""
    assert len(process.running) == 4 and process.run().count(b"shared") == 1


def test_an_argument_that_is_being_made_again_already_is_waited_for(process: Process) -> None:
    made = process.one(args=b"made")
    one, two = process.one(made), process.one(made)
    del made
    process.let_go()
    assert process.again(one.id) == process.again(two.id) == ""
    assert len(process.running) == 3 and process.run().count(b"made") == 1


def test_nothing_runs_for_what_cannot_be_had_in_the_end(process: Process) -> None:
    hopeless = process.one(retries=1)
    fine = process.one(process.one(), hopeless)
    last = process.one(fine)
    assert process.again(hopeless.id) == ""
    process.run()
    del hopeless, fine
    process.let_go()
    assert process.again(last.id) == f"one of its arguments is lost too, and {SPENT}"
    assert not process.running and isinstance(last._value, InPlace)


def test_a_chain_is_as_deep_as_is_said_and_its_next_argument_is_kept(process: Process, monkeypatch: Any) -> None:
    monkeypatch.setattr(core, "DEPTH_MAX", 5)
    ref = chain(process, 8)
    assert process.lineage.size == 8 * TASK_BYTES + len(b"first") + BIG
    assert process.again(ref.id) == ""
    assert len(process.running) == 3 and all(work.args == b"" for work in process.running)


def test_a_chain_of_a_hundred_thousand_is_bounded_and_let_go_without_recursion(process: Process) -> None:
    process = Process(max_bytes=2_000 * TASK_BYTES)
    ref = process.one()
    for _ in range(5_000):
        made = process.ref()
        one = work(process, [ref], [made], 3, b"")
        made._value = InPlace(Hold(process.releases, made.id, 0, BIG, 1))
        process.lineage.keep(one)
        one.refs, one.deps = [], []
        ref = made
        process.process_releases()
    assert process.lineage.size <= 2_000 * TASK_BYTES
    process.lineage.validate()
    del ref, made, one
    process.let_go()
    assert process.lineage.size == 0


def test_when_the_arguments_at_the_root_of_a_chain_were_let_go_it_is_said(process: Process) -> None:
    process = Process(max_bytes=3 * TASK_BYTES)
    ref = chain(process, 5)
    assert process.again(ref.id) == f"one of its arguments is lost too, and {EVICTED}"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["call", "put", "drop", "lose", "run"]), st.integers(0, 1 << 16)), max_size=60)
)
def test_in_any_story_what_is_counted_fits_and_what_is_asked_for_comes_or_is_refused(
    story: list[tuple[str, int]],
) -> None:
    process, refs = Process(max_bytes=6 * TASK_BYTES + 2 * BIG), list[ObjectRef]()
    for act, dice in story:
        some = [refs[dice % len(refs)], refs[dice // 7 % len(refs)]][: dice % 3] if refs else []
        match act:
            case "call":
                refs += process.call(*some, retries=dice % 4 - 1, results=1 + dice % 2)
            case "put":
                refs.append(process.put())
            case "drop" if refs:
                refs.pop(dice % len(refs))
            case "lose" if refs:
                ref = refs[dice % len(refs)]
                if ref._value is not None:
                    assert (process.again(ref.id) == "") == (ref._value is None)
            case "run":
                process.run()
        del some
        process.let_go()
    process.run()
    assert all(ref._value is not None for ref in refs)
    refs.clear()
    ref = None  # type: ignore[assignment]
    process.let_go()
    assert process.lineage.size == 0 and not process.lineage._of
