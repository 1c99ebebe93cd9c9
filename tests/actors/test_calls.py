"""What a caller hears when an actor's life ends, is superseded or cannot be reached: by the errors of its calls."""

from __future__ import annotations

from typing import Any, cast

import pytest

from lattica.actors.calls import ActorPeer, CallRecord, Calls
from lattica.actors.refs import Releases
from lattica.codec import messages as m
from lattica.errors import (
    ActorDiedError,
    ActorFencedError,
    ActorPlacementGroupRemovedError,
    ActorUnavailableError,
)

ACTOR = b"a" * 12


class Ref:
    id = b"r" * 16


class FakeRuntime:
    """What a peer asks of a runtime. ended: the error of each call that has one, in order."""

    data = False

    def __init__(self) -> None:
        self.objects = self.reactor = self
        self.ended: list[Exception] = []
        self.told: list[object] = []
        self.given: list[object] = []

    def tell_node(self, message: object) -> None:
        self.told.append(message)

    def failure(self, error: Exception) -> m.Failed:
        self.ended.append(error)
        return m.Failed(b"")

    def settle(self, ref: object, value: object) -> None:
        pass

    def from_wire(self, value: object, via: int) -> None:
        self.given.append(value)

    # of its reactor

    def send(self, link: object, message: object) -> None:
        self.told.append(message)

    def remove(self, link: object) -> None:
        self.told.append("closed")


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def peer(runtime: Any) -> ActorPeer:
    return ActorPeer(runtime, Calls(runtime), ACTOR, "Learner")


def sent(peer: ActorPeer, seq: int, retries: int = 0) -> CallRecord:
    """A call that is under way."""
    call = CallRecord(b"", [], [], [Ref()], 1, retries, False, peer, None, "learn")  # type: ignore[arg-type, list-item]
    call.seq = seq
    peer.inflight[seq] = call
    return call


def queued(peer: ActorPeer) -> CallRecord:
    """One that waits for a connection."""
    call = CallRecord(b"", [], [], [Ref()], 1, 0, False, peer, None, "learn")  # type: ignore[arg-type, list-item]
    peer.queue.append(call)
    return call


def down(peer: ActorPeer, *, restarting: bool, **more: bool) -> None:
    peer.down(m.ActorDown(ACTOR, 1, restarting, "a newer life of it runs on 3ab7", **more))


def test_what_a_superseded_life_owes_ends_fenced_and_the_rest_goes_to_the_one_that_won(
    runtime: Any, peer: ActorPeer
) -> None:
    sent(peer, 1)
    again, waiting = sent(peer, 2, retries=1), queued(peer)
    down(peer, restarting=True, fenced=True)
    (error,) = runtime.ended
    assert isinstance(error, ActorFencedError) and "a newer life of it runs on 3ab7" in str(error)
    assert "get_actor" in error.do_next
    assert list(peer.queue) == [again, waiting] and again.retries_left == 0


def test_of_an_actor_that_lost_its_name_every_call_ends_fenced(runtime: Any, peer: ActorPeer) -> None:
    sent(peer, 1, retries=5)
    queued(peer)
    down(peer, restarting=False, fenced=True)
    assert [type(error) for error in runtime.ended] == [ActorFencedError] * 2
    assert isinstance(peer.dead, ActorFencedError)


def test_calls_of_an_actor_whose_placement_group_was_removed_end_in_an_error_of_that_name(
    runtime: Any, peer: ActorPeer
) -> None:
    queued(peer)
    down(peer, restarting=False, removed=True)
    (error,) = runtime.ended
    assert isinstance(error, ActorPlacementGroupRemovedError) and "3ab7" in str(error) and error.do_next


def test_at_a_crash_with_restarts_left_calls_without_retries_may_have_run_and_the_queue_waits(
    runtime: Any, peer: ActorPeer
) -> None:
    sent(peer, 1)
    again, waiting = sent(peer, 2, retries=-1), queued(peer)
    down(peer, restarting=True)
    (error,) = runtime.ended
    assert isinstance(error, ActorUnavailableError) and "may have run" in str(error)
    assert list(peer.queue) == [again, waiting]


def test_at_the_last_crash_every_call_ends_whatever_retries_it_has(runtime: Any, peer: ActorPeer) -> None:
    sent(peer, 1, retries=-1)
    queued(peer)
    down(peer, restarting=False)
    assert [type(error) for error in runtime.ended] == [ActorDiedError] * 2


def test_out_of_reach_calls_fail_and_wait_again_once_it_is_looked_for(runtime: Any, peer: ActorPeer) -> None:
    queued(peer)
    down(peer, restarting=False, unavailable=True)
    assert isinstance(peer.dead, ActorUnavailableError) and isinstance(runtime.ended[0], ActorUnavailableError)
    down(peer, restarting=True)
    assert peer.dead is None


def test_an_actor_whose_node_was_believed_dead_takes_calls_again_when_that_is_back(
    runtime: Any, peer: ActorPeer
) -> None:
    """What was under way keeps its error; what is called from then on waits for the connection."""
    sent(peer, 1)
    down(peer, restarting=False)
    assert isinstance(peer.dead, ActorDiedError) and len(runtime.ended) == 1
    down(peer, restarting=True)
    assert peer.dead is None
    call = CallRecord(b"", [], [], [Ref()], 1, 0, False, peer, None, "learn")  # type: ignore[arg-type, list-item]
    peer.submit(call)
    assert list(peer.queue) == [call] and len(runtime.ended) == 1


class FakeLink:
    """Nothing has come over it that was not heard."""

    def __init__(self) -> None:
        self.stream = self
        self.handler: Any = None

    def drain(self) -> list[Any]:
        return []


def test_what_an_actor_that_was_believed_gone_still_gives_is_let_go(runtime: Any, peer: ActorPeer) -> None:
    """Its worker lives: it goes on with both calls, dies after the first, and the node says so."""
    peer.link, peer.client = link, _ = cast(Any, FakeLink()), 7
    sent(peer, 1), sent(peer, 2, retries=1)
    down(peer, restarting=True)
    assert runtime.told == [] and peer.link is None
    value = m.InArena(Ref.id, 64, 10)
    link.handler.received([m.Reply(1, [value])])
    assert runtime.given == [value]
    peer.calls.gone(7)
    assert runtime.told == ["closed", m.Unheard([Ref.id], 7)], "of the second call nothing was heard, nor will be"
    peer.calls.gone(7)
    assert len(runtime.told) == 2


def test_of_an_actor_whose_process_went_before_it_was_said_to_be_gone_nothing_is_awaited(
    runtime: Any, peer: ActorPeer
) -> None:
    """It was another node's actor, which has its say a little later."""
    runtime.connect = lambda *_: FakeLink()
    peer.connected(m.ActorConnected(ACTOR, 1, 7, 1234), -1)
    sent(peer, 1)
    peer.calls.gone(7)
    assert runtime.told == []
    down(peer, restarting=True)
    assert runtime.told[-1] == m.Unheard([Ref.id], 7) and not peer.calls.given_up.awaits(7)


def test_an_actor_that_was_found_by_its_name_lives_whatever_was_said_of_it(runtime: Any) -> None:
    told: list[object] = []
    runtime.tell_node, runtime.releases = told.append, Releases()
    calls = Calls(runtime)
    hold = calls.found(ACTOR)
    assert told == [m.ActorConnect(ACTOR)]
    peer = calls.peers[ACTOR]
    down(peer, restarting=False)
    assert calls.found(ACTOR) is hold and peer.dead is None
    assert told == [m.ActorConnect(ACTOR)] * 2, "the node is asked for it once more"
