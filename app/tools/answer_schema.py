"""Answers of models by a JSON Schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import orjson

from app.engine.structured_output import Fits, Misfit
from app.tools.errors import CallError
from app.tools.json_schema import Extent, JsonSchema

_MAX_CHARS = 1024 * 1024
# Models that are only told to answer with JSON like to put it into a block of Markdown.
_FENCED = re.compile(r"\A\s*```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```\s*\Z", re.DOTALL | re.IGNORECASE)


def answers_of(schema: Mapping[str, Any]) -> JsonAnswers:
    """The `AnswerSchema` of a schema; compiled once for as long as it is in use. Raises ToolDefinitionError."""
    return _compiled(orjson.dumps(dict(schema), option=orjson.OPT_SORT_KEYS))


@lru_cache(maxsize=256)
def _compiled(schema: bytes) -> JsonAnswers:
    return JsonAnswers(orjson.loads(schema))


class JsonAnswers:
    """An `AnswerSchema`.

    Args:
        schema: see `JsonSchema`.

    Raises:
        ToolDefinitionError: it is no such schema; the text says where and why.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = JsonSchema(schema, "field")

    def check(self, text: str) -> Fits | Misfit:
        """See `AnswerSchema.check`; JSON alone, or alone in a block of Markdown."""
        if len(text) > _MAX_CHARS:
            return Misfit(f"it is too long: {len(text)} characters, {_MAX_CHARS} at most")
        fenced = _FENCED.match(text)
        try:
            value = orjson.loads(text if fenced is None else fenced[1])
            extent = Extent.of(value)
        except orjson.JSONDecodeError as error:
            return Misfit(f"it is not valid JSON: {error}")
        except CallError as error:
            return Misfit(error.message)
        effort = self._schema.effort(extent, len(text))
        if effort is None:
            return Misfit("it is too large, or nested too deeply, for the schema")
        if self._schema.allows(value):
            return Fits(value)
        return Misfit("\n".join(self._schema.lines(value, effort)) or "it does not fit")
