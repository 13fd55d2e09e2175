"""The store on Postgres: each method is one transaction, most of them one statement."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import asyncpg
import orjson

from app.db import claims, reading, steering
from app.db.create import IDEMPOTENCY_TTL, create_run
from app.db.database import CONFLICT_TRIES, CONFLICTS, Connection, Database
from app.db.deltas import append_deltas
from app.db.fenced_write import FencedWrite
from app.engine.errors import RunError
from app.engine.events import StoredEvent
from app.engine.limits import SERVICE_LIMITS, Limits, RunLimits
from app.engine.messages import ThreadMessage
from app.engine.records import (
    Claim,
    Committed,
    Created,
    DeltaOutcome,
    DeltaWrite,
    Fence,
    IdempotencyKey,
    Loaded,
    NewRun,
    OnBusyThread,
    RunRecord,
    Stopped,
    Write,
)
from app.engine.resume import limit_on_resume
from app.engine.status import RunStatus
from app.engine.store_errors import (
    AgentChanged,
    IdempotencyMismatch,
    LimitReached,
    StoreUnavailable,
    ThreadBusy,
)

# How long an owner's write is sent again after the connection broke under it; below two thirds of the shortest lease.
COMMIT_TRIES = 12
COMMIT_PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0

_T = TypeVar("_T")


class PostgresRunStore:
    """`app.engine.ports.RunStore` on Postgres."""

    def __init__(self, database: Database, defaults: RunLimits = SERVICE_LIMITS) -> None:
        self._database = database
        self._defaults = defaults

    # --- creating -----------------------------------------------------------------------------------------------------

    async def create(self, new: NewRun, *, owner: str | None) -> Created:
        if new.on_busy_thread in (OnBusyThread.INTERRUPT, OnBusyThread.ROLLBACK) and new.start_after is None:
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
                earlier = await _take_key(connection, runs[0].tenant_id, idempotency, [run.run_id for run in runs])
                if earlier is not None:
                    known = [await reading.get_run(connection, run_id, with_tools=True) for run_id in earlier]
                    return [Created(run, replayed=True) for run in known], True
            created: dict[str, Created] = {}
            for new in sorted(runs, key=lambda run: run.thread_id):  # one order of locks for all
                create = self._create_first if _goes_first(new) else self._create
                created[new.run_id] = await create(connection, new, None)
            return [created[run.run_id] for run in runs], False

        return await self._in_transaction(work)

    async def _create_surely(self, new: NewRun, owner: str | None) -> Created:
        """One statement outside a transaction, sent again with the same id where the answer was lost."""
        for attempt in range(1, COMMIT_TRIES + 1):
            try:
                async with self._database.connection() as connection:
                    return await self._create(connection, new, owner)
            except asyncpg.UniqueViolationError:
                return await self._created_before(new)
            except (StoreUnavailable, *CONFLICTS) as error:
                if attempt == COMMIT_TRIES or (isinstance(error, StoreUnavailable) and attempt > 2):
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
            earlier = await _runs_of_key(connection, new.tenant_id, new.idempotency)
            return Created(await reading.get_run(connection, earlier[0], with_tools=True), replayed=True)
        raise ThreadBusy(f"thread {new.thread_id} is held by another run")

    async def _create_first(self, connection: Connection, new: NewRun, owner: str | None) -> Created:
        """Stop the thread's holder, then create: the slot is free and the line stays behind the new run."""
        if new.idempotency is not None:
            earlier = await _runs_of_key_if_any(connection, new.tenant_id, new.idempotency)
            if earlier is not None:
                return Created(await reading.get_run(connection, earlier[0], with_tools=True), replayed=True)
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

    async def claim(self, owner: str, limit: int) -> list[Claim]:
        async with self._database.connection() as connection:
            return await claims.claim_runs(connection, owner, limit)

    async def load(self, run_id: str) -> Loaded:
        async with self._database.connection() as connection:
            return await reading.load_run(connection, run_id)

    async def messages_after(self, thread_key: str, seq: int) -> list[ThreadMessage]:
        async with self._database.connection() as connection:
            return await reading.messages_after(connection, thread_key, seq)

    async def commit(self, fence: Fence, thread_key: str, write: Write) -> Committed | None:
        """As the port says. Where the connection breaks under it, the same statement is sent again: if then the fence
        no longer holds, but the run stands exactly one write further, that write was this one."""
        fenced = FencedWrite(fence, thread_key, write)
        ambiguous = False
        for attempt in range(1, COMMIT_TRIES + 1):
            try:
                async with self._database.connection() as connection:
                    committed = await fenced.send(connection)
                    if committed is None and ambiguous:
                        return await _confirm(connection, fenced)
                    return committed
            except CONFLICTS:  # undone as a whole: nothing is ambiguous
                if attempt == COMMIT_TRIES:
                    raise
            except StoreUnavailable:
                if attempt == COMMIT_TRIES:
                    raise
                ambiguous = True
            await asyncio.sleep(min(COMMIT_PAUSE_S * attempt, LONGEST_PAUSE_S))
        raise AssertionError("unreachable")

    async def append_deltas(self, batch: Sequence[DeltaWrite]) -> list[Committed | DeltaOutcome]:
        async with self._database.connection() as connection:
            return await append_deltas(connection, batch)

    async def release(self, fence: Fence, elapsed_s: float) -> bool:
        async with self._database.connection() as connection:
            return await claims.release_run(connection, fence, elapsed_s)

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

    # --- reading ------------------------------------------------------------------------------------------------------

    async def get(self, run_id: str, *, with_tools: bool = True) -> RunRecord:
        async with self._database.connection() as connection:
            return await reading.get_run(connection, run_id, with_tools=with_tools)

    async def read_events(self, run_id: str, after: int, limit: int) -> list[StoredEvent]:
        async with self._database.connection() as connection:
            return await reading.read_events(connection, run_id, after, limit)

    async def _in_transaction(self, work: Callable[[Connection], Awaitable[_T]]) -> _T:
        """Run `work` in a transaction, again from the start where Postgres asks for that."""
        for attempt in range(1, CONFLICT_TRIES + 1):
            try:
                async with self._database.transaction() as connection:
                    return await work(connection)
            except CONFLICTS:
                if attempt == CONFLICT_TRIES:
                    raise
                await asyncio.sleep(0.01 * attempt)
        raise AssertionError("unreachable")


def _goes_first(new: NewRun) -> bool:
    return new.on_busy_thread in (OnBusyThread.INTERRUPT, OnBusyThread.ROLLBACK) and new.start_after is None


async def _confirm(connection: Connection, fenced: FencedWrite) -> Committed | None:
    fence = fenced.fence
    row = await connection.fetchrow(
        """SELECT r.status, r.last_seq, t.next_seq, e.created_at FROM runs r
           JOIN threads t USING (thread_key)
           JOIN run_events e ON e.run_id = r.run_id AND e.seq = r.last_seq
           WHERE r.run_id = $1::uuid AND r.epoch = $2 AND r.write_no = $3""",
        fence.run_id,
        fence.epoch,
        fence.write_no + 1,
    )
    if row is None:
        return None
    status = RunStatus(row["status"])
    first_event = row["last_seq"] - fenced.event_count(status) + 1
    # Should others have appended since, the owner only takes its messages to stand later than they do, and reads again.
    return fenced.committed(status, first_event, row["created_at"], row["next_seq"] - fenced.message_count, None)


async def _take_key(
    connection: Connection, tenant_id: str, idempotency: IdempotencyKey, run_ids: list[str]
) -> list[str] | None:
    """Store a key for these runs; the runs of an earlier request instead, if it is known."""
    taken = await connection.fetchval(
        f"""INSERT INTO idempotency_keys AS k (tenant_id, key, request_hash, resource)
            VALUES ($1, $2, $3, $4::json)
            ON CONFLICT (tenant_id, key) DO UPDATE
            SET request_hash = EXCLUDED.request_hash, resource = EXCLUDED.resource, created_at = clock_timestamp()
            WHERE k.created_at < clock_timestamp() - interval '{IDEMPOTENCY_TTL}'
            RETURNING 1""",
        tenant_id,
        idempotency.key,
        idempotency.request_hash,
        orjson.dumps({"run_ids": run_ids}).decode(),
    )
    return None if taken else await _runs_of_key(connection, tenant_id, idempotency)


async def _runs_of_key(connection: Connection, tenant_id: str, idempotency: IdempotencyKey) -> list[str]:
    runs = await _runs_of_key_if_any(connection, tenant_id, idempotency)
    assert runs is not None, "a key that was just in the way is gone"
    return runs


async def _runs_of_key_if_any(connection: Connection, tenant_id: str, idempotency: IdempotencyKey) -> list[str] | None:
    row = await connection.fetchrow(
        f"""SELECT request_hash, resource FROM idempotency_keys
            WHERE tenant_id = $1 AND key = $2 AND created_at > clock_timestamp() - interval '{IDEMPOTENCY_TTL}'""",
        tenant_id,
        idempotency.key,
    )
    if row is None:
        return None
    resource = orjson.loads(row["resource"])
    if row["request_hash"] != idempotency.request_hash or "run_ids" not in resource:
        raise IdempotencyMismatch("this Idempotency-Key was used with another request; send a new key")
    return resource["run_ids"]
