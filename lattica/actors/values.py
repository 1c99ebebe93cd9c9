"""User values to bytes and back: the only place where lattica pickles.

A value is one region. Four forms, told apart by the first byte:

    0x80  a pickle (protocol 5) without out-of-band buffers: small objects
    0x01  header, pickle, then 64-byte aligned buffers: numpy arrays, tensors, anything that exports pickle-5 buffers
    0x02  the bytes themselves: a `bytes` object
    0x03  as 0x01 with an item of `data` instead of the pickle: what whoever asked for `results="data"` takes

Buffers are read in place: arrays over the arena are views of it, read-only, and hold it (`ViewHold`) until the last
slice is gone. CPU torch tensors come back over a private copy-on-write mapping: writing to them is local and safe,
and tensors that shared a storage share it again. Only drivers and workers import this module; the node never does.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from itertools import islice
from struct import Struct
from types import FunctionType, MethodType
from typing import Any, Protocol

import cloudpickle

from lattica.actors.refs import Hold, ObjectRef
from lattica.errors import LatticaError, OutOfBandRefError, RemoteProtocolError, SerializationError

ALIGN = 64
"""Alignment of buffers: a cache line, and what AVX-512 loads like."""
LARGE_BYTES = 32 << 10
"""`bytes` arguments from this size on leave the pickle, which would copy them twice."""
BUFFERS_MAX = 1 << 20
"""More buffers than this in one value is a damaged header."""
EXPLAIN_DEPTH = 4
EXPLAIN_CHILDREN = 1000
"""Of a value that cannot travel, so many levels are looked into, and so many items of each: 25 us apiece."""

_PLAIN = frozenset({int, float, bool, str, type(None), complex})
_NUMBERS = _PLAIN - {str}
_TEXTS = frozenset({str, bytes})
_HEADER = Struct("<B3xIQ")  # form, buffers, pickle bytes
_BUFFER = Struct("<QQ")  # offset in the region, bytes
NONE = pickle.dumps(None, 5)


class Serialized:
    """A value as parts of a region: `parts` in order with their offsets, `size` in all, and the refs inside it."""

    __slots__ = ("offsets", "parts", "refs", "size")

    def __init__(self, parts: list[Any], offsets: list[int], size: int, refs: list[Any]) -> None:
        self.parts, self.offsets, self.size, self.refs = parts, offsets, size, refs

    def join(self) -> bytes:
        """The region as one bytes object, for values that travel inside messages."""
        if len(self.parts) == 1:
            return bytes(self.parts[0])
        region = bytearray(self.size)
        for offset, part in zip(self.offsets, self.parts, strict=True):
            region[offset : offset + len(part)] = part
        return bytes(region)


class _Dumping(threading.local):
    """What one thread is pickling: its reusable pickler, and the refs that were met."""

    def __init__(self) -> None:
        self.refs: list[Any] | None = None
        self.buffers: list[pickle.PickleBuffer] = []
        self.file = io.BytesIO()
        self.pickler: _Pickler | None = None


REDUCERS: dict[type, Callable[[Any], Any]] = {}
"""What the user said of instances of some classes: see `util.serialization`. Of the whole process, as copyreg's."""
FIXED: frozenset[Any] = _PLAIN | {bytes, list, tuple, dict, set, frozenset, type, FunctionType}


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's reducers, and ours for arrays and tensors."""

    def reducer_override(self, obj: Any) -> Any:
        if REDUCERS and (reduce := REDUCERS.get(type(obj))) is not None:
            return reduce(obj)
        module = type(obj).__module__
        if module == "numpy" and type(obj).__name__ == "ndarray":
            return _reduce_array(obj)
        if module in ("torch", "torch.storage") and type(obj).__name__ in ("Tensor", "UntypedStorage"):
            reduced = _reduce_torch(obj)
            if reduced is not None:
                return reduced
        return super().reducer_override(obj)


_dumping = _Dumping()


def dumps(value: Any, name: str = "the value") -> Serialized:
    """Serialize once. Raises SerializationError, which says which attribute cannot travel; `name` is how to call it."""
    kind = type(value)
    if kind in _PLAIN:
        data = pickle.dumps(value, 5)
        return Serialized([data], [0], len(data), [])
    if kind is bytes:
        if len(value) >= LARGE_BYTES:
            return Serialized([b"\x02", value], [0, 1], len(value) + 1, [])
        data = pickle.dumps(value, 5)
        return Serialized([data], [0], len(data), [])
    try:
        return _dump(value)
    except Exception as error:
        raise _explained([(name, value)], error) from error


def dump_small(value: Any) -> bytes | None:
    """The pickle of a number, a short string, short bytes or None: there is nothing in it to look for. None for others,
    which `dumps` serializes."""
    kind = type(value)
    if kind in _NUMBERS or (kind in _TEXTS and len(value) < LARGE_BYTES):
        return pickle.dumps(value, 5)
    return None


def _dump(value: Any) -> Serialized:
    state = _dumping
    outer = state.refs, state.buffers, state.file, state.pickler
    if (
        state.refs is not None or state.pickler is None
    ):  # first use, or a reducer of the user's that serializes by itself
        state.file, state.buffers = io.BytesIO(), []
        state.pickler = _Pickler(state.file, 5, buffer_callback=state.buffers.append)
    state.refs = []
    file, pickler = state.file, state.pickler
    try:
        pickler.dump(value)
        data = file.getvalue()
        buffers = [buffer.raw() for buffer in state.buffers]
        refs = state.refs
    except BaseException:
        state.pickler = None
        raise
    finally:
        if outer[0] is not None:
            state.refs, state.buffers, state.file, state.pickler = outer
        else:
            state.refs = None
            state.buffers.clear()
            if state.pickler is not None:
                pickler.clear_memo()
                pickler.globals_ref.clear()  # by address: another function's globals may lie there next time
                file.seek(0)
                file.truncate()
    if not buffers:
        return Serialized([data], [0], len(data), refs)
    return _with_buffers(data, buffers, refs)


def dumps_data(value: Any, name: str = "the value") -> Serialized:
    """Serialize as data. Raises SerializationError, which names the part that is none."""
    from lattica.actors import data

    return _with_buffers(*data.write(value, name), form=data.FORM)


def dumps_error(error: LatticaError) -> bytes:
    """Serialize an error as data."""
    from lattica.actors import data

    return _with_buffers(data.write_error(error), [], [], form=data.FORM).join()


def _with_buffers(data: bytes, buffers: list[memoryview], refs: list[Any], form: int = 1) -> Serialized:
    head = _HEADER.size + _BUFFER.size * len(buffers)
    at = head + len(data)
    table: list[bytes] = []
    parts: list[Any] = [b"", data]
    offsets = [0, head]
    for buffer in buffers:
        if gap := -at % ALIGN:  # zeros, for equal values shall be equal bytes; and what lay there is nobody's to read
            parts.append(bytes(gap))
            offsets.append(at)
            at += gap
        parts.append(buffer)
        offsets.append(at)
        table.append(_BUFFER.pack(at, buffer.nbytes))
        at += buffer.nbytes
    parts[0] = _HEADER.pack(form, len(buffers), len(data)) + b"".join(table)
    return Serialized(parts, offsets, at, refs)


def _reduce_array(obj: Any) -> Any:
    """numpy's own way, over a read-only buffer: the pickle says which it was, and a view that we gave out is one."""
    reduced = obj.__reduce_ex__(5)
    if len(reduced) == 2 and reduced[1] and type(reduced[1][0]) is pickle.PickleBuffer:
        function, (buffer, *rest) = reduced
        return function, (pickle.PickleBuffer(buffer.raw().toreadonly()), *rest)
    return reduced


class Bytes:
    """A large `bytes` argument, taken out of the pickle for the journey."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return bytes, (pickle.PickleBuffer(self.data),)


def dump_small_arguments(args: tuple[Any, ...] | list[Any]) -> bytes | None:
    """`(args, {})` serialized, if `dump_small` takes each of them; so no ref is among them."""
    for arg in args:
        kind = type(arg)
        if kind not in _NUMBERS and (kind not in _TEXTS or len(arg) >= LARGE_BYTES):
            return None
    return pickle.dumps((args, {}), 5)


def dump_arguments(args: tuple[Any, ...] | list[Any], kwargs: dict[str, Any], name: str) -> Serialized:
    """Serialize `(args, kwargs)` of a call to `name`."""
    if not kwargs and (small := dump_small_arguments(args)) is not None:
        return Serialized([small], [0], len(small), [])
    if any(type(arg) is bytes and len(arg) >= LARGE_BYTES for arg in args):
        args = [Bytes(arg) if type(arg) is bytes and len(arg) >= LARGE_BYTES else arg for arg in args]
    try:
        return _dump((args, kwargs))
    except Exception as error:
        places = [(f"{name}(argument {at})", arg) for at, arg in enumerate(args)]
        raise _explained(places + [(f"{name}({key}=...)", arg) for key, arg in kwargs.items()], error) from error


# -- refs inside values


class Interning(Protocol):
    """What loading needs of the runtime."""

    def load_ref(self, id: bytes) -> Any: ...
    def load_actor(self, id: bytes, meta: bytes) -> Any: ...
    def load_data_ref(self, id: bytes) -> Any: ...
    def load_data_actor(self, id: bytes, meta: bytes) -> Any: ...
    def private_view(self, address: int, nbytes: int) -> Any: ...


class _Loading(threading.local):
    runtime: Interning | None = None
    hold: Hold | None = None  # of the region being read; None for a small value


_loading = _Loading()


def note_ref(ref: Any) -> None:
    """A ref or actor hold is being pickled. Raises OutOfBandRefError if it is not lattica that pickles."""
    if _dumping.refs is None:
        raise OutOfBandRefError(
            f"{ref!r} was pickled outside lattica, where nobody can count who holds it",
            do_next="pass it as an argument or inside a value given to lattica.put",
        )
    _dumping.refs.append(ref)


def reduce_ref(ref: ObjectRef) -> tuple[Any, ...]:
    """How an ObjectRef is pickled: by id; its holder is told apart (`Serialized.refs`)."""
    note_ref(ref)
    return (load_data_ref if ref.is_data else load_ref), (ref.id,)


def load_ref(id: bytes) -> Any:
    """The process's one ref with this id. Only while lattica loads a value."""
    if _loading.runtime is None:
        raise OutOfBandRefError("a ref was unpickled outside lattica", do_next="read it with lattica.get")
    return _loading.runtime.load_ref(id)


def load_data_ref(id: bytes) -> Any:
    """The same, of what is read as data alone."""
    if _loading.runtime is None:
        raise OutOfBandRefError("a ref was unpickled outside lattica", do_next="read it with lattica.get")
    return _loading.runtime.load_data_ref(id)


def load_actor(id: bytes, meta: bytes) -> Any:
    """The process's handle of this actor. Only while lattica loads a value."""
    if _loading.runtime is None:
        raise OutOfBandRefError("an actor handle was unpickled outside lattica", do_next="read it with lattica.get")
    return _loading.runtime.load_actor(id, meta)


# -- bytes to values

_PICKLE = b"\x80"
_UNREADABLE = (pickle.UnpicklingError, EOFError, ImportError, AttributeError)
_views: set[ViewHold] = set()


class ViewHold(weakref.ref):  # type: ignore[type-arg]
    """Keeps a hold as long as an array over its bytes, or any slice of that, lives."""

    __slots__ = ("hold",)
    hold: Hold
    __hash__ = object.__hash__  # a weakref hashes its referent, and arrays have no hash
    __eq__ = object.__eq__


def viewed() -> set[bytes]:
    """The objects over whose bytes arrays of this process lie."""
    return {view.hold.id for view in _views.copy()}


def _pinned(view: memoryview, hold: Hold) -> memoryview:
    """A memoryview whose exporter holds the region for as long as anything looks at it."""
    import numpy as np

    base = np.frombuffer(view, dtype=np.uint8)
    pin = ViewHold(base, _views.discard)
    pin.hold = hold
    _views.add(pin)
    return memoryview(base.data)


def is_data(data: bytes | memoryview) -> bool:
    """Whether reading it unpickles nothing."""
    return len(data) > 0 and data[0] == 3


def not_data(what: str) -> RemoteProtocolError:
    """The error where data was asked for, and something else has come."""
    return RemoteProtocolError(
        f'{what} was asked for with results="data" and came as something else; it was not read',
        do_next="do not trust the node that made it: look for it with `lattica peers`, and see trust=",
    )


def loads(data: bytes | memoryview, runtime: Interning, hold: Hold | None = None) -> Any:
    """The value of a region. `hold`: what keeps the bytes if they lie in the arena; None if `data` is ours alone.

    Raises SerializationError if the user's classes do not import here, or the bytes are damaged; RemoteProtocolError if
    they should be data and are not. What the user's own code raises while it unpickles passes through.
    """
    form = data[0] if len(data) else 0
    if hold is not None and hold.data and form != 3:
        raise not_data(f"object {hold.id.hex()[:8]}")
    if form == 2:
        return bytes(data[1:])
    outer = _loading.runtime, _loading.hold
    _loading.runtime, _loading.hold = runtime, hold
    try:
        if form == 0x80:
            return pickle.loads(data)
        if form not in (1, 3):
            raise SerializationError(f"a value begins with byte {form}: it was written by another release, or damaged")
        head, size = _sizes(data)
        view = memoryview(data)
        if hold is not None:
            try:
                view = _pinned(view, hold)
            except ImportError:  # no numpy here: an honest copy
                view = memoryview(bytes(view))
        buffers = []
        for at in range(_HEADER.size, head, _BUFFER.size):
            offset, nbytes = _BUFFER.unpack_from(data, at)
            if offset + nbytes > len(data):
                raise SerializationError("a value is damaged: a buffer lies outside of it")
            buffers.append(view[offset : offset + nbytes])
        if form == 3:
            from lattica.actors.data import read

            return read(view[head : head + size], buffers, runtime)
        return pickle.loads(view[head : head + size], buffers=buffers)
    except _UNREADABLE as error:
        raise _unreadable(error) from error
    finally:
        _loading.runtime, _loading.hold = outer


def loads_plain(data: bytes, runtime: Interning) -> Any:
    """As `loads`, of one that came as `bytes` alone (`messages.Value`), so without refs inside: as nearly always."""
    if data[:1] != _PICKLE:
        return loads(data, runtime)
    try:
        return pickle.loads(data)
    except _UNREADABLE as error:
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> SerializationError:
    if isinstance(error, pickle.UnpicklingError | EOFError):
        return SerializationError(f"a value is damaged: {error}")
    return SerializationError(
        f"a value cannot be read here: {error}",
        do_next="the module must be importable in this process: put it beside the driver's script, or install it",
    )


def _sizes(data: bytes | memoryview) -> tuple[int, int]:
    """(bytes before the pickle, bytes of the pickle) of a value that begins with byte 1. Raises SerializationError."""
    if len(data) >= _HEADER.size:
        _, count, size = _HEADER.unpack_from(data, 0)
        head = _HEADER.size + _BUFFER.size * count
        if count <= BUFFERS_MAX and head + size <= len(data):
            return head, size
    raise SerializationError("a value is damaged: its header does not fit its length")


# -- torch


def _reduce_torch(obj: Any) -> Any:
    """Out-of-band reduction of plain CPU tensors and their storages; None: leave it to torch."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    if type(obj) is torch.UntypedStorage:
        if obj.device.type != "cpu":
            return None
        return load_storage, (pickle.PickleBuffer(storage_array(torch, obj)),)
    if type(obj) is not torch.Tensor or obj.device.type != "cpu" or obj.layout is not torch.strided:
        return None
    if obj.is_quantized or obj.is_conj() or obj.is_neg() or (obj.requires_grad and not obj.is_leaf):
        return None
    arguments = (
        obj.untyped_storage(),
        obj.dtype,
        obj.storage_offset(),
        tuple(obj.shape),
        obj.stride(),
        obj.requires_grad,
    )
    return load_tensor, arguments


def storage_array(torch: Any, storage: Any) -> Any:
    """Its bytes."""
    flat = torch.empty(0, dtype=torch.uint8).set_(storage)
    return flat.numpy()


def load_storage(buffer: Any) -> Any:
    """A storage over a buffer of the region being read."""
    import numpy as np
    import torch

    read = np.frombuffer(buffer, dtype=np.uint8)
    writable = None
    if _loading.hold is not None and _loading.runtime is not None and len(read):
        writable = _loading.runtime.private_view(read.__array_interface__["data"][0], len(read))
    if writable is None:
        base = read.copy()
    else:
        base = np.frombuffer(writable, dtype=np.uint8)
        pin = ViewHold(base, _views.discard)
        assert _loading.hold is not None
        pin.hold = _loading.hold
        _views.add(pin)
    if not len(base):
        return torch.UntypedStorage(0)
    return torch.from_numpy(base).untyped_storage()


def load_tensor(storage: Any, dtype: Any, offset: int, shape: Any, stride: Any, requires_grad: bool) -> Any:
    """A tensor over a storage."""
    import torch

    tensor = torch.empty(0, dtype=dtype).set_(storage, offset, shape, stride)
    return tensor.requires_grad_() if requires_grad else tensor


# -- explaining


def _explained(places: list[tuple[str, Any]], error: Exception) -> SerializationError:
    """The error for whoever serialized these: (how to call it, value)."""
    if isinstance(error, SerializationError):
        return error
    path, culprit = next((place for place in places if not _travels(place[1])), places[0])
    path, culprit = _find(culprit, path, depth=EXPLAIN_DEPTH, seen=set())
    return SerializationError(
        f"{path} (a {type(culprit).__module__}.{type(culprit).__qualname__}) could not be serialized: "
        f"{type(error).__name__}: {error}",
        path=path,
        type_name=type(culprit).__qualname__,
        do_next="make it inside the task or actor, or give the class a __reduce__ that leaves it out",
    )


def culprit(value: Any, name: str) -> str:
    """What in `value`, called `name`, keeps it from travelling: a path and a type."""
    path, found = _find(value, name, depth=EXPLAIN_DEPTH, seen=set())
    return f"{path} (a {type(found).__module__}.{type(found).__qualname__})"


def _find(value: Any, path: str, depth: int, seen: set[int]) -> tuple[str, Any]:
    """The innermost attribute, item or captured variable of `value` that does not pickle."""
    if depth == 0 or id(value) in seen:
        return path, value
    seen.add(id(value))
    try:
        for label, child in islice(_children(value, path), EXPLAIN_CHILDREN):
            if not _travels(child):
                return _find(child, label, depth - 1, seen)
    except Exception:  # a property of the user's raises: what was found so far must do
        return path, value
    return path, value


def _children(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"{path}[{key!r}]", child) for key, child in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"{path}[{at}]", child) for at, child in enumerate(value))
    elif isinstance(value, FunctionType):
        code = value.__code__
        for name, cell in zip(code.co_freevars, value.__closure__ or (), strict=False):
            if _filled(cell):
                yield f"{path}: captured variable {name}", cell.cell_contents
        names = value.__globals__
        yield from ((f"{path}: global {name}", names[name]) for name in code.co_names if name in names)
    elif isinstance(value, MethodType):
        yield f"{path}.__self__", value.__self__
        yield f"{path}.__func__", value.__func__
    elif isinstance(value, type):
        yield from ((f"{path}.{name}", child) for name, child in vars(value).items() if callable(child))
    else:
        if isinstance(value, BaseException):
            yield from ((f"{path}.args[{at}]", child) for at, child in enumerate(value.args))
        slots = {name: getattr(value, name) for name in copyreg._slotnames(type(value)) if hasattr(value, name)}  # type: ignore[attr-defined]
        for name, child in (slots | getattr(value, "__dict__", {})).items():
            yield f"{path}.{name}", child


def _filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _travels(value: Any) -> bool:
    return why_not(value) is None


def why_not(value: Any) -> Exception | None:
    """What pickling it raises, if it does."""
    outer = _dumping.refs
    _dumping.refs = []
    try:
        _Pickler(io.BytesIO(), 5, buffer_callback=lambda _: None).dump(value)
    except Exception as error:
        return error
    finally:
        _dumping.refs = outer
    return None
