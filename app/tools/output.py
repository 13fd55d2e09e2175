"""A tool's return value as JSON text for the record and as bounded text for the model.

Nothing here raises, whatever a tool returns: its effect has happened, and losing the result would be worse
than showing it imperfectly.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
from collections import deque
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from datetime import date, datetime, time
from enum import Enum
from typing import Any, cast

import orjson
from pydantic import BaseModel

from app.tools.sanitize import neutralised

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
_MAX_DEPTH = 64
_MAX_NODES = 100_000
_MAX_FITTINGS = 8
_INT64 = range(-(2**63), 2**64)
_NO_TEXT = re.compile("[\x00\ud800-\udfff]")  # no Postgres text holds NUL, no UTF-8 half a surrogate pair
_NUL_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


@dataclass(frozen=True, slots=True)
class Output:
    """Both forms of one return value: `json` for the record, `content` for the model."""

    json: str
    content: str


def _as_it_is(text: str) -> str:
    return text


def output_of(
    value: object,
    *,
    max_chars: int,
    max_bytes: int,
    sanitize: bool = False,
    redact: Callable[[str], str] = _as_it_is,
) -> Output:
    """Convert and bound a return value.

    Args:
        max_chars: the bound of `content`, its note of what was cut included.
        max_bytes: the bound of `json` in UTF-8; JSON that is too long becomes a JSON string of its beginning.
        sanitize: see `shown`.
        redact: takes out of both what nobody may see, before anything is cut.
    """
    if isinstance(value, str) and not isinstance(value, Enum):
        text = redact(str.__str__(value))
        return Output(_string_record(text, max_bytes), shown(text, max_chars, sanitize=sanitize))
    return json_output(to_json(value), max_chars=max_chars, max_bytes=max_bytes, sanitize=sanitize, redact=redact)


def json_output(
    json: str, *, max_chars: int, max_bytes: int, sanitize: bool, redact: Callable[[str], str] = _as_it_is
) -> Output:
    """The same for a value that is JSON text, and no string, already."""
    json = redacted_json(json, redact)
    return Output(bounded_json(json, max_bytes), shown(json, max_chars, sanitize=sanitize))


def redacted_json(json: str, redact: Callable[[str], str]) -> str:
    """JSON text after `redact`, as JSON text again."""
    text = redact(json)
    if text == json:
        return json
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:  # a number, or a part of one, was taken out
        return orjson.dumps(clean(text)).decode()
    return text


def bounded_json(json: str, max_bytes: int) -> str:
    """JSON text if it fits, else a JSON string of its beginning and a note, together within `max_bytes` of UTF-8."""
    # Four bytes are the most that UTF-8 needs for a character; most outputs are far below either bound.
    fits = len(json) * 4 <= max_bytes or len(json.encode("utf-8", "replace")) <= max_bytes
    return json if fits else _cut_string(json, max_bytes)


def shown(text: str, max_chars: int, *, sanitize: bool) -> str:
    """What a model reads of a text, in at most `max_chars` characters.

    Args:
        sanitize: neutralise it, and fence it with a tag that it could not have foreseen.
    """
    if not sanitize:
        return bounded(text, max_chars)
    fence = f'untrusted_output id="{secrets.token_hex(8)}"'
    room = max_chars - 2 * len(fence) - len("<>\n\n</>")
    if room < 0:
        return bounded(f"[output cut: {len(text)} characters]", max_chars)
    return f"<{fence}>\n{_neutralised(text, room)}\n</{fence}>"


def _neutralised(text: str, max_chars: int) -> str:
    if len(text) <= max_chars:
        whole = neutralised(clean(text))
        if len(whole) <= max_chars:
            return whole
    keep = min(len(text), max_chars)
    start = note = ""
    for _ in range(_MAX_FITTINGS):  # what was put in between is not part of the text, so this may take a few
        note = _note(len(text) - keep, "characters")
        start = neutralised(clean(text[:keep]))
        over = len(start) + len(note) - max_chars
        if over <= 0:
            return start + note
        keep = max(0, keep - over)
    return (start[: max(0, max_chars - len(note))] + note)[:max_chars]


def bounded(text: str, max_chars: int) -> str:
    """The text if it fits, else its beginning and a note of how much was cut, together within `max_chars`."""
    if len(text) <= max_chars:
        return clean(text)
    keep = max_chars - len(_note(len(text), "characters"))
    if keep < 0:
        return clean(text[:max_chars])
    return clean(text[:keep]) + _note(len(text) - keep, "characters")


def clean(text: str) -> str:
    """The text with what cannot be stored or sent replaced, character for character."""
    return _NO_TEXT.sub("\ufffd", text)


def to_json(value: object) -> str:
    """JSON text of any object; what JSON has no form for becomes text, NaN and infinities become null."""
    try:
        json = orjson.dumps(value, default=_default, option=_OPTIONS)
    except Exception:  # noqa: BLE001 - orjson ran the value's own code
        json = orjson.dumps(_Simplifier().simple(value))
    return without_nul(json.decode())


def without_nul(json: str) -> str:
    """JSON text whose strings hold no NUL."""
    return _NUL_ESCAPE.sub(r"\1\\ufffd", json) if "\\u0000" in json else json


def text_of(value: object) -> str:
    """`str` of an object, or its type's name where even that fails."""
    try:
        return clean(str(value))
    except Exception:  # noqa: BLE001 - `__str__` may do anything
        return f"<{type(value).__name__}>"


def _note(count: int, unit: str) -> str:
    return f"\n[output cut: {count} more {unit}]"


def _string_record(text: str, max_bytes: int) -> str:
    if len(text) <= max_bytes:
        json = orjson.dumps(clean(text))
        if len(json) <= max_bytes:
            return json.decode()
    return _cut_string(text, max_bytes)


def _cut_string(text: str, max_bytes: int) -> str:
    """A JSON string of the text's beginning and a note, at most `max_bytes` long."""
    start = clean(text[:max_bytes])
    keep = len(start)
    while True:
        json = orjson.dumps(start[:keep] + _note(len(text) - keep, "characters"))
        if len(json) <= max_bytes:
            return json.decode()
        if keep == 0:
            return '""'
        # Escapes and multi-byte characters make the JSON longer than the text: shrink in proportion.
        keep = min(keep - 1, keep * max_bytes // len(json))


def _default(value: object) -> object:
    """What orjson calls for types that it does not know."""
    match value:
        case BaseModel():
            return value.model_dump(mode="json")
        case Mapping():
            return dict(cast("Mapping[object, object]", value))
        case Set():
            return _ordered(cast("Set[object]", value))
        case tuple() if hasattr(cast("object", value), "_asdict"):
            return cast("Any", value)._asdict()
        case datetime() | date() | time():
            return value.isoformat()
        case tuple() | deque():
            return list(cast("tuple[object, ...]", value))
        case bytes() | bytearray() | memoryview():
            return bytes(cast("bytes", value)).decode("utf-8", "replace")
        case float():
            return float(value)
        case _:
            return text_of(value)


def _ordered(values: Set[object]) -> list[object]:
    """A set as a list, sorted where that is possible so that equal sets read the same."""
    try:
        return sorted(cast("Set[Any]", values))
    except Exception:  # noqa: BLE001 - members may refuse comparison in any way
        return list(values)


class _Simplifier:
    """The slow way, for values that orjson refuses: cycles, deep nesting, huge integers, odd keys and texts.

    Counts what it visits: shared references can make a small object unfold without end.
    """

    def __init__(self) -> None:
        self._nodes = 0
        self._open: set[int] = set()

    def simple(self, value: object) -> object:
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            return "[cut: too many values]"
        if value is None or isinstance(value, bool | float):
            return value if value is None or isinstance(value, bool) else float(value)
        if isinstance(value, str) and not isinstance(value, Enum):
            return clean(str.__str__(value))
        if isinstance(value, int) and not isinstance(value, Enum):
            return int(value) if value in _INT64 else _big(value)
        if len(self._open) >= _MAX_DEPTH:
            return "[cut: nested too deeply]"
        if id(value) in self._open:
            return "[cut: refers to itself]"
        self._open.add(id(value))
        try:
            return self._container(value)
        except Exception:  # noqa: BLE001 - properties and iterators of the value ran
            return text_of(value)
        finally:
            self._open.discard(id(value))

    def _container(self, value: object) -> object:
        match value:
            case Mapping():
                return self._pairs(cast("Mapping[object, object]", value))
            case list():
                return self._members(cast("list[object]", value))
            case Enum():
                return self.simple(value.value)
            case BaseModel():
                return self._pairs({name: getattr(value, name) for name in type(value).model_fields})
            case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
                return self._pairs({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
            case _:
                return self.simple(_default(value))

    def _pairs(self, mapping: Mapping[object, object]) -> dict[str, object]:
        pairs: dict[str, object] = {}
        for key, value in mapping.items():
            if self._nodes > _MAX_NODES:
                break
            pairs[text_of(key.value if isinstance(key, Enum) else key)] = self.simple(value)
        return pairs

    def _members(self, values: list[object]) -> list[object]:
        members: list[object] = []
        for value in values:
            members.append(self.simple(value))
            if self._nodes > _MAX_NODES:
                break
        return members


def _big(value: int) -> str:
    try:
        return str(int(value))
    except ValueError:  # Python refuses to write integers of thousands of digits
        return f"<integer of {value.bit_length()} bits>"
