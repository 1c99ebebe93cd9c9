"""What whoever finds no room in the object store is told."""

from __future__ import annotations

from typing import Any

from lattica.node import fullness
from lattica.node.clients import AWAY, DRIVER, NODE, STORE, WORKER, Client

MIB = 1 << 20
NOTHING: Any = None


def client(number: int, kind: str, pid: int = 0, name: str = "") -> Client:
    return Client(number, kind, 1, NOTHING, 0.0, pid, name)


CLIENTS = {
    1: client(1, DRIVER, 70), 2: client(2, WORKER, 71, "Keeper"), 3: client(3, WORKER),
    4: client(4, NODE, name="attic"), 5: client(5, STORE), 6: client(6, AWAY), 7: client(7, WORKER, 72),
}  # fmt: skip


def test_processes_are_called_as_their_user_knows_them_and_no_pid_is_0() -> None:
    words = [fullness.who(CLIENTS.get(number)) for number in range(8)]
    assert words == [
        "processes that have ended", "a program, pid 70", "Keeper, pid 71", "a worker that begins",
        "the node attic", "what came back from disk or from other machines", "a program elsewhere", "a worker, pid 72",
    ]  # fmt: skip


def test_those_who_have_most_come_first_and_sizes_are_mib() -> None:
    arrays = {1: 3 * MIB, 2: 8 * MIB + 1, 7: 1, 3: 1}
    assert fullness.kept(arrays, 2 * MIB, CLIENTS) == (
        "under arrays, which keep them in memory, lie 8 MiB of Keeper, pid 71, 3 MiB of a program, pid 70, 1 MiB of "
        "a worker, pid 72, 2 MiB are being sent or copied by the node; all else goes to disk"
    )
    assert fullness.kept({}, 0, CLIENTS) == ""
    assert "2 MiB or more, by processes that have ended (64 MiB)" in fullness.taken({0: 64 * MIB}, CLIENTS)


def test_it_says_how_long_was_waited_and_what_is_short() -> None:
    size, used, of = 10 * MIB, 122 * MIB, 128 * MIB
    assert fullness.full(size, used, of) == "10 MiB do not fit: the object store holds 122 of 128 MiB"
    slow = fullness.full(size, used, of, "attic", waited_s=60.2, writing=7 * MIB)
    assert slow.startswith("10 MiB do not fit after 60 s: the object store of attic holds 122 of 128 MiB")
    assert slow.endswith("and the disk is slow: 7 MiB are still on their way to it")
    assert "nothing more can go to disk: no space left" in fullness.full(
        size, used, of, trouble="no space left", writing=9
    )
    assert "only 3 MiB of memory left" in fullness.full(size, used, of, machine_left=3 * MIB)
    assert fullness.never(200 * MIB + 1, of) == "an object of 201 MiB is larger than the whole object store (128 MiB)"
