"""The long form of test_leaks: `make test-chaos` prints what each process had before and has after."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.e2e import stories
from tests.e2e.footprint import Footprint, footprint, grown
from tests.e2e.test_leaks import begun

pytestmark = pytest.mark.slow
SETTLE_S = 5.0
"""The promise: what work took is given back within this."""


def compare(what: str, before: Footprint, took_s: float) -> None:
    time.sleep(SETTLE_S)
    after = footprint()
    print(f"\n{what}, {took_s:.1f} s\n  before  {before}\n  after   {after}")
    assert not grown(before, after)


@pytest.mark.parametrize(
    ("what", "story"),
    [
        ("100,000 tasks and 10,000 calls", lambda: stories.tasks_and_calls(tasks=100_000, calls=10_000)),
        ("500,000 tasks", lambda: stories.tasks_and_calls(tasks=500_000, calls=0)),
        ("500 rounds of large values", lambda: stories.large_values(rounds=500)),
        ("1,000 rounds of nested refs", lambda: stories.nested_refs(rounds=1_000)),
        ("1,000 rounds of promised refs", lambda: stories.promised_refs(rounds=1_000)),
        ("200 rounds of five actors", lambda: stories.handles(rounds=200)),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_long_story_leaves_nothing(fresh: Callable[..., object], what: str, story: Callable[[], None]) -> None:
    before = begun(fresh)
    began = time.monotonic()
    story()
    compare(what, before, time.monotonic() - began)


def test_every_way_of_waiting_takes_no_more_the_second_time(fresh: Callable[..., object]) -> None:
    """20,000 pending coroutines are a peak whose pages malloc keeps (35 MiB, once); a leak would come again."""
    begun(fresh)
    stories.ways_of_waiting(count=20_000)
    time.sleep(SETTLE_S)
    before, began = footprint(), time.monotonic()
    stories.ways_of_waiting(count=20_000)
    compare("every way of waiting, 20,000 times, again", before, time.monotonic() - began)
