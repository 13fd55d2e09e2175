"""Results of tool calls that come from outside, and the wait for those that do not come.

Each function runs inside the caller's transaction, which has locked the run.
"""

from __future__ import annotations

from typing import Any

import orjson

from app.db.database import Connection
from app.db.family import wake
from app.db.rows import json_text
from app.db.steering import LockedRun
from app.engine.records import Stimulated
from app.engine.store_errors import ResultConflict, ToolCallNotFound

NO_RESULT_IN_TIME = "no result came within its time"


async def post(
    connection: Connection, locked: LockedRun, tool_call_id: str, output: str | None, error: str | None
) -> Stimulated:
    """Store the result of a call that has none; see `RunStore.post_result`."""
    run = locked.run
    row = await connection.fetchrow(
        """SELECT step, call_index, posted, outcome FROM tool_executions
           WHERE run_id = $1::uuid AND tool_call_id = $2""",
        run.run_id,
        tool_call_id,
    )
    if row is None:
        raise ToolCallNotFound(run.run_id, tool_call_id)
    given = {"output": None if output is None else orjson.loads(output), "error": error}
    known = row["posted"] or row["outcome"]
    if known is not None:
        if _content(orjson.loads(known)) == _content(given):
            return Stimulated(run.run_id, run.status, changed=False)
        raise ResultConflict(f"the tool call {tool_call_id!r} has another result")
    if run.status.terminal:
        raise ResultConflict(f"the run is {run.status}: its tool calls take no results")
    return await _store(connection, locked, row["step"], row["call_index"], output, error)


async def expire(connection: Connection, locked: LockedRun, step: int, call_index: int) -> Stimulated | None:
    """End the wait for a result whose time is up; None if it has come, or the run is over."""
    waits = await connection.fetchval(
        """SELECT 1 FROM tool_executions WHERE run_id = $1::uuid AND step = $2 AND call_index = $3
           AND posted IS NULL AND outcome IS NULL AND expires_at <= clock_timestamp()""",
        locked.run.run_id,
        step,
        call_index,
    )
    if waits is None:
        return None
    if locked.run.status.terminal:  # nobody waits any more; a resume begins a new wait
        await connection.execute(
            "UPDATE tool_executions SET expires_at = NULL WHERE run_id = $1::uuid AND step = $2 AND call_index = $3",
            locked.run.run_id,
            step,
            call_index,
        )
        return None
    return await _store(connection, locked, step, call_index, None, NO_RESULT_IN_TIME)


async def due(connection: Connection, limit: int) -> list[tuple[str, int, int]]:
    """(run id, step, call index) of calls that have waited for a result for too long."""
    rows = await connection.fetch(
        """SELECT run_id, step, call_index FROM tool_executions
           WHERE expires_at <= clock_timestamp() AND posted IS NULL AND finished_at IS NULL
           ORDER BY expires_at LIMIT $1""",
        limit,
    )
    return [(str(row["run_id"]), row["step"], row["call_index"]) for row in rows]


async def _store(
    connection: Connection, locked: LockedRun, step: int, call_index: int, output: str | None, error: str | None
) -> Stimulated:
    whole = {"output": None if output is None else orjson.Fragment(output), "error": error}
    await connection.execute(
        """UPDATE tool_executions SET posted = $4::json
           WHERE run_id = $1::uuid AND step = $2 AND call_index = $3""",
        locked.run.run_id,
        step,
        call_index,
        json_text(whole),
    )
    woken = await wake(connection, locked.run.run_id)
    return Stimulated(locked.run.run_id, locked.run.status if woken is None else woken.status)


def _content(result: dict[str, Any]) -> bytes:
    """What two results are compared by; as JSON, in which 1 is not true."""
    return orjson.dumps((result["output"], result["error"]), option=orjson.OPT_SORT_KEYS)
