"""Looks at a database in operation: who is at work, what waits for whom, what is stuck. Each is one bounded query.

What a role may not see is left out by Postgres itself (pg_stat_activity), or refused; see `look`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import asyncpg

from app.db.database import Connection
from app.db.invariants.invariant import TERMINAL, readable
from app.engine.crashes import SUSPECT_CRASHES
from app.engine.interactions import InteractionKind

MOST_ROWS = 10
MOST_REPLICAS = 1000
# What a healthy service does within a second or two is late after this.
LATE_S = 15.0
_WITHIN_MS = 5000
_OURS = frozenset({"total", "a", "b", "c", "d"})


class Look(StrEnum):
    """What is looked at."""

    COUNTS = "counts"
    REPLICAS = "replicas"
    OVERDUE = "overdue"
    ORPHANED = "orphaned"
    READY = "ready"
    STALLED = "stalled"
    LOCKS = "locks"
    TRANSACTIONS = "transactions"
    SUSPECTS = "suspects"
    DEAD_ROWS = "dead_rows"
    LACKING = "lacking"
    POISONED = "poisoned"
    BEHIND = "behind"
    PAUSED = "paused"
    WAITING = "waiting"
    PUT_OFF = "put_off"
    SCHEDULED = "scheduled"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What counts as late, in seconds.

    Args:
        lease_s, step_deadline_s: as the service's settings have them.
        lock_s, transaction_s: for how long a statement may wait for a lock, and a transaction be open.
    """

    lease_s: float
    step_deadline_s: float
    lock_s: float = 3.0
    transaction_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Seen:
    """The first rows of a look, worst first, and how many there are in all; ages are in seconds (`…_s`).

    `missing` says why nothing could be seen: the role may not, or it took too long.
    """

    rows: tuple[Mapping[str, object], ...] = ()
    total: int = 0
    missing: str | None = None


def _age(moment: str) -> str:
    return f"extract(epoch FROM clock_timestamp() - {moment})::float8"


_LIVE = "p.heartbeat_at > clock_timestamp() - make_interval(secs => $1)"
_LAST_EVENT = "LATERAL (SELECT created_at AS at FROM run_events WHERE run_id = r.run_id ORDER BY seq DESC LIMIT 1)"
_BEGUN = """LATERAL (SELECT count(*) AS times FROM run_events
                     WHERE run_id = r.run_id AND type IN ('run_started', 'run_resumed'))"""
_LATE = f"make_interval(secs => {LATE_S})"

# When the wait of a run is over at the latest: that of the first of what it waits for.
_EXPIRY = f"""LATERAL (SELECT min(at) AS at FROM (
    SELECT expires_at AS at FROM interactions WHERE run_id = r.run_id AND status = 'pending'
    UNION ALL SELECT expires_at FROM tool_executions WHERE run_id = r.run_id AND outcome IS NULL AND posted IS NULL
    UNION ALL SELECT deadline_at FROM runs WHERE parent_run_id = r.run_id AND status NOT IN {TERMINAL}) AS ends)"""
_ASKED = f"""CASE kind
    WHEN '{InteractionKind.APPROVAL}' THEN 'an approval of ' || coalesce(tool_name, 'a model call')
    WHEN '{InteractionKind.INPUT}' THEN 'an answer from a person about ' || coalesce(tool_name, 'a model call')
    ELSE 'somebody to say what became of ' || coalesce(tool_name, 'a call') END"""
_WAITS_FOR = f"""LATERAL (
    SELECT array_to_string((array_agg(what ORDER BY what))[:{MOST_ROWS}], ', ')
               || CASE WHEN count(*) > {MOST_ROWS} THEN ' and ' || count(*) - {MOST_ROWS} || ' more' ELSE '' END
               AS what,
           (array_agg(interaction_id ORDER BY what) FILTER (WHERE interaction_id IS NOT NULL))[:{MOST_ROWS}]
               AS interaction_ids,
           (array_agg(tool_call_id ORDER BY what) FILTER (WHERE tool_call_id IS NOT NULL))[:{MOST_ROWS}]
               AS tool_call_ids
    FROM (
        SELECT {_ASKED} || ' (interaction ' || interaction_id || ')' AS what, interaction_id, NULL AS tool_call_id
            FROM interactions WHERE run_id = r.run_id AND status = 'pending'
        UNION ALL SELECT 'child run ' || run_id, NULL, NULL
            FROM runs WHERE parent_run_id = r.run_id AND status NOT IN {TERMINAL}
        UNION ALL SELECT 'the result of ' || tool_name || ' (tool call ' || tool_call_id || ')', NULL, tool_call_id
            FROM tool_executions
            WHERE run_id = r.run_id AND outcome IS NULL AND posted IS NULL AND expires_at IS NOT NULL) AS each)"""

# $1 to $4 are the `Surroundings`, in their order.
_LOOKS: Mapping[Look, str] = {
    Look.COUNTS: "SELECT status, count(*) AS runs FROM runs GROUP BY status ORDER BY status",
    Look.REPLICAS: f"""
        SELECT p.incarnation AS replica, p.host, p.pid, p.draining, {_LIVE} AS live, {_age("p.heartbeat_at")} AS beat_s,
               (SELECT count(*) FROM runs r WHERE r.owner = p.incarnation AND r.status = 'running') AS runs
        FROM replicas p ORDER BY p.heartbeat_at DESC""",
    Look.OVERDUE: f"""
        SELECT run_id, what, {_age("at")} AS late_s FROM (
            SELECT run_id, 'question ' || interaction_id AS what, expires_at AS at FROM interactions
            WHERE status = 'pending' AND expires_at < clock_timestamp() - {_LATE}
            UNION ALL SELECT t.run_id, 'tool call ' || t.tool_call_id, t.expires_at FROM tool_executions t
            JOIN runs r USING (run_id)
            WHERE t.expires_at < clock_timestamp() - {_LATE} AND t.posted IS NULL AND t.finished_at IS NULL
              AND r.status NOT IN {TERMINAL}
            UNION ALL SELECT run_id, 'the run itself, a child run', deadline_at FROM runs
            WHERE deadline_at < clock_timestamp() - {_LATE} AND finished_at IS NULL AND status <> 'paused') AS late
        ORDER BY at""",
    Look.ORPHANED: f"""
        SELECT r.run_id, r.agent_name, r.owner AS replica, p.host, p.pid, {_age("p.heartbeat_at")} AS beat_s,
               {_age("coalesce(p.heartbeat_at, e.at, r.started_at, r.created_at)")} AS dead_s
        FROM runs r LEFT JOIN replicas p ON p.incarnation = r.owner LEFT JOIN {_LAST_EVENT} AS e ON true
        WHERE r.status = 'running' AND (p.incarnation IS NULL OR NOT {_LIVE}) ORDER BY p.heartbeat_at NULLS FIRST""",
    Look.READY: f"""
        SELECT r.run_id, r.agent_name, {_age("r.available_at")} AS ready_s FROM runs r
        WHERE r.status = 'queued' AND r.holds_thread AND r.crashes < {SUSPECT_CRASHES}
          AND r.available_at < clock_timestamp() - {_LATE} ORDER BY r.available_at""",
    Look.STALLED: f"""
        SELECT r.run_id, r.agent_name, r.step, {_age("coalesce(e.at, r.started_at)")} AS silent_s, p.host, p.pid,
               (SELECT string_agg(DISTINCT tool_name, ', ') FROM tool_executions
                WHERE run_id = r.run_id AND started_at IS NOT NULL AND outcome IS NULL) AS tools
        FROM runs r JOIN replicas p ON p.incarnation = r.owner AND {_LIVE} LEFT JOIN {_LAST_EVENT} AS e ON true
        WHERE r.status = 'running'
          AND coalesce(e.at, r.started_at) < clock_timestamp() - make_interval(secs => $2)
        ORDER BY coalesce(e.at, r.started_at)""",
    Look.LOCKS: f"""
        SELECT a.pid, pg_blocking_pids(a.pid) AS blocked_by, {_age("a.query_start")} AS waiting_s, a.application_name
        FROM pg_stat_activity a WHERE a.datname = current_database() AND a.wait_event_type = 'Lock'
          AND a.query_start < clock_timestamp() - make_interval(secs => $3) ORDER BY a.query_start""",
    Look.TRANSACTIONS: f"""
        SELECT a.pid, a.usename::text AS role, a.application_name, a.state, {_age("a.xact_start")} AS open_s
        FROM pg_stat_activity a WHERE a.datname = current_database() AND a.backend_type = 'client backend'
          AND a.xact_start < clock_timestamp() - make_interval(secs => $4) ORDER BY a.xact_start""",
    Look.SUSPECTS: f"""
        SELECT run_id, agent_name, status, crashes FROM runs
        WHERE (status = 'queued' AND crashes >= {SUSPECT_CRASHES})
           OR (status = 'running' AND crashes >= {SUSPECT_CRASHES}) ORDER BY run_id""",
    Look.DEAD_ROWS: """
        SELECT relname::text AS name, n_dead_tup AS dead, n_live_tup AS live, last_autovacuum::text AS vacuumed
        FROM pg_stat_user_tables WHERE n_dead_tup > 10000 AND n_dead_tup > 5 * n_live_tup ORDER BY n_dead_tup DESC""",
    Look.LACKING: f"""
        SELECT r.run_id, r.agent_name, r.attempt - b.times AS times FROM runs r CROSS JOIN {_BEGUN} AS b
        WHERE r.status = 'queued' AND r.crashes = 0 AND r.resume_reason = 'drain' AND r.attempt > b.times + 1
        ORDER BY 3 DESC""",
    Look.POISONED: f"""
        SELECT run_id, agent_name, {_age("finished_at")} AS ended_s FROM runs
        WHERE finished_at > clock_timestamp() - interval '1 day' AND status = 'failed'
          AND {readable("error")}->>'code' = 'poisoned' ORDER BY finished_at DESC""",
    Look.BEHIND: f"""
        SELECT t.thread_id, r.run_id AS holder, r.status, line.runs, {_age("e.at")} AS since_s, w.what,
               w.interaction_ids, w.tool_call_ids, -{_age("x.at")} AS expires_s
        FROM (SELECT thread_key, count(*) AS runs FROM runs
              WHERE status = 'queued' AND NOT holds_thread AND ordinal IS NOT NULL GROUP BY thread_key) AS line
        JOIN threads t USING (thread_key) JOIN runs r ON r.run_id = t.holder_run_id
        LEFT JOIN {_LAST_EVENT} AS e ON true LEFT JOIN {_WAITS_FOR} AS w ON r.status = 'waiting'
        LEFT JOIN {_EXPIRY} AS x ON r.status = 'waiting' ORDER BY line.runs DESC""",
    Look.PAUSED: f"""
        SELECT r.run_id, r.agent_name, {_age("e.at")} AS since_s FROM runs r LEFT JOIN {_LAST_EVENT} AS e ON true
        WHERE r.status = 'paused' ORDER BY e.at""",
    Look.WAITING: f"""
        SELECT r.run_id, r.agent_name, w.what, w.interaction_ids, w.tool_call_ids, {_age("e.at")} AS since_s,
               -{_age("x.at")} AS expires_s FROM runs r
        LEFT JOIN {_LAST_EVENT} AS e ON true CROSS JOIN {_WAITS_FOR} AS w CROSS JOIN {_EXPIRY} AS x
        WHERE r.status = 'waiting' ORDER BY x.at""",
    Look.PUT_OFF: f"""
        SELECT run_id, agent_name, attempt, resume_reason, -{_age("available_at")} AS in_s FROM runs
        WHERE status = 'queued' AND ordinal IS NOT NULL AND available_at > clock_timestamp() ORDER BY available_at""",
    Look.SCHEDULED: f"""
        SELECT run_id, agent_name, -{_age("available_at")} AS in_s FROM runs
        WHERE status = 'queued' AND ordinal IS NULL ORDER BY available_at""",
}


async def look(connection: Connection, what: Look, around: Surroundings) -> Seen:
    """One look, inside the caller's transaction; it takes five seconds and `MOST_ROWS` rows (`MOST_REPLICAS`) at most.

    Raises:
        asyncpg.PostgresError: the database is not one of the service's.
    """
    arguments = (around.lease_s, around.step_deadline_s, around.lock_s, around.transaction_s)
    most = MOST_REPLICAS if what is Look.REPLICAS else MOST_ROWS
    query = f"""
        SELECT seen.*, count(*) OVER () AS total FROM ({_LOOKS[what]}) AS seen
        CROSS JOIN (SELECT $1::float8, $2::float8, $3::float8, $4::float8) AS arguments(a, b, c, d) LIMIT {most}"""
    try:
        async with connection.transaction():  # a savepoint: a look that fails leaves the others be
            await connection.execute(f"SET LOCAL statement_timeout = {_WITHIN_MS}")
            rows = await connection.fetch(query, *arguments)
    except asyncpg.QueryCanceledError:
        return Seen(missing=f"it took longer than {_WITHIN_MS // 1000} s")
    except asyncpg.InsufficientPrivilegeError as error:
        return Seen(missing=f"the database says: {error}")
    found = tuple({name: value for name, value in row.items() if name not in _OURS} for row in rows)
    return Seen(found, rows[0]["total"] if rows else 0)
