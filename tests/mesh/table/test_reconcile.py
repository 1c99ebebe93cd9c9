"""Two peers find what differs between them, though messages are lost, and say nothing while nothing differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.crdt.ranges import ALL, DEPTH_MAX, Ranges
from lattica.errors import RemoteProtocolError
from lattica.mesh.table.kinds import EVIDENCE, NEVER
from lattica.mesh.table.reconcile import (
    ITEMS_FEW,
    MESSAGE_MAX_BYTES,
    PARTS_MAX,
    ROWS_MAX_BYTES,
    WANT_MAX,
    Few,
    Fingerprints,
    Items,
    Message,
    More,
    Reconciler,
    Sums,
    Want,
    decode,
    encode,
)
from lattica.mesh.table.rows import Content, Row, write_row
from tests.mesh.table.some_rows import KEY, MESH, some_row, some_rows

ROUNDS_MAX = 60


class Table:
    """The least that a replica is: the newest row of each place."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.rows: dict[int, Row] = {}
        self.ranges = Ranges()
        self.reconciler = Reconciler(self.ranges, self.rows.get)
        for row in rows:
            self.merge(row)

    def merge(self, row: Row) -> None:
        held = self.rows.get(row.place)
        if held is not None:
            if held.order >= row.order:
                return
            self.ranges.remove(row.place, held.hash)
        self.ranges.add(row.place, row.hash)
        self.rows[row.place] = row


class Exchange:
    """Two tables and a network between them. loss: of messages and of rows."""

    def __init__(self, one: Table, other: Table, loss: float = 0.0, twice: float = 0.0, seed: int = 7) -> None:
        self.tables = (one, other)
        self.loss, self.twice, self.rng = loss, twice, Random(seed)
        self.bytes: Counter[str] = Counter()
        self.rows_sent = self.messages = self.turns = 0

    def round(self, starter: int = 0) -> None:
        """From one `begin` until nobody has anything to say."""
        queue: list[tuple[int, bytes | Row]] = []
        self._send(queue, 1 - starter, encode(self.tables[starter].reconciler.begin()))
        while queue:
            self.turns += 1
            batch, queue = queue, []
            for to, what in batch:
                if isinstance(what, Row):
                    self.tables[to].merge(what)
                    continue
                messages, places = self.tables[to].reconciler.answer(decode(what))
                sent = [self.tables[to].rows[place] for place in places]
                size = sum(len(row.data) for row in sent)
                assert size <= ROWS_MAX_BYTES or len(sent) == 1
                assert len(messages) <= 24
                for row in sent:
                    self._send(queue, 1 - to, row)
                for message in messages:
                    self._send(queue, 1 - to, encode(message))

    def rounds_until_equal(self) -> int:
        for number in range(ROUNDS_MAX):
            if self.tables[0].ranges.root() == self.tables[1].ranges.root():
                return number
            self.round(number % 2)
        raise AssertionError(f"not equal after {ROUNDS_MAX} rounds")

    def _send(self, queue: list[tuple[int, bytes | Row]], to: int, what: bytes | Row) -> None:
        if isinstance(what, Row):
            self.bytes["rows"] += len(what.data)
            self.rows_sent += 1
        else:
            assert len(what) <= MESSAGE_MAX_BYTES
            self.bytes["messages"] += len(what)
            self.messages += 1
        copies = (self.rng.random() >= self.loss) * (1 + (self.rng.random() < self.twice))
        queue += [(to, what)] * copies


def newest(*tables: Table) -> dict[int, bytes]:
    union = Table(row for table in tables for row in table.rows.values())
    return {place: row.hash for place, row in union.rows.items()}


def hashes(table: Table) -> dict[int, bytes]:
    return {place: row.hash for place, row in table.rows.items()}


# -- converging

versions = st.dictionaries(st.integers(0, 150), st.integers(1, 3), max_size=150)


@given(versions, versions, st.sampled_from((0.0, 0.3)), st.sampled_from((0.0, 0.3)), st.integers(0, 1 << 32))
def test_two_tables_become_the_newest_of_both_whatever_is_lost_or_comes_twice(
    ones: dict[int, int], others: dict[int, int], loss: float, twice: float, seed: int
) -> None:
    one, other = (Table(some_row(*item) for item in each.items()) for each in (ones, others))
    expected = newest(one, other)
    exchange = Exchange(one, other, loss, twice, seed)
    rounds = exchange.rounds_until_equal()
    assert hashes(one) == hashes(other) == expected
    if not loss:
        assert rounds <= 1


ROWS = some_rows(4_000, body_bytes=200)


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_a_newcomer_gets_everything_in_bounded_batches(loss: float) -> None:
    exchange = Exchange(Table(), Table(ROWS), loss)
    assert exchange.rounds_until_equal() <= (1 if not loss else ROUNDS_MAX)
    assert len(exchange.tables[0].rows) == 4_000
    if not loss:
        assert exchange.rows_sent == 4_000
        assert exchange.bytes["messages"] < exchange.bytes["rows"] / 1_000


def test_a_newcomer_that_is_told_first_gets_everything_in_one_round_too() -> None:
    exchange = Exchange(Table(ROWS), Table())
    exchange.round()
    assert len(exchange.tables[1].rows) == 4_000
    assert exchange.rows_sent == 4_000


@pytest.mark.parametrize("shared", [0, 10, 1_000, 3_990])
def test_tables_of_any_likeness_are_equal_after_one_round_without_loss(shared: int) -> None:
    middle = (4_000 + shared) // 2
    one, other = Table(ROWS[:middle]), Table(ROWS[middle - shared :])
    exchange = Exchange(one, other)
    exchange.round()
    assert hashes(one) == hashes(other) == {row.place: row.hash for row in ROWS}
    assert exchange.rows_sent == 4_000 - shared


def test_one_row_that_differs_among_thousands_costs_a_kilobyte_and_three_round_trips() -> None:
    exchange = Exchange(Table(ROWS), Table(ROWS))
    exchange.tables[1].merge(some_row(77, version=2))
    exchange.round()
    assert exchange.tables[0].rows[some_row(77).place].hash == some_row(77, version=2).hash
    assert exchange.rows_sent == 2  # nobody sees from a hash which one is newer
    assert exchange.bytes["messages"] < 1_200
    assert exchange.turns <= 6


def test_rows_that_one_side_never_takes_do_not_keep_the_others_back() -> None:
    """300 KB of them stand before everything else: what fits into no answer comes with the next one."""
    stuck = {row.place for row in sorted(ROWS, key=lambda row: row.place)[:1_000]}
    one, other = Table(), Table(ROWS)
    take = one.merge
    one.merge = lambda row: None if row.place in stuck else take(row)  # type: ignore[method-assign]
    Exchange(one, other).round()
    assert len(one.rows) == 3_000


def test_rows_longer_than_an_answer_come_one_by_one() -> None:
    proof = Content(EVIDENCE.number, b"", KEY.peer, 7, 1, 0, NEVER, False, bytes(EVIDENCE.max_bytes))
    contents = [msgspec.structs.replace(proof, key=KEY.peer + bytes([number])) for number in range(5)]
    exchange = Exchange(Table(), Table(write_row(content, KEY.sign, MESH) for content in contents))
    exchange.round()
    assert len(exchange.tables[0].rows) == 5


# -- silence and bounds


@pytest.mark.parametrize("count", [0, 1, ITEMS_FEW, ITEMS_FEW + 1, 4_000])
def test_equal_tables_say_nothing_after_the_first_message(count: int) -> None:
    exchange = Exchange(Table(ROWS[:count]), Table(ROWS[:count]))
    exchange.round()
    assert (exchange.messages, exchange.rows_sent) == (1, 0)
    assert exchange.bytes["messages"] <= 16 * ITEMS_FEW + 40


def test_a_row_that_expired_meanwhile_is_not_sent() -> None:
    table = Table(ROWS[:3])
    silent = Reconciler(table.ranges, lambda place: None)
    assert silent.answer(Items([Few(ALL, 0, b"")])) == ([], [])
    assert silent.answer(Want(ROWS[0].place.to_bytes(8, "big"))) == ([], [])


def test_want_is_answered_with_what_fits_and_the_rest_is_asked_about_again() -> None:
    rows = sorted(some_rows(WANT_MAX, body_bytes=900), key=lambda row: row.place)
    want = Want(b"".join(row.place.to_bytes(8, "big") for row in rows))
    (more,), places = Reconciler(Table(rows).ranges, Table(rows).rows.get).answer(decode(encode(want)))
    assert places == [row.place for row in rows][: len(places)]
    assert isinstance(more, More)
    assert len(places) + len(more.parts) == WANT_MAX
    answer, _ = Reconciler(Ranges(), {}.get).answer(decode(encode(more)))
    assert [part.prefix for part in answer[0].parts] == [prefix for prefix, _ in more.parts]  # type: ignore[union-attr]


def test_rows_that_stand_side_by_side_and_did_not_fit_are_asked_about_as_one_part() -> None:
    long = some_row(1, body=bytes(1000))
    want = Want(b"".join(place.to_bytes(8, "big") for place in range(WANT_MAX)))
    (more,), places = Reconciler(Ranges(), lambda place: long).answer(want)
    assert isinstance(more, More)
    assert decode(encode(more)) == More([(1 << 60 | place >> 4, place) for place in (len(places), 64, 80, 96, 112)])


def test_parts_of_which_there_is_no_room_to_speak_are_asked_about() -> None:
    parts = [(0x100 | number, number << 56) for number in range(256)]
    answers, _ = BUSY.reconciler.answer(More(parts))
    said = [
        (part.prefix, part.since) for each in answers if isinstance(each, Items | Fingerprints) for part in each.parts
    ]
    assert isinstance(answers[-1], More)
    assert sorted(said + answers[-1].parts) == parts
    assert len(said) > 200


@pytest.mark.parametrize("seed", range(20))
def test_any_answer_to_any_message_is_bounded(seed: int) -> None:
    """Whatever a stranger names within the rules, it gets at most 64 KiB of rows and 24 messages for it."""
    rng = Random(seed)
    parts: list[tuple[int, int]] = []
    free = 0
    while free < 1 << 64 and len(parts) < PARTS_MAX:
        place = free + rng.getrandbits(rng.choice((52, 56, 60)))
        depth = rng.randint(1, DEPTH_MAX - 1)
        prefix = 1 << 4 * depth | place >> 64 - 4 * depth
        end = (prefix + 1 << 64 - 4 * depth) - (1 << 64)
        if place >= 1 << 64:
            break
        parts.append((prefix, place))
        free = end
    sums = [Sums(prefix, since, rng.randbytes(128)) for prefix, since in parts][:200]
    few = [Few(prefix, since, since.to_bytes(8, "big") + bytes(8)) for prefix, since in parts][:800]
    for message in (Fingerprints(sums), Items(few), More(parts)):
        answers, places = BUSY.reconciler.answer(decode(encode(message)))
        assert sum(len(BUSY.rows[place].data) for place in places) <= ROWS_MAX_BYTES
        assert len(answers) <= 24
        for answer in answers:
            assert decode(encode(answer)) == answer


BUSY = Table(ROWS)


# -- the wire

GOLDEN = {
    "Fingerprints": (
        Fingerprints([Sums(0x1A, 0xA << 60, bytes(range(128)))]),
        "9201 91 93 1a cfa000000000000000 c480" + bytes(range(128)).hex(),
    ),
    "Items": (Items([Few(ALL, 0, bytes(16))]), "9202 91 93 01 00 c410" + "00" * 16),
    "Want": (Want(bytes(7) + b"\x05"), "9203 c408 0000000000000005"),
    "More": (More([(0x10, 0), (0x1F, 0xF << 60)]), "9204 92 921000 921fcff000000000000000"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_messages_have_their_golden_bytes(name: str) -> None:
    message, data = GOLDEN[name]
    assert encode(message) == bytes.fromhex(data), f"the format of {name} changed; older releases cannot read it"
    assert decode(bytes.fromhex(data)) == message


@pytest.mark.parametrize(
    "message, why",
    [
        (More([(0, 0)]), "0, which is no prefix"),
        (More([(2, 0)]), "2, which is no prefix"),
        (More([(-16, 0)]), "no prefix"),
        (More([((1 << 64) - 1, 0)]), "no prefix"),
        (More([(0x1A, 0)]), "out of order"),
        (More([(ALL, 0), (ALL, 0)]), "out of order"),
        (More([(0x1B, 0xB << 60), (0x1A, 0xA << 60)]), "out of order"),
        (More([(0x1A, 0xA << 60), (0x1A3, 0xA3 << 56)]), "out of order"),
        (More([(ALL, -1)]), "out of order"),
        (More([]), "has 0 parts"),
        (More([(1 << 60 | n, n << 4) for n in range(PARTS_MAX + 1)]), f"may have {PARTS_MAX}"),
        (Fingerprints([Sums(ALL, 0, bytes(127))]), "other than 16"),
        (Fingerprints([Sums(1 << 60, 0, bytes(128))]), "other than 16"),
        (Items([Few(ALL, 0, bytes(17))]), "within a place"),
        (Items([Few(0x1A, 0xA << 60, bytes(16))]), "another part"),
        (Items([Few(ALL, 0, b"\1" * 16 + bytes(16))]), "out of order"),
        (Want(bytes(9)), "within a place"),
        (Want(b"\1" * 8 + bytes(8)), "out of order"),
        (Want(bytes(8 * (WANT_MAX + 1))), f"more than {WANT_MAX}"),
        (Want(bytes(MESSAGE_MAX_BYTES)), f"may have {MESSAGE_MAX_BYTES}"),
    ],
)
def test_absurd_messages_are_the_peer_s_mistake(message: Message, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        decode(encode(message))


valid = st.sampled_from([encode(message) for message, _ in GOLDEN.values()])
bent = st.builds(
    lambda data, at, byte: data[: at % len(data)] + bytes([byte]) + data[at % len(data) + 1 :],
    valid, st.integers(0, 200), st.integers(0, 255),
)  # fmt: skip


@given(st.one_of(st.binary(max_size=200), bent, bent.map(lambda data: data[: len(data) // 2])))
def test_noise_and_bent_messages_are_answered_or_refused(data: bytes) -> None:
    try:
        message = decode(data)
    except RemoteProtocolError:
        return
    BUSY.reconciler.answer(message)
