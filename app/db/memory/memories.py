"""Memories without a database, for as long as the process lives."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
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
    WordsAlone,
    without_rules,
)

_WORD = re.compile(r"\w+")
_EXCLUDED = re.compile(r"""(?<![^\s"])-\s*("[^"]*"|\S+)""")


@dataclass(slots=True)
class _Row:
    record: MemoryRecord
    words: tuple[str, ...]
    vector: Vector | None = None


@dataclass(frozen=True, slots=True)
class _Query:
    """The words that a query asks for, and those, or phrases, that it excludes."""

    wanted: frozenset[str]
    excluded: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, query: str) -> _Query:
        excluded = (_words(phrase) for phrase in _EXCLUDED.findall(query))
        return cls(frozenset(_words(_EXCLUDED.sub(" ", query))), tuple(phrase for phrase in excluded if phrase))

    def found(self, row: _Row) -> int:
        """How many of its words a row has; 0 for one that it does not find."""
        if not self.excluded:
            return len(self.wanted.intersection(row.words))
        return 1 if self.wanted.issubset(row.words) and not self.excludes(row) else 0

    def excludes(self, row: _Row) -> bool:
        words = row.words
        return any(
            words[start : start + len(phrase)] == phrase
            for phrase in self.excluded
            for start in range(len(words) - len(phrase) + 1)
        )


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
        read = _Query.of(without_rules(query))
        rows = [(found, row.record) for row in self._rows(place).values() if (found := read.found(row))]
        rows.sort(key=lambda row: (-row[0], -row[1].updated_at.timestamp(), row[1].key))
        return [record for _, record in rows[:limit]]

    async def words_alone(self, query: str) -> WordsAlone | None:
        read = _Query.of(without_rules(query))
        return WordsAlone.ONLY_EXCLUDES if read.excluded and not read.wanted else None

    async def nearest(
        self, place: MemoryPlace, query: str, model: str, vector: Vector, limit: int
    ) -> list[MemoryRecord]:
        read = _Query.of(without_rules(query))
        near = [
            (-_cosine(theirs, vector), row.record.key, row.record)
            for row, theirs in self._comparable(place, model, len(vector))
            if not read.excludes(row)
        ]
        return [record for _, _, record in sorted(near, key=lambda found: found[:2])[:limit]]

    async def comparable(self, place: MemoryPlace, model: str, dimensions: int) -> bool:
        return any(self._comparable(place, model, dimensions))

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

    def _comparable(self, place: MemoryPlace, model: str, dimensions: int) -> Iterator[tuple[_Row, Vector]]:
        for row in self._rows(place).values():
            if row.vector is not None and row.record.embedding_model == model and len(row.vector) == dimensions:
                yield row, row.vector

    def _rows(self, place: MemoryPlace) -> dict[str, _Row]:
        return self._places.get(place, {})


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))


def _cosine(one: Vector, other: Vector) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))
