"""Subagents: what a parent's model is offered, what its child runs are given, and what comes back of them."""

from __future__ import annotations

from typing import Any

import asyncpg
import orjson
import pytest

from tests.acceptance.client import Client, Json, check_log, of_type, problem
from tests.acceptance.gates import Gates
from tests.acceptance.model import Model, calls
from tests.acceptance.questions import REASON, finished, pending, rule
from tests.acceptance.teams import (
    BROKEN,
    STUCK,
    WORKER,
    at_once,
    children_of,
    family_is_done,
    line_of,
    put_team,
    statuses_of,
    through,
    told,
)
from tests.model_server import Reply


async def test_the_model_is_given_a_tool_for_each_subagent_that_takes_a_task(
    client: Client, model: Model, agent_name: str
) -> None:
    described = {"reader": {**WORKER, "description": "Reads whatever there is."}, "writer": {**WORKER}}
    team = await put_team(client, agent_name, **described)
    await client.create_and_wait(agent=team.parent(tools=["lookup"]), input="Hi.")
    tools = {tool["function"]["name"]: tool["function"] for tool in model.requests()[0]["tools"]}
    assert list(tools) == ["lookup", team.tool("reader"), team.tool("writer")]
    reader = tools[team.tool("reader")]
    assert "Reads whatever there is." in reader["description"]
    assert team.agent("writer") in tools[team.tool("writer")]["description"]
    parameters = reader["parameters"]
    assert [(name, field["type"]) for name, field in parameters["properties"].items()] == [("task", "string")]
    assert (parameters["required"], parameters["additionalProperties"]) == (["task"], False)


@pytest.mark.parametrize("arguments", [{}, {"task": 7}, {"task": "  "}, {"task": "a", "more": "b"}, "[", "[1]"])
async def test_a_delegation_without_a_task_is_an_error_to_the_model(
    client: Client, model: Model, agent_name: str, arguments: Any
) -> None:
    team = await put_team(client, agent_name, worker=WORKER)
    model.script(calls((team.tool("worker"), arguments)), Reply(text="So be it."))
    run = await family_is_done(client, (await client.create(agent=team.parent(), input="Go."))["run_id"])
    assert "arguments" in str(told(run)["call_1"])
    assert (run["result"]["final_text"], await children_of(client, run["run_id"])) == ("So be it.", [])


async def test_delegations_of_one_step_run_side_by_side_and_their_answers_reach_the_model_in_its_order(
    client: Client, model: Model, agent_name: str, gates: Gates
) -> None:
    team = await put_team(client, agent_name, worker=WORKER)
    first, second = gates.new(), gates.new()
    asked = at_once(team.ask("worker", through(first)), team.ask("worker", through(second)), team.ask("worker", "Hi."))
    run_id = (await client.create(agent=team.parent(), input=asked))["run_id"]
    await first.entered()
    await second.entered()  # and nothing has let the first one go
    waiting = await client.until(run_id, "waiting")
    children = await children_of(client, run_id)
    assert {(each["kind"], each["id"]) for each in waiting["waiting_for"]} >= {
        ("child_run", child["run_id"]) for child in children[:2]
    }
    second.open()
    await client.until(children[1]["run_id"], "completed")
    assert (await client.get(children[0]["run_id"]))["status"] in ("running", "queued")
    first.open()
    run = await family_is_done(client, run_id)
    assert run["result"]["final_text"] == "Done."
    results = [message for message in model.messages() if message["role"] == "tool"]
    assert [message["tool_call_id"] for message in results] == ["call_1_1", "call_1_2", "call_1_3"]
    assert ["Done." in message["content"] for message in results] == [True, True, False]
    assert "Hi." in results[2]["content"]
    begun = [event["data"] for event in of_type(await client.events(run_id), "subagent_started")]
    assert begun == [
        {"subagent_name": team.agent("worker"), "run_id": child["run_id"], "tool_call_id": f"call_1_{number}"}
        for number, child in enumerate(children, 1)
    ]


async def test_lineage_goes_from_the_first_run_down_to_the_last(
    client: Client, model: Model, agent_name: str, shared_database: asyncpg.Connection[Any]
) -> None:
    team = await put_team(client, agent_name, leaf=WORKER, lead={**WORKER, "subagents": ["leaf"]})
    task = at_once(team.ask("lead", at_once(team.ask("leaf", at_once(("lookup", {"word": "deep"}))))))
    run_id = (await client.create(agent=team.parent("lead"), input=task, user_id="ada"))["run_id"]
    await family_is_done(client, run_id)
    line = await line_of(client, run_id, 2)
    paths = [team.path(), team.path("lead"), team.path("lead", "leaf")]
    for depth, (member, path) in enumerate(zip(line, paths, strict=True)):
        run = await client.get(member)
        assert run["parent_run_id"] == (line[depth - 1] if depth else None)
        assert (run["agent_name"], run["user_id"]) == (path.rpartition(">")[2], "ada")
        (execution,) = run["result"]["tool_executions"]
        (completed,) = of_type(await client.events(member), "tool_completed")
        for record in (execution, completed["data"]):
            assert (record["agent_name"], record["agent_depth"], record["agent_path"]) == (
                run["agent_name"],
                depth,
                path,
            )
    roots = await shared_database.fetch("SELECT root_run_id FROM runs WHERE run_id = ANY ($1::uuid[])", line)
    assert {str(row["root_run_id"]) for row in roots} == {run_id}


async def test_a_child_is_given_the_context_keys_that_its_agent_inherits_and_no_others(
    client: Client, model: Model, agent_name: str, shared_database: asyncpg.Connection[Any]
) -> None:
    keen = {**WORKER, "inherit_context_keys": ["customer", "secret", "absent"]}
    keen |= {"instructions": "Serve {{ customer.name }} for {{ shop }}; {{ secret }}, {{ absent }}, {{ price }}."}
    team = await put_team(
        client,
        agent_name,
        keen={**keen, "context_defaults": {"shop": "the shop"}},
        lead={**WORKER, "subagents": ["keen"], "inherit_context_keys": ["customer"], "instructions": "{{ price }}"},
    )
    context = {"customer": {"name": "Ada"}, "secret": "hush", "price": 7}
    asked = at_once(team.ask("keen", "Direct."), team.ask("lead", at_once(team.ask("keen", "Below."))))
    run_id = (await client.create(agent=team.parent(), input=asked, context=context))["run_id"]
    await family_is_done(client, run_id)
    systems = {request["messages"][1]["content"]: request["messages"][0]["content"] for request in model.requests()}
    assert systems["Direct."].endswith("Serve Ada for the shop; hush, {{ absent }}, {{ price }}.")
    assert systems["Below."].endswith("Serve Ada for the shop; {{ secret }}, {{ absent }}, {{ price }}.")
    assert systems[at_once(team.ask("keen", "Below."))].endswith("{{ price }}")
    kept = await shared_database.fetch(
        "SELECT agent_depth, agent_name, context FROM runs WHERE root_run_id = $1::uuid AND run_id <> $1::uuid", run_id
    )
    assert {(row["agent_depth"], row["agent_name"]): orjson.loads(row["context"]) for row in kept} == {
        (1, team.agent("keen")): {"customer": {"name": "Ada"}, "secret": "hush"},
        (1, team.agent("lead")): {"customer": {"name": "Ada"}},
        (2, team.agent("keen")): {"customer": {"name": "Ada"}},
    }


async def test_subagents_that_cannot_be_are_refused_when_they_are_saved(client: Client, agent_name: str) -> None:
    team = await put_team(client, agent_name, leaf=WORKER, lead={**WORKER, "subagents": ["leaf"]})

    async def saved(name: str, *subagents: str) -> Json:
        body = {**WORKER, "subagents": list(subagents)}
        return problem(await client.http.put(f"/agents/{name}", json=body), 422, "validation_error")

    cases = [
        (agent_name, [team.agent("lead"), "nobody_at_all"], 1, "nobody_at_all"),
        (agent_name, [agent_name], 0, f"{agent_name}>{agent_name}"),
        (team.agent("leaf"), [team.agent("lead")], 0, ">".join(map(team.agent, ("leaf", "lead", "leaf")))),
    ]
    for name, subagents, place, said in cases:
        (error,) = (await saved(name, *subagents))["errors"]
        assert error["loc"] == ["body", "subagents", place]
        assert said in error["msg"]
    inline = {**team.parent(), "subagents": ["nobody_at_all"]}
    refused = await client.http.post("/runs", json={"agent": inline, "input": "Go."})
    (error,) = problem(refused, 422, "validation_error")["errors"]
    assert error["loc"] == ["body", "agent", "subagents", 0]


async def test_a_subagent_that_was_deleted_since_is_an_error_to_the_model(
    client: Client, model: Model, agent_name: str
) -> None:
    team = await put_team(client, agent_name, gone=WORKER, kept=WORKER)
    await client.put_agent(agent_name, **WORKER, subagents=[team.agent("gone"), team.agent("kept")])
    assert (await client.http.delete(f"/agents/{team.agent('gone')}")).status_code == 204
    asked = at_once(team.ask("gone"), team.ask("kept"))
    run = await family_is_done(client, (await client.create(agent=agent_name, input=asked))["run_id"])
    errors = told(run)
    assert "not there any more" in str(errors["call_1_1"])
    assert errors["call_1_2"] is None
    assert team.tool("gone") not in [tool["function"]["name"] for tool in model.requests()[0]["tools"]]


async def test_a_delegation_waits_for_its_approval_and_takes_the_task_that_was_given_with_it(
    client: Client, agent_name: str
) -> None:
    team = await put_team(client, agent_name, worker=WORKER)
    policy = {"rules": [rule("request_approval", subject="subagent_call")]}
    agent = team.parent(policy=policy, interaction_mode="external")
    asked = at_once(*[team.ask("worker", task) for task in ("As it is.", "Not this.", "Never.")])
    run = await client.create_and_wait(agent=agent, input=asked)
    assert (run["status"], {each["kind"] for each in run["waiting_for"]}) == ("waiting", {"interaction"})
    assert await children_of(client, run["run_id"]) == []
    questions = {each["tool_call_id"]: each for each in await client.interactions(run["run_id"])}
    assert {(each["kind"], each["tool_name"], each["reason"]) for each in questions.values()} == {
        ("approval", team.tool("worker"), REASON)
    }
    await client.decide(questions["call_1_1"], "approve")
    await client.decide(questions["call_1_2"], "approve", arguments={"task": "But this."})
    await client.decide(questions["call_1_3"], "deny", reason="no time")
    done = await family_is_done(client, run["run_id"])
    executions = {each["tool_call_id"]: each for each in done["result"]["tool_executions"]}
    assert [executions[f"call_1_{n}"]["output"] for n in (1, 2, 3)] == ["As it is.", "But this.", None]
    assert "no time" in executions["call_1_3"]["error"]
    assert sorted(child["input"] for child in await children_of(client, run["run_id"])) == ["As it is.", "But this."]


async def test_who_waits_for_a_parent_waits_on_while_its_child_asks_a_person(
    clients: tuple[Client, Client], agent_name: str
) -> None:
    a, b = clients
    asking = {**WORKER, "policy": {"rules": [rule("request_approval", "lookup")]}}
    team = await put_team(a, agent_name, asking=asking, lead={**WORKER, "subagents": ["asking"]})
    asked = at_once(team.ask("lead", at_once(team.ask("asking", at_once(("lookup", {"word": "this"}))))))
    agent = team.parent("lead", interaction_mode="external")
    run_id = (await a.create(agent=agent, input=asked))["run_id"]
    _, lead, leaf = await line_of(a, run_id, 2)
    question = await pending(b, leaf)
    assert await statuses_of(b, [run_id, lead, leaf]) == ["waiting"] * 3
    assert [each["kind"] for each in (await a.get(run_id))["waiting_for"]] == ["child_run"]
    assert (await a.interactions(run_id)) == (await a.interactions(lead)) == []
    inbox = await a.http.get("/interactions", params={"status": "pending", "limit": 100})
    assert question in inbox.json()["items"]
    # Who asks now is not told of the child's wait; the child's own callers are.
    short = await a.http.get(f"/runs/{run_id}/wait", params={"timeout_s": 0.3})
    assert (short.json()["status"], (await a.wait(leaf))["status"]) == ("waiting", "waiting")
    async with a.stream(run_id) as events:
        await b.decide(question, "approve")
        seen = [sent.event async for sent in events]
    done = await a.wait(run_id)
    check_log(seen, done)
    assert (done["status"], done["result"]["final_text"]) == ("completed", "Done.")
    assert (await finished(a, leaf))["result"]["tool_executions"][0]["output"] == {"word": "this", "letters": 4}


async def test_a_child_is_recorded_as_it_ended(client: Client, agent_name: str) -> None:
    short = {**WORKER, "limits": {"max_steps": 1}, "on_limit": "degrade"}
    team = await put_team(client, agent_name, worker=WORKER, short=short, broken=BROKEN, stuck=STUCK)
    roles = ("worker", "short", "broken", "stuck", "stuck")
    tasks = {"short": at_once(("lookup", {"word": "more"}))}
    limits = {"max_subagent_fanout": 5}
    asked = at_once(*[team.ask(role, tasks.get(role, "Say it.")) for role in roles])
    run_id = (await client.create(agent=team.parent(limits=limits), input=asked))["run_id"]
    await client.until(run_id, "waiting")
    children = [child["run_id"] for child in await children_of(client, run_id)]
    await client.steer("cancel", children[3])
    await client.steer("interrupt", children[4])
    run = await family_is_done(client, run_id)
    states = ["completed", "degraded", "failed", "cancelled", "interrupted"]
    won = [True, True, False, False, False]

    records = run["result"]["subagent_executions"]
    runs = [await client.get(child) for child in children]
    assert [record["state"] for record in records] == [child["status"] for child in runs] == states
    assert [record["success"] for record in records] == won
    for role, record, child in zip(roles, records, runs, strict=True):
        assert set(record) == {
            "subagent_name", "run_id", "success", "state", "output_text", "error", "latency_ms", "usage",
        }  # fmt: skip
        assert (record["subagent_name"], record["run_id"]) == (team.agent(role), child["run_id"])
        assert record["output_text"] == child["result"]["final_text"]
        assert record["error"] == (None if child["error"] is None else child["error"]["message"])
        assert record["usage"] == child["result"]["usage_aggregate"]
        assert record["latency_ms"] > 0
    assert records[0]["output_text"] == "Say it."

    events = of_type(await client.events(run_id), "subagent_completed")
    ended = {event["data"]["run_id"]: event["data"] for event in events}
    assert [ended[child]["state"] for child in children] == states
    assert [ended[child]["success"] for child in children] == won
    executions = run["result"]["tool_executions"]
    assert [execution["success"] for execution in executions] == won
    assert executions[0]["output"] == "Say it."
    assert executions[1]["output"]["state"] == "degraded"
    assert "max_steps" in executions[1]["output"]["error"]
    for execution, word in zip(executions[2:], ("failed", "cancelled", "interrupted"), strict=True):
        assert word in execution["error"]
        assert execution["error"] in {end["error"] for end in ended.values()}


async def test_a_parent_is_deleted_with_all_runs_below_it(
    client: Client, agent_name: str, shared_database: asyncpg.Connection[Any]
) -> None:
    asking = {**WORKER, "policy": {"rules": [rule("request_approval", "lookup")]}}
    team = await put_team(client, agent_name, asking=asking, lead={**WORKER, "subagents": ["asking"]})
    asked = at_once(team.ask("lead", at_once(team.ask("asking", at_once(("lookup", {"word": "this"}))))))
    run = await client.create(agent=team.parent("lead", interaction_mode="external"), input=asked)
    line = await line_of(client, run["run_id"], 2)
    refused = await client.http.delete(f"/runs/{run['run_id']}")
    problem(refused, 409, "conflict")
    await client.decide(await pending(client, line[2]), "approve")
    await family_is_done(client, run["run_id"])
    assert (await client.http.delete(f"/runs/{run['run_id']}")).status_code == 204
    for member in line:
        problem(await client.http.get(f"/runs/{member}"), 404, "not_found")
        problem(await client.http.get(f"/runs/{member}/events"), 404, "not_found")
    for member in line[1:]:
        problem(await client.http.get(f"/threads/{member}"), 404, "not_found")
    for table in ("runs", "run_events", "checkpoints", "tool_executions", "interactions"):
        left = await shared_database.fetchval(f"SELECT count(*) FROM {table} WHERE run_id = ANY ($1::uuid[])", line)
        assert (table, left) == (table, 0)
    messages = await shared_database.fetch("SELECT DISTINCT run_id FROM messages WHERE run_id = ANY ($1::uuid[])", line)
    assert [str(row["run_id"]) for row in messages] == [run["run_id"]]  # of its own thread, which stays
    assert [message["role"] for message in await client.messages(run["thread_id"])][:2] == ["user", "assistant"]
