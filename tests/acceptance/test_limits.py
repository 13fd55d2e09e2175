"""Limits: where a run stops, what it says then, and how it goes on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance.client import Client, Json, an_agent, check_log, of_type, problem, types_of
from tests.acceptance.gates import Gates
from tests.acceptance.model import SILENT, Model, calls
from tests.model_server import Reply


def lookups(model: Model, count: int, *more: Reply) -> None:
    """So many answers that ask for a tool, of 18 tokens each."""
    model.script(*(calls(("lookup", {"word": "a"}), text=f"Look {number}.") for number in range(count)), *more)


async def stopped_at(client: Client, code: str, **body: Any) -> Json:
    """A run that failed at a limit."""
    run = await client.create_and_wait(agent=an_agent(), input="Go.", **body)
    assert (run["status"], run["error"]["code"]) == ("failed", code)
    assert run["result"]["final_text"] == run["error"]["message"] == run["result"]["error"]["message"]
    events = await client.events(run["run_id"])
    check_log(events, run)
    assert (events[-1]["type"], events[-1]["data"]["code"]) == ("run_failed", code)
    return run


@pytest.mark.parametrize(
    ("limits", "code", "higher"),
    [
        ({"max_steps": 2}, "max_steps", {"max_steps": 3}),
        ({"max_llm_calls": 2}, "max_llm_calls", {"max_llm_calls": 3}),
        ({"max_total_tokens": 36}, "budget_exceeded", {"max_total_tokens": 100}),
        ({"max_total_cost_usd": 1e-6}, "budget_exceeded", {"max_total_cost_usd": 1}),
    ],
)
async def test_a_run_stops_before_the_call_that_would_go_over_and_goes_on_with_higher_limits(
    client: Client, model: Model, limits: Json, code: str, higher: Json
) -> None:
    lookups(model, 3)
    run = await stopped_at(client, code, limits=limits)
    made = len(model.requests())
    assert made == (1 if "max_total_cost_usd" in limits else 2)
    assert run["result"]["usage_aggregate"]["llm_calls"] == made
    assert len(run["result"]["tool_executions"]) == made

    refused = problem(await client.ask("resume", run["run_id"]), 409, "limit_reached")
    assert next(iter(limits)) in refused["detail"]
    assert (await client.get(run["run_id"]))["status"] == "failed"

    model.reset()
    model.script(Reply(text="Enough."))
    await client.steer("resume", run["run_id"], limits=higher)
    done = await client.wait(run["run_id"])
    assert (done["status"], done["result"]["final_text"], done["error"]) == ("completed", "Enough.", None)
    assert done["result"]["usage_aggregate"]["llm_calls"] == made + 1
    resumed = of_type(await client.events(run["run_id"]), "run_resumed")
    assert [event["data"]["reason"] for event in resumed] == ["failure"]


async def test_a_batch_of_tools_that_would_go_over_executes_none_of_them(
    client: Client, model: Model, gates: Gates
) -> None:
    batch = [gates.new() for _ in range(3)]
    model.script(calls(*(("send", {"gate": gate.name}) for gate in batch)))
    run = await stopped_at(client, "max_tool_calls", limits={"max_tool_calls": 2})
    assert [gate.calls() for gate in batch] == [[], [], []]
    assert "tool_started" not in types_of(await client.events(run["run_id"]))
    assert run["result"]["state_snapshot"]["tool_calls"] == 0

    problem(await client.ask("resume", run["run_id"]), 409, "limit_reached")
    for gate in batch:
        gate.open()
    model.script(Reply(text="All three."))
    await client.steer("resume", run["run_id"], limits={"max_tool_calls": 3})
    done = await client.wait(run["run_id"])
    assert (done["status"], done["result"]["final_text"]) == ("completed", "All three.")
    assert [len(gate.calls()) for gate in batch] == [1, 1, 1]


async def test_the_time_limit_interrupts_a_run_in_the_middle_of_a_model_call(client: Client, model: Model) -> None:
    model.script(SILENT)
    run = await client.create_and_wait(agent=an_agent(), input="Go.", limits={"max_wall_time_s": 0.5})
    assert (run["status"], run["error"]["code"], run["error"]["retryable"]) == ("interrupted", "wall_time", True)
    await model.saw_hang_up()
    events = await client.events(run["run_id"])
    check_log(events, run)
    assert (events[-1]["type"], events[-1]["data"]["code"]) == ("run_interrupted", "wall_time")
    # The event loop counts in whole milliseconds, and so its timers may be one early.
    assert 0.498 <= run["result"]["state_snapshot"]["elapsed_s"] < 10

    model.script(Reply(text="Just in time."))
    await client.steer("resume", run["run_id"])  # its time starts afresh
    done = await client.wait(run["run_id"])
    assert (done["status"], done["result"]["final_text"]) == ("completed", "Just in time.")


async def test_what_a_call_took_that_the_time_limit_broke_off_is_counted_and_said_to_be_an_estimate(
    client: Client, model: Model
) -> None:
    half = Reply(text=["Once upon ", "a time, "], finish_reason=None, usage=None, done=False, hold=True)
    model.script(half)
    run = await client.create_and_wait(agent=an_agent(), input="Tell me.", limits={"max_wall_time_s": 1})
    assert (run["status"], run["result"]["final_text"]) == ("interrupted", "Once upon a time, ")
    usage = run["result"]["usage_aggregate"]
    assert (usage["llm_calls"], usage["output_tokens"]) == (1, 5)
    assert usage["input_tokens"] > 0
    (told,) = of_type(await client.events(run["run_id"]), "warning")
    assert (told["data"]["code"], told["data"]["usage"]) == ("usage_estimated", usage)
    assert told["data"]["cost_usd"] == run["result"]["total_cost_usd"] > 0


async def test_the_time_limit_interrupts_a_run_in_the_middle_of_a_tool(
    client: Client, model: Model, gates: Gates
) -> None:
    gate = gates.new()
    model.script(calls(("send", {"gate": gate.name}), ("lookup", {"word": "kept"})))
    run = await client.create_and_wait(agent=an_agent(), input="Go.", limits={"max_wall_time_s": 1})
    assert (run["status"], run["error"]["code"]) == ("interrupted", "wall_time")
    gate.open()
    model.script(Reply(text="On we go."))
    await client.steer("resume", run["run_id"], limits={"max_wall_time_s": 60})
    done = await client.wait(run["run_id"])
    assert (done["status"], done["result"]["final_text"]) == ("completed", "On we go.")
    assert len(gate.calls()) == 1
    events = await client.events(run["run_id"])
    assert [event["data"]["code"] for event in of_type(events, "warning")] == ["tool_outcome_unknown"]


async def test_a_limit_degrades_a_run_whose_agent_says_so(client: Client, model: Model) -> None:
    lookups(model, 2)
    agent = an_agent(on_limit="degrade", limits={"max_steps": 1})
    run = await client.create_and_wait(agent=agent, input="Go.")
    assert (run["status"], run["result"]["final_text"], run["error"]["code"]) == ("degraded", "Look 0.", "max_steps")
    assert (await client.events(run["run_id"]))[-1]["data"]["state"] == "degraded"


async def test_a_request_lowers_limits_and_never_raises_them(client: Client, model: Model) -> None:
    lookups(model, 3)
    agent = an_agent(limits={"max_steps": 1, "max_llm_calls": 9})
    limits = {"max_steps": 5, "max_llm_calls": 4}
    run = await client.create_and_wait(agent=agent, input="Go.", limits=limits)
    assert (run["status"], run["error"]["code"]) == ("failed", "max_steps")
    assert len(model.requests()) == 1
