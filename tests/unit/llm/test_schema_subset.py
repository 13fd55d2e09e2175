from __future__ import annotations

from typing import Any

import pytest

from app.llm.schema_subset import for_anthropic, is_strict

N = {"type": "integer"}
CLOSED: dict[str, Any] = {"type": "object", "properties": {"n": N}, "required": ["n"], "additionalProperties": False}


@pytest.mark.parametrize(
    "schema",
    [
        CLOSED,
        {**CLOSED, "properties": {"n": {"anyOf": [N, {"type": "null"}]}}},
        {**CLOSED, "properties": {"n": {"type": "array", "items": CLOSED, "minItems": 1}}},
        {**CLOSED, "properties": {"n": {"$ref": "#/$defs/N"}}, "$defs": {"N": CLOSED}},
        {"type": "object", "properties": {}, "additionalProperties": False},
    ],
)
def test_closed_objects_with_all_required_are_strict(schema: dict[str, Any]) -> None:
    assert is_strict(schema)


@pytest.mark.parametrize(
    "schema",
    [
        N,
        {"anyOf": [CLOSED]},
        {**CLOSED, "required": []},
        {**CLOSED, "additionalProperties": True},
        {**CLOSED, "oneOf": []},
        {**CLOSED, "properties": {"n": {"type": "string", "minLength": 1}}},
        {**CLOSED, "properties": {"n": {"type": ["object", "null"]}}},
        {**CLOSED, "properties": {"n": {"type": "array", "items": {"type": "object"}}}},
        {**CLOSED, "properties": {"n": True}},
    ],
)
def test_whatever_openai_would_refuse_is_not(schema: dict[str, Any]) -> None:
    assert not is_strict(schema)


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = N
    for _ in range(depth):
        schema = {**CLOSED, "properties": {"n": schema}}
    return schema


def test_nesting_is_bounded() -> None:
    assert is_strict(_nested(10))
    assert not is_strict(_nested(11))
    assert for_anthropic(_nested(11)) is None


def test_bounds_become_words_for_anthropic() -> None:
    given = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 1, "description": "How many."}, "when": {"format": "x"}},
    }
    assert for_anthropic(given) == {
        "type": "object",
        "properties": {
            "n": {"type": "integer", "description": "How many.\n\n{minimum: 1}"},
            "when": {"description": "{format: x}"},
        },
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "properties": {}, "additionalProperties": N},
        {"oneOf": [N]},
        {"type": "object", "properties": {"n": {"not": {}}}},
        {"type": "array", "items": True},
    ],
)
def test_what_would_mean_something_else_is_not_sent_to_anthropic(schema: dict[str, Any]) -> None:
    assert for_anthropic(schema) is None
