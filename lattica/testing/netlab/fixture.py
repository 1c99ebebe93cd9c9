"""The pytest fixture `netlab`, a maker of labs that end with the test.

    from lattica.testing.netlab.fixture import netlab     # in a conftest.py

    def test_two_homes_meet(netlab):
        lab = netlab(sites={"a": "port-restricted", "b": "full-cone"})

`pytest -p lattica.testing.netlab.fixture` gives it without a conftest.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .errors import Unavailable
from .lab import Lab
from .machine import check


@pytest.fixture
def netlab() -> Iterator[Callable[..., Lab]]:
    """Takes Lab's arguments. Skips the test, with the reason, where the machine cannot run what it asks for."""
    with contextlib.ExitStack() as labs:

        def make(*args: Any, **options: Any) -> Lab:
            try:
                check()
                return labs.enter_context(Lab(*args, **options))
            except Unavailable as error:
                pytest.skip(error.reason)

        yield make
