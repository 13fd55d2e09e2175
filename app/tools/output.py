"""A tool's return value as JSON text for the record and as bounded text for the model.

Nothing here raises, whatever a tool returns: its effect has happened, and losing the result would be worse
than showing it imperfectly.
"""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from collections.abc import Mapping, Set
from dataclasses import dataclass
from datetime import date, datetime, time
from enum import Enum
from typing import Any, cast

import orjson
from pydantic import BaseModel

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
_MAX_DEPTH = 64
_MAX_NODES = 100_000
_INT64 = range(-(2**63), 2**64)
_NO_TEXT = re.compile("[\x00\ud800-\udfff]")  # no Postgres text holds NUL, no UTF-8 half a surrogate pair
_NUL_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


@dataclass(frozen=True, slots=True)
class Output:
    """Both forms of one return value: `json` for the record, `content` for the model."""

    json: str
    content: str


def output_of(value: object, *, max_chars: int, max_bytes: int) -> Output:
    """Convert and bound a return value.

    Args:
        max_chars: the bound of `content`, its note of what was cut included.
        max_bytes: the bound of `json` in UTF-8; JSON that is too long becomes a JSON string of its beginning.
    """
    if isinstance(value, str) and not isinstance(value, Enum):
        text = str.__str__(value)
        return Output(_string_record(text, max_bytes), bounded(text, max_chars))
    json = to_json(value)
    # Four bytes are the most that UTF-8 needs for a character; most outputs are far below either bound.
    fits = len(json) * 4 <= max_bytes or len(json.encode()) <= max_bytes
    return Output(json if fits else _cut_string(json, max_bytes), bounded(json, max_chars))


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
    text = json.decode()
    return _NUL_ESCAPE.sub(r"\1\\ufffd", text) if "\\u0000" in text else text


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
