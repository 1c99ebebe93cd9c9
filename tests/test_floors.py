"""Imports run down: the floors of the house, read from the source with `ast`: nothing has to be imported.

    4  doors          lattica, cli, dashboard, launch, rl, util, compat, testing
    3  one machine    node (composes), actors
    2  knowledge      objectstore, scheduler
    1  ways           mesh (between machines), local (between processes of one machine)
    0  ground         errors, exceptions, ids, files, codec, crdt

A room may import its own files and any lower floor. Rooms of one floor are blind to each other, but for NEIGHBOURS.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSE = ROOT / "lattica"
FLOORS = {
    4: {
        "__init__",
        "__main__",
        "actor",
        "remote_function",
        "runtime_context",
        "runtime_env",
        "session",
        "cli",
        "compat",
        "dashboard",
        "launch",
        "rl",
        "testing",
        "trace",
        "util",
    },
    3: {"node", "actors"},
    2: {"objectstore", "scheduler"},
    1: {"mesh", "local"},
    0: {"_version", "errors", "exceptions", "ids", "files", "codec", "crdt"},
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}

# (room, neighbour it may see): the ground is one room, and doors may stand beside one another where listed.
NEIGHBOURS = {
    ("node", "actors"),  # the node composes; actors never see it
    ("exceptions", "errors"),  # Ray's names for the same classes
    ("errors", "ids"),
    ("files", "errors"),
    ("codec", "errors"),
    ("codec", "ids"),
    ("crdt", "ids"),
    ("crdt", "errors"),
    ("cli", "launch"),  # `lattica up` is a command; launch runs commands, and imports none
    ("cli", "__init__"),  # commands, helpers and simulations are users of the front door
    ("util", "__init__"),
    ("compat", "__init__"),
    ("rl", "__init__"),
    ("dashboard", "__init__"),
    ("launch", "__init__"),
    ("testing", "__init__"),
    ("__main__", "cli"),
    ("__init__", "session"),
    ("__init__", "actor"),
    ("__init__", "runtime_env"),
    ("__init__", "trace"),
    ("cli", "trace"),  # a command writes the same trace
    ("__init__", "util"),  # `lattica.util` is a name of the front door
    ("remote_function", "session"),  # the first use starts a session
    ("runtime_context", "session"),
}

# Protocol cores: they are told the time and the dice, and answer with effects.
PURE_CORES = [
    "crdt/hlc.py",
    "crdt/ranges.py",
    "mesh/community.py",
    "mesh/letters.py",
    "mesh/membership.py",
    "mesh/soft_state.py",
    "mesh/notices.py",
    "mesh/table/kinds.py",
    "mesh/table/rows.py",
    "mesh/table/replica.py",
    "mesh/table/reconcile.py",
    "mesh/table/boots.py",
    "mesh/papers.py",
    "mesh/dht/agenda.py",
    "mesh/dht/asks.py",
    "mesh/dht/buckets.py",
    "mesh/dht/events.py",
    "mesh/dht/kademlia.py",
    "mesh/dht/keys.py",
    "mesh/dht/lookup.py",
    "mesh/dht/lookups.py",
    "mesh/dht/messages.py",
    "mesh/dht/publishing.py",
    "mesh/dht/records.py",
    "mesh/dht/serving.py",
    "mesh/dht/store.py",
    "mesh/dht/upkeep.py",
    "mesh/pubsub.py",
    "mesh/publications.py",
    "mesh/recent.py",
    "mesh/wants.py",
    "mesh/effects.py",
    "mesh/wire.py",
    "mesh/links.py",
    "mesh/liveness.py",
    "mesh/dialing.py",
    "mesh/nat/answering.py",
    "mesh/nat/attempts.py",
    "mesh/nat/behaviour.py",
    "mesh/nat/candidates.py",
    "mesh/nat/datagrams.py",
    "mesh/nat/measuring.py",
    "mesh/nat/methods.py",
    "mesh/nat/path.py",
    "mesh/nat/paths.py",
    "mesh/nat/punching.py",
    "mesh/nat/rounds.py",
    "mesh/nat/routes.py",
    "mesh/nat/salvos.py",
    "mesh/nat_shell/exchange.py",
    "mesh/nat_shell/records.py",
    "mesh/nat_shell/witnesses.py",
    "mesh/nat_shell/words.py",
    "mesh/relay/binding.py",
    "mesh/relay/channels.py",
    "mesh/relay/fair_queue.py",
    "mesh/twins.py",
    "mesh/us.py",
    "mesh/session.py",
    "mesh/peering.py",
    "mesh/sessions.py",
    "mesh/messages.py",
    "mesh/credit.py",
    "mesh/bodies.py",
    "mesh/streams.py",
    "mesh/open_calls.py",
    "mesh/outbox.py",
    "mesh/rpc.py",
    "mesh/compression.py",
    "mesh/values.py",
    "mesh/skew.py",
    "mesh/trust.py",
    "mesh/admission.py",
    "mesh/renewal.py",
    "mesh/tokens.py",
    "objectstore/spans.py",
    "objectstore/ledger.py",
    "scheduler/resources.py",
    "scheduler/leases.py",
    "scheduler/claims.py",
    "scheduler/fencing.py",
    "scheduler/islands.py",
    "scheduler/names.py",
    "scheduler/rendezvous.py",
    "scheduler/restarts.py",
    "scheduler/views.py",
    "scheduler/admission.py",
    "scheduler/bundles.py",
    "scheduler/demand.py",
    "scheduler/groups.py",
    "scheduler/labels.py",
    "scheduler/load.py",
    "scheduler/pace.py",
    "scheduler/placement.py",
    "scheduler/reservations.py",
    "actors/submission.py",
    "actors/mailbox.py",
    "actors/supervision.py",
    "node/pool.py",
    "node/memory_monitor.py",
    "launch/plan.py",
    "launch/cluster.py",
]
IMPURE = {"asyncio", "mmap", "os", "random", "select", "selectors", "socket", "subprocess", "threading", "time"}

# `random.Random` is a type of argument; a core may name it and is handed one.
ALLOWED_IN_CORES = {("random", "Random")}

UNPICKLERS = {"pickle", "cloudpickle", "_pickle", "dill", "marshal", "shelve"}
VALUES = "lattica.actors.values"


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name: `from lattica.codec import frames` is (module "lattica.codec", name "frames")."""

    module: str
    name: str | None
    line: int
    at_load: bool  # in the module's own body, so that loading the module performs it


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The room of the house that `module` lies in: its first name below lattica, or the front door itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def is_type_checking(node: ast.AST) -> bool:
    if not isinstance(node, ast.If):
        return False
    return any(getattr(each, "id", getattr(each, "attr", "")) == "TYPE_CHECKING" for each in ast.walk(node.test))


@cache
def imports_of(path: Path) -> tuple[Import, ...]:
    """Every import of a file, absolute names, those inside functions too; blocks for type checkers alone left out."""
    here = module_name(path).split(".")
    package = here if path.name == "__init__.py" else here[:-1]

    def walk(node: ast.AST, at_load: bool) -> Iterator[Import]:
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield Import(alias.name, None, node.lineno, at_load)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package[: len(package) - level + 1] if level else []
                origin = ".".join([*base, *([module] if module else [])])
                for alias in names:
                    yield Import(origin, alias.name, node.lineno, at_load)
            case _ if is_type_checking(node):
                assert isinstance(node, ast.If)
                for child in node.orelse:
                    yield from walk(child, at_load)
            case _:
                inside = at_load and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                for child in ast.iter_child_nodes(node):
                    if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
                        yield from walk(child, inside)

    return tuple(walk(ast.parse(path.read_text(), str(path)), True))


@cache
def house() -> dict[str, Path]:
    """Module name -> file, for the whole package."""
    return {module_name(path): path for path in sorted(HOUSE.rglob("*.py"))}


def modules_named(found: Import) -> list[str]:
    """The modules of the house that an import loads by name: the module, and the imported name if that is one too."""
    names = [found.module] + ([f"{found.module}.{found.name}"] if found.name else [])
    inside = [name for name in names if name in house()]
    # `from lattica import codec` names codec; the front door is loaded by everything and says nothing.
    return [name for name in inside if name != "lattica"] if len(inside) > 1 else inside


def imports_with_rooms() -> Iterator[tuple[str, str, Import, str]]:
    """(module, room, import, room imported) for every import of one room of the house from another."""
    for module, path in house().items():
        for found in imports_of(path):
            for target in modules_named(found):
                if room_of(target) != room_of(module):
                    yield module, room_of(module), found, room_of(target)


def test_every_room_of_the_house_has_a_floor() -> None:
    rooms = {room_of(module) for module in house()}
    assert rooms <= FLOOR_OF.keys(), f"give a floor to {sorted(rooms - FLOOR_OF.keys())}"


def test_imports_run_down_and_neighbours_are_blind_to_each_other() -> None:
    wrong = [
        f"{module}:{found.line} (floor {FLOOR_OF[room]}) imports {found.module} (floor {FLOOR_OF[other]})"
        for module, room, found, other in imports_with_rooms()
        if FLOOR_OF[other] >= FLOOR_OF[room] and (room, other) not in NEIGHBOURS
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("core", PURE_CORES)
def test_a_protocol_core_has_no_clock_no_dice_and_no_descriptors(core: str) -> None:
    path = HOUSE / core
    if not path.exists():
        pytest.skip(f"{core} is not built yet")
    wrong = [
        f"{core}:{found.line} imports {found.module}"
        for found in imports_of(path)
        if found.module.split(".")[0] in IMPURE and (found.module, found.name) not in ALLOWED_IN_CORES
    ]
    assert not wrong, "\n".join(wrong)


def loaded_by(roots: list[str], elsewhere: str = "") -> dict[str, str]:
    """module -> who imports it, for everything of the house that `roots` load, imports inside functions included.
    elsewhere: a module that does its imports in another process.

    `lattica/__init__` is loaded before any module of the package, so it is among them by the imports of its own body.
    """
    parent = dict.fromkeys(roots, "the start")
    queue = list(roots)
    if "lattica" in house():
        parent.setdefault("lattica", "every module of the package")
        queue.append("lattica")
    while queue:
        module = queue.pop()
        if module == elsewhere:
            continue
        for found in imports_of(house()[module]):
            if module == "lattica" and not found.at_load:
                continue  # a name of the front door that is loaded on first use
            for target in modules_named(found):
                packages = [target.rsplit(".", up)[0] for up in range(target.count("."))]
                for name in packages:
                    if name in house() and name not in parent:
                        parent[name] = module
                        queue.append(name)
    return parent


def node_modules() -> list[str]:
    """Everything of the node, but not the zygote: that one hands over to the worker, who does unpickle."""
    return [name for name in house() if name.startswith("lattica.node.") and name != "lattica.node.zygote"]


def test_the_node_process_loads_nothing_that_unpickles() -> None:
    """The node speaks to strangers; that it cannot unpickle is checked over all it imports, not only its own files."""
    if not (HOUSE / "node").exists():
        pytest.skip("lattica/node is not built yet")
    parent = loaded_by(node_modules(), elsewhere="lattica.node.zygote")  # the node forks it before it imports anything
    wrong = [
        f"{module}:{found.line} imports {found.module} (loaded by {parent[module]})"
        for module in parent
        for found in imports_of(house()[module])
        if found.module.split(".")[0] in UNPICKLERS
    ]
    assert not wrong, "\n".join(wrong)
    assert VALUES not in parent, f"{VALUES} pickles user values and is loaded by {parent.get(VALUES)}"
