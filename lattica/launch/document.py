"""A YAML file whose values know where they stand: every complaint begins with file:line:column.

A reader takes a `Value` and returns what it means, or raises ConfigError: `table.take("nodes", integer(1, 64))`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import yaml

from lattica.errors import ConfigError

T = TypeVar("T")
FILE_BYTES_MAX = 1 << 20  # a thousand hosts have 100 KB
SHOWN_CHARS = 40  # of a value, in a complaint
REQUIRED = object()


@dataclass(frozen=True, slots=True)
class Value:
    """One value of the file. path: as in `provider.hosts[2].port`."""

    file: str
    node: yaml.Node
    path: str
    loader: yaml.SafeLoader

    def __repr__(self) -> str:
        return f"<Value {self.where()} {self.path}>"

    def where(self) -> str:
        return _where(self.file, self.node.start_mark)

    def fail(self, what: str, do_next: str = "") -> NoReturn:
        """Raise ConfigError about this value."""
        raise ConfigError(f"{self.where()}: {self.path or 'the file'}: {what}", do_next=do_next)

    def expected(self, what: str) -> NoReturn:
        self.fail(f"expected {what}, found {self.shown()}")

    def shown(self) -> str:
        """What stands there, for people."""
        if isinstance(self.node, yaml.MappingNode):
            return "keys and values"
        if isinstance(self.node, yaml.SequenceNode):
            return "a list"
        text = str(self.node.value)
        return repr(text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 3] + "...") if text else "nothing"

    def scalar(self) -> Any:
        """As YAML reads it: a text, number, true or false, None; the Value itself for a list or a table."""
        if not isinstance(self.node, yaml.ScalarNode):
            return self
        try:
            return self.loader.construct_object(self.node)
        except yaml.YAMLError as error:
            raise _syntax(self.file, error) from error
        except (ValueError, OverflowError):  # a date that is none
            return str(self.node.value)

    def below(self, node: yaml.Node, path: str) -> Value:
        return Value(self.file, node, path, self.loader)


Reader = Callable[[Value], T]


def open_document(file: str) -> Value:
    """The whole file. Raises ConfigError if it cannot be read, or is no YAML."""
    try:
        with open(file, "rb") as opened:
            data = opened.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}", do_next="name a cluster's YAML file") from error
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{file} has more than {FILE_BYTES_MAX >> 20} MiB: it is no cluster's file")
    try:
        loader = yaml.SafeLoader(data)
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        raise _syntax(file, error) from error
    if node is None:
        raise ConfigError(
            f"{file}:1:1: the file is empty", do_next="begin with `name:` and `provider:`; see docs/launch.md"
        )
    return Value(file, node, "", loader)


def _where(file: str, mark: yaml.Mark) -> str:
    return f"{file}:{mark.line + 1}:{mark.column + 1}"


def _syntax(file: str, error: yaml.YAMLError) -> ConfigError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return ConfigError(f"{_where(file, mark) if mark else file}: this is no YAML: {problem}")


class Table:
    """Keys and values, each taken once; `close` complains of those that nobody took."""

    def __init__(self, value: Value) -> None:
        if not isinstance(value.node, yaml.MappingNode):
            value.expected("keys and values")
        self.value = value
        self._known: list[str] = []
        self._given: dict[str, tuple[Value, Value]] = {}
        for key_node, node in value.node.value:
            key = value.below(key_node, value.path)
            name = key.scalar()
            if not isinstance(name, str):
                key.fail(f"a key is a text, not {key.shown()}", "write it in quotes")
            path = f"{value.path}.{name}" if value.path else name
            if name in self._given:
                value.below(key_node, path).fail(f"stands twice, first at line {self.line(name)}", "leave one out")
            self._given[name] = (value.below(key_node, path), value.below(node, path))

    def line(self, key: str) -> int:
        return int(self._given[key][0].node.start_mark.line) + 1

    def entries(self) -> list[tuple[str, Value]]:
        """Every key: its text, and where it stands."""
        return [(name, key) for name, (key, _) in self._given.items()]

    def take(self, key: str, read: Reader[T], default: Any = REQUIRED) -> Any:
        """What stands under `key`. Raises ConfigError if it is missing and has no default."""
        self._known.append(key)
        if key in self._given:
            return read(self._given[key][1])
        if default is REQUIRED:
            self.value.fail(f"the key `{key}` is missing", self._nearest(key, self._given))
        return default

    def close(self) -> None:
        """All that belongs here has been taken: what is left is a mistake."""
        for name, (key, _) in self._given.items():
            if name not in self._known:
                key.fail(
                    "there is no such key here",
                    self._nearest(name, self._known) or f"the keys are {_list(self._known)}",
                )

    @staticmethod
    def _nearest(word: str, known: Iterable[str]) -> str:
        near = difflib.get_close_matches(word, list(known), 1, 0.6)
        return f"do you mean `{near[0]}`?" if near else ""


def _list(words: Iterable[str]) -> str:
    return ", ".join(words)


# -- readers -----------------------------------------------------------------------------------------------------------


def text(what: str = "a text", pattern: str = r"(?s:.+)") -> Reader[str]:
    """A text that is like this."""

    def read(value: Value) -> str:
        found = value.scalar()
        if not isinstance(found, str):
            value.expected(what + (", which stands in quotes" if isinstance(found, bool | int | float) else ""))
        if re.fullmatch(pattern, found) is None:
            value.expected(what)
        return found

    return read


def word_of(*words: str) -> Reader[str]:
    """One of these."""

    def read(value: Value) -> str:
        found = value.scalar()
        if found not in words:
            near = difflib.get_close_matches(str(value.node.value), words, 1, 0.5) if isinstance(found, str) else []
            value.fail(
                f"expected {' or '.join(words)}, found {value.shown()}", f"do you mean `{near[0]}`?" if near else ""
            )
        return str(found)

    return read


def integer(least: int, most: int) -> Reader[int]:
    """A whole number of this range."""

    def read(value: Value) -> int:
        found = value.scalar()
        if isinstance(found, bool) or not isinstance(found, int) or not least <= found <= most:
            value.expected(f"a whole number from {least} to {most}")
        return found

    return read


def amount(value: Value) -> float:
    """A number that is not negative."""
    found = value.scalar()
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found < float("inf"):
        value.expected("a number, 0 or more")
    return float(found)


def list_of(read: Reader[T]) -> Reader[list[T]]:
    """A list of such values."""

    def read_all(value: Value) -> list[T]:
        if not isinstance(value.node, yaml.SequenceNode):
            value.expected("a list")
        return [read(value.below(node, f"{value.path}[{number}]")) for number, node in enumerate(value.node.value)]

    return read_all


def mapping_of(read: Reader[T], what: str, key_pattern: str) -> Reader[dict[str, T]]:
    """Names of one's own with such values. what: what a key is, for the complaint."""

    def read_all(value: Value) -> dict[str, T]:
        table = Table(value)
        for name, key in table.entries():
            if re.fullmatch(key_pattern, name) is None:
                key.fail(f"{name!r} is no {what}")
        return {name: table.take(name, read) for name, _ in table.entries()}

    return read_all
