"""What the contract is tested with: the stores, runs to create, and an owner that drives a run by hand."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from app.db import heartbeats, recovery
from app.db.claims import promote_due
from app.db.database import Database
from app.db.deletion import delete_run
from app.db.heartbeats import Process
from app.db.memory import MemoryStore
from app.db.run_store import PostgresRunStore
from app.db.thread_store import PostgresThreads
from app.engine.agent import AgentDefinition, AgentVersion
from app.engine.apply import closing_event
from app.engine.effects import ToolEffect
from app.engine.errors import RunError
from app.engine.events import Event, EventType, StoredEvent
from app.engine.limits import Limits
from app.engine.messages import Message, Role, ToolCall
from app.engine.moves import Stimuli
from app.engine.ownership import Claim, Committed, DeltaOutcome, DeltaWrite, Fence, Woken, Write
from app.engine.ports import RunStore, ThreadStore
from app.engine.records import NewRun, Opening
from app.engine.state import Checkpoint, OpenCall, Phase, RunState, checkpoint_of
from app.engine.status import RunStatus
from app.engine.tools import ToolResult
from app.engine.transition import ToolRecord
from app.engine.usage import Usage

_ids = itertools.count(1)


def new_id() -> str:
    return str(UUID(int=next(_ids)))


OWNER, OTHER_OWNER = new_id(), new_id()
_DEFINITION = AgentDefinition(name="helper", model="scripted/answer", limits=Limits(max_steps=5))
OLD_AGENT = AgentVersion(new_id(), _DEFINITION.model_copy(update={"instructions": "old"}), 1)
AGENT = AgentVersion(new_id(), _DEFINITION, 2)

STOPPED = RunError("stopped_by_test", "the test stopped it")


# --- the stores ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A store that knows `OLD_AGENT` and `AGENT`, the latter as its agent's current version.

    `promote_due` lets runs whose `start_after` has come join their threads' lines; `delete_run` removes a terminal run.
    `crash` is the death of `OWNER`, as recovery finds it; it gives the ids of the runs that are given up for it.
    """

    store: RunStore
    threads: ThreadStore
    promote_due: Callable[[], Awaitable[list[str]]]
    delete_run: Callable[[str], Awaitable[None]]
    crash: Callable[[], Awaitable[list[str]]]


class TickingClock:
    """A clock that moves a millisecond every time it is read."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now


def memory_subject() -> Subject:
    clock = TickingClock()
    store = MemoryStore(clock)
    store.put_agent_version(OLD_AGENT)
    store.put_agent_version(AGENT)

    async def due() -> list[str]:
        return store.promote_due(clock())

    async def delete(run_id: str) -> None:
        store.delete_run(run_id)

    async def crash() -> list[str]:
        return [stopped.run.run_id for stopped in store.requeue_orphans(OWNER)]

    return Subject(store, store, due, delete, crash)


async def postgres_subject(database: Database) -> Subject:
    async with database.transaction() as connection:
        for agent in (OLD_AGENT, AGENT):
            definition = agent.definition
            await connection.execute(
                """INSERT INTO agent_versions (version_id, name, version, content_hash, source, definition)
                   VALUES ($1, $2, $3, $4, 'api', $5::json)""",
                agent.version_id,
                definition.name,
                agent.version,
                definition.content_hash(),
                definition.model_dump_json(),
            )
        await connection.execute(
            "INSERT INTO agents (name, version, version_id, source) VALUES ($1, $2, $3, 'api')",
            AGENT.definition.name,
            AGENT.version,
            AGENT.version_id,
        )

    async def due() -> list[str]:
        async with database.transaction() as connection:
            return await promote_due(connection, 100)

    async def delete(run_id: str) -> None:
        async with database.transaction() as connection:
            await delete_run(connection, run_id)

    async def crash() -> list[str]:
        async with database.transaction() as connection:
            await heartbeats.beat(connection, OTHER_OWNER, Process("host", 1), draining=False)
            _, given_up = await recovery.requeue_orphans(connection, OTHER_OWNER, 60, 100)
            for run_id in given_up:
                await recovery.poison(connection, run_id)
        return given_up

    return Subject(PostgresRunStore(database), PostgresThreads(database), due, delete, crash)


# --- runs ---------------------------------------------------------------------------------------------------


def user(text: str) -> Message:
    return Message(Role.USER, text)


def a_run(thread_id: str | None = None, text: str = "hello", **fields: Any) -> NewRun:
    """A run on its own thread, or on the thread of the name."""
    run_id = new_id()
    parts: dict[str, Any] = {
        "run_id": run_id,
        "thread_id": thread_id or f"thread-of-{run_id}",
        "thread_key": new_id(),
        "agent": AGENT,
        "input": (user(text),),
    }
    return NewRun(**parts | fields)


def opening_of(new: NewRun) -> Opening:
    """What the first write of a run on a new thread commits."""
    return Opening((STARTED, *begins(1)), checkpoint_of(RunState()), checkpoint_after=1)


STARTED = Event(EventType.RUN_STARTED, 1, {"agent_name": "helper", "agent_version": 2})
RESUMED = Event(EventType.RUN_RESUMED, 1, {"reason": "drain", "attempt": 2, "from_seq": 1})


def begins(step: int) -> tuple[Event, ...]:
    called = {"model": "scripted/answer", "provider": "scripted", "message_count": 1}
    return Event(EventType.STEP_STARTED, step, {"step": step}), Event(EventType.LLM_CALLED, step, called)


def answered(step: int, text: str = "") -> Event:
    return Event(EventType.LLM_COMPLETED, step, {"text": text})


def delta(text: str) -> Event:
    return Event(EventType.TEXT_DELTA, 1, {"delta": text})


def paused(step: int) -> Event:
    return Event(EventType.RUN_PAUSED, step, {"reason": "requested"}, RunStatus.PAUSED)


def call(index: int = 0, name: str = "look") -> OpenCall:
    return OpenCall(index, ToolCall(f"call-{index}", name, '{"q": 1}'), ToolEffect.READ_ONLY)


def result(text: str = "found") -> ToolResult:
    return ToolResult(True, f'"{text}"', None, text, 1.5)


# --- an owner -----------------------------------------------------------------------------------------------


@dataclass
class Owner:
    """The owner of a run: it writes what an attempt writes, and moves its fence on with every write."""

    store: RunStore
    new: NewRun
    fence: Fence
    thread_key: str
    step: int = 1
    usage: Usage = field(default_factory=Usage)
    calls: tuple[OpenCall, ...] = ()
    wakes: int = 0

    @property
    def run_id(self) -> str:
        return self.new.run_id

    async def try_write(self, *events: Event, **parts: Any) -> Committed | Woken | None:
        """Any write at all."""
        fields: dict[str, Any] = {"step": self.step, "usage": self.usage, "cost_usd": Decimal(0), "wakes": self.wakes}
        write = Write(self.new.identity, events, **fields | parts)
        committed = await self.store.commit(self.fence, self.thread_key, write)
        if isinstance(committed, Committed):
            self.fence = committed.fence
        return committed

    async def write(self, *events: Event, **parts: Any) -> Committed | None:
        """A write of an owner who has seen all that others have stored."""
        committed = await self.try_write(*events, **parts)
        assert not isinstance(committed, Woken), "others have stored something"
        return committed

    async def look(self) -> Stimuli:
        """See what others have stored."""
        stimuli = await self.store.stimuli(self.run_id)
        self.wakes = stimuli.wakes
        return stimuli

    async def surely(self, *events: Event, **parts: Any) -> Committed:
        committed = await self.write(*events, **parts)
        assert committed is not None, "the fence was lost"
        return committed

    async def start(self, **parts: Any) -> Committed:
        """The first write: the input joins the thread, and step 1 begins."""
        fields: dict[str, Any] = {
            "opening": begins(1),
            "start": self.new.input,
            "checkpoint": checkpoint_of(RunState()),
        }
        return await self.surely(STARTED, **fields | parts)

    async def ask(self, *names: str, **parts: Any) -> Committed:
        """The model asked for calls of these tools; they are marked as started."""
        calls = tuple(call(i, name) for i, name in enumerate(names))
        self.calls = tuple(replace(call, started=True) for call in calls)
        self.usage += Usage(llm_calls=1, input_tokens=10, output_tokens=5)
        fields: dict[str, Any] = {
            "messages": (Message(Role.ASSISTANT, "", tuple(call.call for call in calls)),),
            "records": tuple(ToolRecord(self.step, call) for call in self.calls),
            "checkpoint": self.checkpoint(Phase.EXECUTE_TOOLS),
            "opening": (Event(EventType.TOOL_BATCH_STARTED, self.step, {"tool_call_count": len(calls)}),),
        }
        return await self.surely(answered(self.step), **fields | parts)

    async def end_call(self, index: int, outcome: ToolResult | None = None) -> Committed:
        """One call ended; the batch goes on."""
        ended = replace(self.calls[index], result=outcome or result())
        self.calls = tuple(ended if call.index == index else call for call in self.calls)
        event = Event(EventType.TOOL_COMPLETED, self.step, {"tool_call_id": ended.call.id})
        return await self.surely(event, records=(ToolRecord(self.step, ended),))

    async def close_step(self, **parts: Any) -> Committed:
        """The batch is over and the next step begins: a step boundary."""
        done = self.step
        self.step += 1
        self.calls = ()
        fields: dict[str, Any] = {
            "messages": (Message(Role.TOOL, "found", tool_call_id="call-0"),),
            "checkpoint": self.checkpoint(Phase.CALL_MODEL),
            "opening": begins(self.step),
            "on_pause": (paused(self.step),),
            "progress": True,
        }
        return await self.surely(Event(EventType.TOOL_COMPLETED, done, {}), **fields | parts)

    async def finish(self, status: RunStatus = RunStatus.COMPLETED, text: str = "done", **parts: Any) -> Committed:
        """The last write, for any terminal status that an owner gives."""
        error = None if status is RunStatus.COMPLETED else STOPPED
        fields: dict[str, Any] = {
            "messages": (Message(Role.ASSISTANT, text),),
            "opening": (closing_event(RunState(step=self.step), status, text, error),),
            "status": status,
            "result": {"final_text": text},
            "error": error,
        }
        return await self.surely(answered(self.step, text), **fields | parts)

    async def say(self, *texts: str) -> Committed | DeltaOutcome:
        """Append text deltas."""
        deltas = DeltaWrite(self.fence, self.new.identity, tuple(delta(text) for text in texts))
        (answer,) = await self.store.append_deltas([deltas])
        if isinstance(answer, Committed):
            self.fence = answer.fence
        return answer

    def checkpoint(self, phase: Phase) -> Checkpoint:
        return checkpoint_of(RunState(step=self.step, phase=phase, usage=self.usage))


async def create_owned(store: RunStore, new: NewRun | None = None, owner: str = OWNER) -> Owner:
    """Create a run that is claimed at once."""
    new = new or a_run()
    created = await store.create(new, owner=owner)
    assert created.claim is not None, "the run was not claimed"
    return owner_of(store, new, created.claim)


async def create_started(store: RunStore, new: NewRun | None = None) -> Owner:
    """Create a run that is claimed and has made its first write."""
    owner = await create_owned(store, new)
    await owner.start()
    return owner


async def claim_only(store: RunStore, new: NewRun, owner: str = OWNER) -> Owner:
    """Claim what is there to claim, which is this run alone."""
    (claim,) = await store.claim(owner, 10)
    assert claim.fence.run_id == new.run_id
    return owner_of(store, new, claim)


def owner_of(store: RunStore, new: NewRun, claim: Claim) -> Owner:
    return Owner(store, new, claim.fence, claim.thread_key, wakes=claim.wakes)


async def run_in(store: RunStore, status: RunStatus, new: NewRun | None = None) -> NewRun:
    """A run in this status, which has written its input unless it never left the queue."""
    if status is RunStatus.QUEUED:
        new = new or a_run()
        await store.create(new, owner=None)
        return new
    owner = await create_started(store, new)
    match status:
        case RunStatus.PAUSED:
            await store.pause(owner.run_id)
            await owner.ask("look")
            await owner.close_step()
        case RunStatus.WAITING:
            await owner.write(answered(1), status=RunStatus.WAITING)
        case RunStatus.CANCELLED | RunStatus.INTERRUPTED:
            await store.stop(owner.run_id, status, STOPPED)
        case RunStatus.COMPLETED | RunStatus.DEGRADED | RunStatus.FAILED:
            await owner.finish(status)
        case RunStatus.RUNNING | RunStatus.QUEUED:
            pass
    assert (await store.get(owner.run_id)).status is status
    return owner.new


# --- looking ------------------------------------------------------------------------------------------------


async def events_of(store: RunStore, run_id: str) -> list[StoredEvent]:
    return await store.read_events(run_id, 0, 1000)


async def types_of(store: RunStore, run_id: str) -> list[str]:
    return [event.type for event in await events_of(store, run_id)]


async def texts_of(store: RunStore, thread_key: str) -> list[str]:
    return [entry.message.text() for entry in await store.messages_after(thread_key, 0)]
