"""How many connections a process may have: each is a file to the kernel, and users' shells allow few."""

from __future__ import annotations

import contextlib
import resource

WANTED = 65_536
"""One for each worker and actor that this process talks to; the usual limit of 1,024 is the kernel's least. As Ray."""


def allow_descriptors() -> None:
    """Raise this process's own limit, as far as the machine's owner lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
