"""What the workers of a detached actor have around them, when it goes on elsewhere: variables, packages, modules.

made here         packages of its job, and the modules beside its script, as contents for its keepers (`packed`)
restarted here    the same from whoever keeps them, unpacked as for any job (`unpacked`)
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lattica.errors import LatticaError, ObjectLostError
from lattica.mesh.identity import PeerId
from lattica.node.far_environment import script_of
from lattica.node.seeds import BESIDE, Package, Seed
from lattica.scheduler.environments import PY_MODULE, Environment, Travels, decode_installs

if TYPE_CHECKING:
    from lattica.node.clients import Job
    from lattica.node.far_desk import FarDesk

log = logging.getLogger(__name__)


class Surroundings:
    """See the module. using: job of an actor that began elsewhere -> folders that must stay for it."""

    def __init__(self, desk: FarDesk) -> None:
        self._desk, self._node = desk, desk.node
        self.using: dict[int, list[str]] = {}

    def __repr__(self) -> str:
        return f"<Surroundings of {len(self.using)} jobs>"

    async def packed(self, job: Job) -> tuple[list[Package], list[bytes]]:
        """Its packages, kept here for other nodes; names of those that could not be had."""
        runs, found, lost = self._node.runs, list[Package](), list[bytes]()
        if runs is None:
            return found, lost
        wanted = [(package.kind, package.cid) for package in job.environment.packages]
        try:
            if beside := await self._desk.environments.packed_beside(job):
                wanted.append((BESIDE, beside))
        except LatticaError as error:
            log.info("%s", error.message)
        for kind, cid in wanted:
            try:
                found.append(Package(kind, cid, self._desk.kept.put(await runs.packages.local(cid))))
            except (LatticaError, OSError) as error:
                log.warning("package %s of a detached actor: %s", cid[:16], error)
                lost.append(cid.encode())
        return found, lost

    async def unpacked(self, seed: Seed, keepers: Sequence[PeerId]) -> tuple[Environment, list[str]]:
        """What its workers have here, and the folders that must stay for it. Raises ObjectLostError."""
        here, using, runs = list[Travels](), list[str](), self._node.runs
        for package in seed.packages if runs is not None else ():
            assert runs is not None
            if package.kind == BESIDE and await asyncio.to_thread(os.path.exists, script_of(seed)):
                continue
            data = await self._desk.kept.get(package.content, keepers)
            if data is None:
                raise ObjectLostError(f"package {package.cid[:16]} is on no node that answers")
            await runs.packages.put(package.cid, data)
            name = f"{package.cid}.files"
            place = await runs.packages.unpacked(package.cid, (), name)
            using.append(name)
            here.append(Travels(PY_MODULE if package.kind == BESIDE else package.kind, package.cid, place))
        return Environment(seed.env_vars, here, installs=decode_installs(seed.installs), timeout_s=seed.setup_s), using

    def forgotten(self, job: int) -> None:
        """Nothing is left of it."""
        self.let_go(self.using.pop(job, []))

    def let_go(self, folders: list[str]) -> None:
        """These need not stay any more."""
        for name in folders:
            assert self._node.runs is not None, "it has unpacked them"
            self._node.runs.packages.release(name)
