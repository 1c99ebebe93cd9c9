"""Names that an actor's own code uses, where Ray has them: `lattica.actor.exit_actor()`."""

from __future__ import annotations

from lattica.actors.actor_host import exit_actor
from lattica.actors.handles import ActorClass, ActorHandle, ActorMethod

__all__ = ["ActorClass", "ActorHandle", "ActorMethod", "exit_actor"]
