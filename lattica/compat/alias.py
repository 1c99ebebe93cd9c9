"""One package under another's name: `import ray.util.queue` gives `lattica.util.queue`, the same module.

A finder at the front of `sys.meta_path` answers for every name of the other package, so that ours wins in this process
even where the other one is installed. Nothing is loaded twice, and what is asked for is imported only then.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class Alias(Loader, MetaPathFinder):
    """Of the package `name`; the module that stands for the package itself is put in `sys.modules` by its owner."""

    def __init__(self, name: str, rooms: Mapping[str, str], missing: Callable[[str], str]) -> None:
        """rooms: names directly below the package -> the modules that they are; what is below those follows.

        missing: the words of the ModuleNotFoundError for a name that there is not.
        """
        self.name, self._rooms, self._missing = name, dict(rooms), missing

    def __repr__(self) -> str:
        return f"<Alias {self.name}: {', '.join(sorted(self._rooms))}>"

    def real(self, name: str) -> str | None:
        """The module that `name` is another name of; None if there is none."""
        _, room, *below = name.split(".")
        if room not in self._rooms:
            return None
        real = ".".join([self._rooms[room], *below])
        try:
            return real if importlib.util.find_spec(real) is not None else None
        except ModuleNotFoundError:  # its parent is no package
            return None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raises ModuleNotFoundError for what is below our package and has no module: no other finder shall look."""
        if not fullname.startswith(f"{self.name}."):
            return None
        if self.real(fullname) is None:
            raise ModuleNotFoundError(self._missing(fullname), name=fullname)
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> None:
        """Python makes an empty one, which `exec_module` puts the real one in the place of."""

    def exec_module(self, module: ModuleType) -> None:
        """Modules that the real one has loaded below itself get their other names too: Python would set each as an
        attribute of its parent when it is imported first, over a function of the same name."""
        name = module.__name__
        real = self.real(name)
        assert real is not None, f"{name} was found a moment ago"
        sys.modules[name] = importlib.import_module(real)
        for below in [each for each in sys.modules if each.startswith(f"{real}.")]:
            sys.modules.setdefault(name + below.removeprefix(real), sys.modules[below])
