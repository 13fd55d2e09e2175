"""Rows of runs: what each status comes with, and that none is without a way forward."""

from __future__ import annotations

from app.db.invariants.invariant import TERMINAL, Invariant, readable

OVER = Invariant(
    "a run that is over holds nothing and has its result, and no other has",
    "the run's end was written in part only",
    f"""
    SELECT run_id, status, owner, holds_thread, control, finished_at, result IS NOT NULL AS has_result FROM runs
    WHERE run_id = ANY ($1) AND CASE WHEN status IN {TERMINAL}
        THEN owner IS NOT NULL OR holds_thread OR control IS NOT NULL OR finished_at IS NULL OR result IS NULL
        ELSE finished_at IS NOT NULL OR result IS NOT NULL OR error IS NOT NULL END""",
)

EXPLAINED = Invariant(
    "a run that did not end well says why, and one that did has nothing to explain",
    "callers cannot tell why this run ended, or are told of an error that was none",
    f"""
    SELECT run_id, status, error IS NOT NULL AS has_error FROM runs
    WHERE run_id = ANY ($1) AND status IN {TERMINAL}
      AND (error IS NOT NULL) <> (status IN ('degraded', 'failed', 'interrupted'))""",
)

OWNED = Invariant(
    "only a running run has an owner, and it has begun",
    "a replica may take this run for its own",
    """
    SELECT run_id, status, owner, attempt, started_at FROM runs
    WHERE run_id = ANY ($1) AND CASE WHEN status = 'running'
        THEN attempt < 1 OR started_at IS NULL ELSE owner IS NOT NULL END""",
)

HOLDING = Invariant(
    "a run that runs or waits holds its thread",
    "another run may be at work on the same thread",
    """
    SELECT run_id, status, thread_id FROM runs
    WHERE run_id = ANY ($1) AND status IN ('running', 'waiting') AND NOT holds_thread""",
)

QUEUED = Invariant(
    "a queued run can be claimed, or is in line, or waits for its time",
    "nobody will ever take this run up",
    """
    SELECT r.run_id, r.holds_thread, r.ordinal, r.available_at::text FROM runs r LEFT JOIN threads t USING (thread_key)
    WHERE r.run_id = ANY ($1) AND r.status = 'queued' AND CASE
        WHEN r.holds_thread OR r.ordinal IS NULL THEN r.available_at = 'infinity' ELSE t.holder_run_id IS NULL END""",
)

WAITING = Invariant(
    "a waiting run waits for something that is still to come",
    "nobody will ever wake this run",
    f"""
    SELECT r.run_id, r.waiting_for::text FROM runs r WHERE r.run_id = ANY ($1) AND r.status = 'waiting' AND (
        r.waiting_for IS NULL OR json_array_length(r.waiting_for) = 0 OR (
        NOT EXISTS (SELECT 1 FROM interactions i WHERE i.run_id = r.run_id AND i.status = 'pending')
        AND NOT EXISTS (SELECT 1 FROM tool_executions t LEFT JOIN runs c ON c.run_id = t.child_run_id
                        WHERE t.run_id = r.run_id AND t.outcome IS NULL AND t.posted IS NULL
                          AND (t.expires_at IS NOT NULL OR c.status NOT IN {TERMINAL}))))""",
)

TAKEN_IN = Invariant(
    "a waiting run has taken in all that came",
    "what this run waits for is there, and it was not woken",
    f"""
    SELECT r.run_id, t.call_index, t.posted IS NOT NULL AS posted, c.status AS child FROM runs r
    JOIN tool_executions t USING (run_id) LEFT JOIN runs c ON c.run_id = t.child_run_id
    WHERE r.run_id = ANY ($1) AND r.status = 'waiting' AND t.outcome IS NULL
      AND (t.posted IS NOT NULL OR c.status IN {TERMINAL})""",
)

CLOSED_QUESTIONS = Invariant(
    "no question of a run that is over is open",
    "people are asked for a decision that has no effect",
    f"""
    SELECT i.run_id, i.interaction_id FROM interactions i JOIN runs r USING (run_id)
    WHERE r.run_id = ANY ($1) AND i.status = 'pending' AND r.status IN {TERMINAL}""",
)

DECIDED = Invariant(
    "a question that was decided has its answer, and no other has",
    "the decision of a person, or of its time, was stored in part only",
    """
    SELECT run_id, interaction_id, status, answer IS NOT NULL AS has_answer, resolved_at FROM interactions
    WHERE run_id = ANY ($1) AND ((answer IS NOT NULL) <> (status IN ('resolved', 'expired'))
                                 OR (resolved_at IS NULL) <> (status = 'pending'))""",
)

COUNTED = Invariant(
    "what a run has used is never less than nothing",
    "limits and bills of this run are wrong",
    """
    SELECT run_id, llm_calls, input_tokens, output_tokens, cached_input_tokens, reasoning_tokens, cost_usd, elapsed_s
    FROM runs WHERE run_id = ANY ($1) AND (
        least(llm_calls, input_tokens, output_tokens, cached_input_tokens, reasoning_tokens) < 0
        OR cost_usd < 0 OR elapsed_s < 0 OR step < 0 OR crashes < 0 OR wakes < 0 OR epoch < attempt)""",
)

COUNTS_TOLD = Invariant(
    "the end of a completed run tells what it has used",
    "readers of this log and callers of the run are told different counts",
    f"""
    SELECT r.run_id, r.llm_calls, r.input_tokens, r.output_tokens, e.usage::text FROM runs r CROSS JOIN LATERAL (
        SELECT {readable("body")}->'data'->'usage' AS usage FROM run_events
        WHERE run_id = r.run_id AND seq = r.last_seq AND type = 'run_completed') AS e
    WHERE r.run_id = ANY ($1) AND r.status = 'completed'
      AND ((e.usage->>'llm_calls')::bigint, (e.usage->>'input_tokens')::bigint, (e.usage->>'output_tokens')::bigint)
          IS DISTINCT FROM (r.llm_calls, r.input_tokens, r.output_tokens)""",
)

PLACED = Invariant(
    "a checkpoint lies within its run's log and thread, and a run that waits or has made a step has one",
    "this run cannot go on from where it was",
    """
    SELECT r.run_id, r.status, c.seq, r.last_seq, c.message_seq, t.next_seq FROM runs r
    LEFT JOIN threads t USING (thread_key)
    LEFT JOIN LATERAL (SELECT max(seq) AS seq, max(message_seq) AS message_seq FROM checkpoints
                       WHERE run_id = r.run_id) AS c ON true
    LEFT JOIN LATERAL (SELECT phase FROM checkpoints WHERE run_id = r.run_id ORDER BY seq DESC LIMIT 1) AS p ON true
    WHERE r.run_id = ANY ($1) AND (
        c.seq > r.last_seq OR c.message_seq >= t.next_seq
        OR (r.status = 'waiting' AND p.phase IS DISTINCT FROM 'await')
        OR (p.phase IS NULL AND (r.status = 'completed' OR r.llm_calls > 0)))""",
)

PINNED = Invariant(
    "the version of the agent that a run is pinned to is stored",
    "no replica can execute this run",
    """
    SELECT r.run_id, r.agent_name, r.agent_version_id FROM runs r
    WHERE r.run_id = ANY ($1)
      AND NOT EXISTS (SELECT 1 FROM agent_versions v WHERE v.version_id = r.agent_version_id)""",
)

STATUSES = (
    OVER,
    EXPLAINED,
    OWNED,
    HOLDING,
    QUEUED,
    WAITING,
    TAKEN_IN,
    CLOSED_QUESTIONS,
    DECIDED,
    COUNTED,
    COUNTS_TOLD,
    PLACED,
    PINNED,
)
