"""Processes that restart, and directories that were copied: two processes with one key."""

from __future__ import annotations

import pytest

from lattica.mesh import wire
from lattica.mesh.links import SessionDown, SessionUp, TwinSeen, WeAreTwin
from lattica.mesh.sessions import PROBE_S
from lattica.mesh.twins import statement
from lattica.mesh.wire import CONTROL, Bye, Proof, encode
from tests.mesh.ring import Node, Ring, pair


@pytest.mark.parametrize(("low", "high"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("who_dials", ["ann", "bob"])
def test_a_restart_ends_the_session_and_begins_another(low: int, high: int, who_dials: str) -> None:
    ring, ann, bob = pair(low, high)
    ring.say(ann, bob, b"before")
    ring.kill(bob)
    again = ring.node("bob", high, boot=2)
    if who_dials == "bob":
        ring.connect(again, ann)
    ring.advance(3)
    assert [("restarted" in down.reason) for down in ann.seen(SessionDown)] == [True]
    assert len(ann.seen(SessionUp)) == 2 and not ann.seen(TwinSeen)
    ring.say(ann, again, b"after")
    assert again.got == [b"after"], "nothing of the first session comes to the second process"


def test_a_restart_that_the_network_did_not_report_is_noticed_by_silence() -> None:
    """The machine lost power: its connections are silent, and are asked when the new process turns up."""
    ring, ann, bob = pair()
    ring.silence(ring.carrier(ann, bob))
    ring.kill(bob)
    again = ring.node("bob", 2, boot=2)
    ring.connect(again, ann)
    assert not ann.seen(SessionDown), "it is being asked"
    ring.advance(PROBE_S + 1)
    assert "restarted" in ann.seen(SessionDown)[0].reason and not ann.seen(TwinSeen) and not again.seen(WeAreTwin)
    ring.say(ann, again, b"after")


def test_of_two_processes_with_one_key_the_later_one_is_told_to_stop() -> None:
    ring, ann, bob = pair()
    copy = ring.node("copy", 2, boot=2)
    ring.connect(copy, ann)
    assert len(copy.seen(WeAreTwin)) == 1 and "two live nodes have the key" in copy.seen(WeAreTwin)[0].reason
    assert len(ann.seen(TwinSeen)) == 1 and not ann.seen(SessionDown) and not bob.seen(WeAreTwin)
    ring.say(ann, bob, b"the first goes on")


def test_if_the_first_process_is_the_later_one_it_is_told_to_stop() -> None:
    """The copy was started and had connected before the original came back: boots tell which is which."""
    ring = Ring()
    ann, copy = ring.node("ann", 1), ring.node("copy", 2, boot=5)
    ring.connect(copy, ann)
    original = ring.node("bob", 2, boot=4)
    ring.connect(original, ann)
    assert len(copy.seen(WeAreTwin)) == 1 and not original.seen(WeAreTwin)
    assert len(ann.seen(SessionUp)) == 2
    ring.say(ann, original, b"hello")


def test_a_process_that_reaches_its_own_key_knows_which_of_both_it_is() -> None:
    ring = Ring()
    first, copy = ring.node("first", 2, boot=1), ring.node("copy", 2, boot=2)
    ends = ring.join(copy, first)
    for node, end, dialed in ((first, ends[1], False), (copy, ends[0], True)):
        if dialed:
            peering = node.sessions._peering(node.id)
            peering.dialing.wish(["first"], ring.now)
            attempt = node.sessions._us.attempt(peering, CONTROL)
            ring.perform(node, node.sessions.dialed(attempt, end.number, first.paper, ring.now))
        else:
            ring.perform(node, node.sessions.accepted(end.number, copy.paper, ring.now))
    ring.settle()
    assert len(first.seen(TwinSeen)) == 1 and not first.seen(WeAreTwin)
    assert len(copy.seen(WeAreTwin)) == 1
    ring.perform(first, first.sessions.connect(first.id, ["first"], ring.now))
    assert not ring.dials, "nobody dials itself"


def tell(ring: Ring, node: Node, by: Node, bye: Bye) -> None:
    """`by` says goodbye to `node` in its own words."""
    ring.write(by, ring.carrier(by, node).number, encode(bye))
    ring.settle()


def test_a_peer_cannot_stop_a_node_by_saying_that_it_is_a_twin() -> None:
    """Any member can send the frame; only a process with the node's own key can make the proof."""
    ring, ann, bob = pair()
    me = bob.sessions.me
    signature = bob.sessions._us.sign(statement((0, b"other"), b"not its instance"))
    own = bob.sessions._us.sign(statement((me.boot, me.instance), me.instance))
    for bye in (
        Bye("twin"),
        Bye("twin", "stop", 0, b"other", bytes(64)),
        Bye("twin", "stop", 0, b"other", signature),  # made for another process of this key, before it started
        Bye("twin", "stop", me.boot, me.instance, own),
        Bye("twin", "stop", 7, b"later", bob.sessions._us.sign(statement((7, b"later"), me.instance))),
    ):
        tell(ring, bob, ann, bye)
        ring.advance(5)
    assert not bob.seen(WeAreTwin) and not bob.seen(SessionDown)
    tell(ring, bob, ann, Bye("twin", "", 0, b"first", bob.sessions._us.sign(statement((0, b"first"), me.instance))))
    assert len(bob.seen(WeAreTwin)) == 1


def test_a_node_signs_for_others_now_and_then_and_never_its_own_instance() -> None:
    ring, ann, bob = pair()
    end = ring.carrier(ann, bob)
    assert end.other is not None
    for instance in [bob.sessions.me.instance, *[b"%d" % number for number in range(100)]]:
        ring.write(ann, end.number, encode(wire.Prove(instance)))
    ring.settle()
    assert sum(isinstance(frame, Proof) for frame in end.other.written) == 1
    ring.advance(PROBE_S + 1)
    ring.write(ann, end.number, encode(wire.Prove(b"again")))
    ring.settle()
    assert sum(isinstance(frame, Proof) for frame in end.other.written) == 2
