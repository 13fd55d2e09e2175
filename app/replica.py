"""One replica: its parts, wired, started and stopped together."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from uuid_utils.compat import uuid7

from app.db.database import Database
from app.db.memories import PostgresMemoryRows
from app.db.metered import MeteredRunStore
from app.db.migrate import current, missing
from app.db.model_cache import PostgresModelCache
from app.db.pools import Pools, PoolSizes
from app.db.thread_store import PostgresThreads
from app.engine.limits import SERVICE_LIMITS
from app.engine.memories import Embedder
from app.engine.model import ModelClient
from app.engine.policy import PolicyEngine
from app.engine.store_errors import StoreError, StoreUnavailable
from app.engine.tools import ToolPort
from app.event_bus.postgres import PostgresBus
from app.llm.factory import (
    EmbeddingConfig,
    ModelConfig,
    build_embedder,
    build_model_client,
    check_model_name,
    model_clients,
)
from app.llm.live_replicas import LiveReplicas
from app.llm.providers_file import read_providers
from app.services.agent_checks import Grants
from app.services.agents import AgentService
from app.services.compaction import CompactionService
from app.services.container import Services
from app.services.errors import ServiceError
from app.services.event_stream import EventStreams
from app.services.family_stream import FamilyStreams
from app.services.forks import ForkService
from app.services.health import Health
from app.services.interactions import InteractionService
from app.services.memories import MemoryService
from app.services.policy_modules import load_policy_modules
from app.services.run_queries import RunQueries
from app.services.runs import RunService
from app.services.threads import ThreadService
from app.services.tool_catalogue import ToolCatalogue
from app.settings import Settings
from app.telemetry.logs import get_logger
from app.telemetry.metrics import Labels, Metrics
from app.telemetry.trace_context import current_text, no_text
from app.telemetry.tracing import Tracing
from app.tools.metered import MeteredTools
from app.tools.operator_tools import operator_registry
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

if TYPE_CHECKING:
    from app.telemetry.process import Telemetry

MAX_BODY_BYTES = 1024 * 1024
MIGRATIONS_LOOK_S = 1.0
_CAPABILITIES = (
    "runs", "streams", "threads", "agents", "tools", "checkpoints", "idempotency", "interactions", "subagents",
    "policy", "caller_tools", "http_tools", "mcp", "sandboxes", "fork", "structured_output", "compaction",
    "memories", "telemetry",
)  # fmt: skip

log = get_logger(__name__)


class _Execution:
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
        self._replicas = replicas
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
        self._replicas.counted(peers + 1)


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
        self.metrics = metrics = _metrics(telemetry)
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
        self._execution = _Execution(
            settings, pools, self._models, tools, policy, replicas, self._embedder, metrics, tracing
        )
        self._draining: asyncio.Task[None] | None = None
        self.services = self._build_services(pools, policy, metrics, _about(settings, config))
        _add_gauges(metrics, pools, self._execution)

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

        Streams end, whoever waits for a run is sent elsewhere, and runs under way go back to the queue.

        Returns:
            the task that ends when no run is under way here any more, within SHUTDOWN_GRACE_S.
        """
        if self._draining is None:
            self.services.runs.close()
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


@asynccontextmanager
async def running_replica(settings: Settings, telemetry: Telemetry | None = None) -> AsyncGenerator[Replica]:
    """A replica at work; one whose database is not migrated yet waits for that and says so at `/readyz`.

    Args:
        telemetry: where traces and metrics are exported to; None for nowhere.
    """
    config = model_config(settings)
    tools = load_tools(settings)
    policy = load_policy_modules(settings.policy_modules)
    sizes = PoolSizes(
        execution=settings.database_execution_connections,
        api=settings.database_api_connections,
        streams=settings.database_stream_connections,
    )
    pools = await Pools.open(settings.database_url, sizes, prepared=settings.database_prepared)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(pools.close)
        replica = Replica(settings, pools, tools, policy, config, telemetry)
        if telemetry is not None:
            stack.push_async_callback(telemetry.flush, also=telemetry.push(replica.metrics))
        stack.push_async_callback(replica.stop)
        if await _migrations_missing(pools.readiness) is None:
            await replica.start()
        else:
            waiting = asyncio.create_task(_start_when_migrated(replica, pools.readiness), name="wait-for-migrations")
            stack.callback(waiting.cancel)
        yield replica


def load_tools(settings: Settings) -> ToolRegistry:
    """The built-in tools and the operator's own, with the secrets, hosts, servers and sandboxes that they may use.

    Raises:
        ToolRegistrationError: a module of TOOL_MODULES cannot be used.
        ToolSettingError: a setting, or a file that one names, cannot be used.
    """
    tools = operator_registry(settings)
    tools.load_modules(["app.tools.builtin", *settings.tool_modules])
    return tools


def agent_service(database: Database, tools: ToolRegistry, config: ModelConfig) -> AgentService:
    return AgentService(database, tools, lambda model: check_model_name(model, config), grants=_grants(tools))


def _grants(tools: ToolRegistry) -> Grants:
    http, mcp, sandboxes = tools.http, tools.mcp, tools.sandboxes()
    assert http is not None
    return Grants(
        http_tool=http.problem,
        mcp_server=lambda name: None if mcp and mcp.declared(name) else f"there is no MCP server {name!r}",
        sandbox=lambda name: None if name in sandboxes else f"there is no sandbox profile {name!r}",
    )


async def _start_when_migrated(replica: Replica, database: Database) -> None:
    log.warning("migrations_missing", hint="run `agent-runner migrate`; this replica starts to work after it")
    while await _still_missing(database):  # noqa: ASYNC110 - the database tells nobody
        await asyncio.sleep(MIGRATIONS_LOOK_S)
    if replica.draining:
        return
    try:
        await replica.start()
    except (StoreError, ServiceError) as error:
        log.error("cannot_start", reason=str(error), hint="restart this replica")


async def _still_missing(database: Database) -> bool:
    try:
        return await _migrations_missing(database) is not None
    except StoreUnavailable:
        return True  # it will come back, and then be asked again


async def _migrations_missing(database: Database) -> str | None:
    async with database.connection() as connection:
        return missing(await current(connection))


def model_config(settings: Settings) -> ModelConfig:
    """Raises ProvidersFileError: the file of PROVIDERS_FILE cannot be used."""
    scripts = settings.agents_dir / "scripts"
    return ModelConfig(
        openai_api_key=settings.openai_api_key.get_secret_value() or None,
        openai_base_url=settings.openai_base_url,
        anthropic_api_key=settings.anthropic_api_key.get_secret_value() or None,
        anthropic_base_url=settings.anthropic_base_url,
        anthropic_prompt_caching=settings.anthropic_prompt_caching,
        scripts_dir=scripts if scripts.is_dir() else None,
        providers=read_providers(settings.providers_file, os.environ) if settings.providers_file else {},
    )


def _metrics(telemetry: Telemetry | None) -> Metrics:
    if telemetry is None:
        return Metrics()
    return Metrics(resource=telemetry.resource)


def _retention(settings: Settings) -> Retention:
    return Retention(
        runs_days=settings.retain_runs_days,
        events_days=settings.retain_events_days,
        checkpoints_days=settings.retain_checkpoints_days,
        deltas_days=settings.retain_deltas_days,
    )


def _add_gauges(metrics: Metrics, pools: Pools, execution: _Execution) -> None:
    def connections() -> Iterator[tuple[int, Labels]]:
        for use in pools.use():
            yield use.used, {"pool": use.pool, "state": "used"}
            yield use.idle, {"pool": use.pool, "state": "idle"}

    metrics.gauge(
        "agent_runner.runs.under_way",
        "Runs that this replica executes now.",
        lambda: [(len(execution.executor.under_way()), {})],
    )
    metrics.gauge(
        "agent_runner.subscribers",
        "Who follows events here now: streams, and callers that wait for a run.",
        lambda: [(execution.bus.subscribers(), {})],
    )
    metrics.gauge("agent_runner.db.connections", "Open database connections, by pool and state.", connections)
    metrics.counter(
        "agent_runner.db.acquire_timeouts",
        "How often none of a pool's connections was free in time.",
        lambda: [(use.timeouts, {"pool": use.pool}) for use in pools.use()],
    )
    metrics.gauge(
        "agent_runner.runs.stalled",
        "Runs under way here without progress for STEP_DEADLINE_S.",
        lambda: [(execution.worker.stalled, {})],
    )


def _about(settings: Settings, config: ModelConfig) -> dict[str, Any]:
    limits = SERVICE_LIMITS
    return {
        "version": version("agent-runner"),
        "capabilities": list(_CAPABILITIES),
        "limits": {
            "max_concurrent_runs": settings.max_concurrent_runs,
            "max_queued_runs": settings.max_queued_runs,
            "max_body_bytes": MAX_BODY_BYTES,
            "max_steps": limits.max_steps,
            "max_llm_calls": limits.max_llm_calls,
            "max_tool_calls": limits.max_tool_calls,
            "max_wall_time_s": limits.max_wall_time_s,
            "max_total_tokens": limits.max_total_tokens,
            "max_total_cost_usd": limits.max_total_cost_usd,
            "max_subagent_depth": limits.max_subagent_depth,
            "max_subagent_fanout": limits.max_subagent_fanout,
        },
        "model_clients": list(model_clients(config)),
    }
