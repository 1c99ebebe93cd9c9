"""Arguments of a call as they travel: refs at the top level become values, everything else is serialized once."""

from __future__ import annotations

from typing import Any

from lattica.actors import values
from lattica.actors.objects import INLINE_MAX
from lattica.actors.refs import Hold, Nested, ObjectRef
from lattica.actors.runtime import Runtime


def encode_arguments(
    runtime: Runtime, args: tuple[Any, ...], kwargs: dict[str, Any], name: str
) -> tuple[bytes | Nested | Hold, list[ObjectRef], list[int | str]]:
    """(serialized `(args, kwargs)` without the top-level refs, those refs, where they belong).

    Raises SerializationError; ObjectStoreFullError if large arguments find no room.
    """
    if not kwargs:
        small = values.dump_small_arguments(args)
        if small is not None and len(small) <= INLINE_MAX:
            return small, [], []
    deps: list[ObjectRef] = []
    at: list[int | str] = []
    rest: Any = args
    for place, arg in enumerate(args):
        if type(arg) is ObjectRef:
            if not deps:
                rest = list(args)
            rest[place] = None
            deps.append(arg)
            at.append(place)
    for key in [key for key, arg in kwargs.items() if type(arg) is ObjectRef]:
        kwargs = dict(kwargs)
        ref = kwargs.pop(key)
        deps.append(ref)
        at.append(key)
    for ref in deps:
        if ref._runtime is not runtime:
            ref.check_session(runtime)
    if not rest and not kwargs:
        return b"", deps, at
    data = values.dump_arguments(rest, kwargs, name)
    if data.size <= INLINE_MAX and not data.refs:
        return data.join(), deps, at
    return runtime.objects.small_or_stored(data), deps, at
