"""Why a value finds no room in the object store, in words for whoever is refused."""

from __future__ import annotations

from collections.abc import Mapping

from lattica.node.clients import DRIVER, NODE, STORE, WORKER, Client

MIB = 1 << 20
NAMED = 3  # of those who have most
SAID_FROM_S = 1.0  # how long was waited is said from here on


def never(size: int, capacity: int) -> str:
    """It is larger than all of it. Sizes in bytes."""
    return f"an object of {_up(size)} MiB is larger than the whole object store ({capacity // MIB} MiB)"


def full(
    size: int,
    used: int,
    capacity: int,
    where: str = "",
    *,
    waited_s: float = 0.0,
    machine_left: int | None = None,
    writing: int = 0,
    trouble: str = "",
) -> str:
    """`size` bytes do not fit. where: this node's name. machine_left: what the machine's memory has left, where that is
    what is short. writing: bytes on their way to disk. trouble: why nothing more can go there."""
    after = f" after {waited_s:.0f} s" if waited_s >= SAID_FROM_S else ""
    said = f"{_up(size)} MiB do not fit{after}: the object store{where and f' of {where}'} holds {used // MIB} of"
    said += f" {capacity // MIB} MiB"
    if machine_left is not None:
        said += f", and the machine has only {machine_left // MIB} MiB of memory left for it"
    if trouble:
        said += f", and nothing more can go to disk: {trouble}"
    elif writing:
        said += f", and the disk is slow: {_up(writing)} MiB are still on their way to it"
    return said


def kept(arrays: Mapping[int, int], reading: int, clients: Mapping[int, Client]) -> str:
    """Which bytes stay in memory whatever happens: under whose arrays, and those that the node reads; "" if none."""
    parts = [f"{size} MiB of {whose}" for whose, size in _largest(arrays, clients)]
    if reading >= MIB:
        parts.append(f"{reading // MIB} MiB are being sent or copied by the node")
    return f"under arrays, which keep them in memory, lie {', '.join(parts)}; all else goes to disk" if parts else ""


def taken(spans: Mapping[int, int], clients: Mapping[int, Client]) -> str:
    """Who has the room: by whole spans, of which one small value may keep all."""
    parts = [f"{whose} ({size} MiB)" for whose, size in _largest(spans, clients)]
    return f"room is taken, in spans of 2 MiB or more, by {', '.join(parts)}"


def _largest(sizes: Mapping[int, int], clients: Mapping[int, Client]) -> list[tuple[str, int]]:
    """(who, MiB)."""
    largest = sorted(sizes.items(), key=lambda entry: -entry[1])[:NAMED]
    return [(who(clients.get(number)), max(size // MIB, 1)) for number, size in largest]


def who(client: Client | None) -> str:
    """A process, as its user knows it."""
    if client is None:
        return "processes that have ended"
    if client.kind == STORE:
        return "what came back from disk or from other machines"
    if client.kind == NODE:
        return f"the node {client.name}"
    if client.kind not in (DRIVER, WORKER) or not client.pid:
        return client.name or ("a worker that begins" if client.kind == WORKER else "a program elsewhere")
    return f"{'a program' if client.kind == DRIVER else client.name or 'a worker'}, pid {client.pid}"


def _up(size: int) -> int:
    return -(-size // MIB)
