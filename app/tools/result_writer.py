"""Results of calls: what the record keeps of a value or an error, and what the model reads of it.

All text that leaves a call goes through here, and no secret with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import is_dataclass, replace
from typing import Any, cast

import orjson
from pydantic import BaseModel

from app.engine.tools import Deferral, ToolResult
from app.tools.errors import CallError, HandlerError
from app.tools.output import (
    Output,
    bounded,
    bounded_json,
    clean,
    json_output,
    output_of,
    redacted_json,
    shown,
    text_of,
    to_json,
    without_nul,
)
from app.tools.secrets import Secrets

Progress = Callable[[str, Any], None]

_MAX_ERROR_CHARS = 2_000
_MAX_DEFERRAL_CHARS = 2_000
_MAX_TICKET_CHARS = 200
_MAX_DEFERRAL_S = 31_536_000.0  # a year
_MAX_PROGRESS_CHARS = 2_000
_MAX_PROGRESS_BYTES = 16 * 1024

_LARGE_CHARS = 64 * 1024
_LARGE_VALUES = 1_000
_PLAIN_CONTAINERS = (list, tuple, set, frozenset)


class ResultWriter:
    """
    Args:
        record_max_bytes: the bound of a result's `output` in UTF-8.
    """

    def __init__(self, secrets: Secrets, record_max_bytes: int) -> None:
        self.secrets = secrets
        self._max_bytes = record_max_bytes

    def redacted(self, text: str) -> str:
        """The text without secrets."""
        return self.secrets.redacted(text)

    def output(self, value: object, *, max_chars: int, sanitize: bool) -> Output:
        """Both forms of a value. Never raises; takes long for a value that `is_large`."""
        return output_of(value, max_chars=max_chars, max_bytes=self._max_bytes, sanitize=sanitize, redact=self.redacted)

    def posted(self, json: str, *, max_chars: int, sanitize: bool) -> Output:
        """Both forms of a value that came as JSON text; what is no JSON is taken for text."""
        try:
            value: object = orjson.loads(json)
        except orjson.JSONDecodeError:
            value = json
        if isinstance(value, str):
            return self.output(value, max_chars=max_chars, sanitize=sanitize)
        return json_output(
            without_nul(json), max_chars=max_chars, max_bytes=self._max_bytes, sanitize=sanitize, redact=self.redacted
        )

    def failure(
        self, error: CallError, *, max_chars: int, sanitize: bool, latency_ms: float, denied: bool = False
    ) -> ToolResult:
        """The result of a call that failed. With `sanitize`, what a handler said is fenced as an output is."""
        lines = [" ".join(self.redacted(line).split()) for line in (error.message, *error.details)]
        one_line = f"{lines[0]}: {'; '.join(lines[1:])}" if error.details else lines[0]
        if sanitize and isinstance(error, HandlerError):
            told = "\n- ".join(lines)
            content = "Error:\n" + shown(_shortened(told), max(0, max_chars - len("Error:\n")), sanitize=True)
        else:
            content = _shortened("\n- ".join([f"Error: {lines[0]}", *lines[1:]]))
        return ToolResult(
            success=False,
            output=None,
            error=_shortened(one_line),
            content=bounded(content, max_chars),
            latency_ms=latency_ms,
            denied=denied,
        )

    def deferral(self, value: Deferral) -> Deferral:
        """A handler's deferral within bounds.

        Raises:
            CallError: it has no ticket, or a time that is none.
        """
        ticket = self.redacted(text_of(value.ticket_id))
        if not 1 <= len(ticket) <= _MAX_TICKET_CHARS:
            raise HandlerError(
                f"the tool's deferral has a ticket_id that is not of 1 to {_MAX_TICKET_CHARS} characters"
            )
        if not (math.isfinite(value.ttl_s) and 0 < value.ttl_s <= _MAX_DEFERRAL_S):
            raise HandlerError(f"the tool's deferral has a ttl_s that is not above 0 and up to a year: {value.ttl_s!r}")
        hint = value.resume_hint
        return replace(
            value,
            ticket_id=ticket,
            summary=bounded(self.redacted(text_of(value.summary)), _MAX_DEFERRAL_CHARS),
            resume_hint=None if hint is None else bounded(self.redacted(text_of(hint)), _MAX_DEFERRAL_CHARS),
        )

    def progress(self, told: Progress) -> Progress:
        """The same listener, for messages and data of any kind and size; from any thread."""

        def tell(message: str, data: Any = None) -> None:
            text = bounded(self.redacted(text_of(message)), _MAX_PROGRESS_CHARS)
            told(text, None if data is None else self._progress_data(data))

        return tell

    def _progress_data(self, data: Any) -> Any:
        return orjson.loads(bounded_json(redacted_json(to_json(data), self.redacted), _MAX_PROGRESS_BYTES))


def is_large(value: object) -> bool:
    """Whether writing a value would hold up the event loop. A guess, within a thousand looks, that runs no code of the
    value's own: what is neither plain data nor a model counts as small."""
    looks = chars = 0
    waiting = [value]
    while waiting:
        each = waiting.pop()
        kind = type(each)
        if kind is str or kind is bytes:
            chars += len(cast("str", each))
        elif kind is dict:
            inner = cast("dict[object, object]", each)
            looks += 2 * len(inner)
            if looks <= _LARGE_VALUES:
                waiting += (*inner.keys(), *inner.values())
        elif kind in _PLAIN_CONTAINERS:
            members = cast("Collection[object]", each)
            looks += len(members)
            if looks <= _LARGE_VALUES:
                waiting += members
        elif isinstance(each, BaseModel) or (is_dataclass(each) and hasattr(each, "__dict__")):
            waiting.append(each.__dict__)
        if looks > _LARGE_VALUES or chars > _LARGE_CHARS:
            return True
    return False


def _shortened(text: str) -> str:
    text = clean(text)
    return text if len(text) <= _MAX_ERROR_CHARS else text[: _MAX_ERROR_CHARS - 1] + "…"
