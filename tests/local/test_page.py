"""The page of a dead worker: whatever it was doing when it was killed, the node reads the truth from it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.codec import frames
from lattica.codec import messages as m
from lattica.local.page import PAGE_BYTES, Page
from tests.conftest import examples

Truth = tuple[int, int, bytes]
NOTHING: Truth = (0, 0, b"")


@pytest.fixture
def page() -> Iterator[Page]:
    made = new_page()
    yield made
    made.close()


def new_page() -> Page:
    fd = Page.create()
    try:
        return Page(fd)
    finally:
        os.close(fd)


def reply(seq: int, size: int = 10) -> bytes:
    return frames.encode_one(m.Reply(seq, [b"x" * size]))


def test_a_new_page_says_nothing(page: Page) -> None:
    assert page.post_mortem(3) == NOTHING and page.count == 0 and page.take() == b""


def test_the_task_that_had_started_is_charged(page: Page) -> None:
    page.lease_to(3)
    page.start(12)
    assert page.post_mortem(3) == (12, 0, b"")


def test_what_had_finished_and_was_not_sent_is_handed_over(page: Page) -> None:
    page.lease_to(3)
    for seq in (12, 13):
        page.start(seq)
        assert page.finish(reply(seq))
    assert page.count == page.fresh == 2 and page.take() == reply(12) + reply(13) and page.fresh == 0
    started, count, items = page.post_mortem(3)
    assert (started, count) == (13, 2)
    assert frames.Decoder(m.FromWorker).feed(frames.join(count, items) + items) == [
        m.Reply(12, [b"x" * 10]),
        m.Reply(13, [b"x" * 10]),
    ]


def test_what_was_sent_is_not_handed_over_again(page: Page) -> None:
    page.lease_to(3)
    page.start(12)
    page.finish(reply(12))
    page.take()
    page.sent()
    assert page.post_mortem(3) == (12, 0, b"") and page.count == 0


def test_what_is_being_sent_is_handed_over_until_the_kernel_has_it_and_nothing_fresh_lies_behind_it(page: Page) -> None:
    page.lease_to(3)
    page.start(12)
    page.finish(reply(12))
    assert page.take() == reply(12)
    page.start(13)
    page.finish(reply(13))
    assert page.post_mortem(3) == (13, 2, reply(12) + reply(13))
    page.sent()  # the first; the second is not even begun
    assert page.post_mortem(3) == (13, 2, reply(12) + reply(13))
    assert page.take() == reply(13)
    page.sent()
    assert page.post_mortem(3) == (13, 0, b"")


def test_another_client_hears_nothing_of_it(page: Page) -> None:
    page.lease_to(3)
    page.start(12)
    page.finish(reply(12))
    assert page.post_mortem(4) == NOTHING


def test_a_new_lease_begins_with_nothing_started(page: Page) -> None:
    page.lease_to(3)
    page.start(12)
    page.lease_to(4)
    assert page.post_mortem(4) == page.post_mortem(3) == NOTHING


def test_a_reply_that_finds_no_room_is_refused_and_leaves_the_others(page: Page) -> None:
    page.lease_to(3)
    page.start(12)
    assert page.finish(reply(12, 100 << 10))
    assert not page.finish(reply(13, 100 << 10))
    assert page.post_mortem(3) == (12, 1, reply(12, 100 << 10))
    page.take()
    page.sent()
    assert page.finish(reply(13, 100 << 10))


def test_the_page_can_be_filled_to_its_last_byte(page: Page) -> None:
    page.lease_to(3)
    assert page.finish(b"x" * (PAGE_BYTES - 64)) and not page.finish(b"x")
    assert page.post_mortem(3) == (0, 1, b"x" * (PAGE_BYTES - 64))


def test_the_node_reads_what_the_worker_wrote_through_a_mapping_of_its_own() -> None:
    fd = Page.create()
    worker, node = Page(fd), Page(fd)
    os.close(fd)
    worker.lease_to(3)
    worker.start(12)
    worker.finish(reply(12))
    worker.close()
    assert node.post_mortem(3) == (12, 1, reply(12))
    node.close()


# -- killed at any moment


class Stores:
    """A page whose every store is kept, so that a worker can be killed behind each."""

    def __init__(self) -> None:
        self.page = new_page()
        self.kept: list[tuple[str, Any, Any]] = []
        for name in ("_map", "_words"):
            setattr(self.page, name, _Memory(self, name, getattr(self.page, name)))

    def post_mortems(self, client: int, since: int) -> list[Truth]:
        """What `client` would be told of a worker killed before the store `since`, and behind each from there on."""
        dead = new_page()
        told: list[Truth] = []
        for at, (name, where, what) in enumerate(self.kept):
            if at >= since:
                told.append(dead.post_mortem(client))
            getattr(dead, name)[where] = what
        told.append(dead.post_mortem(client))
        dead.close()
        return told


class _Memory:
    def __init__(self, stores: Stores, name: str, memory: Any) -> None:
        self.stores, self.name, self.memory = stores, name, memory

    def __setitem__(self, where: Any, what: Any) -> None:
        self.stores.kept.append((self.name, where, what))
        self.memory[where] = what

    def __getitem__(self, where: Any) -> Any:
        return self.memory[where]


@examples(60)
@given(st.lists(st.sampled_from(["start", "finish", "send"]), max_size=20))
def test_a_worker_killed_in_the_middle_of_a_step_is_as_before_or_after_it(steps: list[str]) -> None:
    stores = Stores()
    page = stores.page
    page.lease_to(3)
    truth, seq = NOTHING, 0
    for step in steps:
        since, (started, count, items) = len(stores.kept), truth
        if step == "start":
            seq += 1
            page.start(seq)
            after = (seq, count, items)
        elif step == "finish":
            page.finish(reply(seq))
            after = (started, count + 1, items + reply(seq))
        else:
            page.take()
            page.sent()
            after = (started, 0, b"")
        told = stores.post_mortems(3, since)
        assert told[-1] == after and set(told) <= {truth, after}
        truth = after


def test_a_worker_killed_between_two_leases_blames_nobody_new() -> None:
    stores = Stores()
    page = stores.page
    page.lease_to(3)
    page.start(12)
    page.finish(reply(12))
    page.take()
    page.sent()
    since = len(stores.kept)
    page.lease_to(4)
    assert set(stores.post_mortems(4, since)) == {NOTHING}
    assert set(stores.post_mortems(3, since)) == {(12, 0, b""), NOTHING}
