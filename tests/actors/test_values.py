"""Values to bytes and back: whole, read in place, explained when they cannot, and never in each other's way."""

from __future__ import annotations

import ctypes
import datetime
import decimal
import functools
import gc
import operator
import pickle
import subprocess
import sys
import threading
import uuid
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lattica.actors import values
from lattica.actors.refs import Hold, ObjectRef, Releases
from lattica.actors.values import ALIGN, LARGE_BYTES, Serialized, dump_arguments, dumps, loads
from lattica.errors import OutOfBandRefError, SerializationError
from tests.conftest import examples


class FakeRuntime:
    """What loading asks of a runtime: one ref per id, and writable copies in the place of copy-on-write mappings."""

    def __init__(self) -> None:
        self.refs: dict[bytes, ObjectRef] = {}
        self.actors: list[tuple[bytes, bytes]] = []
        self.private: list[int] = []

    def load_ref(self, id: bytes) -> ObjectRef:
        return self.refs.setdefault(id, ref(id))

    def load_actor(self, id: bytes, meta: bytes) -> Any:
        self.actors.append((id, meta))
        return "handle", id

    def private_view(self, address: int, nbytes: int) -> Any:
        self.private.append(nbytes)
        return memoryview(bytearray(ctypes.string_at(address, nbytes)))


def ref(id: bytes) -> ObjectRef:
    return ObjectRef(FakeRuntime(), id=id)  # type: ignore[arg-type]


def round_trip(value: Any) -> Any:
    """As a value in a message."""
    return loads(dumps(value).join(), FakeRuntime())


class Region:
    """A value that lies in the arena: bytes that nobody may write, and a hold that says when they are let go."""

    def __init__(self, data: Serialized) -> None:
        self.runtime, self.releases = FakeRuntime(), Releases()
        self.bytes = bytearray(data.join())
        self.hold: Hold | None = Hold(self.releases, b"o" * 16, 0, data.size, 1)

    def read(self) -> Any:
        hold, self.hold = self.hold, None
        return loads(memoryview(self.bytes).toreadonly(), self.runtime, hold)

    @property
    def is_held(self) -> bool:
        gc.collect()
        return not self.releases


# -- Python's own values

leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False)
    | st.text() | st.binary() | st.binary().map(bytearray) | st.dates() | st.datetimes() | st.timedeltas()
    | st.uuids() | st.decimals(allow_nan=False) | st.fractions() | st.sampled_from([..., int, len, operator.add])
)  # fmt: skip
hashable = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.tuples(st.integers(), st.text())
nested = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.lists(inner, max_size=4).map(deque)
        | st.dictionaries(hashable, inner, max_size=4)
        | st.dictionaries(hashable, inner, max_size=4).map(OrderedDict)
        | st.sets(hashable, max_size=4)
        | st.frozensets(hashable, max_size=4)
        | st.builds(slice, inner, inner)
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Equal, and of equal types all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(map(repr, one)) == list(map(repr, other)) and all(map(same, one.values(), other.values()))
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, slice):
        return same([one.start, one.stop, one.step], [other.start, other.stop, other.step])
    return bool(one == other)


@examples(60)
@given(nested)
def test_any_nested_value_comes_back_equal_and_of_the_same_types(value: Any) -> None:
    assert same(round_trip(value), value)


@examples(40)
@given(st.lists(nested, max_size=3), st.dictionaries(st.text(max_size=5), nested, max_size=3))
def test_arguments_come_back_as_they_were(args: list[Any], kwargs: dict[str, Any]) -> None:
    got_args, got_kwargs = loads(dump_arguments(tuple(args), kwargs, "f").join(), FakeRuntime())
    assert same(list(got_args), args) and same(got_kwargs, kwargs)


def test_what_is_shared_inside_a_value_is_shared_in_the_copy() -> None:
    inner: list[Any] = []
    inner.append(inner)
    one, other, loop = round_trip([inner, inner, inner])
    assert one is other and loop[0] is loop


@pytest.mark.parametrize("size", [0, 1, LARGE_BYTES - 1, LARGE_BYTES, 300_000])
def test_bytes_of_any_size_come_back(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    assert round_trip(data) == data and type(round_trip(data)) is bytes
    (args, kwargs) = loads(dump_arguments((data, 1, data), {"k": data}, "f").join(), FakeRuntime())
    assert list(args) == [data, 1, data] and kwargs == {"k": data}


def test_large_bytes_are_not_copied_into_a_pickle() -> None:
    data = bytes(LARGE_BYTES)
    assert any(part is data for part in dumps(data).parts)
    parts = dump_arguments((data,), {}, "f").parts
    assert any(isinstance(part, memoryview) and part.obj is data for part in parts)


def test_a_value_without_buffers_is_a_plain_pickle() -> None:
    assert pickle.loads(dumps({"a": [1, 2.5]}).join()) == {"a": [1, 2.5]}
    assert pickle.loads(values.NONE) is None


# -- arrays

dtypes = (
    npst.scalar_dtypes() | npst.unicode_string_dtypes() | npst.byte_string_dtypes()
    | st.just(np.dtype([("x", "<f4"), ("y", "u1", (2,))])) | st.just(np.dtype(object))
)  # fmt: skip


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """Arrays of any kind, shape (also 0-d and empty) and order."""
    dtype = draw(dtypes)
    shape = draw(npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
    elements = st.integers(0, 9) if dtype.hasobject else None
    array = draw(npst.arrays(dtype, shape, elements=elements, fill=st.nothing()))
    how = draw(st.sampled_from(["C", "F", "reversed", "every second"]))
    if how in "CF":
        return np.asarray(array, order=how)
    return array[..., ::-1] if how == "reversed" and array.ndim else array[..., ::2] if array.ndim else array


@examples(60)
@given(arrays(), st.booleans())
def test_any_array_comes_back_equal_in_a_message_and_from_the_arena(array: Any, in_place: bool) -> None:
    got = Region(dumps(array)).read() if in_place else round_trip(array)
    assert type(got) is type(array) and got.shape == array.shape
    assert got.dtype in (array.dtype, array.dtype.newbyteorder("=")), "numpy itself turns the bytes of moments"
    if array.dtype.hasobject:
        assert got.tolist() == array.tolist()
    else:
        assert got.astype(array.dtype).tobytes() == array.tobytes()
    if array.flags.f_contiguous and not array.flags.c_contiguous and got.size:
        assert got.flags.f_contiguous, "the order of a large matrix is kept"


@pytest.mark.parametrize("array", [np.arange(5), np.float32(1) + np.zeros((2, 3), order="F"), np.array(7), np.zeros(0)])
@pytest.mark.parametrize("in_place", [True, False])
def test_arrays_are_read_only(array: Any, in_place: bool) -> None:
    got = Region(dumps(array)).read() if in_place else round_trip(array)
    with pytest.raises(ValueError, match="read-only"):
        got[...] = 1
    got.copy()[...] = 1


def test_an_array_in_the_arena_is_a_view_of_it_and_aligned() -> None:
    region = Region(dumps([np.arange(3, dtype=np.uint8), np.ones((100, 100))]))
    small, large = region.read()
    base = ctypes.addressof(ctypes.c_char.from_buffer(region.bytes))
    for array in (small, large):
        at = array.__array_interface__["data"][0]
        assert base <= at < base + len(region.bytes) and (at - base) % ALIGN == 0


def test_buffers_begin_at_aligned_offsets_and_the_gaps_are_zeros() -> None:
    joined = dumps([np.full(7, 251, np.uint8), np.full(9, 252, np.uint8)]).join()
    one, two = joined.index(b"\xfb" * 7), joined.index(b"\xfc" * 9)
    assert one % ALIGN == two % ALIGN == 0 and two + 9 == len(joined)
    assert set(joined[one + 7 : two]) == {0}


def test_a_slice_that_outlives_its_value_holds_the_region() -> None:
    region = Region(dumps({"weights": np.arange(1000.0), "name": "w"}))
    piece = region.read()["weights"][10:20][::2]
    assert region.is_held and len(values.viewed()) == 1
    assert piece.tolist() == [10.0, 12.0, 14.0, 16.0, 18.0]
    del piece
    assert not region.is_held and not values.viewed()


def test_a_value_without_arrays_lets_its_region_go_once_it_is_read() -> None:
    region = Region(dumps([b"x" * LARGE_BYTES, "text"]))
    assert region.read() == [b"x" * LARGE_BYTES, "text"]
    assert not region.is_held


def test_equal_arrays_are_equal_bytes_whether_they_may_be_written_or_not() -> None:
    array = np.arange(100.0)
    first = dumps(array).join()
    assert dumps(loads(first, FakeRuntime())).join() == first


def test_a_users_own_buffers_travel_beside_the_pickle() -> None:
    data = bytearray(b"0123456789" * 10)
    got = round_trip([pickle.PickleBuffer(data)])
    assert bytes(got[0]) == data


# -- damaged bytes


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x07not of this release",
        b"\x01",
        b"\x01" + b"\xff" * 7,
        b"\x01" + b"\xff" * 15,
        b"\x01\0\0\0" + b"\x01\0\0\0" + b"\xff" * 8,
        b"\x80",
        b"\x80\x05",
        b"\x80\x05\x8c\xffcut off",
    ],
    ids=lambda data: data[:8].hex(),
)
def test_damaged_values_are_a_serialization_error(data: bytes) -> None:
    with pytest.raises(SerializationError, match="damaged"):
        loads(data, FakeRuntime())


@pytest.mark.parametrize("keep", [1, 8, 16, 20, 32, 40, -1])
def test_a_value_that_was_cut_off_is_a_serialization_error(keep: int) -> None:
    with pytest.raises(SerializationError, match="damaged"):
        loads(dumps(np.arange(100.0)).join()[:keep], FakeRuntime())


def test_a_buffer_that_points_out_of_its_value_is_a_serialization_error() -> None:
    data = bytearray(dumps(np.arange(100.0)).join())
    data[16:24] = (1 << 40).to_bytes(8, "little")
    with pytest.raises(SerializationError, match="outside"):
        loads(bytes(data), FakeRuntime())


# -- refs


def test_refs_inside_a_value_are_told_apart_and_come_back_as_the_process_knows_them() -> None:
    one, two = ref(b"1" * 16), ref(b"2" * 16)
    data = dumps({"list": [one, two, one], "again": (two,)})
    assert data.refs == [one, two], "each once"
    runtime = FakeRuntime()
    got = loads(data.join(), runtime)
    assert got == {"list": [runtime.refs[one.id], runtime.refs[two.id], runtime.refs[one.id]],
                   "again": (runtime.refs[two.id],)}  # fmt: skip


def test_refs_are_found_in_closures_attributes_and_beside_arrays() -> None:
    refs = [ref(bytes([n]) * 16) for n in range(3)]
    holder = SimpleNamespace(ref=refs[1])
    data = dumps([lambda: refs[0], holder, np.zeros(5), refs[2]])
    assert set(data.refs) == set(refs)
    function, got, _, _ = loads(data.join(), FakeRuntime())
    assert function().id == refs[0].id and got.ref.id == refs[1].id


def test_an_actor_handle_comes_back_as_the_process_knows_it() -> None:
    class Handle:
        def __reduce__(self) -> Any:
            values.note_ref(self)
            return values.load_actor, (b"a" * 12, b"meta")

    handle, runtime = Handle(), FakeRuntime()
    data = dumps([handle])
    assert data.refs == [handle]
    assert loads(data.join(), runtime) == [("handle", b"a" * 12)] and runtime.actors == [(b"a" * 12, b"meta")]


@pytest.mark.parametrize("dump", [pickle.dumps, cloudpickle.dumps])
def test_a_ref_pickled_outside_lattica_says_what_to_do(dump: Callable[[Any], bytes]) -> None:
    with pytest.raises(OutOfBandRefError, match="pass it as an argument"):
        dump([ref(b"1" * 16)])


def test_bytes_with_refs_are_not_read_outside_lattica() -> None:
    data = dumps([ref(b"1" * 16)]).join()
    with pytest.raises(OutOfBandRefError, match=r"lattica\.get"):
        pickle.loads(data)


def test_a_value_that_cannot_travel_leaves_no_ref_behind() -> None:
    one = ref(b"1" * 16)
    with pytest.raises(SerializationError):
        dumps([one, threading.Lock()])
    assert dumps([1]).refs == []
    with pytest.raises(OutOfBandRefError):
        pickle.dumps(one)


# -- reducers of users


class Refuses:
    """Raises when it is pickled."""

    def __init__(self, error: type[BaseException] = ValueError) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error("it refuses")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_after_a_reducer_has_raised_the_next_value_travels_as_ever(error: type[BaseException]) -> None:
    array = np.arange(10)
    with pytest.raises((SerializationError, KeyboardInterrupt, SystemExit)):
        dumps([array, "met before", Refuses(error)])
    data = dumps([array, "met before"])
    assert data.refs == []
    got, text = loads(data.join(), FakeRuntime())
    assert got.tolist() == array.tolist() and text == "met before"


class Wraps:
    """Serializes its content by itself while it is pickled."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __reduce__(self) -> Any:
        return Wraps.unwrap, (dumps(self.content).join(),)

    @staticmethod
    def unwrap(data: bytes) -> Wraps:
        return Wraps(loads(data, FakeRuntime()))


def test_a_reducer_that_serializes_by_itself_disturbs_nothing() -> None:
    array, one = np.arange(10.0), ref(b"1" * 16)
    data = dumps([one, Wraps([array, Wraps(array + 1)]), array, one])
    assert data.refs == [one]
    first, wrapped, plain, last = loads(data.join(), FakeRuntime())
    assert first is last and plain.tolist() == array.tolist()
    assert wrapped.content[0].tolist() == array.tolist()
    assert wrapped.content[1].content.tolist() == (array + 1).tolist()


def test_a_reducer_whose_own_serializing_fails_explains_the_inner_value() -> None:
    with pytest.raises(SerializationError, match=r"the value\['lock'\]"):
        dumps([Wraps({"lock": threading.Lock()})])
    assert round_trip([1, 2]) == [1, 2]


def test_threads_serialize_side_by_side() -> None:
    wrong: list[Any] = []

    def work(number: int) -> None:
        mine = ref(bytes([number]) * 16)
        for size in range(60):
            value = [number, np.full(size, number), Wraps(np.full(size, number)), mine]
            data = dumps(value)
            got = loads(data.join(), FakeRuntime())
            if data.refs != [mine] or got[0] != number or {*got[1].tolist(), *got[2].content.tolist()} - {number}:
                wrong.append(got)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- code


def test_functions_and_classes_that_nobody_can_import_travel_by_value() -> None:
    factor = 3

    class Scale:
        def __init__(self, by: int) -> None:
            self.by = by

        def __call__(self, x: int) -> int:
            return self.by * factor * x

    scale, function, bound, part = round_trip(
        [Scale(2), lambda x: factor * x, Scale(4).__call__, functools.partial(Scale, 5)]
    )
    assert (scale(1), function(1), bound(1), part()(1)) == (6, 3, 12, 15)


MAIN = """
import sys
sys.path.insert(0, {root!r})
from lattica.actors.values import dumps

OFFSET = 10

class Point:
    def __init__(self, x):
        self.x = x

    def shifted(self):
        return Point(self.x + OFFSET)

def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)

print(dumps((Point(5), Point, fib)).join().hex())
"""


def test_what_a_script_defines_works_in_another_process() -> None:
    script = MAIN.format(root=str(Path(__file__).parents[2]))
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    point, cls, fib = loads(bytes.fromhex(output), FakeRuntime())
    assert point.shifted().x == 15 and type(point) is cls and fib(10) == 55


def test_a_function_keeps_its_own_globals_though_others_lay_at_their_address_before() -> None:
    """Notebooks and `exec` make namespaces and drop them; the next one may have the address of the last."""
    for number in range(20):
        namespace: dict[str, Any] = {"__name__": f"space{number}"}
        exec("def answer(): return 42", namespace)
        function = round_trip(namespace["answer"])
        assert function() == 42 and function.__globals__["__name__"] == f"space{number}"
        del namespace, function
        gc.collect()


def test_a_value_whose_module_is_missing_here_says_which_and_what_to_do() -> None:
    data = pickle.dumps(uuid.UUID(int=1), 5).replace(b"uuid", b"uuie")
    with pytest.raises(SerializationError, match=r"No module named 'uuie'(?s:.)*beside the driver's script"):
        loads(data, FakeRuntime())


def test_what_a_users_class_raises_while_it_is_read_passes_through() -> None:
    data = dumps(functools.partial(operator.truediv, 1)).join()
    assert loads(data, FakeRuntime())(2) == 0.5

    class Explodes:
        def __reduce__(self) -> Any:
            return operator.truediv, (1, 0)

    with pytest.raises(ZeroDivisionError):
        round_trip([Explodes()])
    assert round_trip([1]) == [1]


# -- explanations

Pair = namedtuple("Pair", "left right")


class Slotted:
    __slots__ = ("fine", "lock")

    def __init__(self) -> None:
        self.fine, self.lock = 1, threading.Lock()


class Model:
    def __init__(self) -> None:
        self.size, self.lock = 3, threading.Lock()

    def step(self) -> None: ...


def capturing() -> Callable[[], Any]:
    gate = threading.Lock()
    return lambda: gate


def with_global() -> Any:
    namespace: dict[str, Any] = {"__name__": "__main__", "GATE": threading.Lock()}
    exec("def use(): return GATE", namespace)
    return namespace["use"]


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (Model(), "trainer.lock"),
        (SimpleNamespace(model=SimpleNamespace(inner=Model())), "trainer.model.inner.lock"),
        ([1, {"a": (2, threading.Lock())}], "trainer[1]['a'][1]"),
        (Pair(1, Model()), "trainer[1].lock"),
        (Slotted(), "trainer.lock"),
        (capturing(), "trainer: captured variable gate"),
        (with_global(), "trainer: global GATE"),
        (Model().step, "trainer.__self__.lock"),
        (threading.Lock(), "trainer"),
        (Refuses(), "trainer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_error_names_what_cannot_travel(value: Any, path: str) -> None:
    with pytest.raises(SerializationError) as caught:
        dumps(value, "trainer")
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path} (a ") and caught.value.__cause__ is not None


def test_the_error_names_the_argument_of_the_call() -> None:
    with pytest.raises(SerializationError) as caught:
        dump_arguments((1, [Model()]), {}, "train")
    assert caught.value.path == "train(argument 1)[0].lock"
    with pytest.raises(SerializationError) as caught:
        dump_arguments((1,), {"rate": 2, "model": Model()}, "train")
    assert caught.value.path == "train(model=...).lock" and caught.value.type_name == "lock"


def test_an_explanation_looks_at_a_bounded_part_of_a_large_value() -> None:
    """A list of a million items whose last is a lock: the error comes without pickling each of them by itself."""
    tried = []

    class Counts:
        def __reduce__(self) -> Any:
            tried.append(self)
            return int, ()

    with pytest.raises(SerializationError) as caught:
        dumps([*[Counts() for _ in range(3 * values.EXPLAIN_CHILDREN)], threading.Lock()])
    assert caught.value.path == "the value"
    assert len(tried) <= 7 * values.EXPLAIN_CHILDREN  # whole, twice, and the items looked at


def test_an_object_whose_attributes_raise_is_still_an_error_of_ours() -> None:
    class Trap:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("no attribute for you")

        def __reduce_ex__(self, protocol: Any) -> Any:
            raise ValueError("it refuses")

    with pytest.raises(SerializationError, match="it refuses"):
        dumps(Trap())


def test_values_of_many_kinds_are_what_python_says_they_are() -> None:
    value = [datetime.UTC, decimal.Decimal("1.50"), Fraction(1, 3), range(5), Pair(1, 2), ValueError("v")]
    got = round_trip(value)
    assert got[:5] == value[:5] and type(got[4]) is Pair and repr(got[5]) == repr(value[5])
