"""What a caller may do to a run, by the table of the contract, and where a pause takes hold."""

from __future__ import annotations

import itertools

import pytest

from tests.acceptance.client import Client, Json, an_agent, check_log, of_type, problem, types_of
from tests.acceptance.conftest import Caller, Serve, Settings
from tests.acceptance.gates import Gate
from tests.acceptance.model import SILENT, Model, calls
from tests.model_server import Reply

_threads = itertools.count(1)

OVER = ("completed", "degraded", "failed", "interrupted", "cancelled")
# (request, status): the status of the answer, or None where it is a conflict.
TABLE: dict[tuple[str, str], str | None] = {
    ("pause", "queued"): "paused",
    ("pause", "running"): "running",
    ("pause", "paused"): "paused",
    **{("pause", status): None for status in OVER},
    ("resume", "queued"): "queued",
    ("resume", "running"): "running",
    ("resume", "paused"): "queued",
    ("resume", "completed"): "completed",
    ("resume", "degraded"): "degraded",
    ("resume", "failed"): "queued",
    ("resume", "interrupted"): "queued",
    ("resume", "cancelled"): None,
    **{("cancel", status): "cancelled" for status in ("queued", "running", "paused")},
    **{("cancel", status): status for status in OVER},
    **{("interrupt", status): "interrupted" for status in ("queued", "running", "paused")},
    **{("interrupt", status): status for status in OVER},
}


async def a_run(client: Client, model: Model, status: str) -> Json:
    """A run in that status."""
    if status in ("queued", "paused"):
        thread_id = f"table-{next(_threads)}"
        await running(client, model, thread_id=thread_id)
        queued = await client.create(agent=an_agent(), input="Go.", thread_id=thread_id)
        return queued if status == "queued" else await client.steer("pause", queued["run_id"])
    if status in ("running", "interrupted", "cancelled"):
        run = await running(client, model)
        request = {"interrupted": "interrupt", "cancelled": "cancel"}.get(status)
        return run if request is None else await client.steer(request, run["run_id"])
    endings = {
        "completed": Reply(text="Done."),
        "degraded": Reply(text="Cut o", finish_reason="length"),
        "failed": Reply.error(400, "no such thing"),
    }
    model.script(endings[status])
    return await client.create_and_wait(agent=an_agent(), input="Go.")


async def running(client: Client, model: Model, **body: str) -> Json:
    """A run in the middle of a long model call."""
    asked = len(model.requests())
    model.script(SILENT)
    run = await client.create(agent=an_agent(), input="Go.", **body)
    await model.asked(asked + 1)
    return await client.get(run["run_id"])


@pytest.mark.parametrize(("request_", "status"), TABLE)
async def test_a_request_does_what_the_table_says(
    clients: tuple[Client, Client], model: Model, request_: str, status: str
) -> None:
    run = await a_run(clients[0], model, status)
    assert run["status"] == status
    expected = TABLE[request_, status]
    answer = await clients[1].ask(request_, run["run_id"])  # of the replica that has not created it
    if expected is None:
        assert problem(answer, 409, "conflict")["current_status"] == status
        assert await clients[0].get(run["run_id"]) == run
        return
    assert answer.status_code == 200, answer.text
    after = answer.json()
    assert (after["run_id"], after["status"]) == (run["run_id"], expected)
    assert after["pause_requested"] == ((request_, status) == ("pause", "running"))
    if expected in OVER:
        assert after["result"]["state"] == expected
        check_log(await clients[0].events(run["run_id"]), after)
    if expected == status and not after["pause_requested"]:
        assert await clients[0].get(run["run_id"]) == run


@pytest.mark.parametrize("status", ["failed", "interrupted"])
async def test_a_resumed_run_finishes(clients: tuple[Client, Client], model: Model, status: str) -> None:
    run = await a_run(clients[0], model, status)
    model.script(Reply(text="At last."))
    await clients[1].steer("resume", run["run_id"])
    done = await clients[0].wait(run["run_id"])
    assert (done["status"], done["result"]["final_text"]) == ("completed", "At last.")
    resumed = of_type(await clients[0].events(run["run_id"]), "run_resumed")
    assert [event["data"]["reason"] for event in resumed] == ["failure" if status == "failed" else "interrupt"]
    assert done["attempt"] == resumed[0]["data"]["attempt"] == 2


async def test_a_pause_takes_hold_at_the_end_of_the_step_and_a_resume_goes_on_from_there(
    clients: tuple[Client, Client], model: Model, gate: Gate
) -> None:
    a, b = clients
    model.script(calls(("read", {"gate": gate.name})))
    run_id = (await a.create(agent=an_agent(), input="Go."))["run_id"]
    await gate.entered()
    asked = await b.steer("pause", run_id)
    assert (asked["status"], asked["pause_requested"]) == ("running", True)
    gate.open()
    paused = await b.wait(run_id)
    assert (paused["status"], paused["pause_requested"], paused["result"]) == ("paused", False, None)
    events = await a.events(run_id)
    check_log(events, paused)
    assert types_of(events)[-2:] == ["tool_completed", "run_paused"]
    assert events[-1]["data"]["reason"] == "requested"
    assert len(model.requests()) == 1

    model.script(Reply(text="Read."))
    assert (await b.steer("resume", run_id))["status"] == "queued"
    done = await a.wait(run_id)
    assert (done["status"], done["attempt"]) == ("completed", 2)
    later = (await a.events(run_id))[len(events) :]
    assert types_of(later) == ["run_resumed", "step_started", "llm_called", "llm_completed", "run_completed"]
    resumed = later[0]["data"]
    assert (resumed["reason"], resumed["attempt"]) == ("pause", 2)
    assert resumed["from_seq"] <= len(events)
    assert len(gate.calls()) == 1
    assert [message["role"] for message in model.messages()] == ["system", "user", "assistant", "tool"]


async def test_a_pause_that_is_taken_back_in_time_never_happens(client: Client, model: Model, gate: Gate) -> None:
    model.script(calls(("read", {"gate": gate.name})), Reply(text="Read."))
    run_id = (await client.create(agent=an_agent(), input="Go."))["run_id"]
    await gate.entered()
    await client.steer("pause", run_id)
    assert (await client.steer("resume", run_id))["pause_requested"] is False
    gate.open()
    done = await client.wait(run_id)
    assert (done["status"], done["attempt"]) == ("completed", 1)
    assert "run_paused" not in types_of(await client.events(run_id))


async def test_a_paused_run_takes_no_place_among_the_runs_that_a_replica_executes_at_once(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model, gate: Gate
) -> None:
    client = caller(serve(settings(DATABASE_URL=database_url, MAX_CONCURRENT_RUNS="1")).ready())
    model.script(calls(("read", {"gate": gate.name})))
    first = await client.create(agent=an_agent(), input="Go.")
    await gate.entered()
    second = await client.create(agent=an_agent(model="openai/echo"), input="Me too.")
    assert second["status"] == "queued"
    await client.steer("pause", first["run_id"])
    gate.open()
    await client.until(first["run_id"], "paused")
    assert (await client.wait(second["run_id"]))["status"] == "completed"
    model.script(Reply(text="Read."))
    await client.steer("resume", first["run_id"])
    assert (await client.wait(first["run_id"]))["status"] == "completed"
