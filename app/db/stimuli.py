"""What others have stored for a run that its owner has yet to act upon."""

from __future__ import annotations

from typing import Any

import asyncpg
import orjson

from app.db.database import Connection
from app.db.interactions import answer_from_dict
from app.db.rows import json_text, latency_ms, run_uuid, usage_from_row
from app.engine.errors import RunError
from app.engine.interactions import InteractionStatus
from app.engine.moves import ChildEnd, InteractionEnd, PostedResult, Stimuli
from app.engine.status import RunStatus
from app.engine.store_errors import RunNotFound


async def read_stimuli(connection: Connection, run_id: str) -> Stimuli:
    """The stimuli of a run's open step. Raises: RunNotFound."""
    wakes = await connection.fetchval("SELECT wakes FROM runs WHERE run_id = $1", run_uuid(run_id))
    if wakes is None:
        raise RunNotFound(run_id)
    return await stimuli_since(connection, run_id, wakes)


async def stimuli_since(connection: Connection, run_id: str, wakes: int) -> Stimuli:
    """The same for a run whose `wakes` were read before: newer stimuli may be among them, older ones never lack."""
    if wakes == 0:
        return Stimuli(0)
    answered = await connection.fetch(
        """SELECT interaction_id, call_index, status, answer FROM interactions
           WHERE run_id = $1::uuid AND status <> 'pending'
             AND step >= (SELECT step FROM checkpoints WHERE run_id = $1::uuid ORDER BY seq DESC LIMIT 1)
           ORDER BY interaction_id""",
        run_id,
    )
    calls = await connection.fetch(
        """SELECT t.call_index, t.posted,
                  COALESCE(extract(epoch FROM clock_timestamp() - t.started_at) * 1000, 0) AS waited_ms,
                  c.run_id, c.status, c.result, c.error, c.created_at, c.finished_at,
                  c.llm_calls, c.input_tokens, c.output_tokens, c.cached_input_tokens, c.reasoning_tokens, c.cost_usd
           FROM tool_executions t LEFT JOIN runs c ON c.run_id = t.child_run_id AND c.finished_at IS NOT NULL
           WHERE t.run_id = $1::uuid AND t.outcome IS NULL AND (t.posted IS NOT NULL OR c.run_id IS NOT NULL)
           ORDER BY t.call_index""",
        run_id,
    )
    return Stimuli(
        wakes,
        tuple(_interaction_end(row) for row in answered),
        tuple(_posted(row) for row in calls if row["posted"] is not None),
        tuple(_child_end(row) for row in calls if row["run_id"] is not None),
    )


def _interaction_end(row: asyncpg.Record) -> InteractionEnd:
    stored = row["answer"]
    return InteractionEnd(
        str(row["interaction_id"]),
        row["call_index"],
        InteractionStatus(row["status"]),
        None if stored is None else answer_from_dict(orjson.loads(stored)),
    )


def _posted(row: asyncpg.Record) -> PostedResult:
    stored = orjson.loads(row["posted"])
    error = stored["error"]
    output = json_text(stored["output"]) if error is None else None
    return PostedResult(row["call_index"], output, error, float(row["waited_ms"]))


def _child_end(row: asyncpg.Record) -> ChildEnd:
    result: dict[str, Any] = {} if row["result"] is None else orjson.loads(row["result"])
    return ChildEnd(
        index=row["call_index"],
        run_id=str(row["run_id"]),
        status=RunStatus(row["status"]),
        final_text=result.get("final_text") or "",
        error=None if row["error"] is None else RunError.from_dict(orjson.loads(row["error"])),
        usage=usage_from_row(row),
        cost_usd=row["cost_usd"],
        latency_ms=latency_ms(row["created_at"], row["finished_at"]) or 0.0,
    )
