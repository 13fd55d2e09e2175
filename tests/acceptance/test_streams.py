"""Readers of a run's events: whatever breaks in between, they see every event once, in order, byte for byte."""

from __future__ import annotations

from typing import Any

import asyncpg
import psutil
import pytest

from tests.acceptance.client import Client, Sent, an_agent, check_log, of_type, problem, sent_events, types_of
from tests.acceptance.conftest import Caller, Serve, Settings
from tests.acceptance.model import SILENT, Model
from tests.acceptance.service import Service
from tests.acceptance.waiting import eventually
from tests.model_server import Reply

WORDS = [f"word{number} " for number in range(60)]
# Slow enough for readers to come and go while it lasts.
SLOW_ANSWER = Reply(text=WORDS, chunk_delay_s=0.02)


async def some(client: Client, run_id: str, seen: list[Sent], count: int) -> None:
    """Read so many more events, and drop the connection."""
    last_id = seen[-1].id if seen else None
    async with client.stream(run_id, last_id=last_id) as events:
        async for sent in events:
            seen.append(sent)
            count -= 1
            if count == 0:
                return


async def test_a_reader_that_drops_again_and_again_misses_and_repeats_nothing(
    clients: tuple[Client, Client], model: Model
) -> None:
    model.script(SLOW_ANSWER)
    run_id = (await clients[0].create(agent=an_agent(), input="Go."))["run_id"]
    seen: list[Sent] = []
    for turn in range(8):
        await some(clients[turn % 2], run_id, seen, 3)
    assert seen[-1].type == "text_delta"  # in the middle of the answer
    seen += await clients[0].streamed(run_id, last_id=seen[-1].id)
    check_log([sent.event for sent in seen], await clients[1].get(run_id))
    for client in clients:
        replay = await client.streamed(run_id)
        assert [sent.raw for sent in replay] == [sent.raw for sent in seen]
    deltas = [event["data"]["delta"] for event in of_type([sent.event for sent in seen], "text_delta")]
    assert "".join(deltas) == "".join(WORDS)


async def test_a_slow_write_of_text_does_not_cost_the_run_its_attempt(
    client: Client, shared_database: asyncpg.Connection[Any], model: Model
) -> None:
    model.script(Reply(text=WORDS, chunk_delay_s=0.005))
    run_id = (await client.create(agent=an_agent(), input="Go."))["run_id"]
    async with client.stream(run_id, types="text_delta") as events:
        await anext(events)
        async with shared_database.transaction():
            # Deltas cannot be written until the whole answer is here and wants to be written too.
            await shared_database.execute("LOCK TABLE run_events IN SHARE MODE")
            await model.idle()
        seen = [sent.event async for sent in events]
    done = await client.get(run_id)
    assert (done["status"], done["attempt"]) == ("completed", 1)
    assert seen
    check_log(await client.events(run_id), done)


async def test_from_every_place_in_the_log_the_rest_is_the_same_on_either_replica(
    clients: tuple[Client, Client], model: Model
) -> None:
    model.script(Reply(text="Über uns \u2028 nur \u0085 Sterne."))
    run_id = (await clients[0].create_and_wait(agent=an_agent(), input="Go."))["run_id"]
    whole = await clients[0].streamed(run_id)
    assert [int(sent.id) for sent in whole] == list(range(1, len(whole) + 1))
    assert all(int(sent.id) == sent.event["seq"] and sent.type == sent.event["type"] for sent in whole)
    for client in clients:
        for place in range(1, len(whole)):
            rest = await client.streamed(run_id, last_id=str(place))
            assert [sent.raw for sent in rest] == [sent.raw for sent in whole[place:]]
            assert [sent.raw for sent in await client.streamed(run_id, after=place)] == [sent.raw for sent in rest]
        seen_all = await client.http.get(f"/runs/{run_id}/events", headers={"Last-Event-ID": whole[-1].id})
        assert (seen_all.status_code, seen_all.content) == (204, b"")


async def test_a_reader_can_come_back_to_another_worker_process(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model
) -> None:
    service = serve(settings(DATABASE_URL=database_url, WORKERS="2")).ready()
    model.script(SLOW_ANSWER)
    run_id = (await caller(service).create(agent=an_agent(), input="Go."))["run_id"]
    seen: list[Sent] = []
    answered_by = [await read_elsewhere(service, run_id, seen, other_than=None)]
    for _ in range(3):
        answered_by.append(await read_elsewhere(service, run_id, seen, other_than=answered_by[-1]))
    assert len(set(answered_by)) == 2
    seen += await caller(service).streamed(run_id, last_id=seen[-1].id)
    run = await caller(service).get(run_id)
    check_log([sent.event for sent in seen], run)
    assert run["status"] == "completed"
    assert [sent.raw for sent in await caller(service).streamed(run_id)] == [sent.raw for sent in seen]


async def read_elsewhere(service: Service, run_id: str, seen: list[Sent], *, other_than: int | None) -> int:
    """Connect anew until another worker process answers than the last time; read a few events from it."""
    headers = {"Last-Event-ID": seen[-1].id} if seen else {}

    async def attempt() -> int | None:
        url = f"{service.url}/runs/{run_id}/events"
        async with Client(service.url) as client, client.http.stream("GET", url, headers=headers) as response:
            address = response.extensions["network_stream"].get_extra_info("client_addr")
            worker = worker_connected_to(service, address)
            if worker == other_than:
                return None
            async for sent in sent_events(response):
                seen.append(sent)
                if sent.event["seq"] % 3 == 0:
                    break
            return worker

    return await eventually(attempt, f"a worker other than {other_than} to answer")


def worker_connected_to(service: Service, address: tuple[str, int]) -> int:
    """The process that holds the other end of a connection."""
    for process in psutil.Process(service.pid).children(recursive=True):
        if any(tuple(connection.raddr) == tuple(address) for connection in process.net_connections("tcp")):
            return process.pid
    raise AssertionError(f"no worker of {service.pid} is connected to {address}")


async def test_a_stream_opens_at_once_with_the_headers_that_proxies_need(client: Client, model: Model) -> None:
    model.script(SILENT)
    run_id = (await client.create(agent=an_agent(), input="Go."))["run_id"]
    async with client.http.stream("GET", f"/runs/{run_id}/events", params={"after": 3}) as response:
        first = await anext(response.aiter_raw())  # though no event comes
    assert first.startswith(b": connected\nretry: 1000\n\n")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache, no-transform"
    assert response.headers["x-accel-buffering"] == "no"


async def test_types_and_deltas_choose_what_a_reader_is_sent_and_leave_the_ids(client: Client, model: Model) -> None:
    model.script(Reply(text="One two three."))
    run_id = (await client.create_and_wait(agent=an_agent(), input="Go."))["run_id"]
    whole = await client.streamed(run_id)
    without = await client.streamed(run_id, deltas="false")
    assert [sent.raw for sent in without] == [sent.raw for sent in whole if sent.type != "text_delta"]
    chosen = await client.streamed(run_id, types="run_started,run_completed")
    assert [sent.raw for sent in chosen] == [whole[0].raw, whole[-1].raw]
    none = await client.streamed(run_id, types="text_delta", deltas="false")
    assert none == []


@pytest.mark.parametrize("cursor", ["1000", "-1", "abc", "1.5", "9" * 30])
async def test_a_cursor_ahead_of_the_run_or_malformed_is_refused(client: Client, model: Model, cursor: str) -> None:
    run_id = (await client.create_and_wait(agent=an_agent(model="openai/echo"), input="Go."))["run_id"]
    url = f"/runs/{run_id}/events"
    problem(await client.http.get(url, headers={"Last-Event-ID": cursor}), 422, "validation_error")
    problem(await client.http.get(url, params={"after": cursor}), 422, "validation_error")


async def test_a_stream_goes_on_past_the_closing_events_of_a_resumed_run(
    clients: tuple[Client, Client], model: Model
) -> None:
    model.script(SILENT)
    run_id = (await clients[0].create(agent=an_agent(), input="Go."))["run_id"]
    await model.asked()
    await clients[0].steer("interrupt", run_id)
    model.script(SLOW_ANSWER)
    await clients[0].steer("resume", run_id)
    seen = await clients[1].streamed(run_id)
    kinds = types_of([sent.event for sent in seen])
    assert [kind for kind in kinds if kind.startswith("run_")] == [
        "run_started", "run_interrupted", "run_resumed", "run_completed",
    ]  # fmt: skip


async def test_a_stream_stays_open_while_a_run_is_queued_or_paused(
    clients: tuple[Client, Client], model: Model
) -> None:
    a, b = clients
    thread = {"thread_id": "open-stream", "agent": an_agent(), "input": "Go."}
    model.script(SILENT)
    holder = await a.create(**thread)
    await model.asked()
    waiting = await a.create(**thread)
    async with b.stream(waiting["run_id"]) as events:
        await a.steer("pause", waiting["run_id"])
        assert (await anext(events)).type == "run_paused"
        await a.steer("resume", waiting["run_id"])
        model.script(Reply(text="Mine."))
        await a.steer("cancel", holder["run_id"])
        rest = [sent.event async for sent in events]
    assert rest[-1]["type"] == "run_completed"
    check_log(await b.events(waiting["run_id"]), await b.get(waiting["run_id"]))
