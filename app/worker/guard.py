"""The main loop's part in the lease: it ticks, lets go of all runs in time, and takes none while it is late itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from app.telemetry.logs import get_logger
from app.telemetry.metrics import Metrics
from app.worker.executor import LocalExecutor
from app.worker.lease import Lease, LeaseLoss
from app.worker.watch import Watch

GUARD_EVERY_S = 0.5
# So late a loop has more to do than it can: what it takes on now, it would not get to.
MOST_LAG_S = 1.0

log = get_logger(__name__)


class LeaseGuard:
    """
    Args:
        on_unreachable: told which runs, each with the epoch of its claim, were let go of because the database could not
            be reached.
    """

    def __init__(
        self,
        lease: Lease,
        executor: LocalExecutor,
        metrics: Metrics,
        watch: Watch,
        on_unreachable: Callable[[Mapping[str, int]], None],
    ) -> None:
        self._lease = lease
        self._executor = executor
        self._metrics = metrics
        self._watch = watch
        self._on_unreachable = on_unreachable
        self._let_go = False
        lease.on_lost(self._lost)

    async def run(self) -> None:
        """Guard until cancelled: then all runs are let go of, for a lease that nobody looks after is none."""
        try:
            while True:
                self._look()
                began = time.monotonic()
                await asyncio.sleep(GUARD_EVERY_S)
                self._measure(max(time.monotonic() - began - GUARD_EVERY_S, 0.0))
        finally:
            self._executor.accepting = False
            self._executor.drop_all()

    def _look(self) -> None:
        self._lease.tick()
        if not self._lease.beating():
            self._watch.lost("heartbeat")
        if self._lease.held():
            self._let_go = False
            self._executor.accepting = not self._lease.draining
        else:
            self._lost(self._lease.why_lost())

    def _lost(self, why: LeaseLoss) -> None:
        """Let go of all runs before anyone else can take them for orphans."""
        if self._let_go:
            return
        self._let_go = True
        runs = self._executor.under_way()
        log.error("lease_lost", runs=len(runs), because=why.value)
        self._metrics.lease_lost()
        if why is LeaseLoss.DATABASE:
            self._on_unreachable(runs)
        self._executor.accepting = False
        self._executor.drop_all()

    def _measure(self, lag_s: float) -> None:
        self._metrics.loop_lagged(lag_s)
        late = lag_s > MOST_LAG_S
        if late and not self._executor.late:
            log.warning("loop_lagging", lag_s=round(lag_s, 3), hint="this replica takes no new runs for now")
        self._executor.late = late
