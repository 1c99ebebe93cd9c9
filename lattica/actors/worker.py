"""A worker process: runs one job's tasks, or becomes one of its actors.

    node      -> worker   JobSetup, then Leased / NewCaller / BecomeActor / ActorRelease / Exit
    caller    -> worker   Export, Task, Call, Cancel, Reclaim
    worker    -> caller   Reply, Returned

The main thread runs the user's code. While it has none it leads the reactor itself, so a task costs one wake-up; while
user code runs, the I/O thread reads on: it hears cancels, gives unstarted tasks back, and sends finished replies that
would otherwise wait behind a long task. Finished replies of tasks lie in the page (`local/page`) until they are sent.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import functools
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from lattica.actors import context, current, equipment, values
from lattica.actors.actor_host import ActorHost
from lattica.actors.environments import LayOut
from lattica.actors.marshal import Marshal
from lattica.actors.producing import Producing, is_generator
from lattica.actors.runtime import Runtime
from lattica.codec import frames
from lattica.codec import messages as m
from lattica.errors import SerializationError, TaskCancelledError
from lattica.local import events
from lattica.local.page import Page
from lattica.objectstore.arena import ArenaMap

C = TypeVar("C")
CANCEL_SIGNAL = signal.SIGURG
CANCEL_AGAIN_S = 0.05  # until the signal is sent again; twice as long each time
CANCEL_AGAIN_MAX_S = 1.0
"""Breaks a running task. Ignored by default, so a stray one harms no child process."""
FLUSH_REPLIES = 64
FLUSH_S = 0.5e-3
"""Replies leave after this many or this long, whichever comes first; and always before the worker waits."""
EXIT_S = 1.0
"""How long an actor that ends by `sys.exit()` waits for callers to take the replies of calls that have ended."""
FUNCTIONS_MAX = 10_000
"""Functions that a worker keeps unpickled."""
OOM_SCORE = "1000"
"""If the kernel must end something, then a worker, whose task is retried, and neither the driver nor the node."""


class Caller:
    """Somebody who sends us tasks or calls, over a connection of their own."""

    __slots__ = ("client", "link", "via", "worker")

    def __init__(self, worker: Worker, client: int, *, far: bool = False) -> None:
        """far: it is on another machine."""
        self.worker, self.client = worker, client
        self.via = client if far else 0
        self.link: Any = None

    def received(self, messages: list[Any]) -> None:
        """Tasks, calls and wishes, in order. Lock held."""
        worker = self.worker
        for message in messages:
            kind = type(message)
            if kind is m.Task:
                worker.queue.append((self, message))
            elif kind is m.Call:
                worker.host.arrived(self, message)
            elif kind is m.Export:
                worker.exports[message.key] = message.value, self.via
                if message.max_calls:
                    worker.calls_left.setdefault(message.key, message.max_calls)
            elif kind is m.Cancel:
                worker.cancel(self, message)
            elif kind is m.Taken:
                worker.producing.told(self.client, message)
            else:
                worker.give_back(self, message.count)
        if worker.retiring and worker.queue:
            worker.refuse(self)
        elif worker.blocked and worker.queue:
            worker.give_back(self, len(worker.queue), blocked=True)
        elif worker.host is not None:
            worker.host.wake()

    def ended(self) -> None:
        """The caller is gone, or has let us go; one of an actor has perhaps lost this connection, and wants another."""
        worker = self.worker
        if worker.callers.get(self.client) is not self:
            return  # it called us before we became an actor
        if worker.host is not None:
            self.link = None
            return
        del worker.callers[self.client]
        worker.producing.caller_gone(self.client)
        worker.queue = deque(entry for entry in worker.queue if entry[0] is not self)


class Worker:
    """This process as a worker. See the top of the file."""

    def __init__(self, sock_fd: int, page_fd: int, client: int) -> None:
        self.runtime = Runtime(socket.socket(fileno=sock_fd))
        self.runtime.client = client
        self.runtime.place = self.place = context.Place()
        self.marshal = Marshal(self.runtime, self.place)
        self.producing = Producing(self)
        self.page = Page(page_fd)
        os.close(page_fd)
        self.events = self.page.event_writer()
        self.queue: deque[tuple[Caller, m.Task]] = deque()
        self.callers: dict[int, Caller] = {}
        self.exports: dict[bytes, tuple[m.Value, int]] = {}  # code of functions, and who gave it if from afar
        self._functions: dict[bytes, Any] = {}
        self.host: ActorHost = None  # type: ignore[assignment]  # set when this worker becomes an actor
        self._setup: m.JobSetup | None = None
        self.calls_left: dict[bytes, int] = {}  # of functions that have a limit
        self.retiring = False  # one of them has reached it: the node ends this process when it owes nobody anything
        self.stopping = False
        self.blocked = False
        self._owes = False  # as the node has been told
        self._now: tuple[Caller, int, context.Running] | None = None  # the task that the main thread runs
        self._replying: Caller | None = None  # whose replies lie in the page
        self._sending = False  # replies are on their way to the kernel
        self._flushed_at = 0.0
        self._io_guards = False
        self._threads = 1  # of numeric libraries that the fork brought along
        self._ran = 0  # tasks since the last wait: after a single one, another single one may follow at once
        extra = self.runtime.extra
        extra[m.JobSetup] = self._job_setup
        extra[m.NewCaller] = self._new_caller
        extra[m.Leased] = self._leased
        extra[m.BecomeActor] = self._become_actor
        extra[m.ActorRelease] = self._release
        extra[m.CheckpointWanted] = self._checkpoint
        extra[m.Exit] = lambda _: self._stop()
        extra[type(None)] = lambda _: _die()
        self.runtime.on_block = self._on_block
        self.runtime.on_submit = _remember_child
        self.runtime.on_client_gone = self._caller_gone
        self.runtime.reactor.idle_hook = self._guard_replies
        self.runtime.listen()

    # -- messages of the node (lock held)

    def _job_setup(self, message: m.JobSetup) -> None:
        runtime = self.runtime
        runtime.client, runtime.job, runtime.node_id = message.client, message.job, message.node
        runtime.token = message.token
        runtime.namespace, runtime.session_dir, runtime.config = message.namespace, message.session_dir, message.config
        runtime.objects.arena = ArenaMap(runtime.node.stream.take_fd(), message.arena_bytes)
        self._setup = message
        self._equip({}, [])  # a task that asks for nothing sees no GPU, whatever the node may see

    def _new_caller(self, message: m.NewCaller) -> None:
        """A caller has a connection to us. One of an actor that had one before has lost it: what of that is not read
        comes again over the new one."""
        caller = self.callers.get(message.client)
        if caller is None or self.host is None:
            caller = self.callers[message.client] = Caller(self, message.client, far=message.far)
        elif caller.link is not None:
            self.runtime.reactor.remove(caller.link)
        caller.link = self.runtime.connect(self.runtime.node.stream.take_fd(), m.ToWorker, caller)
        if self.host is not None:
            self.host.connected(message.client, far=message.far)

    def _caller_gone(self, client: int) -> None:
        """It has ended, and perhaps a process that it forked holds its connection open: the end of that never comes."""
        caller = self.callers.get(client)
        if caller is None:
            return
        if caller.link is not None:
            caller.received(caller.link.stream.drain())
            self.runtime.reactor.remove(caller.link)
        caller.ended()
        if self.host is not None:
            self.host.caller_gone(client)
            del self.callers[client]
            self.producing.caller_gone(client)

    def _leased(self, message: m.Leased) -> None:
        if message.resources != self.place.resources or message.gpus != self.place.gpus:
            self._equip(message.resources, message.gpus)

    def _equip(self, resources: dict[str, float], gpus: list[int]) -> None:
        """What user code may use from here on: GPUs, and as many threads as CPUs where the user did not say
        otherwise."""
        self.place.resources, self.place.gpus = resources, gpus
        known = self.runtime.config.get("gpus", ())
        self.place.gpu_names = [known[gpu] if gpu < len(known) else str(gpu) for gpu in gpus]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self.place.gpu_names)
        self._threads = equipment.use_threads(max(1, int(resources.get("CPU", 1))), self._threads)

    def _become_actor(self, message: m.BecomeActor) -> None:
        self._equip(message.resources, message.gpus)
        self.place.actor_id, self.place.actor_name = message.actor, message.name
        self.place.incarnation = message.incarnation
        self.callers.clear()  # of tasks, which have ended; whoever calls the actor gets a connection for that
        self.host = ActorHost(self, message, self.runtime.node.stream.take_fd() if message.size else -1)

    def _release(self, _: m.ActorRelease) -> None:
        if self.host is not None:
            self.host.release()

    def _checkpoint(self, _: m.CheckpointWanted) -> None:
        if self.host is not None:
            self.host.checkpoint()

    def _stop(self) -> None:
        self.stopping = True

    # -- the main thread

    def run(self) -> None:
        """Until the node says Exit or is gone."""
        reactor = self.runtime.reactor
        guard = self.runtime.guard
        guard.install(CANCEL_SIGNAL, self._on_cancel_signal)
        guard.enter()
        reactor.wait(lambda: self._setup is not None or self.stopping)
        if self.stopping:
            return
        assert self._setup is not None
        self._enter_job(self._setup)
        while True:
            self._wait(spin=self._ran == 1)
            self._ran = 0
            if self.queue:
                self._run_queue()
            elif self.host is not None:
                self.host.run()
                return
            elif self.stopping:
                return

    def refuse(self, caller: Caller) -> None:
        """It takes no more tasks: those that have come go back, and none shall follow. Lock held."""
        while self.queue:
            self.give_back(self.queue[-1][0], len(self.queue), blocked=True)
        self.give_back(caller, 0, blocked=True)

    def _wait(self, *, spin: bool) -> None:
        """For something to do."""
        reactor, noted = self.runtime.reactor, self.events.noted
        if noted and reactor.wait(self._something_to_do, events.STORE_S, spin=spin):
            return
        if noted:
            self.events.store()
        reactor.wait(self._something_to_do, spin=spin)

    def leave(self) -> None:
        """From now on the end of the node's connection is expected."""
        self.runtime.extra.pop(type(None), None)

    @staticmethod
    def end_child() -> None:
        """A process that user code forked has come back from that code. It is no worker; the task is its parent's."""
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(0)

    def exit(self, leaving: SystemExit, name: str) -> NoReturn:
        """User code has called `sys.exit()`, so this process ends as a program does; what ran here has not finished.
        name: of what called it."""
        code = leaving.code
        if self.runtime.forked:
            self.end_child()
        with contextlib.suppress(Exception):
            if code is not None and not isinstance(code, int):
                print(code, file=sys.stderr)
            print(f"{name} called sys.exit({'' if code is None else repr(code)}){_line_of(leaving)}", file=sys.stderr)
        if self.host is not None:
            self.host.send_all(EXIT_S)
        self.run_exit_handlers()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code & 0xFF if isinstance(code, int) else int(code is not None))

    def run_exit_handlers(self) -> None:
        """What user code registered with `atexit`: after a kind end, as in any program."""
        self.leave()
        self.runtime.guard.on = False
        atexit._run_exitfuncs()
        self.runtime.environments.close()

    def _something_to_do(self) -> bool:
        if self._owes and not self._ties():
            self._say_owes(False)
            self.runtime.nudge_node()
        return bool(self.queue) or self.stopping or self.host is not None

    def _ties(self) -> bool:
        """Whether somebody would lose something if it ended now. Workers that it leases would end with it, whatever
        they owe."""
        return self.runtime.owes() or (self.retiring and bool(self.runtime.tasks.leases))

    def _say_owes(self, owes: bool) -> None:
        self._owes = owes
        self.runtime.tell_node(m.Owes(owes, self.retiring))

    def _enter_job(self, setup: m.JobSetup) -> None:
        with contextlib.suppress(OSError):
            os.chdir(setup.cwd)
        sys.argv[:] = [setup.script]  # ours are the zygote's
        if (around := setup.config.get("environment")) is not None:
            self._surround(around, str(setup.config.get("venv", "")))
        known = set(sys.path)
        sys.path[:] = list(setup.sys_path) + [path for path in sys.path if path not in setup.sys_path and path in known]
        own = self.runtime.environments.own
        if own is not None and "PYTHONPATH" in own.env_vars:  # behind the script's folder, as an interpreter does
            at = len(own.paths()) + 1
            sys.path[at:at] = [path for path in os.environ["PYTHONPATH"].split(os.pathsep) if path]
        current.put(self.runtime)
        equipment.import_first()

    def _surround(self, around: object, venv: str) -> None:
        """Have the environment that is said to be ours. venv: the virtual environment that this interpreter is of."""
        import msgspec

        from lattica.scheduler.environments import Environment, acts_at_load, expanded

        environment = self.runtime.environments.own = msgspec.convert(around, Environment)
        if venv:
            os.environ["VIRTUAL_ENV"] = venv
            os.environ["PATH"] = f"{venv}/bin{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        late = {name: value for name, value in environment.env_vars.items() if not acts_at_load(name)}
        variables = expanded(late, os.environ)  # the others are there already, since this interpreter began
        os.environ.update(variables)
        equipment.given(variables)

    def _run_queue(self) -> None:
        """What has come, one after the other, and what comes meanwhile."""
        lock = self.runtime.lock
        with lock:
            taken = self._take()
        while taken is not None:
            caller, task, now = taken
            self._ran += 1
            reply = self._run_task(caller, task, now)
            with lock:
                kept = self._keep(reply, now)
                taken = self._take() if kept and not self.calls_left else None
            if kept and not self.calls_left:
                continue
            if not kept:
                self._reply_without_room(caller, reply)
            if self.calls_left and self._is_used_up(task.function):
                self._empty_page()
                with lock:
                    self.retiring = True
                    self._say_owes(self._ties())
                    self.refuse(caller)
                return
            with lock:
                taken = self._take()

    def _take(self) -> tuple[Caller, m.Task, context.Running] | None:
        """The next task, which counts as running from now on; without one, all replies are sent. Lock held."""
        if self.queue and not self.page.fresh:  # all that ran here is answered: it may be the first of another lease,
            self.runtime.reactor.hear_node()  # and what was said of that is for it: its group, its GPUs
        if not self.queue:
            self._flush()
            return None
        caller, task = self.queue.popleft()
        now = context.Running(task.object, task.name, task.attempt)
        self._now = caller, task.seq, now  # in one go: a cancel finds it here if not in the queue
        return caller, task, now

    def _keep(self, reply: bytes, now: context.Running) -> bool:
        """A task has ended: its reply waits in the page; False if there is no room. Lock held."""
        runtime = self.runtime
        if now.children and not self._owes and runtime.owes():
            self._say_owes(True)  # before the reply, which may be answered by an end of the lease
        if runtime.node.dirty:  # what it gives away is told first: the page outlives us, what is unsent does not
            runtime.reactor.flush()
        return self.page.finish(reply)

    def _is_used_up(self, function: bytes) -> bool:
        """A function has run: whether it may not do so here again."""
        left = self.calls_left.get(function)
        if left is not None:
            self.calls_left[function] = left - 1
        return left == 1

    def _run_task(self, caller: Caller, task: m.Task, now: context.Running) -> bytes:
        """To the end; its reply, encoded."""
        runtime, page = self.runtime, self.page
        if caller is not self._replying:
            self._empty_page()
            with runtime.lock:
                page.lease_to(caller.client)
                self._replying = caller
        if page.fresh:
            if time.monotonic() - self._flushed_at > FLUSH_S or page.fresh >= FLUSH_REPLIES:
                with runtime.lock:
                    self._flush()
            elif not self._io_guards and not runtime.reactor.rung:
                runtime.reactor.ring()
        else:
            self._flushed_at = time.monotonic()
        token = context.running.set(now)
        runtime.data = task.data
        kind = events.TASK
        began = time.perf_counter()
        page.start(task.seq)
        try:
            out = self._execute(caller, task, now)
        except SystemExit as leaving:
            self.exit(leaving, task.name)
        except BaseException as error:
            kind |= events.FAILED
            out = [self.marshal.failed(error, task.name, task.data)]
        finally:
            if runtime.forked:
                self.end_child()
            self._now = None
            context.running.reset(token)
        micros = int((time.perf_counter() - began) * 1e6)
        self.events.note((task.name, began, micros, kind, task.attempt, task.object, 0))
        return frames.encode_one(m.Reply(task.seq, out, micros))

    def _reply_without_room(self, caller: Caller, reply: bytes) -> None:
        """The page is full, since the caller reads slowly; or this reply is larger than a page, and the next task must
        not begin before the kernel has it."""
        self._empty_page()
        with self.runtime.lock:
            if self.page.finish(reply):
                return
            self._sending = True
            frame = frames.join(1, reply) + reply
            self.runtime.reactor.flush()
            self.runtime.reactor.send_frame(caller.link, frame, self._replies_sent)
        self._empty_page()

    def _empty_page(self) -> None:
        """Wait until the kernel has taken every reply. We read on meanwhile: the caller may itself wait for that."""
        if self.page.count or self._sending:
            with self.runtime.lock:
                self._flush()
            self.runtime.reactor.wait(lambda: not self.page.count and not self._sending)

    def _execute(self, caller: Caller, task: m.Task, now: context.Running) -> list[m.Value]:
        """The user's code, with signals let through; arguments and result end with this frame."""
        guard = self.runtime.guard
        function = now.function = self._functions.get(task.function) or self._load_function(task.function)
        args, kwargs = self.marshal.arguments(task, caller.via) if task.args or task.deps else ((), {})
        try:
            guard.open()
            result = function(*args, **kwargs)
        finally:
            guard.on = True
        if task.returns == 1:
            if result is None and not task.data:
                return [values.NONE]
        else:
            if task.returns < 0:
                send = functools.partial(self._send_item, caller)
                return self.producing.produce(caller.client, task, result, task.name, send, keeps=False)
            if is_generator(result):
                return self.producing.several(caller.client, task, result, task.name)
        try:
            return self.marshal.results(
                result, task.returns, task.object, caller.client, task.name, task.data, task.attempt
            )
        except SerializationError:
            if not is_generator(result):
                raise
            return self.producing.several(caller.client, task, result, task.name)

    def _send_item(self, caller: Caller, item: m.Item) -> None:
        """One that a generator has made: soon, and with those that come right after it."""
        page = self.page
        message = frames.encode_one(item)
        with self.runtime.lock:
            if self.runtime.node.dirty:  # as with replies
                self.runtime.reactor.flush()
            kept = page.finish(message)
            if kept and (page.fresh >= FLUSH_REPLIES or time.monotonic() - self._flushed_at > FLUSH_S):
                self._flush()
        if not kept:
            self._reply_without_room(caller, message)

    def guard_items(self) -> None:
        """User code is about to run on: what has been made does not wait for it."""
        if self.host is not None:
            self.host.guard_items()
        elif self.page.fresh and not self._io_guards and not self.runtime.reactor.rung:
            self.runtime.reactor.ring()

    def flush_all(self) -> None:
        """Send what has been made, before this thread waits."""
        with self.runtime.lock:
            if self.host is None:
                self._flush()
            else:
                self.host.send_now()

    def _load_function(self, key: bytes) -> Any:
        value, via = self.exports[key]
        with self.runtime.lock:
            code = self.runtime.objects.from_wire(value, via)
        function = self.runtime.load(code)
        if len(self._functions) >= FUNCTIONS_MAX:
            self._functions.clear()
        self._functions[key] = function
        with self.runtime.lock:
            self.runtime.tasks.exports.setdefault(key, code)
        return function

    # -- replies, cancel, give back (lock held)

    def _flush(self) -> None:
        """Send the finished replies; the node hears first of what they give away."""
        self.runtime.reactor.flush()
        if self.page.fresh:
            self._send_replies()
        if len(self.events.noted) >= events.BATCH:
            self.events.store()
        self._flushed_at = time.monotonic()

    def _send_replies(self) -> None:
        """Send what is fresh in the page. What the socket does not take stays there, and is not sent by others."""
        page = self.page
        if page.fresh and not self._sending and self._replying is not None:
            self._sending = True
            count, items = page.fresh, page.take()
            self.runtime.reactor.send_frame(self._replying.link, frames.join(count, items) + items, self._replies_sent)

    def _replies_sent(self) -> None:
        self._sending = False
        self.page.sent()
        if self.page.fresh:
            self._send_replies()

    def _guard_replies(self) -> float | None:
        """The I/O thread asks how long it may sleep: not long, while replies wait behind a running task."""
        if self.host is not None:
            return self.host.guard_replies()
        if not self.page.fresh or self._sending:  # a full socket says itself when it is none
            self._io_guards = False
            return None
        self._io_guards = True
        if time.monotonic() - self._flushed_at >= FLUSH_S:
            with self.runtime.lock:
                if self._now is not None:
                    self._flush()
        return FLUSH_S

    def give_back(self, caller: Caller, count: int, *, blocked: bool = False) -> None:
        """Return unstarted tasks of a caller, the newest first.

        The one that is about to start stays: if many wait for workers, each would otherwise take its lease back before
        the first task of it began, and nobody would get anywhere.
        """
        tasks = take_back(self.queue, caller, count, keep=0 if self._now is not None or self.retiring else 1)
        for task in tasks:
            self.discard(task, caller.via)
            self.producing.withdrawn(caller.client, task.seq)
        reactor = self.runtime.reactor
        reactor.send(caller.link, m.Returned([task.seq for task in reversed(tasks)], blocked))
        reactor.flush()

    def discard(self, task: m.Task | m.Call, via: int) -> None:
        """Let go what a task that will not run here brought along. via: of whom, if from afar."""
        let_go_inputs(self.runtime, task, via)

    def via(self, client: int) -> int:
        """`client`, if this caller is on another machine, else 0."""
        caller = self.callers.get(client)
        return 0 if caller is None else caller.via

    def is_to_come(self, client: int, seq: int) -> bool:
        """Whether this task or call is here and has not ended."""
        if self.host is not None:
            return (client, seq) in self.host.mailbox
        queued = any(caller.client == client and task.seq == seq for caller, task in self.queue)
        return queued or (self._now is not None and self._now[0].client == client and self._now[1] == seq)

    def cancel(self, caller: Caller, message: m.Cancel) -> None:
        """Stop a task that is queued or runs."""
        if self.host is not None:
            self.host.cancel(caller, message)
            return
        for entry in self.queue:
            if entry[0] is caller and entry[1].seq == message.seq:
                self.queue.remove(entry)
                self.discard(entry[1], caller.via)
                self.producing.withdrawn(caller.client, message.seq)
                error = TaskCancelledError(name=entry[1].name, task_id=entry[1].object.hex())
                self.runtime.reactor.send(
                    caller.link, m.Reply(message.seq, [self.marshal.failed(error, entry[1].name, entry[1].data)])
                )
                self.runtime.reactor.flush()
                return
        entry = self._now
        if entry is not None and entry[0] is caller and entry[1] == message.seq:
            if message.recursive:
                self.cancel_children(entry[2])
            self.interrupt(entry[2], lambda: self._now is entry)

    def interrupt(self, now: context.Running, runs: Callable[[], bool], again_s: float = CANCEL_AGAIN_S) -> None:
        """Break what the main thread runs, while it `runs` that, until it has noticed: a signal that arrives when a
        system call is about to begin does not end the call."""
        now.canceled = True
        signal.pthread_kill(_main_thread, CANCEL_SIGNAL)

        def again() -> None:
            if now.canceled and runs():
                self.interrupt(now, runs, min(2 * again_s, CANCEL_AGAIN_MAX_S))

        self.runtime.reactor.call_at(time.monotonic() + again_s, again)

    def cancel_children(self, now: context.Running) -> None:
        """Cancel what a task submitted and what has not ended."""
        for child in now.children:
            ref = child()
            if ref is not None:
                cancel = functools.partial(self.runtime.cancel, ref, force=False, recursive=True)
                self.runtime.reactor.after_dispatch.append(cancel)

    def _on_cancel_signal(self, signum: int, frame: Any) -> None:
        now = context.running.get()
        if now is not None and now.canceled and self.runtime.guard.in_main_thread:
            now.canceled = False  # once: its handlers may clean up
            raise context.Canceled(now.object.hex())

    def _on_block(self, blocked: bool) -> None:
        """The main thread begins to wait for others, or ends that: its queue and its CPU are free meanwhile."""
        if not self.runtime.guard.in_main_thread or (self._now is None and self.host is None):
            return
        runtime = self.runtime
        with runtime.lock:
            self.blocked = blocked
            if blocked:
                self._flush()
                if self._now is not None:
                    self.give_back(self._now[0], len(self.queue), blocked=True)
            runtime.tell_node(m.Blocked(blocked))
            runtime.reactor.flush()


def take_back(queue: deque[tuple[C, m.Task]], caller: C, count: int, keep: int) -> list[m.Task]:
    """Unstarted tasks of this caller from the end of the queue, the newest first: `count` of them at most, and `keep`
    stay in the queue."""
    tasks: list[m.Task] = []
    while len(queue) > keep and len(tasks) < count and queue[-1][0] is caller:
        tasks.append(queue.pop()[1])
    return tasks


def let_go_inputs(runtime: Runtime, task: m.Task | m.Call, via: int) -> None:
    """What a task that will not run here brought along. via: of whom, if from afar."""
    for value in (task.args, *task.deps):
        if type(value) is not bytes:
            runtime.objects.from_wire(value, via)


def _remember_child(ref: Any) -> None:
    now = context.running.get()
    if now is not None:
        now.submitted(ref)


def _line_of(error: BaseException) -> str:
    """Where in the user's code it was raised, for people."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return "" if at is None else f" at {at.tb_frame.f_code.co_filename}:{at.tb_lineno}"


def _die() -> None:
    """The node is gone: so are we, with every process that user code started."""
    with contextlib.suppress(OSError):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


_main_thread = 0


def main(sock_fd: int, page_fd: int, client: int, lay_out: LayOut | None = None) -> None:
    """The life of a worker, from the fork on. Standard output and error are the node's pipes already. lay_out: packs
    folders that its tasks' own tasks shall have."""
    global _main_thread
    import threading

    _main_thread = threading.main_thread().ident or 0
    faulthandler.enable()
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write(OOM_SCORE)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    equipment.reseed()
    worker = Worker(sock_fd, page_fd, client)
    worker.runtime.environments.lay_out = lay_out
    try:
        worker.run()
        worker.run_exit_handlers()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
