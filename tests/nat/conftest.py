"""Kernels behind NATs: everything here makes network namespaces, and runs only with `-m nat` (`make test-nat`); what
takes long only with `-m "nat and slow"`."""

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
    for marker in ("nat", "slow"):
        if marker not in config.option.markexpr:
            others = {item for item in ours if item.get_closest_marker(marker)}
            config.hook.pytest_deselected(items=list(others))
            items[:] = [item for item in items if item not in others]
