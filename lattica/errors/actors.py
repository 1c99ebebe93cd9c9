"""Actors that died, are cut off, or can never live; and calls that they do not take."""

from __future__ import annotations

from lattica.errors.base import LatticaError, ago, short_id


class ActorError(LatticaError):
    """An actor did not finish a call. `actor` is its class name, `actor_id` hex; a subclass says what to do.

    init_failed: its constructor raised (`cause_text` has the remote traceback). preempted: its machine was taken back.
    """

    summary = "did not finish the call"

    actor_id: str = ""
    actor: str = ""
    node: str = ""
    since_s: float | None = None
    reason: str = ""
    init_failed: bool = False
    preempted: bool = False
    cause_text: str = ""

    def _describe(self) -> str:
        name = " ".join(filter(None, ("actor", self.actor, self.actor_id and short_id(self.actor_id))))
        place = f" on node {short_id(self.node)}" if self.node else ""
        why = f": {self.reason}" if self.reason else ""
        return f"{name}{place} {self.summary}{ago(self.since_s)}{why}."

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}\n\n{self.cause_text.rstrip()}" if self.cause_text else text

    @property
    def error_msg(self) -> str:
        """Ray's name for the message."""
        return str(self)

    @property
    def actor_init_failed(self) -> bool:
        """Ray's name for `init_failed`."""
        return self.init_failed


ENDED_ON_PURPOSE = "make a new actor; this one was ended on purpose"
"""What to do next about an actor that `kill`, `exit_actor` or `sys.exit(0)` has ended."""


class ActorDiedError(ActorError):
    """It is gone for good: its restarts are spent, it was killed, or its constructor raised."""

    summary = "died"
    advice = "make a new actor; one with max_restarts=3 begins again when its process or machine is lost"


class ActorUnavailableError(ActorError):
    """It is restarting or cut off. The call may have run, or may not."""

    summary = "is unavailable (the call may have run)"
    advice = "try again, or give it max_task_retries to have calls repeated"


class ActorFencedError(ActorError):
    """The handle is of a life of the actor that is over; it lives on elsewhere, under the same name."""

    summary = "was superseded: a newer incarnation runs elsewhere"
    advice = "get the actor again by its name with lattica.get_actor(...)"


class ActorUnschedulableError(LatticaError):
    """What it asks for is more than any node of the mesh has in all."""

    summary = "no living node can ever run this actor"
    advice = "ask for less, or add a node that has it; `lattica status` shows what there is"


class ActorPlacementGroupRemovedError(LatticaError):
    """Its bundle ended, and with it the only place where it may run."""

    summary = "the placement group of this actor was removed"
    advice = "make a new placement group, then the actor in it"


class PendingCallsLimitExceededError(LatticaError):
    """The caller's queue at this actor is at `max_pending_calls`; the call was not sent."""

    advice = "wait for earlier calls first (lattica.wait), or raise max_pending_calls"

    actor: str = ""
    limit: int | None = None

    def _describe(self) -> str:
        limit = "" if self.limit is None else f" {self.limit}"
        return f"actor {self.actor or '?'} has{limit or ' too many'} calls pending, its limit; this one was not sent."
