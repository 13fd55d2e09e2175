"""Scenarios of failure: real server processes, a real Postgres, faults that a seed chooses.

`make test` runs those that are marked `short`, small and with seed 1; `make chaos` runs all of them in full size with a
seed of its own, and ends with a table. Every scenario asks for the invariants at least once: one that forgets to fails.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from tests.acceptance.conftest import (
    Serve,
    Settings,
    agent_name,
    caller,
    gate,
    gates,
    model,
    pytest_runtest_makereport,
    serve,
    settings,
)
from tests.chaos.callers import Callers
from tests.chaos.cluster import Cluster
from tests.chaos.gauge import Gauge
from tests.chaos.proxy import Proxy

__all__ = ["agent_name", "caller", "gate", "gates", "model", "pytest_runtest_makereport", "serve", "settings"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long ones to `make chaos`."""
    if config.getoption("--chaos-full"):
        return
    long = {item for item in items if (mark := item.get_closest_marker("scenario")) and not mark.kwargs.get("short")}
    if long:
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=list(long))


@pytest.fixture
def chaos(request: pytest.FixtureRequest) -> Iterator[Gauge]:
    """The scenario's dice and size, and what it counts for the table."""
    mark = request.node.get_closest_marker("scenario")
    assert mark is not None, "a test with faults is a scenario: mark it with its number"
    seed = request.config.getoption("--chaos-seed")
    assert isinstance(seed, int)
    full = bool(request.config.getoption("--chaos-full"))
    gauge = Gauge(mark.args[0], seed, random.Random(f"{seed} {request.node.name}"), full)
    began = time.monotonic()
    yield gauge
    seconds = time.monotonic() - began
    row = f"{gauge.number:>3} {request.node.name[:90]:90} {gauge.runs:>6} {gauge.kills:>6} {seconds:>7.1f}s"
    request.node.user_properties.append(("scenario", f"{row} {gauge.violations:>10}"))
    request.node.user_properties += [("measured", line) for line in gauge.measured]
    if full:
        assert gauge.checked, "the scenario never asked for the invariants"


@pytest.fixture
async def cluster(chaos: Gauge, serve: Serve, settings: Settings, database_url: str) -> Cluster:
    """Replicas of the scenario's own, on a database of its own; none is started yet."""
    return Cluster(
        chaos,
        serve,
        settings(TOOL_MODULES="tests.acceptance.tools,tests.chaos.tools,tests.chaos.gated_tools"),
        database_url,
    )


@pytest.fixture
async def callers(chaos: Gauge, cluster: Cluster) -> AsyncIterator[Callers]:
    """Callers of that cluster who go on wherever they can."""
    async with Callers(chaos, cluster) as callers:
        yield callers


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    """A way to the scenario's database that can be cut."""
    with Proxy(database_url) as proxy:
        yield proxy


@pytest.fixture
async def sql(database_url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A look into the scenario's database, past any proxy."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()
