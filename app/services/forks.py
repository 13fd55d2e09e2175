"""Forks: runs that go on, on a thread of their own, from where another run stood."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uuid_utils.compat import uuid7

from app.db.fork import ForkPoint, ForkRequest
from app.db.run_store import PostgresRunStore
from app.engine.agent import AgentDefinition, AgentOverrides
from app.engine.messages import Message
from app.engine.ownership import Created
from app.engine.records import ForkedFrom, IdempotencyKey, NewRun, RunRecord
from app.engine.state import Phase
from app.engine.store_errors import AgentChanged
from app.services.agents import AgentService, ResolvedRef
from app.services.errors import Invalid, NotFound
from app.services.run_queries import checkpoint_seq, no_checkpoint
from app.services.runs import AGENT_TRIES, RunService

_NO_OVERRIDES = AgentOverrides()


@dataclass(frozen=True, slots=True)
class ForkRun:
    """What a caller asks for. None: as the run that is forked has it.

    Args:
        checkpoint_id: None for the run's last checkpoint, or its start if it has not begun.
        thread_id: of the fork's thread, which must not be there; None for a new id.
        input: None to go on with the messages as they are.
        agent: `name`, `name@version`, or an inline definition; the run's overrides do not go with it.
    """

    run_id: str
    checkpoint_id: str | None = None
    thread_id: str | None = None
    input: tuple[Message, ...] | None = None
    agent: str | AgentDefinition | None = None
    context: Mapping[str, Any] | None = None
    tenant_id: str = ""


@dataclass(frozen=True, slots=True)
class _Ids:
    """The ids of a fork. They are made once, so that it can be sent again and happen once."""

    run_id: str
    thread_id: str
    thread_key: str


class ForkService:
    """
    Args:
        runs: keeps the queue within its bound, and tells who claims.
    """

    def __init__(self, store: PostgresRunStore, agents: AgentService, runs: RunService) -> None:
        self._store = store
        self._agents = agents
        self._runs = runs

    async def fork(self, command: ForkRun, idempotency: IdempotencyKey | None = None) -> Created:
        """Make a run that goes on from a checkpoint of another, whatever has become of that one; it waits in the queue.

        It is a first run with counters and limits of its own. Calls that the checkpoint left open are not executed: the
        model reads that they have no result.

        Raises:
            RunNotFound: there is no such run.
            NotFound: it has no such checkpoint.
            UnknownAgent, UnknownTool, Invalid: the request names what is not there; or an input is needed, because the
                checkpoint does not stand before a model call.
            ThreadExists: there is a thread of that id.
            TooManyRuns: the queue is full.
            IdempotencyMismatch: the key was used with another request.
            StoreUnavailable: the database cannot be reached.
        """
        checkpoint = None if command.checkpoint_id is None else checkpoint_seq(command.checkpoint_id)
        if command.checkpoint_id is not None and checkpoint is None:
            raise no_checkpoint(command.run_id, command.checkpoint_id)
        key = str(uuid7())
        ids = _Ids(str(uuid7()), command.thread_id or key, key)

        async def send(ref: ResolvedRef | None) -> Created:
            def plan(point: ForkPoint) -> NewRun:
                return _new_run(command, ids, ref, point, self._runs.trace_context())

            request = ForkRequest(command.run_id, checkpoint, ids.run_id, command.tenant_id, idempotency, plan)
            return await self._store.fork(request)

        if command.agent is None:
            return await self._runs.enqueue(lambda: send(None))
        for _ in range(AGENT_TRIES):
            ref = await self._agents.resolve(command.agent, command.tenant_id)
            try:
                return await self._runs.enqueue(lambda ref=ref: send(ref))
            except AgentChanged:
                self._agents.forget(ref.version.definition.name, command.tenant_id)
        raise AgentChanged(f"the agent {command.agent!r} is being changed again and again; try again")


def _new_run(
    command: ForkRun, ids: _Ids, ref: ResolvedRef | None, point: ForkPoint, trace_context: str | None
) -> NewRun:
    source = point.run
    return NewRun(
        run_id=ids.run_id,
        thread_id=ids.thread_id,
        thread_key=ids.thread_key,
        agent=point.agent if ref is None else ref.version,
        input=_input(command, point),
        tenant_id=source.tenant_id,
        agent_check=None if ref is None else ref.check_name,
        overrides=_overrides(source) if ref is None else _NO_OVERRIDES,
        context=source.context if command.context is None else command.context,
        metadata=source.metadata,
        user_id=source.user_id,
        forked_from=ForkedFrom(source.run_id, point.checkpoint_id),
        trace_context=trace_context,
    )


def _input(command: ForkRun, point: ForkPoint) -> tuple[Message, ...]:
    """What joins the fork's thread.

    Raises:
        NotFound: the checkpoint is not there, or no longer.
        Invalid: there must be an input, and none is given.
    """
    source = point.run
    if point.checkpoint_id is None and command.checkpoint_id is not None:
        raise no_checkpoint(source.run_id, command.checkpoint_id)
    if point.checkpoint_id is None and source.step > 0:
        raise NotFound(f"the checkpoints of the run {source.run_id} are no longer kept")
    if command.input is not None:
        return command.input
    if point.next_action is not Phase.CALL_MODEL:
        message = f"needed: the next action of checkpoint {point.checkpoint_id} is {point.next_action}, not call_model"
        raise Invalid(message, ("body", "input"))
    return source.input if point.checkpoint_id is None else ()


def _overrides(source: RunRecord) -> AgentOverrides:
    """The run's own. A child run's limits are no caller's: they are its share of what its parent had left."""
    overrides = source.overrides
    if source.parent_run_id is None or overrides.limits is None:
        return overrides
    return overrides.model_copy(update={"limits": None})
