"""Parent and child runs: children begin with their parent's write, and wake it when they end.

Lock order: from the first run down to its descendants; at each level the thread's row, then the run's. Whoever ends a
child has locked its parent's run before.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from uuid import UUID

import orjson

from app.db.database import Connection
from app.db.rows import json_text, messages_as_json, overrides_as_json, usage_from_row
from app.engine.records import NewRun, Stimulated
from app.engine.status import RunStatus
from app.engine.usage import Usage, add_cost

_TERMINAL = "('completed', 'degraded', 'failed', 'cancelled', 'interrupted')"

_NEW_THREADS = """
    INSERT INTO threads (thread_key, tenant_id, thread_id, holder_run_id, next_ordinal)
    VALUES ($1::uuid, $2, $3, $4::uuid, 2)"""

_NEW_CHILDREN = """
    INSERT INTO runs (run_id, tenant_id, thread_key, thread_id, ordinal, parent_run_id, root_run_id, agent_depth,
                      agent_path, deadline_s, deadline_at, agent_name, agent_version, agent_version_id,
                      requested_model, overrides, context, input, metadata, user_id, trace_context, status,
                      holds_thread)
    VALUES ($1::uuid, $2, $3::uuid, $4, 1, $5::uuid, $6::uuid, $7, $8, $9::float8,
            clock_timestamp() + make_interval(secs => $9),
            $10, $11, $12::uuid, $13, $14::json, $15::json, $16::json, $17::jsonb, $18, $19, 'queued', true)"""

_WAKE = f"""
    UPDATE runs SET wakes = wakes + 1,
        status = CASE status WHEN 'waiting' THEN 'queued' ELSE status END,
        resume_reason = CASE status WHEN 'waiting' THEN 'wake' ELSE resume_reason END,
        available_at = CASE status WHEN 'waiting' THEN clock_timestamp() ELSE available_at END
    WHERE run_id = $1::uuid AND status NOT IN {_TERMINAL}
    RETURNING status"""


async def create_children(connection: Connection, children: Sequence[NewRun]) -> None:
    """Make child runs, queued and ready, each the holder of a thread of its own."""
    await connection.executemany(
        _NEW_THREADS, [(new.thread_key, new.tenant_id, new.thread_id, new.run_id) for new in children]
    )
    await connection.executemany(_NEW_CHILDREN, [_child_values(new) for new in children])


async def wake(connection: Connection, run_id: str) -> Stimulated | None:
    """Count one more stimulus of a run and let it go on if it waits; None if it is over."""
    status = await connection.fetchval(_WAKE, run_id)
    return None if status is None else Stimulated(run_id, RunStatus(status))


async def lock_parent(connection: Connection, run_id: str | UUID) -> str | None:
    """Lock the run that the end of this one wakes; its id, or None for a run without a parent."""
    parent = await connection.fetchval(
        """SELECT run_id FROM runs WHERE run_id = (SELECT parent_run_id FROM runs WHERE run_id = $1::uuid)
           FOR NO KEY UPDATE""",
        run_id,
    )
    return None if parent is None else str(parent)


async def may_need(connection: Connection, run_id: str, child_run_id: str | UUID) -> bool:
    """Whether a run is not over, or would take in how that child run of it ended if it were resumed."""
    found = await connection.fetchval(
        f"""SELECT 1 FROM runs r WHERE run_id = $1::uuid AND (
                status NOT IN {_TERMINAL}
                OR status IN ('failed', 'interrupted') AND EXISTS (
                    SELECT 1 FROM tool_executions t
                    WHERE t.run_id = r.run_id AND t.child_run_id = $2::uuid AND t.outcome IS NULL))""",
        run_id,
        child_run_id,
    )
    return found is not None


async def awaits(connection: Connection, run_id: str, child_run_id: str) -> bool:
    """Whether a run is not over and has an open call that this child run answers."""
    found = await connection.fetchval(
        f"""SELECT 1 FROM runs r JOIN tool_executions t ON t.run_id = r.run_id
            WHERE r.run_id = $1::uuid AND r.status NOT IN {_TERMINAL}
              AND t.child_run_id = $2::uuid AND t.outcome IS NULL""",
        run_id,
        child_run_id,
    )
    return found is not None


async def active_children(connection: Connection, run_id: str) -> list[str]:
    """The child runs of a locked run that are not over."""
    rows = await connection.fetch(
        f"SELECT run_id FROM runs WHERE parent_run_id = $1::uuid AND status NOT IN {_TERMINAL} ORDER BY run_id", run_id
    )
    return [str(row["run_id"]) for row in rows]


async def children_of_open_calls(connection: Connection, run_id: str) -> list[str]:
    """The child runs that a locked run still waits for, whatever has become of them."""
    rows = await connection.fetch(
        """SELECT child_run_id FROM tool_executions
           WHERE run_id = $1::uuid AND child_run_id IS NOT NULL AND outcome IS NULL ORDER BY child_run_id""",
        run_id,
    )
    return [str(row["child_run_id"]) for row in rows]


async def spent_by_children(connection: Connection, run_id: str) -> tuple[Usage, Decimal | None]:
    """What the child runs of a run's open calls have used: its own counters do not hold that yet."""
    rows = await connection.fetch(
        """SELECT llm_calls, input_tokens, output_tokens, cached_input_tokens, reasoning_tokens, cost_usd
           FROM runs WHERE run_id = ANY ($1::uuid[])""",
        await children_of_open_calls(connection, run_id),
    )
    usage, cost = Usage(), Decimal(0)
    for row in rows:
        usage += usage_from_row(row)
        cost = add_cost(cost, row["cost_usd"])
    return usage, cost


async def charge_children(connection: Connection, run_id: str) -> None:
    """Add to a run that has ended what the child runs of its open calls have used."""
    usage, cost = await spent_by_children(connection, run_id)
    if usage == Usage() and cost == 0:
        return
    await connection.execute(
        """UPDATE runs SET llm_calls = llm_calls + $2, input_tokens = input_tokens + $3,
                  output_tokens = output_tokens + $4, cached_input_tokens = cached_input_tokens + $5,
                  reasoning_tokens = reasoning_tokens + $6, cost_usd = cost_usd + $7
           WHERE run_id = $1::uuid""",
        run_id,
        usage.llm_calls,
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_input_tokens,
        usage.reasoning_tokens,
        cost,
    )


async def uncharge_children(connection: Connection, run_id: str) -> None:
    """Take a run that goes on back to what its last checkpoint says that it had used; its children are charged anew."""
    state = await connection.fetchval(
        "SELECT state FROM checkpoints WHERE run_id = $1::uuid ORDER BY seq DESC LIMIT 1", run_id
    )
    if state is None:
        return
    kept = orjson.loads(state)
    usage = Usage.from_dict(kept["usage"])
    await connection.execute(
        """UPDATE runs SET llm_calls = $2, input_tokens = $3, output_tokens = $4, cached_input_tokens = $5,
                  reasoning_tokens = $6, cost_usd = $7
           WHERE run_id = $1::uuid""",
        run_id,
        usage.llm_calls,
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_input_tokens,
        usage.reasoning_tokens,
        None if kept["cost_usd"] is None else Decimal(kept["cost_usd"]),
    )


def _child_values(new: NewRun) -> tuple[object, ...]:
    lineage = new.lineage
    assert lineage is not None
    return (
        new.run_id,
        new.tenant_id,
        new.thread_key,
        new.thread_id,
        lineage.parent_run_id,
        lineage.root_run_id,
        lineage.depth,
        lineage.path,
        lineage.deadline_s,
        new.agent.definition.name,
        new.agent.version,
        new.agent.version_id,
        new.overrides.model or new.agent.definition.model,
        overrides_as_json(new.overrides),
        json_text(new.context),
        messages_as_json(new.input),
        json_text(new.metadata),
        new.user_id,
        new.trace_context,
    )
