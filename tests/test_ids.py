from __future__ import annotations

from lattica import errors, ids
from lattica.ids import short


def test_short_is_the_first_four_hex_digits() -> None:
    assert short(bytes.fromhex("9f2c41")) == "9f2c"


def test_errors_show_as_many_digits_as_everything_else() -> None:
    assert errors.SHORT_ID_DIGITS == ids.SHORT_ID_DIGITS


def test_ids_of_objects_and_of_actors_are_told_apart_by_their_lengths() -> None:
    assert ids.OBJECT_ID_BYTES != ids.ACTOR_ID_BYTES
