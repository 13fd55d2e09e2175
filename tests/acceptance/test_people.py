"""People: runs that ask them, and what becomes of their answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.acceptance.client import Client, Json, an_agent, check_log, of_type, problem, types_of
from tests.acceptance.gates import Gate
from tests.acceptance.model import Model, calls
from tests.acceptance.questions import REASON, asked, finished, judged, look_up, pending, rule, sends
from tests.acceptance.waiting import eventually
from tests.model_server import Reply

DONE = Reply(text="Done.")


async def test_an_approved_call_runs_after_its_run_has_waited_as_a_row(
    clients: tuple[Client, Client], model: Model, gate: Gate
) -> None:
    a, b = clients
    gate.open()
    model.script(sends(gate), DONE)
    run, question = await asked(a, agent=judged(rule("request_approval", "send")))
    assert run["waiting_for"] == [{"kind": "interaction", "id": question["interaction_id"]}]
    assert (run["result"], run["error"], gate.calls()) == (None, None, [])
    assert question["prompt"] == "May tester call send?"
    assert (question["tool_name"], question["tool_call_id"]) == ("send", "call_1")
    assert (question["arguments"], question["reason"]) == ({"gate": gate.name}, REASON)
    assert (question["decision"], question["decided_by"], question["resolved_at"]) == (None, None, None)

    resolved = await b.decide(question, "approve", reason="go ahead", decided_by="Ann")
    assert (resolved["status"], resolved["decision"], resolved["decided_by"]) == ("resolved", "approve", "Ann")
    done = await finished(a, run["run_id"])
    assert (done["status"], done["attempt"], done["waiting_for"]) == ("completed", 2, [])
    assert len(gate.calls()) == 1
    events = await a.events(run["run_id"])
    step = ["step_started", "llm_called", "llm_completed"]
    asks = ["policy_decision", "interaction_requested", "run_waiting", "interaction_resolved", "run_resumed"]
    tools = ["tool_batch_started", "tool_started", "tool_completed"]
    assert types_of(events) == ["run_started", *step, *asks, *tools, *step, "run_completed"]
    (resumed,) = of_type(events, "run_resumed")
    assert resumed["data"]["reason"] == "wake"
    (waiting,) = of_type(events, "run_waiting")
    assert (waiting["state"], waiting["data"]["waiting_for"]) == ("waiting", run["waiting_for"])


async def test_a_denied_call_never_runs_and_the_model_is_told_who_and_why(
    client: Client, model: Model, gate: Gate
) -> None:
    model.script(sends(gate), DONE)
    run, question = await asked(client, agent=judged(rule("request_approval", "send")))
    await client.decide(question, "deny", reason="not on a Sunday", decided_by="Ann")
    done = await finished(client, run["run_id"])
    assert (done["status"], gate.calls()) == ("completed", [])
    assert done["result"]["tool_executions"][0]["error"] == "a person denied this call: not on a Sunday"
    assert "not on a Sunday" in model.messages()[-1]["content"]
    (resolved,) = of_type(await client.events(run["run_id"]), "interaction_resolved")
    data = resolved["data"]
    assert (data["interaction_id"], data["decision"]) == (question["interaction_id"], "deny")
    assert (data["by"], data["reason"], data["status"]) == ("Ann", "not on a Sunday", "resolved")


@pytest.mark.parametrize(("policy", "status"), [("continue", "completed"), ("degrade", "degraded"), ("fail", "failed")])
async def test_a_denial_does_to_the_run_what_its_agent_says(
    client: Client, model: Model, gate: Gate, policy: str, status: str
) -> None:
    model.script(sends(gate), DONE)
    agent = judged(rule("request_approval", "send"), approval_denial_policy=policy)
    run, question = await asked(client, agent=agent)
    await client.decide(question, "deny")
    done = await finished(client, run["run_id"])
    assert done["status"] == status
    assert (done["error"] and done["error"]["code"]) == (None if policy == "continue" else "approval_denied")


async def test_edited_arguments_are_validated_like_the_models_and_the_call_runs_with_them(
    client: Client, model: Model
) -> None:
    model.script(calls(("pay", {"amount": 900})), DONE)
    agent = judged(rule("request_approval", "pay"), tools=["pay"])
    run, question = await asked(client, agent=agent)
    for wrong in ({}, {"amount": "much"}, {"amount": 1, "sum": 1}):
        refused = problem(await client.answer(question, "approve", arguments=wrong), 422, "validation_error")
        assert refused["errors"][0]["loc"] == ["body", "arguments"]
    refused = problem(await client.answer(question, "deny", arguments={"amount": 1}), 422, "validation_error")
    assert refused["errors"][0]["loc"] == ["body", "arguments"]
    assert await pending(client, run["run_id"]) == question

    await client.decide(question, "approve", arguments={"amount": "90", "currency": "CHF"})
    done = await finished(client, run["run_id"])
    assert done["result"]["tool_executions"][0]["output"] == "paid 90 CHF"
    (started,) = of_type(await client.events(run["run_id"]), "tool_started")
    assert started["data"]["arguments"] == {"amount": 90, "currency": "CHF"}


async def test_the_same_decision_again_changes_nothing_and_any_other_is_a_conflict(
    clients: tuple[Client, Client], model: Model
) -> None:
    a, b = clients
    model.script(look_up("a"), DONE)
    run, question = await asked(a, agent=judged(rule("request_approval")))
    decided = await a.decide(question, "approve", arguments={"word": "edited"}, decided_by="Ann")
    await finished(a, run["run_id"])
    assert await b.decide(question, "approve", arguments={"word": "edited"}, decided_by="Bob") == decided
    for decision, body in [("approve", {}), ("approve", {"arguments": {"word": "other"}}), ("deny", {})]:
        refused = problem(await b.answer(question, decision, **body), 409, "conflict")
        assert refused["current_status"] == "completed"


async def test_a_rule_that_denies_holds_for_edited_arguments_as_well(client: Client, model: Model) -> None:
    too_much = {"tool_name": "pay", "arguments": [{"path": "$.amount", "op": "gt", "value": 100_000}]}
    model.script(calls(("pay", {"amount": 900})), DONE)
    agent = judged(rule("request_approval", "pay"), rule("deny", condition=too_much, priority=1), tools=["pay"])
    run, question = await asked(client, agent=agent)
    await client.decide(question, "approve", arguments={"amount": 200_000})
    (execution,) = (await finished(client, run["run_id"]))["result"]["tool_executions"]
    assert not execution["success"]
    assert "with these arguments" in execution["error"]


@pytest.mark.parametrize("value", ["by hand", 42, {"sent": True}, [], False])
async def test_a_value_that_a_person_supplies_is_the_calls_result(
    client: Client, model: Model, gate: Gate, value: Any
) -> None:
    model.script(sends(gate), DONE)
    run, question = await asked(client, agent=judged(rule("request_user_input", "send")))
    assert question["kind"] == "input"
    resolved = await client.decide(question, "approve", value=value)
    assert resolved["value"] == value
    (execution,) = (await finished(client, run["run_id"]))["result"]["tool_executions"]
    assert (execution["success"], execution["output"], gate.calls()) == (True, value, [])


async def test_a_question_for_a_value_takes_arguments_to_run_the_call_with_instead(
    client: Client, model: Model
) -> None:
    model.script(look_up("?"), DONE)
    run, question = await asked(client, agent=judged(rule("request_user_input", "lookup")))
    await client.decide(question, "approve", arguments={"word": "better"})
    (execution,) = (await finished(client, run["run_id"]))["result"]["tool_executions"]
    assert execution["output"] == {"word": "better", "letters": 6}


@pytest.mark.parametrize(
    ("action", "body", "loc"),
    [
        ("request_approval", {"decision": "approve", "value": 1}, ["body", "value"]),
        ("request_user_input", {"decision": "approve"}, ["body", "value"]),
        ("request_user_input", {"decision": "approve", "value": None}, ["body", "value"]),
        ("request_user_input", {"decision": "deny", "value": 1}, ["body", "value"]),
        ("request_user_input", {"decision": "approve", "value": 1, "arguments": {"word": "a"}}, ["body", "arguments"]),
        ("request_approval", {"decision": "perhaps"}, ["body", "decision"]),
        ("request_approval", {"decision": "approve", "decided_by": "expiry"}, ["body", "decided_by"]),
        ("request_approval", {"decision": "approve", "who": "me"}, ["body", "who"]),
        ("request_approval", {}, ["body", "decision"]),
    ],
)
async def test_an_answer_that_does_not_fit_its_question_is_refused_and_the_question_stays_open(
    client: Client, model: Model, action: str, body: Json, loc: list[str]
) -> None:
    model.script(look_up("a"))
    run, question = await asked(client, agent=judged(rule(action)))
    path = f"/runs/{run['run_id']}/interactions/{question['interaction_id']}"
    refused = problem(await client.http.post(path, json=body), 422, "validation_error")
    assert refused["errors"][0]["loc"] == loc
    assert await pending(client, run["run_id"]) == question


async def test_questions_that_are_not_there_are_not_found(client: Client, model: Model) -> None:
    model.script(look_up("a"), look_up("a"))
    run, question = await asked(client, agent=judged(rule("request_approval")))
    other, _ = await asked(client, agent=judged(rule("request_approval")))
    for wrong in (
        {**question, "run_id": other["run_id"]},
        {**question, "interaction_id": run["run_id"]},
        {**question, "interaction_id": "nonsense"},
    ):
        problem(await client.answer(wrong, "approve"), 404, "not_found")
    problem(await client.http.get("/runs/nonsense/interactions"), 404, "not_found")


async def test_the_inbox_holds_the_open_questions_of_all_runs_oldest_first(
    clients: tuple[Client, Client], model: Model
) -> None:
    a, b = clients
    model.script(*(look_up(word) for word in "abc"), DONE)
    agent = judged(rule("request_approval"))
    asking = [await asked(a, agent=agent) for _ in range(3)]

    async def inbox(**params: str) -> list[str]:
        answer = await b.http.get("/interactions", params={"limit": 100, **params})
        return [question["interaction_id"] for question in answer.json()["items"]]

    ids = [question["interaction_id"] for _, question in asking]
    assert await inbox(status="pending") == ids
    page = (await b.http.get("/interactions", params={"status": "pending", "limit": 2})).json()
    assert [question["interaction_id"] for question in page["items"]] == ids[:2]
    assert await inbox(status="pending", cursor=page["next_cursor"]) == ids[2:]

    await b.decide(asking[1][1], "approve")
    assert await inbox(status="pending") == [ids[0], ids[2]]
    assert ids[1] in await inbox(status="resolved")
    await a.steer("cancel", asking[0][0]["run_id"])
    assert await inbox(status="pending") == ids[2:]
    assert ids[0] in await inbox(status="closed")


async def test_two_calls_of_one_step_are_asked_about_together_and_answered_in_any_order(
    client: Client, model: Model, gate: Gate
) -> None:
    gate.open()
    model.script(calls(("send", {"gate": gate.name}), ("lookup", {"word": "b"}), ("fail", {"reason": "no rule"})), DONE)
    agent = judged(rule("request_approval", "send"), rule("request_user_input", "lookup"))
    run = await client.create_and_wait(agent=agent, input="Go.")
    first, second = await client.interactions(run["run_id"])
    assert [entry["id"] for entry in run["waiting_for"]] == [first["interaction_id"], second["interaction_id"]]
    await client.decide(second, "approve", value="given")
    left = await client.until(run["run_id"], "waiting")
    waiting = [{"kind": "interaction", "id": first["interaction_id"]}]
    await eventually(lambda: _waits_for(client, run["run_id"], waiting), "the run to wait for the other answer")
    assert (left["result"], gate.calls()) == (None, [])
    await client.decide(first, "approve")
    done = await finished(client, run["run_id"])
    assert [execution["success"] for execution in done["result"]["tool_executions"]] == [True, True, False]
    roles = [message.get("tool_call_id") for message in model.messages() if message["role"] == "tool"]
    assert roles == ["call_1", "call_2", "call_3"]


async def _waits_for(client: Client, run_id: str, waiting: list[Json]) -> bool:
    run = await client.get(run_id)
    return (run["status"], run["waiting_for"]) == ("waiting", waiting)


async def test_a_subagents_question_is_in_the_inbox_and_its_answer_lets_the_whole_go_on(
    clients: tuple[Client, Client], model: Model, agent_name: str
) -> None:
    a, b = clients
    await a.put_agent(agent_name, tools=["lookup"], policy={"rules": [rule("request_approval")]})
    delegation = calls((f"delegate_to_{agent_name}", {"task": "Help."}))
    model.script(delegation, look_up("a"), Reply(text="Helped."), DONE)
    run = await a.create(agent=an_agent(subagents=[agent_name], interaction_mode="external"), input="Go.")

    async def inbox() -> list[Json]:
        return (await b.http.get("/interactions", params={"status": "pending"})).json()["items"]

    (question,) = await eventually(inbox, "a question in the inbox")
    (child,) = (await a.until(run["run_id"], "waiting"))["waiting_for"]
    assert child == {"kind": "child_run", "id": question["run_id"]}
    assert await a.interactions(run["run_id"]) == []
    await b.decide(question, "approve")
    done = await a.wait(run["run_id"])
    assert (done["status"], done["result"]["final_text"]) == ("completed", "Done.")
    assert [child["output_text"] for child in done["result"]["subagent_executions"]] == ["Helped."]


async def test_readers_of_a_run_see_it_ask_wait_and_go_on(clients: tuple[Client, Client], model: Model) -> None:
    a, b = clients
    model.script(look_up("a"), DONE)
    run = await a.create(agent=judged(rule("request_approval")), input="Go.")
    seen: list[Json] = []
    async with b.stream(run["run_id"]) as events:
        async for sent in events:
            seen.append(sent.event)
            if sent.type == "run_waiting":
                await a.decide(await pending(a, run["run_id"]), "approve", decided_by="Ann")
    done = await a.get(run["run_id"])
    check_log(seen, done)
    assert seen == await a.events(run["run_id"])
    (requested,) = of_type(seen, "interaction_requested")
    (question,) = await a.interactions(run["run_id"])
    same = ("interaction_id", "kind", "tool_name", "tool_call_id", "arguments", "prompt", "reason", "expires_at")
    assert {name: requested["data"][name] for name in same} == {name: question[name] for name in same}
    assert [event["data"]["by"] for event in of_type(seen, "interaction_resolved")] == ["Ann"]


async def test_whoever_waits_for_a_run_is_answered_when_it_waits_for_a_person(client: Client, model: Model) -> None:
    model.script(look_up("a"), DONE)
    run = await client.create_and_wait(agent=judged(rule("request_approval")), input="Go.")
    assert run["status"] == "waiting"
    assert await client.wait(run["run_id"]) == run
    await client.decide(await pending(client, run["run_id"]), "approve")
    assert (await client.until(run["run_id"], "completed"))["result"]["final_text"] == "Done."


APPROVE = {"approval_fallback": "approve"}
VALUE = {"input_fallback": {"value": {"sent": "no"}}}
# (action, the agent's fallbacks, whether the call succeeds, its output; None for what the tool itself returns)
FALLBACKS: list[tuple[str, Json, bool, Any]] = [
    ("request_approval", {}, False, None),
    ("request_approval", APPROVE, True, None),
    ("request_user_input", {}, False, None),
    ("request_user_input", VALUE, True, {"sent": "no"}),
    ("request_user_input", APPROVE, False, None),
    ("request_approval", VALUE, False, None),
]


@pytest.mark.parametrize(("action", "fallbacks", "success", "output"), FALLBACKS)
async def test_where_nobody_is_to_be_asked_the_fallback_decides_at_once(
    client: Client, model: Model, gate: Gate, action: str, fallbacks: Json, success: bool, output: Any
) -> None:
    gate.open()
    model.script(sends(gate), DONE)
    agent = judged(rule(action, "send"), **fallbacks)
    run = await client.create_and_wait(agent=agent, input="Go.", interaction_mode="headless")
    assert (run["status"], run["attempt"]) == ("completed", 1)
    (execution,) = run["result"]["tool_executions"]
    ran = success and output is None
    assert (execution["success"], len(gate.calls())) == (success, ran)
    assert execution["output"] == (f"{gate.name} is done" if ran else output)
    if not success:
        assert execution["error"].startswith("the fallback denied this call: there is nobody to ask")
    assert await client.interactions(run["run_id"]) == []
    assert "interaction_requested" not in types_of(await client.events(run["run_id"]))


@pytest.mark.parametrize(("action", "fallbacks", "success", "output"), FALLBACKS[:4])
async def test_where_nobody_answers_in_time_the_fallback_decides(
    client: Client, model: Model, gate: Gate, action: str, fallbacks: Json, success: bool, output: Any
) -> None:
    gate.open()
    model.script(sends(gate), DONE)
    agent = judged(rule(action, "send"), approval_timeout_s=0.5, input_timeout_s=0.5, **fallbacks)
    run, question = await asked(client, agent=agent)
    done = await finished(client, run["run_id"])
    (execution,) = done["result"]["tool_executions"]
    assert execution["success"] == success
    assert execution["output"] == (output or (f"{gate.name} is done" if success else None))
    (expired,) = await client.interactions(run["run_id"])
    assert (expired["status"], expired["decided_by"]) == ("expired", "expiry")
    assert expired["decision"] == ("approve" if success else "deny")
    (resolved,) = of_type(await client.events(run["run_id"]), "interaction_resolved")
    assert (resolved["data"]["by"], resolved["data"]["status"]) == ("expiry", "expired")
    late = "deny" if success else "approve"
    body = {"value": 1} if (action, late) == ("request_user_input", "approve") else {}
    problem(await client.answer(question, late, **body), 409, "conflict")


async def test_of_people_who_answer_at_once_one_decides_and_the_others_hear_of_it(
    clients: tuple[Client, Client], model: Model
) -> None:
    for _ in range(5):
        model.script(look_up("a"), DONE)
        run, question = await asked(clients[0], agent=judged(rule("request_approval")))
        decisions = ["approve", "deny", "deny", "approve", "approve", "deny", "deny", "approve"]
        answers = await asyncio.gather(
            *(clients[i % 2].answer(question, decision, decided_by=str(i)) for i, decision in enumerate(decisions))
        )
        (decided,) = await clients[0].interactions(run["run_id"])
        for decision, answer in zip(decisions, answers, strict=True):
            if decision == decided["decision"]:
                assert (answer.status_code, answer.json()) == (200, decided)
            else:
                assert "takes no other answer" in problem(answer, 409, "conflict")["detail"]
        done = await finished(clients[0], run["run_id"])
        assert len(of_type(await clients[0].events(run["run_id"]), "interaction_resolved")) == 1
        assert done["result"]["tool_executions"][0]["success"] == (decided["decision"] == "approve")
