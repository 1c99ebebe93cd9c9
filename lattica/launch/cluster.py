"""What a cluster's YAML file says, checked. docs/launch.md tells it for people.

Rules of this file: nothing here looks at the machine. Where a value is left out, `lattica start` decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lattica.launch.document import (
    Reader,
    Table,
    Value,
    amount,
    integer,
    list_of,
    mapping_of,
    open_document,
    text,
    word_of,
)

NODES_MAX = 64  # of one machine: each is a process with an object store of its own
HOSTS_MAX = 1024
NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,46}[A-Za-z0-9])?"
"""A cluster's name is a folder's and a label's, a host's a label's and a node's."""
NAME_WORDS = "a name of letters, digits, `.`, `_` and `-` (at most 48)"
LABEL_KEY = r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?"
LABEL_VALUE = rf"(?:{LABEL_KEY})?"
SIZE = r"(?i)\d+(\.\d+)?\s*([kmgt]?i?b?)"
CLUSTER_LABEL, HOST_LABEL = "lattica.cluster", "lattica.host"
"""On every node that `up` starts: the names of its cluster and of its host in the file."""
UNSAFE = {"stricthostkeychecking": ("no", "off"), "userknownhostsfile": ("/dev/null", "none")}
"""Options of ssh by which a host's key is not checked."""


@dataclass(frozen=True, slots=True)
class Start:
    """What `lattica start` is told. object_store_memory: as people write it, `4GiB`; None: not told."""

    num_cpus: float | None = None
    num_gpus: float | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    object_store_memory: str | None = None
    listen: str | None = None
    memory: int | None = None  # bytes; what the launcher tells nodes that share a machine

    def over(self, common: Start) -> Start:
        """This, and what `common` says where this says nothing; names of resources and labels add up."""
        return Start(
            common.num_cpus if self.num_cpus is None else self.num_cpus,
            common.num_gpus if self.num_gpus is None else self.num_gpus,
            {**common.resources, **self.resources},
            {**common.labels, **self.labels},
            self.object_store_memory or common.object_store_memory,
            self.listen or common.listen,
        )


@dataclass(frozen=True, slots=True)
class Login:
    """How ssh gets to a host; None: as ~/.ssh/config says. options: as of ssh_config(5)."""

    host: str
    port: int | None = None
    user: str | None = None
    key: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Host:
    """A place for one node. login: None for this machine; data_dir: "" for the usual one of that machine."""

    name: str
    start: Start
    login: Login | None = None
    python: str = "python3"
    data_dir: str = ""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The whole file. template: what an ssh host has that the file does not tell apart; for hosts found by name."""

    name: str
    file: str
    provider: str
    hosts: tuple[Host, ...]
    setup: tuple[str, ...] = ()
    template: Host | None = None

    def __repr__(self) -> str:
        return f"<Cluster {self.name}: {self.provider}, {len(self.hosts)} hosts>"

    @property
    def warnings(self) -> list[str]:
        """What the file switches off that keeps the user safe."""
        unsafe = {
            f"{option}={value}"
            for host in self.hosts
            for option, value in (host.login.options if host.login else {}).items()
            if value.lower() in UNSAFE.get(option.lower(), ())
        }
        return [
            f"the keys of hosts are not verified ({option}): somebody between you and a host can take the ticket"
            for option in sorted(unsafe)
        ]


def read_cluster(file: str) -> Cluster:
    """Raises ConfigError, which begins with file:line:column, for the first thing that cannot be."""
    table = Table(open_document(file))
    name = table.take("name", text(NAME_WORDS, NAME))
    hosts, template = table.take("provider", _provider)
    common = table.take("start", _start if template else _local_start, Start())
    setup = table.take("setup", list_of(text("a command")) if template else _no_setup, [])
    table.close()
    hosts = tuple(replace(host, start=host.start.over(common)) for host in hosts)
    if template is None:
        return Cluster(name, file, "local", hosts)
    return Cluster(name, file, "ssh", hosts, tuple(setup), replace(template, start=common))


def _no_setup(value: Value) -> list[str]:
    value.fail("a local cluster runs in this very environment and has no setup", "leave it out")


def _provider(value: Value) -> tuple[list[Host], Host | None]:
    """The hosts; and for ssh, what one has that says nothing of itself."""
    table = Table(value)
    kind = table.take("type", word_of("local", "ssh"))
    return _local(table) if kind == "local" else _ssh(table)


def _local(table: Table) -> tuple[list[Host], None]:
    nodes, start = table.take("nodes", integer(1, NODES_MAX), 1), _take_start(table, _no_listen)
    table.close()
    return [Host(f"node-{number}", start) for number in range(nodes)], None


def _ssh(table: Table) -> tuple[list[Host], Host]:
    login = _take_login(table, Login(""))
    template = Host("", Start(), login, table.take("python", PATH, "python3"), table.take("data_dir", PATH, ""))
    seen: dict[str, str] = {}

    def host(value: Value) -> Host:
        found = _host(value, template)
        if found.name in seen:
            value.fail(
                f"two hosts are called {found.name}, the first at {seen[found.name]}",
                "give one of them a `name`, and a `data_dir` if both are one machine",
            )
        seen[found.name] = value.where()
        return found

    def some(value: Value) -> list[Host]:
        hosts = list_of(host)(value)
        if not 1 <= len(hosts) <= HOSTS_MAX:
            value.fail(f"expected 1 to {HOSTS_MAX} hosts, found {len(hosts)}")
        return hosts

    hosts = table.take("hosts", some)
    table.close()
    return hosts, template


def _host(value: Value, template: Host) -> Host:
    """`gpu-1`, or a table that says more."""
    assert template.login is not None
    if isinstance(value.scalar(), str):
        address = ADDRESS(value)
        return replace(template, name=_name_of(value, address), login=replace(template.login, host=address))
    table = Table(value)
    address = table.take("host", ADDRESS)
    name = table.take("name", text(NAME_WORDS, NAME), None) or _name_of(value, address)
    found = Host(
        name,
        _take_start(table, LISTEN),
        _take_login(table, replace(template.login, host=address)),
        table.take("python", PATH, template.python),
        table.take("data_dir", PATH, template.data_dir),
    )
    table.close()
    return found


def _name_of(value: Value, address: str) -> str:
    if re.fullmatch(NAME, address) is None:
        value.fail(f"{address!r} cannot be a node's name", "write `{host: ADDRESS, name: NAME}`")
    return address


def _take_login(table: Table, login: Login) -> Login:
    """What stands there, over `login`."""
    return replace(
        login,
        port=table.take("port", integer(1, 65535), login.port),
        user=table.take("user", text("a user's name", r"[A-Za-z0-9_][^\s@:]*"), login.user),
        key=table.take("key", PATH, login.key),
        options={**login.options, **table.take("options", OPTIONS, {})},
    )


def _take_start(table: Table, listen: Reader[str]) -> Start:
    return Start(
        table.take("num_cpus", amount, None),
        table.take("num_gpus", amount, None),
        table.take("resources", mapping_of(amount, "resource's name", r"\S+"), {}),
        table.take("labels", mapping_of(_label, "label", LABEL_KEY), {}),
        table.take("object_store_memory", _size, None),
        table.take("listen", listen, None),
    )


def _start(value: Value, listen: Reader[str] | None = None) -> Start:
    table = Table(value)
    start = _take_start(table, listen or LISTEN)
    table.close()
    return start


def _local_start(value: Value) -> Start:
    return _start(value, _no_listen)


def _no_listen(value: Value) -> str:
    value.fail("nodes of a local cluster listen on 127.0.0.1, each at a port of its own", "leave it out")


def _label(value: Value) -> str:
    """`gpu: 3090` is a number to YAML, and a label's text to whoever wrote it."""
    found = value.scalar()
    if isinstance(found, bool) or not isinstance(found, str | int | None):
        value.expected("a label's text, in quotes")
    words = "" if found is None else str(found)
    if re.fullmatch(LABEL_VALUE, words) is None:
        value.expected("a label of letters, digits, `.`, `_`, `/` and `-`, at most 63")
    return words


def _size(value: Value) -> str:
    found = value.scalar()
    if isinstance(found, bool) or not isinstance(found, int | str) or not re.fullmatch(SIZE, str(found)):
        value.expected("a size like 4GiB, 500MB or 1048576")
    return str(found)


def _option(value: Value) -> str:
    """`yes` is true to YAML, and a word to ssh."""
    found = value.scalar()
    if isinstance(found, bool):
        return "yes" if found else "no"
    if not isinstance(found, str | int) or "\n" in str(found):
        value.expected("an option's value, as in ssh_config(5)")
    return str(found)


# No address or path may look like an option to ssh.
ADDRESS = text("a host's name or address, without user and port", r"[A-Za-z0-9\[:_][^\s@/]*")
LISTEN = text(
    "HOST:PORT, :PORT or none, with a port that stays: members look for each other where they were",
    r"none|\S*:[1-9]\d{0,4}",
)
PATH = text("a path", r"[^\s-][^\n]*")
OPTIONS = mapping_of(_option, "option of ssh", r"[A-Za-z]+")
