"""results="data": what comes of nodes is data alone, of one machine's and of another's; what is not is refused."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lattica
from lattica import errors
from lattica.actors import values
from lattica.exceptions import RayActorError
from tests.e2e.conftest import Sessions
from tests.e2e.far import Mesh, far_mesh

DATA: dict[str, Any] = {"results": "data"}


@pytest.fixture(scope="module")
def mesh(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with far_mesh(tmp_path_factory.mktemp("data"), a=1, b=1) as mesh:
        yield mesh


@pytest.fixture(params=["a", "b"])
def place(request: pytest.FixtureRequest, mesh: Mesh) -> Any:
    """Options for what runs on the driver's own node, and on the other."""
    return {**DATA, "scheduling_strategy": mesh.on(request.param)}


class Mine:
    """A class that the driver would have to trust."""


@lattica.remote
def echo(value: Any) -> Any:
    return value


@lattica.remote
def put_both(size: int) -> list[Any]:
    return [lattica.put(np.full(size, 7, np.uint8)), lattica.put(Mine()), inner.remote(size), counter(3)]


@lattica.remote
def inner(size: int) -> Any:
    return np.full(size, 5, np.uint8)


def counter(start: int) -> Any:
    return Counter.options(num_cpus=0).remote(start)


@lattica.remote
def mine() -> Any:
    return {"list": [1, Mine()]}


@lattica.remote
def fails() -> None:
    raise KeyError("no such thing")


@lattica.remote
def two(size: int) -> Any:
    return np.ones(size), "b"


@lattica.remote
def forget(path: str) -> int:
    """Fails at first."""
    try:
        open(path, "x").close()
    except FileExistsError:
        return 1
    raise OSError("the first time")


@lattica.remote
def hostile(size: int) -> Any:
    """A worker that answers as it likes, once."""
    honest = values.dumps_data

    def pickled(value: Any, name: str = "") -> values.Serialized:
        values.dumps_data = honest
        return values.dumps(value, name)

    values.dumps_data = pickled
    return [b"x" * size, Evil()]


class Evil:
    """What must never be made where it arrives."""

    def __reduce__(self) -> Any:
        return exec, ("import lattica; lattica.was_hit = True",)


@lattica.remote
class Counter:
    def __init__(self, start: int) -> None:
        if start < 0:
            raise ValueError("it cannot begin below zero")
        self.value = start

    def add(self, by: int) -> int:
        self.value += by
        return self.value

    def array(self, size: int) -> Any:
        return np.full(size, self.value)

    def mine(self) -> Any:
        return (Mine(),)

    async def slow(self) -> Any:
        return Mine()


@pytest.mark.parametrize("size", [10, 200_000, 2_000_000])
def test_data_comes_and_goes_on(place: Any, size: int) -> None:
    value = {"numbers": [1, 2.5, None, True], ("a", 1): {b"x", "y"}, "array": np.arange(size)}
    ref = echo.options(**place).remote(value)
    found = lattica.get(ref, timeout=20)
    assert np.array_equal(found.pop("array"), value.pop("array"))
    assert found == value
    again = echo.options(**place).remote(echo.options(**place).remote(np.ones(size)))
    assert lattica.get(again, timeout=20).sum() == size
    first, second = lattica.get(two.options(**place, num_returns=2).remote(size), timeout=20)
    assert (first.sum(), second) == (size, "b")


def test_what_is_no_data_is_named(place: Any) -> None:
    with pytest.raises(errors.SerializationError, match=r"the result of .*mine\['list'\]\[1\] \(a .*Mine\)"):
        lattica.get(mine.options(**place).remote(), timeout=20)


def test_what_user_code_raises_comes_as_words(place: Any, tmp_path: Path) -> None:
    with pytest.raises(lattica.exceptions.RayTaskError) as caught:
        lattica.get(fails.options(**place).remote(), timeout=20)
    assert not isinstance(caught.value, KeyError)
    assert "KeyError" in str(caught.value)
    assert "no such thing" in str(caught.value)
    again = forget.options(**place, retry_exceptions=[OSError], max_retries=2)
    assert lattica.get(again.remote(str(tmp_path / "once")), timeout=20) == 1


@pytest.mark.parametrize("size", [10, 2_000_000])
def test_what_lies_in_a_result_is_data_as_well(place: Any, size: int) -> None:
    array, other, made, actor = lattica.get(put_both.options(**place).remote(size), timeout=20)
    assert lattica.get(array, timeout=20).sum() == 7 * size
    assert lattica.get(made, timeout=20).sum() == 5 * size
    assert lattica.get(actor.add.remote(2), timeout=20) == 5
    with pytest.raises(errors.SerializationError, match=r"add|mine"):
        lattica.get(actor.mine.remote(), timeout=20)
    with pytest.raises(errors.RemoteProtocolError, match="not read"):
        lattica.get(other, timeout=20)


@pytest.mark.parametrize("size", [10, 2_000_000])
def test_a_node_that_sends_a_pickle_is_not_believed(place: Any, size: int) -> None:
    ref = hostile.options(**place).remote(size)
    with pytest.raises(errors.RemoteProtocolError, match="not read"):
        lattica.get(ref, timeout=20)
    assert not hasattr(lattica, "was_hit")


def test_methods_of_actors_answer_with_data_alone(place: Any) -> None:
    counter = Counter.options(**place).remote(1)
    assert lattica.get(counter.add.remote(2), timeout=20) == 3
    assert lattica.get(counter.array.remote(300_000), timeout=20).sum() == 900_000
    for method in (counter.mine, counter.slow):
        with pytest.raises(errors.SerializationError, match="Mine"):
            lattica.get(method.remote(), timeout=20)
    bad = Counter.options(**place).remote(-1)
    with pytest.raises(RayActorError, match="below zero"):
        lattica.get(bad.add.remote(1), timeout=20)


def test_a_program_may_take_data_alone_of_everybody_and_anything_of_one_task(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    lattica.shutdown()
    with pytest.raises(errors.ConfigError, match="results='some'"):
        lattica.init(address="local", results="some")
    lattica.init(address="local", num_cpus=2, results="data")
    try:
        assert lattica.get(echo.remote([1, (2, 3)]), timeout=20) == [1, (2, 3)]
        with pytest.raises(errors.SerializationError, match="Mine"):
            lattica.get(mine.remote(), timeout=20)
        assert type(lattica.get(echo.options(results="any").remote({"a": sys}), timeout=20)["a"]) is type(sys)
        counter = Counter.remote(0)
        monkeypatch.setattr(pickle, "loads", None)  # whoever used it here would fail
        assert lattica.get(counter.add.remote(1), timeout=20) == 1
        assert lattica.get(echo.remote(np.ones(200_000)), timeout=20).sum() == 200_000
        with pytest.raises(lattica.exceptions.RayTaskError, match="no such thing"):
            lattica.get(fails.remote(), timeout=20)
    finally:
        monkeypatch.undo()
        lattica.shutdown()
