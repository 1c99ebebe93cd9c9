"""One instance of every message with every field set, and the golden bytes they must have.

python -m tests.codec.examples      write tests/golden/messages.json anew: the diff is the change of the wire
"""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any, get_args

import msgspec

from lattica.codec import frames
from lattica.codec import messages as m

GOLDEN = Path(__file__).parents[1] / "golden" / "messages.json"

OBJECT, FUNCTION, ACTOR = bytes(range(16)), b"f" * 16, b"a" * 12
CPU = {"CPU": 1.5}
REGION = m.InArena(OBJECT, 4096, 200, True)
INPUTS = [(OBJECT, 4096)]

EXAMPLES: list[Any] = [
    m.WithRefs(b"value", [OBJECT, ACTOR]),
    REGION,
    m.Failed(b"error", [OBJECT], True),
    m.Hello(1, 4711, "driver", "/usr/bin/python3", {"cwd": "/home/u", "log_to_driver": True, "sys_path": ["/lib"]}),
    m.Seal(OBJECT, 4096, 200, 3, True, [ACTOR], 4),
    m.Give(OBJECT, 3, 2),
    m.Hold(OBJECT),
    m.Drop(OBJECT, 2),
    m.Promise(OBJECT, "train.py:48"),
    m.Resolve([OBJECT], True),
    m.SpanRequest(7, 1 << 40, 1 << 41),
    m.SpanReturn(1 << 33, 1 << 20),
    m.LeaseRequest(7, CPU, False, "step", b"given", INPUTS, 0.5, b"k" * 16),
    m.LeaseCancel(7),
    m.LeaseReturn(9, 0.25, 0.5),
    m.WorkerKill(9, 12, "its connection broke"),
    m.Blocked(True),
    m.ActorCreate(
        7,
        ACTOR,
        b"spec",
        CPU,
        "Counter",
        "c",
        "space",
        True,
        True,
        -1,
        [OBJECT],
        b"meta",
        True,
        b"given",
        True,
        INPUTS,
        b"k" * 16,
    ),
    m.ActorConnect(ACTOR),
    m.ActorLookup(7, "c", "space"),
    m.ActorKill(ACTOR, False),
    m.ActorReady(ACTOR),
    m.ActorFailed(ACTOR, b"error"),
    m.ActorExit(ACTOR, "it called exit_actor()"),
    m.ActorArguments(ACTOR, b"spec", [OBJECT], b"error", INPUTS),
    m.StateRequest(7, "status"),
    m.Shutdown(True),
    m.Owes(True, True),
    m.MeshRequest(7, "ticket", {"ttl_s": 3600.0}),
    m.CancelObject(OBJECT, True, False),
    m.Unheard([OBJECT], 3, 1),
    m.FromAfar(OBJECT, 3, True, 5),
    m.Why(7, 5, ACTOR, 3, OBJECT),
    m.EnvironmentIs(b"k" * 16, b"environment"),
    m.Evicted(7, [OBJECT], [FUNCTION]),
    m.Refs(7, b"\x90"),
    m.SpanCancel(7),
    m.GroupCreate(7, OBJECT, [CPU], "PACK", "trial", [{"market": "!spot"}], OBJECT, True),
    m.GroupRemove(OBJECT, b"n" * 32),
    m.GroupWanted(7, OBJECT, b"n" * 32, "trial", True),
    m.ActorCheckpoint(ACTOR, b"state", OBJECT, b"cid", 1 << 20),
    m.Welcome(3, 1, b"n" * 16, "/run/session", 1 << 36, {"inline_max": 102400}, b"12345678"),
    m.Refused("another release"),
    m.Located(OBJECT, 4096, 200, True),
    m.Lost(OBJECT, "worker 3, killed by SIGKILL", "train.py:48", True),
    m.Freed(OBJECT),
    m.SpanGrant(7, 1 << 33, 1 << 20),
    m.SpanDenied(7, "the quota is reached", True),
    m.SpanWanted(),
    m.Evict(7, [OBJECT], True),
    m.Forget([OBJECT]),
    m.NoRoom(OBJECT, "it is full", True),
    m.RefsWanted(7),
    m.LeaseGranted(7, 9, 3, 4711, True, [0, 1], True, 5),
    m.LeaseDenied(7, "no GPU here", True, True),
    m.LeaseWanted(),
    m.LeaseLost(9, 3, 12, b"\xdd\x00\x00\x00\x00", "killed by SIGKILL", "last words", True, True),
    m.ActorAccepted(7, ACTOR, True, b"meta"),
    m.ActorRefused(7, "name-taken", "there is one"),
    m.ActorConnected(ACTOR, 2, 3, 4711, True, 5),
    m.ActorDown(ACTOR, 2, True, "exit code 3", "last words", b"error", True, True, True, True, True, True),
    m.ActorFound(7, ACTOR, "Counter", b"meta"),
    m.State(7, {"CPU": 4.0, "nodes": [{"alive": True}]}),
    m.LogLines("step", 4711, 2, ["one", "two"]),
    m.BecomeActor(ACTOR, 2, b"spec", CPU, [1], "c", "space", 5, b"state", b"cid", 1 << 20),
    m.NewCaller(3, True),
    m.Leased(9, 3, CPU, [1]),
    m.ActorRelease(ACTOR),
    m.Exit(),
    m.JobSetup(
        3, 1, b"n" * 16, "/run/session", 1 << 36, ["/lib"], "/home/u", "train.py", "space", {"num_cpus": 4}, b"12345678"
    ),
    m.ClientGone(3),
    m.MeshAnswer(7, {"peer_id": "abc"}, {"error": "ConfigError"}),
    m.CancelWanted(OBJECT, True, False),
    m.InGroup(b"within"),
    m.CheckpointWanted(ACTOR),
    m.Fork(3, "step"),
    m.Forked(3, 4711),
    m.Exited(4711, 9),
    m.Import(["numpy", "torch"]),
    m.Confined(True, True, "no mounts here"),
    m.Export(FUNCTION, b"code", 3),
    m.Task(12, OBJECT, FUNCTION, b"args", 2, [b"dep", REGION], [0, "key"], "step", 1, True),
    m.Call(12, OBJECT, "step", m.WithRefs(b"args", [OBJECT]), 2, [b"dep"], ["key"], 1, 11, True, "io", "Learner.now"),
    m.Reply(12, [b"result", REGION], 250),
    m.Cancel(12, False),
    m.Reclaim(5),
    m.Returned([13, 14], True),
    m.Taken(13, 5, 4, [OBJECT], True, True),
    m.Item(13, 5, b"value"),
]

CONVERSATIONS: dict[str, Any] = {
    name: getattr(m, name) for name in ("FromClient", "FromNode", "ToZygote", "FromZygote", "ToWorker", "FromWorker")
}
"""The unions of messages that may come one way."""


def members(union: Any) -> tuple[type, ...]:
    """The message types of a union."""
    return get_args(union) if isinstance(union, types.UnionType) else (union,)


def all_types() -> list[type[msgspec.Struct]]:
    """Every message that the module defines."""
    return [thing for thing in vars(m).values() if isinstance(thing, type) and issubclass(thing, msgspec.Struct)]


def encoded() -> dict[str, str]:
    """Each example's bytes in hexadecimal digits, by the name of its type."""
    return {type(example).__name__: frames.encode_one(example).hex() for example in EXAMPLES}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(encoded(), indent=1) + "\n")
    print(f"{len(EXAMPLES)} messages are in {GOLDEN}")
