"""Idempotency-Key: however often a request is sent, and to whichever replica, it makes one run."""

from __future__ import annotations

import asyncio

from tests.acceptance.client import Client, an_agent, problem, sent_events
from tests.acceptance.model import SILENT, Model
from tests.model_server import Reply

REPLAYED = "idempotency-replayed"


async def test_twenty_requests_at_once_over_two_replicas_make_one_run(
    clients: tuple[Client, Client], model: Model, agent_name: str
) -> None:
    body = {"agent": an_agent(model="openai/echo"), "input": "Once.", "metadata": {"test": agent_name}}
    headers = {"Idempotency-Key": f"{agent_name} twenty"}
    posts = [clients[number % 2].http.post("/runs", json=body, headers=headers) for number in range(20)]
    answers = await asyncio.gather(*posts)
    assert [answer.status_code for answer in answers] == [202] * 20, [answer.text for answer in answers]
    assert len({answer.json()["run_id"] for answer in answers}) == 1
    assert len({answer.headers["location"] for answer in answers}) == 1
    assert sorted(answer.headers.get(REPLAYED, "no") for answer in answers) == ["no", *["true"] * 19]
    done = await clients[0].wait(answers[0].json()["run_id"])
    assert done["status"] == "completed"
    listed = await clients[0].http.get("/runs", params={"metadata": f"test:{agent_name}"})
    assert len(listed.json()["items"]) == 1
    assert len(model.requests()) == 1


async def test_a_key_with_another_body_is_refused(clients: tuple[Client, Client], agent_name: str) -> None:
    headers = {"Idempotency-Key": agent_name}
    body = {"agent": an_agent(model="openai/echo"), "input": "One."}
    assert (await clients[0].http.post("/runs", json=body, headers=headers)).status_code == 202
    another = {**body, "input": "Two."}
    for path in ("/runs", "/runs/wait", "/runs/stream"):
        answer = await clients[1].http.post(path, json=another, headers=headers)
        problem(answer, 422, "idempotency_mismatch")


async def test_a_repeated_key_answers_with_the_run_as_it_is_now(client: Client, agent_name: str) -> None:
    headers = {"Idempotency-Key": agent_name}
    body = {"agent": an_agent(model="openai/echo"), "input": "Once."}
    created = (await client.http.post("/runs", json=body, headers=headers)).json()
    done = await client.wait(created["run_id"])
    again = await client.http.post("/runs", json=body, headers=headers)
    assert (again.status_code, again.headers[REPLAYED]) == (202, "true")
    assert again.json() == done


async def test_waiting_and_streaming_with_a_used_key_join_its_run(
    clients: tuple[Client, Client], model: Model, agent_name: str
) -> None:
    headers = {"Idempotency-Key": agent_name}
    body = {"agent": an_agent(), "input": "Once."}
    model.script(Reply(text=[f"word{number} " for number in range(20)], chunk_delay_s=0.02))
    created = await clients[0].http.post("/runs", json=body, headers=headers)
    run_id = created.json()["run_id"]

    async def stream(client: Client) -> tuple[str, list[str]]:
        async with client.http.stream("POST", "/runs/stream", json=body, headers=headers) as response:
            assert (response.status_code, response.headers[REPLAYED]) == (200, "true")
            return response.headers["run-id"], [sent.id async for sent in sent_events(response)]

    waits = [client.http.post("/runs/wait", json=body, headers=headers) for client in clients]
    streams = [stream(client) for client in clients]
    waited, streamed = await asyncio.gather(asyncio.gather(*waits), asyncio.gather(*streams))
    for answer in waited:
        assert (answer.status_code, answer.headers[REPLAYED]) == (200, "true")
        assert (answer.json()["run_id"], answer.json()["status"]) == (run_id, "completed")
    ids = [str(seq) for seq in range(1, waited[0].json()["last_event_seq"] + 1)]
    assert streamed == [(run_id, ids)] * 2
    assert await stream(clients[1]) == (run_id, ids)  # from 1, though it is over
    assert len(model.requests()) == 1


async def test_a_refused_request_does_not_use_its_key_up(
    clients: tuple[Client, Client], model: Model, agent_name: str
) -> None:
    model.script(SILENT)
    body = {"agent": an_agent(), "input": "Go.", "thread_id": agent_name, "on_busy_thread": "reject"}
    holder = await clients[0].create(**body)
    headers = {"Idempotency-Key": agent_name}
    problem(await clients[0].http.post("/runs", json=body, headers=headers), 409, "thread_busy")
    await model.asked()
    await clients[0].steer("cancel", holder["run_id"])
    answer = await clients[1].http.post("/runs/wait", json=body, headers=headers)
    assert answer.status_code == 200
    assert REPLAYED not in answer.headers
