"""What a program says of where its tasks may run, as it travels from a client to its node.

    options ── DemandGiven ──► encode ── LeaseRequest ──► decode ── to_demand ──► Demand

A client is believed nothing: `decode` bounds every length and raises RemoteProtocolError, `to_demand` finds what makes
no sense and raises ConfigError with words for the user, who may hear them from the node. `options` asks the same when
an option is given, so that this is where it is said first. Fields are only ever appended.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from lattica.errors import ConfigError, RemoteProtocolError
from lattica.ids import ID_BYTES
from lattica.mesh.identity import PEER_ID_BYTES, PEER_ID_CHARS, PeerId, parse_peer
from lattica.mesh.papers import DAMAGED
from lattica.scheduler import labels
from lattica.scheduler.demand import Affinity, Default, Demand, NodeView, Spread, Strategy, missing
from lattica.scheduler.resources import NAME_MAX_CHARS, NAMES_MAX, ResourceSet

GIVEN_MAX_BYTES = 64 << 10
"""Of one: 100 bytes are usual. More: a program that asks without end makes the node read for long."""
TRUST_MAX = 256  # issuers and peers that one task trusts: 8 KiB
INPUTS_MAX = 256  # peers with a part of the input; a choice looks at the two that have most
INPUT_MAX_BYTES = 1 << 50
WORK_S_MAX = 1e9
ANY_BUNDLE = -1  # Ray's word for it
EMBEDDED_ID_BYTES = 16  # of a node without a mesh, which has no key
DEFAULT, SPREAD = "DEFAULT", "SPREAD"

_Name = Annotated[str, msgspec.Meta(max_length=NAME_MAX_CHARS)]
_Rules = Annotated[
    dict[_Name, Annotated[str, msgspec.Meta(max_length=labels.CHARS_MAX)]], msgspec.Meta(max_length=labels.RULES_MAX)
]
_Id = Annotated[bytes, msgspec.Meta(max_length=PEER_ID_BYTES)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=INPUT_MAX_BYTES)]


class StrategyGiven(msgspec.Struct, array_like=True, frozen=True):
    """`scheduling_strategy`. At most one of spread, node and group; none: where it is done first.

    soft: elsewhere if `node` cannot be had. soft_labels: nodes with these are preferred. bundle: of `group`; ANY_BUNDLE
    for whichever has room. captures: what it calls goes to the group as well. owner: the node that has made the group.
    """

    spread: bool = False
    node: _Id = b""
    soft: bool = False
    labels: _Rules = {}
    soft_labels: _Rules = {}
    group: _Id = b""
    bundle: Annotated[int, msgspec.Meta(ge=ANY_BUNDLE, lt=1 << 31)] = ANY_BUNDLE
    captures: bool = False
    owner: _Id = b""


class DemandGiven(msgspec.Struct, array_like=True, frozen=True):
    """What one scheduling class of tasks, or an actor, needs; fields as of `Demand`.

    resources: none where the message around it has them. labels: `label_selector`; what the strategy says of labels
    comes on top. inputs: (peer, bytes of the input that lie there). input_bytes: of all arguments together, each
    counted once.
    """

    resources: Annotated[dict[_Name, float], msgspec.Meta(max_length=NAMES_MAX)] = {}
    strategy: StrategyGiven = StrategyGiven()
    labels: _Rules = {}
    site: Annotated[str, msgspec.Meta(max_length=NAME_MAX_CHARS)] = ""
    trust: Annotated[tuple[_Id, ...], msgspec.Meta(max_length=TRUST_MAX)] = ()
    inputs: Annotated[tuple[tuple[_Id, _Size], ...], msgspec.Meta(max_length=INPUTS_MAX)] = ()
    input_bytes: _Size = 0
    python: Annotated[str, msgspec.Meta(max_length=8)] = ""  # its minor version, "3.11"
    work_s: Annotated[float, msgspec.Meta(ge=0, le=WORK_S_MAX)] = 0.0

    def check(self) -> None:
        """Raises ConfigError, which says what to change."""
        check_strategy(self.strategy)
        labels.check(self.labels)
        for name, rule in self.labels.items():
            if self.strategy.labels.get(name, rule) != rule:
                raise ConfigError(
                    f"label_selector and scheduling_strategy say different things of label {name}",
                    do_next="name each label in one of them",
                )
        if self.python and not re.fullmatch(r"[0-9]{1,2}\.[0-9]{1,3}", self.python):
            raise ConfigError(f"{self.python!r} is no minor version of Python", do_next='say it like "3.11"')
        if any(len(one) != PEER_ID_BYTES for one in self.trust):
            raise ConfigError("trust names what is no peer and no issuer", do_next="give whole ids")
        if any(len(peer) != PEER_ID_BYTES for peer, _ in self.inputs):
            raise ConfigError("a part of the input lies at what is no peer")

    def to_demand(self, at: PeerId | None = None) -> Demand:
        """at: the node that keeps the bundle, of a demand with a placement group: it runs there or nowhere.

        Raises ConfigError, as `check` does, and for resources that are none.
        """
        self.check()
        inputs: dict[PeerId, int] = {}
        for peer, size in self.inputs:
            inputs[PeerId(peer)] = inputs.get(PeerId(peer), 0) + size
        return Demand(
            ResourceSet.of(self.resources),
            {**self.strategy.labels, **self.labels},
            self.python,
            _strategy(self.strategy, at),
            self.site,
            frozenset(map(PeerId, self.trust)),
            inputs,
            max(self.input_bytes, *inputs.values(), 0),
            self.work_s,
            self.strategy.soft_labels,
        )


def check_strategy(given: StrategyGiven) -> None:
    """Raises ConfigError if it cannot be meant so."""
    if sum((given.spread, bool(given.node), bool(given.group))) > 1:
        raise ConfigError("one task has one strategy", do_next="choose SPREAD, a node, or a placement group")
    if given.node and len(given.node) not in (PEER_ID_BYTES, EMBEDDED_ID_BYTES):
        raise ConfigError(f"{given.node.hex()} is no node id", do_next="take it from lattica.nodes()")
    if given.group and len(given.group) != ID_BYTES:
        raise ConfigError(f"{given.group.hex()} is no placement group's id")
    if given.owner and len(given.owner) not in (PEER_ID_BYTES, EMBEDDED_ID_BYTES):
        raise ConfigError(f"{given.owner.hex()} is no node id, and owns no placement group")
    labels.check(given.labels)
    labels.check(given.soft_labels)


def _strategy(given: StrategyGiven, at: PeerId | None) -> Strategy:
    if given.group:
        assert at is not None, "a placement group's task is placed before its bundle is"
        return Affinity(at)
    if given.node:
        return Affinity(PeerId(given.node), given.soft)
    return Spread() if given.spread else Default()


def objection(data: bytes, node: NodeView) -> str:
    """Why a node that is in no mesh cannot run it, beside what it takes; "" if it can. Whom it trusts is not asked: a
    machine that is alone runs its own programs.

    Raises RemoteProtocolError, ConfigError.
    """
    given = decode(data)
    if given.strategy.node and not given.strategy.soft and given.strategy.node != node.peer:
        return f"it is to run on node {given.strategy.node.hex()}, and this machine, {node.peer.hex()}, is in no mesh"
    given.check()
    return missing(Demand(ResourceSet({}), {**given.strategy.labels, **given.labels}, site=given.site), [node])


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(DemandGiven)
_strategy_decoder = msgspec.msgpack.Decoder(StrategyGiven)


def encode(given: DemandGiven) -> bytes:
    """For a lease request. Raises ConfigError if it says too much."""
    data = _encoder.encode(given)
    if len(data) > GIVEN_MAX_BYTES:
        raise ConfigError(
            f"what is asked of a node takes {len(data)} bytes; at most {GIVEN_MAX_BYTES} are allowed",
            do_next="ask for fewer labels and trusted peers",
        )
    return data


def encode_within(group: StrategyGiven) -> bytes:
    """The group and bundle that something runs in, for its node and for itself."""
    return _encoder.encode(group)


def decode_within(data: bytes) -> StrategyGiven:
    """Raises RemoteProtocolError for what names no bundle."""
    try:
        given = _strategy_decoder.decode(data)
    except DAMAGED as error:
        raise RemoteProtocolError(f"a bundle's name cannot be read: {error}") from error
    if len(given.group) != ID_BYTES:
        raise RemoteProtocolError("a bundle of no placement group")
    return given


def decode(data: bytes) -> DemandGiven:
    """Raises RemoteProtocolError for whatever is beyond the limits above."""
    if len(data) > GIVEN_MAX_BYTES:
        raise RemoteProtocolError(f"a demand of {len(data)} bytes; at most {GIVEN_MAX_BYTES} are allowed")
    try:
        return _decoder.decode(data)
    except DAMAGED as error:
        raise RemoteProtocolError(f"a demand cannot be read: {error}") from error


# -- what people type


def read_node(text: object) -> bytes:
    """A node's id: in hex, as `nodes()` gives it, or as `lattica peers` shows it. Raises ConfigError."""
    return _read_id(text, (PEER_ID_BYTES, EMBEDDED_ID_BYTES), "node id", 'take "NodeID" from lattica.nodes()')


def read_trusted(text: object) -> bytes:
    """The id of a peer, as `lattica peers` shows it, or of an issuer, as `lattica issuer` does. Raises ConfigError."""
    known = (
        f"a peer's {PEER_ID_CHARS} characters (`lattica peers`), or an issuer's {2 * PEER_ID_BYTES} (`lattica issuer`)"
    )
    return _read_id(text, (PEER_ID_BYTES,), "id of a peer or an issuer", f"paste all of {known}")


def _read_id(text: object, sizes: tuple[int, ...], what: str, do_next: str) -> bytes:
    if isinstance(text, str):
        try:
            if len(text) == PEER_ID_CHARS:
                return parse_peer(text)
            found = bytes.fromhex(text)
            if len(text) == 2 * len(found) and len(found) in sizes:
                return found
        except ValueError:  # ConfigError is one
            pass
    raise ConfigError(f"{text!r:.80} is no {what}", do_next=do_next)
