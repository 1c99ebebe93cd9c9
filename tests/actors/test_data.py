"""Values as data: what is taken comes back equal, what is not is named, and no bytes make the reader do more."""

from __future__ import annotations

import enum
import pickle
from collections import OrderedDict, namedtuple
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.actors import data, values
from lattica.actors.data import T
from lattica.actors.refs import Hold, Releases
from lattica.errors import ActorDiedError, LatticaError, RemoteProtocolError, SerializationError, TaskError
from tests.conftest import examples


class Interning:
    """A runtime that has every ref and actor."""

    def load_data_ref(self, id: bytes) -> Any:
        return "ref", id

    def load_data_actor(self, id: bytes, meta: bytes) -> Any:
        return "actor", id

    def private_view(self, address: int, nbytes: int) -> Any:
        return None

    def load_ref(self, id: bytes) -> Any:
        raise AssertionError("read as anything")

    load_actor = private_view  # type: ignore[assignment]


RUNTIME: Any = Interning()


def back(value: Any) -> Any:
    return values.loads(values.dumps_data(value).join(), RUNTIME)


def region(item: Any, *buffers: bytes) -> bytes:
    """A value with this item."""
    views = [memoryview(buffer) for buffer in buffers]
    return values._with_buffers(msgspec.msgpack.encode(item), views, [], form=data.FORM).join()


numbers = st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False)
leaves = st.none() | st.booleans() | numbers | st.text() | st.binary()
keys = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.tuples(st.integers(), st.text())
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner) | st.dictionaries(keys, inner) | st.tuples(inner, inner) | st.sets(keys) | st.frozensets(keys)
    ),
    max_leaves=30,
)


@given(trees)
def test_what_is_data_comes_back_equal_and_of_the_same_types(value: Any) -> None:
    found = back(value)
    assert found == value
    assert repr(type(found)) == repr(type(value))


@pytest.mark.parametrize(
    "value", [2**63, -(2**63) - 1, 2**64, 10**400, b"x" * 100_000, bytearray(b"abc"), float("inf")]
)
def test_long_numbers_and_bytes_come_back_as_they_were(value: Any) -> None:
    found = back([value])
    assert found == [value]
    assert type(found[0]) is type(value)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12).reshape(3, 4), np.arange(12).reshape(3, 4).T, np.zeros((0, 3)), np.array(5.0), np.arange(20)[::3],
        np.array(["ab", "c"]), np.array([b"ab"]), np.array(["2024-01-01"], "M8[D]"), np.array([1, 2], ">i4"),
        np.array([True, False]), np.array([1 + 2j]), np.ones(4, np.float16),
    ],
)  # fmt: skip
def test_arrays_come_back_with_their_type_shape_and_order(array: Any) -> None:
    found = back({"a": array})["a"]
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert np.array_equal(found, array)
    assert found.flags.f_contiguous == np.asarray(array, order="A").flags.f_contiguous or array.ndim < 2


def test_numbers_of_numpy_and_dicts_with_an_order_come_back_as_such() -> None:
    found = back([np.float32(1.5), np.int64(3), np.bool_(True), OrderedDict(b=1, a=2)])
    assert [type(each).__name__ for each in found] == ["float32", "int64", "bool", "OrderedDict"]
    assert list(found[3]) == ["b", "a"]


class Colour(enum.IntEnum):
    RED = 1


class Point(namedtuple("Point", "x y")):
    pass


@pytest.mark.parametrize(
    ("value", "path", "kind"),
    [
        ({"a": [1, (2, object())]}, "the result of f['a'][1][1]", "object"),
        ([Colour.RED], "the result of f[0]", "Colour"),
        (Point(1, 2), "the result of f", "Point"),
        ({"k": {2, Colour.RED}}, "the result of f['k']", "Colour"),
        ([np.array([object()])], "the result of f[0]", "ndarray"),
        ([np.zeros(2, "i4,f4")], "the result of f[0]", "ndarray"),
        ([lambda: 1], "the result of f[0]", "function"),
    ],
)
def test_what_is_no_data_is_named(value: Any, path: str, kind: str) -> None:
    with pytest.raises(SerializationError) as caught:
        values.dumps_data(value, "the result of f")
    assert caught.value.path.startswith(path)
    assert caught.value.type_name == kind
    assert 'results="data"' in str(caught.value)


def test_rings_and_deep_values_are_refused_on_both_sides() -> None:
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(SerializationError, match="within each other"):
        values.dumps_data(ring)
    deep: Any = [0]
    for _ in range(5000):
        deep = [0, deep] if len(msgspec.msgpack.encode(deep)) < 900 else deep
    with pytest.raises(SerializationError):
        values.loads(region(deep), RUNTIME)
    assert back(_nested(data.DEPTH_MAX))
    with pytest.raises(SerializationError):
        values.loads(values._with_buffers(b"\x92\x00" * 100_000, [], [], form=3).join(), RUNTIME)


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_a_large_body_is_refused_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = values.dumps_data(list(range(1000))).join()
    monkeypatch.setattr(data, "BODY_MAX_BYTES", 100)
    with pytest.raises(SerializationError, match="array"):
        values.dumps_data(list(range(1000)))
    with pytest.raises(SerializationError, match="at most 100"):
        values.loads(whole, RUNTIME)


def test_errors_come_as_words() -> None:
    try:
        raise KeyError("gone")
    except KeyError as error:
        failure = TaskError.from_exception(error, function_name="f", pid=7)
    found = values.loads(values.dumps_error(failure), RUNTIME)
    assert type(found) is TaskError
    assert found.cause is None
    assert "KeyError" in str(found)
    assert "gone" in str(found)
    assert data.raised(found, (LookupError,))
    assert not data.raised(found, (ValueError,))
    died = values.loads(values.dumps_error(ActorDiedError(actor="A", reason="it was killed")), RUNTIME)
    assert type(died) is ActorDiedError
    assert died.reason == "it was killed"


def test_an_error_names_no_class_that_is_none_of_ours() -> None:
    for facts in ({"error": "subprocess"}, {"error": "sys", "message": 3}, {"causes": [1, "x"]}, {}):
        assert isinstance(values.loads(region([T.ERROR, [T.DICT, *_pairs(facts)]]), RUNTIME), LatticaError)
    with pytest.raises(SerializationError):
        values.loads(region([T.ERROR, 3]), RUNTIME)


def _pairs(facts: dict[str, Any]) -> list[Any]:
    pairs: list[Any] = []
    for key, value in facts.items():
        pairs += [key, [T.LIST, *value] if isinstance(value, list) else value]
    return pairs


class Bomb:
    def __reduce__(self) -> Any:
        return pytest.fail, ("it was unpickled",)


def test_where_data_is_asked_for_a_pickle_is_not_read() -> None:
    hold = Hold(Releases(), b"i" * 16, 0, 1, data=True)
    for form in (pickle.dumps(Bomb()), b"\x02abc", values.dumps(np.zeros(3)).join()):
        assert not values.is_data(form)
        with pytest.raises(RemoteProtocolError, match="not read"):
            values.loads(form, RUNTIME, hold)


def test_a_pickle_in_the_place_of_an_item_is_not_read() -> None:
    whole = values._with_buffers(pickle.dumps(Bomb()), [], [], form=3).join()
    with pytest.raises(SerializationError):
        values.loads(whole, RUNTIME)


BENT = [
    [], [99], ["x"], [T.DICT, 1], [T.DICT, [T.LIST], 1], [T.SET, [T.LIST]], [T.ARRAY], [T.ARRAY, 0, "O", [1], False],
    [T.ARRAY, 5, "<f8", [1], False], [T.ARRAY, 0, "<f8", [-1], False], [T.ARRAY, 0, "<f8", [1 << 61, 8], False],
    [T.ARRAY, 0, "<f8", "12", False], [T.ARRAY, True, "<f8", [2], False], [T.SCALAR, "<f8", b"123"], [T.REF, b"short"],
    [T.REF, 3], [T.ACTOR, b"a" * 12, 3], [T.INTEGER, 3], [T.ERROR, {}], {"a": 1}, [T.LIST, {"a": 1}],
    [T.LIST, [T.ERROR, [T.DICT]]], [T.BYTES, -1], [T.COMPLEX, "a", 1], [T.ARRAY, 0, "<U4", [1, 1, 1, 1, 1], False],
]  # fmt: skip


@pytest.mark.parametrize("item", BENT)
def test_bent_items_are_refused(item: Any) -> None:
    with pytest.raises(SerializationError):
        values.loads(region(item, b"x" * 15), RUNTIME)


@given(st.binary(max_size=300), st.lists(st.binary(max_size=40), max_size=3))
@examples(100)
def test_noise_is_a_value_or_refused(body: bytes, buffers: list[bytes]) -> None:
    _read(values._with_buffers(body, [memoryview(each) for each in buffers], [], form=3).join())
    _read(b"\x03" + body)


tagged = st.recursive(
    leaves | st.sampled_from(["<f8", "|b1", "float32", "O"]),
    lambda inner: st.builds(lambda tag, rest: [tag, *rest], st.integers(0, 16), st.lists(inner, max_size=6)),
    max_leaves=20,
)


@given(tagged, st.lists(st.binary(max_size=40), max_size=3))
@examples(150)
def test_whatever_bears_tags_is_a_value_or_refused(item: Any, buffers: list[bytes]) -> None:
    try:
        whole = region(item, *buffers)
    except (OverflowError, TypeError, UnicodeEncodeError):
        return
    _read(whole)


@given(trees, st.data())
def test_bent_bytes_are_a_value_or_refused(value: Any, draw: Any) -> None:
    whole = bytearray(values.dumps_data([value, np.arange(3)]).join())
    at = draw.draw(st.integers(1, len(whole) - 1))
    whole[at] = draw.draw(st.integers(0, 255))
    _read(bytes(whole))


def _read(whole: bytes) -> None:
    try:
        values.loads(whole, RUNTIME)
    except SerializationError:
        pass
