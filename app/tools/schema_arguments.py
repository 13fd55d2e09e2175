"""Arguments by a JSON Schema that came as data: of HTTP tools, MCP tools and tools that the caller runs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from app.tools.argument_error import argument_error
from app.tools.errors import CallError
from app.tools.json_schema import Extent, JsonSchema

_MAX_CHARS = 1024 * 1024
_OBJECT = TypeAdapter(dict[str, Any])


class SchemaArguments:
    """What a JSON Schema allows as a tool's arguments.

    Args:
        schema: see `JsonSchema`.

    Raises:
        ToolDefinitionError: it is no such schema; the text says where and why.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = JsonSchema(schema, "argument")
        self.json_schema = self._schema.json_schema
        self._defaults: dict[str, Any] = {
            name: field["default"]
            for name, field in self._schema.properties.items()
            if isinstance(field, dict) and "default" in field
        }
        self._default_extent = Extent.of(self._defaults)
        self._default_chars = len(orjson.dumps(self._defaults))

    def parse(self, text: str) -> dict[str, Any]:
        """The arguments out of the model's text; blank text means no arguments.

        Top-level arguments that are absent get their `default`s, unless the arguments only fit without them.

        Raises:
            CallError: the text is no JSON, no object, too large, or does not fit; says where and why.
        """
        if len(text) > _MAX_CHARS:
            raise CallError(f"the arguments are too long: {len(text)} characters, {_MAX_CHARS} at most")
        try:
            arguments = _OBJECT.validate_json(text if text.strip() else "{}")
        except ValidationError as error:
            raise argument_error(error, text, tuple(self._schema.properties)) from error
        try:
            extent = Extent.of(arguments)
        except CallError as error:
            raise CallError(f"the arguments cannot be used: {error.message}") from error
        effort = self._schema.effort(extent.with_those_of(self._default_extent), len(text) + self._default_chars)
        if effort is None:
            raise CallError("the arguments are too large, or nested too deeply, for the tool's schema")
        absent = [name for name in self._defaults if name not in arguments]
        filled = arguments | {name: copy.deepcopy(self._defaults[name]) for name in absent}
        if self._schema.allows(filled):
            return filled
        if absent and self._schema.allows(arguments):
            return arguments
        raise CallError("the arguments do not fit the tool's schema", self._schema.lines(arguments, effort))
