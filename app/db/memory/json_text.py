"""JSON texts: when two of them say the same."""

from __future__ import annotations

import orjson


def same_json(one: str | None, other: str | None) -> bool:
    """Whether two JSON texts hold the same value, however they are written; None is only like None."""
    if one is None or other is None or one == other:
        return one == other
    return _canonical(one) == _canonical(other)


def _canonical(text: str) -> bytes:
    return orjson.dumps(orjson.loads(text), option=orjson.OPT_SORT_KEYS)
