"""Agents that remember, through services as processes: across runs and replicas, and apart by user."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import httpx

from tests.acceptance.client import Client, Json
from tests.acceptance.conftest import Caller, Serve, Settings
from tests.acceptance.model import Model, calls
from tests.acceptance.waiting import eventually
from tests.model_server import Reply

AGENT = {"name": "keeper", "model": "openai/gpt-4o-mini", "tools": ["remember", "recall"]}


async def told(client: Client, model: Model, name: str, arguments: Json, **run: Any) -> Json:
    """One run that makes one call; the call's record."""
    model.script(calls((name, arguments)), Reply(text="Done."))
    done = await client.create_and_wait(**{"agent": AGENT, "input": "Go.", **run})
    assert done["status"] == "completed", done
    (call,) = done["result"]["tool_executions"]
    return call


async def recalled(client: Client, model: Model, query: str, **run: Any) -> list[str]:
    call = await told(client, model, "recall", {"query": query}, **run)
    assert call["success"], call
    return [memory["text"] for memory in call["output"]["memories"]]


async def test_what_a_run_remembers_a_later_one_recalls_on_any_replica_and_for_its_user_alone(
    clients: tuple[Client, Client], model: Model
) -> None:
    a, b = clients
    text = "Wants the aisle seat."
    assert (await told(a, model, "remember", {"text": text, "key": "seat"}, user_id="ada/1"))["success"]
    assert await recalled(b, model, "Which seat?", user_id="ada/1") == [text]
    assert await recalled(b, model, "Which seat?", user_id="ada") == []
    assert await recalled(b, model, "Which seat?", user_id="1") == []
    assert await recalled(b, model, "Which seat?", user_id="ada/1", agent={**AGENT, "name": "other"}) == []
    item = {"namespace": "agents/keeper/users/ada%2F1", "key": "seat"}
    kept = await a.http.get("/memories/item", params=item)
    assert (kept.json()["value"], kept.json()["text"]) == (text, text)


async def test_a_run_without_a_user_remembers_nothing_that_others_could_read(client: Client, model: Model) -> None:
    call = await told(client, model, "remember", {"text": "Wants the aisle seat."})
    assert not call["success"]
    assert call["error"].startswith("this agent's memories are kept for each user, and the run has no user_id")


async def test_a_namespace_is_filled_from_the_run_and_not_by_the_model(client: Client, model: Model) -> None:
    agent = {**AGENT, "memory_namespace": "teams/{{ team }}"}
    of_red = {"agent": agent, "context": {"team": "red"}}
    await told(client, model, "remember", {"text": "The launch is on Friday.", "key": "launch"}, **of_red)
    assert await recalled(client, model, "launch", **of_red) == ["The launch is on Friday."]
    assert await recalled(client, model, "launch", agent=agent, context={"team": "blue"}) == []
    refused = await told(client, model, "recall", {"query": "launch", "namespace": "teams/red"}, **of_red)
    assert not refused["success"]
    assert not (await told(client, model, "recall", {"query": "launch"}, agent=agent))["success"]


async def test_what_is_put_over_http_is_recalled_by_its_meaning(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model
) -> None:
    client = caller(serve(settings(DATABASE_URL=database_url, EMBEDDING_MODEL="meaning-1")).ready())
    body = {"namespace": "agents/keeper/users/42", "key": "tea", "value": "Likes tea."}
    assert (await client.http.put("/memories", json=body)).status_code == 201
    assert await recalled(client, model, "Which beverage?", user_id="42") == ["Likes tea."]


async def test_a_process_that_is_killed_while_a_memory_is_embedded_has_lost_nothing(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model
) -> None:
    environment = settings(DATABASE_URL=database_url, EMBEDDING_MODEL="meaning-1", LEASE_S="2")
    first = serve(environment).ready()
    model.break_embeddings(lambda _: Reply(body={}, delay_s=3600))
    body = {"namespace": "users/42", "key": "tea", "value": "Likes tea."}
    client = caller(first)
    put = asyncio.create_task(client.http.put("/memories", json=body))
    await eventually(_asked(model), "the text to be on its way to the model")
    first.kill()
    (outcome,) = await asyncio.gather(put, return_exceptions=True)
    assert isinstance(outcome, httpx.TransportError)

    connection: asyncpg.Connection[Any] = await asyncpg.connect(database_url)
    try:
        assert await connection.fetchval("SELECT embedding IS NULL FROM memories") is True
        model.break_embeddings(lambda _: None)
        client = caller(serve(environment).ready())

        async def embedded() -> bool:
            return await connection.fetchval("SELECT embedding IS NOT NULL FROM memories")

        await eventually(embedded, "the memory to be embedded")
    finally:
        await connection.close()
    found = await client.http.post("/memories/search", json={"namespace": "users/42", "query": "beverage"})
    assert [item["memory"]["value"] for item in found.json()["items"]] == ["Likes tea."]


async def test_a_call_that_is_repeated_after_a_kill_remembers_once(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model
) -> None:
    environment = settings(DATABASE_URL=database_url, EMBEDDING_MODEL="meaning-1", LEASE_S="2")
    first = serve(environment).ready()
    model.break_embeddings(lambda _: Reply(body={}, delay_s=3600))
    model.script(calls(("remember", {"text": "Likes tea."})))
    run_id = (await caller(first).create(agent=AGENT, input="Go.", user_id="42"))["run_id"]
    await eventually(_asked(model), "the text to be on its way to the model")
    first.kill()

    model.break_embeddings(lambda _: None)
    model.script(Reply(text="Done."))
    client = caller(serve(environment).ready())
    done = await client.wait(run_id)
    assert (done["status"], done["attempt"]) == ("completed", 2)
    assert [call["success"] for call in done["result"]["tool_executions"]] == [True]
    kept = await client.http.get("/memories", params={"namespace": "agents/keeper/users/42"})
    assert [memory["text"] for memory in kept.json()["items"]] == ["Likes tea."]


def _asked(model: Model) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return bool(model.embedding_requests())

    return look
