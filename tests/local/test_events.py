"""The ring in which workers note what they ran: what is kept, what is lost, and what noise does."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.local import events
from lattica.local.events import BATCH, EVENTS_BYTES, HALF_BYTES, EventWriter, parse, stored

ID = b"0123456789abcdef"


@pytest.fixture
def shared() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, 4096 + EVENTS_BYTES) as memory:
        yield memory


def note(writer: EventWriter, *numbers: int) -> None:
    for number in numbers:
        writer.note(("f", 1.0, number, events.TASK, 0, ID, 0))
        if len(writer.noted) == BATCH:
            writer.store()


def micros(shared: mmap.mmap) -> list[int]:
    return [event.micros for event in parse(stored(shared, 4096))]


def test_what_was_noted_is_read_as_it_was_in_unix_time(shared: mmap.mmap) -> None:
    writer = EventWriter(shared, 4096)
    writer.note(("train", 5.0, 1234, events.CALL | events.FAILED, 2, ID, 77))
    writer.store()
    (event,) = parse(stored(shared, 4096))
    assert event.began > 1e9
    assert event._replace(began=0.0) == ("train", 0.0, 1234, events.CALL | events.FAILED, 2, ID, 77)
    writer.close()


def test_what_is_noted_is_read_once_it_is_stored(shared: mmap.mmap) -> None:
    writer = EventWriter(shared, 4096)
    note(writer, *range(BATCH + 3))
    assert micros(shared) == list(range(BATCH))
    writer.store()
    assert micros(shared) == list(range(BATCH + 3))
    writer.close()


def test_the_newest_stay_when_the_room_is_full(shared: mmap.mmap) -> None:
    writer = EventWriter(shared, 4096)
    many = 40 * BATCH * 16
    note(writer, *range(many))
    found = micros(shared)
    assert found[-1] == many - 1
    assert found == list(range(found[0], many)), "in order and without holes"
    assert len(found) * len(ID) > HALF_BYTES // 4, "a good part of the room is used"
    writer.close()


def test_names_without_end_are_left_out_and_what_follows_is_kept(shared: mmap.mmap) -> None:
    writer = EventWriter(shared, 4096)
    writer.note(("x" * HALF_BYTES, 1.0, 1, events.TASK, 0, ID, 0))
    writer.store()
    note(writer, 2)
    writer.store()
    assert micros(shared) == [2]
    writer.close()


@given(st.binary(max_size=300), st.binary(max_size=40))
def test_noise_is_no_event_and_no_error(before: bytes, after: bytes) -> None:
    with mmap.mmap(-1, EVENTS_BYTES) as memory:
        writer = EventWriter(memory, 0)
        note(writer, 1)
        writer.store()
        data = stored(memory, 0)
        writer.close()
    parse(before)
    assert [event.micros for event in parse(data + after)][:1] == [1]


@given(st.binary(min_size=64, max_size=64))
def test_a_head_of_noise_reads_no_further_than_the_ring(head: bytes) -> None:
    with mmap.mmap(-1, EVENTS_BYTES) as memory:
        memory[:64] = head
        assert len(stored(memory, 0)) <= 2 * HALF_BYTES
