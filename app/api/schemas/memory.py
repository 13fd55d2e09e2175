"""Long-term memories."""

from __future__ import annotations

from typing import Annotated, Any, Self

import orjson
from pydantic import AfterValidator, Field, StringConstraints, model_validator

from app.api.schemas.fields import EXAMPLE_TIME, FROM_DIGITS, JsonObject, RequestModel, Resource, Timestamp, example
from app.engine.memories import (
    KEY_PATTERN,
    MAX_FOUND,
    MAX_KEY_CHARS,
    MAX_NAMESPACE_CHARS,
    MAX_QUERY_CHARS,
    MAX_TEXT_CHARS,
    MAX_VALUE_BYTES,
    NAMESPACE_PATTERN,
    Found,
    MemoryPlace,
    MemoryRecord,
    NewMemory,
    SearchMode,
    checked_key,
    checked_namespace,
)
from app.engine.timestamp import timestamp
from app.services.memories import DeletedMemories

_EXAMPLE: JsonObject = {
    "namespace": "users/42",
    "key": "seat",
    "value": {"seat": "window", "class": "economy"},
    "text": "Prefers a window seat in economy class.",
    "embedding_model": "text-embedding-3-small",
    "created_at": EXAMPLE_TIME,
    "updated_at": EXAMPLE_TIME,
}

# The patterns stand in the document alone: a refusal says them in words.
_Namespace = Annotated[
    str,
    StringConstraints(max_length=MAX_NAMESPACE_CHARS),
    AfterValidator(checked_namespace),
    Field(
        description="A path, without spaces and empty parts. Namespaces hold nothing of one another.",
        examples=["users/42"],
        json_schema_extra={"pattern": NAMESPACE_PATTERN},
    ),
]
_Key = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_KEY_CHARS),
    AfterValidator(checked_key),
    Field(description="Unique in its namespace.", examples=["seat"], json_schema_extra={"pattern": KEY_PATTERN}),
]
_Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS)]


class MemoryPut(RequestModel):
    """What is under the key is replaced, its value and its text."""

    model_config = example({key: _EXAMPLE[key] for key in ("namespace", "key", "value", "text")})

    namespace: _Namespace
    key: _Key
    value: Any = Field(description=f"Any JSON, up to {MAX_VALUE_BYTES // 1024} KiB.")
    text: _Text | None = Field(
        default=None,
        description="What it is found by; absent: the value, a string as it is and any other as JSON, "
        f"up to the first {MAX_TEXT_CHARS} characters.",
    )

    @model_validator(mode="after")
    def _is_bounded(self) -> Self:
        if len(orjson.dumps(self.value)) > MAX_VALUE_BYTES:
            raise ValueError(f"value: should be at most {MAX_VALUE_BYTES} bytes of JSON")
        return self

    def memory(self) -> NewMemory:
        return NewMemory.of(self.key, self.value, self.text)


class MemorySearch(RequestModel):
    model_config = example({"namespace": "users/42", "query": "Where does the user like to sit?", "limit": 5})

    namespace: _Namespace
    query: str = Field(
        min_length=1,
        max_length=MAX_QUERY_CHARS,
        description='Any of its words will do, and all are better. "…" is a phrase, and -word excludes.',
    )
    limit: int = Field(default=10, ge=1, le=MAX_FOUND)


class NamespaceQuery(RequestModel):
    namespace: _Namespace


class MemoryQuery(NamespaceQuery):
    key: _Key


class MemoryListQuery(NamespaceQuery):
    limit: Annotated[int, Field(ge=1, le=100), FROM_DIGITS] = 20
    cursor: Annotated[str | None, Field(max_length=500, description="The last page's `next_cursor`.")] = None


class Memory(Resource):
    """A JSON value under a key, and the text that it is found by."""

    model_config = example(_EXAMPLE)

    namespace: str
    key: str
    value: Any
    text: str
    embedding_model: str | None = Field(
        description="The model that has embedded the text, or has refused to; null while none has."
    )
    created_at: Timestamp
    updated_at: Timestamp


class MemoryPage(Resource):
    model_config = example({"items": [_EXAMPLE], "next_cursor": None})

    items: list[Memory]
    next_cursor: str | None


class MemoryFound(Resource):
    memory: Memory
    score: float = Field(description="Tells what is before what in this answer, and nothing between answers.")


class MemorySearchResult(Resource):
    """What was found, best first."""

    model_config = example(
        {"items": [{"memory": _EXAMPLE, "score": 0.0328}], "mode": "hybrid", "reason": None},
    )

    items: list[MemoryFound]
    mode: SearchMode = Field(description="Whether it was searched by words alone, or by words and by meaning.")
    reason: str | None = Field(description="Why by words alone; null where it was not.")


class MemoriesDeleted(Resource):
    model_config = example({"deleted": 3, "more": False})

    deleted: int
    more: bool = Field(description="Whether others may be left: one request deletes 100 000 at most. Ask again.")


def place_of(namespace: str) -> MemoryPlace:
    return MemoryPlace("", namespace)


def memory_object(record: MemoryRecord) -> JsonObject:
    return {
        "namespace": record.namespace,
        "key": record.key,
        "value": orjson.Fragment(record.value),
        "text": record.text,
        "embedding_model": record.embedding_model,
        "created_at": timestamp(record.created_at),
        "updated_at": timestamp(record.updated_at),
    }


def found_object(found: Found) -> JsonObject:
    items = [{"memory": memory_object(item.record), "score": item.score} for item in found.items]
    return {"items": items, "mode": found.mode, "reason": found.reason}


def deleted_object(deleted: DeletedMemories) -> JsonObject:
    return {"deleted": deleted.deleted, "more": deleted.more}
