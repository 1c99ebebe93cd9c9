"""Checkpoints of an actor: what its class offers, taken between calls, given to its node, put back after a restart.

    class Learner:
        def __lattica_checkpoint__(self): return self.weights      # anything that pickles; no refs, no handles
        def __lattica_restore__(self, state): self.weights = state  # after the constructor has run

Taken after a call, at most every `checkpoint_every` seconds, and once more when calls have ceased; never while a method
of a sync actor runs, between awaits of an async one, and beside other threads' calls of a threaded one. A small one
goes in a message; a large one through the arena, from which the node copies it (`node.checkpoint_desk`).
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from lattica.actors import values
from lattica.actors.objects import INLINE_MAX
from lattica.codec import messages as m

if TYPE_CHECKING:
    from lattica.actors.runtime import Runtime

EVERY_S = 10.0
"""Shorter: an actor of 256 MiB writes its nodes' disks all the time; longer: more is lost."""
STATE_MAX_BYTES = 256 << 20  # it lies on the disks of several nodes


class Checkpoints:
    """Of one incarnation. every_s: None for the default."""

    def __init__(self, runtime: Runtime, actor: bytes, class_name: str, every_s: float | None) -> None:
        self.every_s = EVERY_S if every_s is None else every_s
        self._runtime, self._actor, self._class_name = runtime, actor, class_name
        self._instance: Any = None
        self._dirty = False  # calls have run since the last one
        self._taken_at = time.monotonic()
        self._taking = threading.Lock()
        self._said = ""
        self.wanted = False  # by the node, which goes
        self.on = False  # whether the class offers them

    def begin(self, instance: Any, state: bytes, fd: int = -1) -> None:
        """The constructor has run. state: of the incarnation before; empty if there is none. fd: to read it from, which
        is closed."""
        if hasattr(instance, "__lattica_checkpoint__"):
            self._instance, self.on = instance, True
        if fd >= 0:
            with open(fd, "rb") as file:
                file.seek(0)
                state = file.read()
        if state and hasattr(instance, "__lattica_restore__"):
            instance.__lattica_restore__(values.loads(state, self._runtime))
        self._taken_at = time.monotonic()

    def left_s(self) -> float | None:
        """Until the next is due; None while there is nothing new."""
        if self._instance is None or not (self._dirty or self.wanted):
            return None
        return 0.0 if self.wanted else max(self._taken_at + self.every_s - time.monotonic(), 0.0)

    def note(self) -> bool:
        """A call has ended. Whether a checkpoint is due."""
        if self._instance is None:
            return False
        self._dirty = True
        return time.monotonic() >= self._taken_at + self.every_s

    def ran(self) -> None:
        """A call has ended: take one if it is due."""
        if self.note():
            self.take_if_due()

    def take_if_due(self) -> None:
        """Between calls. What goes wrong is said, and the actor lives on."""
        left = self.left_s()
        if left is None or left > 0 or not self._taking.acquire(False):
            return
        try:
            self._dirty = self.wanted = False
            self._taken_at = time.monotonic()
            data = values.dumps(self._instance.__lattica_checkpoint__(), f"the checkpoint of {self._class_name}")
            if data.refs:
                self._say("it holds refs or handles, which nobody could count")
            elif data.size > STATE_MAX_BYTES:
                self._say(f"it has {data.size >> 20} MiB, and may have {STATE_MAX_BYTES >> 20}")
            elif data.size <= INLINE_MAX:
                self._tell(m.ActorCheckpoint(self._actor, data.join()))
            else:
                self._through_the_arena(data)
        except Exception as error:
            self._say(f"{type(error).__name__}: {error}")
        finally:
            self._taking.release()

    def _tell(self, message: m.ActorCheckpoint) -> None:
        with self._runtime.lock:
            self._runtime.tell_node(message)
            self._runtime.reactor.flush()

    def _through_the_arena(self, data: values.Serialized) -> None:
        """The node is given a hold on the bytes, which it lets go once it has copied them. Raises
        ObjectStoreFullError."""
        objects = self._runtime.objects
        hold = objects.store(data, self._runtime.new_id())
        with self._runtime.lock:
            object_ = objects.give(hold, m.NODE)
            self._runtime.tell_node(m.ActorCheckpoint(self._actor, b"", object_, b"", data.size))
            self._runtime.reactor.flush()

    def _say(self, what: str) -> None:
        if what != self._said:  # once, not every ten seconds
            self._said = what
            print(f"no checkpoint of {self._class_name} was taken: {what}", file=sys.stderr)
