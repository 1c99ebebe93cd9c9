"""How a command gets to a host: as a process of this machine, or by the system's ssh.

The system's ssh, since it has what users have set up: ~/.ssh/config, agents, bastions, hardware keys and known_hosts.
It never asks (BatchMode): a host whose key is not known is refused, as ssh does where nobody can say yes.

Secrets go by stdin alone: arguments and environments of processes can be seen.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lattica.errors import ConfigError, PeerUnreachableError
from lattica.launch.cluster import Host, Login
from lattica.node.paths import DATA_DIR_VARIABLE
from lattica.node.spawn import ROOT, SECRET_VARIABLES

CONNECT_S = 15
"""For ssh to reach a host: a bastion, a VPN and three handshakes over a poor line take five."""
ALIVE_S, ALIVE_MAX = 15, 4  # ssh gives up a host that is silent for a minute
SSH_FAILED = 255  # ssh's own exit code, by which it says that it did not come to run anything
OUTPUT_BYTES_MAX = 1 << 20  # of a command whose output we read
CHUNK_BYTES = 64 << 10
LINE_BYTES_MAX = 64 << 10  # longer ones are shown in parts
END_S = 2.0  # for a process that was told to end


@dataclass(frozen=True, slots=True)
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str


class Shell(Protocol):
    """Of one host. What its commands mean by LATTICA_DATA_DIR is the host's node."""

    def python(self, code: str, *words: str) -> list[str]:
        """The argv of a process of this machine that has the host's Python run this."""

    def command(self, words: Sequence[str]) -> list[str]:
        """The argv of a process of this machine that has the host run these words."""

    def environ(self) -> dict[str, str]:
        """The environment of that process."""

    def require(self, done: Done) -> None:
        """Raise PeerUnreachableError or ConfigError if the command never came to run."""


def shell_of(host: Host) -> Shell:
    """Over ssh, or for a host without a login on this machine."""
    return LocalShell(host.data_dir) if host.login is None else SshShell(host, host.login)


class LocalShell:
    """This machine, with this Python and this lattica."""

    def __init__(self, data_dir: str) -> None:
        self._data_dir = data_dir

    def python(self, code: str, *words: str) -> list[str]:
        return [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {ROOT!r}); {code}", *words]

    def command(self, words: Sequence[str]) -> list[str]:
        return list(words)

    def environ(self) -> dict[str, str]:
        environ = {name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES}
        path = os.pathsep.join((os.path.dirname(sys.executable), environ.get("PATH", os.defpath)))
        return environ | {DATA_DIR_VARIABLE: self._data_dir, "PATH": path}

    def require(self, done: Done) -> None:
        pass


class SshShell:
    """A host that ssh reaches. Its login shell is asked for nothing but `sh`."""

    def __init__(self, host: Host, login: Login) -> None:
        self._host, self._login = host, login

    def python(self, code: str, *words: str) -> list[str]:
        code = f"import sys; sys.path[:] = filter(None, sys.path); {code}"  # no file of the home folder stands in
        return self._ssh(f"exec {home_word(self._host.python)} -c {shlex.join((code, *words))}")

    def command(self, words: Sequence[str]) -> list[str]:
        return self._ssh(f"exec {shlex.join(words)}")

    def environ(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES}

    def require(self, done: Done) -> None:
        if done.code == SSH_FAILED:
            raise _ssh_error(self._login, done.err)

    def _ssh(self, script: str) -> list[str]:
        folder = os.path.dirname(self._host.python)
        lines = [f"export PATH={home_word(folder)}:$PATH"] if folder else []
        if self._host.data_dir:
            lines.append(f"export {DATA_DIR_VARIABLE}={home_word(self._host.data_dir)}")
        return [*ssh_command(self._login), f"exec sh -c {shlex.quote('; '.join((*lines, script)))}"]


def home_word(path: str) -> str:
    """A path as a word of sh: what begins with ~/ lies in the home folder there."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)


def ssh_command(login: Login) -> list[str]:
    """ssh and its options, up to the command. Of options that are given twice ssh takes the first: the user's."""
    given = dict(login.options)
    if login.port is not None:
        given.setdefault("Port", str(login.port))
    if login.user is not None:
        given.setdefault("User", login.user)
    if login.key is not None:
        given |= {"IdentityFile": os.path.expanduser(login.key), "IdentitiesOnly": "yes"}
    ours = {"BatchMode": "yes", "ConnectTimeout": CONNECT_S, "ServerAliveInterval": ALIVE_S}
    ours |= {"ServerAliveCountMax": ALIVE_MAX}
    words = ["ssh", "-T"]
    for name, value in (*given.items(), *ours.items()):
        words += ["-o", f"{name}={value}"]
    return [*words, "--", login.host.strip("[]")]


def require_ssh() -> None:
    """Raise ConfigError if this machine has no ssh."""
    if shutil.which("ssh") is None:
        raise ConfigError("this machine has no `ssh`", do_next="install OpenSSH's client")


def by_hand(login: Login) -> str:
    """What a person types to see the same."""
    words = ["ssh"]
    words += ["-p", str(login.port)] if login.port else []
    words += ["-i", login.key] if login.key else []
    return shlex.join([*words, f"{login.user}@{login.host}" if login.user else login.host])


def _ssh_error(login: Login, said: str) -> PeerUnreachableError:
    """Why ssh did not get there, and what to do."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else "it said nothing"
    for sign, what, do_next in (
        (
            "IDENTIFICATION HAS CHANGED",
            "the key of the host is another than in known_hosts",
            "somebody may stand between; if the host was installed anew, `ssh-keygen -R` the old key, compare the new",
        ),
        (
            "Host key verification failed",
            "the key of the host is not in known_hosts",
            f"log in once by hand and compare the fingerprint: {by_hand(login)}",
        ),
        (
            "Permission denied",
            "the host does not let this user in",
            f"look at `user` and `key`, or load the key (`ssh-add`), until this works by itself: {by_hand(login)}",
        ),
        ("Connection refused", "nobody listens for ssh there", "look at `port`, and whether sshd runs on the host"),
        ("Could not resolve", "the name is not known", "look at `host`, or put it into ~/.ssh/config"),
        ("timed out", "it does not answer", "look whether the machine is on, and at firewalls"),
    ):
        if sign in said:
            return PeerUnreachableError(f"{what} (ssh: {last})", do_next=do_next)
    return PeerUnreachableError(f"ssh did not get there: {last}", do_next=f"try by hand: {by_hand(login)}")


# -- processes -------------------------------------------------------------------------------------------------------


async def run(shell: Shell, argv: Sequence[str], *, timeout_s: float, said: str = "") -> Done:
    """Run it to its end. said: what it reads on stdin. Raises PeerUnreachableError if it takes longer."""
    process = await _spawn(shell, argv, reads=bool(said))
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate(said.encode() if said else None)
    except TimeoutError:
        raise PeerUnreachableError(
            f"no answer within {timeout_s:g} s", do_next="try again; look at the machine's load and its network"
        ) from None
    finally:
        await _end(process)
    code = process.returncode if process.returncode is not None else -1
    done = Done(code, out[:OUTPUT_BYTES_MAX].decode(errors="replace"), err[-OUTPUT_BYTES_MAX:].decode(errors="replace"))
    shell.require(done)
    return done


async def stream(
    shell: Shell, argv: Sequence[str], show: Callable[[str], None], show_err: Callable[[str], None]
) -> int:
    """Run it to its end, line by line; its exit code, as a shell has it."""
    process = await _spawn(shell, argv, reads=False)
    assert process.stdout is not None and process.stderr is not None
    try:
        await asyncio.gather(_lines(process.stdout, show), _lines(process.stderr, show_err))
        code = await process.wait()
    finally:
        await _end(process)
    return code if code >= 0 else 128 - code


async def _spawn(shell: Shell, argv: Sequence[str], *, reads: bool) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    try:
        return await asyncio.create_subprocess_exec(
            *argv,
            stdin=pipe if reads else asyncio.subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            env=shell.environ(),
        )
    except OSError as error:
        raise ConfigError(f"{argv[0]} cannot be run: {error.strerror}") from error


async def _end(process: asyncio.subprocess.Process) -> None:
    """It has ended, whatever it takes."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        try:
            process.send_signal(number)
        except ProcessLookupError:
            pass
        try:
            async with asyncio.timeout(END_S):
                await process.wait()
        except TimeoutError:
            continue


async def _lines(pipe: asyncio.StreamReader, show: Callable[[str], None]) -> None:
    kept = b""
    while data := await pipe.read(CHUNK_BYTES):
        *lines, kept = (kept + data).split(b"\n")
        if len(kept) > LINE_BYTES_MAX:
            lines, kept = [*lines, kept], b""
        for line in lines:
            show(line.decode(errors="replace").rstrip("\r"))
    if kept:
        show(kept.decode(errors="replace"))
