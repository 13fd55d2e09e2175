"""Long-term memories: what they are, and the ports through which they are kept, found and embedded.

A memory is a JSON value under a key in a namespace, with the text that it is found by.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, StrEnum, auto
from typing import Protocol, TypeAlias

import orjson

# Both stand in one index entry, which Postgres bounds at 2 704 bytes: characters take up to four.
MAX_NAMESPACE_CHARS = 255
MAX_KEY_CHARS = 255
MAX_VALUE_BYTES = 64 * 1024
MAX_TEXT_CHARS = 16_000
MAX_QUERY_CHARS = 2_000
MAX_FOUND = 50
# The beginning of a text that an embedding stands for: models take a few thousand tokens.
EMBEDDED_CHARS = 8_000
# The most numbers that pgvector's type holds.
MAX_DIMENSIONS = 16_000

_NAME = r"[^/\x00-\x20\x7f-\xa0]+"
NAMESPACE_PATTERN = rf"^{_NAME}(/{_NAME})*$"
_NAMESPACE = re.compile(NAMESPACE_PATTERN)
KEY_PATTERN = r"^[^\x00-\x1f\x7f]+$"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Vector: TypeAlias = Sequence[float]

# Reciprocal rank fusion: https://plg.uwaterloo.ca/~gvcormac/cormacksigir09-rrf.pdf, with the paper's constant.
_FUSION = 60
# Two or more, and one before no word and no phrase.
_IDLE_DASHES = re.compile(r'-{2,}|-(?=[^\w"\s-]*(?:[\s-]|$))')


class MemoryRefused(ValueError):
    """What is asked of a run's memories cannot be; the text says why, to whoever asks."""


class SearchMode(StrEnum):
    """How a search was done: by words alone, or by words and by meaning."""

    TEXT = "text"
    HYBRID = "hybrid"


class WordsAlone(Enum):
    """Why there is nothing that a query could be near to, whatever model there is."""

    NO_VECTORS = auto()
    ONLY_EXCLUDES = auto()


@dataclass(frozen=True, slots=True)
class MemoryPlace:
    """Whose memories: those of one namespace of one tenant."""

    tenant_id: str
    namespace: str


@dataclass(frozen=True, slots=True)
class NewMemory:
    """
    Args:
        value: JSON text.
        text: what the memory is found by; without NUL and lone surrogates, which cannot be stored.
    """

    key: str
    value: str
    text: str

    @classmethod
    def of(cls, key: str, value: object, text: str | None = None) -> NewMemory:
        """A memory of a JSON value; without a text, the value is its text: a string as it is, any other as JSON.

        Of a long value only the beginning is searched.
        """
        written = orjson.dumps(value).decode()
        if text is None:
            text = (value if isinstance(value, str) else written)[:MAX_TEXT_CHARS]
        return cls(key, written, text)


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """A memory as it is stored.

    Args:
        value: JSON text.
        embedding_model: the model that has embedded the text, or has refused to; None while none has.
    """

    namespace: str
    key: str
    value: str
    text: str
    embedding_model: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class PutMemory:
    """`created`: there was nothing under the key."""

    record: MemoryRecord
    created: bool


@dataclass(frozen=True, slots=True)
class FoundMemory:
    """`score` only tells what is before what within one answer."""

    record: MemoryRecord
    score: float


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found, best first.

    Args:
        reason: why it searched by words alone; None if it did not.
    """

    items: tuple[FoundMemory, ...]
    mode: SearchMode
    reason: str | None


@dataclass(frozen=True, slots=True)
class Unembedded:
    """A memory without an embedding of the model that is wanted; `text` is the part of it that is embedded."""

    place: MemoryPlace
    key: str
    text: str


class MemoryRows(Protocol):
    """Where memories are kept. Every method is one statement.

    Raises (all methods): `StoreUnavailable` when the store cannot be reached.
    """

    async def put(self, place: MemoryPlace, new: NewMemory) -> PutMemory:
        """Keep a memory, in place of what was under its key; an embedding stays where the text stays the same."""
        ...

    async def get(self, place: MemoryPlace, key: str) -> MemoryRecord | None: ...

    async def page(self, place: MemoryPlace, after: str, limit: int) -> list[MemoryRecord]:
        """Memories with a greater key, in the order of their keys by code point."""
        ...

    async def with_words(self, place: MemoryPlace, query: str, limit: int) -> list[MemoryRecord]:
        """Memories that have words of the query, best first; those that have all of them go before the others.

        `-word` and `-"a phrase"` exclude who has them, and then each of the other words has to be there.
        """
        ...

    async def words_alone(self, query: str) -> WordsAlone | None:
        """Why `nearest` has no answer to a query here now; None where it has."""
        ...

    async def nearest(
        self, place: MemoryPlace, query: str, model: str, vector: Vector, limit: int
    ) -> list[MemoryRecord]:
        """Memories by the cosine of their embedding and a vector of the same model, nearest first.

        Args:
            query: what it excludes, as in `with_words`, is left out. Nothing else of it counts here.
        """
        ...

    async def comparable(self, place: MemoryPlace, model: str, dimensions: int) -> bool:
        """Whether any memory of the place has an embedding of that model and length."""
        ...

    async def embed(self, memory: Unembedded, model: str, vector: Vector | None) -> bool:
        """Keep the embedding of a memory; None where the model refuses its text.

        Returns:
            False if the memory is gone or has another text by now: nothing was written.
        """
        ...

    async def delete(self, place: MemoryPlace, key: str) -> bool:
        """Whether there was such a memory."""
        ...

    async def delete_some(self, place: MemoryPlace, limit: int) -> int:
        """Delete up to `limit` memories of a namespace; how many."""
        ...


class Embedder(Protocol):
    """Turns texts into vectors whose nearness is that of their meaning."""

    @property
    def model(self) -> str:
        """The name that embeddings are kept under: vectors of different models cannot be compared."""
        ...

    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        """A vector for each text, in their order; none is all zeros.

        Raises:
            ModelError: there is no answer, or none that can be used; `INVALID_REQUEST` and `CONTEXT_OVERFLOW` are about
                these texts.
        """
        ...

    async def aclose(self) -> None: ...


class Memories(Protocol):
    """What agents do with memories; implemented by `app.services.memories`. Raises as `MemoryRows` does."""

    async def put(self, place: MemoryPlace, new: NewMemory) -> PutMemory:
        """See `MemoryRows.put`; with an embedding, if one can be had now."""
        ...

    async def search(self, place: MemoryPlace, query: str, limit: int) -> Found:
        """The best `limit` memories for a query, by words, and by meaning where that is possible."""
        ...


@dataclass(frozen=True, slots=True)
class AgentMemories:
    """The memories of one run's namespace, which no model chooses."""

    memories: Memories
    place: MemoryPlace

    async def remember(self, text: str, key: str) -> MemoryRecord:
        """Raises: MemoryRefused, the text or the key cannot be stored."""
        _check_storable(text)
        _check_storable(key)
        return (await self.memories.put(self.place, NewMemory.of(key, text))).record

    async def recall(self, query: str, limit: int) -> Found:
        """Raises: MemoryRefused, no text that is stored can be like this."""
        _check_storable(query)
        return await self.memories.search(self.place, query, limit)


def without_rules(query: str) -> str:
    """A query without the dashes that exclude nothing, as in the rules of a text or of a table.

    Postgres makes an operator of each, and fails where there are more than it can hold.
    """
    return _IDLE_DASHES.sub(" ", query)


def fused(rankings: Sequence[Sequence[MemoryRecord]], limit: int) -> tuple[FoundMemory, ...]:
    """Several rankings as one, by reciprocal rank fusion; of equals, the first ranking's goes first."""
    records: dict[str, MemoryRecord] = {}
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, record in enumerate(ranking, 1):
            records.setdefault(record.key, record)
            scores[record.key] = scores.get(record.key, 0.0) + 1 / (_FUSION + rank)
    best = sorted(records, key=lambda key: -scores[key])[:limit]
    return tuple(FoundMemory(records[key], scores[key]) for key in best)


def checked_namespace(namespace: str) -> str:
    """Raises: ValueError, it is no namespace. Its length is not looked at."""
    if _NAMESPACE.fullmatch(namespace) is None:
        raise ValueError(
            "should be names without spaces and control characters, with single slashes between them, as in users/42"
        )
    return namespace


def checked_key(key: str) -> str:
    """Raises: ValueError, no memory can have this key. Its length is not looked at."""
    if _CONTROL.search(key) is not None:
        raise ValueError("should have no control characters, such as line breaks")
    return key


def _check_storable(text: str) -> None:
    if "\0" in text:
        raise MemoryRefused("a NUL character cannot be stored; leave it out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise MemoryRefused("half of a surrogate pair cannot be stored; leave it out") from None
