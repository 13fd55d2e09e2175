"""Ways to create runs, callers that do not stay, and runs that are taken away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.acceptance.client import Client, Json, an_agent, check_log, problem, sent_events
from tests.acceptance.model import SILENT, Model
from tests.model_server import Reply

ECHO = an_agent(model="openai/echo")


def in_(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="microseconds").replace("+00:00", "Z")


async def runs_of(client: Client, test: str) -> list[Json]:
    return (await client.http.get("/runs", params={"metadata": f"test:{test}"})).json()["items"]


async def test_a_run_with_start_after_begins_when_it_is_due_and_holds_nobody_up(
    client: Client, agent_name: str
) -> None:
    due = in_(1.5)
    later = await client.create(agent=ECHO, input="Later.", thread_id=agent_name, start_after=due)
    assert (later["status"], later["started_at"]) == ("queued", None)
    before = await client.create_and_wait(agent=ECHO, input="Before.", thread_id=agent_name)
    assert before["status"] == "completed"
    done = await client.wait(later["run_id"])
    assert done["status"] == "completed"
    assert done["started_at"] >= due > before["finished_at"]
    check_log(await client.events(later["run_id"]), done)
    said = [message["content"] for message in await client.messages(agent_name)]
    assert said == ["Before.", "Before.", "Later.", "Later."]


async def test_a_run_that_is_not_due_yet_can_be_cancelled(client: Client) -> None:
    later = await client.create(agent=ECHO, input="Next year.", start_after=in_(365 * 86400))
    cancelled = await client.steer("cancel", later["run_id"])
    assert (cancelled["status"], cancelled["started_at"]) == ("cancelled", None)
    check_log(await client.events(later["run_id"]), cancelled)


async def test_a_batch_makes_its_runs_in_order(clients: tuple[Client, Client], agent_name: str) -> None:
    items = [{"agent": ECHO, "input": f"{number}", "metadata": {"test": agent_name}} for number in range(20)]
    answer = await clients[0].http.post("/runs/batch", json={"items": items})
    assert answer.status_code == 202, answer.text
    created = answer.json()["items"]
    assert [run["input"] for run in created] == [f"{number}" for number in range(20)]
    assert {run["status"] for run in created} == {"queued"}
    for run in created:
        done = await clients[1].wait(run["run_id"])
        assert (done["status"], done["result"]["final_text"]) == ("completed", run["input"])


@pytest.mark.parametrize(
    ("bad", "status", "code"),
    [
        ({"agent": {**ECHO, "tools": ["no_such_tool"]}}, 422, "unknown_tool"),
        ({"agent": "no_such_agent"}, 404, "unknown_agent"),
        ({"agent": ECHO, "nonsense": 1}, 422, "validation_error"),
        ({"agent": ECHO, "thread_id": "held", "on_busy_thread": "reject"}, 409, "thread_busy"),
    ],
)
async def test_a_batch_makes_none_of_its_runs_where_one_cannot_be_made(
    client: Client, model: Model, agent_name: str, bad: Json, status: int, code: str
) -> None:
    if "thread_id" in bad:
        bad = {**bad, "thread_id": agent_name}
        model.script(SILENT)
        await client.create(agent=an_agent(), input="Mine.", thread_id=agent_name)
    good = {"agent": ECHO, "input": "Fine.", "metadata": {"test": agent_name}}
    items = [good, {**good, **bad}, good]
    problem(await client.http.post("/runs/batch", json={"items": items}), status, code)
    assert await runs_of(client, agent_name) == []


async def test_a_batch_holds_1_to_100_runs(client: Client, agent_name: str) -> None:
    good = {"agent": ECHO, "input": "Fine.", "metadata": {"test": agent_name}}
    for items in ([], [good] * 101):
        problem(await client.http.post("/runs/batch", json={"items": items}), 422, "validation_error")
    assert await runs_of(client, agent_name) == []


async def leave_a_stream(client: Client, body: Json) -> None:
    async with client.http.stream("POST", "/runs/stream", json=body) as response:
        await anext(sent_events(response))


async def leave_a_wait(client: Client, body: Json) -> None:
    with pytest.raises(httpx.ReadTimeout):
        await client.http.post("/runs/wait", json=body, timeout=1.0)


Leave = Callable[[Client, Json], Awaitable[None]]


@pytest.mark.parametrize("leave", [leave_a_stream, leave_a_wait])
async def test_a_caller_that_leaves_ends_its_run_where_it_asked_for_that(
    client: Client, model: Model, agent_name: str, leave: Leave
) -> None:
    model.script(SILENT)
    body = {"agent": an_agent(), "input": "Go.", "on_disconnect": "cancel", "metadata": {"test": agent_name}}
    await leave(client, body)
    (run,) = await runs_of(client, agent_name)
    ended = await client.until(run["run_id"], "cancelled")
    check_log(await client.events(run["run_id"]), ended)
    await model.saw_hang_up()


@pytest.mark.parametrize("leave", [leave_a_stream, leave_a_wait])
async def test_a_caller_that_leaves_ends_nothing_otherwise(
    client: Client, model: Model, agent_name: str, leave: Leave
) -> None:
    model.script(Reply(text="All the same.", delay_s=1.5))
    await leave(client, {"agent": an_agent(), "input": "Go.", "metadata": {"test": agent_name}})
    (run,) = await runs_of(client, agent_name)
    done = await client.wait(run["run_id"])
    assert (done["status"], done["result"]["final_text"]) == ("completed", "All the same.")


async def test_a_wait_that_is_over_before_the_run_answers_with_the_run_as_it_is(client: Client, model: Model) -> None:
    model.script(SILENT)
    params = {"timeout_s": 0.2}
    answer = await client.http.post("/runs/wait", params=params, json={"agent": an_agent(), "input": "Go."})
    assert (answer.status_code, answer.json()["status"], answer.json()["result"]) == (200, "running", None)
    again = await client.http.get(f"/runs/{answer.json()['run_id']}/wait", params=params)
    assert (again.status_code, again.json()["status"]) == (200, "running")


async def test_a_deleted_run_is_gone_and_its_messages_stay(
    clients: tuple[Client, Client], model: Model, agent_name: str
) -> None:
    a, b = clients
    model.script(SILENT)
    running = await a.create(agent=an_agent(), input="Go.", thread_id=agent_name)
    url = f"/runs/{running['run_id']}"
    assert problem(await b.http.delete(url), 409, "conflict")["current_status"] == "running"
    await model.asked()
    await a.steer("cancel", running["run_id"])
    deleted = await b.http.delete(url)
    assert (deleted.status_code, deleted.content) == (204, b"")
    for path in ("", "/events", "/events/list", "/checkpoints", "/wait"):
        problem(await a.http.get(url + path), 404, "not_found")
    problem(await a.http.delete(url), 404, "not_found")
    assert [message["content"] for message in await a.messages(agent_name)] == ["Go."]
    after = await a.create_and_wait(agent=ECHO, input="Still?", thread_id=agent_name)
    assert after["status"] == "completed"


async def test_a_thread_is_deleted_with_its_runs_but_not_while_one_is_active(
    client: Client, model: Model, agent_name: str
) -> None:
    done = await client.create_and_wait(agent=ECHO, input="Go.", thread_id=agent_name)
    model.script(SILENT)
    active = await client.create(agent=an_agent(), input="Go.", thread_id=agent_name)
    url = f"/threads/{agent_name}"
    problem(await client.http.delete(url), 409, "conflict")
    await model.asked()
    await client.steer("cancel", active["run_id"])
    assert (await client.http.delete(url)).status_code == 204
    gone: list[Any] = [url, f"{url}/messages", f"{url}/runs", f"/runs/{done['run_id']}", f"/runs/{active['run_id']}"]
    for path in gone:
        problem(await client.http.get(path), 404, "not_found")
