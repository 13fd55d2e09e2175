"""Tool calls put together from the pieces that a stream sends.

The rule is OpenAI's: each piece names its call by `index`, the first one brings id and name, all bring
arguments. Other servers repeat the id, leave the index out, count every call as 0, or send a whole call at
once; all of that is read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import orjson

from app.engine.messages import ToolCall
from app.engine.model import ToolCallDelta
from app.llm.json_values import as_name, as_object, as_text


@dataclass(slots=True)
class _Slot:
    place: int
    id: str
    id_given: bool
    name: str
    arguments: list[str]


class ToolCallPieces:
    """Collects the pieces of one response's tool calls, in the order in which the calls began."""

    __slots__ = ("_by_index", "_slots")

    def __init__(self) -> None:
        self._slots: list[_Slot] = []
        self._by_index: dict[int, _Slot] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, piece: dict[str, Any]) -> ToolCallDelta:
        """Take one element of a delta's `tool_calls`; the name comes back with a call's first piece only."""
        function = as_object(piece.get("function"))
        name, call_id = as_name(function.get("name")), as_name(piece.get("id"))
        index = piece.get("index")
        slot = self._slot_of(index if isinstance(index, int) else None, call_id, name)
        first_name = ""
        if name and not slot.name:
            slot.name = first_name = name
        arguments = _text_of_arguments(function.get("arguments"))
        if arguments:
            slot.arguments.append(arguments)
        return ToolCallDelta(slot.place, slot.id, first_name, arguments)

    def calls(self, *, complete: bool) -> tuple[ToolCall, ...]:
        """The calls so far.

        Args:
            complete: whether the response came to its end; only then do absent arguments mean a call without
                any.
        """
        nothing = "{}" if complete else ""
        return tuple(ToolCall(s.id, s.name, "".join(s.arguments) or nothing) for s in self._slots)

    def _slot_of(self, index: int | None, call_id: str, name: str) -> _Slot:
        slot = self._by_index.get(index) if index is not None else self._slot_without_index(call_id, name)
        # Some servers give every piece a new id: only an id that comes with a name starts another call.
        if slot is None or (call_id and name and slot.name and slot.id_given and call_id != slot.id):
            slot = self._open(call_id)
        elif call_id and not slot.id_given:
            slot.id, slot.id_given = call_id, True
        if index is not None:
            self._by_index[index] = slot
        return slot

    def _slot_without_index(self, call_id: str, name: str) -> _Slot | None:
        if call_id:
            for slot in self._slots:
                if slot.id_given and slot.id == call_id:
                    return slot
        last = self._slots[-1] if self._slots else None
        if last is not None and name and last.name:
            return None
        return last

    def _open(self, call_id: str) -> _Slot:
        # A call must have an id to be answered by; where the server gives none, one is made up.
        slot = _Slot(len(self._slots), call_id or f"call_{uuid4().hex[:24]}", bool(call_id), "", [])
        self._slots.append(slot)
        return slot


def _text_of_arguments(value: object) -> str:
    if value is None or isinstance(value, str):
        return as_text(value)
    return orjson.dumps(value).decode()
