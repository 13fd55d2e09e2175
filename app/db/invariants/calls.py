"""Tool calls: what is recorded of them belongs to what a model asked for, and transcripts have them whole."""

from __future__ import annotations

from app.db.invariants.invariant import Invariant, readable

# A step that failed half-way by a defect is asked anew when its run is resumed, and leaves its calls behind. Of a log
# whose beginning is gone nobody can tell.
ASKED_ANEW = """(r.first_seq > 1 OR EXISTS (
    SELECT 1 FROM run_events f WHERE f.run_id = r.run_id AND f.type = 'run_failed'))"""

# A purge has removed a thread's messages up to a number. A response comes after the checkpoints of the steps before it,
# and of its own one if that was not asked anew; where these are gone, it may have been among what was removed.
_PURGED = f"""EXISTS (
    SELECT 1 FROM compactions k WHERE k.thread_key = r.thread_key AND k.purged AND k.upto_seq > COALESCE((
        SELECT max(c.message_seq) FROM checkpoints c WHERE c.run_id = r.run_id
        AND (c.step < t.step OR (c.step = t.step AND c.phase = 'call_model' AND NOT {ASKED_ANEW}))), 0))"""

ASKED = Invariant(
    "every call on record was asked for in a response of its run that is in its thread, or was purged from it",
    "a tool was run for a response that was never committed",
    f"""
    WITH keys AS MATERIALIZED (SELECT DISTINCT thread_key FROM runs WHERE run_id = ANY ($1)),
    asked AS MATERIALIZED (
        SELECT m.run_id, call->>'id' AS tool_call_id FROM keys JOIN messages m USING (thread_key)
        CROSS JOIN LATERAL json_array_elements({readable("m.body")}->'tool_calls') AS call
        WHERE m.run_id = ANY ($1) AND m.role = 'assistant')
    SELECT t.run_id, t.step, t.call_index, t.tool_call_id, t.outcome IS NOT NULL AS has_result
    FROM tool_executions t JOIN runs r USING (run_id) LEFT JOIN asked USING (run_id, tool_call_id)
    WHERE t.run_id = ANY ($1) AND asked.tool_call_id IS NULL AND NOT {_PURGED}""",
)

NAMED_ONCE = Invariant(
    "a run uses the id of a tool call once",
    "a result may be given to the wrong call",
    """
    SELECT run_id, tool_call_id, count(*) AS calls FROM tool_executions WHERE run_id = ANY ($1)
    GROUP BY run_id, tool_call_id HAVING count(*) > 1""",
)

ENDED = Invariant(
    "a call that has a result has ended, and waits for nothing",
    "a call's end was written in part only",
    """
    SELECT run_id, step, call_index, tool_call_id, outcome IS NOT NULL AS has_result, finished_at, expires_at
    FROM tool_executions WHERE run_id = ANY ($1)
      AND ((outcome IS NULL) <> (finished_at IS NULL) OR (outcome IS NOT NULL AND hold IS NOT NULL))""",
)

ALL_ANSWERED = Invariant(
    "a run that completed has answers to all of its calls",
    "the run has ended although it was still to get results",
    f"""
    SELECT r.run_id, t.step, t.call_index, t.tool_call_id FROM runs r JOIN tool_executions t USING (run_id)
    WHERE r.run_id = ANY ($1) AND r.status = 'completed' AND t.outcome IS NULL AND NOT {ASKED_ANEW}""",
)

TRANSCRIPT = Invariant(
    "a run's messages have the results of a response's calls directly after it, all of them in order or none; "
    "none only where the run stopped there",
    "a model would be shown calls without results, or with those of others",
    # Results are appended when their step closes, in one write. What has none is the step that is open, or was when the
    # run ended, or failed and was asked anew; whoever reads the thread later closes those (engine/model_request.py).
    # Messages of others may stand in between: they, too, are moved aside when a request is built. Copies of a thread
    # may be cut anywhere. Results that come before any response had one that was purged while its calls were open.
    f"""
    WITH keys AS MATERIALIZED (SELECT DISTINCT thread_key FROM runs WHERE run_id = ANY ($1)),
    said AS MATERIALIZED (
        SELECT r.run_id, m.seq, m.role, {readable("m.body")} AS body,
               count(*) FILTER (WHERE m.role = 'assistant') OVER (PARTITION BY r.run_id ORDER BY m.seq) AS response
        FROM keys JOIN messages m USING (thread_key)
        JOIN runs r ON r.run_id = m.run_id AND r.thread_key = m.thread_key WHERE m.run_id = ANY ($1)),
    responses AS MATERIALIZED (
        SELECT run_id, response, min(seq) AS seq, response = max(response) OVER (PARTITION BY run_id) AS last,
               array_agg(body->>'tool_call_id' ORDER BY seq) FILTER (WHERE role = 'tool') AS results,
               min((SELECT string_agg(call->>'id', chr(10) ORDER BY n)
                    FROM json_array_elements(body->'tool_calls') WITH ORDINALITY AS asked(call, n)))
                   FILTER (WHERE role = 'assistant') AS calls
        FROM said GROUP BY run_id, response)
    SELECT r.run_id, s.seq, s.calls, s.results FROM responses s JOIN runs r USING (run_id)
    WHERE CASE WHEN s.results IS NULL
        THEN s.calls IS NOT NULL AND NOT (s.last AND r.status <> 'completed') AND NOT {ASKED_ANEW}
        ELSE array_to_string(s.results, chr(10), '?') IS DISTINCT FROM s.calls
             AND NOT (s.response = 0 AND EXISTS (
                SELECT 1 FROM compactions k WHERE k.thread_key = r.thread_key AND k.purged)) END""",
)

CALLS = (ASKED, NAMED_ONCE, ENDED, ALL_ANSWERED, TRANSCRIPT)
