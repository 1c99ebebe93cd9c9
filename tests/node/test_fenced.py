"""The state of a superseded life stays where it was, and is named."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lattica.node.checkpoint_desk import State
from lattica.node.detached_desk import DetachedDesk
from lattica.node.fenced import OFFER_S, OFFERS_MAX, Fenced, Offer
from lattica.node.kept import FORGET_S, SOON_S
from lattica.objectstore.cid import cid_text
from lattica.scheduler.fencing import Life
from lattica.scheduler.restarts import Record
from tests.node.test_kept import Desk, run

ACTOR = b"a" * 12
LIFE = Life(1, 100)


def offer(number: int = 0, since: float = 0.0) -> Offer:
    return Offer(bytes([number]) * 12, "Counter", "c", "space", (1, 100, False), "superseded", since, b"c" * 36)


def test_offers_are_there_after_a_restart_for_a_week_and_the_oldest_goes_first(tmp_path: Path) -> None:
    now = [1000.0]
    fenced = Fenced(str(tmp_path / "kept"), lambda: now[0])
    for number in range(OFFERS_MAX + 1):
        fenced.add(offer(number, now[0]))
    again = Fenced(str(tmp_path / "kept"), lambda: now[0])
    assert again.view() == fenced.view() and len(again.view()) == OFFERS_MAX
    assert again.view()[0]["actor"] == (b"\1" * 12).hex() and again.view()[0]["state"] == "FENCED"
    now[0] += OFFER_S + 1
    assert not again.view() and not again.contents()


def test_offers_fill_no_disk(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("lattica.node.fenced.OFFERS_MAX_BYTES", 25)
    fenced = Fenced(str(tmp_path), lambda: 0.0)
    for number in range(3):
        content = bytes([number]) * 36
        (tmp_path / cid_text(content)).write_bytes(bytes(10))
        fenced.add(Offer(ACTOR, "Counter", "c", "space", (1, 100, False), "superseded", 0.0, content))
    assert fenced.contents() == [bytes([1]) * 36, bytes([2]) * 36]


def test_a_damaged_list_of_offers_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "kept-offers").write_bytes(b"\xc1")
    assert Fenced(str(tmp_path / "kept"), lambda: 0.0).view() == []


def test_the_loser_of_a_split_leaves_its_last_checkpoint_under_its_content_id(tmp_path: Path) -> None:
    """Its row names the winner's by now, so without the offer it would be deleted in half a minute."""

    async def story(town: Any) -> None:
        kept = Desk("a", town, tmp_path).kept
        plan = SimpleNamespace(class_name="Counter", name="c", namespace="space", job=1)
        ended: list[tuple[str, bool]] = []
        actors = SimpleNamespace(
            checkpoints=SimpleNamespace(
                states={ACTOR: State(b"seen so far")}, contents=tuple, members_changed=lambda: None
            ),
            supervisor=SimpleNamespace(living=lambda _: plan, actors={ACTOR: SimpleNamespace(plan=plan)}),
            fence=lambda _, how, goes_on: ended.append((how, goes_on)),
        )
        desk: Any = SimpleNamespace(
            node=SimpleNamespace(actor_desk=actors, jobs={}), kept=kept, new_number=lambda: 1,
            jobs=SimpleNamespace(unix=lambda: 1e9), names=SimpleNamespace(gone_on=lambda _: None),
            deciding=SimpleNamespace(records={}),
        )  # fmt: skip
        detached = DetachedDesk(desk)
        kept.forget_soon(kept.put(b"seen so far"))
        detached.fenced(ACTOR, LIFE, Record(Life(2, 200), b"p" * 32, False, 1, b""))  # type: ignore[arg-type]
        [row] = detached.superseded_states.view()
        await asyncio.sleep(SOON_S + 2)
        detached.members_changed()
        await asyncio.sleep(FORGET_S + 1)
        detached.members_changed()
        assert ended[0][1] and row["state_cid"] == cid_text(detached.superseded_states.contents()[0])
        rows.append(row)

    rows = list[dict[str, Any]]()
    run(story)
    assert Path(rows[0]["state_file"]).read_bytes() == b"seen so far"
