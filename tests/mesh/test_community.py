"""What one peer knows of all others: rows become members, silence becomes rows, and what differs is found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

import msgspec

from lattica.mesh import membership as m
from lattica.mesh.community import (
    COMPARE_S,
    FANOUT,
    FLOOD_S,
    MISSING_S,
    RENEW_SHARE,
    SUMMON_AGAIN_S,
    SUMMON_HOPS,
    BootRaised,
    Community,
    Effect,
    Message,
    NodeInfo,
    Probe,
    RowChanged,
    RowGone,
    RowRefused,
    Rows,
    Send,
    Summon,
)
from lattica.mesh.identity import PeerId
from lattica.mesh.membership import ACCUSE_S, MemberChanged, State, Try
from lattica.mesh.table.kinds import ACCUSATION, CERTIFICATE, CLEARANCE, DAY_S, EVIDENCE, NAME, NODE, SERVICE, Kind
from lattica.mesh.table.reconcile import Fingerprints, Items, Want
from lattica.mesh.table.replica import Replica
from lattica.mesh.table.rows import BOOT_BITS, Content, Row, place_of, write_row
from lattica.testing.authority import FAKE_CHECKS
from lattica.testing.community import Town
from lattica.testing.host import EPOCH_S

NAMES = ("ann", "bob", "cleo", "dan")
TOWN = Town(NAMES, admins=["ann"])
FOUNDING = {name: TOWN.founding_rows([name], EPOCH_S) for name in NAMES}
BOOT = int(EPOCH_S) << BOOT_BITS
ANN, BOB, CLEO, DAN = (TOWN.peer(name) for name in NAMES)


class Person:
    """Somebody's community, and what it told last."""

    def __init__(self, name: str, knows: Iterable[str] = NAMES, linked: Iterable[str] = ()) -> None:
        self.key, self.now, self.revoked = TOWN.keys[name], 0.0, set[PeerId]()
        replica = Replica(
            self.key.peer, self.key.sign, TOWN.mesh, TOWN.root.root, FAKE_CHECKS, Random(1), boot=BOOT + 1,
            revoked=self.revoked.__contains__,
        )  # fmt: skip
        info = NodeInfo(name=name, version="0.1", addresses=["192.0.2.1:7411"])
        self.core = Community(replica, TOWN.chains[name], info, Random(1), 0.0, EPOCH_S)
        self.core.load([row for one in {name, *knows} for row in FOUNDING[one]], 0.0)
        for other in linked:
            self.core.connected(TOWN.peer(other), 0.0)
        self.run(m.SETTLE_S + FLOOD_S)

    def run(self, seconds: float) -> list[Effect]:
        """Let that time pass."""
        end, found = self.now + seconds, list[Effect]()
        while (due := self.core.next_deadline()) <= end:
            self.now = max(self.now, due)
            found += self.core.tick(self.now)
            self.core.validate()
        self.now = end
        return found

    def hear(self, sender: PeerId, message: Message) -> list[Effect]:
        return self.core.receive(sender, message, self.now)

    def merge(self, *rows: Row, sender: PeerId = BOB, flood: bool = True) -> list[Effect]:
        return self.hear(sender, Rows(rows, flood))

    def state(self, peer: PeerId) -> State | None:
        return self.core.membership.state(peer)


def row(
    name: str, kind: Kind, key: bytes, body: bytes = b"", *, counter: int = 50, boot: int = BOOT, **fields: Any
) -> Row:
    """What that person writes."""
    key_of, epoch = TOWN.keys[name], 1 if kind.is_multi else 0
    content = Content(
        kind.number, key, bytes(key_of.peer), boot, counter, int(EPOCH_S * 1000) << 16,
        int(min(EPOCH_S + kind.ttl_s, 1 << 40)), False, body, epoch,
    )  # fmt: skip
    return write_row(msgspec.structs.replace(content, **fields), key_of.sign, TOWN.mesh)


def node_row(name: str, counter: int = 50, boot: int = BOOT, *, left: bool = False, **fields: Any) -> Row:
    body = msgspec.msgpack.encode(NodeInfo(name=name, left=left))
    return row(name, NODE, bytes(TOWN.peer(name)), body, counter=counter, boot=boot, **fields)


def accusation(by: str, suspect: PeerId, dot: tuple[int, int] | None = None) -> Row:
    boot, counter = dot or next(each for each in FOUNDING[TOWN.names[suspect]] if each.kind == NODE.number).dot
    body = msgspec.msgpack.encode([boot, counter])
    return row(by, ACCUSATION, bytes(suspect) + bytes(TOWN.peer(by)), body)


def changes(effects: Sequence[Effect]) -> list[MemberChanged]:
    return [effect for effect in effects if isinstance(effect, MemberChanged)]


def sent(effects: Sequence[Effect], kind: Any = object) -> list[tuple[PeerId, Any]]:
    return [
        (effect.to, effect.message)
        for effect in effects
        if isinstance(effect, Send) and isinstance(effect.message, kind)
    ]


# -- rows become members --------------------------------------------------------------------------------------------


def test_node_rows_are_members_and_say_what_they_are() -> None:
    ann = Person("ann")
    assert ann.core.states() == dict.fromkeys([ANN, BOB, CLEO, DAN], State.ALIVE)
    info = ann.core.node(BOB)
    assert info is not None and info.name == "bob" and info.resources == {"CPU": 8.0}


def test_a_newcomer_s_rows_make_it_a_member() -> None:
    ann = Person("ann", knows=["bob"])
    effects = ann.merge(*FOUNDING["cleo"])
    assert MemberChanged(CLEO, State.ALIVE, None) in effects
    assert [effect.row.kind for effect in effects if isinstance(effect, RowChanged)] == [
        CERTIFICATE.number,
        NODE.number,
    ]


def test_two_accusations_are_a_death_and_a_newer_node_row_takes_it_back() -> None:
    ann = Person("ann")
    assert changes(ann.merge(accusation("bob", DAN))) == [MemberChanged(DAN, State.SUSPECT, State.ALIVE)]
    assert changes(ann.merge(accusation("cleo", DAN))) == [MemberChanged(DAN, State.DEAD, State.SUSPECT)]
    assert changes(ann.merge(node_row("dan"))) == [MemberChanged(DAN, State.ALIVE, State.DEAD)]


def test_accusations_that_come_before_the_accused_s_row_count_when_it_comes() -> None:
    ann = Person("ann", knows=["bob", "cleo"])
    assert changes(ann.merge(accusation("bob", DAN), accusation("cleo", DAN))) == []
    ann.merge(*FOUNDING["dan"])
    assert ann.state(DAN) is State.DEAD


def test_accusations_are_known_after_a_restart() -> None:
    ann = Person("ann")
    ann.merge(accusation("bob", DAN), accusation("cleo", DAN))
    again = Person("ann", knows=[])
    again.core.load(list(ann.core.replica.all()), 0.0)
    assert again.core.states() == ann.core.states() and again.state(DAN) is State.DEAD


def test_silence_becomes_a_row_that_names_the_silent_one_s_own_and_is_flooded() -> None:
    ann = Person("ann", knows=["bob", "cleo"], linked=["bob"])
    effects = list[Effect]()
    while not (
        found := [each for each in effects if isinstance(each, RowChanged) and each.row.kind == ACCUSATION.number]
    ):
        effects += ann.run(0.5)
        ann.hear(BOB, Probe(1, False, ann.core.replica.root()))
        assert ann.now < ACCUSE_S + 5
    (accused,) = found
    own = ann.core.replica.get(NODE, bytes(CLEO))
    assert own is not None and accused.row.key == bytes(CLEO) + bytes(ANN)
    assert msgspec.msgpack.decode(accused.row.body) == list(own.dot)
    flooded = [each for _, message in sent([*effects, *ann.run(FLOOD_S)], Rows) for each in message.rows]
    assert accused.row in flooded


def test_who_is_accused_writes_its_row_anew_and_floods_it() -> None:
    ann = Person("ann", linked=["bob", "cleo"])
    ann.core.announce(ann.now)
    ann.run(FLOOD_S)
    before = ann.core.replica.get(NODE, bytes(ANN))
    assert before is not None
    effects = ann.merge(accusation("bob", ANN, before.dot))
    (written,) = [each.row for each in effects if isinstance(each, RowChanged) and each.row.kind == NODE.number]
    assert written.dot > before.dot
    told = {to for to, message in sent(ann.run(FLOOD_S), Rows) if written in message.rows}
    assert told == {BOB, CLEO} and ann.merge(accusation("cleo", ANN, before.dot))[-1] is not None
    assert ann.core.replica.get(NODE, bytes(ANN)) is written, "that one was refuted already"


def test_bodies_that_cannot_be_read_are_taken_as_saying_nothing() -> None:
    ann = Person("ann")
    ann.merge(
        row("bob", NODE, bytes(BOB), b"\xc1"), row("bob", ACCUSATION, bytes(DAN) + bytes(BOB), b"\xc1", counter=51)
    )
    assert ann.core.node(BOB) == NodeInfo() and ann.state(DAN) is State.ALIVE


def test_who_leaves_says_so_at_once_and_is_left_for_all() -> None:
    bob = Person("bob", linked=["ann"])
    ((to, message),) = sent(bob.core.leave(bob.now), Rows)
    assert to == ANN
    ann = Person("ann")
    assert changes(ann.merge(*message.rows)) == [MemberChanged(BOB, State.LEFT, State.ALIVE)]


# -- what is new, and what differs ----------------------------------------------------------------------------------


def test_what_is_new_goes_on_to_all_but_who_sent_it_once() -> None:
    ann = Person("ann", linked=["bob", "cleo", "dan"])
    new = row("bob", SERVICE, bytes(BOB) + b"shop")
    assert not sent(ann.merge(new), Rows), "it waits for others that come with it"
    assert sorted(to for to, _ in sent(ann.run(FLOOD_S), Rows)) == sorted([CLEO, DAN])
    ann.merge(new, sender=CLEO)
    assert not sent(ann.run(1.0), Rows)


def test_a_refused_row_is_named_with_who_passed_it_on_and_goes_nowhere() -> None:
    ann = Person("ann", linked=["cleo"])
    forged = write_row(row("bob", SERVICE, bytes(BOB) + b"x").content, TOWN.keys["dan"].sign, TOWN.mesh)
    assert RowRefused(DAN, forged, "its signature is wrong") in ann.merge(forged, sender=DAN)
    assert not sent(ann.run(1.0), Rows)


def test_a_ping_is_answered_with_the_table_s_root() -> None:
    ann = Person("ann")
    assert sent(ann.hear(BOB, Probe(7, False, b"another root"))) == [(BOB, Probe(7, True, ann.core.replica.root()))]


def test_an_answer_with_another_root_begins_a_comparison_and_an_equal_one_does_not() -> None:
    ann = Person("ann", linked=["bob"])
    assert not sent(ann.hear(BOB, Probe(1, True, ann.core.replica.root())))
    ((to, message),) = sent(ann.hear(BOB, Probe(1, True, b"other")))
    assert to == BOB and isinstance(message, Fingerprints | Items)


def test_comparisons_begin_at_most_every_half_second() -> None:
    ann = Person("ann", linked=["bob", "cleo"])
    ann.run(COMPARE_S)
    begun = 0
    for _ in range(20):
        begun += len(sent(ann.hear(BOB, Probe(1, True, b"other")), Fingerprints | Items))
        begun += len(sent(ann.hear(CLEO, Probe(1, True, b"other")), Fingerprints | Items))
        ann.run(0.1)
    assert 2.0 / COMPARE_S <= begun <= 2.0 / COMPARE_S + 1


def talk(one: Person, other: Person, effects: Sequence[Effect]) -> None:
    """Deliver what the first says, what the other answers, and so on."""
    waiting = [(one, other, message) for _, message in sent(effects)]
    while waiting:
        speaker, listener, message = waiting.pop(0)
        waiting += [(listener, speaker, each) for _, each in sent(listener.hear(speaker.key.peer, message))]


def test_two_peers_that_differ_are_equal_after_one_answered_ping() -> None:
    ann, bob = Person("ann", linked=["bob"]), Person("bob", knows=["ann"], linked=["ann"])
    for number in range(40):
        bob.merge(row("bob", SERVICE, bytes(BOB) + bytes([number]), counter=60 + number), sender=ANN)
    talk(ann, bob, [Send(BOB, Probe(1, False, ann.core.replica.root()))])
    assert ann.core.replica.root() == bob.core.replica.root() and len(ann.core.replica) >= 48
    assert ann.core.states().keys() == bob.core.states().keys()


def test_missing_certificates_are_asked_for_at_most_every_half_second() -> None:
    ann = Person("ann", knows=["bob"])
    certificate, node = FOUNDING["cleo"]
    ((to, want),) = sent(ann.merge(node), Want)
    places = {int.from_bytes(want.places[at : at + 8], "big") for at in range(0, len(want.places), 8)}
    assert to == BOB and places == {place_of(CERTIFICATE.number, bytes(CLEO)), node.place}
    assert not sent(ann.merge(node), Want), "that was asked just now"
    ann.run(MISSING_S)
    assert sent(ann.merge(node, sender=DAN), Want)
    ann.merge(certificate, node, flood=False)
    assert ann.state(CLEO) is State.ALIVE


def test_a_long_fan_is_cut_and_those_who_watch_us_are_in_it() -> None:
    names = [f"p{number:02}" for number in range(40)]
    town = Town(names)
    key = town.keys["p00"]
    replica = Replica(key.peer, key.sign, town.mesh, town.root.root, FAKE_CHECKS, Random(1), boot=BOOT + 1)
    core = Community(replica, town.chains["p00"], NodeInfo(name="p00"), Random(1), 0.0, EPOCH_S)
    core.load(town.founding_rows(names, EPOCH_S), 0.0)
    for name in names[1:]:
        core.connected(town.peer(name), 0.0)
    core.tick(m.SETTLE_S)
    core.write(SERVICE, bytes(key.peer) + b"shop", b"", 1.0)
    told = {to for to, _ in sent(core.tick(1.0 + FLOOD_S), Rows)}
    assert len(told) == FANOUT and set(core.membership.neighbours(key.peer)) <= told


def test_what_a_peer_says_of_itself_rides_on_probes() -> None:
    ann, bob = Person("ann", linked=["bob"]), Person("bob")
    ann.core.soft.say(b"8 free", ann.now)
    for _, message in sent(ann.hear(BOB, Probe(1, False, b"")), Probe):
        bob.hear(ANN, message)
    assert bob.core.soft.get(ANN, bob.now) == (b"8 free", 0.0)


def test_with_nobody_linked_nothing_is_sent_but_answers() -> None:
    ann = Person("ann", linked=["bob"])
    ann.core.disconnected(BOB)
    ann.core.disconnected(BOB)
    ann.merge(row("bob", SERVICE, bytes(BOB) + b"shop"), sender=CLEO)
    assert not sent(ann.run(1.0), Rows)


# -- summons: who cannot be dialed is asked to dial ------------------------------------------------------------------


def test_who_is_summoned_dials_the_caller_if_that_is_a_living_member() -> None:
    ann = Person("ann")
    assert ann.hear(CLEO, Summon(BOB, ANN, 0)) == [Try(BOB)]
    ann.merge(accusation("cleo", BOB), accusation("dan", BOB))
    assert ann.hear(CLEO, Summon(BOB, ANN, 0)) == []
    assert ann.hear(CLEO, Summon(PeerId(bytes(32)), ANN, 0)) == []


def test_a_summons_goes_to_who_is_meant_if_there_is_a_session_and_once_in_two_seconds() -> None:
    ann = Person("ann", linked=["bob", "cleo", "dan"])
    assert ann.hear(BOB, Summon(BOB, DAN, 2)) == [Send(DAN, Summon(BOB, DAN, 1))]
    assert ann.hear(CLEO, Summon(BOB, DAN, 2)) == [], "it comes by several ways"
    ann.run(SUMMON_AGAIN_S)
    assert ann.hear(BOB, Summon(BOB, DAN, 2)) == [Send(DAN, Summon(BOB, DAN, 1))]


def test_a_summons_goes_on_to_those_who_watch_whom_it_is_for_and_never_back() -> None:
    ann = Person("ann", linked=["bob", "cleo"])
    assert ann.hear(BOB, Summon(BOB, DAN, 2)) == [Send(CLEO, Summon(BOB, DAN, 1))]
    alone = Person("ann", linked=["bob"])
    assert alone.hear(BOB, Summon(BOB, DAN, 2)) == []
    assert {each.hops for _, each in sent(ann.core.summon(DAN, ann.now), Summon)} == {SUMMON_HOPS - 1}


def test_a_summons_ends_after_so_many_peers() -> None:
    assert Person("ann", linked=["dan"]).hear(BOB, Summon(BOB, DAN, 0)) == []


# -- ourselves ------------------------------------------------------------------------------------------------------


def test_who_sees_a_row_of_its_own_from_a_later_boot_says_everything_anew_above_it() -> None:
    """Ann's directory was restored from a backup: others have what she said later."""
    ann = Person("ann")
    ann.core.announce(ann.now)
    ann.core.write(SERVICE, bytes(ANN) + b"shop", b"open", ann.now)
    later = node_row("ann", boot=BOOT + (9 << BOOT_BITS))
    effects = ann.merge(later)
    (raised,) = [effect for effect in effects if isinstance(effect, BootRaised)]
    assert raised.boot > later.content.boot
    mine = [each for each in ann.core.replica.all() if each.writer == ANN]
    assert len(mine) == 3 and {each.content.boot for each in mine} == {raised.boot}
    assert not [effect for effect in ann.merge(later) if isinstance(effect, BootRaised)], "once"


def test_who_finds_a_later_boot_of_its_own_on_disk_begins_above_it() -> None:
    ann = Person("ann", knows=[])
    effects = ann.core.load([node_row("ann", boot=BOOT + (9 << BOOT_BITS))], 0.0)
    assert any(isinstance(effect, BootRaised) for effect in effects)
    ann.core.announce(0.0)
    info = ann.core.node(ANN)
    assert info is not None and info.version == "0.1", "what it says now wins"


def test_rows_of_this_node_are_renewed_long_before_they_expire() -> None:
    ann = Person("ann", knows=[])
    ann.core.announce(ann.now)
    ann.core.write(SERVICE, bytes(ANN) + b"shop", b"open", ann.now)
    for _ in range(40):
        ann.run(DAY_S / 8)
        for kind, key in ((NODE, bytes(ANN)), (SERVICE, bytes(ANN) + b"shop")):
            found = ann.core.replica.get(kind, key)
            assert found is not None
            assert found.content.expires - ann.core.unix(ann.now) > DAY_S * (1 - 1 / RENEW_SHARE) - DAY_S / 8


def test_a_name_is_renewed_for_as_long_as_it_is_ours_and_keeps_its_heir() -> None:
    ann = Person("ann", knows=[])
    ann.core.announce(ann.now)
    ann.core.write(NAME, b"learner", b"actor 1", ann.now, heir=bytes(BOB))
    for _ in range(40):
        ann.run(DAY_S / 2)
        found = ann.core.replica.get(NAME, b"learner")
        assert found is not None and (found.body, found.content.heir) == (b"actor 1", bytes(BOB))
        assert found.content.expires - ann.core.unix(ann.now) > NAME.ttl_s / 2
    assert found.content.epoch > 5, "each supersedes the one before"


def test_a_name_that_its_heir_has_taken_or_its_writer_has_given_up_is_not_renewed() -> None:
    ann, bob = Person("ann"), Person("bob")
    for person in (ann, bob):
        person.core.announce(person.now)
    for key in (b"learner", b"actor"):
        ann.core.write(NAME, key, b"ann's", ann.now, heir=bytes(BOB))
    bob.merge(*[row for row in ann.core.replica.all() if row.writer == ANN], sender=ANN)
    bob.core.write(NAME, b"learner", b"bob's", bob.now)
    ann.merge(*[row for row in bob.core.replica.all() if row.writer == BOB])
    ann.core.write(NAME, b"actor", b"", ann.now, gone=True)
    ann.now += 3 * DAY_S
    ann.core.tick(ann.now)
    (held,) = ann.core.replica.rows(NAME)
    assert held.writer == BOB and held.body == b"bob's"


def test_a_name_that_expired_while_its_host_slept_is_gone() -> None:
    """Somebody else may have taken it meanwhile, and a row written now would win over theirs."""
    ann = Person("ann", knows=[])
    ann.core.announce(ann.now)
    ann.core.write(NAME, b"learner", b"actor 1", ann.now)
    ann.now += 8 * DAY_S
    effects = ann.core.tick(ann.now)
    assert [effect.row.key for effect in effects if isinstance(effect, RowGone)] == [b"learner"]
    assert ann.core.replica.get(NAME, b"learner") is None and ann.core.replica.get(NODE, bytes(ANN)) is not None


def test_a_node_whose_row_expires_is_no_member_any_more() -> None:
    """Bob was switched off a day ago, and nobody had said that he was dead."""
    ann = Person("ann", knows=["bob"])
    ann.core.announce(ann.now)
    forgotten = [change for change in changes(ann.run(DAY_S + 1)) if change.state is None]
    assert [change.peer for change in forgotten] == [BOB]
    assert ann.state(BOB) is None and ann.core.node(BOB) is None
    assert ann.state(ANN) is State.ALIVE


def test_a_renewed_membership_is_told_to_all() -> None:
    ann = Person("ann", linked=["bob"])
    effects = ann.core.renew_certificate(TOWN.chains["ann"], ann.now)
    assert [effect.row.kind for effect in effects if isinstance(effect, RowChanged)] == [CERTIFICATE.number]
    assert sent(ann.run(FLOOD_S), Rows)


# -- who does not count ---------------------------------------------------------------------------------------------


def test_a_revoked_member_is_none_any_more_and_its_accusations_do_not_count() -> None:
    ann = Person("ann")
    ann.core.soft.hear([], 0.0)
    ann.revoked.add(BOB)
    ann.core.trust_changed(ann.now)
    assert ann.state(BOB) is None and ann.core.node(BOB) is None and BOB not in ann.core.membership.living
    ann.merge(accusation("bob", DAN), node_row("bob"), sender=CLEO)
    assert ann.state(BOB) is None and ann.state(DAN) is State.ALIVE
    assert ann.core.replica.at(place_of(NODE.number, bytes(BOB))) is not None, "hidden, not gone"


def test_a_liar_is_hidden_until_an_admin_clears_it() -> None:
    ann = Person("ann")
    yes, no = (row("bob", SERVICE, bytes(BOB) + b"lie", word) for word in (b"yes", b"no"))
    effects = ann.merge(yes) + ann.merge(no)
    assert [effect for effect in effects if isinstance(effect, RowChanged) and effect.row.kind == EVIDENCE.number]
    assert ann.state(BOB) is None and "two different things" in ann.core.replica.distrusts(BOB)
    cleared = ann.core.write(CLEARANCE, bytes(BOB), BOOT.to_bytes(8, "big"), ann.now)
    assert MemberChanged(BOB, State.ALIVE, None) in cleared and ann.core.node(BOB) is not None


# -- known faults: each of these says what is wrong ------------------------------------------------------------------


def test_readers_hear_of_our_own_newest_row_last() -> None:
    """They keep what they are told last; here it is the row that has just been superseded."""
    ann = Person("ann")
    ann.core.announce(ann.now)
    effects = ann.merge(node_row("ann", boot=BOOT + (9 << BOOT_BITS)))
    told = [effect.row for effect in effects if isinstance(effect, RowChanged) and effect.row.kind == NODE.number]
    assert told[-1] is ann.core.replica.get(NODE, bytes(ANN))


def test_a_row_that_was_to_live_for_a_minute_is_gone_after_it() -> None:
    ann = Person("ann")
    ann.core.write(SERVICE, bytes(ANN) + b"shop", b"open", ann.now, ttl_s=60.0)
    ann.run(61.0)
    assert ann.core.replica.get(SERVICE, bytes(ANN) + b"shop") is None
