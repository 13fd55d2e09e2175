"""Memories that have no embedding get one, by one replica at a time; what the model refuses is not asked for ever."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from app.db import chores, memories
from app.db.chores import ChoreName
from app.db.database import Database
from app.db.memories import PostgresMemoryRows
from app.engine.memories import MemoryPlace, NewMemory
from app.llm.embeddings import OpenAIEmbeddings
from app.worker.backfill import BATCH, PROBE, Backfill
from tests.model_server import ModelServer, Reply

PLACE = MemoryPlace("", "users/42")
MODEL = "meaning-1"


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as server:
        yield server


@pytest.fixture
async def embedder(server: ModelServer) -> AsyncIterator[OpenAIEmbeddings]:
    embedder = OpenAIEmbeddings(server.base_url, MODEL)
    yield embedder
    await embedder.aclose()


@pytest.fixture
def rows(database: Database) -> PostgresMemoryRows:
    return PostgresMemoryRows(database)


@pytest.fixture
def backfill(database: Database, embedder: OpenAIEmbeddings) -> Backfill:
    return Backfill(database, embedder, str(uuid4()))


async def put(rows: PostgresMemoryRows, *texts: str, place: MemoryPlace = PLACE) -> None:
    for number, text in enumerate(texts):
        await rows.put(place, NewMemory(f"key{number}", "1", text))


async def models(database: Database) -> list[tuple[str, str | None, bool]]:
    """The text of each memory, the model, and whether there is an embedding."""
    async with database.connection() as connection:
        found = await connection.fetch(
            "SELECT text, embedding_model, embedding IS NOT NULL AS has FROM memories ORDER BY tenant_id, key"
        )
    return [(row["text"], row["embedding_model"], row["has"]) for row in found]


async def test_all_of_all_tenants_are_embedded_in_batches(
    database: Database, rows: PostgresMemoryRows, backfill: Backfill, server: ModelServer
) -> None:
    await put(rows, *(f"tea {number}" for number in range(2 * BATCH + 3)))
    await put(rows, "a dog", place=MemoryPlace("acme", "x"))
    assert await backfill.fill() == 2 * BATCH + 4
    assert all(found[1:] == (MODEL, True) for found in await models(database))
    assert [len(request.body["input"]) for request in server.embedding_requests] == [BATCH, BATCH, 4]
    assert await backfill.fill() == 0
    assert len(server.embedding_requests) == 3


async def test_only_one_replica_does_it(
    database: Database, rows: PostgresMemoryRows, embedder: OpenAIEmbeddings, backfill: Backfill, server: ModelServer
) -> None:
    await put(rows, "tea")
    async with database.connection() as connection:
        assert await chores.take(connection, ChoreName.EMBEDDINGS, str(uuid4()), 60)
    assert await backfill.fill() == 0
    assert not server.embedding_requests


async def test_what_another_replica_has_taken_over_meanwhile_is_left_to_it(
    database: Database, rows: PostgresMemoryRows, embedder: OpenAIEmbeddings, server: ModelServer
) -> None:
    await put(rows, "tea")
    late = Backfill(database, _TakenOver(embedder, database), str(uuid4()), hold_s=0)
    assert await late.fill() == 0
    assert await models(database) == [("tea", None, False)]


class _TakenOver:
    """While it embeds, another replica takes the chore."""

    def __init__(self, inner: OpenAIEmbeddings, database: Database) -> None:
        self._inner = inner
        self._database = database
        self.model = inner.model

    async def embed(self, texts: Any) -> Any:
        async with self._database.connection() as connection:
            assert await chores.take(connection, ChoreName.EMBEDDINGS, str(uuid4()), 60)
        return await self._inner.embed(texts)

    async def aclose(self) -> None:
        await self._inner.aclose()


async def test_a_text_that_the_model_refuses_is_noted_and_keeps_none_of_the_others(
    database: Database, rows: PostgresMemoryRows, backfill: Backfill, server: ModelServer
) -> None:
    server.break_embeddings(lambda body: Reply.error(400, "too long") if "endless" in body["input"] else None)
    await put(rows, "tea", "endless", "  ", "a dog")
    assert await backfill.fill() == 4
    assert await models(database) == [
        ("tea", MODEL, True), ("endless", MODEL, False), ("  ", MODEL, False), ("a dog", MODEL, True),
    ]  # fmt: skip
    asked = len(server.embedding_requests)
    assert await backfill.fill() == 0
    assert len(server.embedding_requests) == asked


async def test_a_model_that_refuses_everything_has_refused_no_text(
    database: Database, rows: PostgresMemoryRows, backfill: Backfill, server: ModelServer
) -> None:
    server.break_embeddings(lambda _: Reply.error(400, "there is no such model"))
    await put(rows, "tea", "a dog")
    assert await backfill.fill() == 0
    assert server.embedding_requests[-1].body["input"] == [PROBE]
    assert await models(database) == [("tea", None, False), ("a dog", None, False)]
    server.break_embeddings(lambda _: None)
    assert await backfill.fill() == 2


async def test_what_is_done_stays_done_when_the_server_fails_in_between(
    database: Database, rows: PostgresMemoryRows, backfill: Backfill, server: ModelServer
) -> None:
    await put(rows, *(f"tea {number}" for number in range(BATCH + 1)))
    server.break_embeddings(lambda _: Reply.error(503) if len(server.embedding_requests) > 1 else None)
    assert await backfill.fill() == BATCH
    assert sum(has for _, _, has in await models(database)) == BATCH
    server.break_embeddings(lambda _: None)
    assert await backfill.fill() == 1


async def test_a_memory_that_changes_while_it_is_embedded_is_embedded_again(
    database: Database, rows: PostgresMemoryRows, backfill: Backfill, server: ModelServer
) -> None:
    await put(rows, "tea")
    async with database.connection() as connection:
        (stale,) = await memories.unembedded(connection, MODEL, 10)
    await put(rows, "a dog")
    async with database.connection() as connection:
        assert not await memories.keep_embedding(connection, stale, MODEL, [1.0])
    assert await backfill.fill() == 1
    assert server.embedding_requests[-1].body["input"] == ["a dog"]
