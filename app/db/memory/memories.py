"""Memories without a database, for as long as the process lives."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from app.engine.memories import (
    EMBEDDED_CHARS,
    MemoryPlace,
    MemoryRecord,
    NewMemory,
    PutMemory,
    Unembedded,
    Vector,
)

_WORD = re.compile(r"\w+")


@dataclass(slots=True)
class _Row:
    record: MemoryRecord
    words: frozenset[str]
    vector: Vector | None = None


class InMemoryRows:
    """Implements `app.engine.memories.MemoryRows`. Words are compared as they stand, by case folding alone."""

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._places: dict[MemoryPlace, dict[str, _Row]] = {}

    async def put(self, place: MemoryPlace, new: NewMemory) -> PutMemory:
        rows = self._places.setdefault(place, {})
        now = self._clock()
        old = rows.get(new.key)
        if old is None:
            record = MemoryRecord(place.namespace, new.key, new.value, new.text, None, now, now)
            rows[new.key] = _Row(record, _words(new.text))
            return PutMemory(record, created=True)
        if old.record.text != new.text:
            old.record = replace(old.record, embedding_model=None)
            old.vector = None
            old.words = _words(new.text)
        old.record = replace(old.record, value=new.value, text=new.text, updated_at=now)
        return PutMemory(old.record, created=False)

    async def get(self, place: MemoryPlace, key: str) -> MemoryRecord | None:
        row = self._rows(place).get(key)
        return None if row is None else row.record

    async def page(self, place: MemoryPlace, after: str, limit: int) -> list[MemoryRecord]:
        rows = self._rows(place)
        return [rows[key].record for key in sorted(rows) if key > after][:limit]

    async def with_words(self, place: MemoryPlace, query: str, limit: int) -> list[MemoryRecord]:
        wanted = _words(query)
        rows = [row for row in self._rows(place).values() if row.words & wanted]
        rows.sort(key=lambda row: (-len(row.words & wanted), -row.record.updated_at.timestamp(), row.record.key))
        return [row.record for row in rows[:limit]]

    async def compares_vectors(self) -> bool:
        return True

    async def nearest(self, place: MemoryPlace, model: str, vector: Vector, limit: int) -> list[MemoryRecord]:
        near = [
            (-_cosine(row.vector, vector), key, row.record)
            for key, row in self._rows(place).items()
            if row.vector is not None and row.record.embedding_model == model and len(row.vector) == len(vector)
        ]
        return [record for _, _, record in sorted(near, key=lambda found: found[:2])[:limit]]

    async def embed(self, memory: Unembedded, model: str, vector: Vector | None) -> bool:
        row = self._rows(memory.place).get(memory.key)
        if row is None or row.record.text[:EMBEDDED_CHARS] != memory.text:
            return False
        row.vector = vector
        row.record = replace(row.record, embedding_model=model)
        return True

    async def delete(self, place: MemoryPlace, key: str) -> bool:
        return self._rows(place).pop(key, None) is not None

    async def delete_some(self, place: MemoryPlace, limit: int) -> int:
        rows = self._rows(place)
        gone = sorted(rows)[:limit]
        for key in gone:
            del rows[key]
        return len(gone)

    def _rows(self, place: MemoryPlace) -> dict[str, _Row]:
        return self._places.get(place, {})


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.casefold()))


def _cosine(one: Vector, other: Vector) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))
