"""How much work a JSON Schema makes of a value. They come from outside, and a few lines can ask for 2^60 looks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import unquote

from app.tools.errors import ToolDefinitionError

_MAX_CHAIN = 64
_ENOUGH = 10**12

# Keywords by what their schemas are applied to: JSON Schema 2020-12, Core 10, with those of earlier drafts.
_SAME_VALUE = ("not", "if", "then", "else", "allOf", "anyOf", "oneOf", "dependentSchemas", "dependencies")
_ONE_OF_THE_CHILDREN = ("properties", "prefixItems")  # each schema has a child of its own
_EVERY_CHILD = (
    "patternProperties",
    "additionalProperties",
    "propertyNames",
    "items",
    "additionalItems",
    "contains",
    "unevaluatedItems",
    "unevaluatedProperties",
)
_ASKS_TWICE = ("unevaluatedItems", "unevaluatedProperties")  # which members the other keywords have looked at
_OTHER_REFERENCES = ("$dynamicRef", "$recursiveRef")


@dataclass(frozen=True, slots=True)
class Work:
    """What a validator does on the way to one value and there, at most.

    Args:
        looks: times that it holds a value against a schema.
        patterns: times that it holds a text against a regular expression.
    """

    looks: int
    patterns: int


@dataclass(slots=True)
class _Node:
    same_value: list[int] = field(default_factory=list[int])
    one_child: list[int] = field(default_factory=list[int])
    every_child: list[int] = field(default_factory=list[int])
    factor: int = 1
    patterns: int = 0


class SchemaCost:
    """The most work that a schema makes of one value, by how deep the value is nested.

    Args:
        schema: whose references all stay within it and are JSON pointers (`#/$defs/name`).

    Raises:
        ToolDefinitionError: a reference leads elsewhere or nowhere, or a schema applies itself to the same value
            without end.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._root = schema
        self._nodes: list[_Node] = []
        self._numbers: dict[int, int] = {}
        self._unread: list[tuple[object, _Node]] = []
        self._number(schema)
        while self._unread:
            self._read(*self._unread.pop())
        order = self._innermost_first()
        self._looks = _Levels(self._nodes, order, [1] * len(self._nodes))
        self._patterns = _Levels(self._nodes, order, [node.patterns for node in self._nodes])

    def at(self, depth: int) -> Work:
        """The bound for values nested at most `depth` levels deep; scalars have depth 0."""
        return Work(self._looks.at(depth), self._patterns.at(depth))

    def _number(self, schema: object) -> int:
        number = self._numbers.get(id(schema))
        if number is None:
            number = self._numbers[id(schema)] = len(self._nodes)
            node = _Node()
            self._nodes.append(node)
            self._unread.append((schema, node))
        return number

    def _read(self, schema: object, node: _Node) -> None:
        if not isinstance(schema, dict):
            return
        keywords = cast("dict[str, Any]", schema)
        if "$id" in keywords and schema is not self._root:
            raise ToolDefinitionError("the schema has a nested $id; give it one at its top at most")
        for keyword in _OTHER_REFERENCES:
            if keyword in keywords:
                raise ToolDefinitionError(f"the schema uses {keyword}; use $ref")
        if "$ref" in keywords:
            node.same_value.append(self._number(self._target(keywords["$ref"])))
        for keyword in _SAME_VALUE:
            node.same_value += self._numbers_of(keywords.get(keyword), by_name=keyword.startswith("depend"))
        for keyword in _ONE_OF_THE_CHILDREN:
            node.one_child += self._numbers_of(keywords.get(keyword), by_name=keyword == "properties")
        for keyword in _EVERY_CHILD:
            found = self._numbers_of(keywords.get(keyword), by_name=keyword == "patternProperties")
            node.every_child += found
        if any(keyword in keywords for keyword in _ASKS_TWICE):
            node.factor = 2
        by_pattern: object = keywords.get("patternProperties", ())
        node.patterns = ("pattern" in keywords) + (len(by_pattern) if isinstance(by_pattern, Sized) else 0)

    def _numbers_of(self, value: object, *, by_name: bool) -> list[int]:
        schemas: Iterable[object]
        if isinstance(value, list):
            schemas = cast("list[object]", value)
        elif isinstance(value, dict):
            schemas = cast("dict[str, object]", value).values() if by_name else (cast("object", value),)
        else:
            return []
        return [self._number(cast("object", schema)) for schema in schemas if isinstance(schema, dict)]

    def _target(self, reference: object) -> object:
        """RFC 6901, section 6: a JSON pointer as a URI's fragment."""
        if reference == "#":
            return self._root
        if not isinstance(reference, str) or not reference.startswith("#/"):
            raise ToolDefinitionError(f"the schema refers to {_shown(reference)}; only #/... is looked up")
        target: object = self._root
        for step in reference[2:].split("/"):
            target = _member(target, _unescaped(step))
        if not isinstance(target, dict | bool):
            raise ToolDefinitionError(f"the schema refers to {_shown(reference)}, which it does not have")
        return cast("object", target)

    def _innermost_first(self) -> list[int]:
        """The nodes so that each comes after all that it applies to the same value."""
        order: list[int] = []
        heights: dict[int, int] = {}
        for start in range(len(self._nodes)):
            path = [start]
            while path:
                number = path[-1]
                applied = self._nodes[number].same_value
                unknown = next((other for other in applied if other not in heights), None)
                if number in heights:
                    path.pop()
                elif unknown is not None:
                    path.append(unknown)
                else:
                    heights[number] = 1 + max((heights[other] for other in applied), default=0)
                    order.append(path.pop())
                # A schema that applies itself lengthens the path without end.
                if max(len(path), heights.get(number, 0)) > _MAX_CHAIN:
                    raise ToolDefinitionError(
                        f"the schema applies itself, or more than {_MAX_CHAIN} schemas in a chain, to one value"
                    )
        return order


class _Levels:
    """Sums over the paths through a schema, by the depth of the value; the first node is the whole schema."""

    def __init__(self, nodes: list[_Node], order: list[int], weights: list[int]) -> None:
        self._nodes = nodes
        self._order = order
        self._weights = weights
        self._levels: list[list[int]] = []

    def at(self, depth: int) -> int:
        while len(self._levels) <= depth:
            self._levels.append(self._level(self._levels[-1] if self._levels else None))
        return self._levels[depth][0]

    def _level(self, children: list[int] | None) -> list[int]:
        sums = [0] * len(self._nodes)
        for number in self._order:
            node = self._nodes[number]
            total = self._weights[number] + node.factor * sum(sums[other] for other in node.same_value)
            if children is not None:
                total += max((children[other] for other in node.one_child), default=0)
                total += sum(children[other] for other in node.every_child)
            sums[number] = min(total, _ENOUGH)
        return sums


def _member(value: object, step: str) -> object:
    if isinstance(value, dict):
        return cast("dict[str, object]", value).get(step)
    if isinstance(value, list) and step.isascii() and step.isdigit() and len(step) < 9:
        members = cast("list[object]", value)
        return members[int(step)] if int(step) < len(members) else None
    return None


def _unescaped(step: str) -> str:
    return unquote(step).replace("~1", "/").replace("~0", "~")


def _shown(reference: object) -> str:
    text = repr(reference)
    return text if len(text) <= 120 else text[:119] + "…"
