from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lattica import errors, ids
from lattica.ids import ID_BYTES, IdSource, short


@given(st.binary(min_size=8, max_size=8))
def test_ids_of_one_process_differ_already_in_what_messages_show(process: bytes) -> None:
    source = IdSource(process)
    ids = [source.next() for _ in range(200)]
    assert len(set(ids)) == 200 and {len(i) for i in ids} == {ID_BYTES}
    assert len({short(i) for i in ids}) >= 195


def test_ids_of_two_processes_differ() -> None:
    one, two = IdSource(b"a" * 8), IdSource(b"b" * 8)
    assert not {one.next() for _ in range(1000)} & {two.next() for _ in range(1000)}


def test_short_is_the_first_four_hex_digits() -> None:
    assert short(bytes.fromhex("9f2c41")) == "9f2c"


def test_errors_show_as_many_digits_as_everything_else() -> None:
    assert errors.SHORT_ID_DIGITS == ids.SHORT_ID_DIGITS
