"""Keys that two peers have with each other for the length of a session."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from lattica.errors import ConfigError, RemoteProtocolError
from lattica.mesh.identity import PeerId
from lattica.mesh.nat_shell.exchange import Card, read_card, write_card
from lattica.mesh.nat_shell.keyring import Keyring
from lattica.testing.loop import run_virtually

LOW, HIGH = PeerId(bytes(32)), PeerId(b"\x01" * 32)


class Side:
    """As much of a peer as a keyring needs; its calls arrive at the other side after 50 ms."""

    def __init__(self, id: PeerId) -> None:
        self.id, self.rng, self.up, self.serves = id, Random(id), True, True
        self.agreed: list[PeerId] = []
        self.other: Side
        self.keyring = Keyring(self, self.agreed.append, lambda peer: (4711, True))  # type: ignore[arg-type]

    def has_session(self, peer: PeerId) -> bool:
        return self.up

    async def call(self, peer: PeerId, method: str, card: bytes, **how: Any) -> bytes:
        await asyncio.sleep(0.05)
        if not self.other.serves:
            raise ConfigError("peer has no method 'nat.key'")
        answer = self.other.keyring.asked(self.id, card)
        await asyncio.sleep(0.05)
        return answer


def sides() -> tuple[Side, Side]:
    low, high = Side(LOW), Side(HIGH)
    low.other, high.other = high, low
    return low, high


def agree(low: Side, high: Side) -> bool:
    mine, theirs = low.keyring.get(HIGH), high.keyring.get(LOW)
    return bool(
        mine and theirs and mine.keys.sending == theirs.keys.receiving and mine.keys.receiving == theirs.keys.sending
    )


@pytest.mark.parametrize("who", ["low", "high", "both"])
def test_both_have_the_same_keys_whoever_asked_and_even_if_both_did_at_once(who: str) -> None:
    async def main() -> None:
        low, high = sides()
        asked = [
            side.keyring.ask(other)
            for side, other, name in ((low, HIGH, "low"), (high, LOW, "high"))
            if who in (name, "both")
        ]
        assert all(await asyncio.gather(*asked))
        assert agree(low, high) and low.agreed == [HIGH] and high.agreed == [LOW]
        known = low.keyring.get(HIGH)
        assert known is not None and low.keyring.owner_of(known.keys.receiving.id) == HIGH

    run_virtually(main())


def test_who_is_asked_as_a_witness_tells_its_second_port_and_nobody_else_hears_of_it() -> None:
    async def main() -> None:
        low, high = sides()
        known = await low.keyring.ask(HIGH)
        assert known is not None and not known.card.port
        known = await low.keyring.ask(HIGH, asks=True)
        assert known is not None and (known.card.port, known.card.has_others) == (4711, True)
        assert agree(low, high), "the keys stay"

    run_virtually(main())


def test_a_new_session_has_new_keys_and_the_old_ones_are_nobodys() -> None:
    async def main() -> None:
        low, high = sides()
        before = await low.keyring.ask(HIGH)
        low.keyring.forget(HIGH), high.keyring.forget(LOW)
        assert before is not None and low.keyring.owner_of(before.keys.receiving.id) is None and not len(high.keyring)
        after = await low.keyring.ask(HIGH)
        assert after is not None and after.keys != before.keys and agree(low, high)

    run_virtually(main())


def test_a_half_that_changes_within_a_session_breaks_a_rule() -> None:
    async def main() -> None:
        low, high = sides()
        await low.keyring.ask(HIGH)
        with pytest.raises(RemoteProtocolError, match="half of a secret"):
            high.keyring.asked(LOW, write_card(Card(bytes(32))))
        assert agree(low, high)

    run_virtually(main())


def test_who_serves_no_keys_or_has_gone_meanwhile_has_none() -> None:
    async def main() -> None:
        low, high = sides()
        high.serves = False
        assert await low.keyring.ask(HIGH) is None
        high.serves, low.up = True, False
        assert await low.keyring.ask(HIGH) is None and low.agreed == []
        low.up = True
        asking = asyncio.ensure_future(low.keyring.ask(HIGH))
        await asyncio.sleep(0.01)
        low.keyring.forget(HIGH)
        assert await asking is None

    run_virtually(main())


def test_a_card_of_a_stranger_is_answered_with_ours_and_nothing_else() -> None:
    low, _ = sides()
    card = read_card(low.keyring.asked(HIGH, write_card(Card(bytes(32)))))
    assert len(card.half) == 32 and (card.asks, card.port, card.has_others) == (False, 0, False)


def test_halves_do_not_follow_from_the_random_numbers_that_a_peer_shows_others() -> None:
    async def main() -> None:
        halves = {read_card(sides()[0].keyring.asked(HIGH, write_card(Card(bytes(32))))).half for _ in range(2)}
        assert len(halves) == 2, "both peers' own numbers begin with the same seed"

    run_virtually(main())
