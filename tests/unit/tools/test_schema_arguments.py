"""Arguments by a JSON Schema from outside: what fits, what a model is told, and that no input takes long."""

from __future__ import annotations

import time
from typing import Any

import pytest

from app.tools.errors import CallError, ToolDefinitionError
from app.tools.schema_arguments import SchemaArguments

SOON_S = 1.0  # of computing; what it keeps out takes minutes and more


def of(properties: dict[str, Any] | None = None, **keywords: Any) -> SchemaArguments:
    return SchemaArguments({"type": "object", "properties": properties or {}, **keywords})


def refusal(arguments: SchemaArguments, text: str) -> str:
    with pytest.raises(CallError) as error:
        arguments.parse(text)
    return "\n".join([error.value.message, *error.value.details])


def test_arguments_that_fit_come_out_as_they_are() -> None:
    arguments = of({"n": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}}}, required=["n"])
    assert arguments.parse('{"n": 3, "tags": ["a"], "more": null}') == {"n": 3, "tags": ["a"], "more": None}


def test_blank_text_means_no_arguments() -> None:
    assert of().parse(" \n") == {}


@pytest.mark.parametrize("text", ["{", "nul", '{"a": 1} x', "{'a': 1}", '{"a": "\\ud800"}'])
def test_malformed_json_is_an_error_and_never_no_arguments(text: str) -> None:
    assert refusal(of(), text).startswith("the arguments are not valid JSON: ")


@pytest.mark.parametrize(
    ("text", "what"), [("[]", "an array"), ("null", "null"), ('"{}"', "a string"), ("3", "a number")]
)
def test_json_that_is_no_object_is_refused(text: str, what: str) -> None:
    assert refusal(of(), text) == f"the arguments must be a JSON object, not {what}"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_have_are_refused_anywhere(number: str) -> None:
    assert "not valid JSON" in refusal(of(), f'{{"a": [{{"b": {number}}}]}}')


@pytest.mark.parametrize(
    ("properties", "text", "told"),
    [
        ({"n": {"type": "integer"}}, '{"n": "x"}', "n: should be integer (given: 'x')"),
        ({"n": {"type": ["integer", "null"]}}, '{"n": "x"}', "n: should be integer or null (given: 'x')"),
        ({"n": {"enum": ["a", 1]}}, '{"n": "x"}', "n: should be one of \"a\",1 (given: 'x')"),
        ({"n": {"maximum": 3}}, '{"n": 4}', "n: the value is greater than the maximum of 3 (given: 4)"),
        ({"n": {"pattern": "^a$"}}, '{"n": "x"}', "n: the value does not match \"^a$\" (given: 'x')"),
        (
            {"rows": {"type": "array", "items": {"type": "object", "required": ["id"]}}},
            '{"rows": [{"id": 1}, {}]}',
            "rows[1].id: required, but missing",
        ),
        (
            {"o": {"properties": {"a": {}}, "additionalProperties": False}},
            '{"o": {"x": 1}}',
            "o.x: no such field",
        ),
        ({"n": False}, '{"n": 1}', "n: holds something that the schema does not allow"),
        (
            {"n": {"anyOf": [{"type": "integer"}, {"type": "null"}]}},
            '{"n": "x"}',
            "n: fits none of its alternatives: n: should be integer (given: 'x'); or n: should be null (given: 'x')",
        ),
    ],
)
def test_what_does_not_fit_is_told_with_its_path(properties: dict[str, Any], text: str, told: str) -> None:
    assert refusal(of(properties), text) == f"the arguments do not fit the tool's schema\n{told}"


def test_missing_and_unknown_arguments_are_told_by_name() -> None:
    arguments = of({"city": {}, "day": {}}, required=["city"], additionalProperties=False)
    told = refusal(arguments, '{"town": "x"}')
    assert "city: required, but missing" in told
    assert "town: no such argument; the arguments are: city, day" in told


def test_at_most_ten_things_are_told_and_the_rest_is_counted() -> None:
    arguments = of(required=[f"a{number}" for number in range(13)])
    lines = refusal(arguments, "{}").splitlines()
    assert len(lines) == 12
    assert lines[-1] == "and 3 more"


def test_a_large_value_is_not_repeated_to_the_model() -> None:
    assert len(refusal(of({"n": {"type": "integer"}}), '{"n": "' + "x" * 10_000 + '"}')) < 250


def test_absent_arguments_get_their_defaults_each_call_its_own() -> None:
    arguments = of({"n": {"default": 5}, "tags": {"default": []}, "q": {}}, required=["n"])
    first = arguments.parse('{"q": 1}')
    assert first == {"q": 1, "n": 5, "tags": []}
    first["tags"].append("x")
    assert arguments.parse("{}")["tags"] == []


def test_a_default_does_not_take_the_place_of_a_null() -> None:
    assert of({"n": {"default": 5}}).parse('{"n": null}') == {"n": None}


def test_defaults_stay_away_where_the_arguments_only_fit_without_them() -> None:
    arguments = of({"a": {"default": 1}, "b": {}}, oneOf=[{"required": ["a"]}, {"required": ["b"]}])
    assert arguments.parse('{"b": 2}') == {"b": 2}
    assert arguments.parse("{}") == {"a": 1}


@pytest.mark.parametrize("draft", ["http://json-schema.org/draft-07/schema#", "http://json-schema.org/draft-06/schema"])
def test_earlier_drafts_are_understood_when_the_schema_names_them(draft: str) -> None:
    pair = {"type": "array", "items": [{"type": "integer"}], "additionalItems": False}
    arguments = of({"pair": {"$ref": "#/definitions/pair"}}, definitions={"pair": pair}, **{"$schema": draft})
    assert arguments.parse('{"pair": [1]}') == {"pair": [1]}
    assert "pair" in refusal(arguments, '{"pair": [1, 2]}')


def test_a_schema_may_be_recursive() -> None:
    node = {"type": "object", "properties": {"name": {"type": "string"}, "next": {"$ref": "#/$defs/node"}}}
    arguments = of({"list": {"$ref": "#/$defs/node"}}, **{"$defs": {"node": node}})
    assert arguments.parse('{"list": {"next": {"next": {"name": "x"}}}}')
    assert "list.next.name: should be string" in refusal(arguments, '{"list": {"next": {"name": 1}}}')


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "array"}, '"type": "object"'),
        ({"type": "object", "properties": {"a": {"type": "text"}}}, "properties.a.type"),
        ({"type": "object", "properties": []}, "properties"),
        ({"type": "object", "properties": {"a": {"pattern": "("}}}, "regex"),
        ({"type": "object", "properties": {"a": {"pattern": "((a{0,99}){0,99}){0,99}"}}}, "regex"),
        ({"type": "object", "$ref": "https://example.com/schema.json"}, "https://example.com/schema.json"),
        ({"type": "object", "$ref": "file:///etc/passwd"}, "file:///etc/passwd"),
        ({"type": "object", "$ref": "other.json#/a"}, "other.json"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}, "does not have"),
        ({"type": "object", "properties": {"a": {"$dynamicRef": "#x"}}}, "$dynamicRef"),
        ({"type": "object", "properties": {"a": {"$id": "https://example.com/", "$ref": "#/b"}}}, "nested $id"),
        ({"type": "object", "$schema": "https://example.com/mine"}, "$schema"),
        ({"type": "object", "allOf": [{"$ref": "#"}]}, "applies itself"),
        ({"type": "object", "description": "x" * 200_000}, "too long"),
        ({"type": "object", "examples": [float("nan"), object()]}, "no JSON"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_when_it_is_defined(schema: dict[str, Any], told: str) -> None:
    with pytest.raises(ToolDefinitionError) as error:
        SchemaArguments(schema)
    assert told in str(error.value)


def test_properties_may_have_the_names_of_keywords() -> None:
    arguments = of({"$ref": {"type": "string"}, "$id": {"type": "string"}, "properties": {"type": "integer"}})
    assert arguments.parse('{"$ref": "x", "$id": "y", "properties": 3}')


def nested(levels: int) -> str:
    return '{"x":' * levels + "{}" + "}" * levels


def test_arguments_are_refused_past_their_depth_and_length() -> None:
    assert "64 levels" in refusal(of(), nested(65))
    assert "too long" in refusal(of(), '{"a": "' + "x" * 1_100_000 + '"}')


def doubling(keyword: str, levels: int) -> dict[str, Any]:
    """Each schema applies the next one twice to the same value."""
    names = [f"a{level}" for level in range(levels)]
    definitions: dict[str, Any] = {
        name: {keyword: [{"$ref": f"#/$defs/a{level + 1}"}] * 2} for level, name in enumerate(names)
    }
    return {"type": "object", "$ref": "#/$defs/a0", "$defs": definitions | {f"a{levels}": {"required": ["q"]}}}


@pytest.mark.parametrize("keyword", ["allOf", "anyOf", "oneOf"])
def test_a_schema_that_doubles_its_own_work_is_refused(keyword: str) -> None:
    started = time.process_time()
    with pytest.raises(ToolDefinitionError):
        SchemaArguments(doubling(keyword, 40))
    assert time.process_time() - started < SOON_S


@pytest.mark.parametrize("levels", [5, 10, 16, 30, 60])
def test_arguments_that_would_be_looked_at_without_end_are_refused_soon(levels: int) -> None:
    again = {"properties": {"x": {"$ref": "#/$defs/n"}}}
    node = {"anyOf": [again | {"required": ["y"]}, again | {"required": ["z"]}]}
    arguments = SchemaArguments({"type": "object", "$defs": {"n": node}, "properties": {"x": {"$ref": "#/$defs/n"}}})
    started = time.process_time()
    refusal(arguments, nested(levels))
    assert time.process_time() - started < SOON_S


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("^(a+)+$", "a" * 500_000 + "b"),
        ("(?=(a+)+$)b", "a" * 90_000),
        ("(?=.*a.*b)x", "a" * 90_000),
        (r"^(a+)+\1$", "a" * 5_000),
    ],
)
def test_no_pattern_takes_long(pattern: str, text: str) -> None:
    arguments = of({"a": {"pattern": pattern}})
    started = time.process_time()
    refusal(arguments, f'{{"a": "{text}"}}')
    assert time.process_time() - started < SOON_S


def test_many_patterns_on_one_text_do_not_take_long_together() -> None:
    arguments = of({"a": {"allOf": [{"pattern": f"(?=.*a.*b)x{number}"} for number in range(500)]}})
    started = time.process_time()
    refusal(arguments, '{"a": "' + "a" * 50_000 + '"}')
    assert time.process_time() - started < SOON_S


def test_patterns_may_look_ahead() -> None:
    mail = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
    arguments = of({"to": {"type": "string", "pattern": mail}, "text": {"type": "string"}})
    assert arguments.parse('{"to": "jo.doe@example.com", "text": "' + "x" * 50_000 + '"}')
    assert "to: " in refusal(arguments, '{"to": "jo..doe@example.com"}')
