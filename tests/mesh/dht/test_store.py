"""What a server keeps: the latest of each writer, for so long, and no more than so many."""

from __future__ import annotations

from random import Random

import pytest

from lattica.mesh.dht import store as store_module
from lattica.mesh.dht.keys import content_key
from lattica.mesh.dht.messages import RECORDS_MAX, RECORDS_MAX_BYTES
from lattica.mesh.dht.records import PROVIDER, TTL_MAX_S, VALUE
from lattica.mesh.dht.store import RecordStore
from lattica.testing.authority import FakeKey
from tests.mesh.dht.examples import ANN, AT, BOB, CONTENT, record


@pytest.fixture
def store() -> RecordStore:
    return RecordStore()


def test_a_record_is_kept_until_it_expires(store: RecordStore) -> None:
    assert store.keep(record(expires=AT + 60), 5.0, AT)
    assert [found.writer for found in store.of(PROVIDER, CONTENT, 64.9)] == [ANN.peer]
    assert store.next_deadline() == 65.0
    assert store.of(PROVIDER, CONTENT, 65.0) == [] and len(store) == 0 and store.next_deadline() is None
    store.validate()


def test_a_writer_whose_clock_is_ahead_is_kept_no_longer_than_others(store: RecordStore) -> None:
    assert store.keep(record(expires=AT + int(TTL_MAX_S) + 1800), 0.0, AT)
    assert store.next_deadline() == TTL_MAX_S


def test_the_later_record_of_a_writer_takes_the_place_of_the_earlier(store: RecordStore) -> None:
    store.keep(record(seq=1), 0.0, AT)
    assert store.keep(record(seq=2, addresses=("new:1",)), 0.0, AT)
    assert [found.addresses for found in store.of(PROVIDER, CONTENT, 1.0)] == [("new:1",)]


def test_an_earlier_record_that_comes_late_is_not_kept_and_its_writer_hears_so(store: RecordStore) -> None:
    store.keep(record(seq=2), 0.0, AT)
    assert not store.keep(record(seq=1), 0.0, AT)
    assert store.keep(record(seq=2), 0.0, AT), "the same again is kept already"
    assert [found.order[1] for found in store.of(PROVIDER, CONTENT, 1.0)] == [2]


def test_an_expired_record_is_not_kept(store: RecordStore) -> None:
    assert not store.keep(record(expires=AT - 1), 0.0, AT)


def test_two_providers_of_one_content_are_kept_side_by_side(store: RecordStore) -> None:
    for key in (ANN, BOB):
        assert store.keep(record("provider", key), 0.0, AT)
    assert {found.writer for found in store.of(PROVIDER, CONTENT, 1.0)} == {ANN.peer, BOB.peer}


def test_a_renewed_record_lives_on(store: RecordStore) -> None:
    store.keep(record(seq=1, expires=AT + 60), 0.0, AT)
    store.keep(record(seq=2, expires=AT + 90), 30.0, AT + 30)
    assert len(store.of(PROVIDER, CONTENT, 89.0)) == 1 and store.of(PROVIDER, CONTENT, 90.0) == []


def test_under_a_crowded_key_what_expires_first_makes_room(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "KEY_RECORDS_MAX", 3)
    keys = [FakeKey(f"peer {number}") for number in range(5)]
    for number, key in enumerate(keys):
        assert store.keep(record("provider", key, expires=AT + 100 + number), 0.0, AT)
        store.validate()
    assert {found.writer for found in store.of(PROVIDER, CONTENT, 1.0)} == {key.peer for key in keys[2:]}


def test_who_provides_under_the_key_of_a_value_does_not_crowd_it_out(
    store: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "KEY_RECORDS_MAX", 3)
    value = record("value", ANN, expires=AT + 60)
    store.keep(value, 0.0, AT)
    for number in range(5):
        store.keep(record("provider", FakeKey(f"peer {number}"), key=value.key), 0.0, AT)
    assert store.of(VALUE, value.key, 1.0) == [value]
    store.validate()


def test_one_writer_fills_no_more_than_its_share(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "WRITER_RECORDS_MAX", 2)
    kept = [store.keep(record(key=content_key(bytes([n]))), 0.0, AT) for n in range(3)]
    assert kept == [True, True, False]
    assert store.keep(record("provider", BOB), 0.0, AT), "others have theirs"
    store.validate()


def test_a_full_store_keeps_nothing_new_but_renews(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "STORE_RECORDS_MAX", 1)
    assert store.keep(record(seq=1), 0.0, AT)
    assert not store.keep(record("provider", BOB), 0.0, AT)
    assert store.keep(record(seq=2), 0.0, AT)


def test_an_answer_shows_some_of_many_and_others_each_time(store: RecordStore) -> None:
    for number in range(3 * RECORDS_MAX):
        store.keep(record("provider", FakeKey(f"peer {number}")), 0.0, AT)
    rng = Random(1)
    one, two = (store.some_of(PROVIDER, CONTENT, 1.0, rng) for _ in range(2))
    assert len(one) == len(two) == RECORDS_MAX and set(one) != set(two)


def test_long_records_are_shown_as_far_as_they_fit(store: RecordStore) -> None:
    for number in range(RECORDS_MAX):
        store.keep(record("provider", FakeKey(f"peer {number}"), addresses=("a" * 256,) * 4), 0.0, AT)
    shown = store.some_of(PROVIDER, CONTENT, 1.0, Random(1))
    assert 4 <= len(shown) < RECORDS_MAX and sum(map(len, shown)) <= RECORDS_MAX_BYTES
