"""JSON values: when two of them are equal, and how many there are in one."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, cast

from app.engine.effort import Effort, TooDeep

_MAX_DEPTH = 100
_TRUE, _FALSE = object(), object()  # in Python True equals 1, in JSON it does not


def any_equal(some: Sequence[Any], others: Sequence[Any], effort: Effort) -> bool:
    """Whether one of `some` equals one of `others` as JSON: 1 equals 1.0, and true does not.

    Args:
        effort: spent on every value that has to be looked at, those within others included.

    Raises:
        TooMuchEffort: there are too many, or they are nested deeper than 100.
    """
    nested = any(isinstance(each, list | dict) for each in others)
    known = {_comparable(each, effort) for each in some if nested or not isinstance(each, list | dict)}
    return bool(known) and any(_comparable(each, effort) in known for each in others)


def _comparable(value: Any, effort: Effort, *, depth: int = _MAX_DEPTH) -> Hashable:
    """What stands for a value in comparisons: equal for equal JSON values only."""
    effort.spend(1)
    if value is True:
        return _TRUE
    if value is False:
        return _FALSE
    if not isinstance(value, list | dict):
        return cast("Hashable", value)
    if depth == 0:
        raise TooDeep(f"this is nested deeper than {_MAX_DEPTH}")
    if isinstance(value, list):
        return tuple(_comparable(each, effort, depth=depth - 1) for each in cast("list[Any]", value))
    members = cast("Mapping[str, Any]", value)
    return frozenset((name, _comparable(each, effort, depth=depth - 1)) for name, each in members.items())


def size_of(value: Any, at_most: int) -> int:
    """How many values there are in a value, itself included; counting stops one past `at_most`."""
    size = 0
    waiting = [value]
    while waiting and size <= at_most:
        each = waiting.pop()
        size += 1
        if isinstance(each, dict):
            waiting.extend(cast("dict[str, Any]", each).values())
        elif isinstance(each, list):
            waiting.extend(cast("list[Any]", each))
    return size
