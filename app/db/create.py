"""Create a run, and claim it at once where that is asked for and the thread is free: one statement.

The thread's slot is taken by the upsert itself (`holder_run_id = COALESCE(holder_run_id, run)`), so that of any number
of creates at the same time exactly one becomes the holder and the others stand in line, numbered by the thread's row.

Lock order: the key, then the thread's row. It is forced by `line` reading from `key`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import asyncpg

from app.db.database import Connection
from app.db.fenced_write import stored_events
from app.db.keys import IDEMPOTENCY_TTL
from app.db.rows import RUN_COLUMNS, json_text, messages_as_json, overrides_as_json, run_from_row
from app.engine.events import encode
from app.engine.ownership import Claim, Created, Fence
from app.engine.records import NewRun, OnBusyThread, Opening


@dataclass(frozen=True, slots=True)
class Parts:
    """Which parts a create has; with it the text of its statement is fixed."""

    key: bool
    agent_check: bool
    reject: bool
    scheduled: bool
    claim: bool
    opening: bool


@dataclass(frozen=True, slots=True)
class CreateAnswer:
    """What the statement said: the run, or which of its conditions did not hold."""

    created: Created | None
    key_taken: bool = False
    agent_changed: bool = False


_KEY = """key AS (
    INSERT INTO idempotency_keys AS k (tenant_id, key, request_hash, resource)
    SELECT $2::text, $23::text, $24::bytea, $25::json {agent}
    ON CONFLICT (tenant_id, key) DO UPDATE
    SET request_hash = EXCLUDED.request_hash, resource = EXCLUDED.resource, created_at = clock_timestamp()
    WHERE k.created_at < clock_timestamp() - interval '{ttl}'
    RETURNING 1)"""

_AGENT = """agent AS (
    SELECT 1 FROM agents
    WHERE tenant_id = $2::text AND name = $8::text AND version_id = $10::uuid AND NOT deleted)"""

# A run that starts later joins the line when it is due: until then it has no place in it.
_LINE_SCHEDULED = """line AS (
    INSERT INTO threads AS t (thread_key, tenant_id, thread_id)
    SELECT $3::uuid, $2::text, $4::text {conditions}
    ON CONFLICT (tenant_id, thread_id) DO UPDATE SET updated_at = clock_timestamp()
    RETURNING thread_key, false AS got, NULL::bigint AS ordinal, next_seq)"""

_LINE = """line AS (
    INSERT INTO threads AS t (thread_key, tenant_id, thread_id, holder_run_id, next_ordinal, next_seq)
    SELECT $3::uuid, $2::text, $4::text, $1::uuid, 2, 1 + {taken} {conditions}
    ON CONFLICT (tenant_id, thread_id) DO UPDATE
    SET holder_run_id = COALESCE(t.holder_run_id, EXCLUDED.holder_run_id),
        queued = t.queued + (t.holder_run_id IS NOT NULL)::int,
        next_ordinal = t.next_ordinal + 1,
        next_seq = t.next_seq + CASE WHEN t.holder_run_id IS NULL THEN {taken} ELSE 0 END,
        updated_at = clock_timestamp()
    {reject}
    RETURNING thread_key, holder_run_id = $1::uuid AS got, next_ordinal - 1 AS ordinal, next_seq)"""

_RUN = """run AS (
    INSERT INTO runs (run_id, tenant_id, thread_key, thread_id, ordinal, root_run_id, agent_name, agent_version,
                      agent_version_id, requested_model, overrides, context, input, metadata, user_id, on_disconnect,
                      status, holds_thread, available_at, owner, epoch, attempt, started_at, write_no, last_seq, step,
                      created_at, forked_from_run_id, forked_from_checkpoint, trace_context)
    SELECT $1::uuid, $2::text, thread_key, $4::text, ordinal, $1::uuid, $8::text, $9::int,
           $10::uuid, $11::text, $12::json, $13::json, $14::json, $15::jsonb, $16::text, $17::text,
           CASE WHEN {claimed} THEN 'running' ELSE 'queued' END, got,
           COALESCE($18::timestamptz, clock_timestamp()),
           CASE WHEN {claimed} THEN $19::uuid END,
           CASE WHEN {claimed} THEN 1 ELSE 0 END, CASE WHEN {claimed} THEN 1 ELSE 0 END,
           CASE WHEN {claimed} THEN clock_timestamp() END,
           CASE WHEN {opened} THEN 1 ELSE 0 END, CASE WHEN {opened} THEN {events} ELSE 0 END,
           CASE WHEN {opened} THEN 1 ELSE 0 END, now(), $20::uuid, $21::bigint, $22::text
    FROM line
    RETURNING {columns})"""

_OPENING = """said AS (
    INSERT INTO messages (thread_key, seq, run_id, role, body)
    SELECT line.thread_key, line.next_seq - $7::int + n - 1, $1::uuid, role, body::json
    FROM line, run, unnest($5::text[], $6::text[]) WITH ORDINALITY AS message(role, body, n) WHERE got),
told AS (
    INSERT INTO run_events (run_id, seq, type, created_at, body)
    SELECT $1::uuid, n, type, run.created_at, body::json
    FROM line, run, unnest(${a}::text[], ${b}::text[]) WITH ORDINALITY AS event(type, body, n) WHERE got),
saved AS (
    INSERT INTO checkpoints (run_id, seq, step, phase, message_seq, state, created_at)
    SELECT $1::uuid, ${c}::bigint, ${d}::int, ${e}::text, line.next_seq - 1, ${f}::json, run.created_at
    FROM line, run WHERE got)"""


@cache
def statement(parts: Parts) -> str:
    """The SQL of a create with these parts. Arguments 1 to 22 are always there, 23 to 25 with a key."""
    conditions = [name for name, there in (("key", parts.key), ("agent", parts.agent_check)) if there]
    opens = parts.claim and parts.opening
    claimed = "(got AND $19::uuid IS NOT NULL)" if parts.claim else "(false AND $19::uuid IS NOT NULL)"
    line = (_LINE_SCHEDULED if parts.scheduled else _LINE).format(
        conditions=f"FROM {', '.join(conditions)}" if conditions else "",
        reject="WHERE t.holder_run_id IS NULL" if parts.reject else "",
        taken="$7::int" if opens else "0 * $7::int",
    )
    number = 26 if parts.key else 23
    events = f"cardinality(${number}::text[])" if opens else "0"
    run = _RUN.format(claimed=claimed, opened="got" if opens else "false", events=events, columns=RUN_COLUMNS)
    texts = [_AGENT] if parts.agent_check else []
    if parts.key:
        texts.append(_KEY.format(ttl=IDEMPOTENCY_TTL, agent="FROM agent" if parts.agent_check else ""))
    texts += [line, run]
    if opens:
        places = {name: str(number + i) for i, name in enumerate("abcdef")}
        texts.append(_OPENING.format(**places))
    key_taken = "NOT EXISTS (SELECT 1 FROM key)" if parts.key else "false"
    agent_changed = "NOT EXISTS (SELECT 1 FROM agent)" if parts.agent_check else "false"
    unused = "" if opens else ", $5::text[] AS roles, $6::text[] AS bodies, $7::int AS messages"
    return f"""WITH {", ".join(texts)}
SELECT {key_taken} AS key_taken, {agent_changed} AS agent_changed, line.next_seq, run.*{unused}
FROM (SELECT 1) AS one LEFT JOIN line ON true LEFT JOIN run ON true"""


async def create_run(connection: Connection, new: NewRun, owner: str | None) -> CreateAnswer:
    """Send the create. No row at all for the run means that a condition did not hold; nothing was then written."""
    scheduled = new.start_after is not None
    claims = owner is not None and not scheduled
    opening = new.opening if claims else None
    parts = Parts(
        key=new.idempotency is not None,
        agent_check=new.agent_check is not None,
        reject=new.on_busy_thread is OnBusyThread.REJECT,
        scheduled=scheduled,
        claim=claims,
        opening=opening is not None,
    )
    values = _arguments(new, owner if claims else None)
    bodies = [] if opening is None else [encode(event, new.identity) for event in opening.events]
    types = [] if opening is None else [event.type.value for event in opening.events]
    if opening is not None:
        values += _opening_arguments(opening, types, bodies)
    row = await connection.fetchrow(statement(parts), *values)
    assert row is not None
    if row["run_id"] is None:
        return CreateAnswer(None, row["key_taken"] and not row["agent_changed"], row["agent_changed"])
    return CreateAnswer(_created(row, opening, types, bodies))


def _created(row: asyncpg.Record, opening: Opening | None, types: list[str], bodies: list[str]) -> Created:
    run = run_from_row(row, [])
    if run.owner is None:
        return Created(run)
    fence = Fence(run.run_id, row["epoch"], row["write_no"])
    if opening is None:
        return Created(run, Claim(fence, run.thread_key, row["attempt"]))
    claim = Claim(fence, run.thread_key, row["attempt"], opened=True, message_seq=row["next_seq"] - 1)
    return Created(run, claim, events=stored_events(1, run.created_at, types, bodies))


def _arguments(new: NewRun, owner: str | None) -> list[Any]:
    agent, overrides, origin = new.agent, new.overrides, new.forked_from
    values: list[Any] = [
        new.run_id,
        new.tenant_id,
        new.thread_key,
        new.thread_id,
        [message.role.value for message in new.input],
        [json_text(message.body()) for message in new.input],
        len(new.input),
        agent.definition.name,
        agent.version,
        agent.version_id,
        overrides.model or agent.definition.model,
        overrides_as_json(overrides),
        json_text(new.context),
        messages_as_json(new.input),
        json_text(new.metadata),
        new.user_id,
        new.on_disconnect.value,
        new.start_after,
        owner,
        None if origin is None else origin.run_id,
        None if origin is None or origin.checkpoint_id is None else int(origin.checkpoint_id),
        new.trace_context,
    ]
    if new.idempotency is not None:
        values += [new.idempotency.key, new.idempotency.request_hash, json_text({"run_ids": [new.run_id]})]
    return values


def _opening_arguments(opening: Opening, types: list[str], bodies: list[str]) -> list[Any]:
    checkpoint = opening.checkpoint
    return [
        types,
        bodies,
        opening.checkpoint_after,
        checkpoint.step,
        checkpoint.phase.value,
        json_text(checkpoint.state),
    ]
