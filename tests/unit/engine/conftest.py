"""Properties are tried on the same examples every time, however busy the machine; `make chaos` tries more of them."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.unit.engine import simulation

MORE_RUNS = 10_000

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--chaos-full"):
        seed = config.getoption("--chaos-seed")
        assert isinstance(seed, int)
        simulation.choose(range(seed, seed + MORE_RUNS))
