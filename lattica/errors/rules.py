"""Rules of the mesh and the wire, failures of lattica itself, and signals between a runtime and its callers."""

from __future__ import annotations

from lattica.errors.base import LatticaError, short_id


class PermissionDeniedError(LatticaError):
    """This peer's roles do not allow it; `role` is the one that is missing."""

    role: str = ""
    peer: str = ""
    action: str = ""

    def _describe(self) -> str:
        who = f"peer {short_id(self.peer)}" if self.peer else "this peer"
        return f"{who} may not {self.action or 'do this'}: its certificate lacks the role {self.role or '?'}."


class AdmissionError(LatticaError):
    """The mesh does not let this peer in: what it shows is not, or no longer, what proves a member."""

    summary = "the mesh does not let this peer in"
    advice = "ask somebody of the mesh for a ticket (`lattica ticket` there), then `lattica join TICKET` here"


class ProtocolError(LatticaError):
    """Someone broke the rules of the wire."""

    summary = "the rules of the wire were broken"


class LocalProtocolError(ProtocolError):
    """It was us: a bug of lattica, or a call out of its turn."""

    advice = "report it, with the message above"


class RemoteProtocolError(ProtocolError):
    """It was the peer. The connection is dropped; nothing it sent after this is believed."""


class InternalError(LatticaError):
    """lattica itself failed, in a way no caller could have avoided."""

    summary = "lattica failed inside"
    advice = "report it, with the node's log"


class StreamReplayError(InternalError):
    """An item of a generator was lost, and when the generator ran again it did not come that far."""

    summary = "a generator that ran again gave another number of values than the first time"
    advice = "make the generator deterministic, or give it max_retries=0"


class ChannelError(InternalError):
    """Ray's, of compiled graphs; never raised."""

    summary = "a channel failed"


class ChannelTimeoutError(ChannelError, TimeoutError):
    """Ray's, of compiled graphs; never raised."""

    summary = "a channel was not read or written in time"
    advice = "try again with a longer timeout"


class GraphCapacityError(InternalError):
    """Ray's, of compiled graphs; never raised."""

    summary = "a compiled graph has its limit of results in flight"
    advice = "get earlier results first"


class DirectTransportError(InternalError):
    """Ray's, of tensors that go from device to device; never raised."""

    summary = "a direct transfer between devices failed"


# ---- signals between a runtime and its callers --------------------------------------------------------------------


class ActorExit(LatticaError):
    """Raised inside an actor by `exit_actor()`: the runtime ends the actor when it arrives."""

    summary = "the actor ends by its own wish"


class StreamEndedError(LatticaError):
    """Ray's, of generators that are read by `next`; never raised."""

    summary = "the generator has no more values"


class UserCodeError(LatticaError):
    """User code raised inside a library; libraries wrap it so that `retry_exceptions` sees its `__cause__`."""

    summary = "user code raised"


class CallFailedError(LatticaError):
    """A method of a service raised, on the peer that was called; `type_name` is the class of what it raised."""

    summary = "the method that was called raised"
    advice = "the traceback of the other side is in `remote_traceback`"

    type_name: str = ""
    remote_traceback: str = ""


class CrossLanguageError(LatticaError):
    """Ray's, of tasks in Java and C++; never raised."""

    summary = "code in another language raised"
