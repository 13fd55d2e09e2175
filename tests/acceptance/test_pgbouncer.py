"""Replicas with DATABASE_PREPARED=off: every promise holds without a session, prepared statements and LISTEN.

`direct` has Postgres itself behind DATABASE_URL; `pgbouncer` has PgBouncer in transaction mode with four server
connections for both replicas, and no other way to the database.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import httpx
import pytest

from app.db.connecting import Bounds
from app.db.database import Database
from tests.acceptance.client import Client, Json, an_agent, check_log, of_type
from tests.acceptance.conftest import Caller, Serve, Settings
from tests.acceptance.gates import Gate
from tests.acceptance.model import Model, calls
from tests.acceptance.pgbouncer import POOL_SIZE, PgBouncer, find_program
from tests.acceptance.questions import asked, finished, judged, look_up, rule
from tests.acceptance.service import PROGRAM, ROOT, START_S, Service
from tests.acceptance.waiting import DEADLINE_S, eventually
from tests.conftest import database_of
from tests.invariants import check_invariants
from tests.model_server import Reply

pytestmark = pytest.mark.xdist_group("pgbouncer")

WAYS = ["direct", *(["pgbouncer"] if find_program() is not None else [])]
DONE = Reply(text="Done.")
# Some words, and then nothing more.
HALF_AN_ANSWER = Reply(text=["This is ", "never "], finish_reason=None, usage=None, done=False, hold=True)
OBEYS_SETTINGS = {"model": "openai/obey", "tools": ["lookup", "calculate", "put"]}
OBEYS = {"name": "tester", **OBEYS_SETTINGS}
TWO_STEPS = '[[["lookup", {"word": "one"}], ["lookup", {"word": "two"}]], [["calculate", {"expression": "17 * 23"}]]]'

# What a client may have left on a server connection; these few settings are the pooler's own doing.
TRACES = """
    SELECT 'setting ' || name || ' = ' || setting FROM pg_settings WHERE source = 'session'
    AND name NOT IN ('client_encoding', 'application_name', 'DateStyle', 'TimeZone', 'standard_conforming_strings')
    UNION ALL SELECT 'prepared ' || statement FROM pg_prepared_statements
    UNION ALL SELECT 'listens to ' || pg_listening_channels()
    UNION ALL SELECT 'advisory lock' FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
"""

_numbers = itertools.count(1)


class Way:
    """How replicas get at the tests' server."""

    def __init__(self, pooler: PgBouncer | None) -> None:
        self._pooler = pooler

    def url(self, database_url: str) -> str:
        return database_url if self._pooler is None else self._pooler.url(database_url)

    async def traces(self, database_url: str) -> list[str]:
        """What was left on the server connections of the pooler; all of them are looked at."""
        if self._pooler is None:
            return []
        async with AsyncExitStack() as stack:
            connections: list[asyncpg.Connection[Any]] = []
            for _ in range(POOL_SIZE):  # each in a transaction of its own, and so on a connection of its own
                connections.append(await asyncpg.connect(self.url(database_url), statement_cache_size=0))
                stack.push_async_callback(connections[-1].close)
                await connections[-1].execute("BEGIN")
            return [row[0] for connection in connections for row in await connection.fetch(TRACES)]


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest, postgres_server: str) -> Iterator[Way]:
    program = find_program() if request.param == "pgbouncer" else None
    if program is None:
        yield Way(None)
        return
    pooler = PgBouncer(program, postgres_server)
    yield Way(pooler)
    pooler.stop()


@pytest.fixture(scope="module")
def database(postgres_server: str, way: Way) -> Iterator[str]:
    """A migrated database for the tests of one way, by its direct URL."""
    name = f"pooled_{os.getpid()}_{next(_numbers)}"
    asyncio.run(_execute(postgres_server, f"CREATE DATABASE {name} TEMPLATE template_runs"))
    yield database_of(postgres_server, name)
    asyncio.run(_execute(postgres_server, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="module")
def replicas(database: str, way: Way, settings: Settings) -> Iterator[tuple[Service, Service]]:
    started = [Service(settings(DATABASE_URL=way.url(database), DATABASE_PREPARED="off")) for _ in range(2)]
    try:
        a, b = (service.ready() for service in started)
        yield a, b
    finally:
        for service in started:
            service.stop()


@pytest.fixture
async def callers(replicas: tuple[Service, Service], model: Model) -> AsyncIterator[tuple[Client, Client]]:
    model.reset()
    async with Client(replicas[0].url) as a, Client(replicas[1].url) as b:
        yield a, b
    await model.idle()


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def check(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await check_invariants(connection)
    finally:
        await connection.close()


async def patiently(request: Callable[[], Awaitable[httpx.Response]]) -> Json:
    """The answer to a caller who comes again when told to: four connections are few for a hundred runs at once."""

    async def ask() -> httpx.Response | None:
        answer = await request()
        if answer.status_code == 503:
            assert int(answer.headers["Retry-After"]) > 0
            return None
        return answer

    answer = await eventually(ask, "a request to be answered")
    assert answer.is_success, answer.text
    return answer.json()


async def accepted(client: Client, body: Json, key: str) -> str:
    """Create a run; its id."""
    headers = {"Idempotency-Key": key}
    return (await patiently(lambda: client.http.post("/runs", json=body, headers=headers)))["run_id"]


async def test_many_runs_with_tools_complete_and_leave_nothing_on_the_connections_they_shared(
    callers: tuple[Client, Client], replicas: tuple[Service, Service], database: str, way: Way, agent_name: str
) -> None:
    """Seen to fail with a cache of prepared statements, with LISTEN through the pooler, and with a SET that is not
    LOCAL."""

    await callers[0].put_agent(agent_name, **OBEYS_SETTINGS)

    async def run(number: int) -> Json:
        here, there = callers[number % 2], callers[(number + 1) % 2]
        body = {"agent": agent_name, "input": TWO_STEPS, "thread_id": f"thread-{number % 40}"}
        run_id = await accepted(here, body, f"{agent_name}-{number}")
        return await patiently(lambda: there.http.get(f"/runs/{run_id}/wait", params={"timeout_s": DEADLINE_S}))

    done = await asyncio.gather(*(run(number) for number in range(100)))
    assert {one["status"] for one in done} == {"completed"}
    for one in done:
        outputs = [tool["output"] for tool in one["result"]["tool_executions"]]
        assert outputs == [{"word": "one", "letters": 3}, {"word": "two", "letters": 3}, outputs[2]]
        assert "391" in str(outputs[2])
    listed = await callers[0].http.get("/runs", params={"limit": 100})
    assert len(listed.json()["items"]) == 100
    await check(database)
    assert await way.traces(database) == []
    for service in replicas:
        assert service.stderr().count("event_bus_polling") + service.stdout().count("event_bus_polling") == 1


async def test_text_reaches_a_reader_at_the_other_replica_while_the_answer_lasts_and_so_does_a_cancel(
    callers: tuple[Client, Client], model: Model
) -> None:
    a, b = callers
    model.script(HALF_AN_ANSWER)
    run_id = (await a.create(agent=an_agent(), input="Go."))["run_id"]
    seen: list[Json] = []
    async with b.stream(run_id) as events:
        async for sent in events:
            seen.append(sent.event)
            if sent.type == "text_delta" and len(of_type(seen, "text_delta")) == 1:
                assert (await b.steer("cancel", run_id))["status"] == "cancelled"
    check_log(seen, await a.get(run_id))
    assert seen[-1]["type"] == "run_cancelled"
    await model.saw_hang_up()


async def test_a_run_is_paused_and_resumed_through_the_replica_that_does_not_execute_it(
    callers: tuple[Client, Client], model: Model, gate: Gate
) -> None:
    a, b = callers
    model.script(calls(("put", {"gate": gate.name})), DONE)
    run_id = (await a.create(agent=an_agent(), input="Go."))["run_id"]
    await gate.entered()
    await b.steer("pause", run_id)
    gate.open()
    await b.until(run_id, "paused")
    await b.steer("resume", run_id)
    assert (await finished(a, run_id))["result"]["final_text"] == "Done."
    assert len(gate.calls()) == 1


async def test_an_approval_goes_through_either_replica(callers: tuple[Client, Client], model: Model) -> None:
    a, b = callers
    model.script(look_up("word"), DONE)
    run, question = await asked(a, agent=judged(rule("request_approval", "lookup")))
    await b.decide(question, "approve")
    assert (await finished(a, run["run_id"]))["result"]["final_text"] == "Done."


async def test_requests_with_one_key_at_both_replicas_at_once_make_one_run(
    callers: tuple[Client, Client], model: Model, agent_name: str
) -> None:
    body = {"agent": an_agent(model="openai/echo"), "input": "Once."}
    (run_id,) = set(await asyncio.gather(*(accepted(callers[number % 2], body, agent_name) for number in range(20))))
    await finished(callers[1], run_id)
    assert len(model.requests()) == 1


async def test_the_runs_of_a_replica_that_was_killed_go_on_at_the_other(
    database_url: str, way: Way, settings: Settings, serve: Serve, caller: Caller, gate: Gate
) -> None:
    environment = settings(DATABASE_URL=way.url(database_url), DATABASE_PREPARED="off", LEASE_S="2")
    doomed, survivor = (service.ready() for service in [serve(environment), serve(environment)])
    a, b = caller(doomed), caller(survivor)
    steps = f'[[["lookup", {{"word": "one"}}], ["put", {{"gate": "{gate.name}"}}]]]'
    runs = [await a.create(agent=OBEYS, input=steps) for _ in range(10)]
    runs += [await b.create(agent=OBEYS, input=steps) for _ in range(10)]
    await gate.entered(times=20)
    doomed.kill()
    gate.open()
    for run in runs:
        assert (await finished(b, run["run_id"]))["status"] == "completed"
    await check(database_url)
    assert await way.traces(database_url) == []


async def test_migrations_run_through_the_pooler_once_however_many_begin_them(postgres_server: str, way: Way) -> None:
    name = f"bare_{os.getpid()}_{next(_numbers)}"
    await _execute(postgres_server, f"CREATE DATABASE {name}")
    url = database_of(postgres_server, name)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "DATABASE_URL": way.url(url)}
    environment["DATABASE_PREPARED"] = "off"
    begun = [
        subprocess.Popen([PROGRAM, "migrate"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(3)
    ]
    for process in begun:
        said, _ = await asyncio.to_thread(process.communicate, timeout=START_S)
        assert process.returncode == 0, said.decode()
    await check(url)
    assert await way.traces(url) == []
    await _execute(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


async def test_each_statement_has_its_own_answer_though_any_server_connection_may_give_it(
    database: str, way: Way
) -> None:
    """A statement is described in one round trip and executed in another, between which the pooler may hand the server
    connection on. Seen to fail with a cache of prepared statements: they are looked for where they are not."""
    bounds = Bounds("many", "the test", None, most=40, acquire_s=30, statement_s=30)
    pooled = await Database.connect(way.url(database), prepared=False, bounds=bounds)

    async def ask(number: int) -> None:
        for turn in range(50):
            width = (number + turn) % 7 + 1  # so that neighbours' statements differ in all that a client could mix up
            columns = ", ".join(f"${place}::{'int' if place % 2 else 'text'}" for place in range(1, width + 1))
            values = [number * place if place % 2 else f"{number}/{turn}" for place in range(1, width + 1)]
            async with pooled.connection() as connection:
                row = await connection.fetchrow(f"SELECT {columns}", *values)
            assert row is not None
            assert list(row) == values

    await asyncio.gather(*(ask(number) for number in range(40)))
    await pooled.close()
