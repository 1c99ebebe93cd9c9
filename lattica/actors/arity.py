"""Whether arguments fit a function, asked when it is called by `.remote(…)`: Ray raises a TypeError there, too.

Most calls are answered by two comparisons: how many arguments there must be, and may be. Only what a call's own process
knows is asked: handles that came from elsewhere know names, and what does not fit is an error of the call.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

_P = inspect.Parameter


class Arity:
    """Of one function. least, most: arguments without a name that it takes, if no other has one."""

    __slots__ = ("_index", "_named", "_needed", "_signature", "_what", "least", "most")

    def __init__(self, signature: inspect.Signature | None, what: str) -> None:
        """signature: without self; None for one that takes anything."""
        self._signature, self._what = signature, what
        found = list(signature.parameters.values()) if signature is not None else []
        plain = [one for one in found if one.kind in (_P.POSITIONAL_ONLY, _P.POSITIONAL_OR_KEYWORD)]
        self._needed = [one.name for one in plain if one.default is _P.empty]
        self._named = [one.name for one in found if one.kind is _P.KEYWORD_ONLY and one.default is _P.empty]
        self.least = len(self._needed) if not self._named else sys.maxsize  # with names, it is never as simple
        self.most = len(plain)
        if signature is None or any(one.kind is _P.VAR_POSITIONAL for one in found):
            self.most = sys.maxsize
        self._index: dict[str, int] | None = None  # of what can be named; None for any name
        if signature is not None and not any(one.kind is _P.VAR_KEYWORD for one in found):
            self._index = {one.name: place for place, one in enumerate(plain) if one.kind is not _P.POSITIONAL_ONLY}
            self._index |= {one.name: sys.maxsize for one in found if one.kind is _P.KEYWORD_ONLY}

    def __repr__(self) -> str:
        return f"<Arity {self._what}{self._signature or '(…)'}>"

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raises TypeError for arguments that do not fit."""
        if self._signature is None or self._fits(len(args), kwargs):
            return
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._what}.remote(): {error}") from None

    def _fits(self, count: int, kwargs: Mapping[str, Any]) -> bool:
        """For certain; else `bind` decides, which takes some microseconds."""
        index = self._index
        if index is None or count > self.most:
            return False
        for name in kwargs:
            if index.get(name, -1) < count:
                return False
        rest = self._needed[count:] + self._named
        return not rest or all(name in kwargs for name in rest)


ANY = Arity(None, "")
"""Takes what it is given."""


def of_function(function: Any, what: str) -> Arity:
    """A decorator that passes on what it is given takes anything: only what it wraps knows better."""
    try:
        return Arity(inspect.signature(function, follow_wrapped=False), what)
    except (TypeError, ValueError):  # of C, without a signature
        return ANY


class Arities:
    """Of a class's constructor and methods, each looked up when it is first called."""

    def __init__(self, cls: type) -> None:
        self._cls = cls
        self._found: dict[str, Arity] = {}
        self._constructor: Arity | None = None

    @property
    def constructor(self) -> Arity:
        """What the class takes when it is made."""
        if self._constructor is None:
            self._constructor = of_function(self._cls, self._cls.__name__)
        return self._constructor

    def of(self, name: str) -> Arity:
        """Of a method; ANY for what is none of the class's own functions."""
        if (known := self._found.get(name)) is not None:
            return known
        found = inspect.getattr_static(self._cls, name, None)
        what, arity = f"{self._cls.__name__}.{name}", ANY
        if isinstance(found, staticmethod):
            arity = of_function(found.__func__, what)
        elif inspect.isfunction(found) or isinstance(found, classmethod):
            arity = of_function(getattr(found, "__func__", found).__get__(self._cls), what)  # bound to anything
        self._found[name] = arity
        return arity
