"""What a failure, or a limit, does to a run: by the policies that its agent states."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.acceptance.client import Client, Json, an_agent, check_log, of_type, types_of
from tests.acceptance.gates import Gate
from tests.acceptance.model import Model, calls
from tests.acceptance.questions import asked, finished, judged, look_up, rule
from tests.model_server import Reply

ANYWAY = Reply(text="Anyway.")
ENDINGS = {"continue": "completed", "degrade": "degraded", "fail": "failed"}


def a_tool_fails(policy: str) -> tuple[Json, list[Reply]]:
    return an_agent(tool_failure_policy=policy), [calls(("fail", {"reason": "no"}), text="I try.")]


def a_call_is_denied(policy: str) -> tuple[Json, list[Reply]]:
    agent = judged(rule("deny", "lookup"), approval_denial_policy=policy)
    return agent, [look_up("a", text="I try.")]


def an_approval_is_nobodys(policy: str) -> tuple[Json, list[Reply]]:
    agent = judged(rule("request_approval", "lookup"), approval_denial_policy=policy, interaction_mode="headless")
    return agent, [look_up("a", text="I try.")]


def a_subagent_fails(policy: str) -> tuple[Json, list[Reply]]:
    agent = an_agent(subagents=["failing"], subagent_failure_policy=policy)
    delegation = calls(("delegate_to_failing", {"task": "Help."}), text="I try.")
    return agent, [delegation, Reply.error(400, "cannot")]


@pytest.mark.parametrize("policy", ENDINGS)
@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (a_tool_fails, "tool_failed"),
        (a_call_is_denied, "approval_denied"),
        (an_approval_is_nobodys, "approval_denied"),
        (a_subagent_fails, "subagent_failed"),
    ],
)
async def test_a_failure_lets_the_run_go_on_degrades_it_or_ends_it_as_the_agent_says(
    client: Client, model: Model, failure: Callable[[str], tuple[Json, list[Reply]]], code: str, policy: str
) -> None:
    await client.put_agent("failing")
    agent, replies = failure(policy)
    model.script(*replies, ANYWAY)
    run = await client.create_and_wait(agent=agent, input="Go.")
    assert run["status"] == run["result"]["state"] == ENDINGS[policy]
    assert (run["error"] and run["error"]["code"]) == (None if policy == "continue" else code)
    assert run["result"]["error"] == run["error"]
    text = run["error"]["message"] if policy == "fail" else "Anyway."
    assert run["result"]["final_text"] == text
    assert len(model.requests()) == len(replies) + (policy != "fail")
    (execution,) = run["result"]["tool_executions"]
    assert not execution["success"]
    check_log(await client.events(run["run_id"]), run)


@pytest.mark.parametrize("failure", [a_tool_fails, a_call_is_denied, a_subagent_fails])
async def test_a_run_that_a_failure_ended_goes_on_without_it_when_it_is_resumed(
    client: Client, model: Model, failure: Callable[[str], tuple[Json, list[Reply]]]
) -> None:
    await client.put_agent("failing")
    agent, replies = failure("fail")
    model.script(*replies)
    run = await client.create_and_wait(agent=agent, input="Go.")
    assert run["status"] == "failed"
    model.script(ANYWAY)
    await client.steer("resume", run["run_id"])
    done = await client.wait(run["run_id"])
    assert (done["status"], done["error"], done["result"]["final_text"]) == ("completed", None, "Anyway.")
    assert [message["role"] for message in model.messages()] == ["system", "user", "assistant", "tool"]


async def test_a_tool_that_must_not_fail_ends_the_run_whatever_its_agent_says(client: Client, model: Model) -> None:
    model.script(calls(("insist", {"reason": "no ink"})), ANYWAY)
    run = await client.create_and_wait(agent=an_agent(tools=["insist"], tool_failure_policy="continue"), input="Go.")
    assert (run["status"], run["error"]["code"]) == ("failed", "tool_failed")
    assert "no ink" in run["error"]["message"]
    assert len(model.requests()) == 1


async def test_the_first_failure_that_was_tolerated_is_the_one_that_is_told(client: Client, model: Model) -> None:
    replies = [calls(("fail", {"reason": reason}), start=i) for i, reason in enumerate(["first", "second"], 1)]
    model.script(*replies, look_up("fine"), ANYWAY)
    run = await client.create_and_wait(agent=an_agent(tool_failure_policy="degrade"), input="Go.")
    assert (run["status"], run["result"]["final_text"]) == ("degraded", "Anyway.")
    assert "first" in run["error"]["message"]


async def test_a_failure_that_ends_the_run_is_told_before_one_that_is_tolerated(client: Client, model: Model) -> None:
    model.script(calls(("fail", {"reason": "tolerated"}), ("lookup", {"word": "a"})))
    agent = judged(rule("deny", "lookup"), tool_failure_policy="degrade", approval_denial_policy="fail")
    run = await client.create_and_wait(agent=agent, input="Go.")
    assert (run["status"], run["error"]["code"]) == ("failed", "approval_denied")


@pytest.mark.parametrize(("policy", "status"), [("fail", "failed"), ("degrade", "degraded")])
@pytest.mark.parametrize("words", ["", "So far, so good."])
async def test_a_model_that_fails_ends_the_run_with_its_error_or_with_the_best_text(
    client: Client, model: Model, policy: str, status: str, words: str
) -> None:
    model.script(look_up("a", text=words), Reply.error(400, "no more"))
    run = await client.create_and_wait(agent=an_agent(llm_failure_policy=policy), input="Go.")
    assert (run["status"], run["error"]["code"]) == (status, "invalid_model_request")
    assert run["result"]["final_text"] == (run["error"]["message"] if policy == "fail" else words)
    check_log(await client.events(run["run_id"]), run)


@pytest.mark.parametrize(("policy", "status"), [("fail", "failed"), ("degrade", "degraded")])
@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"max_steps": 2}, "max_steps"),
        ({"max_llm_calls": 2}, "max_llm_calls"),
        ({"max_tool_calls": 1}, "max_tool_calls"),
        ({"max_total_tokens": 36}, "budget_exceeded"),
        ({"max_total_cost_usd": 0.000007}, "budget_exceeded"),
    ],
)
async def test_a_limit_fails_the_run_or_degrades_it_to_the_best_text(
    client: Client, model: Model, limits: Json, code: str, policy: str, status: str
) -> None:
    model.script(*(calls(("lookup", {"word": "a"}), text=f"Look {i}.", start=i) for i in (1, 2, 3)))
    run = await client.create_and_wait(agent=an_agent(on_limit=policy, limits=limits), input="Go.")
    assert (run["status"], run["error"]["code"]) == (status, code)
    assert run["result"]["final_text"] == (run["error"]["message"] if policy == "fail" else "Look 2.")
    assert next(iter(limits)) in run["error"]["message"]
    assert len(model.requests()) == 2
    check_log(await client.events(run["run_id"]), run)


@pytest.mark.parametrize("agent", [an_agent(), judged(rule("request_approval", "lookup"))])
async def test_a_hundred_calls_over_a_limit_of_five_execute_none_and_ask_nobody(
    client: Client, model: Model, agent: Json
) -> None:
    model.script(calls(*[("lookup", {"word": "a"})] * 100, text="All at once."))
    run = await client.create_and_wait(agent=agent, input="Go.", limits={"max_tool_calls": 5})
    assert (run["status"], run["error"]["code"]) == ("failed", "max_tool_calls")
    assert await client.interactions(run["run_id"]) == []
    events = types_of(await client.events(run["run_id"]))
    assert not {"policy_decision", "interaction_requested", "tool_batch_started", "tool_started"} & set(events)
    assert run["result"]["state_snapshot"]["tool_calls"] == 0
    assert not any(execution["success"] for execution in run["result"]["tool_executions"])


async def test_nobody_is_asked_about_a_model_call_that_a_limit_forbids(client: Client, model: Model) -> None:
    model.script(look_up("a"))
    agent = judged(rule("request_approval", subject="model_call"))
    run, question = await asked(client, agent=agent, limits={"max_llm_calls": 1})
    await client.decide(question, "approve")
    done = await finished(client, run["run_id"])
    assert (done["status"], done["error"]["code"]) == ("failed", "max_llm_calls")
    assert len(await client.interactions(run["run_id"])) == 1


async def test_a_run_that_is_resumed_over_its_limit_asks_about_the_calls_that_it_held_back(
    client: Client, model: Model
) -> None:
    model.script(calls(*[("lookup", {"word": "a"})] * 6))
    agent = judged(rule("request_approval"))
    run = await client.create_and_wait(agent=agent, input="Go.", limits={"max_tool_calls": 5})
    assert run["status"] == "failed"
    await client.steer("resume", run["run_id"], limits={"max_tool_calls": 6})
    waiting = await client.wait(run["run_id"])
    questions = await client.interactions(run["run_id"])
    assert (waiting["status"], len(waiting["waiting_for"]), len(questions)) == ("waiting", 6, 6)
    model.script(ANYWAY)
    for question in questions:
        await client.decide(question, "approve")
    done = await finished(client, run["run_id"])
    assert (done["status"], done["result"]["state_snapshot"]["tool_calls"]) == ("completed", 6)


async def test_as_many_calls_as_the_limit_says_are_made_and_not_one_more(client: Client, model: Model) -> None:
    words = [("lookup", {"word": "a"})]
    model.script(calls(*words * 3), calls(*words * 2, start=4), calls(*words, start=6))
    run = await client.create_and_wait(agent=an_agent(), input="Go.", limits={"max_tool_calls": 5})
    assert (run["status"], run["error"]["code"]) == ("failed", "max_tool_calls")
    assert [execution["success"] for execution in run["result"]["tool_executions"]] == [*[True] * 5, False]
    assert run["result"]["state_snapshot"]["tool_calls"] == 5


async def test_calls_that_were_denied_or_answered_by_a_person_count_as_none(
    client: Client, model: Model, gate: Gate
) -> None:
    gate.open()
    denied = ("lookup", {"word": "a"})
    model.script(calls(denied, denied, ("read", {"gate": gate.name})), ANYWAY)
    run = await client.create_and_wait(agent=judged(rule("deny", "lookup")), input="Go.")
    assert (run["status"], run["result"]["state_snapshot"]["tool_calls"]) == ("completed", 1)


async def test_a_price_that_nobody_knows_is_null_and_said(client: Client, model: Model) -> None:
    model.script(look_up("a"), ANYWAY)
    agent = an_agent(model="openai/nobody-knows-me", limits={"max_total_cost_usd": 0.01})
    run = await client.create_and_wait(agent=agent, input="Go.")
    assert (run["status"], run["result"]["total_cost_usd"]) == ("completed", None)
    events = await client.events(run["run_id"])
    assert [event["data"]["cost_usd"] for event in of_type(events, "llm_completed")] == [None, None]
    warnings = of_type(events, "warning")
    assert {event["data"]["code"] for event in warnings} == {"price_unknown"}
    assert all("null, not zero" in event["message"] for event in warnings)


async def test_a_price_that_is_unknown_of_a_subagent_is_unknown_of_the_whole(
    client: Client, model: Model, agent_name: str
) -> None:
    await client.put_agent(agent_name, model="openai/nobody-knows-me")
    model.script(calls((f"delegate_to_{agent_name}", {"task": "Help."})), Reply(text="Helped."), ANYWAY)
    run = await client.create_and_wait(agent=an_agent(subagents=[agent_name]), input="Go.")
    assert (run["status"], run["result"]["total_cost_usd"]) == ("completed", None)
    assert run["result"]["usage_aggregate"]["llm_calls"] == 3
