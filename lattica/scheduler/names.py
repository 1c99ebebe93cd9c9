"""Names: one holder each, decided by the name's home, kept in the table.

    A -> H  Claim(claim, name, body)      H: the first living member in rendezvous order of the name
    H -> A  Claimed(claim, row) · Refused(claim, reason, held) · Elsewhere(claim, home)

The home looks into its table and, where nobody has the name, writes its row: that is the compare-and-set. A claim is
granted when the *claimer's* table holds its row, which comes with the answer or with the flood, so a name is lost only
if both die at once; then the constructor starts. Asking again is harmless: the row names the claim.

Only the home writes over a predecessor, the tombstone of the last holder, so a name's rows are a chain of epochs. Where
two halves of a mesh each began one, or superseded the same row, the table keeps one of the two, the same everywhere.
Whoever then sees another claim under a name that it holds has lost it (`NameLost`), and its actor is fenced. Who sees
its row superseded by the tombstone of somebody else, which the home did not know, asks again for the same claim.

Rules of this file. `now` is the only time. A home that has just begun, or to whom members came back, first waits until
the tables are equal. A claim that was given up and is found in the table after all is released by its claimer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from lattica.mesh.identity import PeerId, short_peer
from lattica.mesh.roles import Role
from lattica.scheduler.claims import (
    Claim,
    Claimed,
    Effect,
    Elsewhere,
    Holder,
    Merge,
    Message,
    NameClaimed,
    NameFailed,
    NameLost,
    NameTaken,
    Refused,
    Release,
    Send,
    Write,
)
from lattica.scheduler.rendezvous import Standing, deciders, first

ASK_S = 1.0  # between askings: a round trip is 0.4 s at most
CLAIM_S = 30.0
"""For an answer. A home's death is known after some ten seconds, and the next one may have to settle."""
SETTLE_S = 5.0  # of a home, after its table may have been behind: as long as tables need after a heal
GIVEN_UP_S = 600.0  # while a given up claim may still be granted by somebody who was cut off
OPEN_MAX = 4096  # claims of this peer's at once
GIVEN_UP_MAX = 4096


@dataclass(slots=True)
class _Open:
    """A claim without an answer. again: it was granted before."""

    claim: bytes
    name: bytes
    body: bytes
    until: float
    again: bool
    ask_at: float = 0.0
    asked: set[PeerId] = field(default_factory=set)
    hinted: bool = False  # followed an `Elsewhere` since `ask_at` was set


class Names:
    """See the module. One of a node's, for claims of all its processes."""

    def __init__(self, me: PeerId, now: float, holder: Callable[[bytes], tuple[Holder, bytes] | None]) -> None:
        """holder: who has this name by our table, and the row as it travels."""
        self.me = me
        self._holder = holder
        self._living: dict[PeerId, Standing] = {}
        self._homes: list[PeerId] = []
        self._gone: set[PeerId] = set()  # lived once
        self._settled_at = now + SETTLE_S
        self._open: dict[bytes, _Open] = {}
        self._writing: dict[bytes, tuple[bytes, PeerId]] = {}  # name -> claim, claimer
        self._held: dict[bytes, Holder] = {}  # names that claims of this boot have
        self._given_up: dict[bytes, float] = {}

    def __repr__(self) -> str:
        return f"<Names of {short_peer(self.me)}: {len(self._open)} claims, {len(self._held)} held>"

    def home(self, name: bytes) -> PeerId | None:
        """Who decides about it; None while nobody may."""
        return first(name, self._homes)

    @property
    def held(self) -> dict[bytes, Holder]:
        """What claims made here hold."""
        return dict(self._held)

    # -- wishes of this machine

    def claim(self, claim: bytes, name: bytes, body: bytes, now: float) -> list[Effect]:
        """Ask for a name; ends in NameClaimed, NameTaken or NameFailed. claim: as long as CLAIM_BYTES, random."""
        if claim in self._open:
            return []
        found = self._holder(name)
        if found is not None:
            if found[0].claim != claim:
                return [NameTaken(claim, name, found[0].body)]
            self._held[name] = found[0]
            return [NameClaimed(claim, name)]
        if len(self._open) >= OPEN_MAX:
            return [NameFailed(claim, name, f"{OPEN_MAX} other names are being claimed here")]
        self._given_up.pop(claim, None)
        self._open[claim] = _Open(claim, name, body, now + CLAIM_S, again=False)
        return self._ask(self._open[claim], now)

    def hold(self, name: bytes, claim: bytes, body: bytes, now: float) -> list[Effect]:
        """What this claim's name stands for was restarted here: watch over the name from now on."""
        found, other = self._holder(name), self._held.get(name)
        if other is not None and other.claim != claim:  # both are here, of two halves
            return [NameLost(claim, name, other)]
        self._held[name] = Holder(claim, self.me, body)
        return self.name_changed(name, None if found is None else found[0], False, now)

    def release(self, name: bytes, claim: bytes, now: float) -> list[Effect]:
        """What this claim's name stood for has ended, here or where it was restarted."""
        held = self._held.get(name)
        if held is not None and held.claim == claim:
            del self._held[name]
        self._open.pop(claim, None)
        found = self._holder(name)
        return [Release(name, found[0])] if found is not None and found[0].claim == claim else []

    # -- what happens

    def members_changed(self, living: Iterable[Standing], now: float) -> list[Effect]:
        """Who lives, this peer among them: members that are neither dead, left nor revoked."""
        before, self._living = self._living, {member.peer: member for member in living}
        if self._living.keys() & self._gone:
            self._settled_at = now + SETTLE_S
        self._gone = (self._gone | before.keys()) - self._living.keys()
        self._homes = deciders(self._living.values(), Role.SUBMIT)
        effects: list[Effect] = []
        for claim in list(self._open.values()):
            if self.home(claim.name) not in claim.asked:
                effects += self._ask(claim, now)
        return effects

    def receive(self, sender: PeerId, message: Message, now: float) -> list[Effect]:
        """A message of a member, as the transport authenticated it."""
        if isinstance(message, Claim):
            return self._decide(sender, message, now)
        claim = self._open.get(message.claim)
        if claim is None or sender not in claim.asked:
            return []
        match message:
            case Claimed(_, row):
                return [Merge(sender, row)]  # `name_changed` goes on, if the row holds
            case Elsewhere(_, home):
                if claim.hinted or home == self.me or home not in self._homes:
                    return []
                claim.hinted = True
                claim.asked.add(home)
                return [Send(home, Claim(claim.claim, claim.name, claim.body))]
            case Refused(_, reason, held):
                return self._end(claim, reason, held, now)

    def written(self, name: bytes, row: bytes, refusal: str, now: float) -> list[Effect]:
        """`Write` was carried out: the row as it travels, or why our table would not have it."""
        claim, claimer = self._writing.pop(name)
        if claimer != self.me:
            return [Send(claimer, Refused(claim, refusal) if refusal else Claimed(claim, row))]
        mine = self._open.get(claim)
        return self._end(mine, refusal, None, now) if refusal and mine is not None else []

    def name_changed(self, name: bytes, holder: Holder | None, gone: bool, now: float) -> list[Effect]:
        """What our table says under this name now. gone: it is a tombstone, of that holder; None: it expired."""
        effects: list[Effect] = []
        has = None if gone else holder
        mine = self._held.get(name)
        if mine is not None and (holder is None or holder.claim != mine.claim):
            if has is not None:
                del self._held[name]
                effects.append(NameLost(mine.claim, name, has))
            elif mine.claim not in self._open:
                self._open[mine.claim] = _Open(mine.claim, name, mine.body, now + CLAIM_S, again=True)
                effects += self._ask(self._open[mine.claim], now)
        elif mine is not None and gone:
            del self._held[name]
            effects.append(NameLost(mine.claim, name, None))
        if has is None:
            return effects
        for claim in [claim for claim in self._open.values() if claim.name == name]:
            if claim.claim == has.claim:
                del self._open[claim.claim]
                self._held[name] = has
                effects += [] if claim.again else [NameClaimed(claim.claim, name)]
            else:
                effects += self._end(claim, "", has.body, now)
        if has.claim in self._given_up and has.claimer == self.me:
            effects.append(Release(name, has))
        return effects

    # -- time

    def tick(self, now: float) -> list[Effect]:
        """Whatever is due."""
        effects: list[Effect] = []
        for claim in list(self._open.values()):
            if claim.until <= now and not claim.again:
                effects += self._end(claim, f"no home of this name has answered for {CLAIM_S:g} s", None, now)
            elif claim.ask_at <= now:
                effects += self._ask(claim, now)
        for given_up in [given_up for given_up, until in self._given_up.items() if until <= now]:
            del self._given_up[given_up]
        return effects

    def next_deadline(self) -> float | None:
        """When to call `tick`."""
        due = [min(claim.ask_at, claim.until) if not claim.again else claim.ask_at for claim in self._open.values()]
        due += list(self._given_up.values())[:1]
        return min(due, default=None)

    def validate(self) -> None:
        """Assert what always holds."""
        assert len(self._given_up) <= GIVEN_UP_MAX, "too many claims are remembered"
        assert not self._open.keys() & self._given_up.keys(), "a claim is open and given up"

    # -- inside

    def _ask(self, claim: _Open, now: float) -> list[Effect]:
        claim.ask_at, claim.hinted = now + ASK_S, False
        home = self.home(claim.name)
        if home is None:
            return []
        claim.asked.add(home)
        message = Claim(claim.claim, claim.name, claim.body)
        return self._decide(self.me, message, now) if home == self.me else [Send(home, message)]

    def _decide(self, claimer: PeerId, claim: Claim, now: float) -> list[Effect]:
        """As the home, if we are."""
        standing = self._living.get(claimer)
        if standing is None or claim.name in self._writing:
            return []  # it asks again
        if Role.SUBMIT not in standing.roles:
            return self._answer(claimer, Refused(claim.claim, "a name needs the role submit"), now)
        found = self._holder(claim.name)
        if found is not None:
            holder, row = found
            mine = (holder.claim, holder.claimer) == (claim.claim, claimer)
            return self._answer(
                claimer, Claimed(claim.claim, row) if mine else Refused(claim.claim, "", holder.body), now
            )
        home = self.home(claim.name)
        if home != self.me:
            return [Send(claimer, Elsewhere(claim.claim, home))] if home is not None and claimer != self.me else []
        if now < self._settled_at and len(self._living) > 1:
            return []
        self._writing[claim.name] = claim.claim, claimer
        return [Write(claim.name, Holder(claim.claim, claimer, claim.body))]

    def _answer(self, claimer: PeerId, message: Message, now: float) -> list[Effect]:
        return [Send(claimer, message)] if claimer != self.me else self.receive(self.me, message, now)

    def _end(self, claim: _Open, reason: str, held: bytes | None, now: float) -> list[Effect]:
        """It has not got the name."""
        self._open.pop(claim.claim, None)
        if claim.again:
            return []  # `name_changed` tells who has it
        if len(self._given_up) < GIVEN_UP_MAX:
            self._given_up[claim.claim] = now + GIVEN_UP_S
        if held is not None:
            return [NameTaken(claim.claim, claim.name, held)]
        return [NameFailed(claim.claim, claim.name, reason)]
