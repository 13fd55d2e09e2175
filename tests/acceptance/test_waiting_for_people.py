"""Runs that wait for people: what they cost, and what they live through."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import asyncpg
import psutil
import pytest

from tests.acceptance.client import Client, Json, an_agent, check_log, of_type, problem, types_of
from tests.acceptance.conftest import Caller, Serve, Settings
from tests.acceptance.gates import Gate, Gates
from tests.acceptance.model import SILENT, Model, calls
from tests.acceptance.questions import asked, finished, judged, look_up, pending, rule, sends
from tests.acceptance.service import Service
from tests.acceptance.waiting import eventually
from tests.model_server import Reply

DONE = Reply(text="Done.")
LEASE_S = "2"


@pytest.mark.parametrize(("request_", "status"), [("cancel", "cancelled"), ("interrupt", "interrupted")])
async def test_a_run_that_is_stopped_closes_its_question(
    clients: tuple[Client, Client], model: Model, request_: str, status: str
) -> None:
    a, b = clients
    model.script(look_up("a"))
    run, question = await asked(a, agent=judged(rule("request_approval")))
    stopped = await b.steer(request_, run["run_id"])
    assert (stopped["status"], stopped["waiting_for"]) == (status, [])
    (closed,) = await b.interactions(run["run_id"])
    assert (closed["status"], closed["decision"]) == ("closed", None)
    assert closed["resolved_at"] is not None
    problem(await b.answer(question, "approve"), 409, "conflict")
    check_log(await b.events(run["run_id"]), stopped)


async def test_a_run_that_is_resumed_after_an_interrupt_asks_anew(clients: tuple[Client, Client], model: Model) -> None:
    a, b = clients
    model.script(calls(("pay", {"amount": 5})), DONE)
    run, first = await asked(a, agent=judged(rule("request_approval"), tools=["pay"]))
    await b.steer("interrupt", run["run_id"])
    await b.steer("resume", run["run_id"])
    second = await pending(a, run["run_id"])
    assert second["interaction_id"] != first["interaction_id"]
    assert second["arguments"] == first["arguments"]
    problem(await a.answer(first, "approve"), 409, "conflict")
    await a.decide(second, "approve")
    done = await finished(b, run["run_id"])
    assert (done["status"], len(model.requests())) == ("completed", 2)
    assert done["result"]["tool_executions"][0]["output"] == "paid 500 EUR"  # its hook has run once


async def test_a_paused_run_keeps_its_question_and_acts_on_the_answer_when_it_is_resumed(
    clients: tuple[Client, Client], model: Model, gate: Gate
) -> None:
    a, b = clients
    gate.open()
    model.script(sends(gate), DONE)
    run, question = await asked(a, agent=judged(rule("request_approval", "send")))
    paused = await b.steer("pause", run["run_id"])
    assert (paused["status"], paused["waiting_for"]) == ("paused", [])
    await b.decide(question, "approve")
    assert ((await a.get(run["run_id"]))["status"], gate.calls()) == ("paused", [])
    await b.steer("resume", run["run_id"])
    done = await finished(a, run["run_id"])
    assert (done["status"], len(gate.calls())) == ("completed", 1)
    assert len(await a.interactions(run["run_id"])) == 1


async def test_a_paused_run_that_is_resumed_unanswered_waits_on_with_the_same_question(
    client: Client, model: Model
) -> None:
    model.script(look_up("a"), DONE)
    run, question = await asked(client, agent=judged(rule("request_approval")))
    await client.steer("pause", run["run_id"])
    await client.steer("resume", run["run_id"])
    await client.until(run["run_id"], "waiting")
    assert await client.interactions(run["run_id"]) == [question]
    await client.decide(question, "approve")
    assert (await finished(client, run["run_id"]))["status"] == "completed"


async def test_a_resume_does_nothing_to_a_run_that_waits(client: Client, model: Model) -> None:
    model.script(look_up("a"))
    run, question = await asked(client, agent=judged(rule("request_approval")))
    assert await client.steer("resume", run["run_id"]) == run
    assert await pending(client, run["run_id"]) == question


async def test_an_unsafe_call_that_an_interrupt_cut_off_is_asked_about_when_the_run_is_resumed(
    client: Client, model: Model, gate: Gate
) -> None:
    model.script(sends(gate), DONE)
    run = await client.create(agent=judged(), input="Go.")
    await gate.entered()
    await client.steer("interrupt", run["run_id"])
    gate.open()
    await client.steer("resume", run["run_id"])
    question = await pending(client, run["run_id"])
    assert question["kind"] == "tool_outcome_unknown"
    await client.decide(question, "deny")
    (execution,) = (await finished(client, run["run_id"]))["result"]["tool_executions"]
    assert (execution["success"], len(gate.calls())) == (False, 1)


async def test_a_question_about_a_model_call_outlives_a_pause_and_is_asked_anew_after_an_interrupt(
    client: Client, model: Model
) -> None:
    run, first = await asked(client, agent=judged(rule("request_user_input", subject="model_call")))
    await client.steer("pause", run["run_id"])
    await client.steer("resume", run["run_id"])
    await client.until(run["run_id"], "waiting")
    assert await client.interactions(run["run_id"]) == [first]
    await client.steer("interrupt", run["run_id"])
    await client.steer("resume", run["run_id"])
    second = await pending(client, run["run_id"])
    assert second["interaction_id"] != first["interaction_id"]
    model.script(DONE)
    await client.decide(second, "approve", value="Be brief.")
    assert (await finished(client, run["run_id"]))["status"] == "completed"
    assert [message["content"] for message in model.messages()[1:]] == ["Go.", "Be brief."]


async def test_a_run_whose_time_is_up_while_it_asks_asks_anew_when_it_is_resumed(
    client: Client, model: Model, gate: Gate
) -> None:
    model.script(calls(("read", {"gate": gate.name}), ("lookup", {"word": "a"})), DONE)
    agent = judged(rule("request_approval", "lookup"))
    run = await client.create(agent=agent, input="Go.", limits={"max_wall_time_s": 1})
    first = await pending(client, run["run_id"])
    await client.until(run["run_id"], "interrupted")
    problem(await client.answer(first, "approve"), 409, "conflict")
    gate.open()
    await client.steer("resume", run["run_id"], limits={"max_wall_time_s": 60})
    await client.decide(await pending(client, run["run_id"]), "approve")
    assert (await finished(client, run["run_id"]))["status"] == "completed"
    assert [question["status"] for question in await client.interactions(run["run_id"])] == ["closed", "resolved"]


async def test_a_pause_takes_hold_where_the_run_would_wait_for_its_answer(
    client: Client, model: Model, gate: Gate
) -> None:
    model.script(calls(("read", {"gate": gate.name}), ("lookup", {"word": "a"})), DONE)
    run = await client.create(agent=judged(rule("request_approval", "lookup")), input="Go.")
    await gate.entered()
    question = await pending(client, run["run_id"])
    assert (await client.steer("pause", run["run_id"]))["pause_requested"]
    gate.open()
    assert (await client.wait(run["run_id"]))["status"] == "paused"
    await client.steer("resume", run["run_id"])
    await client.until(run["run_id"], "waiting")
    await client.decide(question, "approve")
    assert (await finished(client, run["run_id"]))["status"] == "completed"
    assert len(gate.calls()) == 1


async def test_an_answer_is_acted_upon_at_once_though_another_tool_of_the_step_is_still_running(
    clients: tuple[Client, Client], model: Model, gates: Gates
) -> None:
    reading, sending = gates.new(), gates.new()
    model.script(calls(("read", {"gate": reading.name}), ("send", {"gate": sending.name})), DONE)
    run = await clients[0].create(agent=judged(rule("request_approval", "send")), input="Go.")
    await reading.entered()
    await clients[1].decide(await pending(clients[1], run["run_id"]), "approve")
    await sending.entered()
    for gate in (reading, sending):
        gate.open()
    done = await finished(clients[0], run["run_id"])
    assert (done["status"], done["attempt"], len(reading.calls())) == ("completed", 1, 1)


async def test_answers_that_come_all_at_once_are_all_taken_in(clients: tuple[Client, Client], model: Model) -> None:
    words = [f"word-{i}" for i in range(30)]
    model.script(calls(*(("lookup", {"word": word}) for word in words)), DONE)
    run = await clients[0].create_and_wait(agent=judged(rule("request_approval")), input="Go.")
    questions = await clients[0].interactions(run["run_id"])
    assert [question["arguments"]["word"] for question in questions] == words
    await asyncio.gather(*(clients[i % 2].decide(question, "approve") for i, question in enumerate(questions)))
    done = await finished(clients[1], run["run_id"])
    assert [execution["output"]["word"] for execution in done["result"]["tool_executions"]] == words
    assert len(of_type(await clients[1].events(run["run_id"]), "interaction_resolved")) == len(words)


async def test_a_run_that_takes_the_thread_over_closes_the_question_of_the_one_that_waits(
    clients: tuple[Client, Client], model: Model, agent_name: str
) -> None:
    model.script(look_up("a"), DONE)
    run, question = await asked(clients[0], agent=judged(rule("request_approval")), thread_id=agent_name)
    later = await clients[1].create_and_wait(
        agent=an_agent(), input="Instead.", thread_id=agent_name, on_busy_thread="interrupt"
    )
    assert later["status"] == "completed"
    assert (await clients[0].get(run["run_id"]))["status"] == "interrupted"
    problem(await clients[1].answer(question, "approve"), 409, "conflict")


async def test_a_run_that_is_deleted_takes_its_questions_with_it(client: Client, model: Model) -> None:
    model.script(look_up("a"))
    run, question = await asked(client, agent=judged(rule("request_approval")))
    refused = problem(await client.http.delete(f"/runs/{run['run_id']}"), 409, "conflict")
    assert refused["current_status"] == "waiting"
    await client.steer("cancel", run["run_id"])
    assert (await client.http.delete(f"/runs/{run['run_id']}")).status_code == 204
    problem(await client.answer(question, "approve"), 404, "not_found")
    problem(await client.http.get(f"/runs/{run['run_id']}/interactions"), 404, "not_found")


async def test_what_a_person_said_before_a_model_call_outlives_a_kill_in_it_and_is_said_once(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model
) -> None:
    environment = settings(DATABASE_URL=database_url, LEASE_S=LEASE_S)
    first = serve(environment).ready()
    run, question = await asked(caller(first), agent=judged(rule("request_user_input", subject="model_call")))
    model.script(SILENT)
    await caller(first).decide(question, "approve", value="Be brief.")
    await model.asked()
    first.kill()
    model.script(DONE)
    client = caller(serve(environment).ready())
    assert (await finished(client, run["run_id"]))["status"] == "completed"
    assert [message["content"] for message in model.messages()[1:]] == ["Go.", "Be brief."]
    assert len(await client.interactions(run["run_id"])) == 1


async def test_an_answer_survives_the_owner_that_did_not_get_to_act_on_it(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model, gates: Gates
) -> None:
    environment = settings(DATABASE_URL=database_url, LEASE_S=LEASE_S)
    doomed, survivor = (service.ready() for service in [serve(environment), serve(environment)])
    reading, sending = gates.new(), gates.new()
    model.script(calls(("read", {"gate": reading.name}), ("send", {"gate": sending.name})), DONE)
    run = await caller(doomed).create(agent=judged(rule("request_approval", "send")), input="Go.")
    (call,) = await reading.entered()
    assert call["pid"] == doomed.pid
    client = caller(survivor)
    question = await pending(client, run["run_id"])

    os.kill(doomed.pid, signal.SIGSTOP)  # it hears of nothing any more, and is killed before it could
    await client.decide(question, "approve")
    doomed.kill()
    (call,) = await sending.entered()
    assert call["pid"] == survivor.pid
    for gate in (reading, sending):
        gate.open()
    done = await finished(client, run["run_id"])
    assert (done["status"], len(reading.calls()), len(sending.calls())) == ("completed", 2, 1)
    events = await client.events(run["run_id"])
    assert types_of(events).count("interaction_requested") == types_of(events).count("interaction_resolved") == 1
    assert [event["data"]["reason"] for event in of_type(events, "run_resumed")] == ["crash"]


async def test_an_approved_call_that_a_kill_interrupts_is_not_asked_about_again(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model, gate: Gate
) -> None:
    environment = settings(DATABASE_URL=database_url, LEASE_S=LEASE_S)
    services = {service.pid: service.ready() for service in [serve(environment), serve(environment)]}
    a, b = services.values()
    model.script(calls(("put", {"gate": gate.name})), DONE)
    run, question = await asked(caller(a), agent=judged(rule("request_approval", "put")))
    await caller(a).decide(question, "approve")
    (call,) = await gate.entered()
    services[call["pid"]].kill()
    client = caller(b if call["pid"] == a.pid else a)
    await gate.entered(times=2)
    gate.open()
    done = await finished(client, run["run_id"])
    assert (done["status"], len(await client.interactions(run["run_id"]))) == ("completed", 1)
    assert len({call["idempotency_key"] for call in gate.calls()}) == 1


# (answer, times the call was made in all, its output, part of its error)
LOST_CALLS: list[tuple[Json, int, Any, str]] = [
    ({"decision": "approve"}, 2, "done", ""),
    ({"decision": "approve", "value": {"sent": True}}, 1, {"sent": True}, ""),
    ({"decision": "deny"}, 1, None, "unknown"),
]


async def test_what_became_of_an_unsafe_call_in_a_crash_is_a_question_to_a_person(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model, gates: Gates
) -> None:
    environment = settings(DATABASE_URL=database_url, LEASE_S=LEASE_S)
    first = serve(environment).ready()
    before = caller(first)
    runs: list[tuple[Json, Gate]] = []
    for _ in LOST_CALLS:
        gate = gates.new()
        model.script(sends(gate))
        runs.append((await before.create(agent=judged(), input="Go."), gate))
        await gate.entered()
    first.kill()

    client = caller(serve(environment).ready())
    for (run, gate), (answer, times, output, error) in zip(runs, LOST_CALLS, strict=True):
        question = await pending(client, run["run_id"])
        assert (question["kind"], question["arguments"]) == ("tool_outcome_unknown", {"gate": gate.name})
        assert (await client.wait(run["run_id"]))["status"] == "waiting"
        assert len(gate.calls()) == 1
        gate.open()
        model.script(DONE)
        await client.decide(question, **answer)
        done = await finished(client, run["run_id"])
        (execution,) = done["result"]["tool_executions"]
        assert (done["status"], len(gate.calls())) == ("completed", times)
        assert execution["output"] == (f"{gate.name} is done" if output == "done" else output)
        assert error in (execution["error"] or "")
        assert execution["success"] is not bool(error)
        assert done["result"]["state_snapshot"]["tool_calls"] == 1
        events = await client.events(run["run_id"])
        assert [event["data"]["code"] for event in of_type(events, "warning")] == ["tool_outcome_unknown"]
        assert len(await client.interactions(run["run_id"])) == 1


async def test_a_question_expires_although_nobody_was_there_when_its_time_was_up(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model, gate: Gate
) -> None:
    environment = settings(DATABASE_URL=database_url, LEASE_S=LEASE_S)
    first = serve(environment).ready()
    gate.open()
    model.script(sends(gate), DONE)
    agent = judged(rule("request_approval", "send"), approval_timeout_s=1.0, approval_fallback="approve")
    run, _ = await asked(caller(first), agent=agent)
    first.kill()
    connection = await asyncpg.connect(database_url)
    overdue = "SELECT count(*) FROM interactions WHERE status = 'pending' AND expires_at <= clock_timestamp()"
    await eventually(lambda: connection.fetchval(overdue), "the question to be overdue")
    await connection.close()

    client = caller(serve(environment).ready())
    done = await finished(client, run["run_id"])
    assert (done["status"], len(gate.calls())) == ("completed", 1)
    (expired,) = await client.interactions(run["run_id"])
    assert (expired["status"], expired["decision"], expired["decided_by"]) == ("expired", "approve", "expiry")


WAITING_RUNS = 1000
ANSWERED = 50
MOST_BYTES = 60_000_000


async def test_a_thousand_runs_that_wait_hold_no_task_no_connection_and_next_to_no_memory(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model
) -> None:
    service = serve(settings(DATABASE_URL=database_url)).ready()
    client = caller(service)
    agent = judged(rule("request_approval"), model="openai/tools-1", tools=["lookup"])
    connection = await asyncpg.connect(database_url)
    await _wait_for_people(client, connection, agent, 100)  # what is made once, at first use, is not what is measured
    before = _resident(service)
    await _wait_for_people(client, connection, agent, WAITING_RUNS)
    assert _resident(service) - before < MOST_BYTES

    async def at_rest() -> bool:
        numbers = await _metrics(client)
        used = sum(value for name, value in numbers.items() if "connections" in name and 'state="used"' in name)
        return numbers["agent_runner_runs_under_way"] == numbers["agent_runner_subscribers"] == used == 0

    await eventually(at_rest, "no task and no connection to be in use")
    pages = await client.http.get("/interactions", params={"status": "pending", "limit": ANSWERED})
    sample = pages.json()["items"]
    await asyncio.gather(*(client.decide(question, "approve") for question in sample))
    completed = "SELECT count(*) = $1 FROM runs WHERE status = 'completed'"
    await eventually(lambda: connection.fetchval(completed, ANSWERED), "the answered runs to be done")
    assert await connection.fetchval("SELECT count(*) FROM runs WHERE status = 'waiting'") == WAITING_RUNS - ANSWERED
    await connection.close()


async def _wait_for_people(client: Client, connection: asyncpg.Connection[Any], agent: Json, count: int) -> None:
    """Create runs until so many wait in all."""
    waiting: int = await connection.fetchval("SELECT count(*) FROM runs")
    for _ in range(waiting, count, 100):
        items = [{"agent": agent, "input": "Go."}] * 100
        answer = await client.http.post("/runs/batch", json={"items": items})
        assert answer.status_code == 202, answer.text
    reached = "SELECT count(*) = $1 FROM runs WHERE status = 'waiting'"
    await eventually(lambda: connection.fetchval(reached, count), f"{count} runs to wait")


def _resident(service: Service) -> int:
    process = psutil.Process(service.pid)
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))


async def _metrics(client: Client) -> dict[str, float]:
    text = (await client.http.get("/metrics")).text
    lines = [line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}
