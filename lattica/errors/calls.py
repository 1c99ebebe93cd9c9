"""A call that cannot work as it is written, and one that nobody answered."""

from __future__ import annotations

from lattica.errors.base import LatticaError, ago, short_id


class ConfigError(LatticaError, ValueError):
    """This call can never work as written; change it. Also a ValueError, which is what Ray raises in these places."""

    summary = "this call can never work as written"


class WrongTypeError(ConfigError, TypeError):
    """A value of another kind. Ray raises a TypeError in some of these places, and a ValueError in others."""

    summary = "this call takes values of another type"


class AlreadyInitializedError(ConfigError, RuntimeError):
    """`init` in a process that has a session. Ray raises a RuntimeError here."""

    summary = "lattica.init() was called already in this process"
    advice = "leave it out, pass ignore_reinit_error=True, or call lattica.shutdown() first"


class ActorAlreadyExistsError(ConfigError):
    """Names are unique in a namespace, for as long as their actor lives."""

    summary = "an actor of this name exists"
    advice = "choose another name, or pass get_if_exists=True to share the one that exists"


class ActorInheritanceError(ConfigError, TypeError):
    """A class with an actor class as its base. Ray raises a TypeError here."""

    summary = "an actor class cannot be a base"
    advice = "derive from the class as it was before @remote, and make the derived one remote"


class ActorHandleNotFoundError(ConfigError):
    """The node that knew the actor ended with its session."""

    summary = "this actor handle belongs to a session that has ended"
    advice = "make the actor again, or get it by name with lattica.get_actor(...)"


class SerializationError(LatticaError, TypeError):
    """A value cannot become bytes or come back. `path` names the attribute, e.g. `Trainer.lock`. Also a TypeError."""

    summary = "a value could not be serialized"

    path: str = ""
    type_name: str = ""

    def _describe(self) -> str:
        if not self.path:
            return self.summary
        return f"{self.path}{f' (a {self.type_name})' if self.type_name else ''} could not be pickled."


class OutOfBandRefError(SerializationError):
    """Only what lattica pickles itself is counted; the object could be freed under such a ref."""

    summary = "an ObjectRef was pickled outside of lattica, where nobody can count it"
    advice = "pass the ref as an argument or inside a value that you put"


class PeerUnreachableError(LatticaError):
    """Nobody answered at the peer's addresses. Calls that may be repeated can be."""

    advice = "try again, or look at the network with `lattica doctor`"

    peer: str = ""
    since_s: float | None = None
    may_have_run: bool = False  # the call was sent, and nobody knows what became of it

    def _describe(self) -> str:
        last = "" if self.since_s is None else f"; last heard of{ago(self.since_s)}"
        return f"peer {short_id(self.peer)} did not answer{last}."


class GetTimeoutError(LatticaError, TimeoutError):
    """The wait ended, the work did not: it may still happen."""

    advice = "wait again with a longer timeout, or lattica.cancel(ref) if the result is no longer wanted"

    timeout_s: float | None = None
    waiting_for: str = ""

    def _describe(self) -> str:
        within = "in time" if self.timeout_s is None else f"within {self.timeout_s:g} s"
        return f"{self.waiting_for or 'the result'} did not come {within}."
