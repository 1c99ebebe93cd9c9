"""How long a connection may be silent, and what becomes of it then."""

from __future__ import annotations

from lattica.mesh import wire
from lattica.mesh.links import Connection, State
from lattica.mesh.wire import BULK, CONTROL

HELLO_S = 10.0  # for the first frame of a connection: a slow link needs seconds, a silent one holds a descriptor
PING_AFTER_S = 15.0  # of silence: half of the shortest NAT mapping we have met
WAIT_S = 0.6
"""Of silence while an acknowledgement is due, until we ask whether there is anybody, and dial beside a TCP connection:
twice the longest round trip on Earth. Less asks busy processes in vain, more is a longer gap where the way is gone."""
BULK_DEAD_AFTER_S = 0.1
"""Of bulk by TCP, once control was heard by QUIC after bulk had been asked in vain: the process lives, and has had the
time to answer there too, so the way of bulk is gone. A stall of TCP that is as long costs that what is under way, 16
MiB at the most, is sent again."""
DEAD_AFTER_S = 5.0  # without a sound although something is due: 20 round trips of the longest path on Earth
PROBE_S = 1.5  # for an answer from the old connection when a second one turns up
MEASURE_S = 30.0
"""How often the round trip is asked for while a connection is never silent: two frames of 13 bytes."""
SPARE_S = 5.0  # a second connection that the other side has not closed by then is closed here
BULK_IDLE_S = 60.0  # a bulk connection that carried nothing for so long is closed; a new one costs 2.3 ms


def due(connection: Connection, expires_at: float, waits_since: float | None, bulk_used_at: float) -> float:
    """When to look at it again, in monotonic seconds as all of them. expires_at: when a certificate of it ends.
    waits_since: since when an acknowledgement of its plane is due; None: none is."""
    state, pinged_at = connection.state, connection.pinged_at
    if state is State.GREETING:
        return connection.since + HELLO_S
    # How long it may be silent: less while something is due from it.
    if pinged_at is not None:
        at = pinged_at + DEAD_AFTER_S
    elif waits_since is not None:
        at = max(connection.heard_at, connection.since, waits_since) + WAIT_S
    else:
        at = connection.heard_at + PING_AFTER_S
    if connection.plane == BULK:
        at = min(at, _idle_at(connection, waits_since, bulk_used_at))
    elif pinged_at is None:
        at = min(at, measure_at(connection))
    if state is State.SPARE:
        at = min(at, connection.since + SPARE_S)
    return min(at, expires_at)


def measure_at(connection: Connection) -> float:
    """When to ask for the round trip, whatever else is heard."""
    if connection.plane != CONTROL or connection.state is not State.ATTACHED or connection.pinged_at is not None:
        return float("inf")
    return connection.measured_at + MEASURE_S


def round_trip(before_s: float | None, trip_s: float) -> float:
    """What to believe: a shorter one at once, a longer one by and by, since the answer may have waited for a busy
    process at either end."""
    return trip_s if before_s is None or trip_s < before_s else before_s + (trip_s - before_s) / 4


def verdict(
    connection: Connection, expires_at: float, waits_since: float | None, bulk_used_at: float, now: float
) -> tuple[str, str] | None:
    """(code, words) of the farewell to a connection that is `due`; None: ask whether it lives."""
    if connection.state is State.GREETING:
        return wire.STALE, f"no hello within {HELLO_S:g} s"
    if expires_at <= now:
        return wire.STALE, "a certificate of this connection has expired"
    if connection.state is State.SPARE and connection.since + SPARE_S <= now:
        return wire.STALE, "a second connection"
    if _idle_at(connection, waits_since, bulk_used_at) <= now:
        return wire.IDLE, "no bulk for a while"
    if connection.pinged_at is not None:
        return wire.STALE, f"silent for {now - connection.heard_at:.1f} s"
    return None


def given_up_at(bulk: Connection, control: Connection | None) -> float:
    """When bulk by TCP that was asked whether it lives is doubted, or given up, for control by QUIC is heard."""
    asked_at = bulk.pinged_at
    if asked_at is None or control is None or control.rank >= bulk.rank or control.heard_at <= asked_at:
        return float("inf")
    return bulk.doubted_at + BULK_DEAD_AFTER_S if bulk.doubted_at >= asked_at else asked_at


def fell_silent(bulk: Connection, now: float) -> bool:
    """Whether nothing came for a while: by itself that says little."""
    return now - max(bulk.heard_at, bulk.since) > WAIT_S


def is_silent(control: Connection | None, bulk: Connection) -> bool:
    """Whether nothing came over bulk since the control plane's connection was asked, in vain, whether it lives."""
    return control is not None and control.pinged_at is not None and bulk.heard_at <= control.pinged_at


def _idle_at(connection: Connection, waits_since: float | None, bulk_used_at: float) -> float:
    if connection.plane != BULK or waits_since is not None:
        return float("inf")
    return max(bulk_used_at, connection.since) + BULK_IDLE_S
