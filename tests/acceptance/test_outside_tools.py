"""Tool calls whose results come from outside: the caller's own tools, and those that promise a result for later."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import pytest

from tests.acceptance.client import Client, Json, an_agent, check_log, of_type, problem, types_of
from tests.acceptance.conftest import Caller, Serve, Settings
from tests.acceptance.gates import Gate
from tests.acceptance.model import Model, calls
from tests.acceptance.questions import asked, finished, judged, rule
from tests.acceptance.waiting import eventually
from tests.model_server import Reply

DONE = Reply(text="Done.")
LEASE_S = "2"
POSITION = {"latitude": 46.9, "longitude": 7.4}
LOCATE: Json = {
    "type": "caller",
    "name": "locate",
    "description": "Where the user is.",
    "parameters": {
        "type": "object",
        "properties": {"precision_m": {"type": "number"}},
        "required": ["precision_m"],
        "additionalProperties": False,
    },
}
ASKS = calls(("locate", {"precision_m": 10}))


def with_caller_tool(*, ttl_s: float = 3600.0, **settings: Any) -> Json:
    """An agent with a tool that its caller runs."""
    return an_agent(tool_definitions=[{**LOCATE, "ttl_s": ttl_s}], **settings)


def with_orders(**settings: Any) -> Json:
    """An agent whose tools promise their results for later."""
    return an_agent(tools=["order", "order_and_wait", "read"], **settings)


async def waiting(client: Client, agent: Json) -> Json:
    """A run that waits for a result of its call_1."""
    run = await client.create_and_wait(agent=agent, input="Go.")
    assert run["status"] == "waiting", run
    assert run["waiting_for"] == [{"kind": "tool_result", "id": "call_1"}]
    return run


async def execution_of(client: Client, run: Json) -> Json:
    """The one tool execution of a run that goes on to its end."""
    (execution,) = (await finished(client, run["run_id"]))["result"]["tool_executions"]
    return execution


async def test_a_callers_tool_is_shown_with_its_arguments_and_its_result_lets_the_run_go_on(
    clients: tuple[Client, Client], model: Model
) -> None:
    a, b = clients
    model.script(ASKS, DONE)
    run = await waiting(a, with_caller_tool())
    (offered,) = [tool["function"] for tool in model.requests()[0]["tools"] if tool["function"]["name"] == "locate"]
    assert (offered["description"], offered["parameters"]) == (LOCATE["description"], LOCATE["parameters"])
    (started,) = of_type(await b.events(run["run_id"]), "tool_started")
    assert started["data"] == {"tool_name": "locate", "tool_call_id": "call_1", "arguments": {"precision_m": 10}}

    receipt = await b.deliver(run["run_id"], "call_1", output=POSITION)
    assert (receipt["run_id"], receipt["tool_call_id"], receipt["accepted"]) == (run["run_id"], "call_1", True)
    execution = await execution_of(a, run)
    assert (execution["tool_name"], execution["success"], execution["output"]) == ("locate", True, POSITION)
    assert "46.9" in model.messages()[-1]["content"]
    assert types_of(await a.events(run["run_id"]))[4:] == [
        "tool_batch_started", "tool_started", "run_waiting", "run_resumed", "tool_completed",
        "step_started", "llm_called", "llm_completed", "run_completed",
    ]  # fmt: skip


@pytest.mark.parametrize(("policy", "status"), [("continue", "completed"), ("degrade", "degraded"), ("fail", "failed")])
async def test_an_error_that_a_caller_posts_is_the_calls_failure(
    client: Client, model: Model, policy: str, status: str
) -> None:
    model.script(ASKS, DONE)
    run = await waiting(client, with_caller_tool(tool_failure_policy=policy))
    await client.deliver(run["run_id"], "call_1", error="the user has said no")
    done = await finished(client, run["run_id"])
    assert (done["status"], done["error"] and done["error"]["code"]) == (
        status,
        None if policy == "continue" else "tool_failed",
    )
    (execution,) = done["result"]["tool_executions"]
    assert (execution["success"], execution["error"]) == (False, "the user has said no")
    if policy != "fail":
        assert "the user has said no" in model.messages()[-1]["content"]


@pytest.mark.parametrize("output", [None, "", 0, [], {"a": [1, None]}])
async def test_any_json_value_is_a_result(client: Client, model: Model, output: Any) -> None:
    model.script(ASKS, DONE)
    run = await waiting(client, with_caller_tool())
    await client.deliver(run["run_id"], "call_1", output=output)
    execution = await execution_of(client, run)
    assert (execution["success"], execution["output"]) == (True, output)


async def test_the_same_result_again_changes_nothing_and_another_one_is_a_conflict(
    clients: tuple[Client, Client], model: Model
) -> None:
    a, b = clients
    model.script(ASKS, DONE)
    run = await waiting(a, with_caller_tool())
    run_id = run["run_id"]
    answers = await asyncio.gather(*(each.post_result(run_id, "call_1", output=POSITION) for each in (a, b, a, b)))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert sorted(answer.json()["accepted"] for answer in answers) == [False, False, False, True]
    problem(await b.post_result(run_id, "call_1", output="elsewhere"), 409, "conflict")
    await finished(a, run_id)
    again = await b.deliver(run_id, "call_1", output=dict(reversed(POSITION.items())))
    assert (again["accepted"], again["run_status"]) == (False, "completed")
    problem(await b.post_result(run_id, "call_1", error="lost"), 409, "conflict")
    check_log(await a.events(run_id), await a.get(run_id))


async def test_of_two_results_posted_at_once_one_counts(clients: tuple[Client, Client], model: Model) -> None:
    for _ in range(5):
        model.script(ASKS, DONE)
        run = await waiting(clients[0], with_caller_tool())
        posts = (clients[i % 2].post_result(run["run_id"], "call_1", output=i) for i in range(6))
        answers = await asyncio.gather(*posts)
        assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409, 409]
        (winner,) = [i for i, answer in enumerate(answers) if answer.status_code == 200]
        assert (await execution_of(clients[0], run))["output"] == winner


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        ({}, ["body", "output"]),
        ({"output": 1, "error": "both"}, ["body", "error"]),
        ({"error": ""}, ["body", "error"]),
        ({"result": 1}, ["body", "result"]),
    ],
)
async def test_a_result_is_either_an_output_or_an_error(
    client: Client, model: Model, body: Json, loc: list[str]
) -> None:
    model.script(ASKS)
    run = await waiting(client, with_caller_tool())
    refused = problem(await client.post_result(run["run_id"], "call_1", **body), 422, "validation_error")
    assert refused["errors"][0]["loc"] == loc
    assert (await client.get(run["run_id"]))["status"] == "waiting"


async def test_a_call_is_found_by_its_id_whatever_the_model_calls_it(client: Client, model: Model) -> None:
    ids = ["a/b?c#d e", "../x", "%2F", "é", "long" * 75, "twice", "twice"]
    asks = [{"id": each, "name": "locate", "arguments": {"precision_m": 1}} for each in ids]
    model.script(Reply(text="", tool_calls=asks), DONE)
    run = await client.create_and_wait(agent=with_caller_tool(), input="Go.")
    waits = [entry["id"] for entry in run["waiting_for"]]
    assert (waits[:6], len(set(waits))) == (ids[:6], 7)
    for each in waits:
        await client.deliver(run["run_id"], quote(each, safe=""), output=each)
    done = await finished(client, run["run_id"])
    assert [execution["output"] for execution in done["result"]["tool_executions"]] == waits
    assert [message["tool_call_id"] for message in model.messages() if message["role"] == "tool"] == waits


async def test_results_of_calls_that_nobody_made_are_not_found(client: Client, model: Model) -> None:
    model.script(ASKS)
    run = await waiting(client, with_caller_tool())
    problem(await client.post_result(run["run_id"], "call_2", output=1), 404, "not_found")
    problem(await client.post_result("nonsense", "call_1", output=1), 404, "not_found")


async def test_a_result_that_does_not_come_in_its_time_is_a_failure_and_then_it_is_too_late(
    client: Client, model: Model
) -> None:
    model.script(ASKS, DONE)
    run = await waiting(client, with_caller_tool(ttl_s=0.5))
    execution = await execution_of(client, run)
    assert (execution["success"], execution["error"]) == (False, "no result came within its time")
    problem(await client.post_result(run["run_id"], "call_1", output=1), 409, "conflict")


async def test_a_result_counts_at_once_though_another_tool_of_the_step_is_still_running(
    clients: tuple[Client, Client], model: Model, gate: Gate
) -> None:
    a, b = clients
    model.script(calls(("locate", {"precision_m": 10}), ("read", {"gate": gate.name})), DONE)
    run = await a.create(agent=with_caller_tool(), input="Go.")
    await gate.entered()
    assert (await b.deliver(run["run_id"], "call_1", output=POSITION))["run_status"] == "running"

    async def completed() -> list[str]:
        return [event["data"]["tool_call_id"] for event in of_type(await a.events(run["run_id"]), "tool_completed")]

    assert await eventually(completed, "the caller's tool to be done") == ["call_1"]
    gate.open()
    done = await finished(a, run["run_id"])
    assert (done["attempt"], "run_waiting" in types_of(await a.events(run["run_id"]))) == (1, False)
    assert [message["tool_call_id"] for message in model.messages() if message["role"] == "tool"] == [
        "call_1", "call_2",
    ]  # fmt: skip


async def test_a_result_for_a_call_that_runs_here_takes_its_place(client: Client, model: Model, gate: Gate) -> None:
    model.script(calls(("send", {"gate": gate.name})), DONE)
    run = await client.create(agent=an_agent(), input="Go.")
    await gate.entered()
    await client.deliver(run["run_id"], "call_1", output="by hand")
    assert (await execution_of(client, run))["output"] == "by hand"
    gate.open()


@pytest.mark.parametrize("arguments", [{}, {"precision_m": "fine"}, {"precision_m": 1, "extra": 1}, '{"precision_m":'])
async def test_malformed_arguments_never_reach_the_caller(client: Client, model: Model, arguments: Any) -> None:
    model.script(calls(("locate", arguments)), DONE)
    run = await client.create_and_wait(agent=with_caller_tool(), input="Go.")
    assert run["status"] == "completed"
    (execution,) = run["result"]["tool_executions"]
    assert not execution["success"]
    assert "arguments" in model.messages()[-1]["content"]
    assert not {"tool_started", "run_waiting"} & set(types_of(await client.events(run["run_id"])))


async def test_a_callers_tool_waits_for_its_approval_before_the_caller_is_asked(client: Client, model: Model) -> None:
    model.script(ASKS, DONE)
    agent = judged(rule("request_approval", "locate"), tool_definitions=[LOCATE])
    run, question = await asked(client, agent=agent)
    assert "tool_started" not in types_of(await client.events(run["run_id"]))
    refused = problem(await client.answer(question, "approve", arguments={"precision_m": []}), 422, "validation_error")
    assert refused["errors"][0]["loc"] == ["body", "arguments"]
    await client.decide(question, "approve", arguments={"precision_m": 500})

    async def shown() -> list[Json]:
        return of_type(await client.events(run["run_id"]), "tool_started")

    (started,) = await eventually(shown, "the call to be the caller's")
    assert started["data"]["arguments"] == {"precision_m": 500}
    await client.deliver(run["run_id"], "call_1", output=POSITION)
    assert (await execution_of(client, run))["output"] == POSITION


async def test_a_result_for_a_call_that_a_person_is_asked_about_makes_the_question_needless(
    client: Client, model: Model
) -> None:
    model.script(calls(("lookup", {"word": "a"})), DONE)
    run, question = await asked(client, agent=judged(rule("request_approval")))
    await client.deliver(run["run_id"], "call_1", output="known already")
    assert (await execution_of(client, run))["output"] == "known already"
    (closed,) = await client.interactions(run["run_id"])
    assert closed["status"] == "closed"
    problem(await client.answer(question, "approve"), 409, "conflict")


async def test_an_interrupted_run_takes_no_result_until_it_is_resumed(client: Client, model: Model) -> None:
    model.script(ASKS, DONE)
    run = await waiting(client, with_caller_tool())
    await client.steer("interrupt", run["run_id"])
    problem(await client.post_result(run["run_id"], "call_1", output=1), 409, "conflict")
    await client.steer("resume", run["run_id"])
    await client.until(run["run_id"], "waiting")
    await client.deliver(run["run_id"], "call_1", output=1)
    assert (await execution_of(client, run))["output"] == 1
    assert len(of_type(await client.events(run["run_id"]), "tool_started")) == 1


async def test_a_paused_run_keeps_a_result_until_it_is_resumed(client: Client, model: Model) -> None:
    model.script(ASKS, DONE)
    run = await waiting(client, with_caller_tool())
    await client.steer("pause", run["run_id"])
    assert (await client.deliver(run["run_id"], "call_1", output=1))["run_status"] == "paused"
    assert len(model.requests()) == 1
    await client.steer("resume", run["run_id"])
    assert (await execution_of(client, run))["output"] == 1


async def test_a_deferred_call_tells_its_ticket_and_its_result_later(client: Client, model: Model, gate: Gate) -> None:
    model.script(calls(("order", {"item": gate.name})), DONE)
    run = await waiting(client, with_orders())
    ticket = {"tool_name": "order", "tool_call_id": "call_1", "ticket_id": f"ticket-{gate.name}"}
    (deferred,) = of_type(await client.events(run["run_id"]), "tool_deferred")
    assert deferred["data"] == {**ticket, "summary": f"ordered {gate.name}", "resume_hint": "the parcel comes"}

    await client.deliver(run["run_id"], "call_1", output={"parcel": 7})
    execution = await execution_of(client, run)
    assert (execution["success"], execution["output"], len(gate.calls())) == (True, {"parcel": 7}, 1)
    events = await client.events(run["run_id"])
    (resolved,) = of_type(events, "tool_background_resolved")
    assert resolved["data"] == {**ticket, "output": {"parcel": 7}}
    assert types_of(events)[4:11] == [
        "tool_batch_started", "tool_started", "tool_deferred", "run_waiting", "run_resumed",
        "tool_background_resolved", "tool_completed",
    ]  # fmt: skip
    assert "parcel" in model.messages()[-1]["content"]


async def test_a_deferred_call_that_fails_later_says_so(client: Client, model: Model, gate: Gate) -> None:
    model.script(calls(("order", {"item": gate.name})), DONE)
    run = await waiting(client, with_orders())
    await client.deliver(run["run_id"], "call_1", error="lost on its way")
    assert (await execution_of(client, run))["error"] == "lost on its way"
    (failed,) = of_type(await client.events(run["run_id"]), "tool_background_failed")
    assert (failed["data"]["ticket_id"], failed["data"]["error"]) == (f"ticket-{gate.name}", "lost on its way")


async def test_a_deferred_call_fails_when_its_time_is_up(client: Client, model: Model, gate: Gate) -> None:
    model.script(calls(("order", {"item": gate.name, "ttl_s": 0.5})), DONE)
    run = await waiting(client, with_orders())
    assert (await execution_of(client, run))["error"] == "no result came within its time"
    (failed,) = of_type(await client.events(run["run_id"]), "tool_background_failed")
    assert failed["data"]["error"] == "no result came within its time"
    problem(await client.post_result(run["run_id"], "call_1", output=1), 409, "conflict")
    assert len(gate.calls()) == 1


async def test_a_result_may_come_before_its_promise(client: Client, model: Model, gate: Gate) -> None:
    model.script(calls(("order_and_wait", {"gate": gate.name})), DONE)
    run = await client.create(agent=with_orders(), input="Go.")
    await gate.entered()
    await client.deliver(run["run_id"], "call_1", output="already here")
    gate.open()
    assert (await execution_of(client, run))["output"] == "already here"
    assert len(gate.calls()) == 1


async def test_a_deferral_beside_a_tool_that_still_runs_is_told_at_once(
    client: Client, model: Model, gate: Gate
) -> None:
    model.script(calls(("order", {"item": "beside"}), ("read", {"gate": gate.name})), DONE)
    run = await client.create(agent=with_orders(), input="Go.")
    await gate.entered()

    async def deferred() -> list[Json]:
        return of_type(await client.events(run["run_id"]), "tool_deferred")

    await eventually(deferred, "the deferral")
    gate.open()
    after = await client.wait(run["run_id"])
    assert (after["status"], after["waiting_for"]) == ("waiting", [{"kind": "tool_result", "id": "call_1"}])
    await client.deliver(run["run_id"], "call_1", output=1)
    assert (await finished(client, run["run_id"]))["status"] == "completed"


async def test_waits_for_results_outlive_a_kill_and_a_restart(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model, gate: Gate
) -> None:
    environment = settings(DATABASE_URL=database_url, LEASE_S=LEASE_S)
    first = serve(environment).ready()
    model.script(calls(("order", {"item": gate.name}), ("locate", {"precision_m": 10})), DONE)
    agent = with_orders(tool_definitions=[LOCATE])
    run = await caller(first).create_and_wait(agent=agent, input="Go.")
    assert [entry["id"] for entry in run["waiting_for"]] == ["call_1", "call_2"]
    first.kill()

    second = serve(environment).ready()
    assert await caller(second).get(run["run_id"]) == run
    await caller(second).deliver(run["run_id"], "call_2", output=POSITION)
    await eventually(lambda: _waits_for_the_order(caller(second), run), "the run to wait for the order alone")
    second.terminate()
    assert second.ended() == 0

    client = caller(serve(environment).ready())
    await client.deliver(run["run_id"], "call_1", output="here it is")
    done = await finished(client, run["run_id"])
    assert [execution["output"] for execution in done["result"]["tool_executions"]] == ["here it is", POSITION]
    assert len(gate.calls()) == 1
    events = await client.events(run["run_id"])
    assert [event["data"]["reason"] for event in of_type(events, "run_resumed")] == ["wake", "wake"]
    assert types_of(events).count("tool_deferred") == types_of(events).count("tool_background_resolved") == 1


async def _waits_for_the_order(client: Client, run: Json) -> bool:
    now = await client.get(run["run_id"])
    return now["status"] == "waiting" and [entry["id"] for entry in now["waiting_for"]] == ["call_1"]


async def test_a_call_that_is_approved_may_be_deferred(client: Client, model: Model, gate: Gate) -> None:
    model.script(calls(("order", {"item": gate.name})), DONE)
    run, question = await asked(client, agent=judged(rule("request_approval"), tools=["order"]))
    assert gate.calls() == []
    await client.decide(question, "approve")

    async def deferred() -> bool:
        now = await client.get(run["run_id"])
        return now["waiting_for"] == [{"kind": "tool_result", "id": "call_1"}]

    await eventually(deferred, "the call to be deferred")
    assert (await client.get(run["run_id"]))["status"] == "waiting"
    await client.deliver(run["run_id"], "call_1", output=1)
    assert (await execution_of(client, run))["success"]
