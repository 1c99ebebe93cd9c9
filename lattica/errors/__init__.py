"""Every error a user of lattica can meet, branching by what the caller does next.

    LatticaError
    ├── ConfigError                    this call can never work; change it (also a ValueError)
    │   ├── WrongTypeError               a value of another kind is wanted (also a TypeError)
    │   ├── AlreadyInitializedError      init was called twice; leave one out (also a RuntimeError)
    │   ├── ActorAlreadyExistsError      take another name, or ask with get_if_exists
    │   ├── ActorInheritanceError        derive from the plain class (also a TypeError)
    │   └── ActorHandleNotFoundError     the handle is of an earlier session; make a new one
    ├── SerializationError             a value cannot travel; says which attribute (also a TypeError)
    │   └── OutOfBandRefError            a ref left by another pickler; pass it as an argument
    ├── PeerUnreachableError           nobody answered; retry, or look at the network (`lattica doctor`)
    ├── GetTimeoutError                too slow this time; it may still happen (also a TimeoutError)
    ├── ObjectNotAvailableError        not here yet; ask again
    ├── ObjectLostError                the value is gone; compute it again
    │   ├── OwnerDiedError
    │   ├── ObjectFetchTimedOutError
    │   ├── ObjectFreedError
    │   ├── ObjectReconstructionFailedError
    │   └── ReferenceCountingAssertionError   (also an AssertionError; a bug of ours)
    ├── ActorError
    │   ├── ActorDiedError               restarts are spent; make a new actor
    │   ├── ActorUnavailableError        it is restarting or cut off; try again
    │   └── ActorFencedError             a newer incarnation won; get the actor by name again
    ├── TaskError                      user code raised; also an instance of its class, with the remote traceback
    ├── TaskCancelledError · WorkerCrashedError · OutOfMemoryError
    ├── NodeDiedError
    │   └── LocalNodeDiedError           this machine's own node is gone; init again
    ├── ObjectStoreFullError
    │   └── OutOfDiskError
    ├── PendingCallsLimitExceededError   the actor's queue is full; slow down
    ├── RuntimeEnvSetupError · TaskUnschedulableError · ActorUnschedulableError
    ├── TaskPlacementGroupRemovedError · ActorPlacementGroupRemovedError
    ├── PermissionDeniedError          this peer's roles do not allow it; names the role
    ├── AdmissionError                 the mesh does not let this peer in; get a ticket, or the right one
    ├── ProtocolError                  someone broke the rules
    │   ├── LocalProtocolError           it was us: a bug
    │   └── RemoteProtocolError          it was the peer: drop the connection
    ├── InternalError                  lattica itself failed; tell us
    │   └── StreamReplayError · ChannelError (ChannelTimeoutError) · GraphCapacityError · DirectTransportError
    ├── CallFailedError                a method of a service raised, on the peer that was called
    └── ActorExit · StreamEndedError · UserCodeError · CrossLanguageError     signals between a runtime and its callers

Rules of this package. A message names what happened, to which id, where and since when; two lines may follow it:
`made at` (the user's own line) and `do next`. Every class can be built from keywords alone, and then words its own
message. All facts are plain data, so that an error travels as a pickle between workers and as a dict (`to_data`,
`from_data`) through the node, which never unpickles. Nothing heavy is imported: traceback once an error is at hand,
pickle never.

One file a subject; whoever catches imports from here, and every class says that it is of here, so that a pickle or a
printed traceback does not tell where a class lies. Ray's names for these classes stand in `exceptions.py`.
"""

from __future__ import annotations

from lattica.errors.actors import (
    ActorDiedError,
    ActorError,
    ActorFencedError,
    ActorPlacementGroupRemovedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    PendingCallsLimitExceededError,
)
from lattica.errors.base import (
    SHORT_ID_DIGITS,
    LatticaError,
    Plain,
)
from lattica.errors.calls import (
    ActorAlreadyExistsError,
    ActorHandleNotFoundError,
    ActorInheritanceError,
    AlreadyInitializedError,
    ConfigError,
    GetTimeoutError,
    OutOfBandRefError,
    PeerUnreachableError,
    SerializationError,
    WrongTypeError,
)
from lattica.errors.objects import (
    ObjectFetchTimedOutError,
    ObjectFreedError,
    ObjectLostError,
    ObjectNotAvailableError,
    ObjectReconstructionFailedError,
    ObjectStoreFullError,
    OutOfDiskError,
    OwnerDiedError,
    ReferenceCountingAssertionError,
)
from lattica.errors.remote_traceback import (
    REMOTE_TRACEBACK_MAX_CHARS,
    is_ours,
)
from lattica.errors.rules import (
    ActorExit,
    AdmissionError,
    CallFailedError,
    ChannelError,
    ChannelTimeoutError,
    CrossLanguageError,
    DirectTransportError,
    GraphCapacityError,
    InternalError,
    LocalProtocolError,
    PermissionDeniedError,
    ProtocolError,
    RemoteProtocolError,
    StreamEndedError,
    StreamReplayError,
    UserCodeError,
)
from lattica.errors.tasks import (
    STDERR_TAIL_MAX_CHARS,
    LocalNodeDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RuntimeEnvSetupError,
    TaskCancelledError,
    TaskPlacementGroupRemovedError,
    TaskUnschedulableError,
    WorkerCrashedError,
)
from lattica.errors.user_code import (
    DUAL_CLASSES_MAX,
    TaskError,
)

__all__ = [
    "ActorAlreadyExistsError",
    "ActorDiedError",
    "ActorError",
    "ActorExit",
    "ActorFencedError",
    "ActorHandleNotFoundError",
    "ActorInheritanceError",
    "ActorPlacementGroupRemovedError",
    "ActorUnavailableError",
    "ActorUnschedulableError",
    "AdmissionError",
    "AlreadyInitializedError",
    "CallFailedError",
    "ChannelError",
    "ChannelTimeoutError",
    "ConfigError",
    "CrossLanguageError",
    "DUAL_CLASSES_MAX",
    "DirectTransportError",
    "GetTimeoutError",
    "GraphCapacityError",
    "InternalError",
    "LatticaError",
    "LocalNodeDiedError",
    "LocalProtocolError",
    "NodeDiedError",
    "ObjectFetchTimedOutError",
    "ObjectFreedError",
    "ObjectLostError",
    "ObjectNotAvailableError",
    "ObjectReconstructionFailedError",
    "ObjectStoreFullError",
    "OutOfBandRefError",
    "OutOfDiskError",
    "OutOfMemoryError",
    "OwnerDiedError",
    "PeerUnreachableError",
    "PendingCallsLimitExceededError",
    "PermissionDeniedError",
    "Plain",
    "ProtocolError",
    "REMOTE_TRACEBACK_MAX_CHARS",
    "ReferenceCountingAssertionError",
    "RemoteProtocolError",
    "RuntimeEnvSetupError",
    "SHORT_ID_DIGITS",
    "STDERR_TAIL_MAX_CHARS",
    "SerializationError",
    "StreamEndedError",
    "StreamReplayError",
    "TaskCancelledError",
    "TaskError",
    "TaskPlacementGroupRemovedError",
    "TaskUnschedulableError",
    "UserCodeError",
    "WorkerCrashedError",
    "WrongTypeError",
    "is_ours",
]

for _value in list(globals().values()):
    if isinstance(_value, type) and _value.__module__.startswith("lattica.errors."):
        _value.__module__ = "lattica.errors"
del _value
