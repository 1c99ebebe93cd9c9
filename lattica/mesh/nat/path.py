"""One way to a peer and what we know of it; and what becomes true of ways: see `paths`."""

from __future__ import annotations

from collections import deque

import msgspec

from lattica.mesh.nat.routes import Direct, Endpoint, Route, SendOver

LOSS_WINDOW = 16  # probes
MARGIN_S = 0.1  # that an answer may take beyond the round trip and four mean deviations
TRIAL_PROBES = 16  # of a path that has just proven itself, as many as `loss` looks at
FLAP_S = 60.0
RETRY_S = (1.0, 30.0)  # pauses between probes of a path that is silent, doubling
PENDING_MAX = 32  # probes of one path whose answers are waited for
GOOD_FIRST, GOOD_MAX = 3, 24  # answers in a row that a path which fell silent has to give, once and at the most


class Switched(msgspec.Struct, frozen=True):
    """Packets go over `route` from now on; None: no path is left. lost: what was sent by `was` of late is lost."""

    route: Route | None
    was: Route | None
    reason: str
    lost: bool = False


class PathProven(msgspec.Struct, frozen=True):
    """It has answered, for the first time or after silence."""

    route: Route
    rtt_s: float


class Suspected(msgspec.Struct, frozen=True):
    """Nothing comes by the current path for longer than an answer may take; it is being probed, and all others."""

    route: Route


class PathLost(msgspec.Struct, frozen=True):
    """Nothing comes by it any more."""

    route: Route
    reason: str


class PathForgotten(msgspec.Struct, frozen=True):
    """It is not in the table any more. If it lay on a fresh socket that carries no other path, close that."""

    route: Route


class SeenAs(msgspec.Struct, frozen=True):
    """The peer sees what we send by this route come from there; told when it changes."""

    route: Direct
    endpoint: Endpoint


Effect = SendOver | Switched | PathProven | Suspected | PathLost | PathForgotten | SeenAs


class Path:
    """A route and what we know of it. Times are monotonic seconds."""

    __slots__ = (
        "answered_at", "better", "good", "heard_at", "is_direct", "is_source", "lost", "missing", "needed", "outcomes",
        "pending", "probe_at", "probed_at", "probes", "proven", "route", "rtt_s", "rtt_var_s", "seen", "silences",
        "silent_at", "since", "trial", "used_at",
    )  # fmt: skip

    def __init__(self, route: Route, now: float, *, is_source: bool = False) -> None:
        """is_source: packets of the peer came from there, before we had heard of it."""
        self.route, self.since, self.is_source = route, now, is_source
        self.is_direct = isinstance(route, Direct)
        self.proven = False  # answers, as far as we know
        self.rtt_s = self.rtt_var_s = 0.0  # smoothed, and its mean deviation (RFC 6298 §2)
        self.outcomes: deque[bool] = deque(maxlen=LOSS_WINDOW)  # of the last probes
        self.pending: dict[bytes, float] = {}  # transaction -> sent at, oldest first
        self.missing: list[float] = []  # when the first PENDING_MAX probes after the last answer were sent
        self.heard_at = self.answered_at = self.used_at = self.probed_at = float("-inf")
        self.probe_at = now
        self.probes = 0  # sent since the last answer
        self.lost = 0  # of them, given up
        self.trial = 0  # probes that are to come quickly
        self.better = 0  # answers in a row by which it was better than the current path
        self.good = 0  # answers in a row
        self.needed = 1  # of them, before it may be current
        self.silences = 0
        self.silent_at: float | None = None
        self.seen: Endpoint | None = None

    def __repr__(self) -> str:
        state = "proven" if self.proven else "silent" if self.silences else "new"
        return f"<Path {self.route}: {state}, {self.rtt_s * 1e3:.0f} ms, {self.loss:.0%} lost>"

    @property
    def loss(self) -> float:
        """The share of the last probes that was not answered."""
        return self.outcomes.count(False) / len(self.outcomes) if self.outcomes else 0.0

    @property
    def answer_s(self) -> float:
        """How long an answer takes at the most, nearly always; 0: not known."""
        return self.rtt_s + 4 * self.rtt_var_s

    @property
    def patience_s(self) -> float:
        """How long an answer may take before the probe counts as lost, whoever is busy."""
        return self.answer_s + MARGIN_S if self.rtt_s else 1.0

    def asks(self, transaction: bytes, now: float) -> None:
        """A probe is sent."""
        self.probes += 1
        self.probed_at = self.pending[transaction] = now
        if len(self.missing) < PENDING_MAX:
            self.missing.append(now)

    def answered(self, sent_at: float, now: float) -> None:
        """A probe sent then came back. RFC 6298 §2 for the round trip."""
        rtt_s = max(now - sent_at, 0.0)
        if self.rtt_s:
            self.rtt_var_s += (abs(rtt_s - self.rtt_s) - self.rtt_var_s) / 4
            self.rtt_s += (rtt_s - self.rtt_s) / 8
        else:
            self.rtt_s, self.rtt_var_s = rtt_s or 1e-6, rtt_s / 2
        self.outcomes.append(True)
        self.answered_at = self.heard_at = now
        self.probes, self.lost, self.good = 0, 0, self.good + 1
        self.missing.clear()

    def prove(self) -> None:
        """It has answered; what was lost before says nothing of what will be."""
        self.proven, self.silent_at = True, None
        self.trial = max(TRIAL_PROBES, self.needed)
        self.pending.clear()
        self.outcomes.clear()
        self.outcomes.append(True)

    def fall_silent(self, now: float) -> None:
        """It must prove itself again, and for longer if this happens often."""
        often = self.silent_at is None and self.silences and now - self.since < FLAP_S
        self.needed = min(self.needed * 2 + 1, GOOD_MAX) if often else GOOD_FIRST
        self.silences += 1
        self.since = self.silent_at = now
        self.proven, self.good, self.better, self.trial = False, 0, 0, 0
        self.probe_at, self.probes = now + RETRY_S[0], 0
        self.missing.clear()

    def forget(self, now: float) -> None:
        """What was measured may be true no more: ask anew."""
        self.pending.clear()
        self.missing.clear()
        self.outcomes.clear()
        self.rtt_s = self.rtt_var_s = 0.0
        self.probe_at, self.probes, self.trial = now, 0, TRIAL_PROBES
        self.needed, self.silences, self.lost = 1, 0, 0

    def give_up_probes(self, now: float, silent_since: float) -> None:
        """Probes that nobody will answer any more are lost. silent_since: those that were sent later say nothing of the
        share that is: all of them are, or the peer is busy."""
        while self.pending:
            transaction, sent_at = next(iter(self.pending.items()))
            if sent_at + self.patience_s > now and len(self.pending) <= PENDING_MAX:
                return
            del self.pending[transaction]
            if sent_at < silent_since:
                self.outcomes.append(False)
            self.lost += 1
            self.good = self.better = 0


class Usual:
    """How long it usually takes until something comes, once something was sent; RFC 6298 §2 has round trips so."""

    __slots__ = ("_mean_s", "_var_s", "most_s")

    def __init__(self) -> None:
        self._mean_s = self._var_s = 0.0
        self.most_s = float("inf")  # nearly always; infinite: not known

    def saw(self, took_s: float) -> None:
        """It took so long. Called for every packet."""
        if self._var_s:
            off_s = took_s - self._mean_s
            self._var_s += ((off_s if off_s > 0 else -off_s) - self._var_s) / 4
            self._mean_s += off_s / 8
        else:
            self._mean_s, self._var_s = took_s, took_s / 2
        self.most_s = self._mean_s + 4 * self._var_s
