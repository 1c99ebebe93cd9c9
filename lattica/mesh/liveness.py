"""How long a connection may be silent, and what becomes of it then."""

from __future__ import annotations

import msgspec

from lattica.mesh import wire
from lattica.mesh.links import Connection, State
from lattica.mesh.wire import BULK, CONTROL

HELLO_S = 10.0  # for the first frame of a connection: a slow link needs seconds, a silent one holds a descriptor
PING_AFTER_S = 15.0  # of silence: half of the shortest NAT mapping we have met
WAIT_S = 0.6
"""Of silence while an acknowledgement is due, until we ask whether there is anybody, and dial beside a TCP connection:
twice the longest round trip on Earth. Less asks busy processes in vain, more is a longer gap where the way is gone."""
DEAD_AFTER_S = 5.0  # without a sound although something is due: 20 round trips of the longest path on Earth
PROBE_S = 1.5  # for an answer from the old connection when a second one turns up
MEASURE_S = 30.0
"""How often the round trip is asked for while a connection is never silent: two frames of 13 bytes."""
SPARE_S = 5.0  # a second connection that the other side has not closed by then is closed here
BULK_IDLE_S = 60.0  # a bulk connection that carried nothing for so long is closed; a new one costs 2.3 ms


class Due(msgspec.Struct, frozen=True):
    """What connections of one peer are measured by, in monotonic seconds."""

    expires_at: float  # when a certificate of this connection ends
    waits_since: float | None  # since when an acknowledgement of this plane is due; None: none is
    bulk_used_at: float


def due(connection: Connection, by: Due) -> float:
    """When to look at it again."""
    if connection.state is State.GREETING:
        return connection.since + HELLO_S
    at = min(by.expires_at, _idle_at(connection, by))
    if connection.state is State.SPARE:
        at = min(at, connection.since + SPARE_S)
    return min(at, _silent_at(connection, by), measure_at(connection))


def measure_at(connection: Connection) -> float:
    """When to ask for the round trip, whatever else is heard."""
    if connection.plane != CONTROL or connection.state is not State.ATTACHED or connection.pinged_at is not None:
        return float("inf")
    return connection.measured_at + MEASURE_S


def round_trip(before_s: float | None, trip_s: float) -> float:
    """What to believe: a shorter one at once, a longer one by and by, since the answer may have waited for a busy
    process at either end."""
    return trip_s if before_s is None or trip_s < before_s else before_s + (trip_s - before_s) / 4


def verdict(connection: Connection, by: Due, now: float) -> tuple[str, str] | None:
    """(code, words) of the farewell to a connection that is due; None: ask whether it lives."""
    if connection.state is State.GREETING:
        return wire.STALE, f"no hello within {HELLO_S:g} s"
    if by.expires_at <= now:
        return wire.STALE, "a certificate of this connection has expired"
    if connection.state is State.SPARE and connection.since + SPARE_S <= now:
        return wire.STALE, "a second connection"
    if _idle_at(connection, by) <= now:
        return wire.IDLE, "no bulk for a while"
    if connection.pinged_at is not None:
        return wire.STALE, f"silent for {now - connection.heard_at:.1f} s"
    return None


def is_silent(control: Connection | None, bulk: Connection) -> bool:
    """Whether nothing came over bulk since the control plane's connection was asked, in vain, whether it lives."""
    return control is not None and control.pinged_at is not None and bulk.heard_at <= control.pinged_at


def _idle_at(connection: Connection, by: Due) -> float:
    if connection.plane != BULK or by.waits_since is not None:
        return float("inf")
    return max(by.bulk_used_at, connection.since) + BULK_IDLE_S


def _silent_at(connection: Connection, by: Due) -> float:
    """How long it may be silent: less while something is due from it."""
    if connection.pinged_at is not None:
        return connection.pinged_at + DEAD_AFTER_S
    if by.waits_since is not None:
        return max(connection.heard_at, connection.since, by.waits_since) + WAIT_S
    return connection.heard_at + PING_AFTER_S
