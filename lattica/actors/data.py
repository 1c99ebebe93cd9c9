"""Values as data: what a submitter takes of nodes that it lets compute, and does not let run code in its process.

The fourth form of a serialized value, beside those of `values`:

    0x03  header and buffers as of 0x01, and between them no pickle but a msgpack item

Numbers, strings, None and short bytes are themselves; anything else is an array whose first item is a tag of `T`: the
containers, long numbers, arrays and tensors over the buffers, refs and handles by id, and one error of lattica's.
Equal is what comes out equal: subclasses (an enum, a namedtuple) are refused where the value is made, and what is
contained twice comes twice.

Rules of this file. The reader distrusts: every tag, index, length and shape is checked before it is used, nothing is
imported but numpy and torch, and nothing named by the writer is looked up but in lists that stand here. It raises
SerializationError for whatever cannot be right.
"""

from __future__ import annotations

import math
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import msgspec

from lattica.actors.refs import ObjectRef
from lattica.errors import LatticaError, SerializationError, TaskError
from lattica.ids import ACTOR_ID_BYTES, OBJECT_ID_BYTES

if TYPE_CHECKING:
    from lattica.actors.values import Interning

FORM = 3
DEPTH_MAX = 100
"""Containers within each other. Deeper is a ring, or a tree that wants to be a list; more would end in RecursionError
in programs that are deep already."""
BODY_MAX_BYTES = 64 << 20
"""Of a value without its arrays, tensors and long bytes: 7 million numbers. A reader spends up to twenty times that."""
LARGE_BYTES = 32 << 10
"""`bytes` from this size on are buffers: they are not copied into the item and out of it."""
DIMENSIONS_MAX = 32
SIZE_MAX = 1 << 62
META_MAX_BYTES = 1 << 20  # of a handle: names and options of methods
NAMES_MAX = 64  # classes that an exception is an instance of
TAKEN = "numbers, strings, bytes, None, lists, tuples, dicts, sets, numpy arrays, CPU tensors, refs and actor handles"
DO_NEXT = 'return these alone, or say results="any" if you trust the nodes that run it'


class T(IntEnum):
    """First items of arrays. Only appended."""

    LIST = 0
    TUPLE = 1
    SET = 2
    FROZENSET = 3
    DICT = 4
    ORDERED = 5
    COMPLEX = 6
    INTEGER = 7
    BYTES = 8
    BYTEARRAY = 9
    ARRAY = 10
    SCALAR = 11
    TENSOR = 12
    REF = 13
    ACTOR = 14
    ERROR = 15


_LIST, _TUPLE, _SET, _FROZENSET, _DICT, _ORDERED = map(int, list(T)[:6])
_SEQUENCES: dict[type, int] = {list: _LIST, tuple: _TUPLE, set: _SET, frozenset: _FROZENSET}
_MAKE: dict[int, Callable[[Iterable[Any]], Any]] = {_LIST: list, _TUPLE: tuple, _SET: set, _FROZENSET: frozenset}
_THEMSELVES = frozenset({float, bool, str, type(None)})
_PLAIN = frozenset({float, bool, str, type(None), int, bytes})
_DTYPE = re.compile(r"[<>|]?(b1|[iu][1248]|f(2|4|8|16)|c(8|16|32)|[SU][1-9][0-9]{0,8}|[mM]8(\[[A-Za-z0-9]{1,12}\])?)")
_TORCH = frozenset({
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32",
    "float64", "complex32", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2",
})  # fmt: skip
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder()


class NotData(Exception):
    """Part of a value is none of what is taken; `path` from it outwards."""

    def __init__(self, culprit: Any, why: str = "") -> None:
        super().__init__(why)
        self.culprit, self.why, self.path = culprit, why, list[str]()


# -- values to items


class Writer:
    """One value on its way: its buffers, and the refs and holds in it."""

    def __init__(self) -> None:
        self.buffers: list[memoryview] = []
        self.refs: list[Any] = []
        self._storages: dict[tuple[int, int], int] = {}

    def item(self, value: Any, depth: int = 0) -> Any:
        """What stands for it. Raises NotData."""
        kind = type(value)
        if kind in _THEMSELVES:
            return value
        if kind is int:
            if -(1 << 63) <= value < 1 << 64:
                return value
            return [T.INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)]
        if kind is bytes:
            return value if len(value) < LARGE_BYTES else [T.BYTES, self._buffer(memoryview(value))]
        if depth > DEPTH_MAX:
            raise NotData(value, f"more than {DEPTH_MAX} containers within each other, or a ring of them")
        tag = _SEQUENCES.get(kind)
        if tag is not None:
            return self._sequence(value, tag, depth)
        if kind is dict:
            return self._pairs(value, _DICT, depth)
        return self._rarer(value, kind, depth)

    def _sequence(self, value: Any, tag: int, depth: int) -> list[Any]:
        items: list[Any] = [tag]
        for at, each in enumerate(value):
            if type(each) in _THEMSELVES:
                items.append(each)
                continue
            try:
                items.append(self.item(each, depth + 1))
            except NotData as error:
                error.path.append(f"[{at}]" if tag <= _TUPLE else "{...}")
                raise
        return items

    def _pairs(self, value: dict[Any, Any], tag: int, depth: int) -> list[Any]:
        items: list[Any] = [tag]
        for key, each in value.items():
            try:
                items += self.item(key, depth + 1), self.item(each, depth + 1)
            except NotData as error:
                error.path.append(f"[{key!r:.40}]" if type(key) in _PLAIN else "[...]")
                raise
        return items

    def _rarer(self, value: Any, kind: type, depth: int) -> list[Any]:
        if kind is OrderedDict:
            return self._pairs(value, _ORDERED, depth)
        if kind is complex:
            return [T.COMPLEX, value.real, value.imag]
        if kind is bytearray:
            return [T.BYTEARRAY, self._buffer(memoryview(bytes(value)))]
        if kind is ObjectRef:
            self.refs.append(value)
            return [T.REF, value.id]
        numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
        if numpy is not None and kind is numpy.ndarray:
            return self._array(numpy, value)
        if numpy is not None and isinstance(value, numpy.generic) and _DTYPE.fullmatch(value.dtype.str):
            return [T.SCALAR, value.dtype.str, value.tobytes()]
        if torch is not None and kind is torch.Tensor:
            return self._tensor(torch, value)
        from lattica.actors.handles import ActorHandle, encode_meta

        if kind is ActorHandle:
            self.refs.append(value._hold)
            return [T.ACTOR, value._actor_id, encode_meta(value._meta)]
        raise NotData(value)

    def _buffer(self, view: memoryview) -> int:
        self.buffers.append(view)
        return len(self.buffers) - 1

    def _array(self, numpy: Any, value: Any) -> list[Any]:
        dtype = value.dtype.str
        if not _DTYPE.fullmatch(dtype) or value.ndim > DIMENSIONS_MAX:
            raise NotData(value, f"an array of dtype {value.dtype!s:.40}")
        turned = value.flags.f_contiguous and not value.flags.c_contiguous
        flat = numpy.ascontiguousarray(value.T if turned else value).reshape(-1).view(numpy.uint8)
        return [T.ARRAY, self._buffer(memoryview(flat)), dtype, list(value.shape), turned]

    def _tensor(self, torch: Any, value: Any) -> list[Any]:
        from lattica.actors.values import storage_array

        dtype = str(value.dtype).removeprefix("torch.")
        whole = value.device.type == "cpu" and value.layout is torch.strided and dtype in _TORCH
        if not whole or value.is_conj() or value.is_neg():
            raise NotData(value, "not a plain tensor on the CPU")
        if value.requires_grad and not value.is_leaf:
            raise NotData(value, "part of a graph: detach() it")
        storage = value.untyped_storage()
        key = storage.data_ptr(), storage.nbytes()
        at = self._storages.get(key) if key[1] else None
        if at is None:
            at = self._storages[key] = self._buffer(memoryview(storage_array(torch, storage)))
        return [
            T.TENSOR, at, dtype, value.storage_offset(), list(value.shape), list(value.stride()), value.requires_grad,
        ]  # fmt: skip


def write(value: Any, name: str) -> tuple[bytes, list[memoryview], list[Any]]:
    """(item, buffers, refs and holds in it). Raises SerializationError that names the part that is no data."""
    writer = Writer()
    try:
        body = _encoder.encode(writer.item(value))
    except NotData as error:
        path = name + "".join(reversed(error.path))
        kind = f"{type(error.culprit).__module__}.{type(error.culprit).__qualname__}"
        why = f"it is {error.why}" if error.why else f"taken are {TAKEN}"
        raise SerializationError(
            f'{path} (a {kind}) does not fit results="data": {why}',
            path=path,
            type_name=type(error.culprit).__qualname__,
            do_next=DO_NEXT,
        ) from None
    except UnicodeEncodeError as error:
        raise SerializationError(f"{name} has a string that is no Unicode: {error}", path=name) from None
    if len(body) > BODY_MAX_BYTES:
        raise SerializationError(
            f'{name} does not fit results="data": it takes {len(body)} bytes without its arrays, at most '
            f"{BODY_MAX_BYTES} are allowed",
            path=name,
            do_next="return many numbers as an array",
        )
    return body, writer.buffers, writer.refs


def write_error(error: LatticaError) -> bytes:
    """The item of an error of lattica's: its class's name and its facts; of what user code raised the words alone."""
    facts: dict[str, Any] = error.to_data()
    if isinstance(error, TaskError) and error.cause is not None:
        names = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error.cause).__mro__[:NAMES_MAX]]
        facts |= {"causes": names, "cause_lost": f'it is a {names[0]}, and results="data" takes the words alone'}
    return _encoder.encode([T.ERROR, Writer().item(facts)])


# -- items to values


def damaged(what: str) -> SerializationError:
    """What is wrong with bytes that somebody sent."""
    return SerializationError(f"a value is damaged: {what}")


class Reader:
    """One item, and the buffers beside it, as a value."""

    def __init__(self, buffers: Sequence[memoryview], runtime: Interning) -> None:
        self._buffers, self._runtime = buffers, runtime
        self._storages: dict[int, Any] = {}

    def value(self, item: Any, depth: int = 0) -> Any:
        """Raises SerializationError."""
        kind = type(item)
        if kind in _PLAIN:
            return item
        if kind is not list or not item or depth > DEPTH_MAX + 1:
            raise damaged("it has what no value has")
        tag = item[0]
        if type(tag) is not int:
            raise damaged("a part has no tag")
        make = _MAKE.get(tag)
        if make is not None:
            parts = [each if type(each) in _PLAIN else self.value(each, depth + 1) for each in item[1:]]
            try:
                return make(parts)
            except TypeError:
                raise damaged("a set of what has no hash") from None
        if tag in (_DICT, _ORDERED):
            return self._pairs(item, depth)
        try:
            read = _READ[tag]
        except KeyError:
            raise damaged(f"tag {tag} is of another release") from None
        try:
            return read(self, *item[1:])
        except SerializationError:
            raise
        except ImportError as error:
            raise SerializationError(f"a value cannot be read here: {error}") from error
        except Exception as error:  # of numpy and torch there is no telling what they raise
            raise damaged(f"{T(tag).name.lower()}: {type(error).__name__}") from error

    def _pairs(self, item: list[Any], depth: int) -> Any:
        if not len(item) % 2:
            raise damaged("a dict with a key alone")
        parts = [each if type(each) in _PLAIN else self.value(each, depth + 1) for each in item[1:]]
        pairs = zip(parts[::2], parts[1::2], strict=True)
        try:
            return dict(pairs) if item[0] == _DICT else OrderedDict(pairs)
        except TypeError:
            raise damaged("a key that has no hash") from None

    def _buffer(self, at: Any) -> memoryview:
        if type(at) is not int or not 0 <= at < len(self._buffers):
            raise damaged("a buffer that is not there")
        return self._buffers[at]

    def _complex(self, real: float, imag: float) -> complex:
        return complex(float(real), float(imag))

    def _integer(self, data: bytes) -> int:
        return int.from_bytes(_typed(data, bytes), "big", signed=True)

    def _bytes(self, at: int) -> bytes:
        return bytes(self._buffer(at))

    def _bytearray(self, at: int) -> bytearray:
        return bytearray(self._buffer(at))

    def _array(self, at: int, dtype: str, shape: list[int], turned: bool) -> Any:
        import numpy

        kind, buffer, sizes = numpy.dtype(_dtype(dtype)), self._buffer(at), _sizes(shape)
        if math.prod(sizes) * kind.itemsize != buffer.nbytes:
            raise damaged("an array that does not fit its buffer")
        if not buffer.nbytes:
            return numpy.empty(sizes, kind)
        return numpy.frombuffer(buffer, kind).reshape(sizes, order="F" if turned else "C")

    def _scalar(self, dtype: str, data: bytes) -> Any:
        import numpy

        kind = numpy.dtype(_dtype(dtype))
        if len(_typed(data, bytes)) != kind.itemsize:
            raise damaged("a number of another size")
        return numpy.frombuffer(data, kind)[0]

    def _tensor(self, at: int, dtype: str, offset: int, shape: list[int], stride: list[int], grad: bool) -> Any:
        import torch

        from lattica.actors.values import load_storage, load_tensor

        if _typed(dtype, str) not in _TORCH:
            raise damaged("a tensor of an unknown kind")
        kind, start = getattr(torch, dtype), _sizes([offset])[0]
        sizes, strides = _sizes(shape), _sizes(stride, product=False)
        if len(sizes) != len(strides):
            raise damaged("a tensor with too few strides")
        last = start + sum((size - 1) * step for size, step in zip(sizes, strides, strict=True))
        buffer = self._buffer(at)
        if all(sizes) and (last + 1) * kind.itemsize > buffer.nbytes:
            raise damaged("a tensor that reaches beyond its buffer")
        if at not in self._storages:
            self._storages[at] = load_storage(buffer)
        if not all(sizes):
            start = min(start, buffer.nbytes // kind.itemsize)
        return load_tensor(self._storages[at], kind, start, sizes, strides, grad is True)

    def _ref(self, id: bytes) -> Any:
        if len(_typed(id, bytes)) != OBJECT_ID_BYTES:
            raise damaged("an id that is none")
        return self._runtime.load_data_ref(id)

    def _actor(self, id: bytes, meta: bytes) -> Any:
        if len(_typed(id, bytes)) != ACTOR_ID_BYTES or len(_typed(meta, bytes)) > META_MAX_BYTES:
            raise damaged("an actor that is none")
        return self._runtime.load_data_actor(id, meta)


_READ: dict[int, Callable[..., Any]] = {
    T.COMPLEX: Reader._complex, T.INTEGER: Reader._integer, T.BYTES: Reader._bytes, T.BYTEARRAY: Reader._bytearray,
    T.ARRAY: Reader._array, T.SCALAR: Reader._scalar, T.TENSOR: Reader._tensor, T.REF: Reader._ref,
    T.ACTOR: Reader._actor,
}  # fmt: skip


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise damaged(f"no {kind.__name__} where one belongs")
    return value


def _dtype(text: Any) -> str:
    if len(_typed(text, str)) > 24 or not _DTYPE.fullmatch(text):
        raise damaged("an array of an unknown kind")
    return str(text)


def _sizes(sizes: Any, *, product: bool = True) -> tuple[int, ...]:
    if type(sizes) is not list or len(sizes) > DIMENSIONS_MAX:
        raise damaged("a shape that is none")
    if any(type(size) is not int or not 0 <= size < SIZE_MAX for size in sizes):
        raise damaged("a shape that is none")
    if product and math.prod(size for size in sizes if size) >= SIZE_MAX:
        raise damaged("a shape without end")
    return tuple(sizes)


def read(body: memoryview, buffers: Sequence[memoryview], runtime: Interning) -> Any:
    """The value of an item. Raises SerializationError."""
    if len(body) > BODY_MAX_BYTES:
        raise damaged(f"{len(body)} bytes without its arrays, at most {BODY_MAX_BYTES} are allowed")
    try:
        item = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, OverflowError, TypeError) as error:
        raise damaged(str(error)) from error
    if type(item) is list and item and item[0] == T.ERROR and type(item[0]) is int:
        return _error(Reader(buffers, runtime).value(item[1]) if len(item) == 2 else None)
    return Reader(buffers, runtime).value(item)


def _error(facts: Any) -> LatticaError:
    if type(facts) is not dict:
        raise damaged("an error without facts")
    error = LatticaError.from_data(facts)
    causes = facts.get("causes")
    if isinstance(error, TaskError) and type(causes) is list:
        vars(error)["causes"] = tuple(name for name in causes[:NAMES_MAX] if type(name) is str)
    return error


def raised(error: TaskError, kinds: tuple[type[BaseException], ...]) -> bool:
    """Whether what user code raised was of these classes, as its worker says."""
    return any(f"{kind.__module__}.{kind.__qualname__}" in vars(error).get("causes", ()) for kind in kinds)
