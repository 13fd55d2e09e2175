"""kill -9 in the middle of a run: it goes on from its last checkpoint, and nothing unsafe is done twice."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from app.db.embedded.postmaster import Postmaster
from tests.acceptance.client import Client, Json, an_agent, check_log, of_type, types_of
from tests.acceptance.conftest import Caller, Serve, Settings
from tests.acceptance.gates import Gate, Gates
from tests.acceptance.model import SILENT, Model, calls
from tests.acceptance.waiting import eventually
from tests.model_server import Reply

LEASE_S = "2"
# Some words, and then nothing more.
HALF_AN_ANSWER = Reply(text=["This is ", "never "], finish_reason=None, usage=None, done=False, hold=True)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder for an embedded Postgres; a server that was left behind in it is ended."""
    folder = Path(tempfile.mkdtemp(prefix="agent-runner-crash-", dir="/tmp"))
    yield folder
    server = Postmaster.of(folder / "postgres")
    if server is not None and server.is_running():
        os.kill(server.pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


async def with_event(client: Client, run_id: str, kind: str) -> Json:
    """Wait for an event of that type to be committed; the first one."""

    async def look() -> Json | None:
        return next(iter(of_type(await client.events(run_id), kind)), None)

    return await eventually(look, f"a {kind} event")


@pytest.mark.parametrize("database", ["a server", "embedded"])
async def test_a_run_goes_on_after_its_process_was_killed_in_a_model_call(
    database: str,
    data_dir: Path,
    database_url: str,
    settings: Settings,
    serve: Serve,
    caller: Caller,
    model: Model,
    gate: Gate,
) -> None:
    where = {"DATABASE_URL": database_url} if database == "a server" else {"DATA_DIR": str(data_dir)}
    environment = settings(LEASE_S=LEASE_S, **where)
    first = serve(environment).ready()
    gate.open()
    model.script(calls(("send", {"gate": gate.name})), HALF_AN_ANSWER)
    before = caller(first)
    run_id = (await before.create(agent=an_agent(), input="Go."))["run_id"]
    void = await with_event(before, run_id, "text_delta")
    seen = await before.events(run_id)
    first.kill()
    await model.idle()

    model.script(Reply(text="And this is."))
    client = caller(serve(environment).ready())
    done = await client.wait(run_id)
    assert (done["status"], done["attempt"], done["result"]["final_text"]) == ("completed", 2, "And this is.")
    events = await client.events(run_id)
    check_log(events, done)
    assert events[: len(seen)] == seen
    resumed = of_type(events, "run_resumed")
    assert [(event["data"]["reason"], event["data"]["attempt"]) for event in resumed] == [("crash", 2)]
    assert of_type(events, "tool_completed")[0]["seq"] <= resumed[0]["data"]["from_seq"] < void["seq"]
    assert len(gate.calls()) == 1
    assert [tool["success"] for tool in done["result"]["tool_executions"]] == [True]
    assert model.requests()[-1]["messages"] == model.requests()[-2]["messages"]
    assert done["result"]["usage_aggregate"]["llm_calls"] == 2


async def test_after_a_kill_only_the_tools_that_may_be_repeated_are_run_again(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model, gates: Gates
) -> None:
    environment = settings(DATABASE_URL=database_url, LEASE_S=LEASE_S)
    first = serve(environment).ready()
    sending, reading, putting = gates.new(), gates.new(), gates.new()
    batch = [("send", sending), ("read", reading), ("put", putting)]
    model.script(calls(("lookup", {"word": "kept"}), *((name, {"gate": gate.name}) for name, gate in batch)))
    before = caller(first)
    run_id = (await before.create(agent=an_agent(), input="Go."))["run_id"]
    for gate in (sending, reading, putting):
        await gate.entered()
    await with_event(before, run_id, "tool_completed")
    first.kill()

    model.script(Reply(text="All settled."))
    client = caller(serve(environment).ready())
    for gate in (reading, putting):
        await gate.entered(times=2)
        gate.open()
    done = await client.wait(run_id)
    assert (done["status"], done["result"]["final_text"]) == ("completed", "All settled.")
    assert [len(gate.calls()) for gate in (sending, reading, putting)] == [1, 2, 2]
    assert len({call["idempotency_key"] for call in putting.calls()}) == 1

    events = await client.events(run_id)
    check_log(events, done)
    completed = of_type(events, "tool_completed")
    assert sorted(event["data"]["tool_call_id"] for event in completed) == ["call_1", "call_2", "call_3", "call_4"]
    (warning,) = of_type(events, "warning")
    assert warning["data"] == {"code": "tool_outcome_unknown", "tool_name": "send", "tool_call_id": "call_2"}
    told = {message["tool_call_id"]: message["content"] for message in model.messages() if message["role"] == "tool"}
    assert list(told) == ["call_1", "call_2", "call_3", "call_4"]
    assert "unknown" in told["call_2"]
    assert "is done" in told["call_3"]
    sent = next(tool for tool in done["result"]["tool_executions"] if tool["tool_name"] == "send")
    assert (sent["success"], sent["output"]) == (False, None)
    assert "unknown" in sent["error"]


async def test_another_replica_takes_a_dead_ones_runs_over_while_their_readers_stay(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model, gate: Gate
) -> None:
    environment = settings(DATABASE_URL=database_url, LEASE_S=LEASE_S)
    doomed, survivor = (service.ready() for service in [serve(environment), serve(environment)])
    model.script(SILENT)
    a, b = caller(doomed), caller(survivor)
    run_id = (await a.create(agent=an_agent(), input="Go."))["run_id"]
    await model.asked()
    model.script(calls(("read", {"gate": gate.name})), Reply(text="Taken over."))
    async with b.stream(run_id) as events:
        doomed.kill()
        (call,) = await gate.entered()
        assert call["pid"] == survivor.pid
        gate.open()
        seen = [sent.event async for sent in events]
    done = await b.get(run_id)
    assert done["result"]["final_text"] == "Taken over."
    check_log(seen, done)
    assert types_of(seen).count("run_resumed") == 1


async def test_a_worker_process_that_dies_is_replaced_and_its_run_goes_on(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model
) -> None:
    service = serve(settings(DATABASE_URL=database_url, LEASE_S=LEASE_S, WORKERS="2")).ready()
    client = caller(service)
    model.script(SILENT, Reply(text="Still here."))
    run_id = (await client.create(agent=an_agent(), input="Go."))["run_id"]
    await model.asked()
    connection = await asyncpg.connect(database_url)
    pid = await connection.fetchval(
        "SELECT pid FROM runs JOIN replicas ON incarnation = owner WHERE run_id = $1::uuid", run_id
    )
    await connection.close()
    psutil.Process(pid).kill()
    async with Client(service.url) as again:  # the first one's connection may have been to that worker
        done = await again.wait(run_id)
    assert (done["status"], done["result"]["final_text"], done["attempt"]) == ("completed", "Still here.", 2)

    async def replaced() -> bool:
        workers = [child for child in psutil.Process(service.pid).children() if child.pid != pid]
        return len([worker for worker in workers if worker.status() != psutil.STATUS_ZOMBIE]) >= 2

    await eventually(replaced, "a new worker")
