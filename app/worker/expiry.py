"""Ending waits whose time is up, and telling everyone whom that concerns."""

from __future__ import annotations

from app.engine.ports import EventBus, RunStore
from app.event_bus.announce import announce_stimulated, announce_stopped

EXPIRE_EVERY_S = 1.0
EXPIRE_BATCH = 100


async def expire_due(store: RunStore, bus: EventBus) -> None:
    """Questions, tool results and child runs that have had their time, all of them. Raises: StoreUnavailable."""
    while True:
        expired = await store.expire(EXPIRE_BATCH)
        for stimulated in expired.stimulated:
            announce_stimulated(bus, stimulated)
        for stopped in expired.stopped:
            announce_stopped(bus, stopped)
        # A full batch means that there may be more, and those are late already.
        if max(len(expired.stimulated), len(expired.stopped)) < EXPIRE_BATCH:
            return
