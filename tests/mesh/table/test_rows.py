"""Rows as bytes: golden ones, one encoding each, and a reader that trusts nobody."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import RemoteProtocolError
from lattica.mesh.table.kinds import (
    BY_NAME,
    CERTIFICATE,
    CLEARANCE,
    EVIDENCE,
    GROUP,
    KEY_MAX_BYTES,
    KINDS,
    NAME,
    NEVER,
    NODE,
    SERVICE,
    STATEMENT,
    Keys,
    Kind,
)
from lattica.mesh.table.rows import (
    ROW_MAX_BYTES,
    UNKNOWN_MAX_BYTES,
    Content,
    Row,
    bare,
    place_of,
    predecessor_of,
    read_bare,
    read_row,
    signed_part,
    statement_row,
    to_sign,
    write_row,
)
from lattica.testing.authority import FAKE_CHECKS
from tests.mesh.table.row_examples import BOOT, GOLDEN, HLC, KEY, ME, MESH, OTHER, ROWS, content, encoded, row

golden = json.loads(GOLDEN.read_text())
LATER = 77  # a kind that only a later release knows
multi = [kind for kind in KINDS.values() if kind.is_multi]
single = [kind for kind in KINDS.values() if not kind.is_multi and kind.keys is not Keys.PROVES]


def parts(data: bytes) -> list[Any]:
    """[content, signature, before] of a row."""
    found: list[Any] = msgspec.msgpack.decode(data)
    return found


def key_for(kind: Kind) -> bytes:
    match kind.keys:
        case Keys.OWN:
            return ME
        case Keys.OWN_PREFIX:
            return ME + b"shop"
        case Keys.OWN_SUFFIX:
            return bytes(OTHER.peer) + ME
        case _:
            return b"any"


# -- bytes ----------------------------------------------------------------------------------------------------------


def test_every_kind_has_golden_bytes() -> None:
    assert ROWS.keys() == BY_NAME.keys() | {"kind of a later release"}, "add the new kind to the examples"
    assert golden.keys() == ROWS.keys(), "write the golden bytes: python -m tests.mesh.table.row_examples"


@pytest.mark.parametrize("name", sorted(golden))
def test_a_row_has_its_golden_bytes_and_is_read_as_what_it_was(name: str) -> None:
    assert encoded()[name] == golden[name], f"the format of {name} rows changed; older releases cannot read them"
    found, example = read_row(bytes.fromhex(golden[name])), ROWS[name]
    assert (found.content, found.hash, found.place) == (example.content, example.hash, example.place)


def test_numbers_of_kinds_are_those_that_they_always_had() -> None:
    names = "node accusation certificate statement evidence clearance service job actor group name setting"
    assert [KINDS[number].name for number in range(1, 13)] == names.split()


contents = st.builds(
    Content,
    kind=st.one_of(st.sampled_from([each.number for each in multi]), st.integers(100, (1 << 16) - 1)),
    key=st.binary(min_size=1, max_size=KEY_MAX_BYTES),
    writer=st.just(ME),
    boot=st.integers(0, (1 << 63) - 1),
    counter=st.integers(0, (1 << 63) - 1),
    hlc=st.integers(0, (1 << 63) - 1),
    expires=st.integers(0, NEVER),
    gone=st.booleans(),
    body=st.binary(max_size=300),
    epoch=st.just(1),
    heir=st.sampled_from((b"", bytes(OTHER.peer))),
)


@given(contents)
def test_what_is_written_is_read_again_and_was_signed_by_its_writer_for_this_mesh(written: Content) -> None:
    found = read_row(write_row(written, KEY.sign, MESH).data)
    assert found.content == written
    signed, signature = signed_part(found)
    assert FAKE_CHECKS.signed(KEY.public_key, signature, to_sign(signed, MESH))
    assert not FAKE_CHECKS.signed(KEY.public_key, signature, to_sign(signed, b"n" * 32))
    assert found.place == place_of(written.kind, written.key)


@given(contents, contents)
def test_equal_hashes_mean_equal_contents(one: Content, other: Content) -> None:
    rows = [write_row(each, KEY.sign, MESH) for each in (one, other)]
    assert (rows[0].hash == rows[1].hash) == (one == other)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_who_did_not_sign_a_row_cannot_make_a_second_one_of_it(name: str) -> None:
    """Mallory passes it on with something more in it, or the same thing in more bytes: that is no row."""
    data = ROWS[name].data
    longer = msgspec.msgpack.encode([*parts(data), b"more"])
    wide = b"\xdc\x00\x03" + data[1:]  # the same array, its length in two bytes
    for other in (longer, wide, data + b"\x00"):
        with pytest.raises(RemoteProtocolError):
            read_row(other)


def test_nor_of_what_a_row_carries() -> None:
    data, signature, carried = parts(ROWS["name"].data)
    before = parts(carried)
    for other in ([*before, b"more"], [*before[:2], carried]):
        with pytest.raises(RemoteProtocolError):
            read_row(msgspec.msgpack.encode([data, signature, msgspec.msgpack.encode(other)]))


def test_fields_that_a_later_release_signs_too_are_kept() -> None:
    fields = [*msgspec.msgpack.decode(parts(ROWS["service"].data)[0]), "new"]
    data = msgspec.msgpack.encode(fields)
    later = read_row(msgspec.msgpack.encode([data, KEY.sign(to_sign(data, MESH)), b""]))
    assert later.content == ROWS["service"].content
    assert later.hash != ROWS["service"].hash, "it is another row, and travels on as it came"


# -- rules of kinds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*single, *multi], ids=lambda kind: kind.name)
def test_a_body_may_be_as_long_as_its_kind_says_and_no_longer(kind: Kind) -> None:
    assert len(row(kind, key_for(kind), bytes(kind.max_bytes)).data) < ROW_MAX_BYTES
    with pytest.raises(RemoteProtocolError, match=f"a {kind.name} row has {kind.max_bytes + 1} bytes, and may have"):
        row(kind, key_for(kind), bytes(kind.max_bytes + 1))


def test_the_longest_row_and_the_one_that_it_supersedes_are_one_row() -> None:
    longest = bytes(GROUP.max_bytes)
    first = row(GROUP, b"g" * KEY_MAX_BYTES, longest, heir=OTHER.peer)
    assert len(row(GROUP, b"g" * KEY_MAX_BYTES, longest, first, heir=OTHER.peer).data) < ROW_MAX_BYTES


def test_two_of_the_longest_rows_fit_into_one_that_proves_a_lie() -> None:
    """Otherwise a liar could write what nobody can prove."""
    for kind in (LATER, *(kind for kind in KINDS.values() if kind.keys is not Keys.PROVES)):
        size = UNKNOWN_MAX_BYTES if isinstance(kind, int) else kind.max_bytes
        key = b"k" * KEY_MAX_BYTES if isinstance(kind, int) else key_for(kind)
        one = row(kind, key, bytes(size), **({"heir": bytes(OTHER.peer)} if key == b"any" else {}))
        assert 2 * len(bare(one)) + 16 <= EVIDENCE.max_bytes


def test_a_row_of_a_later_release_has_a_longest_size_too() -> None:
    row(LATER, b"k", bytes(UNKNOWN_MAX_BYTES))
    with pytest.raises(RemoteProtocolError, match="a kind 77 row has 16385 bytes"):
        row(LATER, b"k", bytes(UNKNOWN_MAX_BYTES + 1))


@pytest.mark.parametrize("kind", single, ids=lambda kind: kind.name)
def test_the_key_of_a_kind_with_one_writer_names_its_writer(kind: Kind) -> None:
    for key in (bytes(OTHER.peer), bytes(OTHER.peer) + b"shop", ME[:31], b"shop"):
        with pytest.raises(RemoteProtocolError, match="a key that is not its writer's"):
            row(kind, key)


@pytest.mark.parametrize(("kind", "key"), [(NODE, ME + b"x"), (CERTIFICATE, b"x" + ME), (SERVICE, b"x" + ME)])
def test_a_key_has_nothing_where_nothing_belongs(kind: Kind, key: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="a key that is not its writer's"):
        row(kind, key)


@pytest.mark.parametrize("kind", single, ids=lambda kind: kind.name)
def test_a_row_with_one_writer_has_no_epoch_no_predecessor_and_no_heir(kind: Kind) -> None:
    for fields in ({"epoch": 1}, {"heir": bytes(OTHER.peer)}):
        with pytest.raises(RemoteProtocolError, match="has one writer, and supersedes nobody's"):
            row(kind, key_for(kind), **fields)  # type: ignore[arg-type]
    with pytest.raises(RemoteProtocolError):
        row(kind, key_for(kind), b"body", row(kind, key_for(kind)))


@pytest.mark.parametrize(
    "fields",
    [
        {"boot": -1}, {"boot": 1 << 63}, {"counter": -1}, {"counter": 1 << 63}, {"hlc": -1}, {"hlc": 1 << 63},
        {"expires": -1}, {"expires": NEVER + 1}, {"kind": 0}, {"kind": 1 << 16}, {"epoch": -1}, {"epoch": 0},
        {"epoch": 2}, {"writer": b"short"}, {"key": b""}, {"key": bytes(KEY_MAX_BYTES + 1)}, {"heir": b"short"},
        {"before": b"b" * 16}, {"epoch": 2, "before": b"b" * 16}, {"epoch": 2, "before": b"b" * 15},
    ],
    ids=str,
)  # fmt: skip
def test_a_row_with_a_field_out_of_range_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        row(NAME, b"learner", **fields)


@pytest.mark.parametrize("signature", [b"", b"s" * 63, b"s" * 65])
def test_a_signature_has_64_bytes(signature: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="signed in no way"):
        write_row(content(NAME, b"learner"), lambda _: signature, MESH)


# -- what proves itself ---------------------------------------------------------------------------------------------


def test_a_statement_makes_the_same_row_whoever_brings_it() -> None:
    one = statement_row(b"out with him")
    assert one.data == statement_row(b"out with him").data and one.body == b"out with him"
    assert one.content.expires == NEVER and signed_part(one)[1] == b""


@pytest.mark.parametrize("fields", [{"hlc": 1}, {"expires": NEVER - 1}, {"gone": True}, {"epoch": 1}], ids=str)
@pytest.mark.parametrize("kind", [STATEMENT, EVIDENCE], ids=lambda kind: kind.name)
def test_what_proves_itself_claims_nothing_more(kind: Kind, fields: dict[str, Any]) -> None:
    if kind is EVIDENCE and "expires" in fields:
        return  # its end follows from what it proves
    with pytest.raises(RemoteProtocolError):
        row(kind, b"k", **({"hlc": 0, "expires": NEVER} | fields))


def test_what_proves_itself_is_signed_by_nobody() -> None:
    data, _, _ = parts(ROWS["evidence"].data)
    with pytest.raises(RemoteProtocolError, match="signed in no way"):
        read_row(msgspec.msgpack.encode([data, b"s" * 64, b""]))


# -- what a row supersedes ------------------------------------------------------------------------------------------


def test_a_row_carries_the_one_that_it_supersedes_but_not_what_that_one_carried() -> None:
    first = row(NAME, b"learner", b"1")
    second = row(NAME, b"learner", b"2", first)
    third = row(NAME, b"learner", b"3", second)
    fourth = row(NAME, b"learner", b"4", third)
    carried = predecessor_of(third)
    assert carried is not None and carried.content == second.content and carried.hash == second.hash
    assert len(fourth.data) == len(third.data), "a chain does not grow"
    assert predecessor_of(first) is None


def test_a_row_that_carries_another_one_than_it_names_is_none() -> None:
    first, other = row(NAME, b"learner", b"1"), row(NAME, b"learner", b"one")
    second = row(NAME, b"learner", b"2", first)
    for carried in (b"", bare(other), b"noise", second.data):
        with pytest.raises(RemoteProtocolError):
            read_row(msgspec.msgpack.encode([*parts(second.data)[:2], carried]))
    with pytest.raises(RemoteProtocolError, match="does not carry what it supersedes"):
        read_row(msgspec.msgpack.encode([*parts(first.data)[:2], bare(other)]))


@pytest.mark.parametrize("fields", [{"key": b"player"}, {"kind": 8}, {"epoch": 3}, {"epoch": 1}], ids=str)
def test_a_row_supersedes_the_last_one_of_its_own_key(fields: dict[str, Any]) -> None:
    first = row(NAME, b"learner", b"1")
    with pytest.raises(RemoteProtocolError):
        row(NAME, b"learner", b"2", first, **fields)


def test_a_bare_row_is_read_as_one_and_a_whole_one_is_not() -> None:
    whole = ROWS["name"]
    found = read_bare(bare(whole))
    assert (found.content, found.hash) == (whole.content, whole.hash)
    with pytest.raises(RemoteProtocolError, match="carries what it should not"):
        read_bare(whole.data)
    with pytest.raises(RemoteProtocolError, match="does not carry"):
        read_row(bare(whole))


# -- order ----------------------------------------------------------------------------------------------------------


def in_order(*rows: Row) -> bool:
    return sorted(rows, key=lambda each: each.order) == list(rows)


def test_of_one_writer_s_rows_the_later_boot_wins_then_the_later_counter_whatever_the_clocks_say() -> None:
    assert in_order(
        row(SERVICE, ME + b"s", boot=BOOT, counter=9, hlc=HLC + 99),
        row(SERVICE, ME + b"s", boot=BOOT + 1, counter=1, hlc=HLC),
        row(SERVICE, ME + b"s", boot=BOOT + 1, counter=2, hlc=HLC - 5),
    )


def test_of_several_writers_rows_the_later_epoch_wins_then_the_later_clock_then_the_greater_writer() -> None:
    lower, higher = sorted((bytes(KEY.peer), bytes(OTHER.peer)))
    first = row(NAME, b"n", hlc=HLC + 99)
    assert in_order(
        row(NAME, b"n", writer=lower, hlc=HLC, boot=BOOT + 9),
        row(NAME, b"n", writer=higher, hlc=HLC),
        row(NAME, b"n", writer=lower, hlc=HLC + 1),
        first,
        row(NAME, b"n", b"2", first, hlc=HLC),
    )


def test_two_rows_under_one_dot_have_an_order_all_the_same() -> None:
    one, other = row(SERVICE, ME + b"s", b"yes"), row(SERVICE, ME + b"s", b"no")
    assert one.dot == other.dot and one.order != other.order


# -- noise ----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=400))
def test_noise_is_no_row(noise: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        read_row(noise)


@given(st.binary(max_size=300), st.sampled_from([b"", b"s" * 64]), st.one_of(st.just(b""), st.binary(max_size=200)))
def test_noise_in_the_shape_of_a_row_is_none(noise: bytes, signature: bytes, before: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        read_row(msgspec.msgpack.encode([noise, signature, before]))


@given(st.sampled_from(sorted(ROWS)), st.data())
def test_a_bent_row_is_refused_or_its_signature_is_wrong(name: str, data: st.DataObject) -> None:
    whole = bytearray(ROWS[name].data)
    at, byte = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 255))
    whole[at] = byte
    if bytes(whole) == ROWS[name].data:
        return
    try:
        bent = read_row(bytes(whole))
    except RemoteProtocolError:
        return
    before = predecessor_of(bent)
    if not signed_part(bent)[1]:  # it proves itself, under another hash
        assert bent.hash != ROWS[name].hash
    else:
        assert not is_signed(bent) or (before is not None and not is_signed(before))


def is_signed(each: Row) -> bool:
    signed, signature = signed_part(each)
    writer = KEY if each.writer == KEY.peer else OTHER
    return FAKE_CHECKS.signed(writer.public_key, signature, to_sign(signed, MESH))


@given(st.sampled_from(sorted(ROWS)), st.integers(0, 1000))
def test_a_damaged_row_whose_end_is_missing_is_refused(name: str, length: int) -> None:
    whole = ROWS[name].data
    with pytest.raises(RemoteProtocolError):
        read_row(whole[: length % len(whole)])


def test_what_is_longer_than_a_row_is_not_looked_at() -> None:
    with pytest.raises(RemoteProtocolError, match="a row has 81921 bytes, and may have 81920"):
        read_row(bytes(ROW_MAX_BYTES + 1))


def test_a_row_says_what_it_is() -> None:
    names = {name: repr(each) for name, each in ROWS.items()}
    me = names["service"].split(" of ")[1].split(" ")[0]
    assert names["service"] == f"<service {ME[:4].hex()} of {me} (1800000000, 5)>"
    assert names["setting"].endswith("(1800000000, 5), gone>") and names["kind of a later release"].startswith(
        "<kind 77 "
    )
    assert CLEARANCE.is_multi and not SERVICE.is_multi
