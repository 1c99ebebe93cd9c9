"""Jobs: what a driver's session needs from its beginning, and what is left to do when it ends.

driver gone     its workers are killed, all but those of detached actors
Shutdown        its workers are told to exit; when the last one's output has been sent, the driver's connection ends
"""

from __future__ import annotations

import os
import signal
from itertools import count
from time import time
from typing import TYPE_CHECKING, Annotated

import msgspec

from lattica.codec import messages as m
from lattica.errors import ConfigError, RemoteProtocolError
from lattica.node import paths
from lattica.node.clients import COMMAND, DRIVER, Client, Job
from lattica.node.environment import Folder, here_of
from lattica.node.pool import Use
from lattica.scheduler.environments import NOTHING, Environment

if TYPE_CHECKING:
    from lattica.node.server import Node

FAREWELL_S = 0.3
"""How long a worker that was told to exit has to write what it has buffered."""
MINOR = r"^([0-9]{1,2}\.[0-9]{1,3})?$"
LAST_LINES_S = 1.0
"""How long a driver that shuts down may take to read what its workers printed last."""


class JobGiven(msgspec.Struct):
    """`Hello.job`, checked."""

    sys_path: list[str] = []
    cwd: str = "/"
    script: str = ""
    namespace: str = ""
    log_to_driver: bool = True
    preload: list[str] = []
    environment: Environment = NOTHING
    minor: Annotated[str, msgspec.Meta(pattern=MINOR)] = ""


class JobDesk:
    """Begins and ends jobs."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._numbers = count(1)
        self._folders: dict[int, dict[str, Folder]] = {}  # job -> folders that its workers use, of those who made them

    def places(self, hello: m.Hello) -> list[str]:
        """Folders that a driver's workers will want to see: its own and those that it imports from."""
        try:
            given = msgspec.convert(hello.job, JobGiven)
        except msgspec.ValidationError:
            return []  # `begin` says so
        found = (given.cwd, *given.sys_path, given.environment.cwd(), *given.environment.paths())
        return [path for path in found if os.path.isabs(path)]

    def begin(self, driver: int, hello: m.Hello) -> Job:
        """The job of a driver that has come. Raises RemoteProtocolError if its `Hello` cannot be understood."""
        try:
            given = msgspec.convert(hello.job, JobGiven)
        except msgspec.ValidationError as error:
            raise RemoteProtocolError(f"the job in its Hello: {error}") from error
        number = self.next_number()
        environment = self._environment(number, given.environment)
        job = self._node.jobs[number] = Job(
            number, driver, hello.pid, hello.python, given.sys_path, given.cwd, given.script,
            given.namespace or f"anonymous-{os.urandom(8).hex()}", given.log_to_driver, time(), given.preload,
            environment=environment, minor=given.minor,
        )  # fmt: skip
        if given.minor and self._node.far is not None:
            self._node.far.placer.runs(given.minor)
        return job

    def _environment(self, number: int, given: Environment) -> Environment:
        """What the job's workers shall have; its driver's folder is held until the job is forgotten."""
        if given == NOTHING:
            return given
        try:
            environment = here_of(given, paths.embedded_sessions())
            if environment.shelf:
                self.hold_folder(number, environment.shelf)
        except (ConfigError, OSError) as error:
            raise RemoteProtocolError(f"the environment in its Hello: {error}") from error
        return environment

    def hold_folder(self, number: int, shelf: str) -> None:
        """This job uses that folder of a process, until it is forgotten. Raises OSError."""
        held = self._folders.setdefault(number, {})
        if shelf not in held:
            held[shelf] = Folder(shelf)

    def next_number(self) -> int:
        """For a job that begins."""
        return next(self._numbers)

    def prepare(self, job: Job) -> None:
        """Fork its first workers before it asks; where they need what must be installed, begin with that."""
        if job.environment.installs is not None:
            if job.environment.eager:
                self._node.environments.begin(job)
            return
        self._node.workers.zygotes.preload(job.python, job.sys_path, job.preload)
        for _ in range(self._node.pool.prestart()):
            self._node.fork(job.number, free=True)

    def shutdown(self, client: Client, message: m.Shutdown) -> None:
        """A driver ends its job, or a command the node."""
        if message.node and client.kind == COMMAND:
            self._node.end(signal.SIGTERM)
        elif not message.node and client.kind == DRIVER:
            self.end(self._node.jobs[client.job], farewell=True)
        else:
            raise RemoteProtocolError(f"a {client.kind} may not end {'the node' if message.node else 'a job'}")

    def end(self, job: Job, *, farewell: bool) -> None:
        """End the job's workers, but for those of detached actors. farewell: the driver waits for their last lines."""
        node = self._node
        if not job.ended:
            for each in self._family(job):
                each.ended, each.farewell = True, farewell
                if node.far is not None:
                    node.far.jobs.ended(each, farewell=farewell)
                node.actor_desk.job_ended(each.number)
        else:
            job.farewell = job.farewell and farewell
        doomed = self._mortals(job)
        node.lease_desk.perform(node.book.retire([job.driver, *doomed], node.now()))
        if not farewell:
            self._kill(doomed)
            return
        for worker in doomed:
            node.pool.ending(worker, node.now())
            node.tell(worker, m.Exit())
        node.loop.call_later(FAREWELL_S, self._kill, doomed)
        self.see_off(job)

    def is_leaving(self, client: Client) -> bool:
        """Whether it is on its way out: what it still asks for would outlive it."""
        if client.kind == DRIVER:
            return self._node.jobs[client.job].ended
        worker = self._node.pool.workers.get(client.number)
        return worker is None or worker.use is Use.ENDING

    def freed(self, worker: int) -> None:
        """Nobody uses this worker now. In an ended job nobody will: it was forked for an actor killed meanwhile."""
        job = self._node.jobs.get(self._node.pool.workers[worker].job)
        if job is not None and job.ended and not self._lives(job):
            self._kill([worker])

    def lost_a_worker(self, job: Job) -> None:
        """One more of an ended job's workers is gone: perhaps that was the last one."""
        job = self._node.jobs.get(job.family, job)
        if not job.farewell and not self._lives(job):
            self._kill(self._mortals(job))  # what its last detached actor leaves behind
        self.see_off(job)
        self.forget(job)

    def forget(self, job: Job) -> None:
        """Forget it if nothing is left: neither its driver, nor a worker, nor an actor that may need one again."""
        node = self._node
        job = node.jobs.get(job.family, job)
        driver = node.clients.get(job.driver)  # of a detached actor's own job it is the driver of another one
        is_there = driver is not None and driver.job == job.number
        if not job.ended or is_there or self.workers_of(job.number) or self._lives(job):
            return
        for number in reversed(node.environments.family(job.number)):  # what it has come from last
            node.jobs.pop(number, None)
            node.environments.forgotten(number)
            for folder in self._folders.pop(number, {}).values():
                folder.close()
            if node.far is not None:
                node.far.placing.forgotten(number)
                node.far.jobs.forgotten(number)

    def close(self) -> None:
        """The node ends."""
        for held in self._folders.values():
            for folder in held.values():
                folder.close()
        self._folders.clear()

    def _mortals(self, job: Job) -> list[int]:
        """Its workers, but for detached actors."""
        return [worker for worker in self.workers_of(job.number) if not self._node.actor_desk.outlives_its_job(worker)]

    def workers_of(self, job: int) -> list[int]:
        """Its workers, in all environments, whatever they do."""
        node = self._node
        return [worker for number in node.environments.family(job) for worker in node.pool.of_job(number)]

    def _family(self, job: Job) -> list[Job]:
        """It, and its variants."""
        jobs = self._node.jobs
        return [job, *(jobs[number] for number in self._node.environments.family(job.number) if number != job.number)]

    def _lives(self, job: Job) -> bool:
        """Whether actors of it live."""
        living_in = self._node.actor_desk.supervisor.living_in
        return any(living_in(number) for number in self._node.environments.family(job.number))

    def _kill(self, workers: list[int]) -> None:
        for worker in workers:
            self._node.end_worker(worker, "its job ended")

    def see_off(self, job: Job) -> None:
        """Let the driver go once the last worker's output has been sent to it."""
        driver = self._node.clients.get(job.driver)
        elsewhere = self._node.far is not None and self._node.far.jobs.sees_off(job.number)
        if job.farewell and driver is not None and not self._mortals(job) and not elsewhere:
            self._node.logs.send(job.number)
            driver.wire.end()
            self._node.loop.call_later(LAST_LINES_S, driver.wire.close_for, "it did not read its last lines")
