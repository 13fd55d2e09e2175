"""JSONPath (RFC 9535) over arguments that a model wrote, with paths that a caller wrote: neither may take our time.

Without the functions `match` and `search`: a regular expression can take as long as it likes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jsonpath_rfc9535 import JSONPathEnvironment, JSONPathError, JSONPathQuery, JSONPathRecursionError
from jsonpath_rfc9535.filter_expressions import (
    ComparisonExpression,
    Expression,
    FilterExpression,
    FilterExpressionLiteral,
    FilterQuery,
    FunctionExtension,
    LogicalExpression,
    PrefixExpression,
)
from jsonpath_rfc9535.segments import JSONPathRecursiveDescentSegment, JSONPathSegment
from jsonpath_rfc9535.selectors import FilterSelector, IndexSelector, NameSelector

from app.engine.effort import Effort, TooDeep
from app.engine.json_value import size_of


class JsonDocument:
    """What paths are applied to; its size is counted on first use."""

    __slots__ = ("_size", "root")

    def __init__(self, root: Any) -> None:
        self.root = root
        self._size: int | None = None

    def size(self, at_most: int) -> int:
        if self._size is None:
            self._size = size_of(self.root, at_most)
        return self._size


class JsonPath:
    """A path, compiled. `json_path` makes it."""

    __slots__ = ("_query", "_singular")

    def __init__(self, query: JSONPathQuery) -> None:
        self._query = query
        self._singular = query.singular_query()

    def values(self, document: JsonDocument, effort: Effort) -> list[Any]:
        """What the path selects.

        Args:
            effort: spent before anything is looked at, by what the path may take at worst on a document of that size.

        Raises:
            TooMuchEffort: nothing was looked at, or `..` met a nesting deeper than 100.
        """
        effort.spend(_cost(self._query, 1 if self._singular else document.size(effort.limit)))
        try:
            return [node.value for node in self._query.finditer(document.root)]
        except JSONPathRecursionError as error:
            raise TooDeep(f"this is nested deeper than {_ENVIRONMENT.max_recursion_depth}") from error


@lru_cache(maxsize=4096)
def json_path(text: str) -> JsonPath:
    """The path of a text, compiled once.

    Raises:
        ValueError: it is no JSONPath; the message says what and where.
    """
    try:
        return JsonPath(_ENVIRONMENT.compile(text))
    except JSONPathError as error:
        raise ValueError(f"is no JSONPath (RFC 9535): {error}") from error
    except RecursionError as error:
        raise ValueError("is nested too deep") from error
    except OverflowError as error:
        raise ValueError("has a number that is too large") from error


class _Environment(JSONPathEnvironment):
    def setup_function_extensions(self) -> None:
        super().setup_function_extensions()
        for name in ("match", "search"):
            del self.function_extensions[name]


_ENVIRONMENT = _Environment()


def _cost(query: JSONPathQuery, size: int) -> int:
    """How many values a query looks at, at most, in a document of `size` values.

    A segment of several selectors may select the same node several times, so that nodes multiply from segment to
    segment. After a second `..` a node is also there once for each of its ancestors.
    """
    copies = 1
    spread = descended = False
    cost = 1
    for segment in query.segments:
        descends = isinstance(segment, JSONPathRecursiveDescentSegment)
        copies *= len(segment.selectors)
        if descended and descends:
            copies *= min(size, _ENVIRONMENT.max_recursion_depth)
        descended = descended or descends
        spread = spread or descends or not _selects_one(segment)
        nodes = copies * size if spread else copies
        cost += nodes
        for selector in segment.selectors:
            if isinstance(selector, FilterSelector):
                cost += nodes * _filter_cost(selector.expression, size)
    return cost


def _selects_one(segment: JSONPathSegment) -> bool:
    return all(isinstance(selector, NameSelector | IndexSelector) for selector in segment.selectors)


def _filter_cost(expression: Expression, size: int) -> int:
    """What it takes to evaluate a filter's expression once."""
    match expression:
        case FilterExpression():
            return _filter_cost(expression.expression, size)
        case PrefixExpression():
            return 1 + _filter_cost(expression.right, size)
        case LogicalExpression():
            return 1 + _filter_cost(expression.left, size) + _filter_cost(expression.right, size)
        case ComparisonExpression():
            sides = (expression.left, expression.right)
            # A literal is never an array or an object, so comparing with one takes a step.
            compared = 1 if any(isinstance(side, FilterExpressionLiteral) for side in sides) else size
            return compared + sum(_filter_cost(side, size) for side in sides)
        case FilterQuery():
            return _cost(expression.query, size)
        case FunctionExtension():
            return 1 + sum(_filter_cost(argument, size) for argument in expression.args)
        case _:
            return 1
