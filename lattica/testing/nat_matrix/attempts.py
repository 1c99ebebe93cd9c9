"""One attempt of a pair: both join by the ticket alone, call each other, and become direct or not."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .fleet import Fleet, Told
from .kinds import Pair, hosts_of

CALL_S = 10.0  # for the first answer, after which the attempt has failed
NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Attempt:
    """How it went. Times are seconds after the later of both had joined; NEVER if it did not come to that.

    answered_s: until both had an answer to a call. direct_s: until both had a path without a relay.
    """

    pair: Pair
    answered_s: float = NEVER
    direct_s: float = NEVER
    transport: str = ""
    path: str = ""
    method: str = ""
    failed: tuple[str, ...] = ()  # what the calls before the first answer raised
    error: str = ""
    behind: tuple[str, str] = ("", "")
    records: tuple[dict[str, Any], ...] = ()

    @property
    def answered(self) -> bool:
        return self.answered_s < NEVER

    @property
    def direct(self) -> bool:
        return self.direct_s < NEVER


def attempt(fleet: Fleet, pair: Pair, direct_within_s: float) -> Attempt:
    """Let fresh peers of this pair meet, and end them."""
    hosts = hosts_of(pair)
    try:
        return _attempt(fleet, pair, hosts, direct_within_s)
    except (Told, TimeoutError) as error:
        return Attempt(pair, error=str(error) or "timeout")
    finally:
        try:
            fleet.finish(*hosts)
        except (Told, TimeoutError):
            pass


def _attempt(fleet: Fleet, pair: Pair, hosts: tuple[str, str], direct_within_s: float) -> Attempt:
    joined = fleet.begin(*hosts)
    directions = (hosts, hosts[::-1])
    watched = [fleet.tell(one, "watch", peer=fleet.ids[other], within_s=direct_within_s) for one, other in directions]
    first = [fleet.tell(one, "first_call", peer=fleet.ids[other], within_s=CALL_S) for one, other in directions]
    said = [future.result(CALL_S + 20) for future in first]
    rows = [future.result(direct_within_s + 20) for future in watched]
    behind = [fleet.ask(host, "behaviour")["words"] for host in hosts]
    records = [
        each for one, other in directions for each in fleet.ask(one, "records", peer=fleet.ids[other])["records"]
    ]
    direct = all(row["direct"] for row in rows)
    return Attempt(
        pair,
        answered_s=max(each["at"] for each in said) - joined,
        direct_s=max(row["at"] for row in rows) - joined if direct else NEVER,
        transport=rows[0].get("transport", ""),
        path=rows[0].get("path", ""),
        method=next((row["method"] for row in rows if row["method"]), "" if not direct else "dial"),
        failed=tuple(text for each in said for text in each["failed"]),
        behind=(behind[0], behind[1]),
        records=tuple(records),
    )


@dataclass
class Line:
    """All attempts of one pair."""

    pair: Pair
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def answered(self) -> int:
        return sum(each.answered for each in self.attempts)

    @property
    def direct(self) -> int:
        return sum(each.direct for each in self.attempts)

    def cells(self) -> list[str]:
        """For the table: pair, answered, slowest first answer, direct, time to it, methods, words."""
        answered = [each.answered_s for each in self.attempts if each.answered]
        direct = [each.direct_s for each in self.attempts if each.direct]
        ways = dict.fromkeys(f"{each.transport} {each.method}".strip() for each in self.attempts if each.direct)
        errors = dict.fromkeys(each.error for each in self.attempts if each.error)
        total = len(self.attempts)
        return [
            " / ".join(self.pair),
            f"{len(answered)} of {total}",
            _times(answered),
            f"{len(direct)} of {total}",
            _times(direct),
            ", ".join(ways),
            "; ".join(errors)[:60],
        ]


HEAD = ["pair", "answered", "after p50/max", "direct", "after p50/p95/max", "by", ""]


def _times(seconds: Sequence[float]) -> str:
    if not seconds:
        return "-"
    ordered = sorted(seconds)
    shown = (
        [percentile(ordered, 0.5), ordered[-1]]
        if len(ordered) < 20
        else [percentile(ordered, 0.5), percentile(ordered, 0.95), ordered[-1]]
    )
    return " ".join(f"{each:.2f}" for each in shown) + " s"


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which this share of the ordered ones lies."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def table(lines: Iterable[Sequence[str]]) -> str:
    """Lines with their columns aligned; all have as many as the first."""
    rows = list(lines)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def as_json(attempt: Attempt) -> dict[str, Any]:
    """Plain data, for a file."""
    return {
        "pair": "/".join(attempt.pair),
        "answered_s": attempt.answered_s if attempt.answered else None,
        "direct_s": attempt.direct_s if attempt.direct else None,
        "transport": attempt.transport,
        "path": attempt.path,
        "method": attempt.method,
        "failed": attempt.failed,
        "error": attempt.error,
        "behind": attempt.behind,
        "records": attempt.records,
        "unix_s": time.time(),
    }
