"""The store on Postgres: each method is one transaction, most of them one statement."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import asyncpg

from app.db import claims, interactions, keys, reading, results, steering
from app.db.conflicts import NotNow, TransactionUndone
from app.db.create import create_run
from app.db.database import Connection, Database
from app.db.deltas import append_again, append_deltas
from app.db.expiry import expire, in_transaction
from app.db.fenced_write import FencedWrite
from app.db.fork import Fork, ForkRequest
from app.db.owner_commit import send_with_others, stands_alone, why_not
from app.db.ready_queue import ReadyQueue
from app.db.stimuli import read_stimuli
from app.engine.agent import AgentVersion
from app.engine.errors import RunError
from app.engine.events import StoredEvent
from app.engine.interactions import Answer, InteractionRecord
from app.engine.limits import SERVICE_LIMITS, Limits, RunLimits
from app.engine.messages import ThreadMessage
from app.engine.moves import Stimuli
from app.engine.ownership import Claim, Committed, Created, DeltaOutcome, DeltaWrite, Fence, Loaded, Woken, Write
from app.engine.records import Expired, IdempotencyKey, NewRun, OnBusyThread, Resolved, RunRecord, Stimulated, Stopped
from app.engine.resume import limit_on_resume
from app.engine.status import RunStatus
from app.engine.store_errors import (
    AgentChanged,
    LimitReached,
    StoreUnavailable,
    ThreadBusy,
)

# How long an owner's write is sent again after the connection broke under it; below two thirds of the shortest lease.
COMMIT_TRIES = 12
COMMIT_PAUSE_S = 0.1
# How often a create, for which a caller waits, bears a broken connection.
CREATE_BREAKS = 2
LONGEST_PAUSE_S = 1.0

_T = TypeVar("_T")


class PostgresRunStore:
    """`app.engine.ports.RunStore` on Postgres."""

    def __init__(self, database: Database, defaults: RunLimits = SERVICE_LIMITS) -> None:
        self._database = database
        self._defaults = defaults
        self._queue = ReadyQueue()

    # --- creating -----------------------------------------------------------------------------------------------------

    async def create(self, new: NewRun, *, owner: str | None) -> Created:
        if _goes_first(new):
            return await self._in_transaction(lambda connection: self._create_first(connection, new, owner))
        if new.idempotency is not None:
            return await self._in_transaction(lambda connection: self._create(connection, new, owner))
        return await self._create_surely(new, owner)

    async def create_many(
        self, runs: Sequence[NewRun], idempotency: IdempotencyKey | None
    ) -> tuple[list[Created], bool]:
        """Create all of these runs or none; none is claimed.

        Returns:
            the runs in the order given, and whether the key was known and they are those of the earlier request.

        Raises:
            ThreadBusy, AgentChanged, IdempotencyMismatch: as `create`.
        """

        async def work(connection: Connection) -> tuple[list[Created], bool]:
            if idempotency is not None:
                earlier = await keys.take(connection, runs[0].tenant_id, idempotency, [run.run_id for run in runs])
                if earlier is not None:
                    known = [await reading.get_run(connection, run_id, with_tools=True) for run_id in earlier]
                    return [Created(run, replayed=True) for run in known], True
            created: dict[str, Created] = {}
            for new in sorted(runs, key=lambda run: run.thread_id):  # one order of locks for all
                create = self._create_first if _goes_first(new) else self._create
                created[new.run_id] = await create(connection, new, None)
            return [created[run.run_id] for run in runs], False

        return await self._in_transaction(work)

    async def fork(self, request: ForkRequest) -> Created:
        """Create a run, queued, on a new thread that begins with messages of another run's: both or neither.

        Where the connection breaks, the same fork is sent again; it is made once.

        Raises:
            RunNotFound: there is no run to fork.
            ThreadExists: the thread that it is to have is there.
            AgentChanged, IdempotencyMismatch: as `create`; and whatever `request.plan` raises.
        """
        fork = Fork(request)

        async def send(_again: bool) -> Created:
            async with self._database.transaction() as connection:
                return await fork.send(connection)

        return await _until_answered(send, breaks=CREATE_BREAKS)

    async def _create_surely(self, new: NewRun, owner: str | None) -> Created:
        """One statement outside a transaction, sent again with the same id where the answer was lost."""
        for attempt in range(1, COMMIT_TRIES + 1):
            try:
                async with self._database.connection() as connection:
                    return await self._create(connection, new, owner)
            except asyncpg.UniqueViolationError:
                return await self._created_before(new)
            except StoreUnavailable as error:
                broke = not isinstance(error, TransactionUndone)
                if attempt == COMMIT_TRIES or isinstance(error, NotNow) or (broke and attempt > CREATE_BREAKS):
                    raise
                await asyncio.sleep(min(COMMIT_PAUSE_S * attempt, LONGEST_PAUSE_S))
        raise AssertionError("unreachable")

    async def _created_before(self, new: NewRun) -> Created:
        """The run exists: an earlier send of the same create took place and its answer was lost."""
        run = await self.get(new.run_id)
        if run.owner is None or run.status is not RunStatus.RUNNING:
            return Created(run)
        fence = Fence(run.run_id, run.epoch, 0 if run.last_event_seq == 0 else 1)
        events = await self.read_events(run.run_id, 0, 100)
        opened = run.last_event_seq > 0
        return Created(run, Claim(fence, run.thread_key, run.attempt, opened, len(new.input)), events=tuple(events))

    async def _create(self, connection: Connection, new: NewRun, owner: str | None) -> Created:
        answer = await create_run(connection, new, owner)
        if answer.created is not None:
            return answer.created
        if answer.agent_changed:
            raise AgentChanged(new.agent.definition.name)
        if answer.key_taken and new.idempotency is not None:
            earlier = await _earlier(connection, new, new.idempotency)
            return earlier or await self._create(connection, replace(new, idempotency=None), owner)
        raise ThreadBusy(f"thread {new.thread_id} is held by another run")

    async def _create_first(self, connection: Connection, new: NewRun, owner: str | None) -> Created:
        """Stop the thread's holder, then create: the slot is free and the line stays behind the new run."""
        if new.idempotency is not None:
            # Before the thread is: its holder may be what this very request has made, sent twice.
            earlier = await _earlier(connection, new, new.idempotency)
            if earlier is not None:
                return earlier
            new = replace(new, idempotency=None)
        holder = await connection.fetchval(
            """INSERT INTO threads (thread_key, tenant_id, thread_id) VALUES ($1::uuid, $2, $3)
               ON CONFLICT (tenant_id, thread_id) DO UPDATE SET updated_at = clock_timestamp()
               RETURNING holder_run_id""",
            new.thread_key,
            new.tenant_id,
            new.thread_id,
        )
        stopped: tuple[Stopped, ...] = ()
        if holder is not None:
            locked = await steering.lock(connection, str(holder))
            rollback = new.on_busy_thread is OnBusyThread.ROLLBACK
            status = RunStatus.CANCELLED if rollback else RunStatus.INTERRUPTED
            reason = RunError("superseded", f"run {new.run_id} took over the thread ({new.on_busy_thread})")
            stopped = (await steering.stop(connection, locked, status, reason, promote=False),)
            if rollback:
                await steering.void_messages(connection, locked.run)
        created = await self._create(connection, new, owner)
        return Created(created.run, created.claim, created.replayed, created.events, stopped)

    # --- owning -------------------------------------------------------------------------------------------------------

    async def claim(self, owner: str, limit: int, *, suspect: bool = False) -> list[Claim]:
        async with self._database.connection() as connection:
            return await self._queue.claim(connection, owner, limit, suspect=suspect)

    async def load(self, run_id: str) -> Loaded:
        async with self._database.connection() as connection:
            return await reading.load_run(connection, run_id)

    async def messages_after(self, thread_key: str, seq: int) -> list[ThreadMessage]:
        async with self._database.connection() as connection:
            return await reading.messages_after(connection, thread_key, seq)

    async def team(self, tenant_id: str, names: Sequence[str]) -> Mapping[str, AgentVersion]:
        async with self._database.connection() as connection:
            return await reading.team(connection, tenant_id, names)

    async def stimuli(self, run_id: str) -> Stimuli:
        async with self._database.connection() as connection:
            return await read_stimuli(connection, run_id)

    async def commit(self, fence: Fence, thread_key: str, write: Write) -> Committed | Woken | None:
        """As the port says. Where the connection breaks under it, the same write is sent again: if then the fence no
        longer holds, but the run stands exactly one write further, that write was this one."""
        fenced = FencedWrite(fence, thread_key, write)
        alone = stands_alone(write)

        async def send(again: bool) -> Committed | Woken | None:
            if alone:
                async with self._database.connection() as connection:
                    committed = await fenced.send(connection)
                    return committed or await why_not(connection, fenced, sent_before=again)
            async with self._database.transaction() as connection:
                committed = await send_with_others(connection, fenced, write)
                return committed or await why_not(connection, fenced, sent_before=again)

        return await _until_answered(send)

    async def append_deltas(self, batch: Sequence[DeltaWrite]) -> list[Committed | DeltaOutcome]:
        """As the port says; sent again as `commit` is."""

        async def send(again: bool) -> list[Committed | DeltaOutcome]:
            if again:
                async with self._database.transaction() as connection:
                    return await append_again(connection, batch)
            async with self._database.connection() as connection:
                return await append_deltas(connection, batch)

        return await _until_answered(send)

    async def release(self, fence: Fence, elapsed_s: float, *, delay_s: float = 0.0) -> bool:
        async with self._database.connection() as connection:
            return await claims.release_run(connection, fence, elapsed_s, delay_s)

    # --- steering -----------------------------------------------------------------------------------------------------

    async def stop(self, run_id: str, status: RunStatus, reason: RunError) -> Stopped:
        async def work(connection: Connection) -> Stopped:
            return await steering.stop(connection, await steering.lock(connection, run_id), status, reason)

        return await self._in_transaction(work)

    async def pause(self, run_id: str) -> Stopped:
        async def work(connection: Connection) -> Stopped:
            return await steering.pause(connection, await steering.lock(connection, run_id))

        return await self._in_transaction(work)

    async def resume(self, run_id: str, limits: Limits | None) -> Stopped:
        async def work(connection: Connection) -> Stopped:
            locked = await steering.lock(connection, run_id)
            if locked.run.status in (RunStatus.FAILED, RunStatus.INTERRUPTED):
                breach = limit_on_resume(await reading.load_run(connection, run_id), limits, self._defaults)
                if breach is not None:
                    raise LimitReached(breach)
            return await steering.resume(connection, locked, limits)

        return await self._in_transaction(work)

    async def answer(self, run_id: str, interaction_id: str, answer: Answer) -> Resolved:
        async def work(connection: Connection) -> Resolved:
            locked = await steering.lock(connection, run_id)
            return await interactions.answer(connection, locked, interaction_id, answer)

        return await self._in_transaction(work)

    async def post_result(self, run_id: str, tool_call_id: str, output: str | None, error: str | None) -> Stimulated:
        async def work(connection: Connection) -> Stimulated:
            locked = await steering.lock(connection, run_id)
            return await results.post(connection, locked, tool_call_id, output, error)

        return await self._in_transaction(work)

    async def expire(self, limit: int) -> Expired:
        return await expire(self._database, limit)

    # --- reading ------------------------------------------------------------------------------------------------------

    async def get(self, run_id: str, *, with_tools: bool = True) -> RunRecord:
        async with self._database.connection() as connection:
            return await reading.get_run(connection, run_id, with_tools=with_tools)

    async def interactions(self, run_id: str) -> list[InteractionRecord]:
        await self.get(run_id, with_tools=False)
        async with self._database.connection() as connection:
            return await interactions.of_run(connection, run_id)

    async def read_events(self, run_id: str, after: int, limit: int) -> list[StoredEvent]:
        async with self._database.connection() as connection:
            return await reading.read_events(connection, run_id, after, limit)

    async def _in_transaction(self, work: Callable[[Connection], Awaitable[_T]]) -> _T:
        return await in_transaction(self._database, work)


def _goes_first(new: NewRun) -> bool:
    return new.on_busy_thread in (OnBusyThread.INTERRUPT, OnBusyThread.ROLLBACK) and new.start_after is None


async def _earlier(connection: Connection, new: NewRun, key: IdempotencyKey) -> Created | None:
    """What an earlier request with this key made; None if there was none, and then the key is this one's."""
    run_ids = await keys.take(connection, new.tenant_id, key, [new.run_id])
    if run_ids is None:
        return None
    return Created(await reading.get_run(connection, run_ids[0], with_tools=True), replayed=True)


async def _until_answered(send: Callable[[bool], Awaitable[_T]], breaks: int = COMMIT_TRIES) -> _T:
    """Send a write until the database answers, over so many broken connections at most.

    Args:
        send: is told if an earlier sending may have taken place.
    """
    again = False
    for attempt in range(1, COMMIT_TRIES + 1):
        try:
            return await send(again)
        except StoreUnavailable as error:
            undone = isinstance(error, TransactionUndone)
            if attempt == COMMIT_TRIES or (not undone and attempt > breaks):
                raise
            if breaks < COMMIT_TRIES and isinstance(error, NotNow):
                raise  # a caller waits, who can come again
            again = again or not undone  # undone as a whole: nothing is ambiguous
        await asyncio.sleep(min(COMMIT_PAUSE_S * attempt, LONGEST_PAUSE_S))
    raise AssertionError("unreachable")
