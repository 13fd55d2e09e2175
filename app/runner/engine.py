"""What executes a runner's runs, bound to one event loop."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, cast

import orjson
from uuid_utils.compat import uuid7

from app.engine.errors import RunError
from app.engine.events import EventType, StoredEvent
from app.engine.interactions import Answer, InteractionRecord
from app.engine.limits import RunLimits
from app.engine.memories import Embedder, MemoryRows
from app.engine.model import ModelClient
from app.engine.policy import PolicyEngine
from app.engine.ports import RunStore
from app.engine.status import RunStatus
from app.engine.store_errors import StoreError
from app.engine.tools import ToolPort
from app.event_bus.announce import announce_stopped
from app.event_bus.memory import MemoryBus
from app.runner.config import RunnerConfig
from app.runner.errors import RunAbandoned
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
            ports,
            str(uuid7()),
            max_runs=config.max_concurrent_runs,
            defaults=limits,
            driver=driver,
            on_abandoned=self._abandoned,
        )
        self.bus.on_control(self.executor.signal)
        self.bus.on_wake(self.executor.wake)
        self.bus.on_watched(self._deltas.noticed)
        self._deltas.start()
        tools.start()
        self._passing: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._halt: str | None = None
        self.users = 0
        self._tasks = [
            asyncio.create_task(ClaimLoop(store, self.executor, self.bus).run(), name="claim-loop"),
            asyncio.create_task(self._expire(), name="expiry"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._background_ended)

    def asked(self, agent: str) -> str | None:
        """What a run of that agent is part of that is made now; see `NewRun.trace_context`."""
        return None if self._telemetry is None else self._telemetry.asked(agent)

    def refuse_abandoned(self, run_id: str) -> None:
        """Raise RunAbandoned if nothing here goes on with runs any more."""
        if self._halt is not None:
            raise RunAbandoned(f"run {run_id} is not over: {self._halt}")

    async def stop(self) -> None:
        self._stopping = True
        await self.executor.drain(0.1)
        self._halted("the runner was closed")
        for task in (*self._tasks, *self._passing):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._passing, return_exceptions=True)
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

    def _abandoned(self, run_id: str, error: BaseException) -> None:
        """Nobody but us looks for runs whose task has ended: whoever waits for one would wait for ever."""
        if not self._stopping:
            self._pass(self._end(run_id, error), f"end-{run_id}")

    async def _end(self, run_id: str, error: BaseException) -> None:
        said = f"the runner failed while it ran run {run_id} ({type(error).__name__}: {error})"
        try:
            stopped = await self._store.stop(run_id, RunStatus.FAILED, RunError("internal", said))
            announce_stopped(self.bus, stopped)
        except Exception as failure:
            log.exception("run_not_ended", run_id=run_id)
            self._halted(f"{said}, and its end could not be stored ({type(failure).__name__}: {failure})")

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background_failed", task=task.get_name(), error=repr(error))
            self._halted(f"the runner's {task.get_name()} failed ({type(error).__name__}: {error})")

    def _halted(self, reason: str) -> None:
        """From now on no run goes on for certain, the parents of the one that shows it included: tell all who wait."""
        self._halt = self._halt or reason
        for run_id in self.bus.read_runs():
            self.bus.poke(run_id)

    def _pass(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)

    def _answer(self, run_id: str, interaction_id: str) -> None:
        self._pass(self._asked(run_id, interaction_id), f"interaction-{interaction_id}")

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
