"""A systemd unit of the user's that runs the node: what stands in it, where it lies, and what to do with it."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence

from lattica.errors import ConfigError
from lattica.node import paths

MAIN = "from lattica.cli.main import main; main()"
GRACE_S = 30.0  # of the node, unless said otherwise
STOP_MORE_S = 35  # that systemd waits beyond the grace: objects are handed over, workers end


def unit_name(data_dir: str) -> str:
    """`lattica.service` for the usual data directory, and one of its own for each other."""
    usual = paths.data_dir(None, {name: text for name, text in os.environ.items() if name != paths.DATA_DIR_VARIABLE})
    if os.path.realpath(data_dir) == os.path.realpath(usual):
        return "lattica.service"
    return f"lattica-{re.sub(r'[^A-Za-z0-9_.-]+', '-', data_dir.strip('/'))[-60:]}.service"


def unit_path(data_dir: str, environ: Mapping[str, str] = os.environ) -> str:
    """Where systemd looks for it."""
    home = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(home, "systemd", "user", unit_name(data_dir))


def unit_text(data_dir: str, options: Sequence[str], grace_s: float | None) -> str:
    """The unit. options: words for `lattica start`."""
    command = os.path.join(os.path.dirname(sys.executable), "lattica")
    words = [command] if os.access(command, os.X_OK) else [sys.executable, "-P", "-c", MAIN]
    line = " ".join(_quoted(word) for word in [*words, "start", "--block", "--data-dir", data_dir, *options])
    stop_s = int((GRACE_S if grace_s is None else grace_s) + STOP_MORE_S)
    return f"""\
# Written by `lattica start --install-service`.
[Unit]
Description=lattica node ({data_dir})
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
ExecStart={line}
# SIGTERM drains the node: tasks of others end, and objects that others need are handed over.
KillMode=mixed
TimeoutStopSec={stop_s}
Restart=on-failure
RestartSec=5
# Each worker has a few files open, and a mesh some hundred connections.
LimitNOFILE=524288

[Install]
WantedBy=default.target
"""


def install(data_dir: str, text: str) -> list[str]:
    """Write it; lines that say what to do now. Raises ConfigError if it cannot be written."""
    path = unit_path(data_dir)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}", do_next="print it with --print, and put it there yourself"
        ) from error
    return [f"{path} is written; nothing has been started", *advice(data_dir)]


def advice(data_dir: str) -> list[str]:
    """What to do with the unit."""
    name = unit_name(data_dir)
    return [
        f"  begin     systemctl --user daemon-reload && systemctl --user enable --now {name}",
        "  at boot   loginctl enable-linger    # else it begins when you log in, and ends when you log out",
        f"  look      systemctl --user status {name}; journalctl --user -u {name}",
        f"  remove    systemctl --user disable --now {name} && rm {shlex.quote(unit_path(data_dir))}",
    ]


def _quoted(word: str) -> str:
    """As systemd.service(5) reads a command line."""
    word = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$").replace('"', '\\"')
    return f'"{word}"' if re.search(r"[\s'\"]", word) or not word else word
