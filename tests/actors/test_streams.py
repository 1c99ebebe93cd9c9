"""Generators from both ends: items come once, in order, whatever breaks; nobody is further ahead than allowed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lattica.actors import streams
from lattica.actors.streams import AHEAD_BYTES, AHEAD_ITEMS, BLOCK_ITEMS, NEW, OLD, STRANGE, Consumer, Producer

FIRST = b"t" * 8 + (5 << 16).to_bytes(8, "big")


def make(producer: Producer[str], count: int, size: int = 1) -> None:
    for _ in range(count):
        assert producer.may_make
        producer.add(f"item {producer.made}", size)


def test_without_a_window_a_producer_stops_when_too_much_is_unheard() -> None:
    producer: Producer[str] = Producer(FIRST, 0)
    make(producer, AHEAD_ITEMS)
    assert not producer.may_make and not producer.starved
    producer.told(1, 0, [], False)
    assert producer.may_make
    large: Producer[str] = Producer(FIRST, 0)
    make(large, 2, AHEAD_BYTES // 2)
    assert not large.may_make


def test_with_a_window_as_many_items_are_made_as_may_wait_to_be_taken() -> None:
    """Ray's rule: with 1, the next item is made when the one before is taken."""
    producer: Producer[str] = Producer(FIRST, 2)
    make(producer, 2)
    assert producer.starved and not producer.may_make
    producer.told(2, 1, [], False)
    make(producer, 1)
    assert producer.starved


def test_a_small_window_is_told_of_each_item_that_is_taken_and_a_large_one_of_some() -> None:
    for window, each in ((1, 1), (7, 1), (80, 10)):
        consumer: Consumer[int] = Consumer(FIRST, window)
        for at in range(each):
            assert consumer.came(at, 1) == NEW
            consumer.ready.append(at)
            assert not consumer.owes
            assert consumer.take() == at
        assert consumer.owes and consumer.tells() == (each, each)
        assert not consumer.owes


def test_what_was_heard_is_told_before_a_producer_must_wait() -> None:
    consumer: Consumer[int] = Consumer(FIRST, 0)
    at = 0
    while not consumer.owes:
        consumer.came(at, 1)
        at += 1
    assert 1 < at <= AHEAD_ITEMS // 2
    consumer.tells()
    consumer.came(at, AHEAD_BYTES // 2)
    assert consumer.owes


def test_a_producer_whose_items_nobody_wants_does_not_wait() -> None:
    producer: Producer[str] = Producer(FIRST, 1)
    make(producer, 1)
    assert not producer.may_make
    producer.told(0, 0, [], True)
    assert producer.may_make and producer.over


def test_over_another_connection_come_those_that_were_not_heard_and_each_is_taken_once() -> None:
    producer, consumer = Producer[str](FIRST, 0), Consumer[str](FIRST, 0)
    make(producer, 5)
    assert [consumer.came(at, 1) for at in range(3)] == [NEW] * 3
    producer.told(*consumer.tells(), [], False)
    assert producer.unheard() == [(3, "item 3"), (4, "item 4")]
    assert consumer.came(4, 1) == STRANGE  # said after the cut, before those that it swallowed are said again
    assert [consumer.came(at, 1) for at, _ in producer.unheard()] == [NEW, NEW]
    assert consumer.came(3, 1) == STRANGE and consumer.came(4, 1) == STRANGE


def test_a_run_after_a_death_makes_what_the_caller_has_and_does_not_send_it() -> None:
    """Three items came, the worker died; the next run makes them again, and sends the fourth."""
    consumer: Consumer[str] = Consumer(FIRST, 0)
    for at in range(3):
        consumer.came(at, 1)
    again: Producer[str] = Producer(FIRST, 0)
    again.told(*consumer.begins(), [], False)
    for _ in range(3):
        assert again.may_make and not again.wanted
        again.skip()
    assert again.wanted
    again.add("item 3", 1)
    assert again.unheard() == [(3, "item 3")] and consumer.came(3, 1) == NEW


def test_a_run_for_an_item_that_was_lost_sends_from_there_and_the_others_are_old() -> None:
    consumer: Consumer[str] = Consumer(FIRST, 0)
    for at in range(4):
        consumer.came(at, 1)
    assert consumer.begins(wanted=2) == (2, 0)
    assert [consumer.came(at, 1) for at in (2, 3, 4)] == [OLD, OLD, NEW]


def test_every_item_has_an_id_of_its_own_and_none_is_the_generators() -> None:
    blocks = [FIRST, b"t" * 8 + (9 << 16).to_bytes(8, "big")]
    ids = [streams.item_id(blocks, at) for at in (0, 1, BLOCK_ITEMS - 1, BLOCK_ITEMS, BLOCK_ITEMS + 1)]
    assert [int.from_bytes(id[8:], "big") for id in ids] == [
        (5 << 16) + 1, (5 << 16) + 2, (5 << 16) + 0xFFFF, (9 << 16) + 1, (9 << 16) + 2
    ]  # fmt: skip
    assert [streams.item_number(blocks, id) for id in ids] == [0, 1, BLOCK_ITEMS - 1, BLOCK_ITEMS, BLOCK_ITEMS + 1]


def test_when_a_worker_dies_the_items_that_it_may_have_made_unheard_are_named() -> None:
    producer, consumer = Producer[str](FIRST, 0), Consumer[str](FIRST, 0)
    make(producer, AHEAD_ITEMS)
    for at in range(3):
        consumer.came(at, 1)
    unheard = consumer.unheard
    assert [streams.item_id(producer.blocks, at) for at, _ in producer.unheard()[3:]] == unheard[: AHEAD_ITEMS - 3]
    consumer.have = consumer.heard = BLOCK_ITEMS - 2
    assert len(consumer.unheard) == 2, "it has no ids for more"


def test_the_next_block_of_ids_is_due_long_before_it_is_needed() -> None:
    consumer, producer = Consumer[str](FIRST, 0), Producer[str](FIRST, 0)
    consumer.have = BLOCK_ITEMS // 2
    assert not consumer.short_of_ids
    consumer.have += 1
    assert consumer.short_of_ids and BLOCK_ITEMS - consumer.have > AHEAD_ITEMS
    producer.made = producer.heard = BLOCK_ITEMS
    assert not producer.may_make
    producer.told(0, 0, [FIRST], False)
    assert producer.may_make


@pytest.mark.parametrize("window", [0, 1, 3, 100])
def test_a_window_travels_in_the_number_of_results(window: int) -> None:
    assert streams.to_wire(window) < 0 and streams.window_of(streams.to_wire(window)) == window


class Conversation(RuleBasedStateMachine):
    """A generator of `LENGTH` items, whose connection breaks and whose worker dies at any time."""

    LENGTH = 30

    def __init__(self) -> None:
        super().__init__()
        self.producer: Producer[int] = Producer(FIRST, 0)
        self.consumer: Consumer[int] = Consumer(FIRST, 0)
        self.to_caller: list[tuple[int, int]] = []
        self.to_worker: list[tuple[int, int]] = []
        self.got: list[int] = []
        self.window = 0

    @precondition(lambda self: not self.producer.made and not self.consumer.have)
    @rule(window=st.sampled_from([0, 1, 2, 9]))
    def has_window(self, window: int) -> None:
        self.window = self.producer.window = self.consumer.window = window

    @precondition(lambda self: self.producer.may_make and self.producer.made < self.LENGTH)
    @rule()
    def makes(self) -> None:
        at = self.producer.made
        if not self.producer.wanted:
            self.producer.skip()
            return
        self.producer.add(at * at, 100)
        self.to_caller.append((at, at * at))

    @precondition(lambda self: self.to_caller)
    @rule()
    def hears(self) -> None:
        at, item = self.to_caller.pop(0)
        if self.consumer.came(at, 100) == NEW:
            self.consumer.ready.append(item)
        if self.consumer.owes:
            self.to_worker.append(self.consumer.tells())

    @precondition(lambda self: self.to_worker)
    @rule()
    def is_told(self) -> None:
        self.producer.told(*self.to_worker.pop(0), [], False)

    @precondition(lambda self: self.consumer.ready)
    @rule()
    def takes(self) -> None:
        self.got.append(self.consumer.take())
        if self.consumer.owes:
            self.to_worker.append(self.consumer.tells())

    @rule(lost=st.integers(0, 30), before=st.booleans())
    def breaks(self, lost: int, before: bool) -> None:
        """What lies in the sockets is lost. before: the worker makes another before it hears that it was."""
        del self.to_caller[len(self.to_caller) - lost :]
        self.to_worker.clear()
        for _ in range(len(self.to_caller)):
            self.hears()
        self.to_worker.clear()
        if before and self.producer.may_make and self.producer.made < self.LENGTH:
            self.makes()
        self.producer.told(*self.consumer.tells(), [], False)
        self.to_caller += self.producer.unheard()

    @rule()
    def dies(self) -> None:
        self.producer = Producer(FIRST, self.window)
        self.to_caller.clear()
        self.to_worker.clear()
        self.producer.told(*self.consumer.begins(), [], False)

    @invariant()
    def holds(self) -> None:
        self.producer.validate()
        self.consumer.validate()
        assert self.got == [at * at for at in range(len(self.got))], "an item is lost, doubled or out of order"

    def teardown(self) -> None:
        """Left alone, it comes to its end."""
        for _ in range(20 * self.LENGTH):
            for step in (self.makes, self.hears, self.is_told, self.takes):
                if all(condition(self) for condition in step.hypothesis_stateful_rule.preconditions):  # type: ignore[attr-defined]
                    step()
        assert len(self.got) == self.LENGTH, (self.got, self.producer, self.consumer)


TestConversation: Any = Conversation.TestCase
TestConversation.settings = settings(max_examples=25, stateful_step_count=40)
