"""Tensors in the store: aliased as they were, and written by one process alone."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest

import lattica
from tests.e2e.test_objects import MIB, echo, write_store_over


def test_tensors_alias_as_they_did_and_writes_are_local(fresh: Callable[..., Any]) -> None:
    torch = pytest.importorskip("torch")
    fresh(num_cpus=1, object_store_memory=64 * MIB)
    base = torch.zeros(300_000)
    ref = lattica.put({"base": base, "part": base[100:200], "view": base.view(300, 1000)})

    @lattica.remote
    def write(tensors: dict[str, Any]) -> tuple[float, float]:
        tensors["part"] += 1
        return float(tensors["base"].sum()), float(tensors["view"].sum())

    assert lattica.get(write.remote(ref)) == (100.0, 100.0)
    assert float(lattica.get(ref)["base"].sum()) == 0.0, "the worker wrote into its own copy"
    mine = lattica.get(ref)
    mine["base"][0] = 5
    assert float(mine["view"][0, 0]) == 5.0
    assert float(lattica.get(ref)["base"][0]) == 0.0
    part = lattica.get(ref)["part"]
    del ref, mine
    gc.collect()
    write_store_over(56)
    assert float(part.sum()) == 0.0
    parameter = torch.nn.Parameter(torch.ones(100_000))
    assert lattica.get(echo.remote(parameter)).requires_grad
