"""Errors keep their class, facts and text wherever they travel, and say what to do next."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import cloudpickle  # noqa: F401  # as every worker and driver has
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lattica
from lattica import errors
from lattica.errors import (
    ActorDiedError,
    ActorUnavailableError,
    AlreadyInitializedError,
    ConfigError,
    GetTimeoutError,
    LatticaError,
    LocalNodeDiedError,
    NodeDiedError,
    ObjectStoreFullError,
    OwnerDiedError,
    PendingCallsLimitExceededError,
    PermissionDeniedError,
    SerializationError,
    TaskError,
    WorkerCrashedError,
    user_code,
)

ALL = sorted(
    (e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, LatticaError)), key=lambda e: e.__name__
)
PUBLIC = [e for e in ALL if not e.__name__.startswith("_")]


# ---- the tree -----------------------------------------------------------------------------------------------------


def test_the_tree_drawn_at_the_top_names_every_class() -> None:
    drawn = (errors.__doc__ or "").replace("(", " ").replace(")", " ").split()
    assert [e.__name__ for e in PUBLIC if e.__name__ not in drawn] == []


@pytest.mark.parametrize("error", PUBLIC)
def test_every_error_can_be_built_from_nothing_and_has_words(error: type[LatticaError]) -> None:
    assert len(str(error())) > 10
    assert "None" not in str(error()) and "  ." not in str(error())


@pytest.mark.parametrize("error", [e for e in PUBLIC if e is not TaskError])
def test_a_given_message_is_taken_as_it_is(error: type[LatticaError]) -> None:
    assert str(error("the roof is gone")).splitlines()[0] == "the roof is gone"


def test_a_fact_that_a_class_does_not_have_is_refused() -> None:
    with pytest.raises(TypeError, match=r"NodeDiedError has no fact 'pid'; it has .*node, since_s"):
        NodeDiedError(pid=3)  # type: ignore[call-arg]


def test_config_and_serialization_and_timeouts_are_also_python_s_own_kind() -> None:
    assert isinstance(ConfigError(), ValueError)
    assert isinstance(AlreadyInitializedError(), ConfigError) and isinstance(AlreadyInitializedError(), RuntimeError)
    assert isinstance(SerializationError(), TypeError)
    assert isinstance(GetTimeoutError(), TimeoutError)


# ---- the wording --------------------------------------------------------------------------------------------------


def test_a_message_says_what_happened_to_which_id_where_since_when_and_what_to_do_next() -> None:
    error = OwnerDiedError(
        object_id="9f2c41",
        owner="peer 3ab7 (actor Learner on gpu-2)",
        since_s=4.12,
        made_at="examples/rl/train.py:48",
        do_next="call it again, or give Learner max_restarts=3",
    )
    assert str(error) == (
        "object 9f2c is lost: its owner, peer 3ab7 (actor Learner on gpu-2), left 4.1 s ago; no copy exists.\n"
        "  made at   examples/rl/train.py:48\n"
        "  do next   call it again, or give Learner max_restarts=3"
    )


@pytest.mark.parametrize(
    ("error", "first_line"),
    [
        (
            WorkerCrashedError(task="train", pid=71, node="3ab7ff", signal="SIGSEGV"),
            "task train did not finish: its worker, pid 71, on node 3ab7, was killed by SIGSEGV.",
        ),
        (WorkerCrashedError(task="f", exit_code=3), "task f did not finish: its worker ended with exit code 3."),
        (
            ActorDiedError(actor="Learner", actor_id="1f0ce2", since_s=2.0, reason="its process ended"),
            "actor Learner 1f0c died 2.0 s ago: its process ended.",
        ),
        (ActorUnavailableError(actor="A"), "actor A is unavailable (the call may have run)."),
        (GetTimeoutError(timeout_s=0.5, waiting_for="2 of 3 objects"), "2 of 3 objects did not come within 0.5 s."),
        (NodeDiedError(node=bytes.fromhex("3ab7c0")), "node 3ab7 died."),
        (LocalNodeDiedError(since_s=1), "this machine's node died 1.0 s ago."),
        (
            ObjectStoreFullError(wanted_bytes=2_000_000, used_bytes=900, quota_bytes=1_000, holders="pid 7"),
            "a value of 2,000,000 bytes does not fit into the object store: 900 of 1,000 bytes are pinned by pid 7.",
        ),
        (SerializationError(path="Trainer.lock", type_name="lock"), "Trainer.lock (a lock) could not be pickled."),
        (
            PendingCallsLimitExceededError(actor="A", limit=10),
            "actor A has 10 calls pending, its limit; this one was not sent.",
        ),
        (
            PermissionDeniedError(role="submit", peer="3ab7", action="run code here"),
            "peer 3ab7 may not run code here: its certificate lacks the role submit.",
        ),
    ],
)
def test_an_error_words_its_facts(error: LatticaError, first_line: str) -> None:
    assert str(error).splitlines()[0] == first_line


def test_a_crash_shows_the_last_words_of_its_stderr() -> None:
    error = WorkerCrashedError(task="f", exit_code=1, stderr_tail="loading\nout of luck\n")
    assert str(error).endswith("  last words on its stderr:\n    loading\n    out of luck")


def test_an_actor_that_died_in_its_constructor_shows_the_remote_traceback() -> None:
    error = ActorDiedError(actor="A", init_failed=True, cause_text="Traceback ...\nValueError: no gpu")
    assert error.actor_init_failed and str(error).endswith("ValueError: no gpu")


# ---- travelling ---------------------------------------------------------------------------------------------------

EXAMPLES = [e() for e in PUBLIC] + [
    WorkerCrashedError(task="f", pid=3, exit_code=1, stderr_tail="x", made_at="a.py:1"),
    ActorDiedError("gone", actor_id="ab" * 16, init_failed=True, do_next="weep"),
    TaskError("f", "Traceback ...", pid=4, node="ab"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_every_error_survives_pickling_with_class_text_and_facts(error: LatticaError, protocol: int) -> None:
    arrived = pickle.loads(pickle.dumps(error, protocol))
    assert type(arrived) is type(error) and str(arrived) == str(error) and arrived.args == error.args
    assert vars(arrived) == vars(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_every_error_survives_as_plain_data(error: LatticaError) -> None:
    arrived = LatticaError.from_data(error.to_data())
    assert type(arrived) is type(error) and str(arrived) == str(error)


def test_a_kind_from_a_newer_release_arrives_as_a_plain_error_with_its_words() -> None:
    arrived = LatticaError.from_data({"error": "MoonPhaseError", "message": "the moon is full", "phase": 3})
    assert type(arrived) is LatticaError and str(arrived) == "the moon is full" and not hasattr(arrived, "phase")


class FussyError(ConfigError):
    """A user's subclass with a constructor of its own."""

    def __init__(self, x: int, y: int) -> None:
        super().__init__(f"{x} does not go with {y}")
        self.pair = (x, y)


def test_a_users_subclass_with_another_constructor_survives_pickling() -> None:
    arrived = pickle.loads(pickle.dumps(FussyError(1, 2)))
    assert type(arrived) is FussyError and arrived.pair == (1, 2) and str(arrived) == "1 does not go with 2"


def test_a_users_subclass_crosses_the_node_as_the_nearest_class_of_ours() -> None:
    assert type(LatticaError.from_data(FussyError(1, 2).to_data())) is ConfigError


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.integers())


@given(st.sampled_from([e.__name__ for e in ALL] + ["dict", "_fact", ""]), st.data())
def test_data_from_a_liar_becomes_an_error_that_can_be_shown(kind: str, data: Any) -> None:
    cls = getattr(errors, kind, LatticaError)
    names = cls._facts() if isinstance(cls, type) and issubclass(cls, LatticaError) else ["message"]
    facts = data.draw(st.dictionaries(st.sampled_from([*names, "error", "__class__", "args"]), plain))
    error = LatticaError.from_data({"error": kind, **facts})
    assert isinstance(error, LatticaError)
    str(error), repr(error), pickle.dumps(error)


# ---- user exceptions ----------------------------------------------------------------------------------------------


class NoPlace(LookupError):
    def __init__(self, shelf: int, *, message: str) -> None:
        super().__init__(f"shelf {shelf}")
        self.shelf, self.message = shelf, message

    def doubled(self) -> int:
        return self.shelf * 2


class Slotted(Exception):
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Locked(Exception):
    def __init__(self) -> None:
        super().__init__("held")
        self.lock = threading.Lock()


class Final(Exception):
    def __init_subclass__(cls) -> None:
        raise TypeError("nobody inherits from me")


def refuse() -> None:
    raise ImportError("not on this machine")


class Unreadable(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        return refuse, ()


class Travelled(Exception):
    def __init__(self, miles: int) -> None:
        super().__init__(f"{miles} miles")
        self.miles = miles

    def __reduce__(self) -> tuple[Any, ...]:
        return Travelled, (self.miles + 1,)


def raised(exc: BaseException, name: str = "f", **where: Any) -> TaskError:
    """As a worker would wrap it."""
    try:
        raise exc
    except BaseException as caught:
        return TaskError.from_exception(caught, function_name=name, **where)


def sent(error: TaskError) -> Any:
    """As the caller's `get` would raise it."""
    arrived = pickle.loads(pickle.dumps(error))
    assert isinstance(arrived, TaskError)
    return arrived.as_instanceof_cause()


def test_a_users_exception_arrives_as_its_own_class_with_its_attributes_and_methods() -> None:
    error = sent(raised(NoPlace(3, message="full")))
    assert isinstance(error, TaskError) and isinstance(error, LookupError) and isinstance(error, NoPlace)
    assert (error.shelf, error.message, error.doubled(), error.args) == (3, "full", 6, ("shelf 3",))
    assert error.cause.shelf == 3


def test_the_message_shows_the_remote_traceback_and_where_it_happened() -> None:
    error = sent(raised(KeyError("left"), "count", pid=77, node="3ab7", actor="Counter"))
    assert str(error).startswith("count raised KeyError (pid 77, node 3ab7, actor Counter)\n\nTraceback")
    assert "raise exc" in str(error) and str(error).endswith("KeyError: 'left'")
    assert error.remote_traceback == error.traceback_str and error.function_name == "count"


def test_equal_causes_share_one_class_and_its_name_shows_the_cause() -> None:
    one, two = sent(raised(KeyError(1))), sent(raised(KeyError(2)))
    assert type(one) is type(two) and type(one).__name__ == "TaskError(KeyError)"
    assert traceback.format_exception_only(one)[0].startswith("lattica.errors.TaskError(KeyError): f raised KeyError")


def test_causes_and_contexts_of_the_remote_exception_are_shown() -> None:
    try:
        try:
            {}["a"]
        except KeyError as first:
            raise RuntimeError("second") from first
    except RuntimeError as caught:
        error = sent(TaskError.from_exception(caught, function_name="f"))
    assert "KeyError: 'a'" in str(error) and "direct cause" in str(error)


def test_our_own_frames_are_stripped_from_the_remote_traceback() -> None:
    room = str(Path(lattica.__file__).parent / "actors/worker.py")
    names: dict[str, Any] = {}
    exec(compile("def execute(f):\n    f()\n", room, "exec"), names)

    def user_code() -> None:
        raise ValueError("mine")

    try:
        names["execute"](user_code)
    except ValueError as caught:
        text = str(TaskError.from_exception(caught, function_name="f"))
    assert "user_code" in text and "worker.py" not in text


def test_a_bug_of_ours_keeps_its_frames() -> None:
    room = str(Path(lattica.__file__).parent / "actors/worker.py")
    names: dict[str, Any] = {}
    exec(compile("try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    caught = e\n", room, "exec"), names)
    assert "worker.py" in str(TaskError.from_exception(names["caught"], function_name="f"))


def test_a_task_that_gets_a_failed_task_shows_both_tracebacks_and_keeps_the_first_cause() -> None:
    inner = sent(raised(ValueError("deep"), "inner", pid=1))
    outer = sent(raised(inner, "outer", pid=2))
    assert isinstance(outer, ValueError) and type(outer.cause) is ValueError and outer.args == ("deep",)
    assert "outer raised ValueError (pid 2)" in str(outer) and "inner raised ValueError (pid 1)" in str(outer)
    assert str(outer).count("Traceback") == 2


def test_a_long_chain_of_tasks_has_a_bounded_traceback_with_both_ends() -> None:
    error = sent(raised(ValueError("the root"), "task0"))
    for depth in range(1, 400):
        error = sent(raised(error, f"task{depth}"))
    assert len(error.remote_traceback) <= errors.REMOTE_TRACEBACK_MAX_CHARS + 100
    assert "task398" in error.remote_traceback and "the root" in error.remote_traceback
    assert "characters left out" in error.remote_traceback


@pytest.mark.parametrize(
    ("cause", "attributes"),
    [
        (FileNotFoundError(2, "no such file", "/x"), {"errno": 2, "strerror": "no such file", "filename": "/x"}),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), {"start": 0, "reason": "bad", "object": b"\xff"}),
        (ImportError("none", name="moon", path="/x"), {"name": "moon", "msg": "none"}),
        (SyntaxError("bad", ("f.py", 3, 1, "x", 3, 2)), {"lineno": 3, "filename": "f.py"}),
        (Slotted(7), {"code": 7}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_builtin_keeps_in_c_slots_arrives_too(cause: Exception, attributes: dict[str, Any]) -> None:
    error = sent(raised(cause))
    assert isinstance(error, type(cause)) and error.args == cause.args
    assert {name: getattr(error, name) for name in attributes} == attributes


def test_an_exception_group_arrives_as_a_group() -> None:
    error = sent(raised(ExceptionGroup("two", [KeyError(1), OSError("x")])))
    assert isinstance(error, ExceptionGroup) and error.message == "two"
    rest = error.split(KeyError)[1]
    assert rest is not None and len(rest.exceptions) == 1


def test_notes_on_the_exception_arrive() -> None:
    cause = ValueError("x")
    cause.add_note("seen at dusk")
    error = sent(raised(cause))
    assert error.__notes__ == ["seen at dusk"] and "seen at dusk" in str(error)


@pytest.mark.parametrize("cause", [KeyboardInterrupt(), SystemExit(3), StopIteration(1), GeneratorExit()])
def test_what_would_stop_the_caller_itself_arrives_as_a_plain_task_error(cause: BaseException) -> None:
    error = sent(raised(cause))
    assert type(error) is TaskError and type(error.cause) is type(cause)


def test_a_class_that_refuses_subclasses_arrives_as_a_plain_task_error() -> None:
    error = sent(raised(Final("no")))
    assert type(error) is TaskError and isinstance(error.cause, Final)


def test_a_plain_exception_needs_no_class_of_its_own() -> None:
    error = sent(raised(Exception("bare")))
    assert type(error) is TaskError and error.cause.args == ("bare",)


def test_an_error_of_ours_in_a_task_is_caught_as_what_it_is() -> None:
    error = sent(raised(ActorDiedError(actor="A", actor_id="ab")))
    assert isinstance(error, ActorDiedError) and isinstance(error, TaskError)
    assert error.actor_id == "ab" and type(error.cause) is ActorDiedError


def test_an_exception_that_cannot_be_pickled_arrives_as_text_and_says_so() -> None:
    error = sent(raised(Locked()))
    assert type(error) is TaskError and error.cause is None
    assert "Locked: held" in str(error) and "could not be pickled: TypeError: cannot pickle '_thread.lock'" in str(
        error
    )


def test_an_exception_that_cannot_be_unpickled_arrives_as_text_and_says_so() -> None:
    error = sent(raised(Unreadable(42)))
    assert type(error) is TaskError and "Unreadable: 42" in str(error) and "could not be unpickled" in str(error)


def test_a_users_own_way_of_pickling_an_exception_is_respected() -> None:
    error = sent(raised(Travelled(4)))
    assert isinstance(error, Travelled) and error.miles == 5


def test_an_exception_with_a_constructor_of_its_own_inside_a_group_arrives() -> None:
    error = sent(raised(ExceptionGroup("one", [NoPlace(3, message="full")])))
    assert error.exceptions[0].shelf == 3


def test_a_lost_cause_stays_lost_through_a_second_task() -> None:
    error = sent(raised(sent(raised(Locked(), "inner")), "outer"))
    assert "Locked: held" in str(error) and "could not be pickled" in str(error)


def test_an_error_that_was_raised_here_can_be_pickled_and_copied_again() -> None:
    error = sent(raised(NoPlace(3, message="full")))
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error) and str(again) == str(error) and again.shelf == 3


def test_an_exception_whose_str_raises_still_arrives() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    assert "Mute" in str(sent(raised(Mute())))


def test_a_class_that_only_the_program_knows_travels_by_value_where_cloudpickle_is_loaded() -> None:
    class Local(ValueError):
        def __init__(self, a: int, *, b: int) -> None:
            super().__init__(a)
            self.sum = a + b

    assert sent(raised(Local(1, b=2))).sum == 3


def test_a_class_that_only_the_program_knows_arrives_as_text_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class Local(ValueError):
        pass

    monkeypatch.delitem(sys.modules, "cloudpickle")
    error = sent(raised(Local("x")))
    assert type(error) is TaskError and "Local: x" in str(error) and "could not be pickled" in str(error)
    assert isinstance(sent(raised(NoPlace(3, message="full"))), NoPlace)


def test_many_exception_classes_leave_a_bounded_cache() -> None:
    for n in range(errors.DUAL_CLASSES_MAX + 10):
        kind = type(f"E{n}", (Exception,), {})
        assert isinstance(TaskError("f", "t", kind()).as_instanceof_cause(), kind)
    assert len(user_code._dual_classes) <= errors.DUAL_CLASSES_MAX


def test_errors_import_nothing_heavy() -> None:
    """The node imports this package and never unpickles; commands import it before they print their help."""
    script = "import sys, lattica; before = set(sys.modules); import lattica.errors; print(*set(sys.modules) - before)"
    bare = [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {script}"]
    loaded = subprocess.run(bare, capture_output=True, text=True, check=True).stdout.strip()
    assert {name for name in loaded.split() if not f"{name}.".startswith("lattica.errors.")} == set()
    assert "lattica.errors" in loaded.split()


@pytest.mark.parametrize("error", PUBLIC)
def test_every_error_says_that_it_is_of_the_package_and_a_pickle_names_it_there(error: type[LatticaError]) -> None:
    assert error.__module__ == "lattica.errors"
    assert f"clattica.errors\n{error.__name__}\n".encode() in pickle.dumps(error(), protocol=0)
    assert type(pickle.loads(pickle.dumps(error()))) is error


def test_the_loss_of_an_object_says_in_a_sentence_what_became_of_who_had_it() -> None:
    how = "the connection with node c4 was lost: it is dead; none of 2 other nodes has a copy"
    error = OwnerDiedError(object_id="9f2c" * 8, owner=how, made_at="train.py:48")
    assert str(error).splitlines()[0] == f"object 9f2c is lost, and no copy is left: {how}."
