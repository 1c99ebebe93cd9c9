"""What a process has refs of, arrays over and arguments of: its part of `lattica memory`.

Nothing is counted for this beforehand: who asks waits for the garbage collector to name every ref (20 ms per 300,000
objects). Where a ref was made is remembered only if LATTICA_RECORD_CALL_SITES (or Ray's name for it) is set.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from lattica.actors import values
from lattica.actors.refs import BORROWED, Hold, InPlace, Nested, ObjectRef

if TYPE_CHECKING:
    from lattica.actors.runtime import Runtime

VARIABLES = ("LATTICA_RECORD_CALL_SITES", "RAY_record_ref_creation_sites")
SITES_MAX = 100_000
"""Refs of which it is remembered where they were made, the latest: 20 MB."""
ROWS_MAX = 5_000  # of one process, the largest objects
OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class CallSites:
    """Where refs were made, by their numbers."""

    def __init__(self) -> None:
        self._of: dict[int, str] = {}

    def note(self, serial: int) -> None:
        """The caller's caller makes this one, for a program of the user's."""
        frame = sys._getframe(2)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(OURS):
            frame = frame.f_back
        if len(self._of) >= SITES_MAX:
            del self._of[next(iter(self._of))]
        self._of[serial] = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"

    def of(self, serial: int) -> str:
        """Words, "" if it is not known."""
        return self._of.get(serial, "")


def call_sites(environ: Mapping[str, str] = os.environ) -> CallSites | None:
    """For a process that shall remember where its refs are made."""
    asked = any(environ.get(name, "0").lower() not in ("", "0", "false", "no") for name in VARIABLES)
    return CallSites() if asked else None


def rows(runtime: Runtime) -> bytes:
    """msgpack: a dict for each object: object (id), size, by ("ref", "array", "argument", or several), state
    ("inline": in the process itself), made_at. Lock held."""
    found: dict[bytes, dict[str, Any]] = {}

    def row(id: bytes) -> dict[str, Any]:
        return found.setdefault(id, {"object": id, "size": 0, "by": set(), "state": "", "made_at": ""})

    for each in gc.get_objects():
        if type(each) is ObjectRef and each._runtime is runtime:
            _add_ref(runtime, row(each.id), each)
        elif type(each) is Hold and each._releases is runtime.objects.releases and each.size:
            known = row(each.id)
            known["size"] = max(known["size"], each.size)
            if not known["by"]:
                known["by"].add("argument")
    for id in values.viewed():
        row(id)["by"].add("array")
    largest = sorted(found.values(), key=lambda row: -row["size"])[:ROWS_MAX]
    for each in largest:
        each["by"] = "+".join(sorted(each["by"] - {"argument"}, reverse=True)) or "argument"
    return msgspec.msgpack.encode(largest)


def _add_ref(runtime: Runtime, row: dict[str, Any], ref: ObjectRef) -> None:
    value, task = ref._value, ref._task
    row["by"].add("ref")
    match value:
        case InPlace():
            row["size"] = value.hold.size
        case bytes():
            row["size"], row["state"] = len(value), "inline"
        case Nested():
            row["size"], row["state"] = len(value.data), "inline"
        case None if not ref._flags & BORROWED:
            row["state"] = "pending"
    if not ref._flags & BORROWED:
        row["made_at"] = (runtime.sites.of(ref._serial) if runtime.sites is not None else "") or getattr(
            task, "made_at", ""
        )
