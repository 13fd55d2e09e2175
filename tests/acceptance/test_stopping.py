"""Cancel and interrupt: the answer is the end, whatever is under way and whoever owns the run."""

from __future__ import annotations

import sys
import time
from typing import Any

import asyncpg
import pytest

from tests.acceptance.client import Client, an_agent, check_log, of_type, types_of
from tests.acceptance.conftest import Pair
from tests.acceptance.gates import Gate
from tests.acceptance.model import SILENT, Model, calls
from tests.model_server import Reply

ENDS = {"cancel": "cancelled", "interrupt": "interrupted"}
REPLICAS = {"its owner": 0, "another replica": 1}


async def owner_pid(database: asyncpg.Connection[Any], run_id: str) -> int:
    """The process that owns a run."""
    return await database.fetchval(
        "SELECT pid FROM runs JOIN replicas ON incarnation = owner WHERE run_id = $1::uuid", run_id
    )


@pytest.mark.parametrize("replica", REPLICAS)
@pytest.mark.parametrize("request_", ENDS)
async def test_a_run_ends_at_once_in_the_middle_of_a_long_model_call(
    clients: tuple[Client, Client],
    pair: Pair,
    shared_database: asyncpg.Connection[Any],
    model: Model,
    request_: str,
    replica: str,
) -> None:
    model.script(SILENT)
    run_id = (await clients[0].create(agent=an_agent(), input="Go."))["run_id"]
    await model.asked()
    assert await owner_pid(shared_database, run_id) == pair.a.pid
    began = time.monotonic()
    ended = await clients[REPLICAS[replica]].steer(request_, run_id)
    sys.stdout.write(f"{request_} at {replica} answered in {(time.monotonic() - began) * 1000:.0f} ms, ")
    assert ended["status"] == ENDS[request_]
    await model.saw_hang_up()
    sys.stdout.write(f"the model call was broken off after {(time.monotonic() - began) * 1000:.0f} ms\n")
    events = await clients[0].events(run_id)
    check_log(events, ended)
    assert events[-1]["type"] == f"run_{ENDS[request_]}"
    assert set(events[-1]["data"]) >= {"code", "message"}
    error = ended["error"]
    assert (None if error is None else error["code"]) == (None if request_ == "cancel" else "interrupted")


@pytest.mark.parametrize("replica", REPLICAS)
@pytest.mark.parametrize("request_", ENDS)
async def test_nothing_is_written_after_the_end_and_the_text_so_far_is_kept(
    clients: tuple[Client, Client], model: Model, request_: str, replica: str
) -> None:
    model.script(Reply(text=[f"word{number} " for number in range(3000)], chunk_delay_s=0.02))
    run_id = (await clients[0].create(agent=an_agent(), input="Go."))["run_id"]
    async with clients[0].stream(run_id, types="text_delta") as deltas:
        for _ in range(3):
            await anext(deltas)
        ended = await clients[REPLICAS[replica]].steer(request_, run_id)
        await model.saw_hang_up()
        await deltas.aclose()
    events = await clients[1].events(run_id)
    check_log(events, ended)
    assert events[-1]["type"] == f"run_{ENDS[request_]}"
    text = "".join(event["data"]["delta"] for event in of_type(events, "text_delta"))
    assert text
    assert ended["result"]["final_text"] == text
    assert await clients[0].get(run_id) == ended


@pytest.mark.parametrize("replica", REPLICAS)
async def test_a_tool_that_returns_after_the_end_changes_nothing(
    clients: tuple[Client, Client], shared_database: asyncpg.Connection[Any], model: Model, gate: Gate, replica: str
) -> None:
    model.script(calls(("send", {"gate": gate.name})))
    run_id = (await clients[0].create(agent=an_agent(), input="Go."))["run_id"]
    await gate.entered()
    ended = await clients[REPLICAS[replica]].steer("cancel", run_id)
    gate.open()
    await gate.left()
    # A later run of the same replica has gone through all that the tool's return could have set off.
    assert (await clients[0].create_and_wait(agent=an_agent(model="openai/echo"), input="Go."))["status"] == "completed"
    events = await clients[0].events(run_id)
    check_log(events, ended)
    assert types_of(events)[-2:] == ["tool_started", "run_cancelled"]
    outcomes = await shared_database.fetch("SELECT outcome FROM tool_executions WHERE run_id = $1::uuid", run_id)
    assert [row["outcome"] for row in outcomes] == [None]
    (tool,) = ended["result"]["tool_executions"]
    assert (tool["success"], tool["output"]) == (False, None)
    assert tool["error"]


async def test_an_interrupted_run_goes_on_from_its_last_checkpoint(
    clients: tuple[Client, Client], model: Model, gate: Gate
) -> None:
    gate.open()
    model.script(calls(("send", {"gate": gate.name})), SILENT)
    run_id = (await clients[0].create(agent=an_agent(), input="Go."))["run_id"]
    await model.asked(2)
    interrupted = await clients[1].steer("interrupt", run_id)
    assert interrupted["error"]["retryable"] is True
    model.script(Reply(text="Sent."))
    await clients[1].steer("resume", run_id)
    done = await clients[0].wait(run_id)
    assert (done["run_id"], done["status"], done["result"]["final_text"]) == (run_id, "completed", "Sent.")
    assert len(gate.calls()) == 1
    events = await clients[0].events(run_id)
    check_log(events, done)
    resumed = of_type(events, "run_resumed")[0]["data"]
    assert (resumed["reason"], resumed["attempt"]) == ("interrupt", 2)
    assert events[resumed["from_seq"] - 1]["type"] == "tool_completed"
    assert model.requests()[-1]["messages"] == model.requests()[-2]["messages"]


async def test_cancelling_the_holder_of_a_thread_lets_the_next_run_begin(
    clients: tuple[Client, Client], model: Model, agent_name: str
) -> None:
    body = {"agent": an_agent(), "input": "Go.", "thread_id": agent_name}
    model.script(SILENT)
    holder = await clients[0].create(**body)
    await model.asked()
    following = await clients[0].create(**body)
    model.script(Reply(text="My turn."))
    await clients[1].steer("cancel", holder["run_id"])
    assert (await clients[1].wait(following["run_id"]))["result"]["final_text"] == "My turn."
