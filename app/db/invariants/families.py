"""Parent and child runs: each child was made by one delegation, is told of, and does not outlive its parent."""

from __future__ import annotations

from app.db.invariants.calls import ASKED_ANEW
from app.db.invariants.invariant import TERMINAL, Invariant, readable

PARENT = Invariant(
    "a child run has its parent, and a run without one is its own root",
    "this run answers to nobody, and is not deleted with its family",
    """
    SELECT r.run_id, r.parent_run_id AS parent, r.root_run_id AS root FROM runs r
    WHERE r.run_id = ANY ($1) AND CASE WHEN r.parent_run_id IS NULL
        THEN r.root_run_id <> r.run_id OR r.agent_depth <> 0
        ELSE NOT EXISTS (SELECT 1 FROM runs p WHERE p.run_id = r.parent_run_id) END""",
)

LINEAGE = Invariant(
    "a child run's lineage follows from its parent's",
    "limits and names of this run are those of another",
    """
    SELECT c.run_id, c.agent_path, c.agent_depth, c.root_run_id AS root
    FROM runs c JOIN runs p ON p.run_id = c.parent_run_id
    WHERE c.run_id = ANY ($1) AND (c.agent_depth <> p.agent_depth + 1 OR c.root_run_id <> p.root_run_id
       OR c.agent_path <> coalesce(nullif(p.agent_path, ''), p.agent_name) || '>' || c.agent_name)""",
)

OUTLIVED = Invariant(
    "no child of a run that is over is active",
    "this run works for nobody",
    f"""
    SELECT c.run_id, c.status, p.run_id AS parent, p.status AS parent_is
    FROM runs c JOIN runs p ON p.run_id = c.parent_run_id
    WHERE c.run_id = ANY ($1) AND p.status IN {TERMINAL} AND c.status NOT IN {TERMINAL}""",
)

DELEGATED = Invariant(
    "a delegation that was begun and has no result has its child run, as long as its run may go on",
    "the run waits for a child run that was never made",
    """
    SELECT r.run_id, t.tool_call_id, t.child_run_id AS child FROM runs r JOIN tool_executions t USING (run_id)
    WHERE r.run_id = ANY ($1) AND t.child_run_id IS NOT NULL AND t.started_at IS NOT NULL AND t.outcome IS NULL
      AND r.status NOT IN ('completed', 'degraded', 'cancelled')
      AND NOT EXISTS (SELECT 1 FROM runs c WHERE c.run_id = t.child_run_id AND c.parent_run_id = t.run_id)""",
)

MADE_ONCE = Invariant(
    "a child run was made by one delegation",
    "the child run's result goes nowhere, or to two calls",
    f"""
    SELECT c.run_id, c.parent_run_id AS parent, made.times FROM runs c JOIN runs r ON r.run_id = c.parent_run_id
    CROSS JOIN LATERAL (SELECT count(*) AS times FROM tool_executions t
                        WHERE t.run_id = c.parent_run_id AND t.child_run_id = c.run_id) AS made
    WHERE c.run_id = ANY ($1) AND (made.times > 1 OR (made.times = 0 AND NOT {ASKED_ANEW}))""",
)

TOLD = Invariant(
    "a child run is told of once when it begins and at most once when it ends",
    "readers of the parent's log do not see this run, or see it twice",
    f"""
    WITH told AS MATERIALIZED (
        SELECT run_id, {readable("body")}->'data'->>'run_id' AS child,
               count(*) FILTER (WHERE type = 'subagent_started') AS begun,
               count(*) FILTER (WHERE type = 'subagent_completed') AS ended
        FROM run_events WHERE run_id IN (SELECT parent_run_id FROM runs WHERE run_id = ANY ($1))
          AND type IN ('subagent_started', 'subagent_completed') GROUP BY 1, 2)
    SELECT c.run_id, p.run_id AS parent, coalesce(told.begun, 0) AS begun, coalesce(told.ended, 0) AS ended
    FROM runs c JOIN runs p ON p.run_id = c.parent_run_id
    LEFT JOIN told ON told.run_id = p.run_id AND told.child = c.run_id::text
    WHERE c.run_id = ANY ($1) AND p.first_seq = 1 AND (coalesce(told.begun, 0) <> 1 OR told.ended > 1)""",
)

FAMILIES = (PARENT, LINEAGE, OUTLIVED, DELEGATED, MADE_ONCE, TOLD)
