"""Job tokens: the word of a submitter's node that a job may run code, which travels with the job's tasks.

An executor asks who submitted the *root* task, not who sent this one: nested tasks run on nodes that may only execute,
and to execute does not become to submit. Whoever hosts a job's tasks holds its token, and may submit under that job
until the token expires: tokens are short-lived, and renewed by the submitter's node while the job runs.

A token carries the submitter's chain: an executor needs neither a session with it nor its certificate row, which may
not have come yet. The roles of that chain count, though the table may know a newer one with fewer: whoever shall not
submit any more is revoked, which `trust` knows from the table's statements, or its certificate ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import msgspec

from lattica.errors import AdmissionError, PermissionDeniedError, RemoteProtocolError
from lattica.ids import ID_BYTES, JobId
from lattica.mesh.certificates import BACKDATED_S
from lattica.mesh.identity import PeerId, peer_text
from lattica.mesh.papers import DAMAGED, Signs, read_paper, signer_of, write_paper
from lattica.mesh.roles import Role
from lattica.mesh.trust import Trust, when

TOKEN_MAX_BYTES = 8 << 10  # ours have 1.5 KB
TOKEN_MAX_S = 86400.0
"""Longest life. Longer: a node that hosted a task may submit under its job for longer. Shorter: a submitter that is
asleep or cut off loses its job sooner."""
LIMITS_MAX = 32  # names in a job's limits
LIMIT_MAX_CHARS = 64
AHEAD_MAX_S = BACKDATED_S  # of the submitter's clock, as for certificates
PURPOSE = "job token"


class _Body(msgspec.Struct, array_like=True, frozen=True):
    job: bytes
    limits: dict[str, float]
    issued: float
    expires: float


@dataclass(frozen=True, slots=True)
class Submission:
    """What a verified token says: this peer lets this job run code until then."""

    peer: PeerId  # the submitter of the root task
    roles: Role
    job: JobId
    limits: Mapping[str, float]
    expires: float  # unix seconds; the submitter's certificates end no earlier


def sign_token(
    job: JobId,
    limits: Mapping[str, float],
    issued: float,
    expires: float,
    *,
    signer: Signs,
    chain: Sequence[bytes],
    mesh: bytes,
) -> bytes:
    """The token of a job, by its submitter's node. limits: in whole units, by name. Cut to TOKEN_MAX_S."""
    body = _Body(job, dict(sorted(limits.items())), issued, min(expires, issued + TOKEN_MAX_S))
    return write_paper(PURPOSE, msgspec.msgpack.encode(body), signer, chain, mesh)


def verify_token(token: bytes, root: bytes, trust: Trust, now: float) -> Submission:
    """What the token allows. It takes a millisecond: keep the answer until it expires, or `trust` changes.

    Raises RemoteProtocolError if it is damaged, AdmissionError if it has expired or its signer is not, or no longer, a
    member, PermissionDeniedError if the signer lacks the role `submit`.
    """
    paper = read_paper(token, TOKEN_MAX_BYTES, "a job token")
    body = _read_body(paper.body)
    if body.expires <= now:
        raise AdmissionError(
            f"the job's token expired on {when(body.expires)}",
            do_next="see whether the node that submitted the job lives and is connected: it renews its tokens",
        )
    if body.issued > now + AHEAD_MAX_S or body.expires > body.issued + TOKEN_MAX_S:
        raise AdmissionError("the job's token is made for another time", do_next="compare the clocks: `lattica doctor`")
    member = signer_of(paper, PURPOSE, root, trust.checks, now)
    if member is None:
        raise AdmissionError("the job's token is signed by the root key, which submits nothing")
    if reason := trust.objection(member, now):
        raise AdmissionError(f"the job's submitter, peer {peer_text(member.peer)}, is refused: {reason}")
    if Role.SUBMIT not in member.roles:
        raise PermissionDeniedError(role="submit", peer=peer_text(member.peer), action="run code on others")
    expires = min(body.expires, member.expires)
    return Submission(member.peer, member.roles, JobId(body.job), body.limits, expires)


def _read_body(data: bytes) -> _Body:
    try:
        body = msgspec.msgpack.decode(data, type=_Body)
    except DAMAGED as error:
        raise RemoteProtocolError(f"a job token cannot be read: {error}") from error
    limits_hold = len(body.limits) <= LIMITS_MAX and all(
        len(name) <= LIMIT_MAX_CHARS and 0 <= value < inf for name, value in body.limits.items()
    )
    if len(body.job) != ID_BYTES or not limits_hold or not 0 <= body.issued <= body.expires < inf:
        raise RemoteProtocolError("a job token says what cannot be")
    return body
