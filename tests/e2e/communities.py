"""What a mesh of real nodes must stand: stories of any size, which measure how long things took and say so."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.e2e.conftest import eventually
from tests.e2e.machines import LIGHT, Machine

Machines = Callable[[str], Machine]
JOIN_MAX_S = 30.0
"""Of 12 nodes, from the first command; promised: 5 s. A start takes 0.6 s of CPU, on cores that others use."""
DEATH_MAX_S = 25.0  # promised: 8 s
RETURN_MAX_S = 10.0
REVOKE_MAX_S = 8.0  # promised: 2 s
STALL_S = 5.0


def took_s(fact: Callable[[], bool], within_s: float, what: str, nodes: Sequence[Machine]) -> float:
    """How long it takes to be true; asserts that it is at last."""
    began = time.monotonic()
    done = eventually(fact, within_s)
    assert done, f"{what}: not within {within_s:g} s; {[node.states() for node in nodes]}"
    return time.monotonic() - began


def all_see(nodes: Sequence[Machine], **others: str) -> Callable[[], bool]:
    """Whether each of these sees all of them alive, and others as they are said to be, and nobody else."""
    wanted = {node.data_dir.name: "alive" for node in nodes} | others
    return lambda: all(node.states() == wanted for node in nodes)


def others_kept(node: Machine) -> int:
    """How many peers its disk knows."""
    peers = node.data_dir / "identity/mesh/peers"
    return peers.read_text().count('"seen"') if peers.exists() else 0


def since_when(node: Machine) -> dict[str, float]:
    """Name -> when it died or left, as this node tells."""
    return {row["name"]: row["since"] for row in node.members() if row["since"] is not None}


def require_quiet_logs(nodes: Sequence[Machine]) -> None:
    """No bug of ours has come up: it would stand there with its traceback."""
    for node in nodes:
        log = node.log()
        assert "Traceback" not in log, log[max(log.find("Traceback") - 500, 0) :][:4000]


def joined(machine: Machines, count: int) -> tuple[list[Machine], str]:
    """So many nodes, of which all but the first join with one ticket at once; and how that went."""
    nodes = [machine(f"n{number}") for number in range(count)]
    nodes[0].start("start", *LIGHT)
    ticket = nodes[0].ticket()
    began = time.monotonic()
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda node: node.start("join", "-", *LIGHT, said=ticket), nodes[1:]))
    started = time.monotonic() - began
    rest = took_s(all_see(nodes), JOIN_MAX_S - started, "join", nodes)
    return nodes, f"{count - 1} commands have joined after {started:.1f} s, and {rest:.2f} s later all see all"


def deaths_and_returns(machine: Machines, count: int, killed: int) -> list[str]:
    """The founder and others are killed; what is left goes on: it admits, and takes back who returns."""
    nodes, figure = joined(machine, count)
    figures = [figure]
    ticket = nodes[0].ticket()  # names all that there are
    assert eventually(lambda: all(others_kept(node) == count - 1 for node in nodes)), "each has written down all others"
    old = nodes[-1].data_dir.with_name("older copy")
    shutil.copytree(nodes[-1].data_dir, old)
    dead, rest = nodes[:killed], nodes[killed:]
    for node in dead:
        os.kill(node.pid, signal.SIGKILL)
    gone = {node.data_dir.name: "dead" for node in dead}
    seconds = took_s(all_see(rest, **gone), DEATH_MAX_S, "death", rest)
    figures.append(f"the founder and {killed - 1} more are known to be dead {seconds:.1f} s after kill -9")
    took_s(lambda: len({str(since_when(node)) for node in rest}) == 1, RETURN_MAX_S, "they agree since when", rest)

    new = machine("new")
    assert new.start("join", "-", *LIGHT, said=ticket)["mesh"]["how"] == "joined"
    rest.append(new)
    seconds = took_s(all_see(rest, **gone), RETURN_MAX_S, "a new one", rest)
    figures.append(f"a new node with the old ticket is seen by all {seconds:.2f} s after its command")

    last = nodes[-1]
    for what in ("its disk", "an older copy of it"):
        os.kill(last.pid, signal.SIGKILL)
        assert eventually(lambda: not last.pid)
        if what != "its disk":
            shutil.rmtree(last.data_dir)
            shutil.copytree(old, last.data_dir)
        assert last.start("start", *LIGHT)["mesh"]["how"] == "returned"
        seconds = took_s(all_see(rest, **gone), RETURN_MAX_S, f"return from {what}", rest)
        figures.append(f"a node returns from {what}: all see all {seconds:.2f} s after its command")
    with ThreadPoolExecutor(killed) as pool:
        list(pool.map(lambda node: node.start("start", *LIGHT), dead))
    seconds = took_s(all_see([*dead, *rest]), RETURN_MAX_S, "return of the dead", [*dead, *rest])
    figures.append(f"the founder and the others return: all see all {seconds:.2f} s after their commands")
    took_s(lambda: len({node.ask("table")["root"] for node in rest}) == 1, RETURN_MAX_S, "one table", rest)
    require_quiet_logs(rest)
    return figures


def a_stall_and_a_revocation(machine: Machines, count: int) -> list[str]:
    """One node stands still for five seconds, and nobody takes it for dead; then it is revoked, and is out."""
    nodes, figure = joined(machine, count)
    figures, stalled = [figure], nodes[-1]
    others = nodes[:-1]
    seen: set[str] = set()
    os.kill(stalled.pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        while time.monotonic() - began < STALL_S:
            seen.update(node.states()[stalled.data_dir.name] for node in others)
            time.sleep(0.1)
    finally:
        os.kill(stalled.pid, signal.SIGCONT)
    seconds = took_s(all_see(nodes), RETURN_MAX_S, "the end of the stall", nodes)
    assert "dead" not in seen and not [node for node in nodes if " is dead" in node.log()], seen
    figures.append(f"a stall of {STALL_S:g} s: seen as {', '.join(sorted(seen))}; alive again {seconds:.1f} s after it")

    peer_id = stalled.ask("whoami")["peer_id"]
    assert eventually(lambda: not any(node.ask("whoami")["via_invite"] for node in nodes))
    began = time.monotonic()
    nodes[0].ask("revoke", peer=peer_id, reason="a test")
    took_s(lambda: all_see(others)() and not stalled.peers(), REVOKE_MAX_S, "revocation", nodes)
    figures.append(
        f"a revocation has closed its sessions on all {time.monotonic() - began:.2f} s after it was asked for"
    )
    require_quiet_logs(nodes)
    return figures
