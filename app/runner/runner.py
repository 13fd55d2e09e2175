"""`Runner`: runs agents in this process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, get_args

from uuid_utils.compat import uuid7

from app.db.memory import InMemoryRows, MemoryStore
from app.engine.agent import AgentOverrides, AgentVersion, InteractionMode, resolve
from app.engine.compaction import KEEP_LAST
from app.engine.first_write import first_write
from app.engine.limits import Limits, RunLimits
from app.engine.messages import Content, Message
from app.engine.model import ModelClient
from app.engine.policy import PolicyEngine
from app.engine.ports import RunStore, ThreadStore
from app.engine.records import NewRun
from app.engine.result import AgentResult
from app.engine.store_errors import RunConflict
from app.llm.factory import EmbeddingConfig, ModelConfig, build_embedder, build_model_client, check_model_name
from app.llm.memory_cache import MemoryModelCache
from app.llm.providers_file import read_providers
from app.runner.agent import Agent
from app.runner.checks import check_agent, message_of
from app.runner.config import RunnerConfig
from app.runner.engine import AskPerson, Engine
from app.runner.errors import InvalidArgument
from app.runner.handle import RunHandle, RunStream
from app.services.compaction import CompactionService, CompactThread, ThreadCompacted
from app.settings import Settings
from app.telemetry.sdk_disabled import sdk_disabled
from app.telemetry.tracing import TelemetryKind
from app.tools.operator_tools import operator_registry

if TYPE_CHECKING:
    from app.runner.telemetry import InProcess


class AgentStore(RunStore, ThreadStore, Protocol):
    """A store that also keeps agents, for those that others delegate to."""

    def put_agent_version(self, version: AgentVersion, tenant_id: str = "") -> None:
        """Make `version` the current one of its agent."""
        ...


class Runner:
    """Runs agents in this process. Threads last as long as the store, and memories as long as the runner.

    Use it as an async context manager to keep connections to the model between runs; without that, each run opens and
    closes its own. Leaving it stops what still runs, as `aclose` does.

    Args:
        policy_engine: rules for all agents, beside those in their definitions.
        ask: answers the runs' questions to people (approvals, inputs): a function, best an async one, from
            `InteractionRecord` to `Answer`; one that fails denies. With it runs wait for its answers; without it they
            go by their agent's `interaction_mode`.
        store: where runs live; None for memory.
        model_client: answers all model calls in place of the clients that `config` describes.
        telemetry: where traces go: `console` or `json` for lines on standard output, `otel` for OTLP as the OTEL_*
            variables say, with the numbers of models, tools and steps; None for nowhere. A program that has set a
            tracer provider of its own gets the spans of `otel` there. What is said is in them if TELEMETRY_CONTENT is
            on.

    Raises:
        InvalidArgument: there is no such telemetry.
    """

    def __init__(
        self,
        config: RunnerConfig | None = None,
        *,
        policy_engine: PolicyEngine | None = None,
        ask: AskPerson | None = None,
        store: AgentStore | None = None,
        model_client: ModelClient | None = None,
        telemetry: TelemetryKind | None = None,
    ) -> None:
        if telemetry is not None and telemetry not in get_args(TelemetryKind):
            known = ", ".join(get_args(TelemetryKind))
            raise InvalidArgument(f"there is no {telemetry!r}; there are {known}, and None for nowhere", ("telemetry",))
        self._config = config or RunnerConfig()
        self._limits = RunLimits().replaced(self._config.limits)
        self._store = store or MemoryStore(limits=self._limits)
        self._memories = InMemoryRows()
        self._model_client = model_client
        self._policy = policy_engine or PolicyEngine()
        self._ask = ask
        self._cache = MemoryModelCache()
        self._telemetry_kind: TelemetryKind | None = telemetry
        self._engine: Engine | None = None
        self._entered: list[Engine] = []
        self._models: ModelConfig | None = None  # as the engine's client was made; None for the caller's own

    def run_sync(self, agent: Agent, *, user_message: Content, **options: Any) -> AgentResult:
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
        user_message: Content,
        thread_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
        user_id: str | None = None,
    ) -> AgentResult:
        """Run to the end and answer with the result, whatever state the run ends in.

        Args:
            user_message: text, or parts of text and images as the HTTP API has them.
            user_id: whose memories the agent keeps and finds.

        Raises:
            InvalidArgument: the agent, or an agent below it, or the message cannot be used; nothing was executed.
            RunAbandoned: the runner was closed meanwhile, or the run's end cannot be stored.
        """
        handle = await self.run_handle(
            agent,
            user_message=user_message,
            thread_id=thread_id,
            context=context,
            limits=limits,
            user_id=user_id,
        )
        return await _result_of(handle)

    async def run_stream(
        self,
        agent: Agent,
        *,
        user_message: Content,
        thread_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
        user_id: str | None = None,
    ) -> RunStream:
        """Run and hand out the events: an async iterator, whose `result` is there when it has ended.

        Raises:
            InvalidArgument: see `run`.
        """
        handle = await self.run_handle(
            agent,
            user_message=user_message,
            thread_id=thread_id,
            context=context,
            limits=limits,
            user_id=user_id,
        )
        return RunStream(handle)

    async def run_handle(
        self,
        agent: Agent,
        *,
        user_message: Content,
        thread_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
        user_id: str | None = None,
    ) -> RunHandle:
        """Start a run and answer with a handle to it: wait for its result, or close it.

        Raises:
            InvalidArgument: see `run`.
        """
        message = message_of(user_message)
        engine = self._enter()
        try:
            version = self._keep(agent, engine)
            await engine.tools.settled(agent.definition.tools)
            trace_context = engine.asked(agent.definition.name)
            new = self._new_run(engine, version, message, thread_id, context or {}, limits, user_id, trace_context)
            owner = engine.executor.owner if engine.executor.has_room() else None
            created = await self._store.create(new, owner=owner)
        except BaseException:
            await self._leave(engine)
            raise
        if created.claim is not None:
            engine.executor.start(created.claim, created.run, version)
        else:
            engine.bus.queued()
        return self._handle(engine, new.run_id)

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
            InvalidArgument, RunAbandoned: see `run`.
        """
        run = await self._store.get(run_id)
        if thread_id is not None and thread_id != run.thread_id:
            raise RunConflict(f"run {run_id} belongs to thread {run.thread_id}, not to {thread_id}", run.status)
        engine = self._enter()
        handle = self._handle(engine, run_id)
        try:
            self._keep(agent, engine)
            await engine.control.resume(run_id, limits)
        except BaseException:
            await handle.close()
            raise
        return await _result_of(handle)

    async def compact_thread(
        self, *, thread_id: str, keep_last: int = KEEP_LAST, model: str | None = None, purge: bool = False
    ) -> ThreadCompacted:
        """Let a model summarise a thread's messages before the last ones; later runs see the summary instead.

        Args:
            keep_last: how many of the last messages stay as they are.
            model: who writes it; None for the model of the thread's latest run.
            purge: whether the messages that the summary stands for are deleted.

        Raises:
            NotFound, ThreadNotFound, ThreadBusy, CompactedMeanwhile, Invalid, ModelUnavailable: see
                `CompactionService.compact`.
        """
        engine = self._enter()
        try:
            service = CompactionService(self._store, engine.models, self._check_model)
            return await service.compact(CompactThread(thread_id, keep_last, model, purge))
        finally:
            await self._leave(engine)

    async def aclose(self) -> None:
        """Stop what runs and close the connections to models. The runner may be used again.

        Whoever still waits for a run gets RunAbandoned.
        """
        if self._engine is not None:
            await self._close(self._engine)

    async def __aenter__(self) -> Runner:
        self._entered.append(self._enter())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        engine = self._entered.pop()
        if engine not in self._entered:  # handles that nobody has waited for keep nothing open
            await self._close(engine)

    def _enter(self) -> Engine:
        """The engine of this event loop, for one more user of it."""
        loop = asyncio.get_running_loop()
        if self._engine is None or self._engine.loop is not loop:
            settings = Settings.load()
            telemetry = _telemetry(self._telemetry_kind, content=settings.telemetry_content)
            client = self._client(telemetry)
            shared = self._model_client is not None
            self._engine = Engine(
                self._store,
                self._memories,
                build_embedder(EmbeddingConfig(settings.embedding_model, *settings.embedding_server)),
                client,
                operator_registry(settings),
                self._config,
                self._limits,
                self._policy,
                self._ask,
                shared_client=shared,
                telemetry=telemetry,
            )
        self._engine.users += 1
        return self._engine

    async def _leave(self, engine: Engine) -> None:
        """One user of an engine is done; the last one stops it."""
        engine.users -= 1
        if engine.users == 0:
            await self._close(engine)

    async def _close(self, engine: Engine) -> None:
        if engine is self._engine:
            self._engine = None
            await engine.stop()

    def _handle(self, engine: Engine, run_id: str) -> RunHandle:
        return RunHandle(self._store, engine, run_id, partial(self._leave, engine))

    def _new_run(
        self,
        engine: Engine,
        version: AgentVersion,
        message: Message,
        thread_id: str | None,
        context: Mapping[str, Any],
        limits: Limits | None,
        user_id: str | None,
        trace_context: str | None,
    ) -> NewRun:
        mode = None if self._ask is None else InteractionMode.EXTERNAL
        overrides = AgentOverrides(limits=limits, interaction_mode=mode)
        resolved = resolve(version, overrides, self._limits)
        return NewRun(
            run_id=str(uuid7()),
            thread_id=thread_id or str(uuid7()),
            thread_key=str(uuid7()),
            agent=version,
            input=(message,),
            overrides=overrides,
            context=context,
            user_id=user_id,
            trace_context=trace_context,
            opening=None if thread_id else first_write(resolved, context, (message,), engine.tools, self._policy),
        )

    def _keep(self, agent: Agent, engine: Engine) -> AgentVersion:
        """Make an agent, its subagents and their tools known; the agent's version. Raises InvalidArgument."""
        check_agent(agent, engine.tools, self._check_model)
        versions: dict[str, AgentVersion] = {}
        for each in agent.family():
            for function in each.tools:
                engine.tools.register(function)
            name = each.definition.name
            if name not in versions:
                versions[name] = AgentVersion(str(uuid7()), each.definition)
                self._store.put_agent_version(versions[name])
        return versions[agent.definition.name]

    def _check_model(self, model: str) -> str | None:
        """What is wrong with a model's name; a client of the caller's own may know any."""
        return None if self._models is None else check_model_name(model, self._models)

    def _client(self, telemetry: InProcess | None) -> ModelClient:
        if self._model_client is not None:
            return self._model_client if telemetry is None else telemetry.model(self._model_client)
        self._models = self._model_config()
        if telemetry is None:
            return build_model_client(self._models, cache=self._cache)
        return build_model_client(self._models, cache=self._cache, metrics=telemetry.metrics, tracing=telemetry.tracing)

    def _model_config(self) -> ModelConfig:
        settings = Settings.load()
        config = self._config
        return ModelConfig(
            openai_api_key=config.openai_api_key or settings.openai_api_key.get_secret_value() or None,
            openai_base_url=config.openai_base_url or settings.openai_base_url,
            anthropic_api_key=config.anthropic_api_key or settings.anthropic_api_key.get_secret_value() or None,
            anthropic_base_url=config.anthropic_base_url or settings.anthropic_base_url,
            anthropic_prompt_caching=settings.anthropic_prompt_caching,
            scripts_dir=config.scripts_dir,
            providers=read_providers(settings.providers_file, os.environ) if settings.providers_file else {},
        )


async def _result_of(handle: RunHandle) -> AgentResult:
    """Its caller has no handle: one that is cut off must not leave the run's connections open."""
    try:
        return await handle.await_result()
    finally:
        await handle.close()


def _telemetry(kind: TelemetryKind | None, *, content: bool) -> InProcess | None:
    if kind is None or sdk_disabled(os.environ):
        return None
    # Imported where it is asked for: most programs do without the SDK's traces.
    from app.runner.telemetry import InProcess

    return InProcess(kind, content=content)
