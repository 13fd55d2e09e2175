"""What an ended attempt leaves to readers: text without an end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from app.engine.events import EventType, StoredEvent, WarningCode

_TELLING = frozenset({EventType.TEXT_DELTA, EventType.RUN_RESUMED, EventType.WARNING})


def partial_text(events: Iterable[StoredEvent]) -> str:
    """The committed text of a step that never closed; what an attempt that began anew made void is left out.

    Args:
        events: those since the step began, in order.
    """
    pieces: list[tuple[int, str]] = []
    for event in events:
        data: dict[str, Any] = orjson.loads(event.body)["data"] if event.type in _TELLING else {}
        match event.type:
            case EventType.TEXT_DELTA:
                pieces.append((event.seq, data["delta"]))
            case EventType.RUN_RESUMED:
                pieces = _up_to(data["from_seq"], pieces)
            case EventType.WARNING if data["code"] == WarningCode.STEP_RESTARTED:
                pieces = _up_to(data["from_seq"], pieces)
            case _:
                pass
    return "".join(text for _, text in pieces)


def _up_to(seq: int, pieces: list[tuple[int, str]]) -> list[tuple[int, str]]:
    return [piece for piece in pieces if piece[0] <= seq]
