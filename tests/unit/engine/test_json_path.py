"""JSONPath: what a path may take is known before it is applied."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.effort import Effort, TooDeep, TooMuchEffort
from app.engine.json_path import JsonDocument, json_path

PLENTY = 10**30
VALUES = st.recursive(
    st.integers(0, 3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=20,
)
PATHS = st.lists(
    st.sampled_from((".a", "..b", "[*]", "..*", "[*,*]", "[0,0]", "['a','b']", "..[0,-1]", "[::-1]", "[?@ == 1, ?@]")),
    min_size=1,
    max_size=4,
).map(lambda segments: "$" + "".join(segments))


def spent(path: str, document: Any) -> tuple[list[Any], int]:
    effort = Effort(PLENTY)
    values = json_path(path).values(JsonDocument(document), effort)
    return values, PLENTY - effort.left


@given(PATHS, VALUES)
def test_a_path_selects_no_more_than_was_spent_on_it(path: str, document: Any) -> None:
    values, effort = spent(path, document)
    assert len(values) <= effort


@pytest.mark.parametrize(
    ("path", "at_most"),
    [
        ("$", 1),
        ("$.rows", 2),
        ("$.rows[17].a", 4),
        ("$.rows[*]", 210),
        ("$.rows[*].a", 410),
        ("$..a", 210),
        ("$.rows[?@.a > 3].b", 2100),
    ],
)
def test_plain_paths_take_little(path: str, at_most: int) -> None:
    _, effort = spent(path, {"rows": [{"a": each} for each in range(100)]})
    assert effort <= at_most


def test_nothing_is_looked_at_where_the_effort_does_not_suffice() -> None:
    effort = Effort(10)
    with pytest.raises(TooMuchEffort):
        json_path("$..*").values(JsonDocument([0] * 11), effort)
    assert effort.left == 10


def test_a_descent_into_a_very_deep_value_is_too_much() -> None:
    value: Any = 1
    for _ in range(200):
        value = [value]
    with pytest.raises(TooDeep):
        json_path("$..a").values(JsonDocument(value), Effort(PLENTY))


def test_a_path_is_compiled_once() -> None:
    assert json_path("$.compiled.once") is json_path("$.compiled.once")


@pytest.mark.parametrize("text", ["$[?@.a==1e999]", "$[?length(@.a)>1e400]"])
def test_a_number_beyond_all_numbers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="too large"):
        json_path(text)
