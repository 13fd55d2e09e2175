"""What an ended attempt leaves to readers: text without an end."""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from app.engine.events import EventType, StoredEvent, WarningCode


def partial_text(events: Iterable[StoredEvent]) -> str:
    """The committed text of a step that never closed; what a restart of the step made void is left out.

    Args:
        events: those after the run's last checkpoint, in order.
    """
    pieces: list[str] = []
    for event in events:
        match event.type:
            case EventType.TEXT_DELTA:
                pieces.append(orjson.loads(event.body)["data"]["delta"])
            case EventType.RUN_RESUMED:
                pieces.clear()
            case EventType.WARNING:
                if orjson.loads(event.body)["data"]["code"] == WarningCode.STEP_RESTARTED:
                    pieces.clear()
            case _:
                pass
    return "".join(pieces)
