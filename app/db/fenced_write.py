"""The owner's write: one statement, one round trip, which does everything or nothing.

`held` is the fence: it updates the run's row only where epoch, write number and status are as the owner knows them,
numbers the events from the row's counter and reads a pause request, all at once. Every other part hangs on `held`; no
row back means that this attempt has lost the run. Parts that a write does not need are left out of its text, and
each of the few texts is prepared once per connection.

Lock order: the thread's row, then the run's. It is forced by `held` depending on `thread`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from app.db.database import Connection
from app.db.rows import TOOL_RECORD_COLUMNS, json_text, tool_record_arrays
from app.engine.events import StoredEvent, encode
from app.engine.ownership import Committed, Fence, Write
from app.engine.status import RunStatus


@dataclass(frozen=True, slots=True)
class Parts:
    """Which parts a write has; with it the text of its statement is fixed."""

    messages: bool
    records: bool
    checkpoint: bool
    pausable: bool
    progress: bool
    waits: bool
    terminal: bool
    compaction: bool


class _Arguments:
    """Positional arguments of a statement, numbered as they are named."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str, cast: str) -> str:
        if name not in self.names:
            self.names.append(name)
        return f"${self.names.index(name) + 1}::{cast}"


@cache
def statement(parts: Parts) -> tuple[str, tuple[str, ...]]:
    """The SQL of a write with these parts, and the names of its arguments in order."""
    arg = _Arguments()
    needs_thread = parts.messages or parts.terminal
    with_parts = [_held(parts, arg, needs_thread), _place(parts, arg), _events(parts, arg)]
    if needs_thread:
        lock = f"thread AS (SELECT 1 FROM threads WHERE thread_key = {arg('thread_key', 'uuid')} FOR NO KEY UPDATE)"
        with_parts.insert(0, lock)
        with_parts.append(_line(parts, arg))
    if parts.messages:
        with_parts.append(_messages(arg))
    if parts.records:
        with_parts.append(_records(arg))
    if parts.checkpoint:
        with_parts.append(_checkpoint(arg, needs_thread))
    if parts.compaction:
        with_parts.append(_compaction(arg))
    promoted = (
        f"CASE WHEN line.queued > 0 THEN promote_next({arg('thread_key', 'uuid')}) END"
        if parts.terminal
        else "NULL::uuid"
    )
    first_seq = "line.first_seq" if needs_thread else "NULL::bigint"
    tail = f"""
SELECT place.status, place.first_event, place.at, {first_seq} AS first_message, {promoted} AS promoted
FROM place{", line" if needs_thread else ""}"""
    return "WITH " + ",\n".join(with_parts) + tail, tuple(arg.names)


def _held(parts: Parts, arg: _Arguments, needs_thread: bool) -> str:
    pauses = parts.pausable
    count = arg("event_count", "int")
    if pauses:
        count = f"CASE WHEN control = 'pause' THEN {arg('pause_count', 'int')} ELSE {count} END"
    status = arg("status", "text")
    sets = [
        "write_no = write_no + 1",
        f"last_seq = last_seq + {count}",
        f"status = CASE WHEN control = 'pause' THEN 'paused' ELSE {status} END" if pauses else f"status = {status}",
        f"step = {arg('step', 'int')}",
        f"llm_calls = {arg('llm_calls', 'bigint')}",
        f"input_tokens = {arg('input_tokens', 'bigint')}",
        f"output_tokens = {arg('output_tokens', 'bigint')}",
        f"cached_input_tokens = {arg('cached_input_tokens', 'bigint')}",
        f"reasoning_tokens = {arg('reasoning_tokens', 'bigint')}",
        f"cost_usd = {arg('cost_usd', 'numeric')}",
        f"elapsed_s = {arg('elapsed_s', 'float8')}",
    ]
    if parts.progress:
        sets.append("crashes = 0")
    if pauses:
        sets += [
            "owner = NULL" if parts.waits else "owner = CASE WHEN control = 'pause' THEN NULL ELSE owner END",
            "resume_reason = CASE WHEN control = 'pause' THEN 'pause' END",
            "control = NULL",
        ]
    else:
        sets.append("resume_reason = NULL")
    if parts.waits:
        sets.append(f"waiting_for = {arg('waiting_for', 'json')}")
    if parts.terminal:
        sets += [
            "owner = NULL",
            "control = NULL",
            "holds_thread = false",
            "finished_at = clock_timestamp()",
            f"result = {arg('result', 'json')}",
            f"error = {arg('error', 'json')}",
        ]
    thread_locked = "AND EXISTS (SELECT 1 FROM thread)" if needs_thread else ""
    return f"""held AS (
    UPDATE runs SET {", ".join(sets)}
    WHERE run_id = {arg("run_id", "uuid")} AND epoch = {arg("epoch", "bigint")}
      AND write_no = {arg("write_no", "bigint")} AND wakes = {arg("wakes", "bigint")} AND status = 'running'
      {thread_locked}
    RETURNING last_seq, status, clock_timestamp() AS at)"""


def _place(parts: Parts, arg: _Arguments) -> str:
    count = arg("event_count", "int")
    if parts.pausable:
        count = f"CASE WHEN status = 'paused' THEN {arg('pause_count', 'int')} ELSE {count} END"
    return f"place AS (SELECT status, at, last_seq - {count} + 1 AS first_event FROM held)"


def _events(parts: Parts, arg: _Arguments) -> str:
    types, bodies = arg("types", "text[]"), arg("bodies", "text[]")
    if parts.pausable:
        types = f"CASE WHEN status = 'paused' THEN {arg('pause_types', 'text[]')} ELSE {types} END"
        bodies = f"CASE WHEN status = 'paused' THEN {arg('pause_bodies', 'text[]')} ELSE {bodies} END"
    return f"""written AS (
    INSERT INTO run_events (run_id, seq, type, created_at, body)
    SELECT {arg("run_id", "uuid")}, first_event + n - 1, type, at, body::json
    FROM place, unnest({types}, {bodies}) WITH ORDINALITY AS event(type, body, n))"""


def _line(parts: Parts, arg: _Arguments) -> str:
    release = ", holder_run_id = NULL" if parts.terminal else ""
    count = arg("message_count", "int")
    return f"""line AS (
    UPDATE threads SET next_seq = next_seq + {count}{release} FROM held
    WHERE thread_key = {arg("thread_key", "uuid")}
    RETURNING next_seq - {count} AS first_seq, queued)"""


def _messages(arg: _Arguments) -> str:
    return f"""said AS (
    INSERT INTO messages (thread_key, seq, run_id, role, body)
    SELECT {arg("thread_key", "uuid")}, first_seq + n - 1, {arg("run_id", "uuid")}, role, body::json
    FROM line, unnest({arg("roles", "text[]")}, {arg("messages", "text[]")})
         WITH ORDINALITY AS message(role, body, n))"""


def _records(arg: _Arguments) -> str:
    columns = ", ".join(arg(name, cast) for name, cast in TOOL_RECORD_COLUMNS)
    return f"""called AS (
    INSERT INTO tool_executions AS t (run_id, step, call_index, tool_call_id, tool_name, arguments, effect,
                                      started_at, finished_at, outcome, judged, final_arguments, hold, child_run_id,
                                      expires_at)
    SELECT {arg("run_id", "uuid")}, c.step, c.call_index, c.id, c.name, c.arguments::json, c.effect,
           CASE WHEN c.started THEN at END, CASE WHEN c.outcome IS NOT NULL THEN at END, c.outcome::json,
           c.judged, c.final::json, c.hold::json, c.child, c.expires_at
    FROM place, unnest({columns}) AS c(step, call_index, id, name, arguments, effect, started, outcome, judged, final,
                                       hold, child, expires_at)
    ON CONFLICT (run_id, step, call_index) DO UPDATE
    SET tool_call_id = EXCLUDED.tool_call_id, tool_name = EXCLUDED.tool_name, arguments = EXCLUDED.arguments,
        effect = EXCLUDED.effect, judged = EXCLUDED.judged, final_arguments = EXCLUDED.final_arguments,
        hold = EXCLUDED.hold, expires_at = EXCLUDED.expires_at,
        started_at = CASE WHEN EXCLUDED.started_at IS NOT NULL AND t.tool_call_id = EXCLUDED.tool_call_id
                          THEN COALESCE(t.started_at, EXCLUDED.started_at) ELSE EXCLUDED.started_at END,
        finished_at = EXCLUDED.finished_at, outcome = EXCLUDED.outcome,
        child_run_id = CASE WHEN t.tool_call_id = EXCLUDED.tool_call_id
                            THEN COALESCE(EXCLUDED.child_run_id, t.child_run_id) ELSE EXCLUDED.child_run_id END,
        posted = CASE WHEN t.tool_call_id = EXCLUDED.tool_call_id THEN t.posted END)"""


def _checkpoint(arg: _Arguments, needs_thread: bool) -> str:
    message_seq = (
        f"line.first_seq + {arg('message_count', 'int')} - 1" if needs_thread else arg("message_seq", "bigint")
    )
    return f"""saved AS (
    INSERT INTO checkpoints (run_id, seq, step, phase, message_seq, state, created_at)
    SELECT {arg("run_id", "uuid")}, first_event + {arg("before_checkpoint", "int")} - 1,
           {arg("checkpoint_step", "int")}, {arg("phase", "text")}, {message_seq}, {arg("state", "json")}, at
    FROM place{", line" if needs_thread else ""})"""


def _compaction(arg: _Arguments) -> str:
    columns = (("thread_key", "uuid"), ("upto_seq", "bigint"), ("run_id", "uuid"), ("summary", "text"))
    values = ", ".join(arg(name, cast) for name, cast in columns)
    return f"""compacted AS (
    INSERT INTO compactions (thread_key, upto_seq, run_id, summary, created_at)
    SELECT {values}, at FROM place ON CONFLICT DO NOTHING)"""


class FencedWrite:
    """One `Write`, encoded once and sent as often as it takes."""

    def __init__(self, fence: Fence, thread_key: str, write: Write) -> None:
        self.fence = fence
        self._write = write
        events = (*write.events, *write.opening)
        self._types = [event.type.value for event in events]
        self._bodies = [encode(event, write.identity) for event in events]
        on_pause = write.on_pause
        self._pause_types: list[str] = []
        self._pause_bodies: list[str] = []
        if on_pause is not None:
            kept = len(write.events)
            self._pause_types = self._types[:kept] + [event.type.value for event in on_pause]
            self._pause_bodies = self._bodies[:kept] + [encode(event, write.identity) for event in on_pause]
        self._messages = (*write.start, *write.messages)
        self.parts = Parts(
            messages=bool(self._messages),
            records=bool(write.records),
            checkpoint=write.checkpoint is not None,
            pausable=on_pause is not None,
            progress=write.progress,
            waits=write.status is RunStatus.WAITING,
            terminal=write.status.terminal,
            compaction=write.compaction is not None,
        )
        self._values = self._arguments(thread_key)

    async def send(self, connection: Connection) -> Committed | None:
        """Commit it. None: the fence did not hold."""
        sql, names = statement(self.parts)
        values = self._values
        row = await connection.fetchrow(sql, *[values[name] for name in names])
        if row is None:
            return None
        promoted = row["promoted"]
        return self.committed(
            RunStatus(row["status"]),
            row["first_event"],
            row["at"],
            row["first_message"],
            promoted and str(promoted),
        )

    def committed(
        self,
        status: RunStatus,
        first_event: int,
        at: datetime,
        first_message: int | None,
        promoted: str | None,
    ) -> Committed:
        """The answer to a write that took place, from where its events and messages came to stand."""
        paused = self.parts.pausable and status is RunStatus.PAUSED
        types, bodies = (self._pause_types, self._pause_bodies) if paused else (self._types, self._bodies)
        fence = self.fence
        return Committed(
            fence=Fence(fence.run_id, fence.epoch, fence.write_no + 1),
            events=stored_events(first_event, at, types, bodies),
            status=status,
            first_message_seq=first_message if self._messages else None,
            message_seq=first_message + len(self._messages) - 1 if self._messages and first_message else None,
            promoted=promoted,
        )

    @property
    def message_count(self) -> int:
        return len(self._messages)

    def event_types(self, status: RunStatus) -> list[str]:
        """The types of the events that it wrote if the run has this status after it."""
        return self._pause_types if self.parts.pausable and status is RunStatus.PAUSED else self._types

    def _arguments(self, thread_key: str) -> dict[str, Any]:
        write, fence, usage = self._write, self.fence, self._write.usage
        values: dict[str, Any] = {
            "run_id": fence.run_id,
            "epoch": fence.epoch,
            "write_no": fence.write_no,
            "wakes": write.wakes,
            "thread_key": thread_key,
            "status": write.status.value,
            "step": write.step,
            "llm_calls": usage.llm_calls,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cached_input_tokens": usage.cached_input_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
            "cost_usd": write.cost_usd,
            "elapsed_s": write.elapsed_s,
            "types": self._types,
            "bodies": self._bodies,
            "event_count": len(self._types),
            "pause_types": self._pause_types,
            "pause_bodies": self._pause_bodies,
            "pause_count": len(self._pause_types),
            "message_count": len(self._messages),
            "message_seq": write.message_seq,
            "roles": [message.role.value for message in self._messages],
            "messages": [json_text(message.body()) for message in self._messages],
            "before_checkpoint": len(write.events),
        }
        if write.checkpoint is not None:
            values["checkpoint_step"] = write.checkpoint.step
            values["phase"] = write.checkpoint.phase.value
            values["state"] = json_text(write.checkpoint.state)
        if write.status is RunStatus.WAITING:
            values["waiting_for"] = json_text(write.waiting_for)
        if write.status.terminal:
            values["result"] = json_text(write.result)
            values["error"] = None if write.error is None else json_text(write.error.as_dict())
        if write.compaction is not None:
            values |= {"upto_seq": write.compaction.upto_seq, "summary": write.compaction.summary}
        if write.records:
            arrays = tool_record_arrays(write.records)
            values |= {name: array for (name, _), array in zip(TOOL_RECORD_COLUMNS, arrays, strict=True)}
        return values


def stored_events(first: int, at: datetime, types: Sequence[str], bodies: Sequence[str]) -> tuple[StoredEvent, ...]:
    """Numbered events of one write; all of them carry its time."""
    return tuple(
        StoredEvent(first + i, kind, at, body) for i, (kind, body) in enumerate(zip(types, bodies, strict=True))
    )
