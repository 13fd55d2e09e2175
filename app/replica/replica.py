"""One replica: its two halves, one that executes runs and one that answers requests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from app.db.memories import PostgresMemoryRows
from app.db.metered import MeteredRunStore
from app.db.model_cache import PostgresModelCache
from app.db.pools import Pools
from app.db.thread_store import PostgresThreads
from app.engine.policy import PolicyEngine
from app.llm.factory import EmbeddingConfig, ModelConfig, build_embedder, build_model_client, check_model_name
from app.llm.live_replicas import LiveReplicas
from app.replica.configured import agent_service
from app.replica.description import description
from app.replica.execution import Execution
from app.replica.gauges import add_gauges
from app.services.compaction import CompactionService
from app.services.container import Services
from app.services.event_stream import EventStreams
from app.services.family_stream import FamilyStreams
from app.services.forks import ForkService
from app.services.health import Health
from app.services.interactions import InteractionService
from app.services.memories import MemoryService
from app.services.run_queries import RunQueries
from app.services.runs import RunService
from app.services.threads import ThreadService
from app.services.tool_catalogue import ToolCatalogue
from app.settings import Settings
from app.telemetry.metrics import Metrics
from app.telemetry.trace_context import current_text, no_text
from app.tools.registry import ToolRegistry

if TYPE_CHECKING:
    from app.telemetry.process import Telemetry


class Replica:
    """The parts of one replica. `running_replica` makes, starts and stops it."""

    def __init__(
        self,
        settings: Settings,
        pools: Pools,
        tools: ToolRegistry,
        policy: PolicyEngine,
        config: ModelConfig,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.metrics = metrics = Metrics() if telemetry is None else Metrics(resource=telemetry.resource)
        tracing = None if telemetry is None else telemetry.tracing(content=settings.telemetry_content)
        replicas = LiveReplicas()
        self._settings = settings
        self._model_config = config
        self._tools = tools
        self._trace_context = no_text if tracing is None else current_text
        cache = PostgresModelCache(pools.execution)
        self._models = build_model_client(config, cache=cache, replicas=replicas, metrics=metrics, tracing=tracing)
        self._embedder = build_embedder(EmbeddingConfig(settings.embedding_model, *settings.embedding_server))
        self._agents = agent_service(pools.api, tools, config)
        self._execution = Execution(
            settings, pools, self._models, tools, policy, replicas, self._embedder, metrics, tracing
        )
        self._draining: asyncio.Task[None] | None = None
        self.services = self._build_services(pools, policy, metrics, description(settings, config))
        add_gauges(metrics, pools, self._execution)

    def _build_services(self, pools: Pools, policy: PolicyEngine, metrics: Metrics, about: dict[str, Any]) -> Services:
        """The half that answers requests: on connections of its own, and besides those on the bus and the executor."""
        execution, agents, tools = self._execution, self._agents, self._tools
        store = MeteredRunStore(pools.api, metrics)
        runs = RunService(
            pools.api,
            store,
            agents,
            tools,
            policy,
            execution.executor,
            execution.bus,
            backlog=lambda: execution.claim_loop.backlog,
            max_queued=self._settings.max_queued_runs,
            trace_context=self._trace_context,
        )
        return Services(
            runs=runs,
            run_queries=RunQueries(pools.api),
            forks=ForkService(store, agents, runs),
            interactions=InteractionService(pools.api, agents, tools, runs),
            streams=EventStreams(pools.streams, execution.bus),
            family_streams=FamilyStreams(pools.streams, execution.bus),
            threads=ThreadService(pools.api),
            compaction=CompactionService(
                PostgresThreads(pools.api), self._models, lambda model: check_model_name(model, self._model_config)
            ),
            agents=agents,
            memories=MemoryService(PostgresMemoryRows(pools.api), self._embedder),
            tools=ToolCatalogue(tools, tools.mcp),
            health=Health(
                pools.readiness,
                draining=lambda: self.draining,
                accepting=lambda: execution.executor.accepting,
                broken=lambda: execution.watch.problem or tools.problem,
                shortage=pools.shortage,
                about=about,
            ),
            metrics=metrics,
        )

    async def start(self) -> None:
        """Begin to execute runs.

        Raises:
            StoreUnavailable: the database does not answer.
            AgentFileError: a file in AGENTS_DIR cannot be used.
        """
        self._tools.start()
        await self._agents.sync_files(self._settings.agents_dir)
        await self._execution.start()

    @property
    def draining(self) -> bool:
        return self._draining is not None

    @property
    def under_way(self) -> int:
        """The runs that are executed here now."""
        return len(self._execution.executor.under_way())

    def drain(self) -> asyncio.Task[None]:
        """Begin to stop, once; requests can be answered until `stop`, and runs that they create are for others.

        Streams end, whoever waits for a run or a summary is sent elsewhere, and runs under way go back to the queue.

        Returns:
            the task that ends when no run is under way here any more, within SHUTDOWN_GRACE_S.
        """
        if self._draining is None:
            self.services.runs.close()
            self.services.compaction.close()
            self._execution.bus.close_readers()
            draining = self._execution.worker.drain(self._settings.shutdown_grace_s)
            self._draining = asyncio.create_task(draining, name="drain")
        return self._draining

    async def stop(self) -> None:
        await self.drain()
        await self._execution.stop()
        await self._models.aclose()
        if self._embedder is not None:
            await self._embedder.aclose()
        await self._tools.aclose()
