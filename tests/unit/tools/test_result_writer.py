"""Which values are large enough to be written beside the event loop."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

from app.tools.result_writer import is_large


class Rows(BaseModel):
    rows: list[str]


@dataclass
class Page:
    text: str


class Broken(UserDict[str, int]):
    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("no")


def _shared(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value, value]
    return value


def _cycle() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "large"),
    [
        (None, False),
        ("x" * 65_536, False),
        ("x" * 65_537, True),
        (b"x" * 65_537, True),
        ({"a": ["x" * 70_000]}, True),
        ({"x" * 70_000: 1}, True),
        (list(range(1_001)), True),
        (list(range(900)), False),
        ([[n] for n in range(1_001)], True),
        ({n: n for n in range(501)}, True),
        (Rows(rows=["x"] * 2_000), True),
        (Rows(rows=["x"]), False),
        (Page("x" * 70_000), True),
        (Page("x"), False),
        (Broken(a=1), False),
        (_shared(60), True),
        (_cycle(), True),
        (object(), False),
        (Page, False),
    ],
    ids=lambda value: str(value) if isinstance(value, bool) else type(value).__name__,  # no `repr`: one has no end
)
def test_are_those_with_much_text_or_many_values(value: object, large: bool) -> None:
    assert is_large(value) is large
