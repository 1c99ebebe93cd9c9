"""What peers say to each other about topics: see `pubsub`.

    A -> B  Publication(publisher, boot, number, ...)    it is new, or B wants it
    A -> B  Have(runs)                                   A keeps these; B asks for what it has not seen
    B -> A  Want(runs)

A publication is signed by its publisher, whoever passes it on, over the mesh and all that it says but its age. Numbers
of messages are only ever appended, and unknown fields at their ends are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import msgspec

from lattica.errors import RemoteProtocolError
from lattica.mesh.identity import PEER_ID_BYTES, PeerId
from lattica.mesh.papers import DAMAGED, SIGNATURE_BYTES

TOPIC_MAX_CHARS = 128  # a path of words; longer names are data
BODY_MAX_BYTES = 64 << 10
"""Every peer of the mesh carries it, so what is longer belongs into the object store, and its ref into the body."""
NUMBER_MAX = (1 << 63) - 1  # fits a signed field of any reader
AGE_MAX_MS = 3_600_000  # more than any peer keeps one
RUNS_MAX = 128  # in one message: some 6 KiB
HAVE_MAX = 8192  # publications that one Have can name: as many as a peer keeps
WANT_MAX = 256  # publications that one Want can name
MESSAGE_MAX_BYTES = BODY_MAX_BYTES + (1 << 10)  # the longest publication; the longest Have has 8 KiB

Id = tuple[PeerId, int, int]
"""A publication's name: publisher, boot, number."""


class Publication(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """number: of all that this process of the publisher published, from 1. age_ms: since then, as far as is known; who
    passes it on adds how long it kept it."""

    publisher: PeerId
    boot: int
    number: int
    topic: str
    body: bytes
    signature: bytes
    age_ms: int = 0

    @property
    def id(self) -> Id:
        return self.publisher, self.boot, self.number


class Run(msgspec.Struct, array_like=True, frozen=True):
    """Publications of one process, numbered from `first` to `last`."""

    publisher: PeerId
    boot: int
    first: int
    last: int


class Have(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """Whoever asks for one of these will get it."""

    runs: tuple[Run, ...]


class Want(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """Send me these."""

    runs: tuple[Run, ...]


Message = Publication | Have | Want
encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


def decode(data: bytes) -> Message:
    """Raises RemoteProtocolError for whatever is no message within the limits above."""
    if len(data) > MESSAGE_MAX_BYTES:
        raise RemoteProtocolError(f"a message about topics has {len(data)} bytes, and may have {MESSAGE_MAX_BYTES}")
    try:
        message: Message = _decode(data)
    except DAMAGED as error:
        raise RemoteProtocolError(f"a message about topics cannot be read: {error}") from error
    if not _holds(message):
        raise RemoteProtocolError(f"a {type(message).__name__} about topics is beyond its limits")
    return message


def _holds(message: Message) -> bool:
    match message:
        case Publication(publisher, boot, number, topic, body, signature, age_ms):
            return (
                _is_name(publisher, boot, number, number)
                and 0 < len(topic) <= TOPIC_MAX_CHARS
                and len(body) <= BODY_MAX_BYTES
                and len(signature) == SIGNATURE_BYTES
                and 0 <= age_ms <= AGE_MAX_MS
            )
        case Have(runs):
            return _are_runs(runs, HAVE_MAX)
        case Want(runs):
            return _are_runs(runs, WANT_MAX)


def _are_runs(runs: Sequence[Run], ids_max: int) -> bool:
    named = all(_is_name(run.publisher, run.boot, run.first, run.last) for run in runs)
    return named and 0 < len(runs) <= RUNS_MAX and sum(run.last - run.first + 1 for run in runs) <= ids_max


def _is_name(publisher: bytes, boot: int, first: int, last: int) -> bool:
    return len(publisher) == PEER_ID_BYTES and 0 <= boot <= NUMBER_MAX and 0 < first <= last <= NUMBER_MAX


# -- runs --------------------------------------------------------------------------------------------------------------


def runs_of(ids: Iterable[Id]) -> list[Run]:
    """The same publications, neighbours together."""
    found: list[Run] = []
    for publisher, boot, number in sorted(ids):
        last = found[-1] if found else None
        if last is not None and (last.publisher, last.boot, last.last) == (publisher, boot, number - 1):
            found[-1] = Run(publisher, boot, last.first, number)
        else:
            found.append(Run(publisher, boot, number, number))
    return found


def ids_of(runs: Iterable[Run]) -> Iterator[Id]:
    """What runs name."""
    for run in runs:
        for number in range(run.first, run.last + 1):
            yield run.publisher, run.boot, number


def wants_of(ids: Sequence[Id]) -> Iterator[Want]:
    """As few messages as name all of these."""
    for at in range(0, len(ids), WANT_MAX):
        runs = iter(runs_of(ids[at : at + WANT_MAX]))
        while some := tuple(islice(runs, RUNS_MAX)):
            yield Want(some)


# -- signatures --------------------------------------------------------------------------------------------------------

_PURPOSE = b"lattica publication 1\0"


def to_sign(publisher: PeerId, boot: int, number: int, topic: str, body: bytes, mesh: bytes) -> bytes:
    """What a publisher signs."""
    return _PURPOSE + mesh + encode((publisher, boot, number, topic, body))
