"""Models' answers by a JSON schema: what counts as JSON, and what the model is told."""

from __future__ import annotations

from typing import Any

import pytest

from app.engine.structured_output import Fits, Misfit
from app.tools.answer_schema import answers_of
from app.tools.errors import ToolDefinitionError

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "n": {"type": "integer", "default": 3}},
    "required": ["city"],
    "additionalProperties": False,
}


def problem(text: str, schema: dict[str, Any] = SCHEMA) -> str:
    checked = answers_of(schema).check(text)
    assert isinstance(checked, Misfit), checked
    return checked.problem


@pytest.mark.parametrize(
    "text",
    [
        '{"city": "Bern"}',
        ' \n{"city": "Bern"}\n',
        '```json\n{"city": "Bern"}\n```',
        '```\n{"city":\n"Bern"}```\n',
        '```JSON\n{"city": "Bern"}\n```',
    ],
)
def test_json_alone_is_read_with_or_without_a_block_around_it(text: str) -> None:
    assert answers_of(SCHEMA).check(text) == Fits({"city": "Bern"}), "and nothing is filled in"


@pytest.mark.parametrize("text", ["", "Bern", '{"city": "Bern"} as you asked', '{"city": NaN}', '{"city": "\\ud800"}'])
def test_what_is_no_json_is_told_so(text: str) -> None:
    assert problem(text).startswith("it is not valid JSON")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", "city: required, but missing"),
        ('{"city": 3}', "city: should be string (given: 3)"),
        ('{"city": "Bern", "town": "x"}', "town: no such field; the fields are: city, n"),
        ('["Bern"]', "should be object"),
    ],
)
def test_what_does_not_fit_is_named(text: str, told: str) -> None:
    assert told in problem(text)


def test_an_answer_without_measure_is_refused_soon() -> None:
    deep = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["x"]}
    assert problem('{"a":' * 100 + "{}" + "}" * 100, deep) == "it is nested more than 64 levels deep"
    assert "too long" in problem('"' + "x" * 2_000_000 + '"')


def test_a_schema_is_compiled_once() -> None:
    assert answers_of(dict(reversed(SCHEMA.items()))) is answers_of(SCHEMA)


@pytest.mark.parametrize("schema", [{}, {"type": "string"}, {"type": "object", "properties": {"a": {"type": "x"}}}])
def test_a_schema_that_cannot_be_used_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ToolDefinitionError):
        answers_of(schema)
