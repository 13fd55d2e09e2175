"""The ends of waits, as the background work of a replica brings them about."""

from __future__ import annotations

from app.db.memory.store import MemoryStore
from app.engine.records import Expired, Stimulated
from app.engine.status import RunStatus
from app.event_bus.memory import MemoryBus
from app.worker.expiry import EXPIRE_BATCH, expire_due


class CrowdedStore(MemoryStore):
    """A store in which that many waits are over."""

    def __init__(self, overdue: int) -> None:
        super().__init__()
        self.overdue = overdue

    async def expire(self, limit: int) -> Expired:
        ended = min(self.overdue, limit)
        self.overdue -= ended
        return Expired(tuple(Stimulated(f"run-{number}", RunStatus.QUEUED) for number in range(ended)))


async def test_waits_that_end_together_are_all_ended_at_once() -> None:
    store = CrowdedStore(3 * EXPIRE_BATCH + 1)
    bus = MemoryBus()
    told: list[None] = []
    bus.on_queued(lambda: told.append(None))
    await expire_due(store, bus)
    assert (store.overdue, len(told)) == (0, 3 * EXPIRE_BATCH + 1)
