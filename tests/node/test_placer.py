"""What a node knows of the others when it chooses among them: a real table, membership and soft state; no network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import ConfigError, RemoteProtocolError
from lattica.mesh.community import Community
from lattica.mesh.identity import PeerId, short_peer
from lattica.mesh.letters import Accused, News, NodeInfo, RowChanged, RowGone, Rows
from lattica.mesh.membership import MemberChanged, State
from lattica.mesh.roles import MEMBER, Role
from lattica.mesh.soft_state import ID_BYTES, Saying
from lattica.mesh.table.kinds import ACCUSATION, CERTIFICATE, NODE, Kind
from lattica.mesh.table.replica import Replica
from lattica.mesh.table.rows import BOOT_BITS, Content, write_row
from lattica.mesh.trust import IssuerRevoked, PeerRevoked, Trust, write_statement
from lattica.node.placer import FETCHED_BYTES, PYTHONS_MAX, ROUND_TRIPS_S, TELL_S, Placer
from lattica.scheduler.demand import RTT_S, Affinity, Demand, NodeView, Spread
from lattica.scheduler.given import DemandGiven, StrategyGiven
from lattica.scheduler.given import encode as encode_given
from lattica.scheduler.leases import NODE as OURS
from lattica.scheduler.leases import LeaseBook
from lattica.scheduler.load import Load, encode
from lattica.scheduler.placement import AGAIN_S, LEEWAY_S, QUEUE_MAX, Choice, Infeasible, Waiting
from lattica.scheduler.resources import UNITS, ResourcePool, ResourceSet
from lattica.testing.authority import FAKE_CHECKS, FakeKey, fake_root
from lattica.testing.host import EPOCH_S

TOP = fake_root("mesh", EPOCH_S)
ISSUER, OTHER = TOP.issuer("issuer", EPOCH_S), TOP.issuer("other", EPOCH_S)
BOOT = int(EPOCH_S) << BOOT_BITS
HAS = {"CPU": 4.0, "GPU": 1.0}
ONE = ResourceSet.of({"CPU": 1})
ALL = {"CPU": 4 * UNITS}
NOTHING = ResourceSet({})
ME = FakeKey("me")


class Clock:
    """As much of a loop as the placer needs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Any:
        timer = self.now + delay, callback
        self.timers.append(timer)
        return SimpleNamespace(cancel=lambda: self.timers.remove(timer))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while due := sorted((timer for timer in self.timers if timer[0] <= end), key=lambda timer: timer[0]):
            self.timers.remove(due[0])
            self.now = max(self.now, due[0][0])
            due[0][1]()
        self.now = end


class Hearsay:
    """In place of `Gossip` and its peer: what others say is put in by hand."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.trust = clock, Trust(TOP.root, FAKE_CHECKS)
        chain = ISSUER.certify_member(ME.public_key, MEMBER, EPOCH_S)
        replica = Replica(
            ME.peer, ME.sign, bytes(TOP.id), TOP.root, FAKE_CHECKS, Random(1), boot=BOOT,
            revoked=self.trust.is_revoked, statement_holds=self.trust.statement_holds,
        )  # fmt: skip
        info = NodeInfo(name="me", python=["3.11"])
        self.community = Community(replica, chain, info, Random(1), 0.0, EPOCH_S)
        self.watchers: dict[int, list[Any]] = {}
        self.members: list[Any] = []
        self.hearers: list[Any] = []
        self.round_trips: dict[PeerId, float] = {}
        self.numbers = 0
        self.carry_out(self.community.announce(0.0))

    def watch(self, kind: Kind, watcher: Any) -> Callable[[], None]:
        return self._listen(self.watchers.setdefault(kind.number, []), watcher)

    def watch_members(self, watcher: Any) -> Callable[[], None]:
        return self._listen(self.members, watcher)

    def watch_soft(self, hearer: Any) -> Callable[[], None]:
        return self._listen(self.hearers, hearer)

    def _listen(self, to: list[Any], one: Any) -> Callable[[], None]:
        to.append(one)
        return lambda: to.remove(one)

    def carry_out(self, effects: Sequence[object]) -> None:
        for effect in effects:
            match effect:
                case RowChanged(row, before):
                    for watcher in self.watchers.get(row.kind, ()):
                        watcher(row, before)
                case RowGone(row):
                    for watcher in self.watchers.get(row.kind, ()):
                        watcher(None, row)
                case MemberChanged():
                    for watcher in self.members:
                        watcher(effect)
        if heard := self.community.soft.heard():
            for hearer in self.hearers:
                hearer(heard)

    # -- what others say

    def row(self, key: FakeKey, kind: Kind, at: bytes, body: bytes) -> None:
        self.numbers += 1
        content = Content(
            kind.number, at, key.peer, BOOT, self.numbers, int(EPOCH_S * 1000) << 16, int(EPOCH_S + 3600), False, body
        )
        row = write_row(content, key.sign, bytes(TOP.id))
        self.carry_out(self.community.receive(key.peer, Rows((row,), True), self.clock.now))

    def says(self, peer: PeerId, load: Load, age_s: float = 0.0) -> None:
        self.numbers += 1
        news = News((Saying(peer[:ID_BYTES], self.numbers, int(age_s * 1000), encode(load)),))
        self.carry_out(self.community.receive(ME.peer, news, self.clock.now))

    def statement(self, says: Any) -> None:
        data = write_statement(says, EPOCH_S, TOP, [], bytes(TOP.id))
        self.trust.merge([data], EPOCH_S)
        self.carry_out(self.community.add_statement(data, self.clock.now))
        self.carry_out(self.community.trust_changed(self.clock.now))


class House:
    """One node, and others of which it hears."""

    def __init__(self, *names: str, has: dict[str, float] = HAS, seed: int = 1) -> None:
        self.clock = Clock()
        self.gossip = Hearsay(self.clock)
        trips = self.gossip.round_trips
        sessions = SimpleNamespace(peers=lambda: iter(list(trips)), rtt_s=trips.get)
        credentials = SimpleNamespace(trust=self.gossip.trust)
        peer = SimpleNamespace(id=ME.peer, gossip=self.gossip, sessions=sessions, credentials=credentials)
        mesh: Any = SimpleNamespace(peer=peer, labels={"site": "here"})
        self.pool = ResourcePool(ResourceSet.of(has))
        self.book = LeaseBook(self.pool)
        loop: Any = self.clock
        self.placer = Placer(mesh, self.pool, self.book, loop, Random(seed))
        self.told = 0
        self.placer.changed = self.count
        for name in names:
            self.join(name)

    def count(self) -> None:
        self.told += 1

    def join(self, name: str, roles: Role = MEMBER, issuer: Any = ISSUER, **info: Any) -> PeerId:
        key = FakeKey(name)
        chain = issuer.certify_member(key.public_key, roles, EPOCH_S)
        self.gossip.row(key, CERTIFICATE, key.peer, msgspec.msgpack.encode(chain))
        self.describe(name, **info)
        return key.peer

    def describe(self, name: str, **info: Any) -> None:
        key = FakeKey(name)
        said = NodeInfo(**{"name": name, "resources": HAS, "python": ["3.11"]} | info)
        self.gossip.row(key, NODE, key.peer, msgspec.msgpack.encode(said))

    def accuse(self, suspect: str, *witnesses: str) -> None:
        node = self.gossip.community.replica.get(NODE, FakeKey(suspect).peer)
        assert node is not None
        for witness in map(FakeKey, witnesses):
            body = msgspec.msgpack.encode(Accused(*node.dot))
            self.gossip.row(witness, ACCUSATION, FakeKey(suspect).peer + witness.peer, body)

    def fill(self, tasks: int = 4) -> None:
        for number in range(tasks):
            self.book.request(OURS, number, 1, ONE, self.clock.now)

    def chosen(self, demand: Demand | None = None, tried: Sequence[PeerId] = ()) -> PeerId:
        answer = self.placer.choose(demand or Demand(ONE), tried)
        self.placer.validate()
        assert isinstance(answer, Choice), answer
        return answer.peer

    def refusal(self, demand: Demand, tried: Sequence[PeerId] = ()) -> Waiting | Infeasible:
        answer = self.placer.choose(demand, tried)
        self.placer.validate()
        assert isinstance(answer, Waiting | Infeasible), answer
        return answer

    def known(self) -> set[str]:
        """Who may be asked, this node left out."""
        names = {FakeKey(name).peer: name for name in ("ann", "bob", "cleo", "dan")}
        self.placer.choose(Demand(NOTHING))
        self.placer.validate()
        return {names[peer] for peer in self.placer.views() if peer != ME.peer}


ANN, BOB, CLEO = (FakeKey(name).peer for name in ("ann", "bob", "cleo"))
GPUS = Demand(ResourceSet.of({"GPU": 1}))


# -- what is known


def test_a_node_is_seen_as_its_rows_its_load_and_its_session_say() -> None:
    house = House()
    house.gossip.round_trips[ANN] = 0.02
    house.join("ann", issuer=OTHER, labels={"gpu": "A100"}, python=["3.11", "3.12"])
    load = Load({"CPU": UNITS}, 2, 0.5)
    house.clock.now = 3.0
    house.gossip.says(ANN, load, age_s=0.25)
    node = house.placer.views()[ANN]
    assert (node.totals, node.labels, node.pythons) == (ResourceSet.of(HAS), {"gpu": "A100"}, ("3.11", "3.12"))
    assert (node.issuers, node.rtt_s, node.living, node.executes) == ((OTHER.id,), 0.02, True, True)
    assert node.load == load and node.said_at == pytest.approx(2.75)


def test_this_node_is_seen_as_it_is_and_not_as_its_row_says() -> None:
    house = House()
    house.fill(2)
    own = house.placer.views()[ME.peer]
    assert own.totals == house.pool.total and own.labels == {"site": "here"} and own.rtt_s == 0.0
    assert own.load.taken == {"CPU": 2 * UNITS} and own.issuers == (ISSUER.id,) and own.pythons == ("3.11",)


def test_only_nodes_that_may_execute_and_have_something_to_give_are_asked() -> None:
    house = House("ann")
    house.join("bob", MEMBER & ~Role.EXECUTE)
    house.join("cleo", ephemeral=True, resources={})
    house.join("dan", ephemeral=True, resources={"CPU": 1.0})
    assert house.known() == {"ann", "dan"}
    assert house.refusal(Demand(ONE, strategy=Affinity(BOB))) == Infeasible(
        f"needs node {short_peer(BOB)}: no living node runs tasks of others"
    )


def test_a_node_that_gains_the_role_may_be_asked_then() -> None:
    house = House()
    house.join("ann", Role.RELAY)
    assert house.known() == set()
    chain = ISSUER.certify_member(FakeKey("ann").public_key, MEMBER, EPOCH_S)
    house.gossip.row(FakeKey("ann"), CERTIFICATE, ANN, msgspec.msgpack.encode(chain))
    assert house.known() == {"ann"}


def test_a_node_that_left_is_forgotten_and_one_that_comes_back_is_known() -> None:
    house = House("ann", "bob")
    assert house.known() == {"ann", "bob"}
    house.describe("ann", left=True)
    assert house.known() == {"bob"}
    assert house.refusal(Demand(ONE, strategy=Affinity(ANN))) == Infeasible(
        f"needs node {short_peer(ANN)}, which is no member", final=True
    )
    house.describe("ann")
    assert house.known() == {"ann", "bob"}


def test_a_revoked_node_is_forgotten_and_so_is_whoever_a_revoked_issuer_certified() -> None:
    house = House("ann", "bob")
    house.join("cleo", issuer=OTHER)
    assert house.known() == {"ann", "bob", "cleo"}
    house.gossip.statement(PeerRevoked(ANN))
    assert house.known() == {"bob", "cleo"}
    house.gossip.statement(IssuerRevoked(OTHER.id, EPOCH_S - 10))
    assert house.known() == {"bob"}


def test_a_suspect_gets_nothing_while_another_node_could_run_it() -> None:
    house = House("ann", "bob", "cleo", has={"CPU": 1})
    house.accuse("ann", "bob")
    assert house.gossip.community.membership.state(ANN) is State.SUSPECT and house.known() == {"bob", "cleo"}
    for demand in (
        GPUS,
        Demand(GPUS.resources, strategy=Spread()),
        Demand(GPUS.resources, strategy=Affinity(ANN, True)),
    ):
        assert {house.chosen(demand) for _ in range(20)} <= {BOB, CLEO}
    assert house.chosen(Demand(ONE, strategy=Affinity(ANN))) == ANN, "it is asked for by name"
    assert house.chosen(Demand(ONE, trust=frozenset({ANN}))) == ANN, "nobody else could"
    house.describe("ann")
    assert house.known() == {"ann", "bob", "cleo"}, "it refuted that"


def test_the_dead_only_explain_why_nothing_fits() -> None:
    house = House("ann", "bob", "cleo")
    house.accuse("ann", "bob", "cleo")
    assert house.known() == {"bob", "cleo"}
    assert house.refusal(Demand(ONE, strategy=Affinity(ANN))) == Infeasible(
        f"needs node {short_peer(ANN)}, which is dead", final=True
    )
    answer = house.refusal(Demand(ONE, trust=frozenset({ANN})))
    assert isinstance(answer, Infeasible) and "no living node is one of these" in answer.reason


def test_what_a_node_says_of_itself_may_be_nonsense() -> None:
    house = House("ann")
    house.join("bob", resources={"CPU": -1.0})
    house.join("cleo", python=["x" * 1000, *(f"3.{n}" for n in range(50))])
    house.gossip.row(FakeKey("dan"), NODE, FakeKey("dan").peer, b"\xc1")  # its certificate is not here
    assert house.known() == {"ann", "cleo"}
    assert len(house.placer.views()[CLEO].pythons) == PYTHONS_MAX - 1
    before = house.placer.views()[ANN]
    house.gossip.numbers += 1
    news = News((Saying(ANN[:ID_BYTES], house.gossip.numbers, 0, b"\xc1"), Saying(b"stranger", 1, 0, b"\x90")))
    house.gossip.carry_out(house.gossip.community.receive(ANN, news, 0.0))
    assert house.placer.views()[ANN] == before


def test_round_trips_are_taken_from_sessions_and_guessed_without() -> None:
    house = House("ann", "bob")
    assert house.placer.views()[ANN].rtt_s == RTT_S
    house.gossip.round_trips |= {ANN: 0.01, FakeKey("stranger").peer: 0.5}
    house.clock.run(ROUND_TRIPS_S)
    assert (house.placer.views()[ANN].rtt_s, house.placer.views()[BOB].rtt_s) == (0.01, RTT_S)
    house.gossip.round_trips[ANN] = 0.0105
    house.clock.run(ROUND_TRIPS_S)
    assert house.placer.views()[ANN].rtt_s == 0.01, "hardly another one"


# -- the choice


def test_what_fits_here_stays_here_and_what_does_not_goes_to_who_is_idle() -> None:
    house = House("ann", "bob")
    assert house.placer.stays(Demand(ONE)) and house.chosen() == ME.peer
    house.fill()
    house.gossip.says(ANN, Load(ALL, 8, 10.0))
    house.placer.admission.ran(10.0, 0.0)
    assert not house.placer.stays(Demand(ONE)) and house.chosen() == BOB


@pytest.mark.parametrize(
    ("demand", "stays"),
    [
        (Demand(NOTHING), True),
        (Demand(ONE, site="here", python="3.11", trust=frozenset({PeerId(ISSUER.id)})), True),
        (Demand(ONE, strategy=Affinity(ME.peer)), True),
        (Demand(ONE, strategy=Affinity(ME.peer), work_s=60), True),
        (Demand(ONE, inputs={ANN: FETCHED_BYTES}, input_bytes=FETCHED_BYTES), True),
        (Demand(ONE, work_s=LEEWAY_S), True),
        (Demand(ResourceSet.of({"CPU": 5})), False),
        (Demand(ONE, site="away"), False),
        (Demand(ONE, python="3.12"), False),
        (Demand(ONE, trust=frozenset({ANN})), False),
        (Demand(ONE, soft_labels={"site": "away"}), False),
        (Demand(ONE, strategy=Affinity(ANN)), False),
        (Demand(ONE, strategy=Spread()), False),
        (Demand(ONE, inputs={ANN: FETCHED_BYTES + 1}, input_bytes=FETCHED_BYTES + 1), False),
        (Demand(ONE, work_s=1.0), False),
    ],
)
def test_it_stays_if_it_begins_at_once_and_nobody_is_known_to_be_better(demand: Demand, stays: bool) -> None:
    assert House("ann").placer.stays(demand) is stays


def test_what_a_client_says_is_a_demand_with_the_resources_that_it_asks_for() -> None:
    placer = House().placer
    assert placer.demand(b"", ONE) == Demand(ONE)
    said = DemandGiven(strategy=StrategyGiven(spread=True), site="home", python="3.11")
    assert placer.demand(encode_given(said), ONE) == Demand(ONE, site="home", python="3.11", strategy=Spread())
    assert placer.demand(b"", ONE, "3.12").python == placer.demand(encode_given(DemandGiven()), ONE, "3.12").python
    assert placer.demand(b"", ONE, "3.12") == Demand(ONE, python="3.12"), "the version of its program"
    with pytest.raises(ConfigError, match="one task has one strategy"):
        placer.demand(encode_given(DemandGiven(strategy=StrategyGiven(spread=True, node=ANN))), ONE)
    with pytest.raises(ConfigError, match="placement group of this task is not known here"):
        placer.demand(encode_given(DemandGiven(strategy=StrategyGiven(group=b"g" * 16))), ONE)
    with pytest.raises(RemoteProtocolError):
        placer.demand(b"\xc1", ONE)


@pytest.mark.parametrize(
    ("demand", "possible"),
    [
        (Demand(ResourceSet.of({"CPU": 4})), True),
        (Demand(ONE, strategy=Spread()), True),
        (Demand(ONE, strategy=Affinity(ME.peer)), True),
        (Demand(ONE, strategy=Affinity(BOB, soft=True)), True),  # who is no member
        (Demand(ResourceSet.of({"GPU": 2}), strategy=Affinity(ANN, soft=True)), True),  # who cannot
        (Demand(ONE, strategy=Affinity(ANN, soft=True)), False),
        (Demand(ONE, strategy=Affinity(ANN)), False),
        (Demand(ONE, site="away"), False),
        (Demand(ResourceSet.of({"CPU": 5})), False),
    ],
)
def test_it_may_wait_here_if_it_may_run_here(demand: Demand, possible: bool) -> None:
    house = House("ann", has={"CPU": 4, "GPU": 2})
    house.fill()
    assert house.placer.possible_here(demand) is possible
    house.placer.admission.draining = True
    assert not house.placer.possible_here(demand)


def test_nothing_stays_where_others_wait_or_the_node_is_going() -> None:
    house = House()
    house.fill()
    assert not house.placer.stays(Demand(ONE)) and house.placer.stays(Demand(NOTHING))
    house.fill(1)
    assert not house.placer.stays(Demand(NOTHING)), "somebody waits"
    house = House()
    house.placer.admission.draining = True
    assert not house.placer.stays(Demand(ONE))


def test_programs_of_this_node_may_run_in_a_python_that_nobody_else_knows() -> None:
    house = House("ann")
    demand = Demand(ONE, python="3.13")
    runs = f"they run 3.11: {', '.join(sorted(map(short_peer, (ANN, ME.peer))))}"
    assert house.refusal(demand) == Infeasible(f"needs Python 3.13, which no living node runs; {runs}", final=True)
    house.placer.runs("3.13")
    assert house.placer.stays(demand) and house.chosen(demand) == ME.peer


def test_soft_labels_are_preferred_while_one_that_has_them_has_not_refused() -> None:
    house = House("ann")
    house.join("bob", labels={"zone": "a"})
    demand = Demand(ONE, soft_labels={"zone": "a"})
    assert {house.chosen(demand) for _ in range(10)} == {BOB}
    assert house.chosen(demand, tried=[BOB]) in (ANN, ME.peer)
    house.gossip.says(BOB, Load(ALL, QUEUE_MAX))
    house.clock.now += 0.001
    assert house.chosen(demand) in (ANN, ME.peer), "it is full"
    assert house.chosen(Demand(ONE, soft_labels={"zone": "c"})) in (ANN, ME.peer), "there is none"


def test_soft_labels_do_not_soften_hard_ones() -> None:
    house = House()
    house.join("ann", labels={"zone": "a"})
    house.join("bob", labels={"zone": "b"})
    demand = Demand(ONE, labels={"zone": "in(b,c)"}, soft_labels={"zone": "in(a,b)"})
    assert {house.chosen(demand) for _ in range(10)} == {BOB}
    assert house.chosen(Demand(ONE, labels={"zone": "b"}, soft_labels={"zone": "a"})) == BOB


def test_the_answer_of_a_node_counts_more_than_what_it_said_before() -> None:
    house = House("ann", has={"CPU": 1})
    house.clock.now = 1.0
    house.gossip.says(ANN, Load({}), age_s=0.5)
    assert house.chosen(GPUS) == ANN
    asked_at = house.clock.now
    house.clock.now = 1.1
    house.placer.told(ANN, Load({"GPU": UNITS}, QUEUE_MAX), asked_at)
    assert isinstance(house.refusal(GPUS), Waiting)
    house.placer.ended(ANN, GPUS.resources)
    assert house.chosen(GPUS) == ANN


def test_the_word_of_a_node_that_nobody_knows_is_not_kept() -> None:
    house = House()
    house.placer.told(ANN, Load({}), 0.0)
    assert "to 0 peers" in repr(house.placer)


def test_a_full_mesh_lets_it_wait_and_the_load_that_frees_it_is_told() -> None:
    house = House("ann", has={"CPU": 1})
    house.gossip.says(ANN, Load({"GPU": UNITS}, QUEUE_MAX))
    answer = house.refusal(GPUS)
    assert isinstance(answer, Waiting) and answer.again_at == AGAIN_S
    house.clock.run(0.2)
    house.told = 0
    house.gossip.says(ANN, Load({"GPU": UNITS}, QUEUE_MAX - 1))
    house.clock.run(0)
    assert house.told == 1 and house.chosen(GPUS) == ANN


# -- what is told


def test_who_comes_goes_or_has_room_is_told_and_who_fills_up_is_not() -> None:
    house = House()

    def news(happens: Callable[[], object]) -> int:
        house.placer.views()
        house.clock.run(1.0)
        house.told = 0
        happens()
        house.clock.run(1.0)
        return house.told

    assert news(lambda: house.join("ann"))
    assert news(lambda: house.describe("ann", labels={"zone": "a"}))
    assert not news(lambda: house.gossip.says(ANN, Load({"CPU": UNITS}))), "it was taken for idle"
    assert not news(lambda: house.gossip.says(ANN, Load(ALL, 3, draining=True)))
    assert news(lambda: house.gossip.says(ANN, Load(ALL, 3)))
    assert news(lambda: house.gossip.says(ANN, Load(ALL, 2)))
    assert news(lambda: house.gossip.says(ANN, Load({}, 2)))
    assert not news(lambda: house.gossip.says(FakeKey("stranger").peer, Load({})))
    assert news(lambda: house.placer.ended(ANN, ONE))
    assert news(lambda: house.describe("ann", left=True))
    house.placer.stop()
    assert not news(lambda: house.join("bob"))


def test_what_nobody_can_ever_run_need_not_be_asked_again_for_a_load() -> None:
    house = House("ann")
    demand = Demand(ResourceSet.of({"tpu": 1}))
    assert isinstance(house.refusal(demand), Infeasible)
    generation = house.placer.generation
    house.gossip.says(ANN, Load(ALL, 3))
    house.gossip.says(ANN, Load({}))
    house.placer.told(ANN, Load({}), 0.0)
    assert house.placer.generation == generation
    house.describe("ann", resources={"tpu": 1.0})
    assert house.placer.generation > generation and house.chosen(demand) == ANN


def test_many_changes_are_told_at_once_and_not_before_a_pause() -> None:
    house = House()
    house.clock.run(1.0)
    house.told = 0
    for number in range(50):
        house.join(f"peer {number}")
    house.clock.run(0)
    assert house.told == 1
    for _ in range(10):
        house.describe("peer 1", labels={})
        house.clock.run(TELL_S / 5)
    assert house.told <= 3
    house.clock.run(TELL_S)
    assert 2 <= house.told <= 4 and not house.clock.timers


def test_a_load_that_is_repeated_is_news_of_later() -> None:
    """It was 5, we were told 9, it says 5 again: that counts."""
    house = House("ann", has={"CPU": 1})
    house.clock.now = 1.0
    house.gossip.says(ANN, Load({}))
    house.placer.views()
    house.placer.told(ANN, Load({"GPU": UNITS}, QUEUE_MAX), 1.0)
    house.clock.now = 1.2
    house.gossip.says(ANN, Load({}))
    assert house.placer.views()[ANN].said_at == 1.2 and house.chosen(GPUS) == ANN


# -- laws

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["join", "leave", "load", "accuse", "relay", "revoke", "look", "trip"]),
        st.sampled_from(["ann", "bob", "cleo", "dan"]),
        st.integers(0, 3),
    ),
    max_size=25,
)


@given(EVENTS)
def test_whatever_was_heard_in_whatever_order_all_is_known_as_if_looked_at_now(
    events: list[tuple[str, str, int]],
) -> None:
    house = House("ann", "bob", "cleo", "dan")
    for what, name, number in events:
        peer = FakeKey(name).peer
        match what:
            case "join":
                house.join(name, labels={"n": str(number)})
            case "leave":
                house.describe(name, left=True)
            case "load":
                house.gossip.says(peer, Load({"CPU": number * UNITS} if number else {}, number))
            case "accuse" if house.gossip.community.replica.get(NODE, peer):
                house.accuse(name, *["ann", "bob", "cleo", "dan"][:number])
            case "relay":
                house.join(name, Role.RELAY)
            case "revoke" if number == 3:
                house.gossip.statement(PeerRevoked(peer))
            case "look":
                house.placer.choose(Demand(ONE))
            case "trip":
                house.gossip.round_trips[peer] = float(number + 1)
        house.clock.run(0.1)
    house.clock.run(ROUND_TRIPS_S)
    known = others(house)
    house.placer.validate()
    house.gossip.statement(IssuerRevoked(b"x" * 32, EPOCH_S))  # everybody is looked at anew
    assert others(house) == known


def others(house: House) -> dict[PeerId, NodeView]:
    """As they are seen, but for the rounding of times."""
    found = {peer: replace(node, said_at=round(node.said_at, 6)) for peer, node in house.placer.views().items()}
    del found[ME.peer]
    return found
