"""Values by a JSON Schema that came as data: arguments of tools, and answers of models."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import jsonschema_rs
import orjson
from jsonschema_rs import ValidationErrorKind as Kind

from app.tools.argument_error import MAX_LINES, argument_path, bounded_line, given
from app.tools.errors import CallError, ToolDefinitionError
from app.tools.schema_cost import SchemaCost

_MAX_SCHEMA_BYTES = 100_000
_MAX_SCHEMA_DEPTH = 64
_MAX_DEPTH = 64
_MAX_LOOKS = 2_000_000  # of the validator, about 50 ms
_MAX_EFFORT_TO_EXPLAIN = 10_000  # an error costs a thousand times what a look does
_MAX_PATTERN_CHARS = 100_000  # held against patterns that backtrack, about 0.5 s at the worst
_MAX_ALTERNATIVES = 3

_LINEAR = jsonschema_rs.RegexOptions(size_limit=1024 * 1024, dfa_size_limit=1024 * 1024)
# Look-ahead is common in schemas (a mail address by zod), so patterns may backtrack, but not far: a text for which one
# would have to does not fit.
_BACKTRACKING = jsonschema_rs.FancyRegexOptions(
    backtrack_limit=1_000, size_limit=1024 * 1024, dfa_size_limit=1024 * 1024
)
_DRAFTS = ("draft/2020-12/schema", "draft/2019-09/schema", "draft-07/schema", "draft-06/schema")


@dataclass(frozen=True, slots=True)
class Extent:
    """How many values there are in a JSON value, itself included, and how deep they are nested."""

    values: int
    depth: int

    @classmethod
    def of(cls, value: object) -> Extent:
        """
        Raises:
            CallError: it is nested too deeply, or holds a number that JSON has no form for.
        """
        values = 0
        level: list[object] = [value]
        for depth in range(_MAX_DEPTH + 1):
            values += len(level)
            below: list[object] = []
            for each in level:
                if isinstance(each, float) and not math.isfinite(each):
                    raise CallError("it is not valid JSON: NaN, Infinity and numbers beyond 1e308 are none")
                below += _children(each)
            if not below:
                return cls(values, depth)
            level = below
        raise CallError(f"it is nested more than {_MAX_DEPTH} levels deep")

    def with_those_of(self, other: Extent) -> Extent:
        return Extent(self.values + other.values, max(self.depth, other.depth))


class JsonSchema:
    """What a JSON Schema allows. Nothing is fetched, and no value takes long.

    Args:
        schema: JSON Schema 2020-12 unless its `$schema` names 2019-09, draft 7 or draft 6; of type object. Its
            references are JSON pointers into itself (`#/$defs/name`); `format` is a note for the reader.
        member: what a field of it is called in what is said of values.

    Raises:
        ToolDefinitionError: it is no such schema; the text says where and why.
    """

    def __init__(self, schema: Mapping[str, Any], member: str) -> None:
        self.json_schema = _checked(schema)
        self.properties: dict[str, Any] = self.json_schema.get("properties", {})
        self._member = member
        self._cost = SchemaCost(self.json_schema)
        if self._cost.at(1).looks > _MAX_LOOKS:
            raise ToolDefinitionError("the schema applies too many schemas to one value")
        self._validator, self._is_linear = _validator(self.json_schema)

    def effort(self, extent: Extent, chars: int) -> int | None:
        """How many looks a value takes, or characters held against patterns that backtrack: the larger number.

        Args:
            chars: of the value's text.

        Returns:
            None if it is too much; the value is then not to be held against the schema.
        """
        work = self._cost.at(extent.depth)
        looks = extent.values * work.looks
        held = 0 if self._is_linear else chars * work.patterns
        return None if looks > _MAX_LOOKS or held > _MAX_PATTERN_CHARS else max(looks, held)

    def allows(self, value: object) -> bool:
        """Whether a value fits whose effort was found bearable."""
        return self._validator.is_valid(value)

    def lines(self, value: object, effort: int) -> tuple[str, ...]:
        """What is wrong with a value, a line for each thing; none where finding out would take long."""
        if effort > _MAX_EFFORT_TO_EXPLAIN:
            return ()
        lines: list[str] = []
        more = 0
        for error in self._validator.iter_errors(value):
            for line in _lines_of(error, self._member, tuple(self.properties)):
                if len(lines) < MAX_LINES:
                    lines.append(line)
                else:
                    more += 1
        return (*lines, f"and {more} more") if more else tuple(lines)


def _checked(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema as plain JSON, of our own."""
    try:
        text = orjson.dumps(dict(schema))
    except orjson.JSONEncodeError as error:
        raise ToolDefinitionError(f"the schema is no JSON: {error}") from error
    if len(text) > _MAX_SCHEMA_BYTES:
        raise ToolDefinitionError(f"the schema is too long: {len(text)} bytes, {_MAX_SCHEMA_BYTES} at most")
    plain: dict[str, Any] = orjson.loads(text)
    if _depth_of(plain) > _MAX_SCHEMA_DEPTH:
        raise ToolDefinitionError(f"the schema is nested more than {_MAX_SCHEMA_DEPTH} levels deep")
    if plain.get("type") != "object":
        raise ToolDefinitionError('the schema should be of "type": "object"')
    dialect = plain.get("$schema", _DRAFTS[0])
    if not isinstance(dialect, str) or not dialect.rstrip("#").endswith(_DRAFTS):
        raise ToolDefinitionError("the schema's $schema is none of JSON Schema 2020-12, 2019-09, draft 7 and draft 6")
    return plain


def _validator(schema: dict[str, Any]) -> tuple[jsonschema_rs.Validator, bool]:
    """A validator, and whether its time is linear in every text."""
    try:
        return _compiled(schema, _LINEAR), True
    except jsonschema_rs.ValidationError:
        pass
    try:
        return _compiled(schema, _BACKTRACKING), False
    except jsonschema_rs.ValidationError as error:
        where = argument_path(error.instance_path) or "at its top"
        raise ToolDefinitionError(bounded_line(f"the schema is not valid: {where}: {error.message}")) from error


def _compiled(
    schema: dict[str, Any], patterns: jsonschema_rs.RegexOptions | jsonschema_rs.FancyRegexOptions
) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(
        schema,
        offline=True,
        mask="the value",  # in what it says: values can be of any size, and secret
        validate_formats=False,
        pattern_options=patterns,
    )


def _lines_of(error: jsonschema_rs.ValidationError, member: str, known: tuple[str, ...]) -> Iterable[str]:
    steps = [*error.instance_path]
    match error.kind:
        case Kind.Required(property=name):
            yield bounded_line(f"{argument_path([*steps, str(name)])}: required, but missing")
        case Kind.AdditionalProperties(unexpected=names) | Kind.UnevaluatedProperties(unexpected=names):
            what = "no such field" if steps else f"no such {member}; the {member}s are: {', '.join(known) or 'none'}"
            for name in names:
                yield bounded_line(f"{argument_path([*steps, name])}: {what}")
        case _:
            path = argument_path(steps)
            problem = _problem(error)
            yield bounded_line(f"{path}: {problem}" if path else problem)


def _problem(error: jsonschema_rs.ValidationError) -> str:
    match error.kind:
        case Kind.Type(types=types):
            return f"should be {' or '.join(sorted(types))}{given(error.instance)}"
        case Kind.Enum(options=options):
            return f"should be one of {orjson.dumps(options).decode()[1:-1]}{given(error.instance)}"
        case Kind.AnyOf(context=context) | Kind.OneOfNotValid(context=context):
            return f"fits none of its alternatives: {'; or '.join(_alternatives(context))}"
        case Kind.FalseSchema():
            return "holds something that the schema does not allow"
        case Kind.BacktrackLimitExceeded():
            return "takes too long to check against its pattern; shorten it"
        case _:
            return error.message + given(error.instance)


def _alternatives(context: list[list[jsonschema_rs.ValidationError]]) -> Iterable[str]:
    """The first thing that is wrong with each, without going into alternatives of alternatives."""
    for errors in context[:_MAX_ALTERNATIVES]:
        match errors:
            case [first, *_] if not isinstance(first.kind, Kind.AnyOf | Kind.OneOfNotValid):
                yield from list(_lines_of(first, "field", ()))[:1]
            case _:
                yield "more alternatives"
    if len(context) > _MAX_ALTERNATIVES:
        yield f"{len(context) - _MAX_ALTERNATIVES} more"


def _depth_of(schema: object) -> int:
    depth, level = 0, _children(schema)
    while level:
        depth, level = depth + 1, [below for each in level for below in _children(each)]
    return depth


def _children(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return cast("dict[str, object]", value).values()
    return cast("list[object]", value) if isinstance(value, list) else ()
