"""A run on disk: what the learner knows, and how far it has come."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Saved(NamedTuple):
    """What was kept."""

    learner: dict[str, Any]
    progress: dict[str, Any]


def save(path: Path, learner: dict[str, Any], progress: dict[str, Any]) -> None:
    """Keep it: the file is the old one or the new one, whenever this is interrupted."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    torch.save({"learner": learner, "progress": progress}, draft)
    os.replace(draft, path)


def load(path: Path) -> Saved | None:
    """What was kept there, None if nothing was. Unpickles no code: a file from elsewhere cannot run any."""
    if not path.exists():
        return None
    found = torch.load(path, weights_only=True)
    return Saved(found["learner"], found["progress"])
