"""The ways to one peer, and which of them carries its packets now.

    A -> B  PROBE(transaction, time)        B -> A  ANSWER(transaction, time, seen)      by the way the probe came

A *route* is where datagrams can be sent (`routes`); a *path* is a route and what we know of it. Each side chooses
alone, so packets may go one way and come another. What the shell has to do:

    add(route)          it knows an address of this peer, a puncher succeeded, a channel of a relay was opened
    remove(route)       the channel or the socket is gone
    heard(route)        a packet that only this peer can have sent (by its connection id) came by this route
    sent()              a packet was sent over `current`; True: `next_deadline` is earlier than it said
    received(route, d)  a PROBE or ANSWER whose key id is `keys.receiving.id`, whoever sent it
    tick, next_deadline; keep_alive(lifetime) when somebody has measured it; network_changed() when we moved

and to carry out `SendOver`. `current` may be read at any time; `Switched` says that it is another one now: congestion
window and RTT estimate begin anew. Nothing but probes is sent over a path before it has answered.

Choice. A path that has answered may become current:
  - direct over relayed at once, if it loses at most LOSS_GOOD more; back only if it loses LOSS_BAD, and twice as much;
  - of two alike the one that was better by BETTER_SHARE and BETTER_S of round trip for BETTER_TIMES answers in a row;
  - any over one that is *silent*: something was sent on it, nothing has come back for SILENT_S and a round trip, and
    SILENT_PROBES are missed, while another has been heard since;
  - that by which the peer's own packets come now, over one by which none came since: at once if DOUBT_PROBES were not
    answered by it, and after SILENT_S in any case. So that this is known by then, the current path is probed when the
    peer probes another one: it may hear nothing by this;
  - any over one that is *deaf*: packets of the peer come by it, and DEAF_PROBES in a row are missed: what we send by it
    does not arrive;
  - a new source of the peer over the old one, at once, if nothing has come from the old one since: the peer has moved.
A path that fell silent within FLAP_S must first answer twice as many probes as the last time.

Silence. The current path is asked ASK_S after something should have come: an answer to what was sent, or, where packets
flow, the next one. Who asks too soon wastes 64 bytes. After three probes the others are asked too. A probe is *missed*
when one that was sent later by another path was answered GRACE_S ago, and its own answer is overdue as well: then the
peer is awake, and so are we, and the packet got lost. A process that is busy, at either end, is silent on all paths.

Rules of this file. `now` is monotonic seconds. A lost answer is normal; so is an answer that comes late. What comes
from an unknown source with a good MAC makes a path that is probed, at most UNPROVEN_MAX at once. All probes of one
table together stay below PROBES_MAX a second.
"""

from __future__ import annotations

from collections import deque
from random import Random

from lattica.mesh.nat import datagrams
from lattica.mesh.nat.datagrams import ANSWER, PROBE, Answer, Keys, Kind, Probe
from lattica.mesh.nat.path import (
    PENDING_MAX,
    RETRY_S,
    Effect,
    Path,
    PathForgotten,
    PathLost,
    PathProven,
    SeenAs,
    Suspected,
    Switched,
    Usual,
)
from lattica.mesh.nat.routes import NOWHERE, Direct, Route, SendOver

PATHS_MAX = 16
"""Of one peer. More: idle ones cost a probe each in KEEP_ALIVE_S; fewer: a host with many addresses loses some."""
UNPROVEN_MAX = 6
UNPROVEN_S = 0.5  # for which a source that has turned up is safe from those that turn up after it
DIRECT_KEPT = 4  # direct paths that are kept alive; two sequential NATs open a dozen between them at once
USED_S = 10.0  # after its last packet, probes apart, the peer uses a path no more
PROBES_MAX = 60  # a second, over all paths of the table: 4 KiB/s
FIRST_PROBES_S = (0.0, 0.1, 0.2, 0.4, 0.8, 1.5)  # pauses before the probes of a new path; then it is forgotten
TRIAL_S = 0.5  # between probes of a path that has just proven itself
RESTLESS_S = 1.0  # between probes of a direct path while a relay carries the packets
BUSY_S = 1.0  # between probes of the current path while packets flow
BUSY_FOR_S = 2.0  # after the last packet they still do
KEEP_ALIVE_S = 15.0  # the shortest NAT mapping we have met lives 30 s
KEEP_ALIVE_S_RANGE = (4.0, 60.0)  # whatever lifetime was measured
HASTE_S = 0.1  # between probes of a path in doubt
ASK_S = 0.03  # of silence beyond what is usual: then probes say whether it is the path
SILENT_HASTE_S = 0.05  # between them; SLOW_S after SILENT_LONG
SUSPECT_S = ASK_S + 2 * SILENT_HASTE_S  # with the third of them the other paths are asked
GRACE_S = 0.05  # what is answered by another path would have been by this one, whoever reads which socket first
SILENT_S = 0.25  # and a round trip
SILENT_PROBES = 3  # missed in a row
DEAF_PROBES = 4  # one probe and its answer in ten are lost where a twentieth of all packets is: once in 10,000
DOUBT_PROBES = 2  # unanswered in a row, after which more are sent, and by the other paths too
LEFT_S = 1.0  # after which it is not news that the peer's packets do not come by this path
BESIDE_S = 0.25  # for which the current path is asked in haste, if the peer asks by another
ANSWERS_MAX = 32  # by other paths, that are remembered: of a second of silence, by three of them
SILENT_LONG = 40
SLOW_S = 1.0
GONE_S = 10.0  # of silence on every path: none is current any more
LOSS_GOOD, LOSS_BAD, LOSS_AWFUL = 0.1, 0.35, 0.5
LOSS_KNOWN = 12  # probes that a bad loss must rest on: of 8, three are lost by chance once in 50 times where 8 % are
BETTER_SHARE, BETTER_S, BETTER_TIMES = 0.25, 0.005, 3
ALONE_S = 4.0  # the longest of them while there is no other
FORGET_S = 120.0  # after which a silent direct path is forgotten
REPLAY_S = 10.0  # a probe whose sender's clock is so far behind an earlier one is a replay


class PathTable:
    """All paths to one peer. rng: for transactions and jitter. See the module for what the shell must do."""

    def __init__(self, keys: Keys, rng: Random) -> None:
        self.keys, self._rng = keys, rng
        self.current: Route | None = None
        self._paths: dict[Route, Path] = {}
        self._now_path: Path | None = None  # that of `current`
        self._keep_alive_s = KEEP_ALIVE_S
        self._sent_at = float("-inf")
        self._waiting_since: float | None = None  # sent on the current path, and nothing came by it since
        self._usual = Usual()  # until something comes by the current path
        self._answers = deque[tuple[float, float]](maxlen=ANSWERS_MAX)  # by others: when asked, when answered
        self._suspected: float | None = None  # of which silence was told that it is suspected, by its beginning
        self._looked_at = float("-inf")  # when `tick` was called
        self._told = float("inf")  # what `next_deadline` said
        self._newest_us = 0  # of the peer's clock
        self._asked_beside_at = float("-inf")  # when the peer probed another path than the current one
        self._allowance, self._allowance_at = float(PROBES_MAX), 0.0

    def __repr__(self) -> str:
        return f"<PathTable: {self.current or 'no path'}, {len(self._paths)} paths>"

    @property
    def paths(self) -> list[Path]:
        """For those who show them; the current one first, then the proven."""
        return sorted(self._paths.values(), key=lambda path: (path is not self._now_path, not path.proven, path.rtt_s))

    def uses(self, socket: int) -> bool:
        """Whether a path lies on this socket of ours."""
        return any(isinstance(route, Direct) and route.socket == socket for route in self._paths)

    # ---- what the shell tells -----------------------------------------------------------------------------------

    def add(self, route: Route, now: float) -> list[Effect]:
        """This route may lead to the peer: probe it. Of too many unproven ones the oldest goes."""
        return self._add(route, now, is_source=False)

    def _add(self, route: Route, now: float, *, is_source: bool) -> list[Effect]:
        path = self._paths.get(route)
        if path is not None:
            if not path.proven:
                path.probe_at, path.probes = now, 0
            return self.tick(now)
        effects = self._make_room(float("inf") if not is_source else now - UNPROVEN_S)
        if len(self._paths) < PATHS_MAX and len(self._unproven()) < UNPROVEN_MAX:
            self._paths[route] = Path(route, now, is_source=is_source)
        return effects + self.tick(now)

    def remove(self, route: Route, now: float) -> list[Effect]:
        """Nothing can be sent by this route any more."""
        path = self._paths.pop(route, None)
        if path is None:
            return []
        effects: list[Effect] = [PathLost(route, "closed")] if path.proven else []
        effects.append(PathForgotten(route))
        if path is self._now_path:
            effects += self._switch(self._best(), now, "the path was closed")
        return effects + self.tick(now)

    def heard(self, route: Route, now: float) -> list[Effect]:
        """A packet of the peer came by this route. Called for each packet: usually it notes the time, no more."""
        path = self._paths.get(route)
        if path is None:
            return self._add(route, now, is_source=True)
        path.used_at = now
        now_path = self._now_path
        if now_path is None or path is now_path or now_path.used_at + LEFT_S < now:
            return self._sound(path, now)
        if now_path.lost >= DOUBT_PROBES > path.lost and path.proven:
            reason = f"the peer goes by it, and {now_path.lost} probes were not answered"
            return [*self._sound(path, now), *self._fell_silent(now_path, now), *self._switch(path, now, reason)]
        return self._sound(path, now)

    def _sound(self, path: Path, now: float) -> list[Effect]:
        """Something came by this path."""
        path.heard_at = now
        if path is self._now_path:
            self._came(now)
        elif not path.proven and not path.pending and path.probe_at > now:
            path.probe_at, path.probes = now, 0  # it lives again
            return self.tick(now)
        return []

    def _came(self, now: float) -> None:
        """Something came by the current path."""
        if self._waiting_since is not None:
            self._usual.saw(now - self._waiting_since)
            self._waiting_since = None

    def sent(self, now: float) -> bool:
        """A packet was sent over the current path. Called for each: notes the time. Whether a deadline came nearer."""
        self._sent_at = now
        path = self._now_path
        if self._waiting_since is not None or path is None:
            return False
        self._waiting_since = now
        due_s = self._usual.most_s
        return now + (due_s if due_s < path.rtt_s else self._due_s(path)) + ASK_S < self._told

    def received(self, route: Route, data: bytes, now: float) -> list[Effect]:
        """A datagram that claims to be this peer's. What is forged or replayed changes nothing."""
        if data[:1] == bytes([PROBE]):
            probe = datagrams.read_probe(self.keys.receiving, data)
            return self._asked(route, probe, now) if probe else []
        answer = datagrams.read_answer(self.keys.receiving, data) if data[:1] == bytes([ANSWER]) else None
        return self._answered(route, answer, now) if answer else []

    def keep_alive(self, lifetime_s: float) -> None:
        """How long the shorter-lived of the two NATs keeps an idle mapping, as measured."""
        low, high = KEEP_ALIVE_S_RANGE
        self._keep_alive_s = min(max(lifetime_s / 2, low), high)
        for path in self._paths.values():
            if path.proven and path.answered_at > float("-inf"):
                path.probe_at = min(path.probe_at, path.answered_at + self._keep_alive_s)

    def network_changed(self, now: float) -> list[Effect]:
        """An address of this machine has changed: what was known of the paths is not true any more."""
        for path in self._paths.values():
            path.forget(now)
        self._usual = Usual()
        if self._now_path is not None and self._waiting_since is None:
            self._waiting_since = now
        return self.tick(now)

    # ---- time ---------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When to call `tick`; None: never."""
        first = float("inf")
        for path in self._paths.values():
            at = self._probe_due(path)
            if path.pending:
                at = min(at, next(iter(path.pending.values())) + path.patience_s)
            if at < first:
                first = at
        for at in self._verdicts_at():
            if self._looked_at < at < first:
                first = at
        self._told = first
        return first if self._paths else None

    def tick(self, now: float) -> list[Effect]:
        """Send the probes that are due, notice silence, forget what never answers."""
        self._looked_at = now
        for path in self._paths.values():
            since = self._waiting_since if path is self._now_path else None
            path.give_up_probes(now, float("inf") if since is None else since)
        effects = self._suspect(now) + self._notice_silence(now) + self._notice_deafness(now) + self._choose(now)
        for path in list(self._paths.values()):  # after the choice: more is asked of the current one
            if self._probe_due(path) <= now:
                effects += self._probe(path, now)
        return effects

    def validate(self) -> None:
        """Every invariant."""
        assert len(self._paths) <= PATHS_MAX, f"{len(self._paths)} paths"
        assert self._now_path is None or self._paths.get(self._now_path.route) is self._now_path, "a path that was lost"
        assert self.current == (self._now_path.route if self._now_path else None)
        assert len(self._unproven()) <= UNPROVEN_MAX, f"{len(self._unproven())} paths have never answered"
        for path in self._paths.values():
            assert len(path.pending) <= PENDING_MAX + 1, f"{len(path.pending)} probes of {path!r} wait"

    # ---- probes -------------------------------------------------------------------------------------------------

    def _probe_due(self, path: Path) -> float:
        """When it is to be probed next."""
        if path is self._now_path:
            if self._waiting_since is not None:
                ask_at = self._waiting_since + self._due_s(path) + ASK_S
                return min(path.probe_at, max(ask_at, path.probed_at + self._haste_s()))
            if path.lost >= DOUBT_PROBES and self._sent_at + BUSY_FOR_S > path.probed_at:
                return min(path.probe_at, path.probed_at + self._haste_s())
            beside_at = self._asked_beside_at
            if path.answered_at < beside_at and path.probed_at < beside_at + BESIDE_S:
                return min(path.probe_at, max(beside_at, path.probed_at + self._haste_s()))
            busy_at = max(path.answered_at, path.probed_at) + BUSY_S
            if self._sent_at + BUSY_FOR_S > busy_at:
                return min(path.probe_at, busy_at)
        elif path.proven and self._waiting_since is not None and self._now_path is not None:
            # the current one is suspect: who else lives?
            suspect_at = self._waiting_since + self._due_s(self._now_path) + SUSPECT_S
            return min(path.probe_at, max(suspect_at, path.probed_at + 2 * self._haste_s()))
        elif path.proven and self._now_path is not None and self._now_path.lost >= DOUBT_PROBES:
            return min(path.probe_at, path.probed_at + 2 * self._haste_s())
        if path.proven and path.is_direct and self._now_path is not None and not self._now_path.is_direct:
            return min(path.probe_at, path.probed_at + RESTLESS_S)  # it may still earn its place
        return path.probe_at

    def _haste_s(self) -> float:
        """Between probes in silence; if it lasts, it is the peer, or all of the network."""
        path = self._now_path
        if path is None or self._waiting_since is None:
            return HASTE_S
        return SLOW_S if path.lost > SILENT_LONG else SILENT_HASTE_S

    def _probe(self, path: Path, now: float) -> list[Effect]:
        if not self._may_probe(now):
            path.probed_at, path.probe_at = now, now + HASTE_S
            return []
        if self._is_hopeless(path, now):
            del self._paths[path.route]
            return [PathForgotten(path.route)]
        transaction = self._rng.randbytes(8)
        path.asks(transaction, now)
        path.probe_at = now + self._pause_s(path)
        if path is self._now_path and self._waiting_since is None:
            self._waiting_since = now
        data = datagrams.write_probe(self.keys.sending, Probe(transaction, Kind.PATH, _microseconds(now)))
        return [SendOver(path.route, data)]

    def _is_hopeless(self, path: Path, now: float) -> bool:
        """Whether a direct path has been asked for long enough, or is one too many; the shell removes channels."""
        if path is self._now_path or not path.is_direct:
            return False
        if path.proven:
            return not path.trial and path.used_at < now - USED_S and len(self._proven_direct()) > DIRECT_KEPT
        if path.silent_at is None:
            return path.probes >= len(FIRST_PROBES_S)
        return now - path.silent_at > FORGET_S

    def _pause_s(self, path: Path) -> float:
        """Until the probe after this one, if nothing happens."""
        if path.proven and path.trial:
            path.trial -= 1
            return TRIAL_S
        if path.proven:
            return self._keep_alive_s * self._rng.uniform(0.9, 1.0)
        if path.silent_at is None and path.probes < len(FIRST_PROBES_S):
            return FIRST_PROBES_S[path.probes]
        first, longest = RETRY_S
        return min(first * 2.0 ** min(path.probes, 10), longest if self._now_path is not None else ALONE_S)

    def _may_probe(self, now: float) -> bool:
        """A bucket that fills at PROBES_MAX a second."""
        filled = self._allowance + max(now - self._allowance_at, 0.0) * PROBES_MAX
        self._allowance, self._allowance_at = min(filled, float(PROBES_MAX)), now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def _asked(self, route: Route, probe: Probe, now: float) -> list[Effect]:
        """The peer probes this way: answer by it, and see whether it is one for us as well."""
        if probe.kind != Kind.PATH or probe.time_us + REPLAY_S * 1e6 < self._newest_us:
            return []
        self._newest_us = max(self._newest_us, probe.time_us)
        seen = route.endpoint if isinstance(route, Direct) else NOWHERE
        answer = Answer(probe.transaction, probe.kind, probe.time_us, seen)
        effects: list[Effect] = [SendOver(route, datagrams.write_answer(self.keys.sending, answer))]
        path = self._paths.get(route)
        if path is not None:
            if path is not self._now_path and self._sent_at + BUSY_FOR_S > now:
                self._asked_beside_at = now
                return [*effects, *self._sound(path, now), *self.tick(now)]
            return effects + self._sound(path, now)
        if len(self._proven_direct()) >= DIRECT_KEPT:
            return effects  # there are enough; if it is used, it is heard
        return effects + self._add(route, now, is_source=True)

    def _answered(self, route: Route, answer: Answer, now: float) -> list[Effect]:
        """The answer to a probe of ours; it counts for the path by which the probe was sent, if it came by that."""
        path = self._paths.get(route)
        sent_at = path.pending.pop(answer.transaction, None) if path is not None else None
        if path is None:
            return self._add(route, now, is_source=True)  # it answers a probe of `punching`
        if sent_at is None:
            return []
        path.answered(sent_at, now)
        effects: list[Effect] = []
        if path is self._now_path:
            self._came(now)
        else:
            self._answers.append((sent_at, now))
        if not path.proven:
            path.prove()
            path.probe_at = min(path.probe_at, now + TRIAL_S)
            effects.append(PathProven(route, path.rtt_s))
        if isinstance(route, Direct) and answer.seen != path.seen:
            path.seen = answer.seen
            effects.append(SeenAs(route, answer.seen))
        self._compare(path)
        return effects + self._notice_silence(now) + self._choose(now)

    # ---- choice -------------------------------------------------------------------------------------------------

    def _compare(self, path: Path) -> None:
        """Count by how many answers in a row it was better than the current one."""
        now_path = self._now_path
        if now_path is None or path is now_path:
            return
        gain_s = now_path.rtt_s - path.rtt_s
        path.better = path.better + 1 if gain_s > max(BETTER_S, BETTER_SHARE * now_path.rtt_s) else 0

    def _choose(self, now: float) -> list[Effect]:
        """Take over, if another path has earned it."""
        now_path = self._now_path
        for path in self.paths:
            if path is now_path or not path.proven:
                continue
            if reason := self._why(path, now_path):
                return self._switch(path, now, reason)
        return []

    def _why(self, path: Path, now_path: Path | None) -> str:
        """Why this path is to be current in place of that one; "" if it is not."""
        if now_path is None or not now_path.proven:
            return "it answers" if path.lost < DOUBT_PROBES else ""
        if path.good < path.needed:
            return ""
        if path.is_direct and not now_path.is_direct:
            return "direct" if path.loss <= now_path.loss + LOSS_GOOD else ""
        known = len(now_path.outcomes) >= LOSS_KNOWN
        if now_path.is_direct and not path.is_direct:
            lossy = known and now_path.loss > LOSS_BAD and path.loss <= now_path.loss / 2
            return f"the direct path loses {now_path.loss:.0%} of its probes" if lossy else ""
        if self._has_moved(path, now_path):
            return "the peer has moved"
        if path.better >= BETTER_TIMES and path.loss <= max(LOSS_GOOD, now_path.loss):
            return f"{path.rtt_s * 1e3:.0f} ms in place of {now_path.rtt_s * 1e3:.0f} ms"
        if known and now_path.loss > LOSS_AWFUL and path.loss <= LOSS_BAD:
            return f"the path loses {now_path.loss:.0%} of its probes"
        return ""

    @staticmethod
    def _has_moved(path: Path, now_path: Path) -> bool:
        """Whether the peer sends from there now, and nothing came from the old place since it began to."""
        both = isinstance(path.route, Direct) and isinstance(now_path.route, Direct)
        return both and path.is_source and now_path.heard_at < path.since

    def _due_s(self, path: Path) -> float:
        """Within which time something comes by the current path, nearly always, once something was sent on it."""
        return min(path.answer_s, self._usual.most_s)

    @staticmethod
    def _silent_at(path: Path, since: float) -> float:
        """When the current path, on which something was sent then and nothing has come, is silent."""
        return since + SILENT_S + path.rtt_s

    def _missed_at(self, path: Path, count: int) -> float:
        """When so many probes of the current path in a row are missed; infinite: nothing says so."""
        if len(path.missing) < count:
            return float("inf")
        last_at = path.missing[count - 1]
        came_at = next((came_at for asked_at, came_at in self._answers if asked_at >= last_at), float("inf"))
        return max(last_at + path.answer_s, came_at) + GRACE_S

    def _verdicts_at(self) -> list[float]:
        """When something may be found out about the current path, if nothing comes."""
        path, since = self._now_path, self._waiting_since
        if path is None:
            return []
        deaf_at = self._missed_at(path, DEAF_PROBES)
        if since is None:
            return [deaf_at]
        silent_at = self._silent_at(path, since)
        return [deaf_at, silent_at, max(silent_at, self._missed_at(path, SILENT_PROBES)), since + GONE_S]

    def _notice_deafness(self, now: float) -> list[Effect]:
        path = self._now_path
        if path is None or now < self._missed_at(path, DEAF_PROBES):
            return []
        heard = [each for each in self._paths.values() if each.proven and each.answered_at > path.missing[0]]
        fresh = [each for each in heard if each is not path and each.lost < DOUBT_PROBES]
        if not fresh:
            return []
        reason = f"{len(path.missing)} probes in a row were not answered"
        path.fall_silent(now)
        return [PathLost(path.route, "deaf"), *self._switch(self._best(fresh), now, reason)]

    def _suspect(self, now: float) -> list[Effect]:
        """Say so once, when the current path is silent for longer than it should be."""
        path, since = self._now_path, self._waiting_since
        if path is None or since is None or self._suspected == since or now < since + self._due_s(path) + SUSPECT_S:
            return []
        self._suspected = since
        return [Suspected(path.route)]

    def _notice_silence(self, now: float) -> list[Effect]:
        path, since = self._now_path, self._waiting_since
        if path is None or since is None or now < self._silent_at(path, since):
            return []
        if now >= since + GONE_S:
            return [*self._fell_silent(path, now), *self._switch(None, now, f"silent for {now - since:.1f} s")]
        fresh = [each for each in self._paths.values() if each.proven and each is not path and each.heard_at > since]
        followed = [each for each in fresh if each.used_at > since]  # the peer has given it up
        if not fresh or (now < self._missed_at(path, SILENT_PROBES) and not followed):
            return []
        effects = self._fell_silent(path, now)
        return effects + self._switch(self._best(fresh), now, f"silent for {now - since:.1f} s")

    def _fell_silent(self, path: Path, now: float) -> list[Effect]:
        path.fall_silent(now)
        return [PathLost(path.route, "silent")]

    def _best(self, among: list[Path] | None = None) -> Path | None:
        """Direct ones first, then by round trip."""
        paths = [path for path in (self._paths.values() if among is None else among) if path.proven]
        return min(paths, key=lambda path: (not path.is_direct, path.loss > LOSS_BAD, path.rtt_s), default=None)

    def _switch(self, path: Path | None, now: float, reason: str) -> list[Effect]:
        was, was_path, self._now_path = self.current, self._now_path, path
        self.current = path.route if path else None
        self._waiting_since, self._usual = None, Usual()
        self._answers.clear()
        for other in self._paths.values():
            other.better = 0
        if self.current == was:
            return []
        lost = was_path is not None and (
            not was_path.proven
            or was_path.route not in self._paths
            or (path is not None and self._has_moved(path, was_path))
        )
        return [Switched(self.current, was, reason, lost)]

    def _unproven(self) -> list[Path]:
        """Those that have never answered, oldest first."""
        return [path for path in self._paths.values() if not path.proven and path.silent_at is None]

    def _proven_direct(self) -> list[Path]:
        return [path for path in self._paths.values() if path.proven and path.is_direct]

    def _make_room(self, older_than: float) -> list[Effect]:
        """A new path is to come: forget the oldest unproven one, or one that is silent, if there are too many."""
        unproven = self._unproven()
        leaves: Path | None = None
        if len(unproven) >= UNPROVEN_MAX:
            leaves = min(unproven, key=lambda path: not path.is_direct)
            if leaves.since > older_than:
                return []
        elif len(self._paths) >= PATHS_MAX:
            idle = (path for path in self._paths.values() if not path.proven and path is not self._now_path)
            leaves = next(idle, None)
        if leaves is None:
            return []
        del self._paths[leaves.route]
        return [PathForgotten(leaves.route)]


def _microseconds(now: float) -> int:
    return max(int(now * 1e6), 0)
