"""Services as processes: two replicas that all tests of a test process share, and others that a test has for itself."""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.acceptance.client import Client
from tests.acceptance.gates import Gate, Gates
from tests.acceptance.model import Model
from tests.acceptance.service import Service
from tests.conftest import database_of

_numbers = itertools.count(1)

Serve = Callable[..., Service]
Caller = Callable[[Service], Client]
Settings = Callable[..., dict[str, str]]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two replicas on one database."""

    a: Service
    b: Service
    database_url: str


@pytest.fixture(scope="session")
def model() -> Iterator[Model]:
    model = Model()
    yield model
    model.close()


@pytest.fixture(scope="session")
def gates() -> Iterator[Gates]:
    gates = Gates(Path(tempfile.mkdtemp(prefix="agent-runner-gates-", dir="/tmp")))
    yield gates
    gates.remove()


@pytest.fixture(scope="session")
def settings(model: Model, gates: Gates, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The environment of a service that has the tests' model and tools, and what a test adds to it."""
    providers = tmp_path_factory.mktemp("providers") / "providers.yaml"
    # Tests that have nothing to do with each other make the model of a shared service fail, one after the other.
    providers.write_text("openai: {circuit_breaker: {failures: 1000}}\n", encoding="utf-8")

    def made(**more: str) -> dict[str, str]:
        return {
            "OPENAI_BASE_URL": model.base_url,
            "OPENAI_API_KEY": "a-key",
            "TOOL_MODULES": "tests.acceptance.tools",
            "GATES_DIR": str(gates.folder),
            "PROVIDERS_FILE": str(providers),
            "SHUTDOWN_DELAY_S": "0",  # no balancer has to notice
            **more,
        }

    return made


@pytest.fixture(scope="session")
def pair(postgres_server: str, settings: Settings) -> Iterator[Pair]:
    name = f"replicas_{os.getpid()}"
    asyncio.run(_execute(postgres_server, f"CREATE DATABASE {name} TEMPLATE template_runs"))
    url = database_of(postgres_server, name)
    started = [Service(settings(DATABASE_URL=url)) for _ in range(2)]
    try:
        a, b = (service.ready() for service in started)
        yield Pair(a, b, url)
    finally:
        for service in started:
            service.stop()
        asyncio.run(_execute(postgres_server, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
async def clients(pair: Pair, model: Model) -> AsyncIterator[tuple[Client, Client]]:
    """A caller of each of the two shared replicas. Whatever the test leaves under way is ended after it."""
    model.reset()
    async with Client(pair.a.url) as a, Client(pair.b.url) as b:
        yield a, b
        await _end_all_runs(a)
    await model.idle()


@pytest.fixture
async def client(clients: tuple[Client, Client]) -> Client:
    return clients[0]


@pytest.fixture
async def shared_database(pair: Pair) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A look into the database of the two shared replicas."""
    connection = await asyncpg.connect(pair.database_url)
    yield connection
    await connection.close()


@pytest.fixture
def serve(model: Model) -> Generator[Serve]:
    """Start services for this test alone; what is left of them is ended after it."""
    model.reset()
    started: list[Service] = []

    def start(settings: dict[str, str], folder: Path | None = None) -> Service:
        started.append(Service(settings, folder))
        return started[-1]

    yield start
    for service in reversed(started):
        service.stop()


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    """Make callers of services that the test has started."""
    async with AsyncExitStack() as stack:

        def call(service: Service) -> Client:
            client = Client(service.url)
            stack.push_async_callback(client.http.aclose)
            return client

        yield call


@pytest.fixture
def gate(gates: Gates) -> Gate:
    return gates.new()


@pytest.fixture
def agent_name() -> str:
    """A name that no other test has."""
    return f"agent_{next(_numbers)}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for service in Service.running.values():
            report.sections.append((f"service at {service.url or 'no port yet'}", service.told()))
    return report


async def _end_all_runs(client: Client) -> None:
    statuses = ["queued", "running", "paused", "waiting"]
    active = await client.http.get("/runs", params={"status": statuses, "limit": 100})
    for run in active.json()["items"]:
        await client.ask("cancel", run["run_id"])


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
