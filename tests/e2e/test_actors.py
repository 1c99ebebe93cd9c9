"""Actors: what their calls mean, as a user of Ray expects them. How they end stands in test_actor_life."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import numpy as np
import pytest

import lattica
from lattica.exceptions import (
    ActorAlreadyExistsError,
    ActorDiedError,
    ActorUnschedulableError,
    PendingCallsLimitExceeded,
    RayActorError,
    RayTaskError,
    TaskCancelledError,
)
from tests.e2e.conftest import eventually
from tests.e2e.sample_actors import Counter, Gate, Notes

pytestmark = pytest.mark.usefixtures("four_cpus")


@lattica.remote
def after(seconds: float, value: Any) -> Any:
    time.sleep(seconds)
    return value


def living() -> list[dict[str, Any]]:
    """What the node says of actors that are not dead; without those that an earlier test's caught exception holds."""
    gc.collect()  # `raises() as caught` makes a ring of the test's frame and its traceback
    actors = lattica.session.current.get().state("actors")
    return [actor for actor in actors if actor["state"] != "DEAD"]


# -- order -----------------------------------------------------------------------------------------------------------


def test_calls_run_in_the_order_in_which_they_were_made() -> None:
    notes = Notes.remote()
    for number in range(2_000):
        notes.add.remote(number)
    assert lattica.get(notes.all.remote()) == list(range(2_000))


def test_the_order_of_a_process_holds_across_its_threads() -> None:
    notes, lock, made = Notes.remote(), threading.Lock(), []

    def call(thread: int) -> None:
        for number in range(200):
            with lock:
                made.append((thread, number))
                notes.add.remote((thread, number))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lattica.get(notes.all.remote()) == made


def test_a_call_whose_argument_is_late_keeps_its_place() -> None:
    notes = Notes.remote()
    notes.add.remote("first")
    notes.add.remote(after.remote(0.2, "late"))
    notes.add.remote("third")
    notes.add.remote(thing=after.remote(0.0, "by name"))
    assert lattica.get(notes.all.remote()) == ["first", "late", "third", "by name"]


def test_a_call_whose_argument_failed_fails_alone() -> None:
    @lattica.remote
    def fail() -> None:
        raise ValueError("no argument")

    notes = Notes.remote()
    refs = [notes.add.remote(fail.remote()), notes.add.remote("next")]
    with pytest.raises(ValueError, match="no argument"):
        lattica.get(refs[0])
    assert lattica.get(refs[1]) == 1


def test_a_cancelled_call_at_the_head_lets_those_behind_it_go() -> None:
    notes, gate = Notes.remote(), Gate.options(max_concurrency=2).remote()
    never = gate.pass_through.remote()
    head, behind = notes.add.remote(never), notes.add.remote("behind")
    assert lattica.wait([behind], timeout=0.1)[0] == []
    lattica.cancel(head)
    assert lattica.get(behind, timeout=5) == 1
    with pytest.raises(TaskCancelledError):
        lattica.get(head)
    gate.open.remote()


# -- threads ---------------------------------------------------------------------------------------------------------


def test_a_threaded_actor_runs_as_many_calls_at_once_as_it_was_told() -> None:
    gate = Gate.options(max_concurrency=4).remote()
    waiting = [gate.pass_through.remote() for _ in range(3)]
    assert eventually(lambda: lattica.get(gate.inside.remote()) == 3)
    more = [gate.pass_through.remote() for _ in range(2)]
    opened = gate.open.remote()  # behind five: four run, one of them must end first
    assert lattica.wait([opened, *waiting, *more], timeout=0.2)[0] == []
    lattica.kill(gate)


def test_calls_of_a_threaded_actor_start_in_order() -> None:
    @lattica.remote(max_concurrency=3)
    class Starts:
        def __init__(self) -> None:
            self.order: list[int] = []
            self.lock = threading.Lock()

        def note(self, number: int) -> None:
            with self.lock:
                self.order.append(number)

        def all(self) -> list[int]:
            return self.order

    starts = Starts.remote()
    lattica.get([starts.note.remote(number) for number in range(300)])
    order = lattica.get(starts.all.remote())
    assert sorted(order) == list(range(300))
    assert all(abs(place - number) <= 3 for place, number in enumerate(order))


def test_threads_of_an_actor_may_call_and_wait_all_at_once() -> None:
    @lattica.remote(max_concurrency=8)
    class Asker:
        def ask(self, other: Any, number: int) -> int:
            return lattica.get(other.add.remote(number)) - lattica.get(after.remote(0.01, 0))

    counter, asker = Counter.remote(), Asker.remote()
    answers = lattica.get([asker.ask.remote(counter, 1) for _ in range(40)])
    assert sorted(answers) == list(range(1, 41))


# -- names -----------------------------------------------------------------------------------------------------------


def test_a_named_actor_is_found_from_anywhere_in_its_namespace() -> None:
    kept = Counter.options(name="found").remote(5)

    @lattica.remote
    def find() -> int:
        return lattica.get(lattica.get_actor("found").add.remote())

    assert lattica.get(find.remote()) == 6
    assert lattica.get_actor("found") == kept
    with pytest.raises(ValueError, match="found"):
        lattica.get_actor("found", namespace="elsewhere")


def test_the_same_name_may_be_borne_in_each_namespace() -> None:
    one = Counter.options(name="twin", namespace="one").remote(1)
    two = Counter.options(name="twin", namespace="two").remote(2)
    assert lattica.get(lattica.get_actor("twin", "one").value.remote()) == 1
    assert lattica.get(lattica.get_actor("twin", "two").value.remote()) == 2
    assert one != two
    with pytest.raises(ValueError):
        lattica.get_actor("twin")


def test_a_name_that_is_taken_is_refused_and_free_again_after_the_end() -> None:
    first = Counter.options(name="once").remote()
    with pytest.raises(ActorAlreadyExistsError, match="once"):
        Counter.options(name="once").remote()
    assert lattica.get(first.add.remote()) == 1
    lattica.kill(first)
    again = Counter.options(name="once").remote(10)
    assert lattica.get(again.add.remote()) == 11


def test_six_callers_at_once_get_one_actor() -> None:
    @lattica.remote(num_cpus=0)
    def ask() -> tuple[str, int]:
        found = Counter.options(name="only", get_if_exists=True, num_cpus=0).remote(100)
        return found._actor_id.hex(), lattica.get(found.add.remote())

    keep = lattica.get([ask.remote() for _ in range(3)])  # keeps nothing: the actor may end in between
    alive = Counter.options(name="only", get_if_exists=True).remote(0)
    first = lattica.get(alive.value.remote())
    answers = lattica.get([ask.remote() for _ in range(6)])
    assert {id for id, _ in answers} == {alive._actor_id.hex()}
    assert sorted(count for _, count in answers) == list(range(first + 1, first + 7))
    assert len(keep) == 3


def test_six_threads_at_once_get_one_actor() -> None:
    found: list[Any] = []

    def ask() -> None:
        found.append(Counter.options(name="of-threads", get_if_exists=True).remote())

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert sorted(lattica.get([handle.add.remote() for handle in found])) == [1, 2, 3, 4, 5, 6]


def test_get_if_exists_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="name"):
        Counter.options(get_if_exists=True).remote()


# -- methods ---------------------------------------------------------------------------------------------------------


def test_methods_with_several_results_give_several_refs() -> None:
    @lattica.remote
    class Splitter:
        @lattica.method(num_returns=2)
        def halves(self, text: str) -> tuple[str, str]:
            return text[: len(text) // 2], text[len(text) // 2 :]

        def plain(self) -> tuple[int, int]:
            return 1, 2

    splitter = Splitter.remote()
    left, right = splitter.halves.remote("abcd")
    assert (lattica.get(left), lattica.get(right)) == ("ab", "cd")
    one, two = splitter.plain.options(num_returns=2).remote()
    assert lattica.get([two, one]) == [2, 1]
    assert splitter.plain.options(num_returns=0).remote() is None
    wrong = splitter.plain.options(num_returns=3).remote()
    with pytest.raises(ValueError, match="num_returns=3"):
        lattica.get(wrong[0])
    assert lattica.get(splitter.plain.remote()) == (1, 2)


def test_what_a_class_does_not_have_is_an_attribute_error() -> None:
    counter = Counter.remote()
    with pytest.raises(AttributeError, match="no method 'subtract'"):
        counter.subtract.remote(1)
    with pytest.raises(AttributeError, match="count"):
        counter.count = 5
    with pytest.raises(TypeError, match=r"add\.remote"):
        counter.add(1)
    with pytest.raises(TypeError, match=r"Counter\.remote"):
        Counter()


def test_inherited_static_and_class_methods_can_be_called() -> None:
    class Base:
        def greet(self) -> str:
            return f"I am {self.name()}"

        def name(self) -> str:
            return "base"

        @staticmethod
        def double(number: int) -> int:
            return 2 * number

        @classmethod
        def title(cls) -> str:
            return cls.__name__

    @lattica.remote
    class Child(Base):
        def name(self) -> str:
            return f"child of {super().name()}"

        def __len__(self) -> int:
            return 3

    child = Child.remote()
    calls = [child.greet.remote(), child.double.remote(4), child.title.remote(), child.__len__.remote()]
    assert lattica.get(calls) == ["I am child of base", 8, "Child", 3]


def test_what_a_method_raises_reaches_the_caller_and_the_actor_lives_on() -> None:
    counter = Counter.remote()
    counter.add.remote()
    with pytest.raises(KeyError, match="missing key") as raised:
        lattica.get(counter.fail.remote("missing key"))
    assert isinstance(raised.value, RayTaskError)
    assert "raise KeyError(words)" in str(raised.value)
    assert lattica.get(counter.value.remote()) == 1


def test_a_call_is_made_again_after_the_exceptions_it_names() -> None:
    @lattica.remote
    class Moody:
        def __init__(self) -> None:
            self.tries = 0

        def work(self) -> int:
            self.tries += 1
            if self.tries < 3:
                raise OSError("not today")
            return self.tries

        def refuse(self) -> None:
            self.tries += 1
            raise KeyError("never")

        def count(self) -> int:
            return self.tries

    moody = Moody.options(max_task_retries=5).remote()
    assert lattica.get(moody.work.options(retry_exceptions=[OSError]).remote()) == 3
    with pytest.raises(KeyError):
        lattica.get(moody.refuse.options(retry_exceptions=[OSError]).remote())
    assert lattica.get(moody.count.remote()) == 4
    with pytest.raises(KeyError):
        lattica.get(moody.refuse.options(retry_exceptions=True, max_task_retries=2).remote())
    assert lattica.get(moody.count.remote()) == 7


def test_large_arguments_and_results_pass_through_the_arena() -> None:
    @lattica.remote
    class Scale:
        def by(self, array: Any, factor: float, *, offset: Any = None) -> Any:
            assert not array.flags.writeable
            return array * factor if offset is None else array * factor + offset

    array, scale = np.arange(500_000, dtype=np.float64), Scale.remote()
    by_value, by_ref = scale.by.remote(array, 2.0), scale.by.remote(lattica.put(array), 3.0, offset=lattica.put(array))
    assert np.array_equal(lattica.get(by_value), array * 2)
    assert np.array_equal(lattica.get(by_ref), array * 4)
    assert np.array_equal(lattica.get(scale.by.remote(by_value, 1.0)), array * 2)


def test_a_call_that_finds_too_many_pending_is_refused() -> None:
    gate = Gate.options(max_concurrency=2, max_pending_calls=3).remote()
    waiting = [gate.pass_through.remote() for _ in range(2)]
    third = gate.pass_through.remote()
    with pytest.raises(PendingCallsLimitExceeded, match="3 calls"):
        gate.pass_through.remote()
    assert lattica.wait([*waiting, third], timeout=0)[0] == []
    lattica.kill(gate)
    counter = Counter.options(max_pending_calls=5).remote()
    for _ in range(20):
        assert lattica.get([counter.add.remote() for _ in range(5)])


# -- construction ----------------------------------------------------------------------------------------------------


def test_a_constructor_that_raises_is_told_to_every_call() -> None:
    @lattica.remote(max_restarts=3)
    class Broken:
        def __init__(self, number: int) -> None:
            raise ValueError(f"cannot begin with {number}")

        def work(self) -> int:
            return 1

    broken = Broken.remote(13)
    first = broken.work.remote()
    for ref in (first, broken.work.remote()):
        with pytest.raises(ActorDiedError, match="cannot begin with 13") as raised:
            lattica.get(ref)
        assert isinstance(raised.value, RayActorError)
        assert raised.value.actor_init_failed
        assert "raise ValueError" in str(raised.value)


def test_arguments_that_do_not_fit_are_refused_where_they_are_given() -> None:
    with pytest.raises(TypeError, match=r"Counter\.remote\(\): too many positional arguments"):
        Counter.remote(1, 2, 3)
    counter = Counter.remote()
    with pytest.raises(TypeError, match=r"Counter\.add\.remote\(\): got an unexpected keyword argument 'wrong'"):
        counter.add.remote(wrong=1)
    elsewhere = lattica.get(lattica.put(counter))  # knows names alone
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        lattica.get(elsewhere.add.remote(wrong=1))


def test_a_constructor_takes_refs_and_large_values() -> None:
    @lattica.remote
    class Table:
        def __init__(self, rows: Any, extra: Any, *, more: Any) -> None:
            self.rows, self.extra, self.more = rows, extra, more

        def total(self) -> float:
            return float(self.rows.sum() + self.extra.sum() + self.more.sum())

    ones = np.ones(300_000)
    table = Table.remote(ones, lattica.put(ones), more=after.remote(0.1, ones))
    assert lattica.get(table.total.remote()) == 900_000


def test_a_constructor_whose_argument_failed_is_an_actor_that_died() -> None:
    @lattica.remote
    def fail() -> None:
        raise ValueError("no such table")

    late = Counter.remote(fail.remote())
    with pytest.raises(ActorDiedError, match="no such table"):
        lattica.get(late.add.remote())
    failed = fail.remote()
    lattica.wait([failed])
    with pytest.raises(ActorDiedError, match="no such table"):
        lattica.get(Counter.remote(failed).add.remote())
    named = Counter.options(name="of-a-failed-argument").remote(fail.remote())
    with pytest.raises(ActorDiedError, match="no such table"):
        lattica.get(named.add.remote())
    del named
    assert lattica.get(Counter.options(name="of-a-failed-argument").remote().add.remote()) == 1


def test_an_actor_that_waits_for_its_arguments_bears_its_name_and_may_be_given_away() -> None:
    @lattica.remote
    def add_to(handle: Any) -> int:
        return lattica.get(handle.add.remote())

    began = time.monotonic()
    late = Counter.options(name="late").remote(after.remote(1.0, 10))
    assert time.monotonic() - began < 0.9
    found = lattica.get_actor("late")
    assert lattica.get([add_to.remote(late), found.add.remote()], timeout=10) in ([11, 12], [12, 11])
    doomed = Counter.remote(after.remote(0.3, 10))
    ref = doomed.add.remote()
    lattica.kill(doomed)
    with pytest.raises(ActorDiedError, match="kill"):
        lattica.get(ref)
    Counter.remote(after.remote(0.1, 10))  # nobody holds it any more
    assert eventually(lambda: not any(actor["name"] == "" for actor in living())), living()


def test_a_class_that_cannot_travel_says_which_part_of_it() -> None:
    lock = threading.Lock()

    @lattica.remote
    class Holder:
        def read(self) -> bool:
            return lock.locked()

    with pytest.raises(TypeError, match="lock"):
        Holder.remote()
    with pytest.raises(TypeError, match="lock"):
        Notes.remote().add.remote(lock)


# -- handles ---------------------------------------------------------------------------------------------------------


def test_handles_travel_in_arguments_containers_closures_results_and_objects() -> None:
    counter = Counter.remote()

    @lattica.remote
    def add_to(handle: Any) -> int:
        return lattica.get(handle.add.remote())

    @lattica.remote
    def add_to_inner(box: dict[str, list[Any]]) -> int:
        return lattica.get(box["inside"][0].add.remote())

    @lattica.remote
    def add_captured() -> int:
        return lattica.get(counter.add.remote())

    @lattica.remote
    def give_back(handle: Any) -> list[Any]:
        return [handle]

    assert lattica.get(add_to.remote(counter)) == 1
    assert lattica.get(add_to_inner.remote({"inside": [counter]})) == 2
    assert lattica.get(add_captured.remote()) == 3
    (back,) = lattica.get(give_back.remote(counter))
    assert back == counter and lattica.get(back.add.remote()) == 4
    assert lattica.get(lattica.get(lattica.put(counter)).add.remote()) == 5
    assert lattica.get(add_to.remote(lattica.put(counter))) == 6


def test_an_actor_keeps_handles_of_others_and_calls_them() -> None:
    @lattica.remote
    class Relay:
        def __init__(self, target: Any) -> None:
            self.target = target

        def add(self, amount: int) -> int:
            return lattica.get(self.target.add.remote(amount))

        def add_later(self, amount: int) -> Any:
            return self.target.add.remote(amount)

    counter = Counter.remote()
    relay = Relay.remote(Relay.remote(counter))
    del counter
    assert lattica.get([relay.add.remote(2) for _ in range(3)]) == [2, 4, 6]
    assert lattica.get(lattica.get(relay.add_later.remote(1))) == 7


def test_actors_make_actors_and_give_their_handles_away() -> None:
    @lattica.remote
    class Parent:
        def __init__(self, depth: int) -> None:
            self.child = Parent.remote(depth - 1) if depth else None

        def depth(self) -> int:
            return 1 + lattica.get(self.child.depth.remote()) if self.child else 0

        def youngest(self) -> Any:
            return self.child

    parent = Parent.remote(5)
    assert lattica.get(parent.depth.remote()) == 5
    child = lattica.get(parent.youngest.remote())
    assert lattica.get(child.depth.remote()) == 4


def test_two_actors_may_call_each_other() -> None:
    @lattica.remote
    class Player:
        def meet(self, other: Any) -> None:
            self.other = other

        def play(self, ball: int) -> Any:
            return ball if ball == 0 else self.other.play.remote(ball - 1)

    left, right = Player.remote(), Player.remote()
    lattica.get([left.meet.remote(right), right.meet.remote(left)])
    ball = left.play.remote(20)
    while not isinstance(ball, int):
        ball = lattica.get(ball, timeout=10)
    assert ball == 0
    left.meet.remote(None)
    lattica.get(right.meet.remote(None))


def test_an_actor_that_waits_for_tasks_gives_its_cpu_to_them(fresh: Any) -> None:
    fresh(num_cpus=1)

    @lattica.remote(num_cpus=1)
    class Boss:
        def work(self, count: int) -> int:
            return sum(lattica.get([after.remote(0.0, 1) for _ in range(count)]))

    assert lattica.get(Boss.remote().work.remote(5), timeout=20) == 5


def test_a_handle_pickled_elsewhere_is_refused() -> None:
    import pickle

    counter = Counter.remote()
    with pytest.raises(lattica.errors.OutOfBandRefError, match=r"<handle of actor \w{8}> was pickled outside"):
        pickle.dumps(counter)


# -- cancel ----------------------------------------------------------------------------------------------------------


def test_a_running_call_is_cancelled_and_the_actor_lives_on() -> None:
    counter = Counter.remote()
    lattica.get(counter.add.remote())
    long = counter.sleep.remote(20)
    time.sleep(0.1)
    began = time.monotonic()
    lattica.cancel(long)
    with pytest.raises(TaskCancelledError):
        lattica.get(long, timeout=5)
    assert time.monotonic() - began < 2
    assert lattica.get(counter.add.remote()) == 2


def test_a_queued_call_is_cancelled_without_running() -> None:
    counter, gate = Counter.remote(), Gate.remote()
    running, queued, last = counter.sleep.remote(0.3), counter.add.remote(100), counter.add.remote()
    lattica.cancel(queued)
    with pytest.raises(TaskCancelledError):
        lattica.get(queued, timeout=5)
    assert lattica.get([running, last]) == [0.3, 1]
    del gate


def test_a_call_of_a_threaded_actor_hears_that_it_is_cancelled() -> None:
    @lattica.remote(max_concurrency=2)
    class Patient:
        def work(self) -> str:
            for _ in range(500):
                if lattica.get_runtime_context().is_canceled():
                    return "stopped"
                time.sleep(0.01)
            return "ran on"

    patient = Patient.remote()
    ref = patient.work.remote()
    time.sleep(0.1)
    lattica.cancel(ref)
    assert lattica.get(ref, timeout=10) == "stopped"


def test_a_call_cannot_be_forced_and_a_finished_one_stays() -> None:
    counter = Counter.remote()
    ref = counter.add.remote()
    with pytest.raises(ValueError, match="kill"):
        lattica.cancel(counter.sleep.remote(0.01), force=True)
    assert lattica.get(ref) == 1
    lattica.cancel(ref)
    assert lattica.get(ref) == 1


def test_cancelling_a_call_cancels_what_it_submitted() -> None:
    @lattica.remote
    class Boss:
        def work(self) -> Any:
            return lattica.get(after.remote(30, None))

    boss = Boss.options(num_cpus=1).remote()
    ref = boss.work.remote()
    time.sleep(0.3)
    lattica.cancel(ref)
    with pytest.raises(TaskCancelledError):
        lattica.get(ref, timeout=5)
    assert eventually(lambda: lattica.available_resources().get("CPU", 0) == 3.0)


# -- where and with what ---------------------------------------------------------------------------------------------


def test_an_actor_knows_where_it_runs() -> None:
    @lattica.remote(num_cpus=1, resources=None)
    class Where:
        def facts(self) -> dict[str, Any]:
            here = lattica.get_runtime_context()
            return here.get() | {
                "name": here.get_actor_name(),
                "resources": here.get_assigned_resources(),
                "worker": here.get_worker_id(),
                "reborn": here.was_current_actor_reconstructed,
                "self": here.current_actor,
                "task": here.get_task_name(),
            }

    handle = Where.options(name="where").remote()
    facts, here = lattica.get(handle.facts.remote()), lattica.get_runtime_context()
    assert facts["actor_id"] == handle._actor_id.hex()
    assert facts["name"] == "where"
    assert facts["resources"] == {"CPU": 1.0}
    assert facts["reborn"] is False
    assert facts["self"] == handle
    assert facts["job_id"] == here.get_job_id() and facts["node_id"] == here.get_node_id()
    assert facts["worker"] != here.get_worker_id()
    assert facts["task"] == "Where.facts" and facts["task_id"]
    assert here.get_actor_id() is None and here.get_actor_name() is None and here.get_task_id() is None
    assert facts["namespace"] == here.namespace


def test_an_actor_holds_its_resources_until_it_ends(fresh: Any) -> None:
    fresh(num_cpus=2, resources={"slot": 1})
    free = lattica.available_resources()
    held = Counter.options(num_cpus=1, resources={"slot": 0.5}).remote()
    light = Counter.remote()
    lattica.get([held.add.remote(), light.add.remote()])
    now = lattica.available_resources()
    assert (now["CPU"], now["slot"]) == (1.0, 0.5)
    lattica.kill(held)
    assert eventually(lambda: lattica.available_resources() == free)
    other = Counter.options(num_cpus=2).remote()
    lattica.get(other.add.remote())
    assert lattica.available_resources().get("CPU", 0) == 0
    del other
    assert eventually(lambda: lattica.available_resources()["CPU"] == 2)


def test_an_actor_waits_for_its_resources_and_its_calls_with_it(fresh: Any) -> None:
    fresh(num_cpus=1)
    first = Counter.options(num_cpus=1).remote()
    lattica.get(first.add.remote())
    second = Counter.options(num_cpus=1).remote()
    late = second.add.remote()
    assert lattica.wait([late], timeout=0.2)[0] == []
    lattica.kill(first)
    assert lattica.get(late, timeout=5) == 1


def test_an_actor_that_can_never_be_placed_says_what_is_missing() -> None:
    wide = Counter.options(num_cpus=64).remote()
    with pytest.raises(ActorUnschedulableError, match="CPU"):
        lattica.get(wide.add.remote())
    named = Counter.options(resources={"moon": 1}, name="wide").remote()
    with pytest.raises(ActorUnschedulableError, match="moon"):
        lattica.get(named.add.remote())


def test_options_that_make_no_sense_are_refused_at_once() -> None:
    for wrong in (
        {"max_restarts": -2},
        {"max_concurrency": 0},
        {"lifetime": "eternal"},
        {"colour": "red"},
        {"name": ""},
    ):
        with pytest.raises(ValueError):
            Counter.options(**wrong)
