"""Actors live, restart, end and are told of, in any order of events."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lattica.actors.supervision import (
    RESTART_PAUSE_FIRST_S,
    RESTART_PAUSE_LAST_S,
    Accept,
    Become,
    CancelNeed,
    Connect,
    Down,
    Effect,
    End,
    EndWorker,
    Forget,
    Found,
    NeedWorker,
    Plan,
    Refuse,
    Release,
    State,
    Supervisor,
    no_bearer,
)
from lattica.scheduler.resources import ResourceSet

DRIVER, OTHER, WORKER = 1, 2, 10
ID, NEXT = b"a" * 16, b"b" * 16
CRASH = End("killed by SIGSEGV", "last words")


def plan(actor: bytes = ID, **given: Any) -> Plan:
    return Plan(actor, 1, b"spec", ResourceSet({}), "Counter", **given)


def alive(**given: Any) -> Supervisor:
    """One actor, created by DRIVER, whose constructor has run in WORKER."""
    actors = Supervisor()
    actors.create(DRIVER, 1, plan(**given))
    actors.assigned(ID, 1, WORKER, 0.0)
    actors.ready(WORKER, ID)
    return actors


def kinds(effects: list[Effect]) -> list[type]:
    return [type(effect) for effect in effects]


def state(actors: Supervisor, actor: bytes = ID) -> State:
    return actors.actors[actor].state


# ---- a life -------------------------------------------------------------------------------------------------------


def test_a_new_actor_is_accepted_and_needs_a_worker() -> None:
    actors = Supervisor()
    assert actors.create(DRIVER, 7, plan(meta=b"m")) == [Accept(DRIVER, 7, ID, meta=b"m"), NeedWorker(ID, 1)]
    assert state(actors) is State.PENDING


def test_an_announced_actor_bears_its_name_and_waits_for_its_arguments() -> None:
    actors = Supervisor()
    assert kinds(actors.create(DRIVER, 1, plan(name="c", announced=True))) == [Accept]
    assert kinds(actors.lookup(OTHER, 2, "c", "")) == [Found]
    assert actors.connect(OTHER, ID) == []
    assert actors.arguments(OTHER, ID, b"theirs", ()) == [], "only its creator can bring them"
    assert actors.arguments(DRIVER, ID, b"spec", (b"arg",)) == [NeedWorker(ID, 1)]
    assert actors.actors[ID].plan.spec == b"spec"
    assert actors.arguments(DRIVER, ID, b"again", ()) == []


def test_an_announced_actor_ends_when_an_argument_fails_or_its_creator_is_gone() -> None:
    actors = Supervisor()
    actors.create(DRIVER, 1, plan(announced=True, detached=True))
    actors.connect(OTHER, ID)
    effects = actors.argument_failed(DRIVER, ID, b"why")
    assert [effect.end.error for effect in effects if isinstance(effect, Down)] == [b"why", b"why"]
    assert actors.arguments(DRIVER, ID, b"spec", ()) == []
    actors.create(DRIVER, 2, plan(NEXT, announced=True, detached=True))
    actors.connect(OTHER, NEXT)
    (_, told, _) = actors.client_gone(DRIVER)
    assert isinstance(told, Down) and told.client == OTHER and "creator" in told.end.how
    assert actors.client_gone(OTHER) == []


def test_callers_are_connected_before_the_constructor_has_run() -> None:
    actors = Supervisor()
    actors.create(DRIVER, 1, plan())
    assert actors.connect(OTHER, ID) == []
    assert actors.assigned(ID, 1, WORKER, 0.0) == [
        Become(ID, 1, WORKER),
        Connect(DRIVER, ID, 1, WORKER),
        Connect(OTHER, ID, 1, WORKER),
    ]
    assert state(actors) is State.PENDING
    actors.ready(WORKER, ID)
    assert state(actors) is State.ALIVE


def test_a_caller_that_let_its_connection_go_and_comes_again_gets_a_new_one() -> None:
    assert alive().connect(DRIVER, ID) == [Connect(DRIVER, ID, 1, WORKER)]


def test_a_constructor_that_raises_ends_the_actor_with_its_error_whatever_restarts_it_has() -> None:
    actors = Supervisor()
    actors.create(DRIVER, 1, plan(max_restarts=5, holds=(b"arg",)))
    actors.assigned(ID, 1, WORKER, 0.0)
    killed, told, forgotten = actors.failed(WORKER, ID, b"pickled")
    assert killed == EndWorker(WORKER, kill=True) and forgotten == Forget(ID, (b"arg",), False)
    assert isinstance(told, Down) and told.end.error == b"pickled" and not told.restarting
    assert actors.worker_gone(WORKER, CRASH, 1.0) == []


def test_what_a_worker_says_of_an_actor_that_it_is_not_is_ignored() -> None:
    actors = alive()
    assert actors.failed(99, ID, b"") == [] and actors.failed(WORKER, NEXT, b"") == []
    assert actors.leaving(99, ID, "") == [] and state(actors) is State.ALIVE


# ---- restarts -----------------------------------------------------------------------------------------------------


def test_a_crash_without_restarts_is_the_end_and_says_how() -> None:
    actors = alive()
    assert (
        actors.worker_gone(WORKER, CRASH, 9.0)
        == [
            CancelNeed(ID, 1),
            Down(DRIVER, ID, 1, False, CRASH),
            Forget(ID, (), False),
        ][1:]
    )
    assert actors.connect(OTHER, ID) == [Down(OTHER, ID, 1, False, CRASH)]


def test_a_crash_with_restarts_left_is_followed_by_the_next_incarnation_for_the_same_callers() -> None:
    actors = alive(max_restarts=1)
    assert actors.worker_gone(WORKER, CRASH, 9.0) == [Down(DRIVER, ID, 1, True, CRASH), NeedWorker(ID, 2, 0.0)]
    assert state(actors) is State.RESTARTING
    assert actors.assigned(ID, 2, 11, 9.0) == [Become(ID, 2, 11), Connect(DRIVER, ID, 2, 11)]
    last = End("killed by SIGSEGV; its restarts are spent", "last words")
    assert Down(DRIVER, ID, 2, False, last) in actors.worker_gone(11, CRASH, 20.0)


def test_an_actor_that_crashes_at_once_is_restarted_ever_more_slowly() -> None:
    actors = alive(max_restarts=-1)
    pauses, now = [], 0.1
    for worker in range(20, 32):
        (*_, need) = actors.worker_gone(WORKER if worker == 20 else worker - 1, CRASH, now)
        assert isinstance(need, NeedWorker)
        pauses.append(need.pause_s)
        now += need.pause_s
        actors.assigned(ID, need.incarnation, worker, now)
        now += 0.1
    assert pauses[:3] == [0.0, 2 * RESTART_PAUSE_FIRST_S, 4 * RESTART_PAUSE_FIRST_S]
    assert pauses[-1] == RESTART_PAUSE_LAST_S


def test_a_worker_that_comes_for_an_incarnation_that_is_over_is_not_used() -> None:
    actors = alive(max_restarts=1)
    actors.worker_gone(WORKER, CRASH, 9.0)
    assert actors.assigned(ID, 1, 11, 9.0) == [] and actors.assigned(NEXT, 1, 11, 9.0) == []


# ---- kill, exit, release ------------------------------------------------------------------------------------------


def test_kill_is_told_at_once_and_is_for_good() -> None:
    actors = alive(max_restarts=5, name="it")
    effects = actors.kill(ID, no_restart=True)
    assert kinds(effects) == [EndWorker, Down, Forget] and effects[0] == EndWorker(WORKER, kill=True)
    assert kinds(actors.lookup(OTHER, 1, "it", "")) == [Refuse]
    assert actors.worker_gone(WORKER, CRASH, 1.0) == [] and actors.kill(ID, no_restart=True) == []


def test_kill_with_restart_counts_as_a_crash() -> None:
    actors = alive(max_restarts=1)
    assert actors.kill(ID, no_restart=False) == [EndWorker(WORKER, kill=True)]
    assert kinds(actors.worker_gone(WORKER, End("killed by SIGKILL"), 9.0)) == [Down, NeedWorker]


def test_kill_of_an_actor_that_waits_for_a_worker_ends_the_wait() -> None:
    actors = Supervisor()
    actors.create(DRIVER, 1, plan())
    assert kinds(actors.kill(ID, no_restart=True)) == [CancelNeed, Down, Forget]
    assert actors.assigned(ID, 1, WORKER, 0.0) == []


def test_an_actor_that_exits_is_told_when_its_process_is_gone_and_does_not_restart() -> None:
    """Its last replies are still on their way when it says that it leaves."""
    actors = alive(max_restarts=5, name="it")
    assert actors.leaving(WORKER, ID, "exit_actor()") == [EndWorker(WORKER, kill=False)]
    assert kinds(actors.lookup(OTHER, 1, "it", "")) == [Refuse]
    assert actors.connect(OTHER, ID) == []
    effects = actors.worker_gone(WORKER, End("exit code 0"), 9.0)
    assert [effect.client for effect in effects if isinstance(effect, Down)] == [DRIVER, OTHER]
    assert all(effect.end == End("exit_actor()", intended=True) for effect in effects if isinstance(effect, Down))


def test_an_actor_that_nobody_holds_finishes_its_calls_and_is_forgotten() -> None:
    actors = alive(max_restarts=5)
    assert actors.unreferenced(ID) == [Release(ID, WORKER)] and actors.unreferenced(ID) == []
    actors.leaving(WORKER, ID, "")
    effects = actors.worker_gone(WORKER, End("exit code 0"), 9.0)
    assert kinds(effects) == [Down, Forget] and not actors.actors


def test_a_name_is_free_as_soon_as_its_bearer_was_let_go() -> None:
    actors = alive(name="it")
    actors.unreferenced(ID)
    assert kinds(actors.create(DRIVER, 2, plan(NEXT, name="it"))) == [Accept, NeedWorker]
    actors.worker_gone(WORKER, CRASH, 9.0)
    assert kinds(actors.lookup(OTHER, 3, "it", "")) == [Found]


def test_an_actor_that_nobody_holds_and_that_has_no_worker_is_never_built() -> None:
    actors = Supervisor()
    actors.create(DRIVER, 1, plan(holds=(b"arg",)))
    effects = actors.unreferenced(ID)
    assert kinds(effects) == [CancelNeed, Down, Forget] and not actors.actors


def test_the_dead_are_known_until_nobody_holds_them() -> None:
    actors = alive()
    actors.worker_gone(WORKER, CRASH, 9.0)
    (told,) = actors.connect(OTHER, ID)
    assert isinstance(told, Down) and told.end is CRASH
    actors.unreferenced(ID)
    (told,) = actors.connect(OTHER, ID)
    assert isinstance(told, Down) and "no actor with this id" in told.end.how


def test_an_actor_for_which_no_worker_can_be_started_is_dead_and_says_why() -> None:
    actors = Supervisor()
    actors.create(DRIVER, 1, plan())
    effects = actors.infeasible(ID, "no worker could be started")
    assert Down(DRIVER, ID, 1, False, End("no worker could be started")) in effects


# ---- from and to other machines -----------------------------------------------------------------------------------


def test_an_adopted_actor_goes_on_in_its_next_incarnation_and_under_its_name() -> None:
    actors = Supervisor()
    assert actors.adopt(plan(name="c", detached=True, max_restarts=1), 5) == [NeedWorker(ID, 5)]
    assert actors.connect(OTHER, ID) == [] and actors.bears_name(ID)
    assert actors.assigned(ID, 5, WORKER, 0.0) == [Become(ID, 5, WORKER), Connect(OTHER, ID, 5, WORKER)]
    assert actors.living(ID) is not None and actors.adopt(plan(), 6) == [], "it is here already"
    assert isinstance(actors.worker_gone(WORKER, CRASH, 9.0)[-1], NeedWorker)
    actors.assigned(ID, 6, WORKER, 10.0)
    assert Forget(ID, (), True) in actors.worker_gone(WORKER, CRASH, 19.0), "its one restart is spent"
    actors.validate()


def test_a_fenced_actor_ends_here_and_its_callers_are_told_where_it_goes_on() -> None:
    actors = alive(name="c", detached=True, holds=(NEXT,), max_restarts=-1)
    actors.connect(OTHER, ID)
    end = End("a newer life runs", fenced=True)
    told = [Down(client, ID, 1, True, end) for client in (DRIVER, OTHER)]
    effects = actors.fence(ID, "a newer life runs", goes_on=True)
    assert effects == [EndWorker(WORKER, kill=True), *told, Forget(ID, (NEXT,), True, elsewhere=True)]
    assert actors.living(ID) is None and not actors.bears_name(ID)
    assert actors.worker_gone(WORKER, CRASH, 1.0) == [] and actors.fence(ID, "again", goes_on=True) == []
    assert actors.adopt(plan(name="c", detached=True), 7) == [NeedWorker(ID, 7)], "and it may come back"
    actors.validate()


def test_an_actor_that_is_fenced_before_it_has_a_worker_needs_none() -> None:
    actors = Supervisor()
    actors.create(DRIVER, 1, plan())
    assert actors.fence(ID, "its name is another's", goes_on=False)[0] == CancelNeed(ID, 1)
    assert actors.assigned(ID, 1, WORKER, 0.0) == []


# ---- names and jobs -----------------------------------------------------------------------------------------------


def test_a_name_that_nobody_bears_here_is_said_to_be_borne_elsewhere() -> None:
    names = [("train", "it"), ("", "other"), ("test", "it")]
    assert no_bearer("it", "", names) == "no living actor is named 'it' in namespace '', but in 'test' and 'train'"
    assert no_bearer("other", "", names) == "no living actor is named 'other' in namespace ''"


def test_a_name_is_borne_by_one_living_actor_of_its_namespace() -> None:
    actors = alive(name="it", namespace="lab")
    (refused,) = actors.create(OTHER, 5, plan(NEXT, name="it", namespace="lab"))
    assert isinstance(refused, Refuse) and refused.kind == "name-taken" and "'it'" in refused.reason
    assert kinds(actors.create(OTHER, 6, plan(NEXT, name="it", namespace="home"))) == [Accept, NeedWorker]


def test_get_if_exists_gives_the_one_that_lives() -> None:
    actors = alive(name="it", meta=b"methods")
    asked = plan(NEXT, name="it", get_if_exists=True)
    assert actors.create(OTHER, 5, asked) == [Accept(OTHER, 5, ID, True, b"methods")]
    actors.kill(ID, no_restart=True)
    assert kinds(actors.create(OTHER, 6, asked)) == [Accept, NeedWorker]


def test_anonymous_actors_do_not_stand_in_each_others_way() -> None:
    actors = alive()
    assert kinds(actors.create(DRIVER, 2, plan(NEXT))) == [Accept, NeedWorker]
    assert kinds(actors.lookup(DRIVER, 3, "", "")) == [Refuse]


def test_the_end_of_a_job_ends_its_actors_but_for_the_detached() -> None:
    actors = alive()
    actors.create(DRIVER, 2, plan(NEXT, detached=True))
    assert EndWorker(WORKER, kill=True) in actors.job_ended(1)
    assert state(actors) is State.DEAD and state(actors, NEXT) is State.PENDING


def test_a_caller_that_is_gone_is_told_nothing() -> None:
    actors = alive()
    actors.client_gone(DRIVER)
    assert kinds(actors.worker_gone(WORKER, CRASH, 9.0)) == [Forget]


class World(RuleBasedStateMachine):
    """Any order of events: restarts are counted, and everybody who asked hears of the end exactly once."""

    IDS = (ID, NEXT)

    def __init__(self) -> None:
        super().__init__()
        self.actors = Supervisor()
        self.needs: set[tuple[bytes, int]] = set()
        self.workers: dict[int, bytes] = {}
        self.connected: set[tuple[int, bytes]] = set()
        self.ended: set[bytes] = set()
        self.forgotten: list[bytes] = []
        self.now, self.next = 0.0, 100

    def told(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case NeedWorker(actor, incarnation):
                    self.needs.add((actor, incarnation))
                case CancelNeed(actor, incarnation):
                    self.needs.discard((actor, incarnation))
                case Connect(client, actor, _, worker):
                    assert self.workers[worker] == actor
                    self.connected.add((client, actor))
                case Down(client, actor, _, restarting):
                    self.connected.discard((client, actor))
                    assert not (restarting and actor in self.forgotten)
                case Forget(actor):
                    assert actor not in self.forgotten, "an actor ended twice"
                    self.forgotten.append(actor)
                    assert not any(dead == actor for _, dead in self.connected), "a caller was not told of the end"

    @rule(
        actor=st.sampled_from(IDS),
        client=st.sampled_from([DRIVER, OTHER]),
        name=st.sampled_from(["", "it"]),
        restarts=st.sampled_from([0, 1, -1]),
        share=st.booleans(),
    )
    def create(self, actor: bytes, client: int, name: str, restarts: int, share: bool) -> None:
        wanted = plan(actor, name=name, max_restarts=restarts, get_if_exists=share and bool(name))
        if actor in self.actors.actors or actor in self.forgotten:
            return
        self.told(self.actors.create(client, 1, wanted))

    @precondition(lambda self: self.needs)
    @rule(data=st.data())
    def worker_comes(self, data: st.DataObject) -> None:
        actor, incarnation = need = data.draw(st.sampled_from(sorted(self.needs)))
        self.needs.discard(need)
        self.next += 1
        self.workers[self.next] = actor
        effects = self.actors.assigned(actor, incarnation, self.next, self.now)
        if not effects:
            del self.workers[self.next]
        self.told(effects)

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), what=st.sampled_from(["ready", "failed", "leaving", "dies", "dies"]))
    def worker_does(self, data: st.DataObject, what: str) -> None:
        worker = data.draw(st.sampled_from(sorted(self.workers)))
        actor = self.workers[worker]
        match what:
            case "ready":
                self.told(self.actors.ready(worker, actor))
            case "failed":
                self.told(self.actors.failed(worker, actor, b"error"))
            case "leaving":
                self.told(self.actors.leaving(worker, actor, ""))
            case _:
                del self.workers[worker]
                self.told(self.actors.worker_gone(worker, CRASH, self.now))

    @rule(
        actor=st.sampled_from(IDS), client=st.sampled_from([DRIVER, OTHER]), what=st.integers(0, 4), flag=st.booleans()
    )
    def client_does(self, actor: bytes, client: int, what: int, flag: bool) -> None:
        match what:
            case 0:
                self.told(self.actors.connect(client, actor))
            case 1:
                self.told(self.actors.kill(actor, flag))
            case 2:
                self.told(self.actors.unreferenced(actor))
            case 3:
                self.told(self.actors.job_ended(1))
            case _:
                self.actors.client_gone(client)
                self.connected = {pair for pair in self.connected if pair[0] != client}

    @rule(after=st.floats(0, 3))
    def time_passes(self, after: float) -> None:
        self.now += after

    @invariant()
    def books_are_kept(self) -> None:
        self.actors.validate()
        for actor, incarnation in self.needs:
            assert self.actors.actors[actor].incarnation == incarnation, "a worker is looked for in vain"


TestWorld = World.TestCase
