"""Three nodes with real keys, certificates and disks, on one network in memory and a virtual clock."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lattica.errors import RemoteProtocolError
from lattica.mesh.letters import Rows
from lattica.mesh.membership import MemberChanged, State
from lattica.mesh.notices import encode
from lattica.mesh.table.kinds import EVIDENCE, NAME, NODE, SERVICE
from lattica.mesh.table.rows import Row, statement_row, write_row
from lattica.mesh.transport.memory import MemoryTransport
from lattica.mesh.trust import PeerRevoked, write_statement
from lattica.node.mesh_desk import MeshDesk
from tests.node.test_mesh_desk import Machines, ask, story, ticket_of, until

NAMES = ("a", "b", "c")


async def three(machines: Machines) -> tuple[MeshDesk, MeshDesk, MeshDesk]:
    """Nodes that know each other."""
    founder = await start(machines, "a")
    two = await start(machines, "b", await ticket_of(founder))
    desks = founder, two, await start(machines, "c", await ticket_of(founder))
    await until(lambda: all(set(states(desk).values()) == {State.ALIVE} and len(states(desk)) == 3 for desk in desks))
    await until(lambda: are_equal(*desks))
    return desks


async def start(machines: Machines, name: str, ticket: str = "") -> MeshDesk:
    """At the same address each time."""
    return await machines.start(name, ticket, listen=f"10.0.0.{NAMES.index(name) + 1}:7411")


def states(desk: MeshDesk) -> dict[str, State]:
    """Name -> what this node thinks of it."""
    community = desk.peer.gossip.community
    found = {peer: community.node(peer) for peer in community.states()}
    return {info.name if info else peer.hex()[:8]: community.states()[peer] for peer, info in found.items()}


def are_equal(*desks: MeshDesk) -> bool:
    return len({desk.peer.gossip.community.replica.root() for desk in desks}) == 1


def read(desk: MeshDesk, kind: Any, key: bytes) -> bytes | None:
    found = desk.peer.gossip.community.replica.get(kind, key)
    return found.body if found is not None else None


@story
async def test_all_know_all_and_have_equal_tables(machines: Machines) -> None:
    desks = await three(machines)
    assert {name for desk in desks for name in states(desk)} == set(NAMES)
    for desk in desks:
        for other in desks:
            info = desk.peer.gossip.community.node(other.peer.id)
            assert info is not None and info.addresses == list(other.peer.listening)
        assert desk.peer.gossip.community.replica.member(desk.peer.id) is not None


@story
async def test_a_row_reaches_all_in_a_second_and_those_who_watch_are_told(machines: Machines) -> None:
    one, two, other = await three(machines)
    heard: list[tuple[Row, Row | None]] = []
    end = other.peer.gossip.watch(NAME, lambda row, before: heard.append((row, before)))
    for body in (b"here", b"there"):
        one.peer.gossip.write(NAME, b"learner", body)
        await until(lambda body=body: read(two, NAME, b"learner") == read(other, NAME, b"learner") == body, 1.0)
    assert [(row.body, before.body if before else None) for row, before in heard] == [
        (b"here", None),
        (b"there", b"here"),
    ]
    end()
    one.peer.gossip.write(NAME, b"learner", b"", gone=True)
    await until(lambda: read(other, NAME, b"learner") is None, 1.0)
    assert len(heard) == 2


@story
async def test_a_service_that_is_withdrawn_is_nobody_s_for_all_in_a_second(machines: Machines) -> None:
    one, two, _ = await three(machines)
    one.peer.gossip.offer("registry")
    await until(lambda: two.peer.gossip.known_providers("registry") == [one.peer.id], 1.0)
    assert one.peer.gossip.is_offered("registry")
    one.peer.gossip.withdraw("registry")
    one.peer.gossip.withdraw("what was never offered")
    await until(lambda: not two.peer.gossip.known_providers("registry"), 1.0)
    assert not one.peer.gossip.is_offered("registry")


@story
async def test_a_node_that_is_stopped_has_left_for_all_at_once(machines: Machines) -> None:
    one, two, other = await three(machines)
    heard: list[MemberChanged] = []
    one.peer.gossip.watch_members(heard.append)
    await other.stop()
    await until(lambda: states(one)["c"] is State.LEFT and states(two)["c"] is State.LEFT, 1.0)
    assert [change.state for change in heard if change.peer == other.peer.id] == [State.LEFT]
    assert are_equal(one, two)


@story
async def test_a_node_that_is_killed_is_dead_for_all_in_some_seconds_and_alive_again_when_it_is_back(
    machines: Machines,
) -> None:
    one, two, other = await three(machines)
    assert isinstance(other.peer._transport, MemoryTransport)
    other.peer._transport.vanish()
    await until(lambda: states(one)["c"] is State.DEAD and states(two)["c"] is State.DEAD, 15.0)
    assert states(one)["b"] is State.ALIVE and states(two)["a"] is State.ALIVE
    back = await start(machines, "c")
    await until(lambda: all(states(desk)["c"] is State.ALIVE for desk in (one, two, back)), 15.0)
    assert not list(one.peer.gossip.community.replica.rows(EVIDENCE)), "its earlier self is no liar"


@story
async def test_the_table_survives_a_restart_of_all_from_disk(machines: Machines) -> None:
    desks = await three(machines)
    desks[0].peer.gossip.write(NAME, b"learner", b"here")
    key = bytes(desks[1].peer.id) + b"shop"
    desks[1].peer.gossip.write(SERVICE, key, b"open")
    await until(lambda: are_equal(*desks))
    boots = {desk.peer.id: desk.peer.gossip.community.replica.boot for desk in desks}
    for desk in desks:
        await desk.stop()
    alone = await start(machines, "c")
    assert (read(alone, NAME, b"learner"), read(alone, SERVICE, key)) == (b"here", b"open")
    assert set(states(alone)) == set(NAMES)
    assert alone.peer.gossip.community.replica.boot > boots[alone.peer.id]
    others = [await start(machines, name) for name in ("a", "b")]
    await until(lambda: are_equal(alone, *others) and set(states(alone).values()) == {State.ALIVE}, 20.0)


@story
async def test_a_revocation_reaches_all_and_its_peer_is_no_member_any_more(machines: Machines) -> None:
    one, two, other = await three(machines)
    key = bytes(other.peer.id) + b"shop"
    other.peer.gossip.write(SERVICE, key, b"open")
    await until(lambda: read(two, SERVICE, key))
    await ask(one, "revoke", peer="c", reason="stolen")
    await until(lambda: set(states(one)) == set(states(two)) == {"a", "b"}, 2.0)
    assert read(one, SERVICE, key) is None and read(two, SERVICE, key) is None, "nor does what it says count"
    assert two.peer.gossip.community.replica.distrusts(other.peer.id) == "it was revoked"
    await until(lambda: are_equal(one, two))


@pytest.mark.parametrize("damage", ["noise", "cut", "bent", "gone"])
def test_a_damaged_journal_does_not_stop_the_node(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is missing comes from the others."""

    async def tell(machines: Machines) -> None:
        one, two, other = await three(machines)
        one.peer.gossip.write(NAME, b"learner", b"here")
        await until(lambda: are_equal(one, two, other))
        await other.stop()
        folder = Path(machines.identity("c")) / "mesh"
        for path in folder.glob("table.*"):
            data = bytearray(path.read_bytes())
            match damage:
                case "noise":
                    data[:] = bytes(range(256)) * 8
                case "cut":
                    del data[len(data) // 2 :]
                case "bent":
                    data[len(data) // 2] ^= 0x55
                case _:
                    path.unlink()
                    continue
            path.write_bytes(data)
        back = await start(machines, "c")
        await until(lambda: read(back, NAME, b"learner") == b"here" and are_equal(one, two, back), 20.0)
        assert set(states(back).values()) == {State.ALIVE}

    with caplog.at_level(logging.CRITICAL):
        story(tell)(tmp_path)


@story
async def test_what_a_node_says_of_itself_is_in_its_row_and_its_load_is_known_in_seconds(machines: Machines) -> None:
    one, two, other = await three(machines)
    one.peer.gossip.describe(labels={"zone": "attic"})
    one.peer.gossip.say(b"8 free")

    def known(desk: MeshDesk) -> bool:
        community = desk.peer.gossip.community
        info, said = community.node(one.peer.id), community.soft.get(one.peer.id, asyncio.get_running_loop().time())
        return info is not None and info.labels == {"zone": "attic"} and said is not None and said[0] == b"8 free"

    await until(lambda: known(two) and known(other), 5.0)
    before = one.peer.gossip.community.replica.get(NODE, bytes(one.peer.id))
    one.peer.gossip.describe(labels={"zone": "attic"})
    assert one.peer.gossip.community.replica.get(NODE, bytes(one.peer.id)) is before, "nothing new, no row"


@story
async def test_a_forged_row_beside_a_revocation_ends_the_session_and_hides_no_revocation(machines: Machines) -> None:
    """A liar that must pass on that it is revoked adds a row that nobody signed, hoping that both are thrown away."""
    one, two, other = await three(machines)
    credentials = one.peer.credentials
    says = PeerRevoked(other.peer.id, b"", "a story")
    chain, mesh = credentials.chain, credentials.member.mesh
    statement = write_statement(says, time.time(), credentials.identity, chain, mesh)
    node = two.peer.gossip.community.replica.get(NODE, bytes(one.peer.id))
    assert node is not None
    later = msgspec.structs.replace(node.content, counter=node.content.counter + 1)
    forged = write_row(later, lambda _: bytes(64), bytes(mesh))
    message = Rows((statement_row(statement), forged), True)
    with pytest.raises(RemoteProtocolError, match="did not sign"):
        two.peer.gossip.notice(other.peer.id, *encode(message))
    assert two.peer.credentials.trust.is_revoked(other.peer.id)


@story
async def test_a_programs_own_node_asks_the_dht_and_is_asked_nothing(machines: Machines) -> None:
    """It would not answer, and goes when its program ends."""
    one = await start(machines, "a")
    two = await start(machines, "b", await ticket_of(one))
    guest = await machines.start("c", await ticket_of(one), listen="10.0.0.3:7411", ephemeral=True)
    desks = one, two, guest
    await until(lambda: all(len(states(desk)) == 3 for desk in desks) and are_equal(*desks))
    for desk in (one, two):
        assert guest.peer.id not in desk.peer.gossip.directory._core.table, desk
    assert one.peer.id in two.peer.gossip.directory._core.table
    assert not guest.peer.gossip.directory._core.serves
    assert await guest.peer.gossip.directory.put_record("model", b"v1") == 2
    assert await two.peer.gossip.directory.get_record(guest.peer.id, "model") == b"v1"
