"""Forks over HTTP: how a conversation goes on from where a run stood, whatever has become of that run."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import httpx

from tests.acceptance.client import Client, Json, an_agent, check_log, problem
from tests.acceptance.gates import Gate
from tests.acceptance.model import SILENT, Model, calls
from tests.acceptance.questions import asked, judged, look_up, rule
from tests.acceptance.teams import WORKER, children_of, put_team, steps
from tests.model_server import Reply

NO_RESULT = "This call has no result: the run that made it ended before the call did."


async def try_fork(client: Client, run_id: str, headers: Json | None = None, **body: Any) -> httpx.Response:
    return await client.http.post(f"/runs/{run_id}/fork", json=body or None, headers=headers)


async def fork(client: Client, run_id: str, **body: Any) -> Json:
    """POST /runs/{run_id}/fork; the fork is what the contract says of every fork."""
    answer = await try_fork(client, run_id, **body)
    assert answer.status_code == 202, answer.text
    made = answer.json()
    assert answer.headers["location"] == f"/runs/{made['run_id']}"
    assert (made["forked_from"]["run_id"], made["parent_run_id"]) == (run_id, None)
    return made


async def forked(client: Client, run_id: str, **body: Any) -> Json:
    """The fork at its end; its log is checked."""
    made = await fork(client, run_id, **body)
    done = await client.wait(made["run_id"])
    check_log(await client.events(done["run_id"]), done)
    return done


async def checkpoints(client: Client, run_id: str) -> list[Json]:
    answer = await client.http.get(f"/runs/{run_id}/checkpoints", params={"limit": 100})
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


def said(messages: list[Json]) -> list[tuple[str, str]]:
    """Role and text of messages, without the agent's own."""
    return [(each["role"], each.get("content") or "") for each in messages if each["role"] != "system"]


async def test_a_fork_without_an_input_calls_the_model_with_the_messages_as_they_were(
    clients: tuple[Client, Client], model: Model, agent_name: str
) -> None:
    a, b = clients
    model.script(look_up("ada", text="One."), look_up("bob", text="Two."), Reply(text="Done."))
    run = await a.create_and_wait(agent=an_agent(), input="Go.", thread_id=agent_name, metadata={"m": "1"})
    requests = [request["messages"] for request in model.requests()]
    standing = [each for each in await checkpoints(a, run["run_id"]) if each["next_action"] == "call_model"]
    assert [each["step"] for each in standing] == [1, 2, 3]
    for checkpoint, messages in zip(standing, requests, strict=True):
        model.script(Reply(text="Otherwise."))
        done = await forked(b, run["run_id"], checkpoint_id=checkpoint["checkpoint_id"])
        assert (done["status"], done["result"]["final_text"], done["step"]) == ("completed", "Otherwise.", 1)
        assert (done["input"], done["metadata"]) == ([], {"m": "1"})
        assert model.messages() == messages
        assert done["forked_from"] == {"run_id": run["run_id"], "checkpoint_id": checkpoint["checkpoint_id"]}
        listed = await b.http.get("/runs", params={"thread_id": done["thread_id"]})
        assert listed.json()["items"] == [{**done, "result": None}]
        kept = await a.messages(done["thread_id"])
        taken = [each for each in await a.messages(agent_name) if each["seq"] <= checkpoint["message_seq"]]
        assert [each["seq"] for each in kept] == list(range(1, len(taken) + 2))
        assert said(kept) == [*said(taken), ("assistant", "Otherwise.")]
    assert await a.get(run["run_id"]) == run


async def test_a_cancelled_run_goes_on_in_a_fork_that_executes_none_of_its_calls(
    clients: tuple[Client, Client], model: Model, agent_name: str, gate: Gate
) -> None:
    """Guards: the fork's 422 without an input, and `close_dangling_calls`, without which the provider refuses this."""
    a, b = clients
    model.script(calls(("send", {"gate": gate.name}), ("lookup", {"word": "a"}), text="I send it."))
    run = await a.create(agent=an_agent(), input="Send it.", thread_id=agent_name)
    await gate.entered()
    cancelled = await b.steer("cancel", run["run_id"])
    last = (await checkpoints(a, run["run_id"]))[-1]
    assert last["next_action"] == "execute_tools"
    refused = problem(await try_fork(b, run["run_id"]), 422, "validation_error")
    assert refused["errors"][0]["loc"] == ["body", "input"]

    model.script(Reply(text="Never mind, then."))
    done = await forked(b, run["run_id"], input="Do not.")
    assert (done["status"], done["input"]) == ("completed", "Do not.")
    expected = [("user", "Send it."), ("assistant", "I send it."), ("tool", NO_RESULT), ("tool", NO_RESULT)]
    assert said(model.messages()) == [*expected, ("user", "Do not.")]
    assert [each.get("tool_call_id") for each in model.messages()[3:5]] == ["call_1", "call_2"]
    kept = await a.messages(done["thread_id"])
    assert said(kept) == [expected[0], expected[1], ("user", "Do not."), ("assistant", "Never mind, then.")]
    assert [call["name"] for call in kept[1]["tool_calls"]] == ["send", "lookup"]
    assert [each["run_id"] for each in kept] == [run["run_id"]] * 2 + [done["run_id"]] * 2
    assert done["result"]["tool_executions"] == []
    assert len(gate.calls()) == 1
    assert await a.get(run["run_id"]) == cancelled


async def test_a_run_is_forked_while_it_runs_and_while_it_is_paused_and_neither_minds(
    clients: tuple[Client, Client], model: Model, gate: Gate
) -> None:
    a, b = clients
    model.script(calls(("read", {"gate": gate.name}), text="I read."))
    run = await a.create(agent=an_agent(), input="Read.")
    await gate.entered()
    model.script(Reply(text="Meanwhile."))
    running = await forked(b, run["run_id"], input="What is taking so long?")
    assert running["result"]["final_text"] == "Meanwhile."
    assert (await b.steer("pause", run["run_id"]))["pause_requested"]
    gate.open()
    paused = await a.until(run["run_id"], "paused")
    model.script(Reply(text="It is read."))
    assert (await forked(b, run["run_id"]))["result"]["final_text"] == "It is read."
    assert [role for role, _ in said(model.messages())] == ["user", "assistant", "tool"]
    assert await a.get(run["run_id"]) == paused
    model.script(Reply(text="Here it is."))
    await b.steer("resume", run["run_id"])
    assert (await a.wait(run["run_id"]))["result"]["final_text"] == "Here it is."
    assert len(gate.calls()) == 1


async def test_a_run_that_waits_for_a_person_is_forked_and_waits_on(
    clients: tuple[Client, Client], model: Model
) -> None:
    a, b = clients
    model.script(look_up("a"))
    run, question = await asked(a, agent=judged(rule("request_approval")))
    standing = await checkpoints(a, run["run_id"])
    assert [each["next_action"] for each in standing] == ["call_model", "await"]
    problem(await try_fork(b, run["run_id"]), 422, "validation_error")
    model.script(Reply(text="No need to."))
    done = await forked(b, run["run_id"], input="Skip that.")
    assert (done["status"], await b.interactions(done["run_id"])) == ("completed", [])
    model.script(Reply(text="Three letters."))
    await b.decide(question, "approve")
    assert (await a.until(run["run_id"], "completed"))["result"]["final_text"] == "Three letters."


async def test_a_run_that_was_cancelled_in_line_is_forked_with_its_own_input(
    clients: tuple[Client, Client], model: Model, agent_name: str
) -> None:
    a, b = clients
    model.script(SILENT)
    await a.create(agent=an_agent(), input="I hold it.", thread_id=agent_name)
    await model.asked()
    waiting = await b.create(agent=an_agent(), input="I wait.", thread_id=agent_name)
    await b.steer("cancel", waiting["run_id"])
    model.script(Reply(text="Your turn."))
    done = await forked(a, waiting["run_id"])
    assert (done["input"], done["forked_from"]) == ("I wait.", {"run_id": waiting["run_id"], "checkpoint_id": None})
    assert said(model.messages()) == [("user", "I hold it."), ("user", "I wait.")]
    assert await checkpoints(a, waiting["run_id"]) == []


async def test_a_run_that_was_rolled_back_goes_on_in_a_fork(
    clients: tuple[Client, Client], model: Model, agent_name: str
) -> None:
    a, b = clients
    model.script(look_up("a"), SILENT)
    run = await a.create(agent=an_agent(), input="Forget me.", thread_id=agent_name)
    await model.asked(2)
    model.script(Reply(text="Hello."))
    body = {"agent": an_agent(), "input": "Anew.", "thread_id": agent_name, "on_busy_thread": "rollback"}
    assert (await b.create_and_wait(**body))["status"] == "completed"
    assert said(await a.messages(agent_name)) == [("user", "Anew."), ("assistant", "Hello.")]
    model.script(Reply(text="Not forgotten."))
    done = await forked(b, run["run_id"])
    assert said(model.messages())[0] == ("user", "Forget me.")
    last = (await checkpoints(a, run["run_id"]))[-1]["checkpoint_id"]
    shown = (await a.http.get(f"/runs/{run['run_id']}/checkpoints/{last}")).json()["messages"]
    kept = await a.messages(done["thread_id"])
    assert [each["role"] for each in shown] == ["user", "assistant", "tool"]
    assert kept[:-1] == [{**each, "message_id": mine["message_id"]} for each, mine in zip(shown, kept, strict=False)]


async def test_a_fork_has_the_version_and_the_overrides_of_its_source_unless_an_agent_is_given(
    client: Client, model: Model, agent_name: str
) -> None:
    await client.put_agent(agent_name, instructions="Old.", tools=["lookup"])
    body = {"agent": agent_name, "model": "openai/echo", "limits": {"max_steps": 2}, "context": {"who": "ann"}}
    run = await client.create_and_wait(**body, input="Go.")
    await client.put_agent(agent_name, instructions="New, {{ who }}.")
    given = await forked(client, run["run_id"], input="Again.", agent=agent_name)
    assert (given["agent_version"], model.messages()[0]["content"]) == (2, "New, ann.")
    assert model.requests()[-1]["model"] == "gpt-4o-mini"
    other = await forked(client, run["run_id"], input="Again.", agent=agent_name, context={"who": "bob"})
    assert model.messages()[0]["content"] == "New, bob."
    assert (await client.http.delete(f"/agents/{agent_name}")).status_code == 204
    same = await forked(client, run["run_id"], input="Again.")
    assert (same["agent_name"], same["agent_version"]) == (agent_name, 1)
    assert model.requests()[-1]["model"] == "echo"
    assert model.messages()[0]["content"].endswith("Old.")
    assert [each["result"]["final_text"] for each in (given, other, same)] == ["Again."] * 3
    problem(await try_fork(client, run["run_id"], input="Again.", agent=agent_name), 404, "unknown_agent")


async def test_a_child_run_is_forked_as_a_run_of_its_own(
    clients: tuple[Client, Client], model: Model, agent_name: str
) -> None:
    a, b = clients
    team = await put_team(a, agent_name, worker=WORKER)
    task = steps([team.ask("worker", steps([("lookup", {"word": "a"})]))])
    parent = await a.create_and_wait(agent=team.parent(), input=task)
    assert parent["status"] == "completed"
    (child,) = await children_of(a, parent["run_id"])
    second = [each for each in await checkpoints(b, child["run_id"]) if each["next_action"] == "call_model"][1]
    done = await forked(b, child["run_id"], checkpoint_id=second["checkpoint_id"])
    assert (done["agent_name"], done["status"]) == (team.agent("worker"), "completed")
    assert [role for role, _ in said(model.messages())] == ["user", "assistant", "tool"]
    assert await children_of(b, parent["run_id"]) == [child]
    assert await a.get(parent["run_id"]) == parent


async def test_a_fork_of_a_fork_outlives_both_sources(
    clients: tuple[Client, Client], model: Model, agent_name: str
) -> None:
    a, b = clients
    first = await a.create_and_wait(agent=an_agent(model="openai/echo"), input="One.", thread_id=agent_name)
    second = await forked(b, first["run_id"], input="Two.", thread_id=f"{agent_name}-2")
    third = await forked(a, second["run_id"], input="Three.", thread_id=f"{agent_name}-3")
    assert third["thread_id"] == f"{agent_name}-3"
    expected = [(role, text) for text in ("One.", "Two.", "Three.") for role in ("user", "assistant")]
    assert (await b.http.delete(f"/runs/{second['run_id']}")).status_code == 204
    for thread_id in (agent_name, f"{agent_name}-2"):
        assert (await b.http.delete(f"/threads/{thread_id}")).status_code == 204
    assert said(await a.messages(third["thread_id"])) == expected
    assert await a.get(third["run_id"]) == third
    after = await a.create_and_wait(agent=an_agent(model="openai/echo"), input="Four.", thread_id=third["thread_id"])
    assert said(model.messages()) == [*expected, ("user", "Four.")]
    assert said(await b.messages(after["thread_id"]))[-1] == ("assistant", "Four.")
    assert (await forked(b, third["run_id"], input="Four."))["status"] == "completed"


async def test_a_fork_that_cannot_be_made_says_why_and_leaves_nothing(client: Client, agent_name: str) -> None:
    echo = an_agent(model="openai/echo")
    run = await client.create_and_wait(agent=echo, input="Go.", thread_id=agent_name, metadata={"test": agent_name})
    run_id = run["run_id"]
    for taken in (agent_name, (await fork(client, run_id, input="x"))["thread_id"]):
        answer = await try_fork(client, run_id, input="x", thread_id=taken)
        assert taken in problem(answer, 409, "conflict")["detail"]
    before = (await client.http.get("/runs", params={"metadata": f"test:{agent_name}"})).json()["items"]
    nowhere = "00000000-0000-7000-8000-000000000000"
    problem(await try_fork(client, nowhere, input="x"), 404, "not_found")
    problem(await try_fork(client, run_id, input="x", checkpoint_id="999"), 404, "not_found")
    problem(await try_fork(client, run_id, input="x", agent="no_such_agent"), 404, "unknown_agent")
    problem(await try_fork(client, run_id, input="x", agent={**echo, "tools": ["none"]}), 422, "unknown_tool")
    bad: list[tuple[str, Any]] = [
        ("input", 7),
        ("input", []),
        ("input", [{"role": "assistant", "content": "x"}]),
        ("thread_id", "-"),
        ("checkpoint_id", 6),
        ("agent", "@"),
        ("agent", {"name": "a"}),
        ("context", []),
        ("nonsense", 1),
        ("limits", {"max_steps": 1}),
    ]
    for field, value in bad:
        refused = problem(await try_fork(client, run_id, **{field: value}), 422, "validation_error")
        assert {error["loc"][1] for error in refused["errors"]} == {field}, refused
    after = (await client.http.get("/runs", params={"metadata": f"test:{agent_name}"})).json()["items"]
    assert [each["run_id"] for each in after] == [each["run_id"] for each in before]


async def test_twenty_forks_with_one_key_over_two_replicas_are_one(
    clients: tuple[Client, Client], model: Model, agent_name: str
) -> None:
    run = await clients[0].create_and_wait(agent=an_agent(model="openai/echo"), input="Go.")
    headers = {"Idempotency-Key": f"{agent_name} fork"}
    requests = [
        try_fork(clients[number % 2], run["run_id"], headers, input="Once.", thread_id=agent_name)
        for number in range(20)
    ]
    answers = await asyncio.gather(*requests)
    assert [answer.status_code for answer in answers] == [202] * 20, [answer.text for answer in answers]
    assert len({answer.json()["run_id"] for answer in answers}) == 1
    replayed = [answer.headers.get("idempotency-replayed", "no") for answer in answers]
    assert sorted(replayed) == ["no", *["true"] * 19]
    done = await clients[0].wait(answers[0].json()["run_id"])
    assert (done["result"]["final_text"], len(model.requests())) == ("Once.", 2)
    again = await try_fork(clients[1], run["run_id"], headers, input="Once.", thread_id=agent_name)
    assert again.json() == done
    problem(await try_fork(clients[1], run["run_id"], headers, input="Twice."), 422, "idempotency_mismatch")
    other = await clients[0].create_and_wait(agent=an_agent(model="openai/echo"), input="Go.")
    another = await try_fork(clients[0], other["run_id"], headers, input="Once.", thread_id=agent_name)
    problem(another, 422, "idempotency_mismatch")


async def test_the_checkpoints_of_a_run_tell_each_step_what_came_next_and_what_was_used(
    client: Client, model: Model, agent_name: str
) -> None:
    model.script(look_up("a"), calls(("order", {"item": agent_name})), Reply(text="Here."))
    agent = an_agent(tools=["lookup", "order"])
    run = await client.create_and_wait(agent=agent, input="Go.", thread_id=agent_name)
    assert run["status"] == "waiting"
    await client.deliver(run["run_id"], run["waiting_for"][0]["id"], output="a parcel")
    done = await client.until(run["run_id"], "completed")
    found = await checkpoints(client, run["run_id"])
    steps_and_actions = [(each["step"], each["next_action"]) for each in found]
    assert list(dict.fromkeys(steps_and_actions)) == [
        (1, "call_model"),
        (1, "execute_tools"),
        (2, "call_model"),
        (2, "execute_tools"),
        (2, "await"),
        (3, "call_model"),
        (3, "finish"),
    ]
    assert [each["phase"] for each in found] == [each["next_action"] for each in found]
    ids = [int(each["checkpoint_id"]) for each in found]
    assert ids == sorted(set(ids))
    for earlier, later in itertools.pairwise(found):
        assert earlier["created_at"] <= later["created_at"]
        assert earlier["message_seq"] <= later["message_seq"]
        assert all(earlier["counters"][name] <= value for name, value in later["counters"].items())
    usage, counters = done["result"]["usage_aggregate"], found[-1]["counters"]
    assert {name: counters[name] for name in usage} == usage
    assert (counters["tool_calls"], counters["cost_usd"]) == (2, done["result"]["total_cost_usd"])
    thread = await client.messages(agent_name)
    for checkpoint in found:
        answer = await client.http.get(f"/runs/{run['run_id']}/checkpoints/{checkpoint['checkpoint_id']}")
        detail = answer.json()
        assert detail.items() >= checkpoint.items()
        assert detail["messages"] == [each for each in thread if each["seq"] <= checkpoint["message_seq"]]
        pending = ["call_1"] if checkpoint["next_action"] in ("execute_tools", "await") else []
        assert len(detail["state"]["pending_tool_calls"]) == len(pending)
