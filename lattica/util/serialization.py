"""How instances of a class travel, where pickle knows no way or not the right one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lattica.actors import values
from lattica.errors import ConfigError


def register_serializer(cls: type, *, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any]) -> None:
    """From now on what this process sends of `cls` is `serializer(instance)`, which must pickle, and whoever receives
    it has `deserializer` of that. Instances that other processes send are their matter: they must register it, too. Of
    subclasses nothing changes. Raises ConfigError for what is no class, or whose way is fixed."""
    if not isinstance(cls, type) or cls in values.FIXED:
        words = ", ".join(sorted(kind.__name__ for kind in values.FIXED))
        raise ConfigError(f"{cls!r:.80} is no class of yours", do_next=f"give any class but {words}")
    if not (callable(serializer) and callable(deserializer)):
        raise ConfigError("serializer and deserializer must be functions of one argument")
    values.REDUCERS[cls] = lambda instance: (deserializer, (serializer(instance),))


def deregister_serializer(cls: type) -> None:
    """Instances of `cls` travel as if nothing had been registered."""
    values.REDUCERS.pop(cls, None)
