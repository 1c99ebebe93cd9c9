"""The kinds of rows: who may write one, under which key, how large, how many, for how long.

Numbers are only ever appended: they stand in rows that outlive releases. A row of a kind that a later release knows is
kept and passed on by the limits of `UNKNOWN`, and read by nobody here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from lattica.mesh.roles import Role

DAY_S = 86400.0
NEVER = 1 << 40
"""`expires` of what must not be forgotten, in unix seconds."""
TOMBSTONE_S = 7 * DAY_S
"""A replica that was silent for longer takes everything but its own rows anew."""
RULE_S = 120 * DAY_S
"""What an admin has said of the mesh counts so long, and no row that is not renewed counts for longer: less than the
certificate by which it can be verified, which is kept for 180 days and renewed every 20."""
EVIDENCE_S = 30 * DAY_S
"""A lie is evidence for so long after its rows have expired."""
KEY_MAX_BYTES = 256


class Keys(Enum):
    """What a row's key must be."""

    OWN = auto()  # the writer's id: one row for each
    OWN_PREFIX = auto()  # begins with the writer's id
    OWN_SUFFIX = auto()  # ends with the writer's id
    FREE = auto()  # anything; writers of one key have an order (`Row.epoch`)
    PROVES = auto()  # the body proves itself, by whoever brought it; the key is the hash that `rows` computes


@dataclass(frozen=True, slots=True)
class Kind:
    """role: that the writer's certificate must carry; None: any member. max_rows: of one writer. ttl_s: how long a row
    counts after it was written; its writer renews it before. is_common: whoever has the role may supersede what another
    wrote (docs/design/0013)."""

    number: int
    name: str
    keys: Keys
    role: Role | None
    max_bytes: int  # of the body
    max_rows: int
    ttl_s: float
    is_common: bool = False

    @property
    def is_multi(self) -> bool:
        """Whether several writers may hold one key, one after another."""
        return self.keys is Keys.FREE


NODE = Kind(1, "node", Keys.OWN, None, 16 << 10, 1, DAY_S)
ACCUSATION = Kind(2, "accusation", Keys.OWN_SUFFIX, None, 64, 4096, DAY_S)
CERTIFICATE = Kind(3, "certificate", Keys.OWN, None, 12 << 10, 1, 180 * DAY_S)
STATEMENT = Kind(4, "statement", Keys.PROVES, None, 8 << 10, 10_000, NEVER)
EVIDENCE = Kind(5, "evidence", Keys.PROVES, None, 64 << 10, 10_000, RULE_S)
CLEARANCE = Kind(6, "clearance", Keys.FREE, Role.ADMIN, 1 << 10, 10_000, RULE_S)
SERVICE = Kind(7, "service", Keys.OWN_PREFIX, None, 1 << 10, 1024, DAY_S)
JOB = Kind(8, "job", Keys.FREE, Role.SUBMIT, 8 << 10, 10_000, 7 * DAY_S)
ACTOR = Kind(9, "actor", Keys.FREE, Role.SUBMIT, 8 << 10, 50_000, 7 * DAY_S, is_common=True)
GROUP = Kind(10, "group", Keys.FREE, Role.SUBMIT, 16 << 10, 10_000, 7 * DAY_S)
NAME = Kind(11, "name", Keys.FREE, Role.SUBMIT, 1 << 10, 10_000, 7 * DAY_S, is_common=True)
SETTING = Kind(12, "setting", Keys.FREE, Role.ADMIN, 8 << 10, 1024, RULE_S)

KINDS = {
    kind.number: kind
    for kind in (
        NODE, ACCUSATION, CERTIFICATE, STATEMENT, EVIDENCE, CLEARANCE, SERVICE, JOB, ACTOR, GROUP, NAME, SETTING,
    )
}  # fmt: skip
BY_NAME = {kind.name: kind for kind in KINDS.values()}
