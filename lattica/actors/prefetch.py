"""Arguments of actor calls that lie on other machines: they are fetched before their call starts (see `lines`).

A shell between the mailbox, which says whose arguments are to come next, and the objects of this process. Methods are
called with the reactor's lock held.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lattica.actors.refs import Hold, InPlace
from lattica.codec import messages as m

if TYPE_CHECKING:
    from lattica.actors.lines import Lines
    from lattica.actors.runtime import Runtime


class Prefetch:
    """Of one actor. changed: is told when a call may start that could not before."""

    def __init__(self, runtime: Runtime, lines: Lines[m.Call], changed: Callable[[], None]) -> None:
        self._runtime, self._lines, self._changed = runtime, lines, changed
        self.kept: dict[
            tuple[int, int], list[Any]
        ] = {}  # (caller, number) -> its arguments, as this process keeps them

    def __repr__(self) -> str:
        return f"<Prefetch: arguments of {len(self.kept)} calls>"

    def arrived(self, caller: int, via: int, call: m.Call) -> None:
        """A call with arguments has come, for the first time: what is not here is to be fetched. via: `caller`, if it
        is on another machine."""
        sent = (call.args, *call.deps)
        if not any(type(value) is m.InArena and (via or value.offset < 0) for value in sent):
            return
        kept = self.kept[caller, call.seq] = [self._runtime.objects.from_wire(value, via) for value in sent]
        away = self._away(kept)
        if away:
            self._lines.wait_for_arguments(caller, call, sum(hold.size for hold in away))

    def go_on(self) -> None:
        """Calls have come, begun or gone: fetch what is next."""
        for caller, call in self._lines.to_fetch():
            self._look((caller, call.seq))

    def take(self, caller: int, seq: int) -> list[Any] | None:
        """A call begins, or never will: its arguments, if they were fetched or were to be."""
        return self.kept.pop((caller, seq), None)

    def _away(self, kept: list[Any]) -> list[Hold]:
        """Those that are not here, and not known to be lost."""
        lost = self._runtime.objects.lost
        away, holds = self._runtime.objects.away, [value.hold for value in kept if type(value) is InPlace]
        return [hold for hold in holds if away(hold) and lost(hold.id) is None]

    def _look(self, key: tuple[int, int]) -> None:
        """Whether all has come for a call. What its own process has lost is made again, and asked for once more."""
        kept = self.kept.get(key)
        if kept is None:
            return
        away = self._away(kept)
        if away:
            self._runtime.objects.fetch(away, functools.partial(self._look, key))
            self._runtime.nudge_node()
        else:
            self._lines.fetched(*key)
            self._changed()
