"""Logs of events: numbered without gaps, one attempt after the other, and in agreement with the run's row."""

from __future__ import annotations

from app.db.invariants.invariant import CLOSING, DELTAS, TERMINAL, Invariant, readable

# What a caller, or recovery, may say of a run that nobody executes.
_BY_OTHERS = "'run_paused', 'run_failed', 'run_interrupted', 'run_cancelled'"

NUMBERED = Invariant(
    "the events of a run are numbered without a gap, up to its counter",
    "events are lost or doubled: readers of this log wait for a number that never comes",
    """
    SELECT r.run_id, r.first_seq, r.last_seq, count(e.seq) AS events, min(e.seq) AS first, max(e.seq) AS last
    FROM runs r LEFT JOIN run_events e USING (run_id) WHERE r.run_id = ANY ($1) GROUP BY r.run_id
    HAVING r.first_seq < 1 OR r.last_seq < r.first_seq - 1 OR CASE
        WHEN r.last_seq < r.first_seq THEN count(e.seq) > 0
        ELSE min(e.seq) IS DISTINCT FROM r.first_seq OR max(e.seq) <> r.last_seq
          OR (count(e.seq) <> r.last_seq - r.first_seq + 1 AND NOT r.deltas_trimmed) END""",
)

TRIMMED = Invariant(
    "a log that was trimmed lacks nothing but deltas",
    "retention has removed more than the deltas of this log",
    # Deltas are written while a model is called, and at no other time.
    f"""
    SELECT run_id, type AS after, seq, next AS then FROM (
        SELECT e.run_id, e.seq, e.type, lead(e.seq) OVER (PARTITION BY e.run_id ORDER BY e.seq) AS next
        FROM run_events e JOIN runs r USING (run_id) WHERE r.run_id = ANY ($1) AND r.deltas_trimmed) AS log
    WHERE next > seq + 1 AND type NOT IN ('llm_called', 'warning') AND type NOT IN {DELTAS}""",
)

ATTEMPTS = Invariant(
    "an attempt is begun before it writes, and closed once; after that comes the next attempt, or what others say",
    "two attempts have written to this log at once, or one has written after its end",
    # An attempt is begun by its owner with run_started or run_resumed. It is closed by its owner (run_waiting,
    # run_paused, the four ends), by a caller (the last two ends) or by nothing at all, when its process dies. After
    # run_completed and run_cancelled comes nothing any more.
    f"""
    SELECT run_id, seq, before, type FROM (
        SELECT e.run_id, e.seq, e.type, r.first_seq, lag(e.type) OVER (PARTITION BY e.run_id ORDER BY e.seq) AS before
        FROM run_events e JOIN runs r USING (run_id)
        WHERE r.run_id = ANY ($1) AND e.type <> 'interaction_resolved') AS log
    WHERE NOT CASE
        WHEN before IS NULL THEN first_seq > 1 OR type IN ('run_started', {_BY_OTHERS})
        WHEN before IN ('run_completed', 'run_cancelled') THEN false
        WHEN before = 'run_waiting' THEN type IN ('run_resumed', {_BY_OTHERS})
        WHEN before IN ('run_paused', 'run_failed', 'run_interrupted')
            THEN type IN ('run_started', 'run_resumed', {_BY_OTHERS})
        ELSE type <> 'run_started' END""",
)

ANSWERED_AFTER_END = Invariant(
    "no question is answered after the end of its run",
    "a person has decided something that no longer had any effect",
    f"""
    SELECT run_id, seq, before FROM (
        SELECT e.run_id, e.seq, e.type, lag(e.type) OVER (PARTITION BY e.run_id ORDER BY e.seq) AS before
        FROM run_events e WHERE e.run_id = ANY ($1)) AS log
    WHERE type = 'interaction_resolved' AND before IN {CLOSING}""",
)

BEGUN_ONCE = Invariant(
    "an attempt begins at most once",
    "one claim of this run was carried out twice",
    f"""
    SELECT r.run_id, r.attempt, count(*) AS begun FROM runs r JOIN run_events e USING (run_id)
    WHERE r.run_id = ANY ($1) AND e.type IN ('run_started', 'run_resumed') GROUP BY r.run_id
    HAVING count(*) > r.attempt
        OR count(DISTINCT {readable("e.body")}->'data'->>'attempt') <> count(*) FILTER (WHERE e.type = 'run_resumed')
    """,
)

AGREES = Invariant(
    "the last event of a run agrees with its status",
    "readers of this log are told another end than callers of the run",
    # A question may be answered while its run is paused; of a run that waits, an answer makes a queued one.
    f"""
    SELECT r.run_id, r.status, e.type AS last_event, e.state FROM runs r LEFT JOIN LATERAL (
        SELECT type, {readable("body")}->>'state' AS state FROM run_events
        WHERE run_id = r.run_id AND (r.status <> 'paused' OR type <> 'interaction_resolved')
        ORDER BY seq DESC LIMIT 1) AS e ON true
    WHERE r.run_id = ANY ($1) AND NOT coalesce(CASE
        WHEN r.status IN {TERMINAL} THEN e.state = r.status
            AND e.type = CASE r.status WHEN 'degraded' THEN 'run_completed' ELSE 'run_' || r.status END
        WHEN r.status IN ('waiting', 'paused') THEN e.type = 'run_' || r.status
        ELSE e.type NOT IN ('run_completed', 'run_cancelled') END, r.status IN ('queued', 'running'))""",
)

RESULTS_TOLD = Invariant(
    "a result of a tool call is told once, and none that is not recorded",
    "readers were told of a call's result twice, or never",
    # A log whose beginning is gone tells nothing of its calls any more.
    f"""
    WITH told AS MATERIALIZED (
        SELECT run_id, {readable("body")}->'data'->>'tool_call_id' AS tool_call_id, count(*) AS times
        FROM run_events WHERE run_id = ANY ($1) AND type = 'tool_completed' GROUP BY 1, 2)
    SELECT r.run_id, t.step, t.tool_call_id, t.outcome IS NOT NULL AS recorded, coalesce(told.times, 0) AS told
    FROM runs r JOIN tool_executions t USING (run_id) LEFT JOIN told USING (run_id, tool_call_id)
    WHERE r.run_id = ANY ($1) AND r.first_seq = 1 AND coalesce(told.times, 0) <> (t.outcome IS NOT NULL)::int""",
)

QUESTIONS_TOLD = Invariant(
    "a question is told once when it is asked and once when it is decided",
    "readers were not told of a question, or of its decision",
    f"""
    WITH told AS MATERIALIZED (
        SELECT run_id, {readable("body")}->'data'->>'interaction_id' AS id,
               count(*) FILTER (WHERE type = 'interaction_requested') AS asked,
               count(*) FILTER (WHERE type = 'interaction_resolved') AS decided
        FROM run_events
        WHERE run_id = ANY ($1) AND type IN ('interaction_requested', 'interaction_resolved') GROUP BY 1, 2)
    SELECT r.run_id, i.interaction_id, i.status, told.asked, told.decided
    FROM runs r JOIN interactions i USING (run_id)
    LEFT JOIN told ON told.run_id = i.run_id AND told.id = i.interaction_id::text
    WHERE r.run_id = ANY ($1) AND r.first_seq = 1
      AND (coalesce(told.asked, 0) <> 1 OR told.decided <> (i.status IN ('resolved', 'expired'))::int)""",
)

LOGS = (NUMBERED, TRIMMED, ATTEMPTS, ANSWERED_AFTER_END, BEGUN_ONCE, AGREES, RESULTS_TOLD, QUESTIONS_TOLD)
