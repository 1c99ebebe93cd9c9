"""Objects that were spilled on one machine are had on another, and `lattica memory` tells of all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lattica
from tests.e2e.conftest import Sessions
from tests.e2e.far import Mesh, state_of

MIB = 1 << 20
SMALL = ("--object-store-memory", "32MiB")


@pytest.fixture(scope="module")
def mesh(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    lattica.shutdown()
    mesh = Mesh(tmp_path_factory.mktemp("spill"))
    try:
        mesh.begin("a", 1, *SMALL)
        mesh.begin("b", 1, *SMALL, "--spill-dir", str(mesh.folder / "there"))
        mesh.all_see()
        mesh.attach("a")
        yield mesh
        mesh.require_quiet_logs()
    finally:
        mesh.end()


@lattica.remote
def summed(*arrays: Any) -> list[int]:
    return [int(array.sum(dtype=np.uint64)) for array in arrays]


@lattica.remote
def make(seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, 4 * MIB, dtype=np.uint8)


def total_of(seed: int) -> int:
    return int(np.random.default_rng(seed).integers(0, 256, 4 * MIB, dtype=np.uint8).sum(dtype=np.uint64))


def test_four_times_each_store_goes_from_machine_to_machine(mesh: Mesh) -> None:
    refs = [lattica.put(np.random.default_rng(seed).integers(0, 256, 4 * MIB, dtype=np.uint8)) for seed in range(16)]
    there = [make.options(scheduling_strategy=mesh.on("b")).remote(seed) for seed in range(16, 32)]
    sums = [total_of(seed) for seed in range(32)]
    found = [summed.options(scheduling_strategy=mesh.on("b")).remote(ref) for ref in refs]
    assert [lattica.get(each)[0] for each in found] == sums[:16], "what is spilled here is read there"
    assert [int(lattica.get(ref).sum(dtype=np.uint64)) for ref in there] == sums[16:], "and the other way round"
    for name in "ab":
        assert state_of(mesh.nodes[name], "memory")["spilled_total_bytes"] > 30 * MIB
    assert any(path.is_file() for path in (mesh.folder / "there").rglob("*"))


def test_memory_lists_who_holds_what_on_all_machines(mesh: Mesh) -> None:
    here = lattica.put(np.full(3 * MIB, 1, np.uint8))
    array = lattica.get(here)
    there = make.options(scheduling_strategy=mesh.on("b")).remote(99)
    lattica.wait([there])
    small = lattica.put(b"small")
    found = json.loads(mesh.nodes["b"].ok("memory", "--json"))
    rows = {(row["object"], row["node_name"], row["pid"]): row for row in found["rows"]}
    of = {name: [row for row in found["rows"] if row["object"] == ref.hex()] for name, ref in
          (("here", here), ("there", there), ("small", small))}  # fmt: skip
    assert {row["by"] for row in of["here"]} == {"ref+array"} and of["here"][0]["pid"] == os.getpid()
    assert of["here"][0]["state"] == "here" and of["here"][0]["size"] > 3 * MIB
    assert {row["state"] for row in of["small"]} == {"inline"}
    assert {row["node"] for row in of["there"]} >= {store["node"] for store in found["stores"]}, "its holders on both"
    assert len(found["stores"]) == 2 and not found["silent"] and len(rows) > 2
    page = mesh.nodes["a"].ok("memory", "--sort-by", "pid")
    assert "ref+array" in page and "in memory" in page and "store of" in page
    assert f"(pid {os.getpid()}, a)" in mesh.nodes["a"].ok("memory", "--group-by", "pid")
    assert Path(mesh.folder).exists() and array[0] == 1
