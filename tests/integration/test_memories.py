"""Memories of a replica at work, with a server of embeddings that does what a test tells it to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import asyncpg
import httpx
import pytest

from app.settings import Settings
from tests.acceptance.waiting import eventually
from tests.integration.serving import serving
from tests.model_server import ModelServer, Reply
from tests.model_server.embeddings import vector

Json: TypeAlias = dict[str, Any]
Served: TypeAlias = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]

TEXTS = {
    "tea": "Likes tea, and a lot of it.",
    "team": "Plays in a volleyball team.",
    "dog": "Has a puppy whose name is Rex.",
    "seat": "Wants the aisle.",
}
# No word of this is in what it is about.
BY_MEANING = "Which beverages are welcome?"


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as server:
        yield server


@pytest.fixture
def served(database_url: str, server: ModelServer) -> Served:
    """A caller of a replica whose embeddings come from `server`, unless other settings say otherwise."""

    def serve(**settings: Any) -> AbstractAsyncContextManager[httpx.AsyncClient]:
        embedding = {"embedding_model": "meaning-1", "embedding_base_url": server.base_url, **settings}
        return serving(Settings.load(database_url=database_url, agents_dir=None, **embedding))

    return serve


@pytest.fixture
async def rows(database_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def put(client: httpx.AsyncClient, key: str, value: object, **more: Any) -> Json:
    body = {"namespace": "users/42", "key": key, "value": value, **more}
    answer = await client.put("/memories", json=body)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


async def put_all(client: httpx.AsyncClient) -> None:
    for key, text in TEXTS.items():
        await put(client, key, text)


async def search(client: httpx.AsyncClient, query: str, **more: Any) -> Json:
    answer = await client.post("/memories/search", json={"namespace": "users/42", "query": query, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def keys(found: Json) -> list[str]:
    return [item["memory"]["key"] for item in found["items"]]


async def unembedded(rows: asyncpg.Connection[Any]) -> int:
    return await rows.fetchval("SELECT count(*) FROM memories WHERE embedding IS NULL")


async def all_embedded(rows: asyncpg.Connection[Any], model: str = "meaning-1") -> None:
    async def look() -> bool:
        others = "SELECT count(*) FROM memories WHERE embedding IS NULL OR embedding_model <> $1"
        return await rows.fetchval(others, model) == 0

    await eventually(look, "all memories to be embedded")


async def test_without_a_model_memories_are_found_by_their_words(served: Served, server: ModelServer) -> None:
    async with served(embedding_model=None) as client:
        await put_all(client)
        found = await search(client, "tea")
        assert (keys(found), found["mode"]) == (["tea"], "text")
        assert found["reason"] == "no embedding model is set"
        assert keys(await search(client, BY_MEANING)) == []
    assert not server.embedding_requests


async def test_with_a_model_they_are_found_by_their_meaning_too(served: Served) -> None:
    async with served() as client:
        await put_all(client)
        found = await search(client, BY_MEANING)
        assert (keys(found)[0], found["mode"], found["reason"]) == ("tea", "hybrid", None)
        assert keys(await search(client, "my poodle", limit=1)) == ["dog"]
        # In both rankings: by its word before the one that is nearer in meaning, or as near.
        assert keys(await search(client, "team", limit=1)) == ["team"]
        scores = [item["score"] for item in found["items"]]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("tea -coffee", ["tea", "dog"]),
        ("beverages -tea", ["coffee", "dog"]),
        ('beverages -"black coffee"', ["tea", "dog"]),
        ('beverages -"coffee black"', ["coffee", "tea", "dog"]),
        ("beverages -tea -puppy", ["coffee"]),
        ("beverages -likes -puppy", []),
    ],
)
async def test_what_a_query_excludes_is_not_found_by_its_meaning_either(
    served: Served, query: str, found: list[str]
) -> None:
    async with served() as client:
        for key, text in {"tea": "Likes tea.", "coffee": "Likes black coffee.", "dog": "Has a puppy."}.items():
            await put(client, key, text)
        answer = await search(client, query)
        assert (sorted(keys(answer)), answer["mode"], answer["reason"]) == (sorted(found), "hybrid", None)


async def test_a_query_that_only_excludes_has_nothing_to_be_near_to(served: Served, server: ModelServer) -> None:
    async with served() as client:
        await put_all(client)
        asked = len(server.embedding_requests)
        found = await search(client, "-tea -puppy")
        assert (sorted(keys(found)), found["mode"]) == (["seat", "team"], "text")
        assert "only excludes" in found["reason"]
        assert len(server.embedding_requests) == asked  # for nothing


async def test_a_memory_says_which_model_has_embedded_it(served: Served) -> None:
    async with served() as client:
        assert (await put(client, "tea", "tea"))["embedding_model"] == "meaning-1"


async def test_a_text_that_stays_the_same_is_embedded_once(served: Served, server: ModelServer) -> None:
    async with served() as client:
        await put(client, "seat", {"seat": 1}, text="window")
        asked = len(server.embedding_requests)
        changed = await put(client, "seat", {"seat": 2}, text="window")
        assert (changed["value"], changed["embedding_model"]) == ({"seat": 2}, "meaning-1")
        assert len(server.embedding_requests) == asked
        await put(client, "seat", {"seat": 2}, text="tea")
        assert server.embedding_requests[-1].body["input"] == ["tea"]
        assert keys(await search(client, BY_MEANING)) == ["seat"]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Reply.error(503, "overloaded"), "HTTP 503: overloaded"),
        (Reply.error(401, "bad key"), "HTTP 401: bad key"),
        (Reply(body=b"<html>"), "is no JSON"),
        (Reply(body={"data": []}), "one embedding for each"),
    ],
    ids=["failing", "refusing", "garbage", "nothing"],
)
async def test_while_there_are_no_embeddings_memories_are_kept_and_found_by_their_words(
    fault: Reply, told: str, served: Served, server: ModelServer, rows: asyncpg.Connection[Any]
) -> None:
    server.break_embeddings(lambda _: fault)
    async with served() as client:
        await put_all(client)
        assert await unembedded(rows) == len(TEXTS)
        found = await search(client, "tea")
        assert (keys(found), found["mode"]) == (["tea"], "text")
        assert told in found["reason"]


async def test_a_server_that_is_not_there_is_no_error_of_a_request(served: Served) -> None:
    async with served(embedding_base_url="http://127.0.0.1:1/v1") as client:
        await put_all(client)
        found = await search(client, "tea")
        assert (keys(found), found["mode"]) == (["tea"], "text")
        assert "no answer" in found["reason"]


async def test_a_server_that_hangs_is_waited_for_once_and_then_left_alone(
    served: Served, server: ModelServer, rows: asyncpg.Connection[Any]
) -> None:
    server.break_embeddings(lambda _: Reply(body={}, delay_s=3600))
    async with served() as client:
        await put(client, "tea", TEXTS["tea"])  # takes as long as the tries do
        await put(client, "seat", TEXTS["seat"])
        assert (await search(client, "tea"))["mode"] == "text"
        assert {tuple(request.body["input"]) for request in server.embedding_requests} == {(TEXTS["tea"],)}
        assert await unembedded(rows) == 2


async def test_what_could_not_be_embedded_is_embedded_when_that_is_possible_again(
    served: Served, server: ModelServer, rows: asyncpg.Connection[Any]
) -> None:
    server.break_embeddings(lambda _: Reply.error(503))
    async with served() as client:
        await put_all(client)
    assert await unembedded(rows) == len(TEXTS)
    server.break_embeddings(lambda _: None)
    async with served() as client:
        await all_embedded(rows)
        found = await search(client, BY_MEANING)
        assert (keys(found)[0], found["mode"]) == ("tea", "hybrid")


async def test_with_another_model_all_memories_are_embedded_anew(served: Served, rows: asyncpg.Connection[Any]) -> None:
    async with served() as client:
        await put_all(client)
    async with served(embedding_model="meaning-2") as client:
        await all_embedded(rows, "meaning-2")
        assert keys(await search(client, BY_MEANING))[0] == "tea"


async def test_where_pgvector_is_absent_words_are_searched_and_it_may_come_later(
    served: Served, server: ModelServer, rows: asyncpg.Connection[Any]
) -> None:
    await rows.execute("DROP EXTENSION vector")
    async with served() as client:
        await put_all(client)
        assert await unembedded(rows) == 0  # plain numbers, which need no extension
        asked = len(server.embedding_requests)
        found = await search(client, BY_MEANING)
        assert (keys(found), found["mode"]) == ([], "text")
        assert found["reason"] == "the database has no pgvector"
        assert len(server.embedding_requests) == asked  # for nothing
        await rows.execute("CREATE EXTENSION vector")
        found = await search(client, BY_MEANING)
        assert (keys(found)[0], found["mode"]) == ("tea", "hybrid")


async def test_an_embedding_is_as_it_came(served: Served, rows: asyncpg.Connection[Any]) -> None:
    async with served() as client:
        await put(client, "tea", "tea and a dog")
    stored = await rows.fetchval("SELECT embedding FROM memories")
    assert stored == pytest.approx(vector("tea and a dog"))


async def test_with_its_text_an_embedding_goes(
    served: Served, server: ModelServer, rows: asyncpg.Connection[Any]
) -> None:
    async with served() as client:
        await put(client, "tea", "tea")
        server.break_embeddings(lambda _: Reply.error(503))
        assert (await put(client, "tea", "a dog"))["embedding_model"] is None
        assert await unembedded(rows) == 1
