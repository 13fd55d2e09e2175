"""Runner: the same engine in-process, without a service and without a database.

from app import Agent, Runner, tool

result = Runner().run_sync(Agent(name="helper", model="openai/gpt-4o-mini"), user_message="hello")
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from uuid_utils.compat import uuid7

from app.db.memory import MemoryStore
from app.engine.agent import AgentDefinition, AgentOverrides, AgentVersion, resolve
from app.engine.events import StoredEvent
from app.engine.first_write import first_write
from app.engine.limits import Limits, RunLimits
from app.engine.messages import Message, Role
from app.engine.model import ModelClient
from app.engine.ports import RunStore
from app.engine.records import NewRun
from app.engine.result import AgentResult, result_of
from app.engine.store_errors import RunConflict
from app.event_bus.memory import MemoryBus
from app.llm.factory import ModelConfig, build_model_client
from app.services.event_stream import ROWS_AT_ONCE, follow_run
from app.services.run_control import RunControl
from app.settings import Settings
from app.tools.function_tool import FunctionTool, tool
from app.tools.registry import ToolRegistry
from app.worker.deltas import DeltaGatherer
from app.worker.driver import DriverPorts
from app.worker.executor import LocalExecutor
from app.worker.worker import ClaimLoop


class Agent:
    """An agent for a `Runner`: a definition that carries its tools.

    Args:
        name: a letter, then up to 47 letters, digits, `_` or `-`.
        model: with its prefix, such as `openai/gpt-4o-mini`.
        instructions: the system message.
        tools: functions, with `@tool` or without.
        settings: the other fields of `AgentDefinition`, such as `limits` or `model_settings`.

    Raises:
        pydantic.ValidationError: a field has a wrong value.
    """

    def __init__(
        self,
        name: str,
        model: str,
        instructions: str = "",
        tools: Sequence[Callable[..., Any]] = (),
        **settings: Any,
    ) -> None:
        self.tools = tuple(_as_tool(each) for each in tools)
        self.definition = AgentDefinition.model_validate(
            {
                "name": name,
                "model": model,
                "instructions": instructions,
                "tools": [each.spec.name for each in self.tools],
                **settings,
            }
        )


def _as_tool(function: Callable[..., Any]) -> FunctionTool[..., Any]:
    return cast("FunctionTool[..., Any]", function) if isinstance(function, FunctionTool) else tool(function)


@dataclass(frozen=True, slots=True)
class RunnerConfig:
    """What a runner needs besides agents; what is None is read from the environment and `.env`.

    Args:
        scripts_dir: folder of `scripted/NAME` files.
        limits: in place of the defaults, for all agents that state none.
    """

    openai_api_key: str | None = field(default=None, repr=False)
    openai_base_url: str | None = None
    scripts_dir: Path | None = None
    max_concurrent_runs: int = 200
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One event of a run, with the envelope's fields; `created_at` is as in the HTTP API."""

    seq: int
    type: str
    run_id: str
    thread_id: str
    agent_name: str
    state: str
    step: int
    message: str | None
    data: Mapping[str, Any]
    created_at: str
    schema_version: int


class Runner:
    """Runs agents in this process. Threads last as long as the store.

    Use it as an async context manager to keep connections to the model between runs; without that, each run opens and
    closes its own.

    Args:
        store: where runs live; None for memory.
        model_client: answers all model calls in place of the clients that `config` describes.
    """

    def __init__(
        self,
        config: RunnerConfig | None = None,
        *,
        store: RunStore | None = None,
        model_client: ModelClient | None = None,
    ) -> None:
        self._config = config or RunnerConfig()
        self._limits = RunLimits().replaced(self._config.limits)
        self._store = store or MemoryStore(limits=self._limits)
        self._model_client = model_client
        self._tools = ToolRegistry()
        self._engine: _Engine | None = None
        self._users = 0

    def run_sync(self, agent: Agent, *, user_message: str, **options: Any) -> AgentResult:
        """`run` for code without an event loop.

        Raises:
            RuntimeError: called where an event loop runs; `await runner.run(...)` there.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise RuntimeError("run_sync blocks and an event loop runs here: use `await runner.run(...)`")
        return asyncio.run(self.run(agent, user_message=user_message, **options))

    async def run(
        self,
        agent: Agent,
        *,
        user_message: str,
        thread_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
    ) -> AgentResult:
        """Run to the end and answer with the result, whatever state the run ends in."""
        handle = await self.run_handle(
            agent, user_message=user_message, thread_id=thread_id, context=context, limits=limits
        )
        return await handle.await_result()

    async def run_stream(
        self,
        agent: Agent,
        *,
        user_message: str,
        thread_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
    ) -> RunStream:
        """Run and hand out the events: an async iterator, whose `result` is there when it has ended."""
        handle = await self.run_handle(
            agent, user_message=user_message, thread_id=thread_id, context=context, limits=limits
        )
        return RunStream(handle)

    async def run_handle(
        self,
        agent: Agent,
        *,
        user_message: str,
        thread_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
    ) -> RunHandle:
        """Start a run and answer with a handle to it."""
        for each in agent.tools:
            self._tools.register(each)
        engine = self._enter()
        run_id = str(uuid7())
        version = AgentVersion(str(uuid7()), agent.definition)
        overrides = AgentOverrides(limits=limits)
        message = (Message(Role.USER, user_message),)
        new = NewRun(
            run_id=run_id,
            thread_id=thread_id or str(uuid7()),
            thread_key=str(uuid7()),
            agent=version,
            input=message,
            overrides=overrides,
            context=context or {},
            opening=None
            if thread_id
            else first_write(resolve(version, overrides, self._limits), context or {}, message, self._tools),
        )
        created = await self._store.create(new, owner=engine.executor.owner if engine.executor.has_room() else None)
        if created.claim is not None:
            engine.executor.start(created.claim, created.run, version)
        else:
            engine.bus.queued()
        return RunHandle(self, engine, run_id)

    async def resume(
        self, agent: Agent, *, run_id: str, thread_id: str | None = None, limits: Limits | None = None
    ) -> AgentResult:
        """Go on with a paused, failed or interrupted run from its last checkpoint, to the end.

        Args:
            agent: whose tools the run needs; the definition stays the one that the run began with.
            thread_id: checked against the run's own if given.

        Raises:
            RunNotFound: there is no such run.
            RunConflict: its status, or its thread, does not allow it.
            LimitReached: it would meet a limit at once; `limits` may state higher ones.
            DamagedCheckpoint: its last checkpoint cannot be understood.
        """
        for each in agent.tools:
            self._tools.register(each)
        run = await self._store.get(run_id)
        if thread_id is not None and thread_id != run.thread_id:
            raise RunConflict(f"run {run_id} belongs to thread {run.thread_id}, not to {thread_id}", run.status)
        engine = self._enter()
        handle = RunHandle(self, engine, run_id)
        try:
            await engine.control.resume(run_id, limits)
        except BaseException:
            await handle.close()
            raise
        return await handle.await_result()

    async def aclose(self) -> None:
        """Stop what runs and close the connections to models. The runner may be used again."""
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await engine.stop()

    async def __aenter__(self) -> Runner:
        self._enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.leave()

    def _enter(self) -> _Engine:
        """The engine of this event loop, for one more user of it."""
        loop = asyncio.get_running_loop()
        if self._engine is None or self._engine.loop is not loop:
            client = self._model_client or build_model_client(self._model_config())
            shared = self._model_client is not None
            self._engine = _Engine(self._store, client, self._tools, self._config, self._limits, shared_client=shared)
            self._users = 0
        self._users += 1
        return self._engine

    async def leave(self) -> None:
        """One user of the engine is done; the last one stops it."""
        self._users -= 1
        if self._users == 0:
            await self.aclose()

    @property
    def store(self) -> RunStore:
        return self._store

    def _model_config(self) -> ModelConfig:
        settings = Settings.load()
        config = self._config
        return ModelConfig(
            openai_api_key=config.openai_api_key or settings.openai_api_key.get_secret_value() or None,
            openai_base_url=config.openai_base_url or settings.openai_base_url,
            scripts_dir=config.scripts_dir,
        )


class RunHandle:
    """A run under way."""

    def __init__(self, runner: Runner, engine: _Engine, run_id: str) -> None:
        self._runner = runner
        self._engine = engine
        self._closed = False
        self.run_id = run_id

    @property
    def events(self) -> AsyncGenerator[StreamEvent]:
        """The run's events from the first one on, until it is over; each access starts anew."""
        return self._follow()

    async def pause(self) -> None:
        """Stop at the next step boundary. Raises: RunConflict."""
        await self._engine.control.pause(self.run_id)

    async def resume(self, limits: Limits | None = None) -> None:
        """Go on. Raises: RunConflict, LimitReached."""
        await self._engine.control.resume(self.run_id, limits)

    async def cancel(self) -> None:
        """End the run for good, now."""
        await self._engine.control.cancel(self.run_id)

    async def interrupt(self) -> None:
        """End the run now; it may be resumed."""
        await self._engine.control.interrupt(self.run_id)

    async def await_result(self) -> AgentResult:
        """Wait until the run is over. A paused run is not: somebody has to resume it."""
        async for _ in self._follow():
            pass
        await self.close()
        return result_of(await self._runner.store.get(self.run_id))

    async def close(self) -> None:
        """Let go of the run's connections; done by `await_result`."""
        if not self._closed:
            self._closed = True
            await self._runner.leave()

    async def _follow(self) -> AsyncGenerator[StreamEvent]:
        store = self._runner.store

        async def rows(cursor: int) -> list[StoredEvent]:
            return await store.read_events(self.run_id, cursor, ROWS_AT_ONCE)

        async def ended(cursor: int) -> bool:
            run = await store.get(self.run_id, with_tools=False)
            return run.status.terminal and run.last_event_seq <= cursor

        async for event in follow_run(self._engine.bus, self.run_id, 0, rows, ended):
            yield StreamEvent(**event.as_dict())


class RunStream:
    """The events of a run: `async for event in stream`, then `stream.result`."""

    def __init__(self, handle: RunHandle) -> None:
        self._handle = handle
        self._result: AgentResult | None = None

    @property
    def result(self) -> AgentResult:
        """Raises RuntimeError while the events have not all been read."""
        if self._result is None:
            raise RuntimeError("the run's result is there when all of its events have been read")
        return self._result

    async def __aiter__(self) -> AsyncGenerator[StreamEvent]:
        async for event in self._handle.events:
            yield event
        self._result = await self._handle.await_result()


class _Engine:
    """What executes runs, bound to one event loop."""

    def __init__(
        self,
        store: RunStore,
        models: ModelClient,
        tools: ToolRegistry,
        config: RunnerConfig,
        limits: RunLimits,
        *,
        shared_client: bool,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.bus = MemoryBus()
        self.control = RunControl(store, self.bus)
        self._models = models
        self._shared_client = shared_client
        self._deltas = DeltaGatherer(store, self.bus, time.monotonic)
        ports = DriverPorts(store, models, tools, self.bus, self._deltas, time.monotonic)
        self.executor = LocalExecutor(ports, str(uuid7()), max_runs=config.max_concurrent_runs, defaults=limits)
        self.bus.on_control(self.executor.signal)
        self.bus.on_watched(self._deltas.noticed)
        self._deltas.start()
        self._claims = asyncio.create_task(ClaimLoop(store, self.executor, self.bus).run(), name="claim-loop")

    async def stop(self) -> None:
        await self.executor.drain(0.1)
        self._claims.cancel()
        await asyncio.gather(self._claims, return_exceptions=True)
        await self._deltas.stop()
        if not self._shared_client:
            await self._models.aclose()
