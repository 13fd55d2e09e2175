"""Runs: create them, wait for them, steer them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from uuid_utils.compat import uuid7

from app.db.claims import count_queued
from app.db.conflicts import again_if_undone
from app.db.database import Database
from app.db.deletion import delete_run
from app.db.rows import run_uuid
from app.db.run_store import PostgresRunStore
from app.engine.agent import AgentDefinition, AgentOverrides, AgentVersion, resolve
from app.engine.events import EventType
from app.engine.first_write import first_write
from app.engine.limits import SERVICE_LIMITS, RunLimits
from app.engine.messages import Message
from app.engine.moves import waits_outside
from app.engine.ownership import Created
from app.engine.policy import PolicyEngine
from app.engine.ports import Executor
from app.engine.records import IdempotencyKey, NewRun, OnBusyThread, OnDisconnect, RunRecord
from app.engine.status import RunStatus
from app.engine.store_errors import AgentChanged, StoreUnavailable
from app.engine.tools import ToolPort
from app.event_bus.memory import MemoryBus, Subscription
from app.services.agents import AgentService, ResolvedRef
from app.services.errors import Invalid, TooManyRuns, UnknownAgent
from app.services.run_control import RunControl
from app.telemetry.trace_context import no_text

AGENT_TRIES = 3
COUNT_TTL_S = 1.0

# What may end a wait; everything else is only progress.
_CLOSING = frozenset(
    {
        EventType.RUN_COMPLETED,
        EventType.RUN_FAILED,
        EventType.RUN_CANCELLED,
        EventType.RUN_INTERRUPTED,
        EventType.RUN_PAUSED,
        EventType.RUN_WAITING,
    }
)


@dataclass(frozen=True, slots=True)
class CreateRun:
    """What a caller asks for.

    Args:
        agent: `name`, `name@version`, or an inline definition.
        thread_id: None for a thread of its own.
        start_after: the run joins its thread's line at that time.
    """

    agent: str | AgentDefinition
    input: tuple[Message, ...]
    thread_id: str | None = None
    context: Mapping[str, Any] = field(default_factory=dict[str, Any])
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    overrides: AgentOverrides = field(default_factory=AgentOverrides)
    on_busy_thread: OnBusyThread = OnBusyThread.ENQUEUE
    on_disconnect: OnDisconnect = OnDisconnect.CONTINUE
    start_after: datetime | None = None
    user_id: str | None = None
    tenant_id: str = ""


@dataclass(frozen=True, slots=True)
class CreatedMany:
    """Runs in the order asked for; `replayed` if they are those of an earlier request with the same key."""

    runs: list[RunRecord]
    replayed: bool


class RunService(RunControl):
    """
    Args:
        backlog: whether queued runs are known to wait; a new one then joins them instead of passing them.
        max_queued: how many runs may be queued over all replicas.
        policy: the operator's rules, which may have a say in a run's first step.
        trace_context: what a run is part of that is made now; see `NewRun.trace_context`.

    Raises (all methods that wait): `StoreUnavailable` when the database cannot be reached.
    """

    def __init__(
        self,
        database: Database,
        store: PostgresRunStore,
        agents: AgentService,
        tools: ToolPort,
        policy: PolicyEngine,
        executor: Executor,
        bus: MemoryBus,
        *,
        backlog: Callable[[], bool],
        max_queued: int,
        defaults: RunLimits = SERVICE_LIMITS,
        trace_context: Callable[[], str | None] = no_text,
    ) -> None:
        super().__init__(store, bus)
        self._database = database
        self._store = store
        self._agents = agents
        self._tools = tools
        self._policy = policy
        self._executor = executor
        self._bus = bus
        self._backlog = backlog
        self._max_queued = max_queued
        self._defaults = defaults
        self.trace_context = trace_context
        self._closing = False
        self._waiting: set[Subscription] = set()
        self._queued = 0
        self._counted_at = float("-inf")

    def close(self) -> None:
        """This replica stops: whoever waits here is told to go elsewhere."""
        self._closing = True
        for reader in self._waiting:
            reader.poke()

    def stays(self) -> None:
        """Asked before a run is made for a caller who stays for it.

        Raises:
            StoreUnavailable: this replica stops, so the caller should make it elsewhere.
        """
        if self._closing:
            raise StoreUnavailable("this replica is shutting down; send the request elsewhere")

    async def create(self, command: CreateRun, idempotency: IdempotencyKey | None = None) -> Created:
        """Create a run; where this replica has room it starts at once.

        Raises:
            UnknownAgent, UnknownTool, Invalid: the request names what is not there.
            ThreadBusy: `on_busy_thread` is reject and the thread is held.
            TooManyRuns: the queue is full.
            IdempotencyMismatch: the key was used with another request.
        """
        self._agents.check_overrides(command.overrides)
        claims = self._executor.has_room() and not self._backlog() and command.start_after is None
        if not claims or command.thread_id is not None:
            await self._check_queue(1)
        run_id = str(uuid7())
        refs: list[ResolvedRef] = []
        for _ in range(AGENT_TRIES):
            ref = await self._agents.resolve(command.agent, command.tenant_id)
            refs = [ref]
            new = self._new_run(run_id, command, ref, idempotency, opens=claims and command.thread_id is None)
            try:
                created = await self._store.create(new, owner=self._executor.owner if claims else None)
                break
            except AgentChanged:
                self._agents.forget(ref.version.definition.name, command.tenant_id)
        else:
            raise _changing(refs)
        self._created(created, ref.version)
        return created

    async def create_many(
        self, commands: Sequence[CreateRun], idempotency: IdempotencyKey | None = None
    ) -> CreatedMany:
        """Create all of these runs or none of them; raises as `create` does."""
        await self._check_queue(len(commands))
        refs: list[ResolvedRef] = []
        for _ in range(AGENT_TRIES):
            refs = [await self._resolved(index, command) for index, command in enumerate(commands)]
            news = [
                self._new_run(str(uuid7()), command, ref, None, opens=False)
                for command, ref in zip(commands, refs, strict=True)
            ]
            try:
                created, replayed = await self._store.create_many(news, idempotency)
                break
            except AgentChanged:
                for ref, command in zip(refs, commands, strict=True):
                    self._agents.forget(ref.version.definition.name, command.tenant_id)
        else:
            raise _changing(refs)
        for one in created:
            for stopped in one.stopped:
                self._stopped(stopped)
        self._queued += len(created)
        self._bus.queued()
        return CreatedMany([one.run for one in created], replayed)

    async def enqueue(self, make: Callable[[], Awaitable[Created]]) -> Created:
        """Have a run made that waits in the queue, and tell who claims.

        Raises:
            TooManyRuns: the queue is full, and nothing was made; and whatever `make` raises.
        """
        await self._check_queue(1)
        created = await make()
        self._announce(created)
        return created

    async def get(self, run_id: str) -> RunRecord:
        """Raises: RunNotFound."""
        return await self._store.get(run_id)

    async def wait(self, run_id: str, timeout_s: float, *, just_started: bool = False) -> RunRecord:
        """The run once it is terminal, paused, or waits for someone outside; as it stands at the timeout.

        Waiting for child runs alone is not waiting for someone outside.

        Args:
            just_started: the run was claimed here as it was created, and nothing was awaited since: it cannot have
                ended yet, and its end cannot be missed.

        Raises:
            RunNotFound: there is no such run, or it was deleted meanwhile.
            StoreUnavailable: this replica stops while the caller waits; the run goes on elsewhere.
        """
        deadline = time.monotonic() + timeout_s
        run_id = str(run_uuid(run_id))  # as events name it
        with self._bus.subscribe(run_id) as reader, self._counted(reader):
            while True:
                if not just_started:
                    run = await self._store.get(run_id)
                    if _is_at_rest(run):
                        return run
                    reader.cursors[run_id] = run.last_event_seq
                just_started = False
                if self._closing:
                    raise StoreUnavailable("this replica is shutting down; wait for the run elsewhere")
                if not await _closing_event(reader, run_id, deadline):
                    return await self._store.get(run_id)

    @again_if_undone
    async def delete(self, run_id: str) -> None:
        """Remove a terminal run with its events, checkpoints, tool executions and questions, and its child runs with
        theirs; its messages stay in the thread.

        Raises:
            RunNotFound, RunConflict.
        """
        async with self._database.transaction() as connection:
            await delete_run(connection, run_id)

    async def _resolved(self, index: int, command: CreateRun) -> ResolvedRef:
        """The agent of one of several runs; a refusal says which of them it is."""
        try:
            self._agents.check_overrides(command.overrides)
            return await self._agents.resolve(command.agent, command.tenant_id)
        except Invalid as error:
            error.loc = ("body", "items", index, *error.loc[1:])
            raise
        except UnknownAgent as error:
            raise UnknownAgent(f"items.{index}: {error}") from error

    @contextmanager
    def _counted(self, reader: Subscription) -> Generator[None]:
        self._waiting.add(reader)
        try:
            yield
        finally:
            self._waiting.discard(reader)

    def _new_run(
        self,
        run_id: str,
        command: CreateRun,
        ref: ResolvedRef,
        idempotency: IdempotencyKey | None,
        *,
        opens: bool,
    ) -> NewRun:
        opening = None
        if opens:
            agent = resolve(ref.version, command.overrides, self._defaults)
            opening = first_write(agent, command.context, command.input, self._tools, self._policy)
        return NewRun(
            run_id=run_id,
            thread_id=command.thread_id or str(uuid7()),
            thread_key=str(uuid7()),
            agent=ref.version,
            input=command.input,
            tenant_id=command.tenant_id,
            agent_check=ref.check_name,
            overrides=command.overrides,
            context=command.context,
            metadata=command.metadata,
            user_id=command.user_id,
            on_busy_thread=command.on_busy_thread,
            on_disconnect=command.on_disconnect,
            start_after=command.start_after,
            idempotency=idempotency,
            opening=opening,
            trace_context=self.trace_context(),
        )

    def _created(self, created: Created, version: AgentVersion) -> None:
        for stopped in created.stopped:
            self._stopped(stopped)
        if created.claim is not None:
            self._executor.start(created.claim, created.run, version)
            self._bus.publish(created.run.run_id, created.events)
        self._announce(created)

    def _announce(self, created: Created) -> None:
        run = created.run
        if created.claim is None and not created.replayed and run.status is RunStatus.QUEUED:
            self._queued += 1
            self._bus.queued()
        self._bus.publish(run.thread_key, ())

    async def _check_queue(self, count: int) -> None:
        """Raises TooManyRuns if the queue is full. The count is a second old at most, and exact where it refuses."""
        if time.monotonic() - self._counted_at > COUNT_TTL_S or self._queued + count > self._max_queued:
            async with self._database.connection() as connection:
                self._queued = await count_queued(connection, self._max_queued)
            self._counted_at = time.monotonic()
        if self._queued + count > self._max_queued:
            raise TooManyRuns(
                f"{self._queued} runs are queued and {self._max_queued} may be (MAX_QUEUED_RUNS); try again later",
                retry_after_s=1,
            )


def _is_at_rest(run: RunRecord) -> bool:
    """Whether a run does nothing more until somebody outside acts."""
    if run.status is RunStatus.WAITING:
        return waits_outside(run.waiting_for)
    return run.status.terminal or run.status is RunStatus.PAUSED


def _changing(refs: Sequence[ResolvedRef]) -> AgentChanged:
    """That one of these agents had another version each time."""
    names = sorted({ref.check_name for ref in refs if ref.check_name is not None})
    which = f"the agent {names[0]!r}" if len(names) == 1 else f"one of the agents {', '.join(map(repr, names))}"
    return AgentChanged(f"{which} is being changed again and again; try again")


async def _closing_event(reader: Subscription, run_id: str, deadline: float) -> bool:
    """Wait for what may be the end of the run; False if the time was up first."""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not await reader.wait(left):
            return False
        events = reader.take()
        if events:
            reader.cursors[run_id] = max(event.seq for _, event in events)
        if reader.stale() or any(event.type in _CLOSING for _, event in events):
            return True
