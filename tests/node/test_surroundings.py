"""What a detached actor's workers have around them goes with it to another machine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lattica.errors import ConfigError, ObjectLostError
from lattica.mesh.identity import PeerId
from lattica.node.seeds import BESIDE, Package, Seed
from lattica.node.surroundings import Surroundings
from lattica.objectstore.cid import cid_of
from lattica.scheduler.environments import PY_MODULE, WORKING_DIR, Environment, Installs, Travels, encode
from tests.node.test_kept import Desk, run


class Runs:
    """Packages of one node, unpacked nowhere."""

    def __init__(self) -> None:
        self.packages, self.shelf, self.used = self, dict[str, bytes](), list[str]()

    async def local(self, cid: str) -> bytes:
        if cid not in self.shelf:
            raise ObjectLostError(f"package {cid}")
        return self.shelf[cid]

    async def put(self, cid: str, data: bytes) -> None:
        self.shelf[cid] = data

    async def unpacked(self, cid: str, _: object, name: str) -> str:
        assert cid in self.shelf
        self.used.append(name)
        return f"/unpacked/{name}"

    def release(self, name: str) -> None:
        self.used.remove(name)


def of(desk: Desk, runs: Runs, beside: str = "") -> Surroundings:
    async def packed_beside(_: object) -> str:
        if beside == "too many":
            raise ConfigError("the modules are too large")
        return beside

    node: Any = SimpleNamespace(runs=runs)
    return Surroundings(
        SimpleNamespace(node=node, kept=desk.kept, environments=SimpleNamespace(packed_beside=packed_beside))  # type: ignore[arg-type]
    )


def seed(packages: list[Package], script: Path) -> Seed:
    return Seed(
        b"", {}, "Rover", "", "", b"", b"", "python", "3.11", [], str(script.parent), script.name, True, [], [], [],
        {"MODE": "fast"}, packages, encode(Installs("pip", ("numpy",))), 60.0,
    )  # fmt: skip


def job(*packages: tuple[str, str]) -> Any:
    return SimpleNamespace(environment=Environment({}, [Travels(kind, cid, f"/{cid}") for kind, cid in packages]))


def test_packages_come_from_their_keepers_and_modules_beside_a_script_where_that_is_not(tmp_path: Path) -> None:
    folder, modules = b"a working directory", b"modules beside the script"

    async def story(town: dict[PeerId, Desk]) -> None:
        owner, keeper = Desk("a", town, tmp_path), Desk("b", town, tmp_path)
        runs = Runs()
        runs.shelf = {cid_of(folder): folder, cid_of(modules): modules}
        packages, lost = await of(owner, runs, cid_of(modules)).packed(job((WORKING_DIR, cid_of(folder))))
        assert [each.kind for each in packages] == [WORKING_DIR, BESIDE] and not lost
        for package in packages:
            assert await owner.kept.spread(package.content, [keeper.me], enough=1)
        town.pop(owner.me)
        there = of(keeper, heir := Runs())
        environment, using = await there.unpacked(seed(packages, tmp_path / "script.py"), [])
        assert environment.env_vars == {"MODE": "fast"}
        assert (environment.installs, environment.timeout_s) == (Installs("pip", ("numpy",)), 60.0)
        assert [each.kind for each in environment.packages] == [WORKING_DIR, PY_MODULE]
        assert environment.paths() == [f"/unpacked/{name}" for name in using] and heir.shelf == runs.shelf
        there.using[7] = using
        there.forgotten(7)
        assert not heir.used
        (tmp_path / "script.py").touch()
        environment, _ = await there.unpacked(seed(packages, tmp_path / "script.py"), [])
        assert [each.kind for each in environment.packages] == [WORKING_DIR]

    run(story)


def test_what_is_nowhere_is_said_and_an_actor_does_not_go_on_without_it(tmp_path: Path) -> None:
    async def story(town: dict[PeerId, Desk]) -> None:
        owner = Desk("a", town, tmp_path)
        packages, lost = await of(owner, Runs(), "too many").packed(job((WORKING_DIR, "gone")))
        assert not packages and lost == [b"gone"]
        nowhere = Package(WORKING_DIR, cid_of(b"x"), b"c" * 36)
        with pytest.raises(ObjectLostError, match="on no node that answers"):
            await of(owner, Runs()).unpacked(seed([nowhere], tmp_path / "script.py"), [])

    run(story)
