"""What an actor's class and its handle may be asked, as in Ray: bases, mixins, class and static methods, context."""

from __future__ import annotations

import abc
import functools
import os
import threading
import time
from typing import Any

import pytest

import lattica
from lattica.exceptions import ActorDiedError
from tests.e2e.conftest import eventually

pytestmark = pytest.mark.usefixtures("two_cpus")


class Abstract(abc.ABC):
    @abc.abstractmethod
    def must(self) -> str: ...

    @lattica.method(num_returns=2)
    def two(self) -> tuple[int, int]:
        return 1, 2

    def who(self) -> str:
        return "base"

    def leave(self) -> None:
        lattica.actor.exit_actor()

    @property
    def prop(self) -> int:
        return 7


class Mixin:
    @classmethod
    def made_by(cls, more: int = 0) -> tuple[str, int]:
        return cls.__name__, more

    @staticmethod
    def plus(number: int) -> int:
        return number + 1


@lattica.remote
class Derived(Abstract, Mixin):
    LIMIT = 5
    again = functools.partialmethod(Abstract.who)

    def must(self) -> str:
        return "did"

    def who(self) -> str:
        return "derived of " + super().who()

    def __call__(self, number: int) -> int:
        return 2 * number

    def context(self) -> tuple[str, str, str]:
        context = lattica.get_runtime_context()
        return context.get_task_name(), context.get_task_function_name(), context.get_actor_id()


def test_methods_of_bases_and_of_the_class_are_called_like_any() -> None:
    derived = Derived.remote()
    calls = [derived.must.remote(), *derived.two.remote(), derived.who.remote(), derived.again.remote(),
             derived.made_by.remote(4), derived.plus.remote(1), derived.__call__.remote(3)]  # fmt: skip
    assert lattica.get(calls, timeout=30) == ["did", 1, 2, "derived of base", "base", ("Derived", 4), 2, 6]
    with pytest.raises(AttributeError, match="prop"):
        _ = derived.prop
    with pytest.raises(TypeError, match="not callable"):
        derived(3)  # type: ignore[operator]
    assert {"two", "plus", "__call__", "__ray_terminate__"} <= set(dir(derived)) and "prop" not in dir(derived)


def test_what_belongs_to_the_class_is_had_without_an_actor() -> None:
    assert Derived.LIMIT == 5 and Derived.plus(3) == 4 and Derived.made_by() == ("Derived", 0)
    assert issubclass(Derived.__ray_metadata__.modified_class, Abstract)
    for name in ("nothing", "who", "prop"):
        with pytest.raises(AttributeError):
            getattr(Derived, name)


def test_an_abstract_class_cannot_be_constructed() -> None:
    with pytest.raises(ActorDiedError, match="abstract"):
        lattica.get(lattica.remote(Abstract).remote().who.remote(), timeout=30)


def test_every_actor_runs_any_function_of_itself_and_says_that_it_is_there() -> None:
    derived = Derived.remote()
    assert lattica.get(derived.__ray_ready__.remote(), timeout=30) is True
    call = derived.__ray_call__.remote(lambda self, more: (self.who(), more), more=3)
    assert lattica.get(call, timeout=30) == ("derived of base", 3)
    assert lattica.get(derived.who._remote(), timeout=30) == "derived of base"
    assert lattica.get(Derived._remote([], {}, num_cpus=0).must.remote(), timeout=30) == "did"


@pytest.mark.parametrize("ends", ["leave", "terminate", "kill"])
def test_it_ends_by_a_method_of_its_base_by_terminate_and_by_kill(ends: str) -> None:
    derived = Derived.remote()
    lattica.get(derived.must.remote(), timeout=30)
    if ends == "leave":
        derived.leave.remote()
    elif ends == "terminate":
        derived.__ray_terminate__.remote()
    else:
        lattica.kill(derived)
    with pytest.raises(ActorDiedError):
        lattica.get([derived.who.remote() for _ in range(20) if not time.sleep(0.05)], timeout=30)


def test_code_knows_what_it_is_called() -> None:
    @lattica.remote
    def names() -> tuple[Any, Any, Any]:
        context = lattica.get_runtime_context()
        return context.get_task_name(), context.get_task_function_name(), context.get_actor_name()

    derived = Derived.remote()
    name, function, actor = lattica.get(derived.context.remote(), timeout=30)
    assert (name, function) == ("Derived.context", f"{__name__}.Derived.context")
    assert actor == derived._actor_id.hex()
    assert lattica.get(derived.context.options(name="else").remote(), timeout=30)[:2] == ("else", function)
    name, function, actor = lattica.get(names.options(name="mine").remote(), timeout=30)
    assert name == "mine" and function.endswith("names") and function.startswith(__name__) and actor is None


def test_a_context_says_where_code_runs() -> None:
    context = lattica.get_runtime_context()
    assert context.job_id.hex() == context.get_job_id() and context.node_id.hex() == context.get_node_id()
    assert context.task_id is None and context.get_placement_group_id() is None
    assert context.current_placement_group_id.is_nil()
    assert not context.should_capture_child_tasks_in_placement_group
    assert os.path.isdir(os.path.join(context.get_temp_dir(), "sessions", context.get_session_name()))
    assert isinstance(context.get_node_labels(), dict) and context.get_resource_ids() == {"GPU": []}
    with pytest.raises(ValueError, match="no node of a mesh is its head"):
        _ = context.gcs_address
    assert not hasattr(context, "gcs_address")


def test_names_of_living_actors_are_listed() -> None:
    named = [Derived.options(name=f"listed {n}", namespace=space).remote() for n, space in ((1, None), (2, "other"))]
    lattica.get([each.must.remote() for each in named], timeout=30)
    assert "listed 1" in lattica.util.list_named_actors() and "listed 2" not in lattica.util.list_named_actors()
    everywhere = lattica.util.list_named_actors(all_namespaces=True)
    assert {"name": "listed 2", "namespace": "other"} in everywhere
    lattica.kill(named[0])
    assert eventually(lambda: "listed 1" not in lattica.util.list_named_actors())


def test_what_was_registered_for_a_class_goes_to_workers_and_comes_back() -> None:
    class Open:
        def __init__(self, path: str) -> None:
            self.path, self.lock = path, threading.Lock()

    @lattica.remote
    def path_of(thing: Any) -> str:
        return str(thing.path)

    lattica.util.register_serializer(Open, serializer=lambda each: each.path, deserializer=Open)
    try:
        assert lattica.get(path_of.remote(Open("/x")), timeout=30) == "/x"
        assert lattica.get(lattica.put([Open("/y")]))[0].path == "/y"
    finally:
        lattica.util.deregister_serializer(Open)
