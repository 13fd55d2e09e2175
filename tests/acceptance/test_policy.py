"""Policy: what rules, the agent's and the operator's, let a run do, and the record of it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance.client import Client, Json, an_agent, check_log, of_type, problem, types_of
from tests.acceptance.conftest import Caller, Serve, Settings
from tests.acceptance.gates import Gate
from tests.acceptance.model import Model, calls
from tests.acceptance.questions import REASON, asked, judged, look_up, pending, rule
from tests.model_server import Reply

DONE = Reply(text="Done.")


async def decisions(client: Client, run: Json) -> list[Json]:
    """The data of all policy decisions of a run."""
    events = await client.events(run["run_id"])
    check_log(events, run)
    return [event["data"] for event in of_type(events, "policy_decision")]


def told(model: Model) -> str:
    """What the model was told last of a tool call."""
    message = model.messages()[-1]
    assert message["role"] == "tool"
    return message["content"]


@pytest.mark.parametrize(
    ("action", "status", "ran"),
    [
        ("allow", "completed", True),
        ("deny", "completed", False),
        ("request_approval", "waiting", False),
        ("request_user_input", "waiting", False),
    ],
)
async def test_a_rule_decides_whether_a_call_runs_and_its_decision_is_on_record(
    client: Client, model: Model, gate: Gate, action: str, status: str, ran: bool
) -> None:
    gate.open()
    model.script(calls(("send", {"gate": gate.name})), DONE)
    run = await client.create_and_wait(agent=judged(rule(action, "send")), input="Go.")
    assert run["status"] == status
    assert len(gate.calls()) == ran
    assert await decisions(client, run) == [
        {
            "subject": "tool_call",
            "action": action,
            "reason": REASON,
            "rule_id": action,
            "matched_rules": [action],
            "tool_name": "send",
            "tool_call_id": "call_1",
        }
    ]
    kinds = {"request_approval": ["approval"], "request_user_input": ["input"]}.get(action, [])
    assert [question["kind"] for question in await client.interactions(run["run_id"])] == kinds
    assert ("tool_started" in types_of(await client.events(run["run_id"]))) == ran


@pytest.mark.parametrize("policy", ["continue", "degrade", "fail"])
async def test_a_denied_call_is_an_error_for_the_model_and_does_to_the_run_what_its_agent_says(
    client: Client, model: Model, gate: Gate, policy: str
) -> None:
    model.script(calls(("send", {"gate": gate.name}), ("lookup", {"word": "fine"})), Reply(text="Then not."))
    agent = judged(rule("deny", "send"), approval_denial_policy=policy)
    run = await client.create_and_wait(agent=agent, input="Go.")
    assert run["status"] == {"continue": "completed", "degrade": "degraded", "fail": "failed"}[policy]
    denied, fine = run["result"]["tool_executions"]
    assert (denied["success"], fine["success"], gate.calls()) == (False, True, [])
    assert denied["error"] == f"policy denies this call: {REASON}"
    assert (run["error"] and run["error"]["code"]) == (None if policy == "continue" else "approval_denied")
    if policy == "fail":
        assert len(model.requests()) == 1
        await client.steer("resume", run["run_id"])  # the person who resumes it lets it go on without that call
        run = await client.wait(run["run_id"])
        assert run["status"] == "completed"
    assert run["result"]["final_text"] == "Then not."
    by_call = {message.get("tool_call_id"): message["content"] for message in model.messages()}
    assert f"policy denies this call: {REASON}" in by_call["call_1"]
    assert gate.calls() == []


async def test_a_rule_changes_the_arguments_that_a_call_runs_with(client: Client, model: Model) -> None:
    model.script(look_up("short"), DONE)
    agent = judged(rule("allow", "lookup", arguments={"word": "longer word"}))
    run = await client.create_and_wait(agent=agent, input="Go.")
    (execution,) = run["result"]["tool_executions"]
    assert execution["output"] == {"word": "longer word", "letters": 11}
    (started,) = of_type(await client.events(run["run_id"]), "tool_started")
    assert started["data"]["arguments"] == {"word": "longer word"}


async def test_arguments_that_a_rule_breaks_are_an_error_for_the_model(client: Client, model: Model) -> None:
    model.script(look_up("short"), DONE)
    agent = judged(rule("allow", "lookup", arguments={"word": ["no", "word"]}))
    run = await client.create_and_wait(agent=agent, input="Go.")
    (execution,) = run["result"]["tool_executions"]
    assert (run["status"], execution["success"]) == ("completed", False)
    assert "word" in told(model)


async def test_a_person_is_shown_the_arguments_as_a_rule_has_changed_them(client: Client, model: Model) -> None:
    model.script(look_up("short"), DONE)
    agent = judged(rule("request_approval", "lookup", arguments={"word": "changed"}))
    run, question = await asked(client, agent=agent)
    assert question["arguments"] == {"word": "changed"}
    await client.decide(question, "approve")
    (execution,) = (await client.wait(run["run_id"]))["result"]["tool_executions"]
    assert execution["output"]["word"] == "changed"


async def test_the_highest_priority_decides_then_the_first_id_and_all_that_matched_are_on_record(
    client: Client, model: Model
) -> None:
    model.script(look_up("a"), DONE)
    rules = [
        rule("allow", rule_id="low", priority=-1),
        rule("allow", "look*", rule_id="second", priority=5),
        rule("deny", "lookup", rule_id="first", priority=5),
        rule("request_approval", "send", rule_id="of-another-tool", priority=9),
    ]
    run = await client.create_and_wait(agent=judged(*rules), input="Go.")
    (decision,) = await decisions(client, run)
    assert (decision["action"], decision["rule_id"]) == ("deny", "first")
    assert decision["matched_rules"] == ["first", "second", "low"]


async def test_a_call_that_no_rule_is_about_is_allowed(client: Client, model: Model) -> None:
    model.script(look_up("a"), DONE)
    run = await client.create_and_wait(agent=judged(rule("deny", "send")), input="Go.")
    assert run["result"]["tool_executions"][0]["success"]
    (decision,) = await decisions(client, run)
    assert (decision["action"], decision["rule_id"], decision["matched_rules"]) == ("allow", None, [])

    model.script(look_up("a"), DONE)
    assert await decisions(client, await client.create_and_wait(agent=an_agent(), input="Go.")) == []


async def test_conditions_look_at_the_context_and_at_who_acts(client: Client, model: Model) -> None:
    condition = {"agent_name": "test*", "context": {"user.tier": "free"}}
    agent = judged(rule("deny", condition=condition), context_defaults={"user": {"tier": "free"}})
    for context, success in [({}, False), ({"user": {"tier": "paid"}}, True), ({"user": {"tier": "free"}}, False)]:
        model.script(look_up("a"), DONE)
        run = await client.create_and_wait(agent=agent, input="Go.", context=context)
        assert run["result"]["tool_executions"][0]["success"] is success, context


@pytest.mark.parametrize(
    ("test", "denied"),
    [
        ({"path": "$.currency", "op": "eq", "value": "EUR"}, True),  # as the default is, after the hook
        ({"path": "$.currency", "op": "eq", "value": "eur"}, False),
        ({"path": "$.amount", "op": "gt", "value": 499}, True),  # as the number that the hook made of text
        ({"path": "$.amount", "op": "eq", "value": 5}, False),
    ],
)
async def test_conditions_see_arguments_after_validation_defaults_and_hooks(
    client: Client, model: Model, test: Json, denied: bool
) -> None:
    model.script(calls(("pay", {"amount": "5"})), DONE)
    agent = judged(rule("deny", condition={"tool_name": "pay", "arguments": [test]}), tools=["pay"])
    run = await client.create_and_wait(agent=agent, input="Go.")
    (execution,) = run["result"]["tool_executions"]
    assert (execution["success"], execution["output"]) == ((False, None) if denied else (True, "paid 500 EUR"))
    assert len(await decisions(client, run)) == 1


async def test_a_person_sees_the_arguments_as_a_hook_has_changed_them(client: Client, model: Model) -> None:
    model.script(calls(("pay", {"amount": "5"})), DONE)
    agent = judged(rule("request_approval", "pay"), tools=["pay"])
    run, question = await asked(client, agent=agent)
    assert question["arguments"] == {"amount": 500, "currency": "EUR"}
    await client.decide(question, "approve")
    done = await client.wait(run["run_id"])
    assert done["result"]["tool_executions"][0]["output"] == "paid 500 EUR"
    (started,) = of_type(await client.events(run["run_id"]), "tool_started")
    assert started["data"]["arguments"] == {"amount": 500, "currency": "EUR"}


async def test_a_call_that_its_hook_or_its_schema_refuses_is_not_judged(client: Client, model: Model) -> None:
    model.script(calls(("pay", {"amount": -1}), ("pay", {"sum": 1}), ("lookup", {})), DONE)
    run = await client.create_and_wait(agent=judged(rule("request_approval"), tools=["pay", "lookup"]), input="Go.")
    assert run["status"] == "completed"
    refused, *unfit = run["result"]["tool_executions"]
    assert "nobody pays nothing" in refused["error"]
    assert all("do not fit" in execution["error"] for execution in unfit)
    assert await decisions(client, run) == []


@pytest.mark.parametrize("policy", ["continue", "degrade", "fail"])
async def test_a_denied_model_call_ends_the_run_and_is_never_made(client: Client, model: Model, policy: str) -> None:
    agent = judged(rule("deny", subject="model_call"), approval_denial_policy=policy)
    run = await client.create_and_wait(agent=agent, input="Go.")
    assert (run["status"], run["error"]["code"]) == (
        "degraded" if policy == "degrade" else "failed",
        "approval_denied",
    )
    assert REASON in run["error"]["message"]
    assert model.requests() == []
    (decision,) = await decisions(client, run)
    assert (decision["subject"], decision["tool_name"], decision["tool_call_id"]) == ("model_call", None, None)
    assert "llm_called" not in types_of(await client.events(run["run_id"]))


@pytest.mark.parametrize("thread", [{}, {"thread_id": "asks-before-it-thinks"}])
async def test_a_model_call_waits_for_its_approval_each_time(client: Client, model: Model, thread: Json) -> None:
    model.script(look_up("a"), DONE)
    agent = judged(rule("request_approval", subject="model_call"))
    run, first = await asked(client, agent=agent, **thread)
    assert (first["kind"], first["tool_name"], first["tool_call_id"], first["arguments"]) == (
        "approval", None, None, None,
    )  # fmt: skip
    assert model.requests() == []
    await client.decide(first, "approve")
    await client.until(run["run_id"], "waiting")
    second = await pending(client, run["run_id"])
    assert len(model.requests()) == 1
    await client.decide(second, "approve")
    done = await client.wait(run["run_id"])
    assert (done["status"], done["result"]["final_text"]) == ("completed", "Done.")
    assert [decision["action"] for decision in await decisions(client, done)] == ["request_approval"] * 2


@pytest.mark.parametrize(("value", "words"), [("Be brief.", "Be brief."), ({"tone": "kind"}, '{"tone":"kind"}')])
async def test_what_a_person_says_before_a_model_call_is_a_message_to_the_model(
    client: Client, model: Model, value: Any, words: str
) -> None:
    model.script(DONE)
    run, question = await asked(client, agent=judged(rule("request_user_input", subject="model_call")))
    await client.decide(question, "approve", value=value)
    assert (await client.wait(run["run_id"]))["status"] == "completed"
    assert [message["content"] for message in model.messages() if message["role"] == "user"] == ["Go.", words]
    assert [message["role"] for message in await client.messages(run["thread_id"])] == ["user", "user", "assistant"]


async def test_a_denied_delegation_makes_no_child_run(client: Client, model: Model, agent_name: str) -> None:
    await client.put_agent(agent_name)
    delegate = f"delegate_to_{agent_name}"
    model.script(calls((delegate, {"task": "Help."})), Reply(text="Alone, then."))
    agent = judged(rule("deny", "delegate_to_*", subject="subagent_call"), subagents=[agent_name])
    run = await client.create_and_wait(agent=agent, input="Go.")
    assert (run["status"], run["result"]["final_text"]) == ("completed", "Alone, then.")
    assert run["result"]["subagent_executions"] == []
    assert REASON in told(model)
    (decision,) = await decisions(client, run)
    assert (decision["subject"], decision["tool_name"]) == ("subagent_call", delegate)
    assert not {"subagent_started", "tool_started"} & set(types_of(await client.events(run["run_id"])))


async def test_a_delegation_waits_for_its_approval_and_takes_an_edited_task(
    client: Client, model: Model, agent_name: str
) -> None:
    await client.put_agent(agent_name)
    model.script(calls((f"delegate_to_{agent_name}", {"task": "Do it all."})), Reply(text="A little."), DONE)
    agent = judged(rule("request_approval", subject="subagent_call"), subagents=[agent_name])
    run, question = await asked(client, agent=agent)
    assert question["arguments"] == {"task": "Do it all."}
    refused = problem(await client.answer(question, "approve", arguments={"job": "?"}), 422, "validation_error")
    assert refused["errors"][0]["loc"] == ["body", "arguments"]
    await client.decide(question, "approve", arguments={"task": "Do a little."})
    done = await client.wait(run["run_id"])
    assert (done["status"], done["result"]["final_text"]) == ("completed", "Done.")
    assert [message["content"] for message in model.requests()[1]["messages"]] == ["Do a little."]
    (child,) = done["result"]["subagent_executions"]
    assert (child["subagent_name"], child["output_text"]) == (agent_name, "A little.")


MALFORMED: list[tuple[Json, list[str | int]]] = [
    ({"action": "permit"}, ["action"]),
    ({"subjects": []}, ["subjects"]),
    ({"subjects": ["tool_call", "tool"]}, ["subjects", 1]),
    ({"priority": "high"}, ["priority"]),
    ({"condition": {"tool": "send"}}, ["condition", "tool"]),
    ({"condition": {"arguments": [{"path": "amount", "op": "eq", "value": 1}]}}, ["condition", "arguments", 0, "path"]),
    ({"condition": {"arguments": [{"path": "$.a", "op": "like", "value": 1}]}}, ["condition", "arguments", 0, "op"]),
    ({"condition": {"arguments": [{"path": "$.a", "op": "lt", "value": []}]}}, ["condition", "arguments", 0, "value"]),
    ({"action": "deny", "arguments": {"a": 1}}, ["arguments"]),
    ({"subjects": ["model_call"], "condition": {"tool_name": "send"}}, ["condition"]),
    ({"then": "stop"}, ["then"]),
]


@pytest.mark.parametrize(("wrong", "loc"), MALFORMED)
async def test_a_malformed_rule_is_refused_with_its_path(
    client: Client, agent_name: str, wrong: Json, loc: list[str | int]
) -> None:
    good = {"rule_id": "good", "action": "allow", "subjects": ["tool_call"]}
    agent = an_agent(policy={"rules": [good, {**good, "rule_id": "bad", **wrong}]})
    inline = problem(await client.http.post("/runs", json={"agent": agent, "input": "Go."}), 422, "validation_error")
    assert [error["loc"] for error in inline["errors"]] == [["body", "agent", "policy", "rules", 1, *loc]]
    named = await client.http.put(f"/agents/{agent_name}", json={**agent, "name": agent_name})
    stored = problem(named, 422, "validation_error")
    assert [error["loc"] for error in stored["errors"]] == [["body", "policy", "rules", 1, *loc]]


async def test_two_rules_with_one_id_are_refused(client: Client) -> None:
    agent = judged(rule("deny", rule_id="same"), rule("allow", rule_id="same"))
    refused = problem(await client.http.post("/runs", json={"agent": agent, "input": "Go."}), 422, "validation_error")
    assert refused["errors"][0]["loc"] == ["body", "agent", "policy", "rules"]
    assert "same" in refused["errors"][0]["msg"]


async def test_the_operators_rules_hold_for_every_agent_and_one_that_breaks_denies(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model
) -> None:
    environment = settings(DATABASE_URL=database_url, POLICY_MODULES="tests.acceptance.operator_rules")
    client = caller(serve(environment).ready())
    expected = [("fine", None, True), ("secret", "no-secrets", False), ("odd", "broken", False)]
    for word, rule_id, success in expected:
        model.script(look_up(word), DONE)
        agent = judged(rule("allow", priority=1))
        run = await client.create_and_wait(agent=agent, input="Go.")
        assert run["result"]["tool_executions"][0]["success"] is success
        (decision,) = await decisions(client, run)
        assert decision["rule_id"] == (rule_id or "allow")
        assert decision["matched_rules"] == [*([rule_id] if rule_id else []), "allow"]
    assert "policy denies this call" in told(model)
