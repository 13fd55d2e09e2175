"""Read runs: as callers see them, and as an attempt needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from uuid import UUID

import asyncpg
import orjson

from app.db.database import Connection
from app.db.rows import (
    RUN_COLUMNS,
    TOOL_EXECUTIONS,
    definition_from_json,
    event_from_row,
    open_call_from_row,
    run_from_row,
    run_uuid,
)
from app.db.steering import with_executions
from app.db.stimuli import stimuli_since
from app.engine.agent import AgentVersion
from app.engine.compaction import NewCompaction, is_summary, with_summary
from app.engine.events import ResumeReason, StoredEvent
from app.engine.messages import Message, ThreadMessage
from app.engine.ownership import Loaded
from app.engine.records import RunRecord
from app.engine.state import Checkpoint, Phase
from app.engine.status import RunStatus
from app.engine.store_errors import RunNotFound


async def get_run(connection: Connection, run_id: str, *, with_tools: bool) -> RunRecord:
    """Raises: RunNotFound."""
    key = run_uuid(run_id)
    row = await connection.fetchrow(
        f"""SELECT {RUN_COLUMNS}, EXISTS (SELECT 1 FROM tool_executions t WHERE t.run_id = runs.run_id) AS has_tools
            FROM runs WHERE run_id = $1""",
        key,
    )
    if row is None:
        raise RunNotFound(run_id)
    return await with_executions(connection, row) if with_tools and row["has_tools"] else run_from_row(row, [])


async def load_run(connection: Connection, run_id: str) -> Loaded:
    """Raises: RunNotFound."""
    key = run_uuid(run_id)
    row = await connection.fetchrow(f"SELECT {RUN_COLUMNS}, clock_timestamp() AS now FROM runs WHERE run_id = $1", key)
    if row is None:
        raise RunNotFound(run_id)
    saved = await connection.fetchrow(
        "SELECT seq, step, phase, state FROM checkpoints WHERE run_id = $1 ORDER BY seq DESC LIMIT 1", key
    )
    calls = await connection.fetch(TOOL_EXECUTIONS, key) if saved is not None else []
    messages = await conversation(connection, str(row["thread_key"]))
    # What the messages do not show, because a summary stands for it.
    hidden = bool(messages) and is_summary(messages[0]) and saved is not None
    used_ids = (
        await connection.fetch("SELECT tool_call_id FROM tool_executions WHERE run_id = $1", key) if hidden else []
    )
    reason = row["resume_reason"]
    return Loaded(
        run=run_from_row(row, calls),
        agent=await agent_version(connection, row["agent_version_id"]),
        checkpoint=None
        if saved is None
        else Checkpoint(saved["step"], Phase(saved["phase"]), orjson.loads(saved["state"])),
        checkpoint_seq=0 if saved is None else saved["seq"],
        calls=tuple(open_call_from_row(call) for call in calls if saved is not None and call["step"] == saved["step"]),
        messages=tuple(messages),
        used_ids=frozenset(used["tool_call_id"] for used in used_ids),
        # An attempt that left nothing behind does not count: the run begins now.
        resume_reason=None if reason is None or saved is None else ResumeReason(reason),
        elapsed_s=row["elapsed_s"],
        wall_from_s=row["wall_from_s"],
        stimuli=await stimuli_since(connection, run_id, row["wakes"]),
        now=row["now"],
    )


async def team(connection: Connection, tenant_id: str, names: Sequence[str]) -> dict[str, AgentVersion]:
    """The current versions of these agents, in the order of the names; those that are gone are left out."""
    rows = await connection.fetch(
        """SELECT a.name, v.version_id, v.version, v.definition FROM agents a JOIN agent_versions v USING (version_id)
           WHERE a.tenant_id = $1 AND a.name = ANY ($2::text[]) AND NOT a.deleted""",
        tenant_id,
        list(names),
    )
    found = {row["name"]: definition_from_json(row["version_id"], row["version"], row["definition"]) for row in rows}
    return {name: found[name] for name in names if name in found}


async def compaction(connection: Connection, thread_key: str) -> NewCompaction | None:
    """The summary that stands in a thread now."""
    row = await connection.fetchrow(
        "SELECT upto_seq, summary FROM compactions WHERE thread_key = $1::uuid ORDER BY upto_seq DESC LIMIT 1",
        thread_key,
    )
    return None if row is None else NewCompaction(row["upto_seq"], row["summary"])


async def conversation(connection: Connection, thread_key: str) -> list[ThreadMessage]:
    """A thread as runs see it: its summary, if it has one, and the messages after that; voided ones left out."""
    summary = await compaction(connection, thread_key)
    if summary is None:
        return await messages_after(connection, thread_key, 0)
    return with_summary(await messages_after(connection, thread_key, summary.upto_seq), summary)


async def messages_after(connection: Connection, thread_key: str, seq: int) -> list[ThreadMessage]:
    rows = await connection.fetch(
        """SELECT seq, run_id, role, body FROM messages
           WHERE thread_key = $1::uuid AND seq > $2 AND NOT voided ORDER BY seq""",
        thread_key,
        seq,
    )
    return [
        ThreadMessage(
            row["seq"],
            Message.from_body(row["role"], orjson.loads(row["body"])),
            None if row["run_id"] is None else str(row["run_id"]),
        )
        for row in rows
    ]


async def read_events(
    connection: Connection, run_id: str, after: int, limit: int, *, most_chars: int = 2**62
) -> list[StoredEvent]:
    """The next events of a run: at most `limit`, and none after those that make up `most_chars` characters of JSON."""
    rows = await connection.fetch(
        """SELECT seq, type, created_at, body FROM (
               SELECT seq, type, created_at, body, chars, sum(chars) OVER (ORDER BY seq) AS total
               FROM (SELECT seq, type, created_at, body, length(body::text) AS chars FROM run_events
                     WHERE run_id = $1 AND seq > $2 ORDER BY seq LIMIT $3) AS page) AS measured
           WHERE total - chars < $4 ORDER BY seq""",
        run_uuid(run_id),
        after,
        limit,
        most_chars,
    )
    return [event_from_row(row) for row in rows]


@dataclass(frozen=True, slots=True)
class RunHead:
    """How far a run's log goes: what readers of events ask first."""

    run_id: str
    status: RunStatus
    ordinal: int
    first_seq: int
    last_seq: int


_HEAD = "SELECT run_id, status, COALESCE(ordinal, 0) AS ordinal, first_seq, last_seq FROM runs"


async def run_head(connection: Connection, run_id: str) -> RunHead:
    """Raises: RunNotFound."""
    row = await connection.fetchrow(f"{_HEAD} WHERE run_id = $1", run_uuid(run_id))
    if row is None:
        raise RunNotFound(run_id)
    return _head_from_row(row)


async def thread_heads(
    connection: Connection, thread_key: str, after_ordinal: int, run_ids: list[str]
) -> list[RunHead]:
    """The runs of a thread behind a place in its line, and those named, in the order of the line."""
    rows = await connection.fetch(
        f"""{_HEAD} WHERE thread_key = $1::uuid AND ordinal IS NOT NULL
            AND (ordinal > $2 OR run_id = ANY ($3::uuid[])) ORDER BY ordinal""",
        thread_key,
        after_ordinal,
        run_ids,
    )
    return [_head_from_row(row) for row in rows]


async def thread_key(connection: Connection, tenant_id: str, thread_id: str) -> str | None:
    key = await connection.fetchval(
        "SELECT thread_key FROM threads WHERE tenant_id = $1 AND thread_id = $2", tenant_id, thread_id
    )
    return None if key is None else str(key)


def _head_from_row(row: asyncpg.Record) -> RunHead:
    return RunHead(str(row["run_id"]), RunStatus(row["status"]), row["ordinal"], row["first_seq"], row["last_seq"])


async def agent_version(connection: Connection, version_id: UUID) -> AgentVersion:
    """A pinned definition. It never changes, so each is parsed once."""
    known = _versions(version_id)
    if not known:
        row = await connection.fetchrow(
            "SELECT version, definition FROM agent_versions WHERE version_id = $1", version_id
        )
        assert row is not None, f"agent version {version_id} of a stored run is gone"
        known.append(definition_from_json(version_id, row["version"], row["definition"]))
    return known[0]


@lru_cache(maxsize=1024)
def _versions(_version_id: UUID) -> list[AgentVersion]:
    """A place for one version, filled by who first reads it; the cache forgets what was not used for longest."""
    return []
