"""Rows as the engine's records."""

from __future__ import annotations

from app.db.memory import children, stimuli
from app.db.memory.rows import RunRow
from app.db.memory.tables import Tables
from app.engine.ownership import Loaded
from app.engine.records import RunRecord, ToolExecution
from app.engine.status import RunStatus


def record(tables: Tables, row: RunRow, *, with_tools: bool = True) -> RunRecord:
    """A run as readers see it.

    Args:
        with_tools: whether with its tool calls and child runs.
    """
    new, lineage, identity = row.new, row.new.lineage, row.new.identity
    return RunRecord(
        run_id=new.run_id,
        tenant_id=new.tenant_id,
        thread_id=new.thread_id,
        thread_key=row.thread.thread_key,
        agent_name=new.agent.definition.name,
        agent_version=new.agent.version,
        status=row.status,
        pause_requested=row.pause_requested,
        step=row.step,
        attempt=row.attempt,
        last_event_seq=len(row.events),
        input=new.input,
        context=new.context,
        metadata=new.metadata,
        overrides=row.overrides,
        requested_model=row.overrides.model or new.agent.definition.model,
        user_id=new.user_id,
        parent_run_id=row.parent_run_id,
        on_disconnect=new.on_disconnect,
        usage=row.usage,
        cost_usd=row.cost_usd,
        elapsed_s=row.elapsed_s,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        result=row.result,
        error=row.error,
        owner=row.owner,
        epoch=row.epoch,
        wakes=row.wakes,
        waiting_for=row.waiting_for if row.status is RunStatus.WAITING else (),
        agent_depth=identity.agent_depth,
        agent_path=identity.agent_path,
        root_run_id=new.run_id if lineage is None else lineage.root_run_id,
        forked_from=new.forked_from,
        trace_context=new.trace_context,
        tool_executions=_tool_executions(row) if with_tools else None,
        subagent_executions=children.executions(tables, row) if with_tools else None,
    )


def loaded(tables: Tables, row: RunRow) -> Loaded:
    """All that an attempt needs to go on."""
    checkpoint = row.checkpoint
    return Loaded(
        run=record(tables, row),
        agent=row.new.agent,
        checkpoint=checkpoint,
        checkpoint_seq=row.checkpoint_seq,
        calls=() if checkpoint is None else row.step_calls(checkpoint.step),
        messages=tuple(row.thread.conversation()),
        used_ids=frozenset(call.call.call.id for call in row.calls.values()),
        resume_reason=None if checkpoint is None else row.resume_reason,
        elapsed_s=row.elapsed_s,
        wall_from_s=row.wall_from_s,
        stimuli=stimuli.stimuli_of(tables, row),
        now=tables.clock(),
    )


def _tool_executions(row: RunRow) -> tuple[ToolExecution, ...]:
    return tuple(row.calls[place].as_execution() for place in sorted(row.calls))
