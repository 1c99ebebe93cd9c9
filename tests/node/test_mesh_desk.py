"""A node's mesh, two and three of them in one process: real keys and certificates, connections in memory."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lattica.codec import messages as m
from lattica.errors import AdmissionError, ConfigError, LatticaError, PermissionDeniedError
from lattica.mesh.identity import PeerId, peer_text
from lattica.mesh.membership import State
from lattica.mesh.peer import Peer
from lattica.mesh.table.kinds import SERVICE
from lattica.mesh.transport.memory import MemoryNetwork
from lattica.node import membership, mesh_desk, roster
from lattica.node.mesh_desk import MeshDesk, Wish
from lattica.node.placer import Placer
from lattica.scheduler.demand import Demand
from lattica.scheduler.leases import LeaseBook
from lattica.scheduler.load import Load
from lattica.scheduler.placement import Choice, Infeasible
from lattica.scheduler.resources import UNITS, ResourcePool, ResourceSet
from lattica.testing.loop import run_virtually


class Command:
    """A command's connection: what the node answered."""

    def __init__(self) -> None:
        self.answers: list[m.MeshAnswer] = []

    def send(self, message: Any) -> None:
        self.answers.append(message)


class Machines:
    """Machines with data directories, on one network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network = MemoryNetwork()
        self.desks: list[MeshDesk] = []
        self.ended: dict[str, list[LatticaError]] = {}
        self.taken: set[str] = set()  # ports that others have

    def identity(self, name: str) -> str:
        return str(self.folder / name / "identity")

    async def start(self, name: str, ticket: str = "", **wish: Any) -> MeshDesk:
        """The desk of the node of that machine."""
        folder = self.identity(name)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        ended = self.ended.setdefault(name, [])
        desk = await MeshDesk.begin(
            folder,
            Wish(**{"ticket": ticket, "listen": "127.0.0.1:0", "name": name, "maps_ports": False} | wish),
            ended.append,
            self._peer,
        )
        self.desks.append(desk)
        return desk

    def _peer(self, member: Any, listen: str | None, name: str, relaying: str = "auto") -> Peer:
        if listen in self.taken:
            raise ConfigError(f"cannot listen on {listen}: Address already in use")
        return Peer(
            member, listen=listen, name=name, transport=lambda owner: self.network.transport(owner, member.member)
        )


def story(test: Callable[[Machines], Awaitable[None]]) -> Callable[[Path], None]:
    """Run it on a virtual clock; its nodes end with it."""

    def run(tmp_path: Path) -> None:
        async def main() -> None:
            machines = Machines(tmp_path)
            try:
                await test(machines)
            finally:
                for desk in machines.desks:
                    await desk.stop()

        run_virtually(main())

    run.__name__ = test.__name__
    return run


async def ask(desk: MeshDesk, verb: str, **data: Any) -> Any:
    """What a command is answered."""
    command: Any = Command()
    desk.request(command, m.MeshRequest(7, verb, data))
    while not command.answers:
        await asyncio.sleep(0.01)
    [answer] = command.answers
    assert answer.request == 7
    if answer.error:
        raise LatticaError.from_data(answer.error)
    return answer.data


async def until(fact: Callable[[], Any], within_s: float = 5.0) -> Any:
    """What it says as soon as it is true, on the loop's clock."""
    async with asyncio.timeout(within_s):
        while not (said := fact()):
            await asyncio.sleep(0.02)
    return said


async def ticket_of(desk: MeshDesk, **data: Any) -> str:
    made = await ask(desk, "ticket", **({"roles": "execute,submit,store,relay", "ttl_s": 3600.0} | data))
    return str(made["ticket"])


async def joined(machines: Machines, name: str, founder: MeshDesk, *, relay: bool = False, **data: Any) -> MeshDesk:
    """A node that has joined, and that an issuer has certified."""
    desk = await machines.start(name, await ticket_of(founder, **data), relay=relay)
    await until(lambda: not desk.peer.credentials.member.via_invite)
    await until(lambda: names(founder).count(name))
    return desk


def names(desk: MeshDesk) -> list[str]:
    """With whom it has a session that lives."""
    return sorted(row["name"] for row in desk.peer.peers() if row["state"] == "alive")


# -- how a node comes into a mesh ------------------------------------------------------------------------------------


@story
async def test_a_first_start_founds_a_mesh_and_a_second_one_returns_to_it(machines: Machines) -> None:
    first = await machines.start("a")
    said = await ask(first, "whoami")
    assert said["how"] == "founded" and "admin" in said["roles"] and said["issuer"] and said["name"] == "a"
    await first.stop()
    os.unlink(said["recovery_file"])
    again = await ask(await machines.start("a"), "whoami")
    assert (again["how"], again["mesh"], again["peer_id"]) == ("returned", said["mesh"], said["peer_id"])
    assert again["boot"] > said["boot"] and not again["recovery_file"]


@story
async def test_a_ticket_takes_a_node_into_its_mesh_and_both_see_each_other(machines: Machines) -> None:
    founder = await machines.start("a")
    joiner = await machines.start("b", await ticket_of(founder))
    met = await ask(joiner, "met", wait_s=5)
    assert met["how"] == "joined" and met["peers"] and not met["troubles"]
    await until(lambda: names(joiner) == ["a"] and names(founder) == ["b"])
    await until(lambda: not joiner.peer.credentials.member.via_invite)
    said = await ask(joiner, "whoami")
    assert said["roles"] == "execute,submit,store,relay" and not said["issuer"] and not said["recovery_file"]


@story
async def test_a_node_returns_to_whom_it_has_met_though_its_ticket_is_forgotten(machines: Machines) -> None:
    founder = await machines.start("a")
    joiner = await joined(machines, "b", founder)
    await joiner.stop()
    await until(lambda: not names(founder))
    back = await machines.start("b")
    assert back.how == "returned"
    await until(lambda: names(back) == ["a"] and names(founder) == ["b"])


@story
async def test_who_is_met_is_written_down_at_once(machines: Machines) -> None:
    """Else one that is killed a second after it joined, by a founder that is gone, knows nobody when it returns."""
    founder = await machines.start("a")
    joiner = await machines.start("b", await ticket_of(founder))
    await until(lambda: names(joiner) == ["a"])
    await until(lambda: os.path.exists(joiner.contacts.path) and os.path.exists(founder.contacts.path), 0.3)


@story
async def test_who_was_away_is_dialed_until_it_is_back(machines: Machines) -> None:
    """The founder restarts at another port, so only it can find the other: by its contacts on disk."""
    founder = await machines.start("a")
    joiner = await joined(machines, "b", founder)
    await until(lambda: os.path.exists(founder.contacts.path))
    await founder.stop()
    await until(lambda: not names(joiner))
    back = await machines.start("a")
    await until(lambda: names(back) == ["b"] and names(joiner) == ["a"], 30.0)


@story
async def test_a_ticket_of_the_same_mesh_changes_nothing_for_a_member(machines: Machines) -> None:
    founder = await machines.start("a")
    await (await joined(machines, "b", founder)).stop()
    again = await machines.start("b", await ticket_of(founder))
    assert again.how == "returned" and not again.peer.credentials.member.via_invite


@story
async def test_a_ticket_of_another_mesh_is_refused_until_the_node_has_left_its_own(machines: Machines) -> None:
    one, other = await machines.start("a"), await machines.start("b")
    await other.stop()
    with pytest.raises(AdmissionError, match="lattica leave"):
        await machines.start("b", await ticket_of(one))
    membership.forget(machines.identity("b"))
    assert not membership.files_of(machines.identity("b"))
    back = await machines.start("b", await ticket_of(one))
    assert back.how == "joined" and back.peer_id == other.peer_id, "the key stays"
    await until(lambda: names(one) == ["b"])


@pytest.mark.parametrize("ticket", ["lat1", "lat9abc", "hello", "lat1AAAA"])
def test_what_is_no_ticket_is_refused_and_leaves_nothing_behind(tmp_path: Path, ticket: str) -> None:
    with pytest.raises(ConfigError):
        mesh_desk.admit(str(tmp_path), ticket, 1e9)
    assert not os.listdir(tmp_path)


@story
async def test_a_default_port_that_is_taken_gives_way_to_a_free_one_and_it_is_said(machines: Machines) -> None:
    machines.taken.add(":7411")
    desk = await machines.start("a", listen="")
    assert desk.peer.listening
    [note] = (await ask(desk, "whoami"))["notes"]
    assert "7411" in note and "address already in use" in note


@story
async def test_an_address_that_was_asked_for_is_taken_or_nothing(machines: Machines) -> None:
    machines.taken.add("10.0.0.1:99")
    with pytest.raises(ConfigError, match="cannot listen"):
        await machines.start("a", listen="10.0.0.1:99")


@story
async def test_a_port_that_was_forwarded_by_hand_is_in_tickets_and_known_to_all(machines: Machines) -> None:
    founder = await machines.start("a", advertise=["5.6.7.8:17411", "home.example.org:7411"])
    assert founder.peer.listening[:2] == ["5.6.7.8:17411", "home.example.org:7411"], "they mean something anywhere"
    assert "5.6.7.8:17411" in str(await ask(founder, "whoami"))
    other = await joined(machines, "b", founder)
    info = other.peer.gossip.community.node(founder.peer.id)
    assert info is not None and info.addresses == founder.peer.listening
    assert other.peer.addresses_of(founder.peer.id)[0] == "5.6.7.8:17411"


@story
async def test_a_node_may_listen_nowhere(machines: Machines) -> None:
    founder = await machines.start("a")
    quiet = await machines.start("b", await ticket_of(founder), listen=mesh_desk.NO_PORT)
    await until(lambda: names(founder) == ["b"])
    assert quiet.peer.listening == [] and not founder.contacts.known, "nobody could dial it"
    assert (await ask(quiet, "doctor"))["reached"] == []


# -- what commands ask for -------------------------------------------------------------------------------------------


@story
async def test_a_ticket_gives_the_roles_that_were_asked_for(machines: Machines) -> None:
    founder = await machines.start("a")
    made = await ask(founder, "ticket", roles="execute,store", ttl_s=60.0, label="spot")
    assert made["roles"] == "execute,store" and made["label"] == "spot" and made["addresses"] == founder.peer.listening
    joiner = await machines.start("b", made["ticket"])
    await until(lambda: names(joiner) == ["a"])
    assert (await ask(joiner, "whoami"))["roles"] == "execute,store"
    with pytest.raises(ConfigError, match="no issuer"):
        await ask(joiner, "ticket", roles="all", ttl_s=60.0)
    with pytest.raises(ConfigError, match="wizard"):
        await ask(founder, "ticket", roles="wizard", ttl_s=60.0)


@story
async def test_a_relay_has_no_other_role_whatever_its_ticket_gives(machines: Machines) -> None:
    founder = await machines.start("a")
    relay = await joined(machines, "r", founder, relay=True)
    assert (await ask(relay, "whoami"))["roles"] == "relay", "also by the certificate that an issuer has made"
    await relay.stop()
    back = await machines.start("r", relay=True)
    assert back.how == "returned" and (await ask(back, "whoami"))["roles"] == "relay"


@story
async def test_a_node_that_relays_takes_no_programs(machines: Machines) -> None:
    founder = await machines.start("founder")
    relay = await joined(machines, "relay", founder, relay=True)
    assert not founder.objection_to_programs() and "the role relay alone" in relay.objection_to_programs()


@story
async def test_who_joins_with_a_ticket_that_leads_nowhere_is_dialed_by_a_member(machines: Machines) -> None:
    founder = await machines.start("founder", listen="none")
    relay = await machines.start("relay", await ticket_of(founder), relay=True)
    assert relay.peer.credentials.member.via_invite and not names(relay)
    found = await ask(founder, "dial", peer=relay.peer_id, address=relay.peer.listening[0])
    assert found["peer_id"] == relay.peer_id and found["name"] == "relay"
    await until(lambda: not relay.peer.credentials.member.via_invite)
    for peer, address in ((founder.peer_id, "x:1"), (relay.peer_id, "nowhere"), ("abcd", "x:1")):
        with pytest.raises(ConfigError):
            await ask(founder, "dial", peer=peer, address=address)


@story
async def test_a_relay_needs_a_ticket_that_lets_it_and_a_directory_of_its_own(machines: Machines) -> None:
    founder = await machines.start("a")
    with pytest.raises(ConfigError, match="joins a mesh"):
        await machines.start("r", relay=True)
    with pytest.raises(ConfigError, match="not relay"):
        await machines.start("r", await ticket_of(founder, roles="execute,store"), relay=True)
    await joined(machines, "b", founder)
    with pytest.raises(ConfigError, match="that role alone"):
        await machines.start("b", await ticket_of(founder), relay=True)


@story
async def test_a_revoked_peer_is_out_at_once_and_stays_out(machines: Machines) -> None:
    founder = await machines.start("a")
    other = await joined(machines, "b", founder)
    third = await joined(machines, "c", founder)
    done = await ask(founder, "revoke", peer=other.peer_id[:8], reason="stolen")
    assert done["peer_id"] == other.peer_id
    await until(lambda: names(founder) == ["c"] and not names(other), 2.0)
    await until(lambda: third.peer.steward.state()["revoked"] == 1, 2.0)
    await until(lambda: other.peer.id not in founder.contacts.known)
    facts = await until(lambda: [row["why"] for row in other._troubles()], 30.0)
    assert "refuses this node" in facts[0] and "stolen" in facts[0]


@story
async def test_only_an_admin_revokes(machines: Machines) -> None:
    founder = await machines.start("a")
    other = await joined(machines, "b", founder)
    with pytest.raises(PermissionDeniedError, match="admin"):
        await ask(other, "revoke", peer=founder.peer_id)
    assert names(founder) == ["b"]


@story
async def test_a_second_issuer_ends_the_warning_and_makes_tickets(machines: Machines) -> None:
    founder = await machines.start("a")
    other = await joined(machines, "b", founder)
    assert [text for text in (await ask(founder, "whoami"))["warnings"] if "two issuers" in text]
    done = await ask(founder, "add_issuer", peer="b", label="the second")
    assert done["peer_id"] == other.peer_id and {row["label"] for row in done["issuers"]} == {"founder", "the second"}
    await until(lambda: len(other.peer.steward.issuers()) == 2)
    assert not (await ask(founder, "whoami"))["warnings"]
    await until(lambda: names(founder) == ["b"])
    third = await machines.start("c", await ticket_of(other))
    await until(lambda: "b" in names(third))


@story
async def test_a_node_is_made_an_issuer_by_the_recovery_file(machines: Machines) -> None:
    founder = await machines.start("a")
    recovery = (await ask(founder, "whoami"))["recovery_file"]
    other = await joined(machines, "b", founder)
    await founder.stop()
    done = await ask(other, "recover_issuer", file=recovery, label="after the fire")
    assert done["peer_id"] == other.peer_id and len(done["issuers"]) == 2
    assert await ticket_of(other)
    with pytest.raises(ConfigError, match="no recovery file"):
        await ask(other, "recover_issuer", file=recovery + ".gone")


@story
async def test_an_issuer_is_revoked_by_the_beginning_of_its_id(machines: Machines) -> None:
    founder = await machines.start("a")
    other = await joined(machines, "b", founder)
    await ask(founder, "add_issuer", peer=other.peer_id)
    [second] = [row for row in await ask(founder, "issuers") if row["peer_id"] == other.peer_id]
    done = await ask(founder, "revoke_issuer", issuer=second["issuer_id"][:8], since=0.0, reason="copied")
    assert done["issuer_id"] == second["issuer_id"] and len(await ask(founder, "issuers")) == 1
    with pytest.raises(ConfigError, match="no issuer"):
        await ask(founder, "revoke_issuer", issuer="zz")


@story
async def test_a_peer_is_meant_by_its_name_or_the_beginning_of_its_id_if_that_is_clear(machines: Machines) -> None:
    founder = await machines.start("a")
    other = await joined(machines, "b", founder)
    assert founder.peer_of("b") == founder.peer_of(other.peer_id[:4].upper()) == other.peer.id
    assert peer_text(founder.peer_of("a" * 51 + "q")).startswith("aaaa"), "a whole id need not be known"
    for text in ("", "x", other.peer_id[:3], "nobody"):
        with pytest.raises(ConfigError, match="no peer"):
            founder.peer_of(text)


@story
async def test_what_no_release_knows_and_what_fails_is_answered_all_the_same(machines: Machines) -> None:
    desk = await machines.start("a")
    with pytest.raises(ConfigError, match="another release"):
        await ask(desk, "dance")
    with pytest.raises(LatticaError, match="ticket failed: ValueError"):
        await ask(desk, "ticket", roles="all", ttl_s="soon")
    assert [row["this_node"] for row in await ask(desk, "peers")] == [True]


@story
async def test_more_commands_than_can_be_answered_are_turned_away(machines: Machines) -> None:
    founder = await machines.start("a")
    joiner = await machines.start("b", await ticket_of(founder))
    await founder.stop()
    commands: list[Any] = [Command() for _ in range(mesh_desk.REQUESTS_MAX + 1)]
    for command in commands:
        joiner.request(command, m.MeshRequest(1, "met", {"wait_s": 30.0}))
    assert "too many" in commands[-1].answers[0].error["message"] and not commands[0].answers


@story
async def test_the_doctor_is_told_what_there_is(machines: Machines) -> None:
    founder = await machines.start("a")
    await joined(machines, "b", founder)
    founder.peer.refused("10.0.0.9:1", "its certificate is of another mesh")
    facts = await ask(founder, "doctor")
    assert [row["name"] for row in facts["peers"]] == ["b"] and len(facts["issuers"]) == 1
    assert [row["from"] for row in facts["refusals"]] == ["10.0.0.9:1"]
    assert facts["whoami"]["peer_id"] == founder.peer_id and not facts["troubles"]


@story
async def test_the_doctor_counts_members_and_compares_the_table_with_neighbours(machines: Machines) -> None:
    founder = await machines.start("a")
    other = await joined(machines, "b", founder)
    await until(lambda: other.peer.gossip.community.replica.root() == founder.peer.gossip.community.replica.root())
    facts = await ask(founder, "doctor")
    assert facts["members"]["counts"] == {"alive": 2, "suspect": 0, "dead": 0, "left": 0}
    assert facts["members"]["watched_by"] == [{"peer_id": other.peer_id, "name": "b"}]
    [neighbour] = facts["table"]["neighbours"]
    assert neighbour == {"peer_id": other.peer_id, "name": "b", "same": True, "rows": facts["table"]["rows"]}
    assert facts["table"]["distrusted"] == facts["table"]["refused"] == []

    other.peer.gossip.community.replica.write(SERVICE, bytes(other.peer.id) + b"x", b"", time.time())  # and tell nobody
    other.peer.gossip.community.replica.root = lambda: b"another"  # type: ignore[method-assign]
    [neighbour] = (await ask(founder, "doctor"))["table"]["neighbours"]
    assert not neighbour["same"] and neighbour["rows"] == len(other.peer.gossip.community.replica)


@story
async def test_a_writer_that_lied_is_named_to_the_doctor(machines: Machines) -> None:
    founder = await machines.start("a")
    other = await joined(machines, "b", founder)
    founder.peer.gossip.community.replica._guilty[other.peer.id] = 1 << 62
    [liar] = (await ask(founder, "doctor"))["table"]["distrusted"]
    assert liar["peer_id"] == other.peer_id and "two different things" in liar["why"]


# -- the mesh as every node sees it ----------------------------------------------------------------------------------

OURS_ALONE = ("transport", "path", "rtt_ms", "session", "this_node", "load")  # of a row of `lattica peers`


@story
async def test_every_node_lists_the_same_members_though_one_met_only_the_founder(machines: Machines) -> None:
    founder = await machines.start("a", labels={"site": "home"})
    founder.offer({"CPU": 4.0})
    ticket = await ticket_of(founder)
    others = [await machines.start(name, ticket) for name in "bc"]
    desks = [founder, *others]
    await until(lambda: all(len(roster.members(desk.peer)) == 3 for desk in desks))
    await until(lambda: not any(desk.peer.credentials.member.via_invite for desk in desks))
    await until(lambda: len({desk.peer.gossip.community.replica.root() for desk in desks}) == 1)
    lists = [await ask(desk, "peers") for desk in desks]
    shared = [[{name: row[name] for name in row if name not in OURS_ALONE} for row in rows] for rows in lists]
    assert shared[0] == shared[1] == shared[2]
    of = {row["name"]: row for row in lists[1]}
    assert of["b"]["this_node"] and not of["b"]["session"] and of["a"]["session"] and of["a"]["transport"] == "memory"
    assert of["a"]["labels"] == {"site": "home"} and of["a"]["resources"] == {"CPU": 4.0}
    assert "admin" in of["a"]["roles"] and of["c"]["roles"] == "execute,submit,store,relay"


@story
async def test_what_is_taken_of_a_node_is_known_to_others_within_seconds(machines: Machines) -> None:
    founder = await machines.start("a")
    other = await joined(machines, "b", founder)
    founder.offer({"CPU": 4.0}, lambda: Load({"CPU": 3 * UNITS}, queued=2))

    def told() -> dict[str, Any]:
        [row] = [row for row in roster.members(other.peer) if row["name"] == "a"]
        return row["load"] or {}

    await until(lambda: told().get("taken") == {"CPU": 3.0})
    assert told()["queued"] == 2 and told()["age_s"] < 5 and not told()["draining"]
    [silent] = [row for row in roster.members(founder.peer) if row["name"] == "b"]
    assert silent["load"] is None, "it has said nothing"


@story
async def test_who_chooses_among_nodes_hears_of_a_member_its_python_its_load_and_its_end(machines: Machines) -> None:
    founder = await machines.start("a")
    pool = ResourcePool(ResourceSet.of({"CPU": 1}))
    placer = Placer(founder, pool, LeaseBook(pool), asyncio.get_running_loop(), Random(1))
    changes: list[int] = []
    placer.changed = lambda: changes.append(1)
    other = await joined(machines, "b", founder)
    there = other.peer.id
    assert isinstance(placer.choose(Demand(ResourceSet.of({"CPU": 4}))), Infeasible)
    taken = {"CPU": 2 * UNITS}
    other.offer({"CPU": 4.0}, lambda: Load(taken))
    await until(lambda: there in placer.views() and placer.views()[there].load == Load(taken))
    assert placer.views()[there].pythons == (mesh_desk.PYTHON,) and placer.views()[there].rtt_s < 0.1
    assert isinstance(choice := placer.choose(Demand(ResourceSet.of({"CPU": 4}))), Choice) and choice.peer == there
    changes.clear()
    taken = {}
    await until(lambda: not placer.views()[there].load.taken)
    assert changes, "there is room"
    await other.stop()
    await until(lambda: there not in placer.views())
    placer.stop()


@story
async def test_who_left_is_listed_with_since_when_and_who_is_revoked_is_not(machines: Machines) -> None:
    founder = await machines.start("a")
    other, third = await joined(machines, "b", founder), await joined(machines, "c", founder)
    await other.stop()
    await until(lambda: third.peer.gossip.community.states().get(other.peer.id) is State.LEFT)
    [row] = [row for row in await ask(third, "peers") if row["name"] == "b"]
    assert row["state"] == "left" and abs(row["since"] - time.time()) < 60 and not row["session"]
    await ask(founder, "revoke", peer="b")
    await until(lambda: len(roster.members(founder.peer)) == len(roster.members(third.peer)) == 2)


@story
async def test_the_table_is_shown_by_kinds_and_by_rows(machines: Machines) -> None:
    founder = await machines.start("a", labels={"site": "home"})
    other = await joined(machines, "b", founder)
    replica = founder.peer.gossip.community.replica
    await until(lambda: (it := replica.member(other.peer.id)) and not it.via_invite)
    found = await ask(founder, "table")
    kinds = {one["kind"]: one for one in found["kinds"]}
    assert found["root"] == replica.root().hex() and kinds["node"]["rows"] == 2
    assert found["rows"] == sum(one["rows"] for one in found["kinds"]) and kinds["node"]["bytes"] > 300
    nodes = {row["key"]: row for row in (await ask(founder, "table", kind="node"))["rows"]}
    mine = nodes[founder.peer_id[:8]]
    assert mine["writer"] == founder.peer_id and mine["boot"] == founder.peer.credentials.boot and not mine["hidden"]
    assert mine["says"].startswith("a; lattica ") and "site=home" in mine["says"] and mine["expires"] > mine["written"]
    [own] = [row for row in (await ask(founder, "table", kind="certificate"))["rows"] if row["writer"] == other.peer_id]
    assert own["says"].startswith("execute,submit,store,relay; by an issuer, until 2")

    await ask(founder, "revoke", peer="b", reason="stolen")
    said = (await ask(founder, "table", kind="statement"))["rows"]
    assert [row for row in said if row["says"].endswith(f": peer {other.peer_id[:8]} is out: stolen")]
    assert {row["hidden"] for row in (await ask(founder, "table", kind="node"))["rows"]} == {"", "it was revoked"}
    with pytest.raises(ConfigError, match="no kind 'dance'"):
        await ask(founder, "table", kind="dance")
    assert (await ask(founder, "table", kind="99"))["rows"] == []


@story
async def test_contacts_are_left_alone_while_there_are_sessions_enough(machines: Machines) -> None:
    founder = await machines.start("a")
    others = [await joined(machines, name, founder) for name in "bc"]
    await until(lambda: all(len(names(desk)) == 2 for desk in [founder, *others]))
    nobody = PeerId(bytes(32))
    founder.contacts.add([(nobody, ["127.0.0.1:9"])])
    await asyncio.sleep(5.0)
    assert not founder.contacts.known[nobody].trouble, "it was not dialed"
    for other in others:
        await other.stop()
    await until(lambda: founder.contacts.known[nobody].trouble, 30.0)


@story
async def test_who_has_left_is_dialed_only_where_no_other_answers(machines: Machines) -> None:
    founder = await machines.start("a")
    other, third = await joined(machines, "b", founder), await joined(machines, "c", founder)
    await until(lambda: third.peer_id in [peer_text(peer) for peer in other.contacts.known])
    await third.stop()
    await until(lambda: other.peer.gossip.community.membership.state(third.peer.id) is State.LEFT)
    await other.stop()
    back = await machines.start("b")
    await until(lambda: names(back) == ["a"])
    await asyncio.sleep(60)
    assert back.contacts.known[third.peer.id].failures == 0, "nobody has waited for it"
    await founder.stop()
    await asyncio.sleep(60)
    assert back.contacts.known[third.peer.id].failures > 0, "it may be back, and nobody else would say so"


@story
async def test_a_node_without_contacts_returns_by_the_table_on_its_disk(machines: Machines) -> None:
    founder = await machines.start("a")
    joiner = await joined(machines, "b", founder)
    await until(lambda: joiner.peer.gossip.community.node(founder.peer.id))
    await joiner.stop()
    os.unlink(joiner.contacts.path)
    member = joiner.peer.credentials
    member.peers = []
    back = await machines.start("b")
    await until(lambda: names(back) == ["a"])


@story
async def test_met_returns_as_soon_as_nobody_is_left_to_wait_for(machines: Machines) -> None:
    loop = asyncio.get_running_loop()
    founder = await machines.start("a")
    before = loop.time()
    assert (await ask(founder, "met", wait_s=30.0))["peers"] == [] and loop.time() - before < 1.0
    ticket = await ticket_of(founder)
    await founder.stop()
    joiner = await machines.start("b", ticket)
    met = await ask(joiner, "met", wait_s=25.0)
    assert not met["peers"] and met["troubles"] and loop.time() - before < 26.0


# -- ends ------------------------------------------------------------------------------------------------------------


@story
async def test_a_copied_directory_stops_the_later_of_the_two_and_says_why(machines: Machines) -> None:
    import shutil

    founder = await machines.start("a")
    first = await joined(machines, "b", founder)
    shutil.copytree(machines.folder / "b", machines.folder / "copy")
    await machines.start("copy")
    [error] = await until(lambda: machines.ended["copy"], 10.0)
    assert "two live nodes have the key" in str(error) and "delete the folder `identity`" in str(error)
    await asyncio.sleep(3.0)
    assert not machines.ended["b"] and names(first) == ["a"]


@story
async def test_a_node_that_ends_says_good_bye(machines: Machines) -> None:
    founder = await machines.start("a")
    other = await joined(machines, "b", founder)
    await other.stop()
    await until(lambda: not founder.peer.peers(), 1.0)


def test_no_secret_is_in_the_log_or_in_what_is_printed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secrets: list[str] = []
    shown: list[str] = []

    async def main() -> None:
        machines = Machines(tmp_path)
        founder = await machines.start("a")
        ticket = await ticket_of(founder)
        other = await machines.start("b", ticket)
        await until(lambda: names(other) == ["a"])
        kept = founder.peer.credentials
        secrets.extend([ticket[60:120], ticket[-60:], *kept.private_key_pem().decode().splitlines()[1:-1]])
        with pytest.raises(ConfigError) as wrong:
            await machines.start("c", ticket[:-30])
        shown.extend(map(repr, (founder, other, founder.peer, kept, Wish(ticket=ticket), wrong.value)))
        shown.append(str(await ask(founder, "doctor")))
        for desk in machines.desks:
            await desk.stop()

    with caplog.at_level(logging.DEBUG):
        run_virtually(main())
    shown += [caplog.text, (tmp_path / "b/identity/mesh/peers").read_text()]
    assert len(secrets) == 3 and "joins mesh" in caplog.text
    assert not [text for text in shown for secret in secrets if secret in text]


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        (Wish(listen="127.0.0.1:0"), "this machine alone"),
        (Wish(listen="localhost:0"), "this machine alone"),
        (Wish(listen="none"), "does not listen"),
        (Wish(maps_ports=False), "switched off"),
    ],
)
def test_the_router_is_asked_for_no_port_that_is_not_wanted_or_leads_nowhere(wish: Wish, why: str) -> None:
    class Silent:
        port = 0 if wish.listen == "none" else 7411

    peer: Any = Silent()
    assert why in str(mesh_desk._keeper(peer, wish))
