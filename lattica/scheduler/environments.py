"""What workers have around them beside the machine, as values: read, merged, keyed, told to a node.

    runtime_env ── read() ──► Wanted ── merged(parent, wanted, packages) ──► Environment ── key_of() ──► 16 bytes

An environment belongs to a job, or to tasks and actors of it. Theirs is laid over that of whoever calls them, as Ray
does: variables one by one, every other field as a whole. Nodes tell environments apart by their content alone: paths
and time limits do not count. A node believes nothing that it is told: `decode` and `decode_installs` bound all lengths.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from lattica.errors import ConfigError, RemoteProtocolError
from lattica.errors.base import one_of

KEYS = ("env_vars", "working_dir", "py_modules", "excludes", "pip", "uv", "config")
INSTEAD = {
    "conda": "start the node inside that conda environment, or name the packages in 'pip'",
    "container": "start the node inside the container: its workers are in it, too",
    "image_uri": "start the node inside the container: its workers are in it, too",
    "java_jars": "lattica runs Python only",
    "py_executable": "workers run the program's own interpreter; start the program with the other one",
    "worker_process_setup_hook": "call it at the beginning of the task, or in the actor's constructor",
    "nsight": "start the profiler around `lattica start`",
    "_nsight": "start the profiler around `lattica start`",
    "rocprof_sys": "start the profiler around `lattica start`",
    "_rocprof_sys": "start the profiler around `lattica start`",
}
"""Of Ray's, what is not to be had here, and what to do."""
IGNORED = ("_ray_release", "_ray_commit", "_inject_current_ray")
WORKING_DIR, PY_MODULE = "working_dir", "py_module"
PIP, UV = "pip", "uv"
LOADED = ("LD_", "MALLOC_", "GLIBC_")
LOADED_BY_PYTHON = frozenset({
    "PYTHONDEVMODE", "PYTHONFAULTHANDLER", "PYTHONHASHSEED", "PYTHONINTMAXSTRDIGITS", "PYTHONMALLOC", "PYTHONOPTIMIZE",
    "PYTHONTRACEMALLOC", "PYTHONUTF8", "PYTHONWARNINGS",
})  # fmt: skip
"""Beginnings, and names, of variables that are read when a program is loaded, and never again: a fork is too late."""
OPTIONS = {PIP: "pip_install_options", UV: "uv_pip_install_options"}  # Ray's names
PACKAGES_MAX = 32  # folders and modules
VARIABLES_MAX_CHARS = 64 << 10
REQUIREMENTS_MAX, OPTIONS_MAX = 1000, 64
LINE_MAX_CHARS = 4096  # of one requirement or option
ENVIRONMENT_MAX_BYTES = 512 << 10  # as it is told to a node: variables and requirements fit four times
TIMEOUT_S = 600.0  # for packages to be installed; Ray's default
FILES_DEPTH_MAX = 8  # files of requirements that name files of requirements
KEY_BYTES = 16
_VARIABLE = re.compile(r"\$(?:(?P<bare>[A-Za-z0-9_]+)|\{(?P<braced>[^{}]*)\})")
_NAMES_FILE = re.compile(r"(?P<kind>-r|--requirement|-c|--constraint)(\s+|\s*=\s*)(?P<path>\S+)")
_CID_CHARS, _PATH_CHARS = 128, 4096

_Line = Annotated[str, msgspec.Meta(max_length=LINE_MAX_CHARS)]


class Travels(msgspec.Struct, array_like=True, frozen=True):
    """A package of a job. path: where its files lie on this machine, "" on the wire."""

    kind: Annotated[str, msgspec.Meta(max_length=32)]
    cid: Annotated[str, msgspec.Meta(max_length=_CID_CHARS)]
    path: Annotated[str, msgspec.Meta(max_length=_PATH_CHARS)] = ""


class Installs(msgspec.Struct, array_like=True, frozen=True):
    """Packages of an index, for a virtual environment. tool: PIP or UV. version: of the tool, like "==24.0"; "": any.
    options: of its `install`. check: whether it is asked afterwards if they go together."""

    tool: Annotated[str, msgspec.Meta(pattern=r"^(pip|uv)\Z")]
    packages: Annotated[tuple[_Line, ...], msgspec.Meta(max_length=REQUIREMENTS_MAX)]
    version: _Line = ""
    options: Annotated[tuple[_Line, ...], msgspec.Meta(max_length=OPTIONS_MAX)] = ()
    check: bool = False

    def __repr__(self) -> str:
        return f"<Installs: {len(self.packages)} requirements by {self.tool}>"  # an index's URL may have a password


class Environment(msgspec.Struct, frozen=True):
    """Of a job, or of tasks and actors of it. shelf: the folder of its driver that holds the packages. timeout_s: for
    `installs`; -1: any."""

    env_vars: dict[str, str] = {}
    packages: Annotated[list[Travels], msgspec.Meta(max_length=PACKAGES_MAX)] = []
    shelf: Annotated[str, msgspec.Meta(max_length=_PATH_CHARS)] = ""
    installs: Installs | None = None
    timeout_s: float = TIMEOUT_S
    eager: bool = True  # whether they are installed before the first task asks

    def __repr__(self) -> str:
        return f"<Environment: {len(self.env_vars)} variables, {len(self.packages)} packages, {self.installs!r}>"

    def paths(self) -> list[str]:
        """What stands at the front of the workers' sys.path for it."""
        return [package.path for package in self.packages if package.path]

    def cwd(self) -> str:
        """The working directory; "" if it says nothing."""
        return next((package.path for package in self.packages if package.kind == WORKING_DIR), "")


NOTHING = Environment()


class Wanted(msgspec.Struct, frozen=True):
    """A `runtime_env`, checked. None: it does not say."""

    env_vars: dict[str, str] = {}
    working_dir: str | None = None
    py_modules: tuple[Any, ...] | None = None
    excludes: tuple[str, ...] = ()
    installs: Installs | None = None
    timeout_s: float | None = None
    eager: bool | None = None


# -- what people give ------------------------------------------------------------------------------------------------


def plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same without what says nothing, with requirements read from their file: it means the same anywhere.

    Raises ConfigError for what cannot be had.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"runtime_env must be a dict, not {type(given).__name__}")
    found = {name: value for name, value in given.items() if value is not None and name not in IGNORED}
    for name in found:
        if name in INSTEAD:
            raise ConfigError(f"runtime_env has {name!r}, which lattica does not have", do_next=INSTEAD[name])
        if name not in KEYS:
            raise ConfigError(f"runtime_env has no field {name!r}", do_next=one_of(str(name), KEYS, "it takes"))
    for name, parse in PARSERS.items():
        if name in found:
            found[name] = parse(found[name])
    found = {name: value for name, value in found.items() if value is not None}
    if PIP in found and UV in found:
        raise ConfigError("runtime_env has both 'pip' and 'uv'", do_next="name all packages in one of them")
    return found


def read(given: Mapping[str, Any]) -> Wanted:
    """Raises ConfigError as `plain` does."""
    found = plain(given)
    config = found.get("config") or {}
    installs = _installs(PIP, found[PIP]) if PIP in found else _installs(UV, found[UV]) if UV in found else None
    return Wanted(
        found.get("env_vars") or {},
        found.get("working_dir"),
        tuple(found["py_modules"]) if "py_modules" in found else None,
        tuple(found.get("excludes") or ()),
        installs,
        config.get("setup_timeout_seconds"),
        config.get("eager_install"),
    )


def parse_env_vars(value: Any) -> dict[str, str] | None:
    """Raises ConfigError."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"env_vars of runtime_env must be a dict of strings, not {type(value).__name__}")
    for name, text in value.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise ConfigError(
                f"env_vars of runtime_env must be a dict of strings, and {name!r:.80} is {type(text).__name__}",
                do_next="variables are texts: write it as one",
            )
    if any(not name or "=" in name or "\0" in name + text for name, text in value.items()):
        raise ConfigError("env_vars of runtime_env has a name or value that no variable can have")
    if sum(len(name) + len(text) for name, text in value.items()) > VARIABLES_MAX_CHARS:
        raise ConfigError(f"env_vars of runtime_env has more than {VARIABLES_MAX_CHARS} characters")
    return dict(value) or None


def parse_working_dir(value: Any) -> str | None:
    """Raises ConfigError."""
    if not isinstance(value, str | os.PathLike):
        raise ConfigError("working_dir of runtime_env must be the path of a folder")
    path = os.fspath(value)
    if not isinstance(path, str) or "://" in path:
        raise ConfigError(
            f"working_dir={path!r:.80} of runtime_env is no folder of this machine",
            do_next="download it, and name the folder: it travels by itself",
        )
    return path or None


def parse_py_modules(value: Any) -> list[Any] | None:
    """Raises ConfigError."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) >= PACKAGES_MAX:
        raise ConfigError(f"py_modules of runtime_env must be a list of at most {PACKAGES_MAX - 1} folders or modules")
    for module in value:
        if isinstance(module, str) and "://" in module:
            raise ConfigError(
                f"{module!r:.80} of py_modules is no path of this machine",
                do_next="download it, and name the folder or file: it travels by itself",
            )
    return list(value)


def parse_excludes(value: Any) -> list[str] | None:
    """Raises ConfigError."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(one, str) for one in value):
        raise ConfigError("excludes of runtime_env must be a list of patterns, as in a .gitignore file")
    if len(value) > REQUIREMENTS_MAX or any(len(one) > LINE_MAX_CHARS for one in value):
        raise ConfigError(f"excludes of runtime_env has more than {REQUIREMENTS_MAX} patterns, or one too long")
    return list(value) or None


def parse_pip(value: Any) -> dict[str, Any] | None:
    """`pip` as a dict; None if it names no package. Raises ConfigError."""
    return _parse_installs(PIP, value)


def parse_uv(value: Any) -> dict[str, Any] | None:
    """`uv` likewise. Raises ConfigError."""
    return _parse_installs(UV, value)


def parse_config(value: Any) -> dict[str, Any]:
    """Raises ConfigError."""
    if not isinstance(value, Mapping):
        raise ConfigError("config of runtime_env must be a dict, or a RuntimeEnvConfig")
    timeout, eager = value.get("setup_timeout_seconds", TIMEOUT_S), value.get("eager_install", True)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not (timeout > 0 or timeout == -1):
        raise ConfigError(f"setup_timeout_seconds={timeout!r:.80} must be seconds, or -1 for any time")
    if not isinstance(eager, bool):
        raise ConfigError(f"eager_install={eager!r:.80} must be True or False")
    known = {"setup_timeout_seconds": timeout, "eager_install": eager}
    return {name: found for name, found in known.items() if name in value}


PARSERS = {
    "env_vars": parse_env_vars,
    "working_dir": parse_working_dir,
    "py_modules": parse_py_modules,
    "excludes": parse_excludes,
    PIP: parse_pip,
    UV: parse_uv,
    "config": parse_config,
}


def _parse_installs(tool: str, value: Any) -> dict[str, Any] | None:
    """The three ways to say it, as a dict."""
    fields = (
        "packages",
        f"{tool}_check",
        f"{tool}_version",
        f"{tool}_pip_install_options"[-19 if tool == PIP else 0 :],
    )
    if isinstance(value, str | os.PathLike):
        value = {"packages": value}
    elif isinstance(value, list | tuple):
        value = {"packages": list(value)}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{tool} of runtime_env must be a list, a file of requirements, or a dict")
    if unknown := [name for name in value if name not in fields]:
        raise ConfigError(f"{tool} of runtime_env has no field {unknown[0]!r}", do_next=f"it takes {', '.join(fields)}")
    if "packages" not in value:
        raise ConfigError(f"{tool} of runtime_env names no packages", do_next='add "packages": [...]')
    _, check, version, options = fields
    packages = value["packages"]
    lines = _requirements(tool, packages) if isinstance(packages, str | os.PathLike) else packages
    _check_lines(f"packages of {tool}", lines, REQUIREMENTS_MAX)
    _check_lines(f"{options} of {tool}", value.get(options) or [], OPTIONS_MAX)
    if not isinstance(value.get(check, False), bool):
        raise ConfigError(f"{check} of runtime_env must be True or False")
    if not isinstance(value.get(version, ""), str) or len(value.get(version, "")) > LINE_MAX_CHARS:
        raise ConfigError(f"{version} of runtime_env must be a string like '==24.0'")
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")))
    if not found:
        return None
    said = {name: value[name] for name in (version, options) if value.get(name)}
    return {"packages": found, check: value.get(check, False), **said}


def _requirements(tool: str, path: str | os.PathLike[str], depth: int = 0) -> list[str]:
    """The lines of a file, with those of the files that it names: they are not where they are installed."""
    if depth > FILES_DEPTH_MAX:
        raise ConfigError(f"{tool} of runtime_env: {path} names itself")
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read(REQUIREMENTS_MAX * LINE_MAX_CHARS).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{tool} of runtime_env names a file that cannot be read: {error}") from error
    found: list[str] = []
    for line in lines:
        match = _NAMES_FILE.fullmatch(line.strip())
        if match is None:
            found.append(line)
            continue
        other = os.path.abspath(os.path.join(os.path.dirname(path), match["path"]))
        found += [f"-c {other}"] if match["kind"] in ("-c", "--constraint") else _requirements(tool, other, depth + 1)
    return found


def _check_lines(what: str, lines: Any, most: int) -> None:
    if not isinstance(lines, list | tuple) or not all(isinstance(line, str) for line in lines):
        raise ConfigError(f"{what} must be a list of strings")
    if len(lines) > most or any(len(line) > LINE_MAX_CHARS or "\0" in line or "\n" in line for line in lines):
        raise ConfigError(f"{what} has more than {most} entries, or one that is no line")


def _installs(tool: str, said: Mapping[str, Any]) -> Installs:
    version, options, check = said.get(f"{tool}_version", ""), said.get(OPTIONS[tool]) or (), said[f"{tool}_check"]
    return Installs(tool, tuple(said["packages"]), version, tuple(options), check)


# -- variables -------------------------------------------------------------------------------------------------------


def acts_at_load(name: str) -> bool:
    """Whether a variable of this name is read when a program is loaded, and never again."""
    return name.startswith(LOADED) or name in LOADED_BY_PYTHON


def at_load(variables: Mapping[str, str], around: Mapping[str, str]) -> dict[str, str]:
    """Those of them, with what they name replaced."""
    if not any(map(acts_at_load, variables)):
        return {}
    return {name: value for name, value in expanded(variables, around).items() if acts_at_load(name)}


def expanded(variables: Mapping[str, str], around: Mapping[str, str]) -> dict[str, str]:
    """With `$NAME` and `${NAME}` replaced by what stands around, or before them; `${NAME}` of nothing by nothing.

    As Ray does.
    """
    found: dict[str, str] = {}

    def value(match: re.Match[str]) -> str:
        name = match["braced"] or match["bare"]
        return found.get(name, around.get(name, "" if match["braced"] else match[0]))

    for name, text in variables.items():
        found[name] = _VARIABLE.sub(value, text)
    return found


# -- what comes of it ------------------------------------------------------------------------------------------------


def merged(parent: Environment, wanted: Wanted, packages: Sequence[Travels] = (), shelf: str = "") -> Environment:
    """What something has that wants this, and whose caller has `parent`. packages: of `wanted`'s folders."""
    replaced = {WORKING_DIR} if wanted.working_dir is not None else set()
    replaced |= {PY_MODULE} if wanted.py_modules is not None else set()
    kept = [package for package in parent.packages if package.kind not in replaced]
    found = sorted([*packages, *kept], key=lambda package: package.kind != WORKING_DIR)  # stable: modules as they came
    if len(found) > PACKAGES_MAX:
        raise ConfigError(
            f"runtime_env has {len(found)} folders and modules in all, at most {PACKAGES_MAX} are allowed"
        )
    variables = {**parent.env_vars, **wanted.env_vars}
    if sum(len(name) + len(text) for name, text in variables.items()) > VARIABLES_MAX_CHARS:
        raise ConfigError(f"env_vars of runtime_env and its caller's have more than {VARIABLES_MAX_CHARS} characters")
    return Environment(
        variables,
        found,
        shelf or parent.shelf,
        parent.installs if wanted.installs is None else wanted.installs,
        parent.timeout_s if wanted.timeout_s is None else float(wanted.timeout_s),
        parent.eager if wanted.eager is None else wanted.eager,
    )


def key_of(environment: Environment) -> bytes:
    """Its name by content: equal ones have equal keys on every machine."""
    return key_of_parts(
        environment.env_vars, [(package.kind, package.cid) for package in environment.packages], environment.installs
    )


def key_of_parts(env_vars: Mapping[str, str], packages: Sequence[tuple[str, str]], installs: Installs | None) -> bytes:
    """The same of an environment whose files are not here yet."""
    return _digest(_encoder.encode((sorted(env_vars.items()), list(packages), installs)))


def variant_of(job: bytes, key: bytes) -> bytes:
    """The id of what runs in another environment of this job: the same wherever it was thought of."""
    return _digest(b"variant" + job + key)


def _digest(data: bytes) -> bytes:
    import hashlib

    return hashlib.blake2b(data, digest_size=KEY_BYTES).digest()


def described(environment: Environment) -> dict[str, Any]:
    """As a `runtime_env` again, for people and for `RuntimeContext.runtime_env`."""
    said: dict[str, Any] = {}
    if environment.env_vars:
        said["env_vars"] = dict(environment.env_vars)
    if environment.cwd():
        said["working_dir"] = environment.cwd()
    if modules := [package.path for package in environment.packages if package.kind == PY_MODULE and package.path]:
        said["py_modules"] = modules
    if (installs := environment.installs) is not None:
        found: dict[str, Any] = {"packages": list(installs.packages), f"{installs.tool}_check": installs.check}
        if installs.version:
            found[f"{installs.tool}_version"] = installs.version
        if installs.options:
            found[OPTIONS[installs.tool]] = list(installs.options)
        said[installs.tool] = found
    if environment.timeout_s != TIMEOUT_S:
        said["config"] = {"setup_timeout_seconds": environment.timeout_s}
    return said


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Environment)
_installs_decoder = msgspec.msgpack.Decoder(Installs)


def encode(environment: Environment | Installs) -> bytes:
    """For a node."""
    return _encoder.encode(environment)


def decode(data: bytes) -> Environment:
    """What a client has told. Raises RemoteProtocolError."""
    if len(data) > ENVIRONMENT_MAX_BYTES:
        raise RemoteProtocolError(f"an environment of {len(data)} bytes; at most {ENVIRONMENT_MAX_BYTES} are allowed")
    try:
        found = _decoder.decode(data)
        parse_env_vars(found.env_vars)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ConfigError) as error:
        raise RemoteProtocolError(f"an environment cannot be read: {error}") from error
    return found


def decode_installs(data: bytes) -> Installs | None:
    """What another node has told; none if that is empty. Raises RemoteProtocolError."""
    if not data:
        return None
    if len(data) > ENVIRONMENT_MAX_BYTES:
        raise RemoteProtocolError(f"requirements of {len(data)} bytes; at most {ENVIRONMENT_MAX_BYTES} are allowed")
    try:
        return _installs_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"requirements cannot be read: {error}") from error
