"""Child runs: how they begin, and what their parents see of them."""

from __future__ import annotations

from datetime import datetime

from app.db.memory.calls import CallRow
from app.db.memory.rows import RunRow
from app.db.memory.tables import Tables
from app.engine.moves import ChildEnd
from app.engine.records import NewRun, SubagentExecution
from app.engine.status import RunStatus
from app.engine.usage import add_cost


def begin(tables: Tables, new: NewRun, now: datetime) -> None:
    """Create a child run: queued, and the holder of its own thread."""
    thread = tables.add_thread(new.tenant_id, new.thread_id, new.thread_key)
    tables.join_line(tables.add_run(new, thread, now), now)


def of_open_calls(tables: Tables, row: RunRow) -> list[tuple[CallRow, RunRow]]:
    """The calls that child runs are to answer, each with its child."""
    found = ((call, _child_of(tables, call)) for call in row.open_calls())
    return [(call, child) for call, child in found if child is not None]


def may_need(tables: Tables, row: RunRow, child: RunRow) -> bool:
    """Whether a run is not over, or would take in how that child ended if it were resumed."""
    if row.status in (RunStatus.FAILED, RunStatus.INTERRUPTED):
        return any(open_child is child for _, open_child in of_open_calls(tables, row))
    return not row.status.terminal


def ends(tables: Tables, row: RunRow) -> tuple[ChildEnd, ...]:
    """The child runs that are over and whose calls are open."""
    delegated = of_open_calls(tables, row)
    return tuple(_end_of(call, child) for call, child in delegated if child.status.terminal)


def add_spending(row: RunRow, children: list[RunRow]) -> None:
    """Add what child runs have used to an ended run, which will not do it itself any more."""
    row.spent_before = (row.usage, row.cost_usd)
    for child in children:
        row.usage += child.usage
        row.cost_usd = add_cost(row.cost_usd, child.cost_usd)


def take_spending_back(row: RunRow) -> None:
    """Undo `add_spending` for a run that goes on: it takes its children's ends in again."""
    if row.spent_before is not None:
        row.usage, row.cost_usd = row.spent_before
        row.spent_before = None


def executions(tables: Tables, row: RunRow) -> tuple[SubagentExecution, ...]:
    """The child runs of a run's calls, in the order of the calls."""
    calls = (row.calls[place] for place in sorted(row.calls))
    children = (_child_of(tables, call) for call in calls)
    return tuple(_execution(child) for child in children if child is not None)


def _child_of(tables: Tables, call: CallRow) -> RunRow | None:
    return None if call.child_run_id is None else tables.runs.get(call.child_run_id)


def _end_of(call: CallRow, child: RunRow) -> ChildEnd:
    return ChildEnd(
        index=call.call.index,
        run_id=child.run_id,
        status=child.status,
        final_text=_final_text(child) or "",
        error=child.error,
        usage=child.usage,
        cost_usd=child.cost_usd,
        latency_ms=_latency_ms(child) or 0.0,
    )


def _execution(child: RunRow) -> SubagentExecution:
    return SubagentExecution(
        subagent_name=child.new.agent.definition.name,
        run_id=child.run_id,
        status=child.status,
        output_text=_final_text(child),
        error=None if child.error is None else child.error.message,
        latency_ms=_latency_ms(child),
        usage=child.usage,
    )


def _final_text(child: RunRow) -> str | None:
    return None if child.result is None else child.result.get("final_text")


def _latency_ms(child: RunRow) -> float | None:
    return None if child.finished_at is None else (child.finished_at - child.created_at).total_seconds() * 1000
