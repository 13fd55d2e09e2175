"""Claims runs from the queue for one replica."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress

from app.engine.ports import RunStore
from app.engine.store_errors import StoreError, reason_of
from app.event_bus.memory import MemoryBus
from app.telemetry.logs import get_logger
from app.telemetry.recurring import Recurring
from app.worker.executor import LocalExecutor

CLAIM_BATCH = 20
CLAIM_EVERY_S = 1.0
# When there was no connection to spare: they come free within the time of a statement.
AGAIN_S = 0.02

log = get_logger(__name__)


class ClaimLoop:
    """Claims queued runs while there is room for them: when told that there are some, and once a second anyway.

    Args:
        exhausted: whether all connections are in use that the runs under way share. Runs claimed then would only wait
            with them.
    """

    def __init__(
        self,
        store: RunStore,
        executor: LocalExecutor,
        bus: MemoryBus,
        exhausted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store = store
        self._executor = executor
        self._exhausted = exhausted
        self._failures = Recurring(log, "claim_failed")
        self._wake = asyncio.Event()
        bus.on_queued(self._wake.set)
        executor.on_free(self._wake.set)
        self.backlog = False

    async def run(self) -> None:
        while True:
            self._wake.clear()
            room = min(self._executor.free_slots, CLAIM_BATCH)
            if room > 0 and self._exhausted():
                self.backlog = True
                await asyncio.sleep(AGAIN_S * random.uniform(0.5, 1.5))
                continue
            claimed = await self._claim(room) if room > 0 else 0
            # A full batch means that there may be more: then new runs join the queue instead of passing it.
            self.backlog = room == 0 or claimed == room
            if claimed == room and room > 0:
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(CLAIM_EVERY_S):
                    await self._wake.wait()

    async def _claim(self, limit: int) -> int:
        try:
            suspect = not self._executor.holds_suspect
            claimed = await self._store.claim(self._executor.owner, limit, suspect=suspect)
        except StoreError as error:
            self._failures.failed(str(error), error=reason_of(error))
            return 0
        except Exception:
            log.exception("claim_failed")
            return 0
        for claim in claimed:
            self._executor.take(claim)
        return len(claimed)
