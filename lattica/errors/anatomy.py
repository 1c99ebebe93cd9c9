"""Exceptions taken apart and put together.

Python rebuilds an exception as `cls(*args)`, which fails for every class whose constructor takes anything but `args`
(half of those that people write). Here the pieces are put together without calling the user's `__init__`.
"""

from __future__ import annotations

import sys

from lattica.errors.base import LatticaError

TYPE_CHECKING = False  # importing `typing` would cost more than this whole package
if TYPE_CHECKING:
    from typing import Any


def _slots(cls: type) -> dict[str, Any]:
    """Where instances keep state outside of `__dict__`: BaseException.args, OSError.errno, a user's `__slots__`."""
    return {
        name: slot
        for base in reversed(cls.__mro__)
        for name, slot in vars(base).items()
        if type(slot).__name__ in ("member_descriptor", "getset_descriptor") and not name.startswith("__")
    }


def anatomy(exc: BaseException) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
    """Arguments for the native `__new__`, values of slots, and attributes."""
    slots: dict[str, Any] = {}
    for name, slot in _slots(type(exc)).items():
        try:
            slots[name] = slot.__get__(exc)
        except AttributeError:  # a slot that was never set
            continue
    args = (exc.message, exc.exceptions) if isinstance(exc, BaseExceptionGroup) else exc.args
    return args, slots, dict(exc.__dict__)


def revive(cls: type, args: tuple[Any, ...], slots: dict[str, Any], attributes: dict[str, Any]) -> Any:
    """The exception that `anatomy` took apart, or one of another class with the same pieces."""
    native = next(base for base in cls.__mro__ if base.__module__ == "builtins" and "__new__" in vars(base))
    error = native.__new__(cls, *args)
    for name, slot in _slots(cls).items():
        if name in slots:
            try:
                slot.__set__(error, slots[name])
            except (AttributeError, TypeError):  # read-only: `__new__` got it; or None in a slot that is unset by it
                continue
    error.__dict__.update(attributes)
    return error


def pickle_cause(cause: BaseException) -> bytes:
    """With cloudpickle, as the user's classes may live in `__main__`.

    Whoever pickles errors has loaded it or pickle. This module does not: the node imports it, and must never unpickle.
    """
    import io

    module: Any = sys.modules.get("cloudpickle") or sys.modules["pickle"]

    class Pickler(module.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, BaseException) and not isinstance(obj, LatticaError):
                reducer = next(base for base in type(obj).__mro__ if "__reduce__" in vars(base))
                registered = type(obj) in getattr(self, "dispatch_table", ())  # by copyreg
                if reducer.__module__ == "builtins" and not registered:
                    return revive, (type(obj), *anatomy(obj))
            inherited = getattr(super(), "reducer_override", None)  # cloudpickle's: classes and functions by value
            return inherited(obj) if inherited else NotImplemented

    with io.BytesIO() as out:
        Pickler(out, 5).dump(cause)
        return out.getvalue()
