"""JSON schemas within the subsets that providers can hold a model to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

_MAX_DEPTH = 10  # OpenAI's bound on nesting

# https://platform.openai.com/docs/guides/structured-outputs#supported-schemas
_STRICT_WORDS = frozenset(
    (
        *("type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf", "$ref", "$defs"),
        *("definitions", "title", "description", "pattern", "format", "multipleOf", "minimum", "maximum"),
        *("exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems", "$schema"),
    )
)

# https://platform.claude.com/docs/en/build-with-claude/structured-outputs#json-schema-limitations. What Anthropic
# cannot hold a model to is put into the description instead, which is what Anthropic's own SDKs do; what would mean
# another schema if it were left out makes the schema unfit.
_ANTHROPIC_WORDS = frozenset(
    (
        *("type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf", "allOf", "$ref"),
        *("$defs", "title", "description", "format", "$schema"),
    )
)
_ANTHROPIC_HINTS = frozenset(
    (
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength"),
        *("pattern", "minItems", "maxItems", "uniqueItems", "default", "examples"),
    )
)
_ANTHROPIC_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid")
)


def is_strict(schema: Mapping[str, Any]) -> bool:
    """Whether OpenAI takes a schema with `strict`: its root is an object, every object lists all of its properties as
    required and allows no others, and there is no word beyond those that it supports.
    """
    return schema.get("type") == "object" and "anyOf" not in schema and _is_strict(schema, _MAX_DEPTH)


def _is_strict(schema: object, depth: int) -> bool:
    if not isinstance(schema, Mapping) or depth < 0:
        return False
    node = cast("Mapping[str, Any]", schema)
    if not node.keys() <= _STRICT_WORDS or not all(_is_strict(child, depth - 1) for child in _children(node)):
        return False
    kind = node.get("type")
    if kind == "object" or (isinstance(kind, list) and "object" in kind):
        properties: Mapping[str, Any] = node.get("properties") or {}
        return node.get("additionalProperties") is False and set(node.get("required") or ()) == set(properties)
    return True


def for_anthropic(schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """The schema as Anthropic's structured outputs take it; None where it cannot be said there.

    Every answer that it allows is an answer that the given schema allows but for the bounds, which become part of
    the descriptions.
    """
    try:
        return _anthropic(schema, _MAX_DEPTH)
    except _Unfit:
        return None


class _Unfit(Exception):
    """A part of a schema has no counterpart."""


def _anthropic(schema: object, depth: int) -> dict[str, Any]:
    if not isinstance(schema, Mapping) or depth < 0:
        raise _Unfit
    node = cast("Mapping[str, Any]", schema)
    if not node.keys() <= _ANTHROPIC_WORDS | _ANTHROPIC_HINTS:
        raise _Unfit
    hints: list[str] = []
    result: dict[str, Any] = {}
    for word, value in node.items():
        if word in _ANTHROPIC_HINTS or (word == "format" and value not in _ANTHROPIC_FORMATS):
            hints.append(f"{word}: {value}")
        else:
            result[word] = _anthropic_value(word, value, depth)
    if result.get("type") == "object":
        # It must be false there: an object of any keys cannot be asked for.
        if result.get("additionalProperties") not in (None, False) or "properties" not in result:
            raise _Unfit
        result["additionalProperties"] = False
    if hints:
        said = "{" + ", ".join(hints) + "}"
        result["description"] = f"{result['description']}\n\n{said}" if "description" in result else said
    return result


def _anthropic_value(word: str, value: Any, depth: int) -> Any:
    match word:
        case "properties" | "$defs":
            return {name: _anthropic(child, depth - 1) for name, child in value.items()}
        case "anyOf" | "allOf":
            return [_anthropic(child, depth - 1) for child in value]
        case "items":
            return _anthropic(value, depth - 1)
        case _:
            return value


def _children(node: Mapping[str, Any]) -> list[object]:
    named: list[object] = []
    for word in ("properties", "$defs", "definitions"):
        named += (node.get(word) or {}).values()
    return [*named, *(node.get("anyOf") or ()), *([node["items"]] if "items" in node else ())]
