"""Values that are not here, are lost, or find no room."""

from __future__ import annotations

from lattica.errors.base import LatticaError, ago, short_id


class _ObjectError(LatticaError):
    """What the errors about one object share: its id (hex), its owner in words, and since when."""

    object_id: str = ""
    owner: str = ""
    since_s: float | None = None

    def _describe(self) -> str:
        return f"object {short_id(self.object_id)} {self.summary}{ago(self.since_s)}."

    @property
    def object_ref_hex(self) -> str:
        """Ray's name for `object_id`."""
        return self.object_id

    @property
    def call_site(self) -> str:
        """Ray's name for `made_at`."""
        return self.made_at


class ObjectNotAvailableError(_ObjectError):
    """It may exist elsewhere; this node has nothing of it to give."""

    summary = "is not here yet"
    advice = "ask again, or wait for it with lattica.wait"


class ObjectLostError(_ObjectError):
    """The value is gone everywhere; compute it again."""

    summary = "is lost: no copy exists"
    advice = "call it again, or put it again if it was a value of your own"


class OwnerDiedError(ObjectLostError):
    """The process that made the object has ended, and nobody else had a copy."""

    def _describe(self) -> str:
        name = short_id(self.object_id)
        if self.owner and self.since_s is None:  # what happened to whoever had it, in a sentence
            return f"object {name} is lost, and no copy is left: {self.owner.rstrip('.')}."
        owner = f"its owner, {self.owner}," if self.owner else "its owner"
        return f"object {name} is lost: {owner} left{ago(self.since_s)}; no copy exists."


class ObjectFetchTimedOutError(ObjectLostError):
    """It lies on other nodes, as far as is known, and none of them sent it."""

    summary = "could not be fetched: no holder answered"
    advice = "look at the network with `lattica doctor`, or call it again"


class ObjectFreedError(ObjectLostError):
    """Ray's, of objects that a program frees by hand; never raised: refs are counted."""

    summary = "was freed by the program"
    advice = "free an object only when nobody needs it; put it again"


class ObjectReconstructionFailedError(ObjectLostError):
    """The value is lost, and what made it cannot run again: `reason_message` says why."""

    summary = "is lost and cannot be computed again"
    advice = "call it again; a result of a task with max_retries left is made again by itself"

    reason_message: str = ""

    def _describe(self) -> str:
        lost = f": {self.owner.rstrip('.')}" if self.owner else ""
        why = f"; it cannot be computed again, since {self.reason_message}" if self.reason_message else ""
        return f"object {short_id(self.object_id)} is lost{lost}{why}."


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """Ray's, of a count of holders that was wrong; never raised."""

    summary = "was deleted while a reference to it lived; this is a bug of lattica"
    advice = "report it, with the node's log"


class ObjectStoreFullError(LatticaError):
    """Pinned values fill the quota. `holders` says in words who pins how much."""

    advice = (
        "drop arrays and refs that you no longer need (`lattica memory` lists them), make smaller values, or give the "
        "store more: init(object_store_memory=...)"
    )

    wanted_bytes: int | None = None
    used_bytes: int | None = None
    quota_bytes: int | None = None
    holders: str = ""

    def _describe(self) -> str:
        wanted = "a value" if self.wanted_bytes is None else f"a value of {self.wanted_bytes:,} bytes"
        used = ""
        if self.used_bytes is not None and self.quota_bytes is not None:
            used = f": {self.used_bytes:,} of {self.quota_bytes:,} bytes are pinned"
        return f"{wanted} does not fit into the object store{used}{f' by {self.holders}' if self.holders else ''}."


class OutOfDiskError(ObjectStoreFullError):
    """The object store is full, and nothing more can go to the disk that it spills to."""

    advice = "free disk space, name a larger disk (lattica start --spill-dir), or drop refs you no longer need"

    def _describe(self) -> str:
        return "the object store is full and so is the disk it spills to."
