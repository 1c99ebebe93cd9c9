"""Names that an actor's own code uses, where Ray has them: `lattica.actor.exit_actor()`."""

from __future__ import annotations

from lattica.actors.actor_host import exit_actor
from lattica.actors.handles import ActorClass, ActorHandle, ActorMethod, method
from lattica.errors import ActorInheritanceError as ActorClassInheritanceException

__all__ = ["ActorClass", "ActorClassInheritanceException", "ActorHandle", "ActorMethod", "exit_actor", "method"]
