"""Who is on the larger side, whatever is cut, in whatever order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from lattica.errors import RemoteProtocolError
from lattica.mesh.identity import PeerId
from lattica.scheduler.islands import (
    AGAIN_S,
    FOUNDING_S,
    HELD_S,
    JUMP_MAX,
    LATE_S,
    TELLINGS,
    IslandBegan,
    IslandEnded,
    Islands,
    Send,
    Spread,
    StableViewChanged,
)
from lattica.scheduler.views import MEMBERS_MAX, Ask, View, Viewed, decode, digest_of, encode, write_state

P = [PeerId(bytes([number]) * 32) for number in range(8)]


def member_of(view: Iterable[PeerId], me: PeerId, living: Iterable[PeerId] = (), *, number: int = 5) -> Islands:
    """A peer that has had this view for long; it hears `living`, or all."""
    view = tuple(sorted(view))
    core = Islands(me, 0.0, state=write_state(View(number, view), ()))
    core.members_changed(list(living) or view, (), (), 0.0)
    return core


def live(core: Islands, until: float) -> list[Any]:
    """Tick it whenever it wants to be."""
    effects: list[Any] = []
    while (due := core.next_deadline()) is not None and due <= until:
        effects += core.tick(due)
        core.validate()
    return effects


def told(effects: Iterable[Any]) -> list[Any]:
    return [effect for effect in effects if not isinstance(effect, Spread | Send)]


def test_a_side_with_more_than_half_goes_on_and_changes_the_view_after_a_minute() -> None:
    core = member_of(P[:5], P[0])
    assert told(core.members_changed(P[:3], (), (), 10.0)) == []
    assert told(live(core, 10.0 + HELD_S - 0.1)) == [] and core.members == set(P[:5])
    assert told(live(core, 10.0 + HELD_S)) == [StableViewChanged(6, tuple(P[:3]))]
    assert told(core.members_changed(P[:2], (), (), 80.0)) == [], "two of the new three are more than half"


def test_a_smaller_side_is_an_island_however_long_it_lasts() -> None:
    core = member_of(P[:5], P[4])
    assert core.members_changed(P[3:5], (), (), 10.0) == [IslandBegan(tuple(P[:3]))]
    assert told(live(core, 1e6)) == [] and core.is_island and core.members == set(P[:5])
    assert core.members_changed(P[1:5], (), (), 1e6) == [IslandEnded()]


def test_at_exactly_half_the_side_with_the_lowest_peer_goes_on() -> None:
    assert not member_of(P[:4], P[0], P[:2]).is_island
    assert member_of(P[:4], P[2], P[2:4]).is_island


def test_one_that_is_away_for_less_than_a_minute_stays_in_the_view() -> None:
    core = member_of(P[:3], P[0])
    core.members_changed(P[:2], (), (), 10.0)
    live(core, 60.0)
    core.members_changed(P[:3], (), (), 60.0)
    assert told(live(core, 500.0)) == [] and core.number == 5


def test_each_member_has_a_minute_of_its_own_so_that_churn_does_not_stop_the_view() -> None:
    """One dies and another joins every 25 seconds: the set of all never stands still for a minute."""
    members = [PeerId(bytes([number, 1]) * 16) for number in range(60)]
    core = member_of(members[:6], members[0])
    for step in range(1, 50):
        live(core, step * 25.0)
        core.members_changed([members[0], *members[step + 1 : step + 6]], (), (), step * 25.0)
        assert not core.is_island, f"at {step * 25} s: {core}"


def test_more_than_half_that_die_within_a_minute_leave_islands_until_an_admin_adopts() -> None:
    """The limit of deciding by halves: nobody can tell this from a cut."""
    core = member_of(P[:6], P[0])
    for step in range(1, 5):
        core.members_changed(P[: 6 - step], (), (), step * 10.0)
    assert core.is_island and told(live(core, 1e6)) == []
    core.adopt(1e6)
    assert not core.is_island


def test_a_joining_member_is_taken_in_after_a_minute_and_hears_of_it() -> None:
    core, joiner = member_of(P[:2], P[0]), Islands(P[2], 0.0)
    assert joiner.is_island, "it does not know the view yet"
    core.members_changed(P[:3], (), (), 1.0)
    joiner.members_changed(P[:3], (), (), 1.0)
    assert told(live(core, 1.0 + HELD_S)) == [StableViewChanged(6, tuple(P[:3]))]
    (viewed,) = core.connected(P[2], 62.0)
    assert isinstance(viewed, Send) and joiner.receive(P[0], viewed.message, 62.0) == [Send(P[0], Ask())]
    (view,) = core.receive(P[2], Ask(), 62.0)
    assert isinstance(view, Send)
    assert joiner.receive(P[0], view.message, 62.0) == [StableViewChanged(6, tuple(P[:3])), IslandEnded()]


def test_a_founder_is_whole_alone_and_soon_takes_in_all_who_came() -> None:
    core = Islands(P[0], 0.0, founder=True)
    assert not core.is_island and core.members == {P[0]}
    core.members_changed(P[:2], (), (), 3.0)
    core.members_changed(P[:4], (), (), 9.0)
    assert told(live(core, 3.0 + FOUNDING_S)) == [StableViewChanged(2, tuple(P[:4]))]
    core.members_changed(P[:5], (), (), 20.0)
    assert told(live(core, 20.0 + HELD_S - 0.1)) == [], "only once"


@pytest.mark.parametrize("how", ["left", "revoked"])
def test_who_leaves_or_is_revoked_leaves_the_view_at_once(how: str) -> None:
    core = member_of(P[:4], P[0])
    left, revoked = (P[2:4], ()) if how == "left" else ((), P[2:4])
    assert told(core.members_changed(P[:2], left, revoked, 1.0)) == [StableViewChanged(6, tuple(P[:2]))]


def test_an_island_becomes_the_larger_side_when_enough_of_the_others_were_revoked() -> None:
    core = member_of(P[:5], P[4], P[3:5])
    effects = told(core.members_changed(P[3:5], (), P[:2], 1.0))
    assert effects == [IslandEnded(), StableViewChanged(6, tuple(P[2:5]))]


def test_who_left_while_we_were_an_island_counts_as_gone_after_a_restart_too() -> None:
    core = member_of(P[:6], P[5], P[4:6])
    assert core.members_changed(P[4:6], P[:1], (), 1.0) == [StableViewChanged(5, tuple(P[:6]))]
    assert core.is_island and core.number == 5, "an island gives no numbers"
    again = Islands(P[5], 0.0, state=core.state())
    again.members_changed(P[3:6], (), (), 0.0)
    assert not again.is_island, "three of five"


def test_a_side_that_missed_a_change_does_not_count_by_the_old_view() -> None:
    """Two of six are cut off; then two of the remaining four are, and join them: four of six, and an island."""
    first, late = member_of(P[:6], P[5], P[4:6]), member_of(P[:4], P[2], P[2:4], number=6)
    assert first.is_island and late.is_island
    first.members_changed(P[2:6], (), (), 100.0)
    assert not first.is_island, "by what it knows"
    (viewed,) = late.connected(P[5], 100.0)
    assert isinstance(viewed, Send)
    assert first.receive(P[2], viewed.message, 100.0) == [Send(P[2], Ask())]
    (view,) = late.receive(P[5], Ask(), 100.0)
    assert isinstance(view, Send)
    assert IslandBegan(tuple(P[:2])) in first.receive(P[2], view.message, 100.0)


def test_an_older_view_is_answered_by_ours_and_changes_nothing() -> None:
    core = member_of(P[:3], P[0])
    mine = Viewed(5, digest_of(P[:3]))
    assert core.receive(P[1], Viewed(4, digest_of(P[:5])), 1.0) == [Send(P[1], mine)]
    assert core.receive(P[1], View(4, tuple(P[:5])), 1.0) == []
    assert core.receive(P[1], mine, 1.0) == []


def test_of_two_changes_with_one_number_all_take_the_same() -> None:
    views = [View(6, tuple(P[:2])), View(6, tuple(P[:4]))]
    found = set()
    for one, other in (views, views[::-1]):
        core = member_of(P[:3], P[0])
        core.receive(P[1], one, 1.0)
        core.receive(P[2], other, 1.0)
        found.add(core.members)
    assert len(found) == 1


def test_a_view_from_far_ahead_is_a_lie() -> None:
    assert member_of(P[:3], P[0]).receive(P[1], View(6 + JUMP_MAX, (P[1],)), 1.0) == []


def test_an_admin_declares_a_side_whole() -> None:
    core = member_of(P[:5], P[4], P[3:5])
    assert told(core.adopt(1.0)) == [StableViewChanged(6, tuple(P[3:5])), IslandEnded()]


def test_a_change_is_told_a_few_times_and_then_no_more() -> None:
    core = member_of(P[:3], P[0])
    live(core, 100.0)
    core.members_changed(P[:2], P[2:3], (), 100.0)
    spread = [effect for effect in live(core, 1000.0) if isinstance(effect, Spread)]
    assert spread == [Spread(Viewed(6, digest_of(P[:2])))] * TELLINGS and core.next_deadline() is None
    assert TELLINGS * AGAIN_S < HELD_S


def test_a_process_that_stood_still_watches_for_a_minute_again() -> None:
    core = member_of(P[:3], P[0])
    core.members_changed(P[:2], (), (), 1.0)
    live(core, 50.0)
    late = 1.0 + HELD_S + LATE_S + 1.0
    assert told(core.tick(late)) == []
    assert told(live(core, late + HELD_S)) == [StableViewChanged(6, tuple(P[:2]))]


def test_a_node_that_begins_again_alone_is_an_island() -> None:
    assert Islands(P[1], 0.0, state=member_of(P[:3], P[1]).state()).is_island


@pytest.mark.parametrize("message", [Viewed(3, bytes(16)), Ask(), View(3, tuple(P[:2]))])
def test_messages_are_read_as_they_were_written(message: Any) -> None:
    assert decode(encode(message)) == message


@pytest.mark.parametrize(
    ("message", "golden"),
    [
        (Viewed(3, bytes(16)), "930103c410" + "00" * 16),
        (Ask(), "9102"),
        (View(3, (P[1],)), "93030391c420" + "01" * 32),
    ],
)
def test_messages_have_their_golden_bytes(message: Any, golden: str) -> None:
    assert encode(message).hex() == golden


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        encode(Viewed(-1, bytes(16))),
        encode(Viewed(1, bytes(15))),
        encode(View(1, ())),
        encode(View(0, (P[0],))),
        encode(View(1, (P[1], P[0]))),
        encode(View(1, (P[0], P[0]))),
        encode(View(1, (PeerId(b"short"),))),
        encode(View(1, tuple(PeerId(number.to_bytes(32, "big")) for number in range(MEMBERS_MAX + 1)))),
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(data)


@pytest.mark.parametrize("state", [b"", b"noise", write_state(View(1, (P[0],)), P[1:2]), encode(View(1, (P[0],)))])
def test_a_damaged_state_is_refused(state: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Islands(P[0], 0.0, state=state)
