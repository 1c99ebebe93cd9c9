"""Kernels behind NATs: everything here makes network namespaces, and runs only with `-m nat` (`make test-nat`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from lattica.testing.netlab.fixture import netlab

__all__ = ["netlab"]

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.path.is_relative_to(HERE)]
    for item in ours:
        item.add_marker("nat")
    if "nat" not in config.option.markexpr:
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if item not in ours]
