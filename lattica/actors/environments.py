"""The environments of one process: its own, and those that it asks for, each told to its node once.

    f.remote() ── runtime_env ──► key() ── EnvironmentIs, the first time ──► node      then LeaseRequest names the key

What a task or actor asks for lies over what this process has itself, so that children inherit. Folders are packed when
they are first asked for; how is not known here, but given by whoever composes the process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from lattica.actors.equipment import WORKER_IMPORTS
from lattica.codec import messages as m
from lattica.errors import ConfigError

if TYPE_CHECKING:
    from lattica.actors.runtime import Runtime
    from lattica.scheduler.environments import Environment, Travels, Wanted

ENVIRONMENTS_MAX = 4096
"""Of one process: a program that makes one for each of its tasks has mistaken it for an argument (1 KB each)."""


class Folder(Protocol):
    """Where packages lie, for as long as it is held."""

    path: str

    def close(self) -> None: ...


LayOut = Callable[["Wanted"], tuple[list["Travels"], Folder | None]]


class Environments:
    """See the module. own: of this process; None: nothing. lay_out: packs folders."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.own: Environment | None = None
        self.lay_out: LayOut | None = None
        self._told: set[bytes] = set()
        self._laid: dict[tuple[Any, ...], tuple[list[Travels], Folder | None]] = {}

    def __repr__(self) -> str:
        return f"<Environments: {len(self._told)} asked for>"

    def key(self, given: Mapping[str, Any] | None) -> bytes:
        """By which the node knows what a task or actor wants; empty: what this process has. Without the lock.

        Raises ConfigError for what cannot be had.
        """
        if not given:
            return b""
        from lattica.scheduler import environments as pure

        own = self.own or pure.NOTHING
        wanted = pure.read(given)
        packages, folder = self._packed(wanted)
        environment = pure.merged(own, wanted, packages, folder.path if folder is not None else "")
        key = pure.key_of(environment)
        if key == pure.key_of(own):
            return b""
        if key not in self._told:
            if len(self._told) >= ENVIRONMENTS_MAX:
                raise ConfigError(
                    f"this process has asked for {ENVIRONMENTS_MAX} different environments",
                    do_next="give what differs from task to task as an argument",
                )
            runtime = self._runtime
            with runtime.lock:
                self._told.add(key)
                runtime.tell_node(m.EnvironmentIs(key, pure.encode(environment)))
        return key

    def described(self) -> dict[str, Any]:
        """This process's own, as a `runtime_env`."""
        from lattica.scheduler import environments as pure

        own = self.own or pure.NOTHING
        variables = {name: value for name, value in own.env_vars.items() if name != WORKER_IMPORTS}  # not the user's
        return pure.described(msgspec.structs.replace(own, env_vars=variables))

    def close(self) -> None:
        """The process ends its session: folders of its own go, unless the node still holds them."""
        for _, folder in self._laid.values():
            if folder is not None:
                folder.close()
        self._laid.clear()

    def _packed(self, wanted: Wanted) -> tuple[list[Travels], Folder | None]:
        if wanted.working_dir is None and not wanted.py_modules:
            return [], None
        assert self.lay_out is not None, "a process that runs tasks can pack folders"
        names = tuple(module if isinstance(module, str) else id(module) for module in wanted.py_modules or ())
        place = wanted.working_dir, names, wanted.excludes
        if place not in self._laid:
            self._laid[place] = self.lay_out(wanted)
        return self._laid[place]
