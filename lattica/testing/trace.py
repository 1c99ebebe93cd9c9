"""What a world did: its last steps for people, a hash of all of them for comparing two runs.

Both are kept cheaply, for a world takes more than a hundred thousand steps a second. The last steps stay as they came
and become text when somebody asks. The hash covers when, who, what and every argument's content, as msgpack writes it;
no address in memory and no hash of a string goes into it, so it is the same in every process. An object that msgpack
does not know counts by the name of its type.
"""

from __future__ import annotations

from collections import deque
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import msgspec
from blake3 import blake3

STEPS_SHOWN = 40  # the last steps shown with a failure: enough to see a race, few enough to read
LINE_MAX = 212  # characters of a step that are shown
HASH_AT_BYTES = 1 << 16  # steps are hashed by the buffer: a call for each would cost as much as writing it
HASH_BYTES = 8  # two different runs in 2^64 look the same
DEPTH_MAX = 6  # of what is nested in an argument that msgpack does not know as it is

Step = tuple[float, str, str, tuple[object, ...] | None]
"""World time in seconds, who, what (a verb, or words), and the verb's arguments; None where nothing was called."""


def _foreign(value: Any) -> Any:
    return bytes(value) if isinstance(value, bytes | bytearray) else type(value).__qualname__


_encode_into = msgspec.msgpack.Encoder(enc_hook=_foreign, order="deterministic").encode_into


def _plain(value: Any, depth: int = 0) -> Any:
    """The same content in types that msgpack writes the same way in every process."""
    if depth == DEPTH_MAX:
        return type(value).__qualname__
    if isinstance(value, Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if value is None or isinstance(value, str | float | bytes):
        return value
    if isinstance(value, int):
        return str(value)  # may have any size
    if isinstance(value, tuple | list | deque):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return [[_plain(key, depth + 1), _plain(item, depth + 1)] for key, item in value.items()]
    if isinstance(value, set | frozenset):
        return sorted((_plain(item, depth + 1) for item in value), key=repr)
    if is_dataclass(value) and not isinstance(value, type):
        return [_plain(getattr(value, field.name), depth + 1) for field in fields(value)]
    return _foreign(value)


class Trace:
    """`note` each step; `lines` for people, `digest` for comparing."""

    __slots__ = ("_buffer", "_hash", "steps")

    def __init__(self, shown: int = STEPS_SHOWN) -> None:
        self.steps: deque[Step] = deque(maxlen=shown)
        self._buffer = bytearray()
        self._hash = blake3()

    def note(self, step: Step) -> None:
        """The world takes this step. Its arguments are kept, not copied: what changes later is shown as it then is."""
        self.steps.append(step)
        self.count(step)

    def count(self, step: tuple[object, ...]) -> None:
        """Only into the hash."""
        buffer = self._buffer
        size = len(buffer)
        try:
            _encode_into(step, buffer, -1)
        except (TypeError, OverflowError, RecursionError):
            del buffer[size:]
            _encode_into(_plain(step), buffer, -1)
        if size > HASH_AT_BYTES:
            self._hash.update(buffer)
            buffer.clear()

    def lines(self) -> list[str]:
        """The last steps, oldest first."""
        return [_line(step) for step in self.steps]

    def digest(self) -> str:
        """Of all steps so far, as 16 hex digits."""
        self._hash.update(self._buffer)
        self._buffer.clear()
        return self._hash.hexdigest(HASH_BYTES)


def _line(step: Step) -> str:
    now, who, what, args = step
    said = f"{who} {what}" if args is None else f"{who}.{what}({', '.join(map(_show, args))})"
    return f"{now:12.6f}  {said}"[:LINE_MAX]


def _show(value: object) -> str:
    """As `repr`, but of a buffer its content, and no address in memory."""
    if isinstance(value, memoryview):
        return f"<{len(value)} bytes: {bytes(value[:16])!r}>"
    if isinstance(value, list):
        return f"[{', '.join(map(_show, value))}]"
    if type(value) is tuple:
        return f"({', '.join(map(_show, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, msgspec.Struct):
        shown = (f"{name}={_show(getattr(value, name))}" for name in value.__struct_fields__)
        return f"{type(value).__name__}({', '.join(shown)})"
    return repr(value)
