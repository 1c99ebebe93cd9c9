"""Torch tensors: beside the pickle, aliased as they were, and writable without anybody else seeing it."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.actors.data import T
from lattica.actors.values import Serialized, dumps, loads
from lattica.errors import SerializationError
from tests.actors.test_data import RUNTIME as DATA_RUNTIME
from tests.actors.test_data import back, region
from tests.actors.test_values import FakeRuntime, Region, round_trip
from tests.conftest import examples

DTYPES = (
    "float32", "float64", "float16", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "bool", "complex64",
)  # fmt: skip
torch: Any = None


@pytest.fixture(scope="module", autouse=True)
def torch_is_here() -> None:
    """Imported only where these tests run, for it takes two seconds: each worker of a run collects all tests."""
    global torch
    torch = pytest.importorskip("torch", reason="the dev environment has no torch; `make demo` installs it")


@st.composite
def tensors(draw: st.DrawFn) -> Any:
    """Tensors of any type, shape (also 0-d and empty) and strides."""
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    dtype = getattr(torch, draw(st.sampled_from(DTYPES)))
    tensor = torch.arange(100)[: int(torch.Size(shape).numel())].reshape(shape).to(dtype)
    how = draw(st.sampled_from(["as it is", "transposed", "a slice", "expanded"]))
    if how == "transposed" and tensor.ndim >= 2:
        return tensor.transpose(0, 1)
    if how == "a slice" and tensor.ndim:
        return tensor[1:]
    return tensor.expand(2, *shape) if how == "expanded" else tensor


def outside(data: Serialized) -> int:
    """Bytes that travel beside the pickle."""
    return sum(part.nbytes for part in data.parts if isinstance(part, memoryview))


@examples(40)
@given(tensors(), st.booleans())
def test_any_tensor_comes_back_equal_in_a_message_and_from_the_arena(tensor: Any, in_place: bool) -> None:
    got = Region(dumps(tensor)).read() if in_place else round_trip(tensor)
    assert (got.dtype, got.shape, got.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
    assert torch.equal(got, tensor)


def test_a_tensor_travels_beside_the_pickle() -> None:
    data = dumps({"weights": torch.ones(1000)})
    assert outside(data) == 4000 and data.size < 5000


@pytest.mark.parametrize("in_place", [True, False])
def test_tensors_that_share_a_storage_share_it_again_and_travel_once(in_place: bool) -> None:
    whole = torch.zeros(1000)
    data = dumps([whole, whole[10:20], whole.view(10, 100)])
    assert outside(data) == 4000
    one, piece, matrix = Region(data).read() if in_place else loads(data.join(), FakeRuntime())
    one[15] = 7.0
    assert piece[5] == 7.0 and matrix[0, 15] == 7.0 and whole[15] == 0.0


def test_tied_weights_of_a_module_stay_tied() -> None:
    model = torch.nn.ModuleDict({"embed": torch.nn.Linear(8, 8, bias=False), "head": torch.nn.Linear(8, 8, bias=False)})
    model["head"].weight = model["embed"].weight
    got = round_trip(model)
    assert got["head"].weight is got["embed"].weight
    state = round_trip(model.state_dict())
    assert state["head.weight"].data_ptr() == state["embed.weight"].data_ptr()
    assert torch.equal(got["head"].weight, model["head"].weight)


def test_writing_to_a_tensor_from_the_arena_is_local_and_holds_the_region() -> None:
    region = Region(dumps(torch.arange(1000.0)))
    before = bytes(region.bytes)
    tensor = region.read()
    tensor += 1
    assert tensor[5] == 6.0 and bytes(region.bytes) == before and region.runtime.private == [4000]
    piece = tensor[10:20]
    del tensor
    assert region.is_held and piece[0] == 11.0
    del piece
    assert not region.is_held


def test_writing_to_a_tensor_from_a_message_is_local() -> None:
    data = dumps(torch.arange(10.0)).join()
    loads(data, FakeRuntime()).zero_()
    assert loads(data, FakeRuntime())[5] == 5.0


def test_a_tensor_and_a_numpy_array_of_its_memory_both_arrive() -> None:
    tensor = torch.arange(10.0)
    got, array = round_trip([tensor, tensor.numpy()])
    assert got.tolist() == array.tolist() and not array.flags.writeable


def test_gradients_are_asked_for_again_and_graphs_stay_at_home() -> None:
    leaf = torch.ones(3, requires_grad=True)
    assert round_trip(leaf).requires_grad
    parameter = round_trip(torch.nn.Parameter(torch.ones(3)))
    assert type(parameter) is torch.nn.Parameter and parameter.requires_grad
    assert not round_trip((leaf * 2).detach()).requires_grad


def test_an_optimizer_and_its_model_come_back_together() -> None:
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    got_model, got_optimizer = round_trip((model, optimizer))
    assert got_optimizer.param_groups[0]["params"][0] is got_model.weight
    assert torch.equal(got_model.weight, model.weight)
    got_model(torch.ones(1, 4)).sum().backward()
    got_optimizer.step()
    assert not torch.equal(got_model.weight, model.weight)


def test_sparse_conjugated_and_negated_tensors_are_left_to_torch() -> None:
    conjugated = torch.tensor([1 + 2j, 3 - 1j]).conj()
    assert torch.equal(round_trip(conjugated), conjugated)
    negated = torch.tensor([1 + 2j]).conj().imag
    assert torch.equal(round_trip(negated), negated)
    sparse = torch.eye(3).to_sparse()
    assert torch.equal(round_trip(sparse).to_dense(), torch.eye(3))


def test_a_tensor_subclass_is_left_to_torch() -> None:
    class Named(torch.Tensor):
        pass

    named = torch.ones(3).as_subclass(Named)
    named.label = "n"
    got = round_trip(named)
    assert type(got).__name__ == "Named" and got.label == "n" and got.tolist() == [1, 1, 1]


def test_a_bare_storage_comes_back() -> None:
    storage = torch.arange(5, dtype=torch.uint8).untyped_storage()
    got = round_trip(storage)
    assert list(got) == [0, 1, 2, 3, 4] and type(got) is torch.UntypedStorage


def test_the_memory_of_a_loaded_tensor_is_its_own_mapping() -> None:
    region = Region(dumps(torch.arange(100, dtype=torch.uint8)))
    tensor = region.read()
    base = ctypes.addressof(ctypes.c_char.from_buffer(region.bytes))
    assert not base <= tensor.data_ptr() < base + len(region.bytes)


def test_as_data_tensors_that_share_a_storage_share_it_again() -> None:
    whole = torch.arange(10.0)
    first, second = back([whole, whole[2:5]])
    first[3] = 99
    assert second[1] == 99
    assert back(torch.nn.Linear(2, 3).state_dict())["weight"].shape == (3, 2)
    assert back(torch.ones(3, dtype=torch.bfloat16, requires_grad=True)).requires_grad
    assert back(torch.zeros(3, 0)).shape == (3, 0)
    with pytest.raises(SerializationError, match="detach"):
        back([torch.ones(1, requires_grad=True) * 2])
    with pytest.raises(SerializationError, match="beyond its buffer"):
        loads(region([T.TENSOR, 0, "float32", 0, [5], [1], False], b"x" * 16), DATA_RUNTIME)
    with pytest.raises(SerializationError, match="unknown kind"):
        loads(region([T.TENSOR, 0, "load", 0, [4], [1], False], b"x" * 16), DATA_RUNTIME)
