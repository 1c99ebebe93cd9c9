"""Files that are kept to their owner: written whole or not at all, and distrusted when they are read."""

from __future__ import annotations

import os
import stat

from lattica.errors import ConfigError


def write_private(path: str, data: bytes) -> None:
    """Put a file of mode 0600 there, on disk before this returns; after a crash it is the old one or the new one."""
    draft = f"{path}.{os.getpid()}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    try:
        with open(os.open(draft, flags, 0o600), "wb") as file:
            os.fchmod(file.fileno(), 0o600)  # the draft of a crashed process of our pid may have another
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        remove(draft)
        raise
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # else the name may be lost, though the bytes are not
    finally:
        os.close(folder)


def read_private(path: str, max_bytes: int, what: str, remedy: str) -> bytes | None:
    """The file's bytes, at most `max_bytes` of them, after checking owner and mode of what was opened; None if there
    is none.

    what: what it is, for the message of the ConfigError if it is not ours or open to others; remedy: what to do, beside
    chmod, if others may have read it. Raises OSError as `open` does, also for a symbolic link.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise ConfigError(f"{what} {path} is not a file of yours", do_next=f"chown it to user {os.geteuid()}")
        if found.st_mode & 0o077:
            raise ConfigError(
                f"{what} {path} is open to others (mode {found.st_mode & 0o777:03o})",
                do_next=f"chmod 600 {path}; if somebody may have read it, {remedy}",
            )
        return file.read(max_bytes)


def remove(path: str) -> None:
    """No file is there now, whether there was one or not."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
