"""What all errors share: facts that are plain data, a message worded from them, and ways to travel."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing `typing` would cost more than this whole package
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

SHORT_ID_DIGITS = 4  # that of `ids`, which is not imported here for the sake of its `typing`

Plain = str | int | float | bool | bytes | None
_PLAIN_TYPES = (str, int, float, bool, bytes, type(None))


def short_id(hex_id: str) -> str:
    """An id as messages show it."""
    return hex_id[:SHORT_ID_DIGITS] or "?"


def ago(since_s: float | None) -> str:
    """What follows a verb in a message: how long it is past; nothing if nobody knows."""
    return "" if since_s is None else f" {since_s:.1f} s ago"


def one_of(word: str, known: Iterable[str], takes: str) -> str:
    """What to do next about a word that is none of these: the one that is meant, as far as can be guessed, and all.

    takes: who has them, "it takes"."""
    from difflib import get_close_matches

    words = list(known)
    near = get_close_matches(word, words, 1)
    return f"{f'say {near[0]}; ' if near else ''}{takes} {', '.join(words)}"


def quoted(title: str, lines: str) -> str:
    """What follows a message: lines of somebody else's, set in, under a title; nothing if there are none."""
    tail = "\n".join(f"    {line}" for line in lines.rstrip().splitlines())
    return f"\n  {title}:\n{tail}" if tail else ""


class LatticaError(Exception):
    """Base of all; catch it to catch whatever lattica itself has to say.

    A subclass declares its facts as annotated class attributes with defaults, and takes them as keywords.
    message: what happened, one or two sentences; by default worded from `summary` and the facts.
    made_at: `file:line` in the user's program. do_next: the next step; by default the class's `advice`.
    """

    summary = "lattica could not do what was asked"
    advice = ""
    message: str = ""
    made_at: str = ""
    do_next: str = ""

    def __init__(self, message: str = "", **facts: Any) -> None:
        super().__init__(message)
        for name, value in facts.items():
            if name not in self._facts():
                raise TypeError(f"{type(self).__name__} has no fact {name!r}; it has {', '.join(self._facts())}")
            setattr(self, name, value.hex() if isinstance(value, bytes) else value)  # ids are shown in hex
        self.message = message or self._describe()
        self.do_next = self.do_next or self.advice

    @classmethod
    def _facts(cls) -> list[str]:
        """The names of what an error of this class carries, the base's first."""
        return [name for base in reversed(cls.__mro__) for name in getattr(base, "__annotations__", ())]

    def _describe(self) -> str:
        """The message, from this error's facts, where the caller gave none."""
        return self.summary

    def __str__(self) -> str:
        lines = [self.message]
        if self.made_at:
            lines.append(f"  made at   {self.made_at}")
        if self.do_next:
            lines.append(f"  do next   {self.do_next}")
        return "\n".join(lines)

    @property
    def error_message(self) -> str:
        """Ray's name for the message on several classes."""
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, (type(self), self.args, dict(self.__dict__))

    def to_data(self) -> dict[str, Plain]:
        """This error as a flat dict of plain values, for messages that are not pickles."""
        public = _public()
        kind = next(base.__name__ for base in type(self).__mro__ if public.get(base.__name__) is base)
        facts = {name: getattr(self, name) for name in self._facts()}
        return {"error": kind} | {name: value for name, value in facts.items() if isinstance(value, _PLAIN_TYPES)}

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> LatticaError:
        """The error that `to_data` wrote; what this release does not know becomes a plain LatticaError or is left out.

        Distrusts its input: only classes of this package, only the facts these have, only values of a fact's own type.
        """
        kind = str(data.get("error"))
        cls = LatticaError if kind.startswith("_") else _public().get(kind)
        error = cls() if isinstance(cls, type) and issubclass(cls, LatticaError) else LatticaError()
        for name in error._facts():
            value, default = data.get(name), getattr(type(error), name)
            if isinstance(value, _PLAIN_TYPES if default is None else type(default)):
                setattr(error, name, value)
        error.args = (error.message,)
        return error


def _public() -> dict[str, Any]:
    """What `lattica.errors` exports, by name: the classes that an error may say it is of."""
    return vars(sys.modules["lattica.errors"])


def rebuild(cls: type[LatticaError], args: tuple[Any, ...], facts: dict[str, Any]) -> LatticaError:
    """Unpickle without calling `__init__`, whose signature may be a subclass's own."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(facts)
    return error
