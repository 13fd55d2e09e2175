"""The half of a replica that executes runs."""

from __future__ import annotations

import time
from functools import partial

from uuid_utils.compat import uuid7

from app.db.memories import PostgresMemoryRows
from app.db.metered import MeteredRunStore
from app.db.pools import Pools
from app.engine.memories import Embedder
from app.engine.model import ModelClient
from app.engine.policy import PolicyEngine
from app.engine.tools import ToolPort
from app.event_bus.postgres import PostgresBus
from app.llm.live_replicas import LiveReplicas
from app.services.memories import MemoryService
from app.settings import Settings
from app.telemetry.metrics import Metrics
from app.telemetry.tracing import Tracing
from app.tools.metered import MeteredTools
from app.tools.registry import ToolRegistry
from app.tools.traced import TracedTools
from app.worker.backfill import Backfill
from app.worker.claim_loop import ClaimLoop
from app.worker.deltas import UNHEARD_EVERY_S, UNWATCHED_EVERY_S, DeltaGatherer
from app.worker.driver import DriverPorts
from app.worker.executor import LocalExecutor
from app.worker.lease import Lease
from app.worker.metered import MeteredDriver
from app.worker.sweeper import Retention, Sweeper
from app.worker.traced import TracedDriver
from app.worker.watch import Watch
from app.worker.worker import Worker


class Execution:
    """The half of a replica that executes runs: the bus, the executor, and the worker that brings it runs.

    `start` and `stop` are called once each; nothing is accepted before `start`.
    """

    def __init__(
        self,
        settings: Settings,
        pools: Pools,
        models: ModelClient,
        tools: ToolRegistry,
        policy: PolicyEngine,
        replicas: LiveReplicas,
        embedder: Embedder | None,
        metrics: Metrics,
        tracing: Tracing | None,
    ) -> None:
        self.replicas = replicas
        owner = str(uuid7())
        direct_url = settings.database_direct_url or settings.database_url
        hears = settings.database_prepared or bool(settings.database_direct_url)
        store = MeteredRunStore(pools.execution, metrics)
        self.bus = PostgresBus(direct_url, owner, hears=hears)
        self._deltas = DeltaGatherer(store, self.bus, time.monotonic, UNWATCHED_EVERY_S if hears else UNHEARD_EVERY_S)
        told_tools: ToolPort = MeteredTools(tools, metrics)
        if tracing is not None:
            told_tools = TracedTools(told_tools, tracing)
        memories = MemoryService(PostgresMemoryRows(pools.execution), embedder)
        ports = DriverPorts(store, models, told_tools, self.bus, self._deltas, time.monotonic, policy, memories)
        driver = partial(MeteredDriver, metrics) if tracing is None else partial(TracedDriver, tracing, metrics)
        self.executor = LocalExecutor(ports, owner, max_runs=settings.max_concurrent_runs, driver=driver)
        self.executor.accepting = False
        self.claim_loop = ClaimLoop(store, self.executor, self.bus, lambda: pools.execution.pool_use().exhausted)
        self.watch = Watch()
        self.worker = Worker(
            pools.execution,
            store,
            self.executor,
            self.bus,
            self.claim_loop,
            Lease(direct_url, owner, settings.lease_s, self._peers_counted),
            metrics,
            self.watch,
            Sweeper(pools.execution, owner, _retention(settings), metrics),
            None if embedder is None else Backfill(pools.execution, embedder, owner),
            lease_s=settings.lease_s,
            step_deadline_s=settings.step_deadline_s,
        )
        self.bus.on_control(self.executor.signal)
        self.bus.on_wake(self.executor.wake)
        self.bus.on_watched(self._deltas.noticed)

    async def start(self) -> None:
        """Raises StoreUnavailable: the database does not take this replica's heartbeat."""
        self.watch.over(self._deltas.start())
        await self.worker.start()

    async def stop(self) -> None:
        """End, after the worker's drain."""
        await self.worker.stop()
        await self._deltas.stop()

    def _peers_counted(self, peers: int) -> None:
        self.bus.alone = peers == 0
        self.replicas.counted(peers + 1)


def _retention(settings: Settings) -> Retention:
    return Retention(
        runs_days=settings.retain_runs_days,
        events_days=settings.retain_events_days,
        checkpoints_days=settings.retain_checkpoints_days,
        deltas_days=settings.retain_deltas_days,
    )
