"""Long-term memories: kept at once, embedded as soon as that can be, found by their words and by their meaning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from app.db.conflicts import NotNow
from app.engine.errors import ModelError
from app.engine.memories import (
    EMBEDDED_CHARS,
    MAX_FOUND,
    Embedder,
    Found,
    MemoryPlace,
    MemoryRecord,
    MemoryRows,
    NewMemory,
    PutMemory,
    SearchMode,
    Unembedded,
    Vector,
    WordsAlone,
    fused,
)
from app.engine.store_errors import StoreUnavailable, reason_of
from app.services.errors import NotFound
from app.services.pages import Page, page_of
from app.telemetry.logs import get_logger
from app.telemetry.recurring import Recurring

# How much of both rankings is fused: what is good in one may be far down in the other.
_DEPTH = 2 * MAX_FOUND
_DELETED_AT_ONCE = 1000
_MOST_DELETED = 100 * _DELETED_AT_ONCE

_NO_MODEL = "no embedding model is set"
_NO_PGVECTOR = "the database has no pgvector"
_ONLY_EXCLUDES = "the query only excludes, and asks for nothing that a memory could be near to"


@dataclass(frozen=True, slots=True)
class DeletedMemories:
    """`more`: there are others left, as one request deletes no more than so many."""

    deleted: int
    more: bool


class MemoryService:
    """Implements `app.engine.memories.Memories`, and what else callers may do with memories.

    Args:
        embedder: None for searches by words alone.

    Raises (all methods): `StoreUnavailable` when the database cannot be reached.
    """

    def __init__(self, rows: MemoryRows, embedder: Embedder | None) -> None:
        self._rows = rows
        self._embedder = embedder
        self._failures = Recurring(get_logger(__name__), "embedding_failed")

    async def put(self, place: MemoryPlace, new: NewMemory) -> PutMemory:
        """See `Memories.put`. Where there is no embedding now, the memory gets one later."""
        put = await self._rows.put(place, new)
        if self._embedder is None or put.record.embedding_model == self._embedder.model or not new.text.strip():
            return put
        memory = Unembedded(place, new.key, new.text[:EMBEDDED_CHARS])
        vector = await self._embedded(self._embedder, memory.text)
        try:
            if isinstance(vector, str) or not await self._rows.embed(memory, self._embedder.model, vector):
                return put
        except StoreUnavailable as error:  # the memory itself is kept
            self._failures.failed("store", error=reason_of(error), hint="it is embedded later")
            return put
        return replace(put, record=replace(put.record, embedding_model=self._embedder.model))

    async def get(self, place: MemoryPlace, key: str) -> MemoryRecord:
        """Raises: NotFound."""
        record = await self._rows.get(place, key)
        if record is None:
            raise _no_memory(place, key)
        return record

    async def list(self, place: MemoryPlace, cursor: str | None, limit: int) -> Page[MemoryRecord, str]:
        """The memories of a namespace in the order of their keys; the cursor is a key."""
        found = await self._rows.page(place, cursor or "", limit + 1)
        return page_of(found, limit, lambda record: record.key)

    async def search(self, place: MemoryPlace, query: str, limit: int) -> Found:
        """See `Memories.search`."""
        near = await self._near(place, query)
        with_words = await self._rows.with_words(place, query, _DEPTH)
        if isinstance(near, str):
            return Found(fused([with_words], limit), SearchMode.TEXT, near)
        return Found(fused([with_words, near], limit), SearchMode.HYBRID, None)

    async def delete(self, place: MemoryPlace, key: str) -> None:
        """Raises: NotFound."""
        if not await self._rows.delete(place, key):
            raise _no_memory(place, key)

    async def delete_all(self, place: MemoryPlace) -> DeletedMemories:
        """Delete the memories of a namespace, a bounded number of them a request."""
        deleted = 0
        while deleted < _MOST_DELETED:
            gone = await self._rows.delete_some(place, _DELETED_AT_ONCE)
            deleted += gone
            if gone < _DELETED_AT_ONCE:
                return DeletedMemories(deleted, more=False)
        return DeletedMemories(deleted, more=True)

    async def _near(self, place: MemoryPlace, query: str) -> Sequence[MemoryRecord] | str:
        """The memories nearest to a query, or why there are none to be had."""
        if self._embedder is None:
            return _NO_MODEL
        match await self._rows.words_alone(query):
            case None:
                return await self._nearest(self._embedder, place, query)
            case WordsAlone.NO_VECTORS:
                return _NO_PGVECTOR
            case WordsAlone.ONLY_EXCLUDES:
                return _ONLY_EXCLUDES
            case _ as never:
                assert_never(never)

    async def _nearest(self, embedder: Embedder, place: MemoryPlace, query: str) -> Sequence[MemoryRecord] | str:
        vector = await self._embedded(embedder, query)
        if isinstance(vector, str):
            return vector
        try:
            near = await self._rows.nearest(place, query, embedder.model, vector, _DEPTH)
        except NotNow as error:
            return str(error)
        # None may be near because the query excludes them all; that is an answer.
        if near or await self._rows.comparable(place, embedder.model, len(vector)):
            return near
        return f"no memory of this namespace has an embedding of {embedder.model} yet"

    async def _embedded(self, embedder: Embedder, text: str) -> Vector | str:
        """The embedding of a text, or why there is none."""
        try:
            return (await embedder.embed([text]))[0]
        except ModelError as error:
            self._failures.failed(error.code.value, error=error.message, hint="memories are found by their words")
            return error.message


def _no_memory(place: MemoryPlace, key: str) -> NotFound:
    return NotFound(f"there is no memory {key!r} in the namespace {place.namespace!r}")
