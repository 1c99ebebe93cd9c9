"""By which methods two peers may become direct, from what both are behind.

    simultaneous send        open   address   address and port      (filtering of the one whose mapping is independent)
    mapping independent      yes    yes       yes
    per destination          yes    yes       only if its next port can be guessed: prediction, else birthday

Two that both map per destination become direct only if both are predictable. Measured with kernel NATs, 10 of 10 or 0
of 10 in each place; see docs/design/0015-paths.md. What is not known is hoped for, and its round costs little.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from lattica.mesh.nat.behaviour import Allocation, Behaviour, Dependence
from lattica.mesh.nat.candidates import Candidate, Source, are_near, share_ipv6


class Method(Enum):
    """How a pair becomes direct."""

    DIAL = "dial"  # one can be reached as it is, the other sends
    SIMULTANEOUS = "simultaneous send"
    PREDICTION = "prediction"  # of the next ports of a sequential allocator
    BIRTHDAY = "birthday"  # many sockets on one side, many ports guessed by the other
    TCP = "TCP simultaneous open"


ROUNDS = {Method.DIAL: 1, Method.SIMULTANEOUS: 3, Method.PREDICTION: 3, Method.BIRTHDAY: 1, Method.TCP: 2}
"""How often each is tried before the next."""


def is_open(behaviour: Behaviour, candidates: Sequence[Candidate] = ()) -> bool:
    """Whether anybody reaches this peer's socket at an endpoint that it knows."""
    if behaviour.mapped or any(each.source in (Source.CONFIGURED, Source.MAPPED) for each in candidates):
        return True
    return not is_symmetric(behaviour) and behaviour.filtering is Dependence.INDEPENDENT


def is_symmetric(behaviour: Behaviour) -> bool:
    """Whether others cannot know at which port it is for them."""
    return behaviour.mapping in (Dependence.ADDRESS, Dependence.ADDRESS_AND_PORT)


def is_predictable(behaviour: Behaviour) -> bool:
    """Whether the next ports of a symmetric NAT can be guessed: it counts upwards."""
    return is_symmetric(behaviour) and behaviour.allocation is Allocation.SEQUENTIAL


def choose(
    ours: Behaviour,
    theirs: Behaviour,
    our_candidates: Sequence[Candidate] = (),
    their_candidates: Sequence[Candidate] = (),
    *,
    birthday: bool = True,
) -> tuple[Method, ...]:
    """In which order to try; (): stay relayed. Both sides would find the same. birthday: both allow it."""
    near, six = are_near(our_candidates, their_candidates), share_ipv6(our_candidates, their_candidates)
    sides = ((ours, our_candidates), (theirs, their_candidates))
    if ours.udp is False or theirs.udp is False:
        local = [Method.SIMULTANEOUS] if near or six else []
        return (*local, *([Method.TCP] if may_open_tcp(ours, theirs) else []))
    methods: list[Method] = []
    if near or six:
        methods.append(Method.SIMULTANEOUS)
    if any(is_open(*side) for side in sides):
        methods += [Method.DIAL, Method.SIMULTANEOUS]
    methods += _by_punching(ours, theirs, birthday=birthday)
    return tuple(dict.fromkeys(methods))


def _by_punching(ours: Behaviour, theirs: Behaviour, *, birthday: bool) -> list[Method]:
    symmetric = [side for side in (ours, theirs) if is_symmetric(side)]
    if not symmetric:
        return [Method.SIMULTANEOUS]
    if len(symmetric) == 2:
        return [Method.PREDICTION] if all(map(is_predictable, symmetric)) else []
    other = theirs if is_symmetric(ours) else ours
    if other.filtering in (Dependence.INDEPENDENT, Dependence.ADDRESS):
        return [Method.SIMULTANEOUS]
    hoped = [Method.SIMULTANEOUS] if other.filtering is None else []  # it may let answers from another port through
    guessed = [Method.PREDICTION] if is_predictable(symmetric[0]) else []
    return [*hoped, *guessed, *([Method.BIRTHDAY] if birthday else [])]


def may_open_tcp(ours: Behaviour, theirs: Behaviour) -> bool:
    """Whether both can connect at once: TCP is mapped and filtered as UDP is, as far as that could be measured (FACTS:
    the same table)."""
    filters = (Dependence.INDEPENDENT, Dependence.ADDRESS)
    symmetric = [side for side in (ours, theirs) if is_symmetric(side)]
    return not symmetric or any(side.filtering in filters for side in (ours, theirs))
