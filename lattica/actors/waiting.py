"""Why a ref has no value yet, in the words of `GetTimeoutError`: what this process knows, then what its node knows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lattica.actors.calls import CallRecord
from lattica.actors.tasks import HERE, Target, TaskRecord
from lattica.codec import messages as m
from lattica.errors import LatticaError

if TYPE_CHECKING:
    from lattica.actors.refs import ObjectRef
    from lattica.actors.runtime import Runtime

ANSWER_S = 0.5  # for the node, after the time that the user wanted to wait
ASKED_FROM_S = 0.2
"""Who waits for less looks whether something is ready, again and again: the node is not asked for him."""
DEPTH_MAX = 4  # a task waits for an argument, which waits for another ...


def why(runtime: Runtime, ref: ObjectRef, timeout: float) -> str:
    """ "" where nobody knows. Without the lock."""
    with runtime.lock:
        words, question = _look(runtime, ref, DEPTH_MAX)
    if question is None or timeout < ASKED_FROM_S or runtime.gone:
        return words
    try:
        answer = runtime.ask_node(question, ANSWER_S).data.get("why", "")
    except LatticaError:
        answer = ""
    return f"{words}: {answer}" if answer else words


def why_away(runtime: Runtime, id: bytes, timeout: float) -> str:
    """The same of a value that lies on another machine."""
    if timeout < ASKED_FROM_S or runtime.gone:
        return ""
    try:
        return str(runtime.ask_node(m.Why(runtime.next_request(), object=id), ANSWER_S).data.get("why", ""))
    except LatticaError:
        return ""


def _look(runtime: Runtime, ref: ObjectRef, depth: int) -> tuple[str, m.Why | None]:
    """(words, what the node may know more of)."""
    record: Any = ref._task
    if ref._value is not None or not depth:
        return "", None
    if record is None:
        return "it is made by another process", m.Why(runtime.next_request(), object=ref.id)
    name = record.name if isinstance(record, TaskRecord) else f"{record.peer.class_name}.{record.method}"
    if record.missing and (arguments := [dep for dep in record.deps if dep._value is None]):
        words, question = _look(runtime, arguments[0], depth - 1)
        waits = f"{name} waits for {record.missing} of its arguments, first {arguments[0].hex()[:8]}"
        return f"{waits} ({words})" if words else waits, question
    if isinstance(record, TaskRecord):
        return _of_task(runtime, record)
    return _of_call(runtime, record)


def _of_task(runtime: Runtime, record: TaskRecord) -> tuple[str, m.Why | None]:
    lease, core = record.lease, record.lane.core
    if lease is None:
        ahead = next((at for at, task in enumerate(core.pending) if task is record), 0)
        behind = f", behind {ahead} of its kind" if ahead else ""
        requests = record.lane.requests[-1:]
        question = m.Why(runtime.next_request(), requests[0]) if requests else None
        return f"{record.name} waits for a worker{behind}", question
    target: Any = lease.worker
    ahead = next((at for at, seq in enumerate(lease.inflight) if seq == record.seq), 0)
    so_long = f" for {time.monotonic() - lease.progress_at:.1f} s"
    does = f"waits behind {ahead} others of ours" if ahead else f"runs{so_long}"
    where, question = _place(runtime, target)
    return f"{record.name} {does} {where}", question


def _place(runtime: Runtime, target: Target) -> tuple[str, m.Why | None]:
    if target.at == HERE:
        return f"in pid {target.pid} of this machine", None
    return f"in pid {target.pid} elsewhere", m.Why(runtime.next_request(), worker=target.client)


def _of_call(runtime: Runtime, call: CallRecord) -> tuple[str, m.Why | None]:
    peer, name = call.peer, f"{call.peer.class_name}.{call.method}"
    if call.seq in peer.inflight:
        ahead = sum(seq < call.seq for seq in peer.inflight)
        before = f", as are {ahead} calls of ours before it" if ahead else ""
        question = m.Why(runtime.next_request(), actor=peer.id, worker=peer.client)
        return f"{name} was sent to its actor, and is not answered{before}", question
    ahead = next((at for at, other in enumerate(peer.queue) if other is call), 0)
    behind = f", behind {ahead} others," if ahead else ""
    if peer.link is not None:
        return f"{name} waits here{behind} until the first of them has its arguments", None
    return f"{name} waits{behind} for its actor", m.Why(runtime.next_request(), actor=peer.id)
