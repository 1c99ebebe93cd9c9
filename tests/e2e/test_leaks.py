"""Work comes and goes; processes, descriptors, memory and the node's books are then as they were."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

import lattica
from lattica.actors import current
from tests.e2e import stories
from tests.e2e.conftest import eventually
from tests.e2e.footprint import Footprint, books, footprint, grown
from tests.e2e.sample_actors import Counter


@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize(
    "story",
    [
        lambda: stories.large_values(rounds=20),
        lambda: stories.nested_refs(rounds=60),
        lambda: stories.promised_refs(rounds=60),
        lambda: stories.handles(rounds=10),
        lambda: stories.ways_of_waiting(count=300),
    ],
    ids=["large values", "nested refs", "promised refs", "handles", "ways of waiting"],
)
def test_nobody_holds_anything_when_the_story_is_over(story: Callable[[], None]) -> None:
    assert eventually(lambda: not books()), books()
    story()
    assert eventually(lambda: not books()), books()


@pytest.mark.usefixtures("two_cpus")
def test_a_driver_keeps_no_books_of_what_is_over() -> None:
    """The same from within: the tables of the runtime are empty."""
    counter = Counter.remote()
    lattica.get([counter.add.remote(stories.echo.remote(1)) for _ in range(200)])
    lattica.get([stories.echo.remote(lattica.put([1])) for _ in range(200)])
    del counter
    runtime = current.get()

    def left() -> dict[str, int]:
        runtime.reactor.ring()  # finalizers leave their work to whoever comes next
        objects, tasks = runtime.objects, runtime.tasks
        tables = {
            "refs": objects.table, "sealed": objects._sealed, "spans asked": objects._spans_asked,
            "peers": runtime.calls.peers, "leases": tasks.leases, "requests": tasks.lanes_by_request,
            "answers": runtime.answers, "expected": runtime._expected, "releases": objects.releases,
        }  # fmt: skip
        return {name: len(table) for name, table in tables.items() if len(table)}

    assert eventually(lambda: not left()), left()


@lattica.remote
def twin() -> None:
    """Two of these run in two workers, and import numpy there."""
    np.ones(10)
    time.sleep(0.1)


def begun(fresh: Callable[..., object]) -> Footprint:
    """A session that has done a little, so that what is made once is there."""
    fresh(num_cpus=2)
    counter = Counter.remote()
    lattica.get([stories.echo.remote(number) for number in range(1_000)] + [counter.add.remote() for _ in range(100)])
    lattica.get([twin.remote() for _ in range(2)])
    del counter
    time.sleep(0.5)  # the zygote imports what workers may need as soon as it is idle
    assert eventually(lambda: not books()), books()
    return footprint()


def test_five_seconds_after_its_work_a_session_is_as_it_was(fresh: Callable[..., object]) -> None:
    before = begun(fresh)
    stories.tasks_and_calls(tasks=8_000, calls=2_000)
    stories.large_values(rounds=5)
    stories.nested_refs(rounds=10)
    stories.handles(rounds=4)
    assert eventually(lambda: not grown(before, footprint())), f"{grown(before, footprint())}\n{before}\n{footprint()}"


def test_sessions_begun_and_ended_leave_the_driver_as_it_was(fresh: Callable[..., object]) -> None:
    import gc

    def live() -> Footprint:
        fresh(num_cpus=1)
        stories.large_values(rounds=1)
        gc.collect()
        assert eventually(lambda: footprint().actors == 0)  # the story's actor ends when its last handle has gone
        return footprint()

    before = live()
    for _ in range(4):
        after = live()
    ours = [words for words in grown(before, after) if words.startswith("driver")]  # each session has its own arena
    assert not ours, f"{before}\n{after}"
