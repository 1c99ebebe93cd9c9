"""The text of a ticket: where it is read from, and whether it is whole. What is inside is `tickets`' business.

    lat1 + base64url, without padding, of a payload and 4 bytes of its BLAKE3 (so that a cut ticket is known as one)

It is read from the environment, a file or stdin as well: arguments can be seen by every user of a machine. Blanks and
line ends in it are ignored, as mail programs add them. A command imports this file while its user waits, and hands the
text to a node, so it imports no cryptography.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Mapping
from typing import Protocol

from lattica.errors import ConfigError

VERSION = 1
PREFIX = f"lat{VERSION}"
VARIABLE = "LATTICA_TICKET"
TICKET_MAX_CHARS = 16 << 10  # ours have 2,000 to 3,000
CHECKSUM_BYTES = 4  # one mistyped ticket in 4 billion passes for a whole one, and then fails as a wrong one
ASK = "ask for a new one: `lattica ticket` on a node of the mesh"


class TextStream(Protocol):
    """What a ticket is read from: a file, or standard input."""

    def read(self, size: int, /) -> str: ...


def pack(data: bytes) -> str:
    """The string to paste."""
    return PREFIX + base64.urlsafe_b64encode(data + _checksum(data)).decode().rstrip("=")


def unpack(text: str) -> bytes:
    """What is inside. Raises ConfigError if the text is no ticket, cut, mistyped, or of a later release."""
    joined = "".join(text[: TICKET_MAX_CHARS + 1].split())
    found = re.match(r"lat(\d{1,4})", joined)  # the base64 of an array of up to 15 begins with a letter
    if found is None:
        raise ConfigError("that is not a ticket", do_next=f"paste all of it: a ticket begins with {PREFIX}")
    require_version(int(found[1]))
    if len(text) > TICKET_MAX_CHARS:
        raise ConfigError(f"a ticket has at most {TICKET_MAX_CHARS} characters", do_next="paste the ticket alone")
    try:
        raw = joined[len(PREFIX) :].encode("ascii")
        packed = base64.b64decode(raw + b"=" * (-len(raw) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        packed = b""
    data, checksum = packed[:-CHECKSUM_BYTES], packed[-CHECKSUM_BYTES:]
    if not data or _checksum(data) != checksum:
        raise ConfigError(
            "the ticket was cut or mistyped: its checksum does not match", do_next=f"copy it whole, or {ASK}"
        )
    return data


def read_text(given: str | None, environ: Mapping[str, str], stdin: TextStream) -> str | None:
    """The text that the user means: `given` is a ticket, a file with one, or "-" for stdin; without it, LATTICA_TICKET
    is one or a file with one. None if there is neither.

    Raises ConfigError, which never quotes what may be a secret.
    """
    where = given if given is not None else environ.get(VARIABLE, "").strip() or None
    if where is None:
        return None
    if given == "-":
        return _read_stream(stdin)
    if re.match(r"\s*lat\d", where) or not where.strip():
        return where
    return _read_file(where)


def require_version(version: int) -> None:
    """Raises ConfigError if this release does not read such tickets."""
    if version > VERSION:
        raise ConfigError(
            f"the ticket is of version {version}: it was made by a newer lattica",
            do_next="upgrade lattica here (`pip install -U lattica-mesh`), or ask for a ticket made by this release",
        )
    if version < VERSION:
        raise ConfigError("that is not a ticket", do_next=f"paste all of it: a ticket begins with {PREFIX}")


def _read_stream(stdin: TextStream) -> str:
    try:
        return stdin.read(TICKET_MAX_CHARS + 1)
    except UnicodeDecodeError:
        return ""  # and that is not a ticket


def _read_file(path: str) -> str:
    # A ticket whose beginning was cut off is no path, and must not be shown; base64 has neither of these two.
    name = f"{path!r:.80}" if "/" in path or "." in path else "what was given"
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(
                    f"{name} is not a file with a ticket", do_next="give the ticket, a file with it, or -"
                )
            return file.read(TICKET_MAX_CHARS + 1).decode("ascii", "replace")
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        why = error.strerror if isinstance(error, OSError) else "it cannot be a path"
        raise ConfigError(
            f"{name} is neither a ticket nor a file with one: {why}",
            do_next=f"paste all of it, from {PREFIX} on; give a file with it, or - and the ticket on stdin",
        ) from None  # its cause would quote the path


def _checksum(data: bytes) -> bytes:
    from blake3 import blake3

    return blake3(data).digest(CHECKSUM_BYTES)
