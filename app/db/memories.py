"""Memories in Postgres: put, found by their words, and by their embeddings where pgvector is installed.

Words are indexed by their English stems, and no word is left out (`memory_words`): stems of other languages are stems
in the query as well, and names that English takes for stop words can still be found. A query's own stop words are left
out, unless there is nothing else in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from app.db.database import Connection, Database
from app.engine.memories import (
    EMBEDDED_CHARS,
    MemoryPlace,
    MemoryRecord,
    NewMemory,
    PutMemory,
    Unembedded,
    Vector,
    WordsAlone,
    without_rules,
)

_COLUMNS = "namespace, key, value, text, embedding_model, created_at, updated_at"

_PUT = f"""
INSERT INTO memories AS m (tenant_id, namespace, key, value, text) VALUES ($1, $2, $3, $4::json, $5)
ON CONFLICT (tenant_id, namespace, key) DO UPDATE
SET value = EXCLUDED.value, text = EXCLUDED.text, updated_at = clock_timestamp(),
    embedding = CASE WHEN m.text = EXCLUDED.text THEN m.embedding END,
    embedding_model = CASE WHEN m.text = EXCLUDED.text THEN m.embedding_model END
RETURNING {_COLUMNS}, xmax = 0 AS created"""

_GET = f"SELECT {_COLUMNS} FROM memories WHERE tenant_id = $1 AND namespace = $2 AND key = $3"

_PAGE = f"""
SELECT {_COLUMNS} FROM memories WHERE tenant_id = $1 AND namespace = $2 AND key > $3 ORDER BY key LIMIT $4"""

# A query as it is read: `telling` without stop words, `whole` with them, of that what it excludes as a query of its own
# (null where it excludes nothing) and how many words it asks for. In the text of a query, words stand in quotes, an
# excluded phrase in parentheses without others inside, and `--word`, which asks for the word, as !!'word'.
_WORD = "'(?:[^']|'')*'"
_PARTS = rf"!!|!({_WORD}|\( (?:{_WORD}|[^'()])+\))|({_WORD})"
_READ = f"""
read AS (
    SELECT telling, whole, excluded, wants
    FROM (SELECT websearch_to_tsquery('english', $3) AS telling, websearch_to_tsquery('memory_words', $3) AS whole) q,
         LATERAL (SELECT string_agg(part[1], ' | ')::tsquery AS excluded, count(part[2]) AS wants
                  FROM regexp_matches(whole::text, $${_PARTS}$$, 'g') AS part) p)"""

# All words of a query are too many for a sentence: any of them will do, and who has all goes first. In the text of a
# query an operator stands between spaces, which no word has in it. Where words are excluded, each of the others has to
# be there.
_WITH_WORDS = f"""
WITH {_READ},
asked AS (
    SELECT CASE WHEN numnode(telling) = 0 OR excluded IS NOT NULL THEN whole ELSE telling END AS every, excluded
    FROM read),
wanted AS (
    SELECT every, CASE WHEN excluded IS NOT NULL THEN every
                       ELSE replace(every::text, ' & ', ' | ')::tsquery END AS some
    FROM asked)
SELECT {_COLUMNS} FROM wanted, memories m
WHERE m.tenant_id = $1 AND m.namespace = $2 AND m.words @@ wanted.some
ORDER BY m.words @@ wanted.every DESC, ts_rank(m.words, wanted.some, 1) DESC, m.updated_at DESC, m.key LIMIT $4"""

# `vector` may be installed, or dropped, while the service runs.
_WORDS_ALONE = f"""
WITH {_READ.replace("$3", "$1")}
SELECT to_regtype('vector') IS NULL AS no_vectors, excluded IS NOT NULL AND wants = 0 AS only_excludes FROM read"""

# Without anything excluded the words are not even fetched: the operator is strict.
_NEAREST = f"""
WITH {_READ}
SELECT {_COLUMNS} FROM read, memories m
WHERE m.tenant_id = $1 AND m.namespace = $2 AND m.embedding_model = $4 AND cardinality(m.embedding) = $5
  AND (m.words @@ read.excluded) IS NOT TRUE
ORDER BY m.embedding::vector <=> $6::real[]::vector, m.key LIMIT $7"""

_COMPARABLE = """
SELECT EXISTS (SELECT FROM memories WHERE tenant_id = $1 AND namespace = $2 AND embedding_model = $3
               AND cardinality(embedding) = $4)"""

_EMBED = """
UPDATE memories SET embedding = $5, embedding_model = $6
WHERE tenant_id = $1 AND namespace = $2 AND key = $3 AND left(text, $7) = $4"""

# Three looks into the index, as "is another one" is none.
_UNEMBEDDED = " UNION ALL ".join(
    f"""(SELECT tenant_id, namespace, key, left(text, $3) AS text FROM memories WHERE {condition} LIMIT $2)"""
    for condition in (
        "$1::text IS NOT NULL AND embedding_model IS NULL",
        "embedding_model < $1",
        "embedding_model > $1",
    )
)

_DELETE = "DELETE FROM memories WHERE tenant_id = $1 AND namespace = $2 AND key = $3"

_DELETE_SOME = """
DELETE FROM memories WHERE tenant_id = $1 AND namespace = $2 AND key IN (
    SELECT key FROM memories WHERE tenant_id = $1 AND namespace = $2 ORDER BY key LIMIT $3)"""


class PostgresMemoryRows:
    """Implements `app.engine.memories.MemoryRows`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, place: MemoryPlace, new: NewMemory) -> PutMemory:
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_PUT, place.tenant_id, place.namespace, new.key, new.value, new.text)
        assert row is not None
        return PutMemory(_record(row), row["created"])

    async def get(self, place: MemoryPlace, key: str) -> MemoryRecord | None:
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_GET, place.tenant_id, place.namespace, key)
        return None if row is None else _record(row)

    async def page(self, place: MemoryPlace, after: str, limit: int) -> list[MemoryRecord]:
        return await self._records(_PAGE, place.tenant_id, place.namespace, after, limit)

    async def with_words(self, place: MemoryPlace, query: str, limit: int) -> list[MemoryRecord]:
        return await self._records(_WITH_WORDS, place.tenant_id, place.namespace, without_rules(query), limit)

    async def words_alone(self, query: str) -> WordsAlone | None:
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_WORDS_ALONE, without_rules(query))
        assert row is not None
        if row["no_vectors"]:
            return WordsAlone.NO_VECTORS
        return WordsAlone.ONLY_EXCLUDES if row["only_excludes"] else None

    async def nearest(
        self, place: MemoryPlace, query: str, model: str, vector: Vector, limit: int
    ) -> list[MemoryRecord]:
        found = (place.tenant_id, place.namespace, without_rules(query), model, len(vector), vector, limit)
        return await self._records(_NEAREST, *found)

    async def comparable(self, place: MemoryPlace, model: str, dimensions: int) -> bool:
        async with self._database.connection() as connection:
            return bool(await connection.fetchval(_COMPARABLE, place.tenant_id, place.namespace, model, dimensions))

    async def embed(self, memory: Unembedded, model: str, vector: Vector | None) -> bool:
        async with self._database.connection() as connection:
            return await keep_embedding(connection, memory, model, vector)

    async def delete(self, place: MemoryPlace, key: str) -> bool:
        async with self._database.connection() as connection:
            return (await connection.execute(_DELETE, place.tenant_id, place.namespace, key)).endswith(" 1")

    async def delete_some(self, place: MemoryPlace, limit: int) -> int:
        async with self._database.connection() as connection:
            done = await connection.execute(_DELETE_SOME, place.tenant_id, place.namespace, limit)
        return int(done.rpartition(" ")[2])

    async def _records(self, query: str, *arguments: object) -> list[MemoryRecord]:
        async with self._database.connection() as connection:
            return [_record(row) for row in await connection.fetch(query, *arguments)]


async def keep_embedding(connection: Connection, memory: Unembedded, model: str, vector: Vector | None) -> bool:
    """See `MemoryRows.embed`."""
    place = memory.place
    done = await connection.execute(
        _EMBED, place.tenant_id, place.namespace, memory.key, memory.text, vector, model, EMBEDDED_CHARS
    )
    return done.endswith(" 1")


async def unembedded(connection: Connection, model: str, limit: int) -> Sequence[Unembedded]:
    """Up to `limit` memories, of any tenant, that neither have an embedding of this model nor were refused by it."""
    rows = await connection.fetch(f"{_UNEMBEDDED} LIMIT $2", model, limit, EMBEDDED_CHARS)
    return [Unembedded(MemoryPlace(row["tenant_id"], row["namespace"]), row["key"], row["text"]) for row in rows]


def _record(row: asyncpg.Record) -> MemoryRecord:
    return MemoryRecord(
        namespace=row["namespace"],
        key=row["key"],
        value=row["value"],
        text=row["text"],
        embedding_model=row["embedding_model"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
