"""What holds in the database of a service at any moment, whatever was killed before."""

from __future__ import annotations

from typing import Any

import asyncpg

_TERMINAL = "('completed', 'degraded', 'failed', 'interrupted', 'cancelled')"
_CLOSING = "('run_completed', 'run_failed', 'run_interrupted', 'run_cancelled')"

# Each finds the rows that break it.
_BROKEN: dict[str, str] = {
    "the events of a run are numbered without a gap, up to its counter": """
        SELECT r.run_id, r.last_seq, count(e.seq), min(e.seq), max(e.seq)
        FROM runs r LEFT JOIN run_events e USING (run_id) GROUP BY r.run_id
        HAVING count(e.seq) <> r.last_seq - r.first_seq + 1
            OR (count(e.seq) > 0 AND (min(e.seq) <> r.first_seq OR max(e.seq) <> r.last_seq))""",
    "nothing follows the end of a run but what a resume allows": f"""
        SELECT * FROM (SELECT run_id, seq, type, lead(type) OVER (PARTITION BY run_id ORDER BY seq) AS next
                       FROM run_events) AS log
        WHERE type IN {_CLOSING} AND next IS NOT NULL AND NOT (
            type IN ('run_failed', 'run_interrupted')
            AND next IN ('run_resumed', 'run_started', 'run_paused', 'run_interrupted', 'run_cancelled'))""",
    "the last event of a run agrees with its status": f"""
        SELECT r.run_id, r.status, e.type, e.body FROM runs r
        JOIN run_events e ON e.run_id = r.run_id AND e.seq = r.last_seq
        WHERE (r.status IN {_TERMINAL} AND (e.type NOT IN {_CLOSING} OR e.body->>'state' <> r.status))
           OR (r.status = 'waiting' AND e.type <> 'run_waiting')""",
    "a run that is over holds nothing and has its result, and no other has": f"""
        SELECT run_id, status, owner, holds_thread, control, finished_at, result FROM runs
        WHERE CASE WHEN status IN {_TERMINAL}
              THEN owner IS NOT NULL OR holds_thread OR control IS NOT NULL OR finished_at IS NULL OR result IS NULL
              ELSE finished_at IS NOT NULL OR result IS NOT NULL OR error IS NOT NULL END""",
    "only a running run has an owner": """
        SELECT run_id, status, owner FROM runs WHERE status <> 'running' AND owner IS NOT NULL""",
    "a queued run can be claimed, or is in line, or waits for its time": """
        SELECT r.run_id FROM runs r JOIN threads t USING (thread_key)
        WHERE r.status = 'queued' AND NOT r.holds_thread AND r.ordinal IS NOT NULL AND t.holder_run_id IS NULL""",
    "a thread and its holder know of each other, and the holder is not over": f"""
        SELECT t.thread_key, t.holder_run_id, r.status, r.holds_thread FROM threads t
        LEFT JOIN runs r ON r.run_id = t.holder_run_id
        WHERE t.holder_run_id IS NOT NULL AND (r.holds_thread IS NOT TRUE OR r.status IN {_TERMINAL})""",
    "a thread counts the runs in its line": """
        SELECT t.thread_key, t.queued, count(r.run_id) FROM threads t LEFT JOIN runs r
            ON r.thread_key = t.thread_key AND r.status = 'queued' AND NOT r.holds_thread AND r.ordinal IS NOT NULL
        GROUP BY t.thread_key HAVING t.queued <> count(r.run_id)""",
    "a waiting run waits for something that is still to come": f"""
        SELECT r.run_id, r.waiting_for FROM runs r WHERE r.status = 'waiting'
        AND NOT EXISTS (SELECT 1 FROM interactions i WHERE i.run_id = r.run_id AND i.status = 'pending')
        AND NOT EXISTS (SELECT 1 FROM tool_executions t LEFT JOIN runs c ON c.run_id = t.child_run_id
                        WHERE t.run_id = r.run_id AND t.outcome IS NULL AND t.posted IS NULL
                          AND (t.expires_at IS NOT NULL OR c.status NOT IN {_TERMINAL}))""",
    "a waiting run has taken in all that came": f"""
        SELECT r.run_id, t.call_index, t.posted, c.status FROM runs r JOIN tool_executions t USING (run_id)
        LEFT JOIN runs c ON c.run_id = t.child_run_id
        WHERE r.status = 'waiting' AND t.outcome IS NULL AND (t.posted IS NOT NULL OR c.status IN {_TERMINAL})""",
    "no question of a run that is over is open": f"""
        SELECT i.interaction_id, r.run_id FROM interactions i JOIN runs r USING (run_id)
        WHERE i.status = 'pending' AND r.status IN {_TERMINAL}""",
    "no child of a run that is over is active": f"""
        SELECT p.run_id, p.status, c.run_id AS child, c.status AS is
        FROM runs c JOIN runs p ON p.run_id = c.parent_run_id
        WHERE p.status IN {_TERMINAL} AND c.status NOT IN {_TERMINAL}""",
    "a delegation that was begun and has no result has its child run, as long as its run may go on": """
        SELECT t.run_id, t.tool_call_id, t.child_run_id FROM tool_executions t JOIN runs r USING (run_id)
        WHERE t.child_run_id IS NOT NULL AND t.started_at IS NOT NULL AND t.outcome IS NULL
          AND r.status NOT IN ('completed', 'degraded', 'cancelled')
          AND NOT EXISTS (SELECT 1 FROM runs c WHERE c.run_id = t.child_run_id AND c.parent_run_id = t.run_id)""",
    "a child run was made by one delegation": """
        SELECT c.run_id, c.parent_run_id, count(t.run_id) FROM runs c
        LEFT JOIN tool_executions t ON t.run_id = c.parent_run_id AND t.child_run_id = c.run_id
        WHERE c.parent_run_id IS NOT NULL GROUP BY c.run_id HAVING count(t.run_id) <> 1""",
    "a child run is told of once when it begins and at most once when it ends": """
        SELECT c.run_id, c.parent_run_id, begun, ended FROM runs c CROSS JOIN LATERAL (
            SELECT count(*) FILTER (WHERE type = 'subagent_started') AS begun,
                   count(*) FILTER (WHERE type = 'subagent_completed') AS ended
            FROM run_events e WHERE e.run_id = c.parent_run_id AND e.type LIKE 'subagent_%'
                                AND e.body->'data'->>'run_id' = c.run_id::text) AS told
        WHERE c.parent_run_id IS NOT NULL AND (begun <> 1 OR ended > 1)""",
    "a run that came to its end by itself has answers to all of its calls": """
        SELECT r.run_id, t.step, t.call_index FROM runs r JOIN tool_executions t USING (run_id)
        WHERE r.status = 'completed' AND t.outcome IS NULL""",
    "a child run's lineage follows from its parent's": """
        SELECT c.run_id, c.agent_path, c.agent_depth, c.root_run_id
        FROM runs c JOIN runs p ON p.run_id = c.parent_run_id
        WHERE c.agent_depth <> p.agent_depth + 1 OR c.root_run_id <> p.root_run_id
           OR c.agent_path <> coalesce(nullif(p.agent_path, ''), p.agent_name) || '>' || c.agent_name""",
}


async def check_invariants(connection: asyncpg.Connection[Any]) -> None:
    """Raises AssertionError, with all that is broken and a few of the rows that break it."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        found = {promise: await connection.fetch(query) for promise, query in _BROKEN.items()}
    broken = {promise: [dict(row) for row in rows[:5]] for promise, rows in found.items() if rows}
    assert not broken, "\n".join(f"{promise}: {rows}" for promise, rows in broken.items())
