"""Ray's names for lattica's errors, so that an `except` clause moves over unchanged.

Each name is one of the classes of `lattica.errors`, not a copy: `except lattica.exceptions.RayTaskError` and
`except lattica.errors.TaskError` catch the same. All names of `ray.exceptions` in Ray 2.60 are here, also of features
that lattica has not (compiled graphs, direct transport): their `except` clauses import, and never fire.
"""

# ruff: noqa: F401
# Every import here is a re-export under a name of Ray's.

from lattica.errors import ActorAlreadyExistsError as ActorAlreadyExistsError
from lattica.errors import ActorDiedError as ActorDiedError
from lattica.errors import ActorError as RayActorError
from lattica.errors import ActorExit as AsyncioActorExit
from lattica.errors import ActorHandleNotFoundError as ActorHandleNotFoundError
from lattica.errors import ActorPlacementGroupRemovedError as ActorPlacementGroupRemoved
from lattica.errors import ActorUnavailableError as ActorUnavailableError
from lattica.errors import ActorUnschedulableError as ActorUnschedulableError
from lattica.errors import ChannelError as RayChannelError
from lattica.errors import ChannelTimeoutError as RayChannelTimeoutError
from lattica.errors import CrossLanguageError as CrossLanguageError
from lattica.errors import DirectTransportError as RayDirectTransportError
from lattica.errors import GetTimeoutError as GetTimeoutError
from lattica.errors import GraphCapacityError as RayCgraphCapacityExceeded
from lattica.errors import InternalError as RaySystemError
from lattica.errors import LatticaError as RayError
from lattica.errors import LocalNodeDiedError as LocalRayletDiedError
from lattica.errors import NodeDiedError as NodeDiedError
from lattica.errors import ObjectFetchTimedOutError as ObjectFetchTimedOutError
from lattica.errors import ObjectFreedError as ObjectFreedError
from lattica.errors import ObjectLostError as ObjectLostError
from lattica.errors import ObjectNotAvailableError as PlasmaObjectNotAvailable
from lattica.errors import ObjectReconstructionFailedError as ObjectReconstructionFailedError
from lattica.errors import ObjectStoreFullError as ObjectStoreFullError
from lattica.errors import OutOfBandRefError as OufOfBandObjectRefSerializationException
from lattica.errors import OutOfDiskError as OutOfDiskError
from lattica.errors import OutOfMemoryError as OutOfMemoryError
from lattica.errors import OwnerDiedError as OwnerDiedError
from lattica.errors import PeerUnreachableError as RpcError
from lattica.errors import PendingCallsLimitExceededError as PendingCallsLimitExceeded
from lattica.errors import PermissionDeniedError as AuthenticationError
from lattica.errors import ReferenceCountingAssertionError as ReferenceCountingAssertionError
from lattica.errors import RuntimeEnvSetupError as RuntimeEnvSetupError
from lattica.errors import SerializationError as UnserializableException
from lattica.errors import StreamEndedError as ObjectRefStreamEndOfStreamError
from lattica.errors import StreamReplayError as StreamingGeneratorReplayInconsistentError
from lattica.errors import TaskCancelledError as TaskCancelledError
from lattica.errors import TaskError as RayTaskError
from lattica.errors import TaskPlacementGroupRemovedError as TaskPlacementGroupRemoved
from lattica.errors import TaskUnschedulableError as TaskUnschedulableError
from lattica.errors import UserCodeError as UserCodeException
from lattica.errors import WorkerCrashedError as WorkerCrashedError

RAY_EXCEPTION_TYPES = [
    PlasmaObjectNotAvailable,
    RayError,
    RayTaskError,
    WorkerCrashedError,
    RayActorError,
    ObjectStoreFullError,
    ObjectLostError,
    ObjectFetchTimedOutError,
    ReferenceCountingAssertionError,
    ObjectReconstructionFailedError,
    OwnerDiedError,
    GetTimeoutError,
    AsyncioActorExit,
    RuntimeEnvSetupError,
    TaskPlacementGroupRemoved,
    ActorPlacementGroupRemoved,
    PendingCallsLimitExceeded,
    LocalRayletDiedError,
    TaskUnschedulableError,
    ActorDiedError,
    ActorUnschedulableError,
    ActorUnavailableError,
    RayChannelError,
    RayChannelTimeoutError,
    OufOfBandObjectRefSerializationException,
    RayCgraphCapacityExceeded,
    UnserializableException,
    ActorAlreadyExistsError,
    ActorHandleNotFoundError,
    AuthenticationError,
]
