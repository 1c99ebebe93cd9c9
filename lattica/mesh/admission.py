"""How a member stays one: which issuer it asks for a membership, and when; and what an issuer answers.

    member -> issuer   "certify me"            over a session; over the `renew` door (`renewal`) once it has expired
    issuer -> member   a chain, or `Refusal`

Rules of this file. Who has come by an invite asks at once, a member at two thirds of its membership's life. Issuers are
asked one after another, those with a session first and those that did not help last; after a round without success
comes a pause, which grows. Any issuer will do, and no particular machine is needed. If one says that this peer is
out, and no other certifies it until the round is over, it is out. The new membership allows what the old one did.
`now` is unix seconds, corrected by what others say the time is.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from random import Random
from typing import Protocol

import msgspec

from lattica.errors import AdmissionError
from lattica.mesh.certificates import DAY_S, Checks, Member
from lattica.mesh.identity import PeerId, short_peer
from lattica.mesh.roles import Role
from lattica.mesh.trust import Trust, when

RENEW_AFTER = 2 / 3  # of a membership's life
RENEWABLE_S = 180 * DAY_S
"""How long after its end a membership can be renewed: a machine in a cupboard for a term comes back by itself, one that
was given away and forgotten does not."""
ANSWER_S = 30.0  # for an issuer to answer; it may have to be dialed first
ROUND_PAUSE_S = (5.0, 3600.0)  # after the first round in which no issuer helped, and the longest
ASK_FOR_TICKET = (
    "ask for a ticket (`lattica ticket` on a node of the mesh), then `lattica join TICKET` here: this peer keeps its id"
)
ASK_AN_ADMIN = "ask an admin of the mesh; a revoked peer comes back only under a new key, with a new ticket"


class AskMembership(msgspec.Struct, frozen=True):
    """Effect: ask this issuer, dialing it if need be; answered by `answered` or `refused`, or by nothing.

    issuer: maybe ourselves. expired: our certificates open no session any more, so ask through the `renew` door.
    """

    issuer: PeerId
    expired: bool


class MembershipRenewed(msgspec.Struct, frozen=True):
    """Event: keep this chain, and show it from now on. expired_for_s: how long there had been no valid one."""

    chain: tuple[bytes, ...]
    member: Member
    expired_for_s: float


class MembershipRefused(msgspec.Struct, frozen=True):
    """Event: this issuer did not help; another may."""

    issuer: PeerId
    reason: str


class MembershipLost(msgspec.Struct, frozen=True):
    """Event, the last one: no issuer can help any more, only people can."""

    reason: str
    do_next: str


Effect = AskMembership | MembershipRenewed | MembershipRefused | MembershipLost


class Refusal(msgspec.Struct, frozen=True):
    """An issuer's no. final: it is about the peer, so that all issuers say it, and not about this issuer."""

    reason: str
    final: bool


class Certifies(Protocol):
    """An issuing key: `authority.Authority`, or a simulated one."""

    def certify_member(self, public_key: bytes, roles: Role, now: float, *, invite: bytes = b"") -> list[bytes]: ...


class Admission:
    """One member's side."""

    def __init__(self, member: Member, root: bytes, checks: Checks, rng: Random) -> None:
        self.member = member
        self._root, self._checks, self._rng = root, checks, rng
        self._issuers: list[PeerId] = []  # known ones, in the order in which they are asked
        self._connected: set[PeerId] = set()
        self._tried: set[PeerId] = set()  # in this round
        self._outcast = ""  # why, as an issuer said since the last membership
        self._asked: tuple[PeerId, float] | None = None  # whom, and until when we wait
        self._pause_s = ROUND_PAUSE_S[0]
        self._next_at = 0.0
        self._lost = False

    def __repr__(self) -> str:
        state = "lost" if self._lost else f"until {when(self.member.expires)}"
        return f"<Admission {short_peer(self.member.peer)}: {state}, {len(self._issuers)} issuers>"

    # -- what is told

    def issuers(self, known: Sequence[PeerId], now: float) -> list[Effect]:
        """These nodes certify members, as far as is known (`Trust.issuers`); ourselves maybe among them."""
        new = [peer for peer in known if peer not in self._issuers]
        self._rng.shuffle(new)  # else every member asks the same one first
        self._issuers = new + [peer for peer in self._issuers if peer in known]
        if new:
            self._hurry(now)
        return self.tick(now)

    def connected(self, issuer: PeerId, now: float) -> list[Effect]:
        """There is a session with this issuer."""
        self._connected.add(issuer)
        self._tried.discard(issuer)
        self._hurry(now)
        return self.tick(now)

    def disconnected(self, issuer: PeerId) -> None:
        """There is none any more."""
        self._connected.discard(issuer)

    def answered(self, issuer: PeerId, chain: Sequence[bytes], now: float) -> list[Effect]:
        """The issuer has certified us, it says."""
        try:
            member = self._checks.member(chain, self._root, now)
        except AdmissionError as error:
            return self.refused(issuer, f"its answer is no membership: {error.message}", False, now)
        if member.peer != self.member.peer or member.via_invite:
            return self.refused(issuer, "its answer is not a membership of ours", False, now)
        if now < self._due:
            return []  # a late answer: another issuer was faster
        expired_for_s = max(0.0, now - self.member.expires)
        self.member, self._asked, self._lost = member, None, False
        self._tried.clear()
        self._outcast = ""
        self._pause_s, self._next_at = ROUND_PAUSE_S[0], 0.0
        return [MembershipRenewed(tuple(chain), member, expired_for_s)]

    def refused(self, issuer: PeerId, reason: str, final: bool, now: float) -> list[Effect]:
        """The issuer did not, or could not be reached (then `final` is False)."""
        if self._lost:
            return []
        if self._asked is not None and self._asked[0] == issuer:
            self._asked = None
        if final:
            self._outcast = reason
        return [self._unhelpful(issuer, reason), *self.tick(now)]

    def tick(self, now: float) -> list[Effect]:
        """Ask whoever is to be asked by now."""
        if self._lost or now < self._due:
            return []
        if now >= self._end:
            expired = f"its certificate expired on {when(self.member.expires)}"
            if self.member.via_invite:
                return self._lose(f"{expired}, before any issuer could be reached", ASK_FOR_TICKET)
            return self._lose(f"{expired}, more than {RENEWABLE_S / DAY_S:.0f} days ago", ASK_FOR_TICKET)
        effects: list[Effect] = []
        if self._asked is not None:
            if now < self._asked[1]:
                return []
            effects.append(self._unhelpful(self._asked[0], f"it did not answer within {ANSWER_S:.0f} s"))
            self._asked = None
        if now < self._next_at:
            return effects
        everybody = {*self._issuers, *self._connected}
        if untried := everybody - self._tried:
            issuer = min(untried, key=self._rank)
            self._tried.add(issuer)
            self._asked = issuer, now + ANSWER_S
            return [*effects, AskMembership(issuer, expired=now >= self.member.expires)]
        if self._outcast:
            return effects + self._lose(self._outcast, ASK_AN_ADMIN)
        if everybody:  # and all were tried
            self._tried.clear()
            self._next_at = now + self._pause_s * self._rng.uniform(0.5, 1.0)
            self._pause_s = min(2 * self._pause_s, ROUND_PAUSE_S[1])
        return effects

    def next_deadline(self) -> float | None:
        """When to call `tick`; None once the membership is lost."""
        if self._lost:
            return None
        if self._asked is not None:
            return min(self._asked[1], self._end)
        anybody = bool(self._issuers or self._connected)
        return min(max(self._due, self._next_at) if anybody else inf, self._end)

    def validate(self) -> None:
        """Assert what always holds."""
        assert self._asked is None or self._asked[0] in self._tried, "an issuer is asked outside its round"
        assert not (self._lost and self._asked), "a lost membership is asked for"
        assert ROUND_PAUSE_S[0] <= self._pause_s <= ROUND_PAUSE_S[1], "the pause is out of bounds"

    # -- how it decides

    @property
    def _due(self) -> float:
        """When to begin asking."""
        member = self.member
        return 0.0 if member.via_invite else member.certified + RENEW_AFTER * (member.expires - member.certified)

    @property
    def _end(self) -> float:
        """When nobody can help any more. An invite's end is that of joining by it."""
        return self.member.expires + (0.0 if self.member.via_invite else RENEWABLE_S)

    def _rank(self, issuer: PeerId) -> tuple[bool, bool, int, PeerId]:
        """Ourselves, then those with a session, then the others."""
        place = self._issuers.index(issuer) if issuer in self._issuers else len(self._issuers)
        return issuer != self.member.peer, issuer not in self._connected, place, issuer

    def _unhelpful(self, issuer: PeerId, reason: str) -> MembershipRefused:
        """It is asked after the others from now on."""
        if issuer in self._issuers:
            self._issuers.remove(issuer)
            self._issuers.append(issuer)
        return MembershipRefused(issuer, reason)

    def _hurry(self, now: float) -> None:
        """There is somebody new to ask."""
        self._pause_s, self._next_at = ROUND_PAUSE_S[0], min(self._next_at, now)

    def _lose(self, reason: str, do_next: str) -> list[Effect]:
        self._lost, self._asked = True, None
        return [MembershipLost(reason, do_next)]


def answer(issuer: Certifies, trust: Trust, member: Member, now: float) -> list[bytes] | Refusal:
    """What an issuer says to a peer that TLS, or `verify_renewal`, has proved to be this member: a chain, or no."""
    if reason := trust.revoked(member, joining=member.via_invite):
        return Refusal(reason, final=True)
    try:
        chain = issuer.certify_member(member.public_key, member.roles, now, invite=member.invite)
        renewed = trust.checks.member(chain, trust.root, None)
    except AdmissionError as error:
        return Refusal(f"this issuer cannot certify: {error.message}", final=False)
    if reason := trust.revoked(renewed):
        return Refusal(f"this node certifies nobody any more: {reason}", final=False)
    return chain
