"""What executes a runner's runs, bound to one event loop."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, cast

import orjson
from uuid_utils.compat import uuid7

from app.engine.events import EventType, StoredEvent
from app.engine.interactions import Answer, InteractionRecord
from app.engine.limits import RunLimits
from app.engine.memories import Embedder, MemoryRows
from app.engine.model import ModelClient
from app.engine.policy import PolicyEngine
from app.engine.ports import RunStore
from app.engine.store_errors import StoreError
from app.engine.tools import ToolPort
from app.event_bus.memory import MemoryBus
from app.runner.config import RunnerConfig
from app.services.errors import Conflict
from app.services.memories import MemoryService
from app.services.run_control import RunControl
from app.telemetry.logs import get_logger
from app.tools.registry import ToolRegistry
from app.worker.claim_loop import ClaimLoop
from app.worker.deltas import DeltaGatherer
from app.worker.driver import DriverPorts, RunDriver
from app.worker.executor import LocalExecutor
from app.worker.expiry import EXPIRE_EVERY_S, expire_due

if TYPE_CHECKING:
    from app.runner.telemetry import InProcess

AskPerson = Callable[[InteractionRecord], Awaitable[Answer] | Answer]

log = get_logger(__name__)


class Engine:
    """
    Args:
        ask: answers the runs' questions; None if nobody in this process does.
        models: answers all model calls.
        shared_client: the client belongs to somebody else, who closes it.
        telemetry: what traces the runs; the client is traced already.
    """

    def __init__(
        self,
        store: RunStore,
        memories: MemoryRows,
        embedder: Embedder | None,
        models: ModelClient,
        tools: ToolRegistry,
        config: RunnerConfig,
        limits: RunLimits,
        policy: PolicyEngine,
        ask: AskPerson | None,
        *,
        shared_client: bool,
        telemetry: InProcess | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.bus = MemoryBus() if ask is None else _AskingBus(self._answer)
        self.control = RunControl(store, self.bus)
        self.tools = tools
        self._store = store
        self._ask = ask
        self.models = models
        self._shared_client = shared_client
        self._deltas = DeltaGatherer(store, self.bus, time.monotonic)
        self._embedder = embedder
        self._telemetry = telemetry
        port: ToolPort = tools if telemetry is None else telemetry.tools(tools)
        kept = MemoryService(memories, embedder)
        ports = DriverPorts(store, models, port, self.bus, self._deltas, time.monotonic, policy, kept)
        driver = RunDriver if telemetry is None else telemetry.driver
        self.executor = LocalExecutor(
            ports, str(uuid7()), max_runs=config.max_concurrent_runs, defaults=limits, driver=driver
        )
        self.bus.on_control(self.executor.signal)
        self.bus.on_wake(self.executor.wake)
        self.bus.on_watched(self._deltas.noticed)
        self._deltas.start()
        tools.start()
        self._questions: set[asyncio.Task[None]] = set()
        self._tasks = [
            asyncio.create_task(ClaimLoop(store, self.executor, self.bus).run(), name="claim-loop"),
            asyncio.create_task(self._expire(), name="expiry"),
        ]

    def asked(self, agent: str) -> str | None:
        """What a run of that agent is part of that is made now; see `NewRun.trace_context`."""
        return None if self._telemetry is None else self._telemetry.asked(agent)

    async def stop(self) -> None:
        await self.executor.drain(0.1)
        for task in (*self._tasks, *self._questions):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._questions, return_exceptions=True)
        await self._deltas.stop()
        await self.tools.aclose()
        if self._embedder is not None:
            await self._embedder.aclose()
        if not self._shared_client:
            await self.models.aclose()
        if self._telemetry is not None:
            await self._telemetry.flush()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_EVERY_S)
            try:
                await expire_due(self._store, self.bus)
            except StoreError as error:
                log.warning("expiry_failed", error=str(error))

    def _answer(self, run_id: str, interaction_id: str) -> None:
        task = asyncio.create_task(self._asked(run_id, interaction_id), name=f"interaction-{interaction_id}")
        self._questions.add(task)
        task.add_done_callback(self._questions.discard)

    async def _asked(self, run_id: str, interaction_id: str) -> None:
        try:
            for interaction in await self._store.interactions(run_id):
                if interaction.interaction_id == interaction_id:
                    await self.control.answer(run_id, interaction_id, await self._answer_to(interaction))
        except (Conflict, StoreError) as error:  # somebody else has answered, or the run is over
            log.info("interaction_not_answered", run_id=run_id, interaction_id=interaction_id, reason=str(error))

    async def _answer_to(self, interaction: InteractionRecord) -> Answer:
        """What the caller's function answers; one that fails has not approved."""
        assert self._ask is not None
        try:
            given = cast("object", self._ask(interaction))
            if inspect.isawaitable(given):
                given = cast("object", await given)
            if isinstance(given, Answer):
                return given
            problem = f"it gave {type(given).__name__}, no Answer"
        except Exception as error:  # noqa: BLE001 - the caller's own code
            problem = f"{type(error).__name__}: {error}"
        log.error("ask_failed", run_id=interaction.run_id, tool_name=interaction.tool_name, error=problem)
        return Answer.deny("whoever was to be asked could not answer", by="ask")


class _AskingBus(MemoryBus):
    """A bus that passes every new question on."""

    def __init__(self, asked: Callable[[str, str], None]) -> None:
        super().__init__()
        self._asked = asked

    def publish(self, run_id: str, events: Sequence[StoredEvent]) -> None:
        super().publish(run_id, events)
        for event in events:
            if event.type == EventType.INTERACTION_REQUESTED:
                self._asked(run_id, orjson.loads(event.body)["data"]["interaction_id"])
