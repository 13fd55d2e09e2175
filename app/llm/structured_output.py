"""Answers by a JSON schema: by the provider's own mode where it has one, else by asking for them in words.

Neither is sure: whoever asked validates the answer.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import orjson

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.messages import Message, Role
from app.engine.model import ModelRequest
from app.llm.json_values import plain_mapping

_Opened = TypeVar("_Opened")
_MAX_REMEMBERED = 1024
_NAMES_THE_MODE = re.compile(
    r"response_?format|response_?schema|json_?schema|output_(config|format)|structured[ _-]?output", re.IGNORECASE
)
_NAMES_THE_SCHEMA = re.compile(
    r"invalid (json )?schema|\bschema\b.*\b(not supported|unsupported|invalid)", re.IGNORECASE
)
_INSTRUCTION = (
    "Your final answer must be one JSON value that is valid under the JSON Schema below, and nothing else: "
    "no text before or after it, and no Markdown code fence.\n"
)


def instructed(messages: Sequence[Message], schema: Mapping[str, Any]) -> list[Message]:
    """The same messages, with a system message that asks for an answer by the schema.

    It is put at the end of the first message where that is a system message, and before it where not.
    """
    said = _INSTRUCTION + orjson.dumps(schema, default=plain_mapping).decode()
    if messages and messages[0].role is Role.SYSTEM:
        return [Message(Role.SYSTEM, f"{messages[0].text()}\n\n{said}"), *messages[1:]]
    return [Message(Role.SYSTEM, said), *messages]


class SchemaMode:
    """Decides, for one server, which way a schema goes, and remembers what the server has refused.

    Args:
        has_native: whether the server has a mode of its own for this model and schema, as far as is known beforehand.
    """

    def __init__(self, has_native: Callable[[str, Mapping[str, Any]], bool]) -> None:
        self._has_native = has_native
        # Models, each with the schema that was refused, or with None where all are. The oldest are forgotten.
        self._refused: dict[tuple[str, bytes | None], None] = {}

    async def open(self, request: ModelRequest, send: Callable[[ModelRequest, bool], Awaitable[_Opened]]) -> _Opened:
        """Send a request the best way, and once more in words where the server refuses its own mode.

        Args:
            send: sends a request, with its `response_schema` by the provider's own mode if the flag says so.

        Raises:
            ModelError: the request failed for another reason.
        """
        schema = request.response_schema
        if schema is None:
            return await send(request, False)
        text = orjson.dumps(schema, default=plain_mapping)
        known = (request.model, None) in self._refused or (request.model, text) in self._refused
        if not known and self._has_native(request.model, schema):
            try:
                return await send(request, True)
            except ModelError as error:
                if not _refuses_the_mode(error):
                    raise
                self._remember((request.model, text if _NAMES_THE_SCHEMA.search(error.message) else None))
        return await send(replace(request, messages=instructed(request.messages, schema)), False)

    def _remember(self, refused: tuple[str, bytes | None]) -> None:
        if len(self._refused) >= _MAX_REMEMBERED:
            del self._refused[next(iter(self._refused))]
        self._refused[refused] = None


def _refuses_the_mode(error: ModelError) -> bool:
    """Whether a refusal is about the mode: servers say 400 or 422, and name the field that they do not know."""
    return error.code is ModelErrorCode.INVALID_REQUEST and _NAMES_THE_MODE.search(error.message) is not None
