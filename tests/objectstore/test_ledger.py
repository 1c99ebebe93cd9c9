"""The ledger's rules one by one; `test_ledger_world` checks them together in every order of messages."""

from __future__ import annotations

from itertools import pairwise

import pytest

from lattica.codec.messages import NODE, Freed, Located, Lost
from lattica.errors import RemoteProtocolError
from lattica.objectstore.ledger import (
    OWNER_UNKNOWN,
    Adopt,
    Effect,
    Forgotten,
    FreeRegion,
    Ledger,
    ObjectView,
    Tell,
    Unreferenced,
)

A, B, C = 1, 2, 3
TOKENS = {A: b"aaaaaaaa", B: b"bbbbbbbb", C: b"cccccccc"}


def object_of(client: int, number: int = 0) -> bytes:
    return TOKENS[client] + number.to_bytes(8, "big")


X, Y = object_of(A, 1), object_of(A, 2)


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger()
    for client, token in TOKENS.items():
        ledger.client_joined(client, token)
    return ledger


def is_empty(ledger: Ledger) -> bool:
    ledger.validate()
    return not ledger._entries and not any(
        client.counts or client.waits or client.made or client.answers_for for client in ledger._clients.values()
    )


def test_an_object_that_only_its_maker_held_is_freed_with_its_drop(ledger: Ledger) -> None:
    assert ledger.seal(A, X, 64, 10) == []
    assert ledger.drop(A, X) == [Tell(A, Freed(X))]
    assert is_empty(ledger)


def test_each_object_is_listed_with_its_size_owner_and_state_and_no_actor_is(ledger: Ledger) -> None:
    ledger.seal(A, X, 64, 10)
    ledger.give(A, X, B)
    ledger.promise(A, Y, "train.py:7")
    ledger.track(B, object_of(B)[:12])
    assert list(ledger.objects()) == [
        ObjectView(X, "here", 10, A, None, 2, ""),
        ObjectView(Y, "promised", 0, A, None, 1, "train.py:7"),
    ]
    ledger.client_gone(A, "it ended")
    assert [(view.object, view.state, view.owner, view.holders) for view in ledger.objects()] == [(X, "here", None, 1)]


def test_an_object_on_its_way_is_never_without_a_holder(ledger: Ledger) -> None:
    ledger.seal(A, X, 64, 10)
    ledger.give(A, X, B)
    assert ledger.drop(A, X) == []
    assert ledger.drop(B, X) == [Tell(A, Freed(X))]


def test_a_drop_that_overtakes_its_give_keeps_the_object_until_the_give_is_read(ledger: Ledger) -> None:
    """A gives X to B and lets go; B is quick, and the node reads B's connection before A's."""
    ledger.seal(A, X, 64, 10)
    assert ledger.drop(B, X) == []
    assert ledger.drop(A, X) == [], "B's count is below zero: a Give is on its way"
    assert ledger.give(A, X, B) == [Tell(A, Freed(X))]
    assert is_empty(ledger)


def test_a_drop_that_overtakes_the_seal_frees_the_object_when_the_seal_is_read(ledger: Ledger) -> None:
    """Worker B seals the result for A and replies; A forgets the reply before the node has read the Seal."""
    assert ledger.drop(A, X) == []
    assert ledger.seal(B, X, 64, 10, to=A) == [Tell(B, Freed(X))]
    assert is_empty(ledger)


def test_a_result_is_held_by_the_submitter_and_freed_with_its_maker(ledger: Ledger) -> None:
    ledger.seal(B, X, 64, 10, to=A)
    assert ledger.drop(A, X) == [Tell(B, Freed(X))]


def test_counts_add_up_over_givers(ledger: Ledger) -> None:
    ledger.seal(A, X, 64, 10)
    ledger.give(A, X, C, 2)
    ledger.give(A, X, B)
    ledger.give(B, X, C)
    assert ledger.drop(C, X, 2) == ledger.drop(A, X) == ledger.drop(B, X) == []
    assert ledger.drop(C, X) == [Tell(A, Freed(X))]


def test_a_sealed_object_is_located_at_once_and_each_time(ledger: Ledger) -> None:
    ledger.seal(A, X, 64, 10, failed=True)
    assert ledger.resolve(B, [X]) == ledger.resolve(B, [X]) == [Tell(B, Located(X, 64, 10, True))]


def test_waiters_are_told_once_when_the_object_is_sealed(ledger: Ledger) -> None:
    ledger.promise(A, X)
    ledger.give(A, X, B)
    ledger.give(A, X, C)
    assert ledger.resolve(B, [X]) == ledger.resolve(C, [X]) == ledger.resolve(C, [X]) == []
    assert ledger.pending == 2
    assert ledger.seal(C, X, 64, 10, to=A) == [Tell(B, Located(X, 64, 10)), Tell(C, Located(X, 64, 10))]
    assert ledger.pending == 0
    ledger.validate()


def test_who_asks_before_the_promise_is_read_waits_for_it(ledger: Ledger) -> None:
    """A promises X and gives it to B; the node reads B's Resolve first."""
    assert ledger.resolve(B, [X]) == []
    ledger.promise(A, X)
    ledger.give(A, X, B)
    assert ledger.seal(A, X, 64, 10) == [Tell(B, Located(X, 64, 10))]


def test_who_asks_is_not_forgotten_when_counts_pass_through_zero_before_the_promise(ledger: Ledger) -> None:
    """A promises X and gives it to B, who waits and gives it to C, who lets go: all is read before A's first word."""
    ledger.resolve(B, [X])
    ledger.give(B, X, C)
    assert ledger.drop(C, X) == []
    ledger.validate()
    ledger.promise(A, X)
    assert ledger.seal(A, X, 64, 10) == [Tell(B, Located(X, 64, 10))]


def test_who_asks_is_not_forgotten_when_only_the_executors_seal_is_still_to_come(ledger: Ledger) -> None:
    """C sealed A's result and replied; A let its promise go, and gave to B what it holds by the reply. B asks. The node
    reads A's first words and B's, then C's, then the rest of A's."""
    ledger.promise(A, X)
    ledger.resolve(B, [X])
    assert ledger.drop(A, X) == []
    ledger.validate()
    assert ledger.seal(C, X, 64, 10, to=A) == [Tell(B, Located(X, 64, 10))]
    ledger.give(A, X, B)
    assert ledger.drop(A, X) == []
    assert ledger.drop(B, X) == [Tell(C, Freed(X))]


def test_what_only_a_dead_client_waited_for_is_forgotten(ledger: Ledger) -> None:
    ledger.promise(A, X)
    ledger.resolve(B, [X])
    ledger.drop(A, X)
    ledger.client_gone(B, "exit code 1")
    assert is_empty(ledger)


def test_a_container_holds_what_is_inside_it(ledger: Ledger) -> None:
    ledger.seal(A, X, 64, 10)
    ledger.seal(A, Y, 128, 10, contains=[X])
    assert ledger.drop(A, X) == []
    assert ledger.drop(A, Y) == [Tell(A, Freed(Y)), Tell(A, Freed(X))]
    assert is_empty(ledger)


def test_a_hold_taken_from_a_container_outlives_it(ledger: Ledger) -> None:
    ledger.seal(A, X, 64, 10)
    ledger.seal(A, Y, 128, 10, to=B, contains=[X, X])
    ledger.drop(A, X)
    ledger.hold(B, X)
    assert ledger.drop(B, Y) == [Tell(A, Freed(Y))]
    assert ledger.drop(B, X) == [Tell(A, Freed(X))]


def test_a_chain_of_100000_containers_falls_at_once(ledger: Ledger) -> None:
    links = [object_of(A, number) for number in range(100_000)]
    ledger.seal(A, links[0], 0, 64)
    for inner, outer in pairwise(links):
        ledger.seal(A, outer, 0, 64, contains=[inner])
        ledger.drop(A, inner)
    assert len(ledger.drop(A, links[-1])) == len(links)
    assert is_empty(ledger)


def test_what_a_dead_client_held_falls(ledger: Ledger) -> None:
    ledger.seal(A, X, 64, 10, to=B)
    assert ledger.client_gone(B, "killed by SIGKILL") == [Adopt(B, []), Tell(A, Freed(X))]
    assert is_empty(ledger)


def test_the_bytes_of_a_dead_maker_live_while_somebody_holds_them(ledger: Ledger) -> None:
    ledger.seal(A, X, 64, 10, to=B)
    ledger.seal(A, Y, 128, 10)
    assert ledger.client_gone(A, "exit code 1") == [Adopt(A, [(64, 10)]), Forgotten(Y)]
    assert ledger.resolve(B, [X]) == [Tell(B, Located(X, 64, 10))]
    assert ledger.drop(B, X) == [FreeRegion(64, 10, X)]
    assert is_empty(ledger)


def test_a_broken_promise_is_told_to_all_who_wait_and_to_those_who_ask_later(ledger: Ledger) -> None:
    ledger.promise(A, X, "train.py:48")
    ledger.give(A, X, B)
    ledger.give(A, X, C)
    ledger.resolve(B, [X])
    lost = Lost(X, "worker 7 was killed by SIGSEGV", "train.py:48")
    assert ledger.client_gone(A, "worker 7 was killed by SIGSEGV") == [Adopt(A, []), Tell(B, lost)]
    assert ledger.resolve(C, [X]) == [Tell(C, lost)]
    ledger.validate()
    ledger.drop(B, X)
    ledger.drop(C, X)
    assert is_empty(ledger), "what is lost is remembered only while somebody holds it"


def test_a_result_that_arrives_after_its_owner_died_is_there_for_who_still_holds_it(ledger: Ledger) -> None:
    ledger.promise(A, X)
    ledger.give(A, X, B)
    ledger.client_gone(A, "exit code 1")
    assert ledger.seal(C, X, 64, 10, to=A) == []
    assert ledger.resolve(B, [X]) == [Tell(B, Located(X, 64, 10))]
    assert ledger.drop(B, X) == [Tell(C, Freed(X))]
    assert is_empty(ledger)


def test_a_result_that_nobody_wants_any_more_is_freed_as_it_arrives(ledger: Ledger) -> None:
    ledger.client_gone(A, "exit code 1")
    assert ledger.seal(C, X, 64, 10, to=A) == [Tell(C, Freed(X))]
    assert is_empty(ledger)


def test_asking_for_what_a_gone_owner_never_told_of_is_answered_at_once(ledger: Ledger) -> None:
    ledger.resolve(B, [X])
    assert ledger.client_gone(A, "exit code 1") == [Adopt(A, []), Tell(B, Lost(X, "exit code 1"))]
    assert ledger.resolve(C, [Y]) == [Tell(C, Lost(Y, OWNER_UNKNOWN))]
    assert is_empty(ledger)


def test_what_the_dead_say_and_what_is_given_to_them_is_ignored(ledger: Ledger) -> None:
    ledger.seal(A, X, 64, 10)
    ledger.client_gone(B, "exit code 1")
    assert ledger.give(A, X, B) == ledger.give(B, X, C) == ledger.hold(B, X) == ledger.drop(B, X) == []
    assert ledger.seal(B, Y, 0, 10) == ledger.promise(B, Y) == ledger.resolve(B, [X]) == ledger.track(B, Y) == []
    assert ledger.client_gone(B, "again") == []
    assert ledger.drop(A, X) == [Tell(A, Freed(X))]
    assert is_empty(ledger)


def test_a_waiter_that_died_is_not_told(ledger: Ledger) -> None:
    ledger.promise(A, X)
    ledger.resolve(B, [X])
    ledger.resolve(B, [Y])
    ledger.client_gone(B, "exit code 1")
    ledger.validate()
    assert ledger.seal(A, X, 64, 10) == []
    assert ledger.drop(A, X, 2) == [Tell(A, Freed(X))]
    assert is_empty(ledger)


def test_a_task_that_ran_twice_leaves_no_hold_behind(ledger: Ledger) -> None:
    """B seals A's result and dies before it replies; C runs the task again. A hears of one and drops one hold."""
    ledger.seal(B, X, 64, 10, to=A)
    assert ledger.client_gone(B, "killed by SIGKILL") == [Adopt(B, [(64, 10)])]
    assert ledger.unheard(A, [X], B) == [FreeRegion(64, 10, X)]
    assert ledger.seal(C, X, 4096, 10, to=A) == []
    assert ledger.resolve(A, [X]) == [Tell(A, Located(X, 4096, 10))]
    ledger.validate()
    assert ledger.drop(A, X) == [Tell(C, Freed(X))]
    assert is_empty(ledger)


@pytest.mark.parametrize("order", ["unheard seal drop", "seal unheard drop", "unheard drop seal"])
def test_of_a_task_that_ran_twice_nothing_is_left_whatever_overtakes_what(ledger: Ledger, order: str) -> None:
    ledger.seal(B, X, 64, 10, to=A)
    ledger.client_gone(B, "killed by SIGKILL")
    for step in order.split():
        if step == "unheard":
            ledger.unheard(A, [X], B)
        elif step == "seal":
            ledger.seal(C, X, 4096, 10, to=A)
        else:
            ledger.drop(A, X)
        ledger.validate()
    assert is_empty(ledger)


def test_what_no_second_attempt_seals_goes_at_once(ledger: Ledger) -> None:
    ledger.seal(B, X, 64, 10, to=A)
    ledger.client_gone(B, "killed by SIGKILL")
    assert ledger.unheard(A, [Y, X], B) == [FreeRegion(64, 10, X)]
    assert is_empty(ledger)


def test_only_the_holds_that_the_dead_gave_are_unheard(ledger: Ledger) -> None:
    ledger.promise(A, X)
    ledger.seal(B, X, 64, 10, to=A)
    assert ledger.unheard(A, [X], B) == [], "it lives, and will reply"
    ledger.client_gone(B, "exit code 0")
    assert ledger.unheard(A, [X, Y], 98) == [] == ledger.unheard(C, [X], B) == ledger.unheard(99, [X], B)
    ledger.validate()
    assert ledger.drop(A, X, 2) == [FreeRegion(64, 10, X)]
    assert is_empty(ledger)


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_attempts_in_one_worker_only_the_one_that_was_not_heard_of_ends(ledger: Ledger, first: int) -> None:
    """A believed B dead, has called it again, and had the second reply before B died. What it sealed first is for B
    to say."""
    for attempt in (first, 1 - first):
        ledger.seal(B, X, 64 + attempt, 10, to=A, attempt=attempt)
    ledger.client_gone(B, "exit code 0")
    assert ledger.unheard(A, [X], B) == [] == ledger.unheard(A, [X], B)
    ledger.validate()
    assert len(ledger.drop(A, X)) == 2
    assert is_empty(ledger)


def test_what_was_shared_and_is_made_anew_is_held_once(ledger: Ledger) -> None:
    """A shares X before B seals it and dies; C, who borrowed it, has read that; A hears of a small value, and seals."""
    ledger.promise(A, X)
    ledger.give(A, X, C)
    ledger.seal(B, X, 64, 10, to=A)
    ledger.client_gone(B, "killed by SIGKILL")
    assert ledger.resolve(C, [X]) == [Tell(C, Located(X, 64, 10))]
    assert ledger.unheard(A, [X], B) == [] == ledger.seal(A, X, 4096, 5) == ledger.drop(A, X)
    ledger.validate()
    assert ledger.drop(A, X) == [] and ledger.drop(C, X) == [Tell(A, Freed(X)), FreeRegion(64, 10, X)]
    assert is_empty(ledger)


def test_a_second_attempt_keeps_the_bytes_of_the_first_for_who_reads_them(ledger: Ledger) -> None:
    """The first attempt raised an exception too large for a message, B reads it, and A wants the task run again."""
    ledger.promise(A, X)
    ledger.give(A, X, B)
    ledger.seal(C, X, 64, 10, to=A, failed=True)
    ledger.drop(A, X)
    assert ledger.seal(C, X, 4096, 10, to=A) == []
    assert ledger.drop(A, X, 2) == []
    assert ledger.drop(B, X) == [Tell(C, Freed(X)), Tell(C, Freed(X))]
    assert is_empty(ledger)


def test_an_actor_is_unreferenced_when_its_last_handle_goes(ledger: Ledger) -> None:
    actor = b"actor of A.."
    ledger.track(A, actor)
    ledger.give(A, actor, B)
    assert ledger.drop(A, actor) == []
    assert ledger.client_gone(B, "exit code 0") == [Adopt(B, []), Unreferenced(actor)]
    assert is_empty(ledger)


def test_a_handle_inside_an_object_keeps_the_actor(ledger: Ledger) -> None:
    actor = b"actor of A.."
    ledger.track(A, actor)
    ledger.seal(A, X, 64, 10, contains=[actor])
    assert ledger.drop(A, actor) == []
    assert ledger.drop(A, X) == [Tell(A, Freed(X)), Unreferenced(actor)]


def test_the_node_holds_arguments_of_actors_like_a_client(ledger: Ledger) -> None:
    ledger.seal(A, X, 64, 10)
    ledger.give(A, X, NODE)
    ledger.drop(A, X)
    ledger.give(NODE, X, B)
    assert ledger.client_gone(B, "exit code 1") == [Adopt(B, [])]
    assert ledger.drop(NODE, X) == [Tell(A, Freed(X))]


def test_values_that_hold_each_other_in_a_ring_go_with_the_last_client(ledger: Ledger) -> None:
    ledger.promise(A, X)
    ledger.seal(A, Y, 128, 10, contains=[X])
    ledger.seal(A, X, 64, 10, contains=[Y, X])
    ledger.drop(A, X, 2)
    assert ledger.drop(A, Y) == []
    assert ledger.client_gone(A, "exit code 0") == [Adopt(A, [(128, 10), (64, 10)])]
    assert ledger.client_gone(B, "exit code 0") == [Adopt(B, [])]
    effects: list[Effect] = ledger.client_gone(C, "exit code 0")
    assert effects == [Adopt(C, []), FreeRegion(64, 10, X), FreeRegion(128, 10, Y)]
    assert is_empty(ledger)


def test_who_hears_elsewhere_where_it_lies_waits_no_more(ledger: Ledger) -> None:
    """Of what is promised, of what is not known yet, and of what nobody holds any more."""
    ledger.promise(A, X)
    ledger.resolve(B, [X, Y])
    ledger.resolve(C, [X, Y])
    assert ledger.waiters(X) == ledger.waiters(Y) == [B, C]
    assert ledger.unwait(B, X) == ledger.unwait(B, Y) == ledger.unwait(B, Y) == []
    ledger.validate()
    assert ledger.waiters(X) == ledger.waiters(Y) == [C]
    assert ledger.unwait(C, Y) == [] and not ledger.waiters(Y)
    ledger.drop(A, X)
    assert ledger.unwait(C, X) == []
    assert is_empty(ledger)


def test_it_says_what_a_client_holds(ledger: Ledger) -> None:
    ledger.seal(A, X, 64, 10)
    ledger.give(A, X, B)
    assert ledger.holds(B, X) and not ledger.holds(B, Y) and not ledger.holds(99, X)
    assert ledger.held_by(B) == [X] and ledger.held_by(C) == ledger.held_by(99) == []


def test_a_token_that_another_client_has_is_refused(ledger: Ledger) -> None:
    with pytest.raises(RemoteProtocolError, match="client 4"):
        ledger.client_joined(4, TOKENS[A])
    ledger.client_joined(5)
    ledger.client_joined(6)


def test_views_say_who_holds_and_who_made_how_much(ledger: Ledger) -> None:
    ledger.seal(A, X, 64, 10, to=B)
    ledger.seal(B, Y, 128, 5)
    ledger.resolve(C, [object_of(A, 3)])
    ledger.client_gone(A, "exit code 1")
    views = {
        view.client: (view.held, view.held_bytes, view.made, view.made_bytes, view.waiting) for view in ledger.views()
    }
    assert views == {NODE: (0, 0, 1, 10, 0), B: (2, 15, 1, 5, 0), C: (0, 0, 0, 0, 0)}
    assert repr(ledger) == "<Ledger 2 ids of 2 clients, 0 asked for>"


LONG_GONE = "the process that gave it is long gone"


@pytest.mark.parametrize("promised", [False, True])
def test_an_owner_that_is_given_its_own_result_by_somebody_gone_is_told_that_it_is_lost(
    ledger: Ledger, promised: bool
) -> None:
    """It would wait for itself: the node asks the owner of an id whose value is nowhere."""
    if promised:
        ledger.promise(A, X)
    ledger.resolve(A, [X])
    assert ledger.inherit(A, X, LONG_GONE) == [Tell(A, Lost(X, LONG_GONE))]
    ledger.validate()
    ledger.drop(A, X, 2 if promised else 1)
    assert is_empty(ledger)


def test_of_what_somebody_gone_has_given_its_owner_here_is_told_and_answers_whoever_waits(ledger: Ledger) -> None:
    assert ledger.inherit(B, X, LONG_GONE) == [Tell(A, Lost(X, LONG_GONE))]
    assert ledger.resolve(B, [X]) == []
    assert Tell(B, Located(X, 64, 10, True)) in ledger.seal(A, X, 64, 10, failed=True)
    ledger.validate()


def test_what_somebody_gone_has_given_and_nobody_here_owns_is_lost_to_whoever_asks(ledger: Ledger) -> None:
    foreign = b"ffffffff" + bytes(8)
    assert ledger.inherit(B, foreign, LONG_GONE) == []
    assert ledger.resolve(B, [foreign]) == [Tell(B, Lost(foreign, LONG_GONE))]
    ledger.drop(B, foreign)
    assert is_empty(ledger)


def test_what_another_node_lends_stays_although_somebody_gone_has_given_it_too(ledger: Ledger) -> None:
    foreign = b"ffffffff" + bytes(8)
    ledger.borrow(A, foreign, C, value=True)
    assert ledger.inherit(B, foreign, LONG_GONE) == []
    assert ledger.lender(foreign) == C and ledger.resolve(B, [foreign]) == []
    ledger.validate()


def test_what_is_made_again_is_of_a_later_attempt_however_it_comes(ledger: Ledger) -> None:
    """A owns a result that another node lends; it is lost, and comes from there, is made here, or is a small value."""
    ledger.client_joined(90)
    owned = next(token for token, number in ledger._owners.items() if number == A) + bytes(8)
    ledger.promise(A, owned)
    ledger.borrow(A, owned, 90, value=True, attempt=1)
    assert ledger.attempt(owned) == 1
    ledger.doubted(owned, "it cannot be reached")
    assert ledger.attempt(owned) == 1, "its owner may have no retry left"
    ledger.seal(A, owned, 0, 64)
    assert ledger.attempt(owned) == 2


def test_a_lender_says_of_which_attempt_its_value_is(ledger: Ledger) -> None:
    ledger.client_joined(90)
    strange = b"strange!" + bytes(8)
    ledger.borrow(A, strange, 90, value=True)
    ledger.later(strange, 3)
    ledger.later(strange, 2)
    ledger.relend(strange, B)
    assert ledger.attempt(strange) == 3
    ledger.seal(B, strange, 0, 64, attempt=4)
    assert ledger.attempt(strange) == 4
