"""What a node says of its key, in words: the same for `start`, `status` and `doctor`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GUIDE = "docs/limits.md"


def warning(protection: Mapping[str, Any]) -> str:
    """One sentence about what is missing, from `key_protection` of a node's status; "" if nothing is.

    A node of another release may say nothing, and then neither do we.
    """
    if not protection or (protection.get("mounts") and protection.get("landlock")):
        return ""
    reason = protection.get("reason") or "no reason is known"
    if protection.get("mounts"):
        return f"tasks are kept from this node's key by mounts alone ({reason}; see {GUIDE})"
    return f"tasks can read this node's key ({reason}; see {GUIDE})"
