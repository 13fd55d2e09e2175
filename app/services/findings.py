"""What the looks at a database have found, in words, each with what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from app.db.diagnosis import LATE_S, MOST_ROWS, Look, Seen, Surroundings
from app.db.heartbeats import BEATS_PER_LEASE
from app.engine.crashes import AMONG_OTHERS_S, MAX_CRASHES_AMONG_OTHERS, SUSPECT_CRASHES

Row = Mapping[str, object]

# One beat may be late; after so many the replica is about to be taken for dead.
_SILENT_BEATS = 2
_START_ONE = "start one: `agent-runner serve`"


class Severity(StrEnum):
    """Whether somebody has to do something, or only may want to know."""

    PROBLEM = "problem"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Example:
    """One case of a finding: in words, and its values; values of the database's own types."""

    said: str
    row: Row


@dataclass(frozen=True, slots=True)
class Finding:
    """
    Args:
        kind: a stable name, for programs.
        said: what was found; `fix` what to do about it, where something is to be done.
        total: how many cases there are, of which `examples` are the worst; at least so many, if not `exact`.
    """

    kind: str
    severity: Severity
    said: str
    fix: str | None = None
    examples: tuple[Example, ...] = ()
    total: int = 0
    exact: bool = True


@dataclass(frozen=True, slots=True)
class _Replicas:
    """Who is there to do something, as far as that could be seen: each has those of the one before that …

    Args:
        live: … beat within the lease.
        working: … do not drain.
        heard: … are not silent.
    """

    live: Sequence[Row]
    working: Sequence[Row]
    heard: Sequence[Row]


def findings_of(seen: Mapping[Look, Seen], around: Surroundings, max_concurrent_runs: int) -> list[Finding]:
    """What there is to say about what was seen; `max_concurrent_runs` is how many one replica executes at once."""
    replicas = _replicas(seen[Look.REPLICAS], around.lease_s)
    waiting = sum(seen[what].total for what in (Look.READY, Look.ORPHANED, Look.OVERDUE))
    made = [
        _about_replicas(seen[Look.REPLICAS], replicas, around.lease_s, waiting),
        _about_orphans(seen[Look.ORPHANED], replicas, around),
        _about_ready(seen[Look.READY], replicas, max_concurrent_runs),
    ]
    made += [_about(seen[what], *said) for what, said in _SAID.items()]
    for what, noun, said, each in _OTHERS_ACT:
        made.append(_about(seen[what], what, Severity.NOTE, noun, said, _way_on(seen[what]), each))
    return [finding for finding in made if finding is not None]


def _replicas(seen: Seen, lease_s: float) -> _Replicas:
    live = [row for row in seen.rows if row["live"]]
    working = [row for row in live if not row["draining"]]
    return _Replicas(live, working, [row for row in working if not _silent(row, lease_s)])


def _silent(row: Row, lease_s: float) -> bool:
    """Whether a live replica has missed beats."""
    return _seconds(row["beat_s"]) > _SILENT_BEATS * lease_s / BEATS_PER_LEASE


def _about_replicas(seen: Seen, replicas: _Replicas, lease_s: float, waiting: int) -> Finding | None:
    if seen.missing is not None:
        return None
    examples = tuple(Example(replica_of(row, lease_s), row) for row in seen.rows[:MOST_ROWS])
    live, working, heard = len(replicas.live), len(replicas.working), len(replicas.heard)
    needed = Severity.PROBLEM if waiting else Severity.NOTE
    if live == 0:
        said = "no replica is alive: nobody executes, recovers or expires anything"
        return Finding("replicas", needed, said, _START_ONE, examples, seen.total)
    if working == 0:
        said = f"all {number(live, 'live replica')} drain: nobody takes up runs"
        return Finding("replicas", needed, said, "start another: `agent-runner serve`", examples, seen.total)
    if heard == 0:
        are = "is" if working == 1 else "are"
        said = f"no replica beats: {number(working, 'live replica')} {are} silent"
        severity = Severity.PROBLEM if any(row["runs"] for row in replicas.working) else needed
        fix = "see if the process is there and reaches the database; or start another: `agent-runner serve`"
        return Finding("replicas", severity, said, fix, examples, seen.total)
    if heard < len(seen.rows):
        said = f"replicas: {heard} at work, {working - heard} silent, {live - working} draining"
        said = f"{said}, {len(seen.rows) - live} not heard of any more"
        return Finding("replicas", Severity.NOTE, said, None, examples, seen.total)
    return None


def replica_of(row: Row, lease_s: float) -> str:
    """A row of `Look.REPLICAS` in words; `lease_s` is how long after its last beat a replica counts as dead."""
    beat = f"last beat {_span(row['beat_s'])} ago"
    if not row["live"]:
        state = f"stale, {beat}"
    elif _silent(row, lease_s):
        silent = f"silent for {_span(row['beat_s'])}, counts as dead after {_span(lease_s)}"
        state = f"draining, {silent}" if row["draining"] else silent
    else:
        state = f"draining, {beat}" if row["draining"] else f"at work, {beat}"
    return f"{_replica(row)}: {state}, {number(whole(row['runs']), 'run')}"


def _replica(row: Row) -> str:
    return f"replica {row['replica']} ({row['host']} pid {row['pid']})"


def _about_orphans(seen: Seen, replicas: _Replicas, around: Surroundings) -> Finding | None:
    if seen.total == 0:
        return None
    runs = number(seen.total, "run") + (" is" if seen.total == 1 else " are")
    examples = tuple(Example(_orphan(row), row) for row in seen.rows)
    if not replicas.live:
        said = f"{runs} `running` on a dead replica, and no live one is there to recover {_them(seen)}"
        return Finding("orphaned", Severity.PROBLEM, said, _START_ONE, examples, seen.total)
    if max(_seconds(row["dead_s"]) for row in seen.rows) < around.lease_s + LATE_S:
        said = f"{runs} `running` on a dead replica; the live ones recover {_them(seen)} within seconds"
        return Finding("orphaned", Severity.NOTE, said, None, examples, seen.total)
    said = f"{runs} `running` on a dead replica, and the live ones have not recovered {_them(seen)}"
    fix = "look for `background_work_failed` in the logs of the live replicas, and for long transactions and locks here"
    return Finding("orphaned", Severity.PROBLEM, said, fix, examples, seen.total)


def _orphan(row: Row) -> str:
    if row["host"] is None:
        return f"run {row['run_id']} of {row['agent_name']}: its replica is not known any more"
    where = f"{row['host']} pid {row['pid']}"
    return f"run {row['run_id']} of {row['agent_name']}: {where}, last beat {_span(row['beat_s'])} ago"


def _about_ready(seen: Seen, replicas: _Replicas, max_concurrent_runs: int) -> Finding | None:
    if seen.total == 0:
        return None
    said = f"{number(seen.total, 'run')} could have been taken up long ago"
    severity, fix = Severity.PROBLEM, "start another: `agent-runner serve`"
    roomy = [row for row in replicas.heard if whole(row["runs"]) < max_concurrent_runs]
    if not replicas.live:
        said, fix = f"{said}, and no replica is alive", _START_ONE
    elif not replicas.working:
        said = f"{said}, and all replicas drain"
    elif not replicas.heard:
        said = f"{said}, and no replica beats"
    elif roomy:
        emptiest = min(roomy, key=lambda row: whole(row["runs"]))
        said = f"{said}: {_replica(emptiest)} executes {emptiest['runs']} of {max_concurrent_runs}"
        fix = (
            "give doctor the MAX_CONCURRENT_RUNS of the replicas, if theirs is another; else look for `claim_failed` "
            "in their logs, and at their `agent_runner_loop_lag_seconds`"
        )
    else:
        under_way = number(sum(whole(row["runs"]) for row in replicas.heard), "run")
        of = f"{under_way} on {number(len(replicas.heard), 'replica')}, each may execute {max_concurrent_runs}"
        waits = f"{number(seen.total, 'run')} wait" + ("s" if seen.total == 1 else "")
        said = f"{waits} for a slot: all of the live replicas are taken ({of}, by MAX_CONCURRENT_RUNS as set here)"
        severity, fix = Severity.NOTE, "raise MAX_CONCURRENT_RUNS or add a replica, if they wait for too long"
    examples = tuple(Example(f"{_run(row)}: ready for {_span(row['ready_s'])}", row) for row in seen.rows)
    return Finding("ready", severity, said, fix, examples, seen.total)


def _about(
    seen: Seen, kind: str, severity: Severity, noun: str, said: str, fix: str | None, each: Callable[[Row], str]
) -> Finding | None:
    if seen.total == 0:
        return None
    examples = tuple(Example(each(row), row) for row in seen.rows)
    return Finding(kind, severity, f"{number(seen.total, noun)} {said}", fix, examples, seen.total)


# --- words ------------------------------------------------------------------------------------------------------------


def _run(row: Row) -> str:
    return f"run {row['run_id']} of {row['agent_name']}"


def _holder(row: Row) -> str:
    doing = f"is {row['status']}"
    if row["status"] == "paused":
        doing = f"is paused by a caller since {_span(row['since_s'])}: resume or cancel it"
    elif row["what"] is not None:
        doing = f"waits for {row['what']} since {_span(row['since_s'])}, {_expiry(row['expires_s'])}"
    return f"thread {row['thread_id']}: {row['runs']} behind run {row['holder']}, which {doing}"


def _waiting(row: Row) -> str:
    return f"{_run(row)}: for {row['what']} since {_span(row['since_s'])}, {_expiry(row['expires_s'])}"


def _expiry(seconds: object) -> str:
    if seconds is None:
        return "without an end"
    return f"expires in {_span(seconds)}" if _seconds(seconds) >= 0 else f"expired {_span(-_seconds(seconds))} ago"


def _stalled(row: Row) -> str:
    doing = f"the tools {row['tools']}" if row["tools"] is not None else "a model call"
    where = f"{row['host']} pid {row['pid']}"
    return f"{_run(row)}, step {row['step']} on {where}: {doing}, nothing heard for {_span(row['silent_s'])}"


def _lock(row: Row) -> str:
    who = f"backend {row['pid']} ({row['application_name']})"
    return f"{who} waits for {row['blocked_by']} since {_span(row['waiting_s'])}"


def _transaction(row: Row) -> str:
    return (
        f"backend {row['pid']} of {row['role']} ({row['application_name']}): {row['state']}, for {_span(row['open_s'])}"
    )


def _put_off(row: Row) -> str:
    why = row["resume_reason"] or "retry"
    return f"{_run(row)}: attempt {whole(row['attempt']) + 1} in {_span(row['in_s'])} ({why})"


_SAID: Mapping[Look, tuple[str, Severity, str, str, str | None, Callable[[Row], str]]] = {
    Look.OVERDUE: (
        "overdue",
        Severity.PROBLEM,
        "wait",
        "expired and not ended by anybody",
        "a live replica does so within seconds: start one, or look for `background_work_failed` in the logs",
        lambda row: f"{row['what']} of run {row['run_id']}: expired {_span(row['late_s'])} ago",
    ),
    Look.STALLED: (
        "stalled",
        Severity.PROBLEM,
        "run",
        "under way without any progress for longer than STEP_DEADLINE_S",
        "look at the model or the tools; `POST /runs/{run_id}/interrupt` ends a run so that it can be resumed",
        _stalled,
    ),
    Look.LOCKS: (
        "locks",
        Severity.PROBLEM,
        "statement",
        "waiting for a lock of others",
        "end what holds it: SELECT pg_terminate_backend(pid)",
        _lock,
    ),
    Look.TRANSACTIONS: (
        "transactions",
        Severity.PROBLEM,
        "transaction",
        "open for long, which keeps dead rows alive and may hold locks",
        "end them: SELECT pg_terminate_backend(pid)",
        _transaction,
    ),
    Look.SUSPECTS: (
        "suspects",
        Severity.PROBLEM,
        "run",
        f"under way {SUSPECT_CRASHES} or more times in a row when its process died or hung; the next time it fails as "
        f"`poisoned`, but where other processes die without it within {AMONG_OTHERS_S:.0f} s not before time "
        f"{MAX_CRASHES_AMONG_OTHERS}",
        "look at what their tools do to the process; `POST /runs/{run_id}/cancel` ends one",
        lambda row: f"{_run(row)}: {row['status']}, {row['crashes']} crashes",
    ),
    Look.DEAD_ROWS: (
        "dead_rows",
        Severity.PROBLEM,
        "table",
        "made mostly of dead rows",
        "end long transactions, check that autovacuum runs, or VACUUM them",
        lambda row: f"{row['name']}: {row['dead']} dead, {row['live']} live, vacuumed {row['vacuumed'] or 'never'}",
    ),
    Look.LACKING: (
        "lacking",
        Severity.PROBLEM,
        "run",
        "put back by replicas that lack one of its tools",
        "check TOOL_MODULES and MCP_SERVERS_FILE of all replicas; `tools_missing` in their logs names the tools",
        lambda row: f"{_run(row)}: put back {row['times']} times",
    ),
    Look.POISONED: (
        "poisoned",
        Severity.NOTE,
        "run",
        "given up as `poisoned` within a day",
        None,
        lambda row: f"{_run(row)}: {_span(row['ended_s'])} ago",
    ),
    Look.PAUSED: (
        "paused",
        Severity.NOTE,
        "run",
        "paused by a caller",
        "`POST /runs/{run_id}/resume`, or `POST /runs/{run_id}/cancel`",
        lambda row: f"{_run(row)}: since {_span(row['since_s'])}",
    ),
    Look.PUT_OFF: ("put_off", Severity.NOTE, "run", "put off for a while", None, _put_off),
    Look.SCHEDULED: (
        "scheduled",
        Severity.NOTE,
        "run",
        "to start later",
        None,
        lambda row: f"{_run(row)}: in {_span(row['in_s'])}",
    ),
}


# What goes on when somebody outside of the service acts.
_OTHERS_ACT: Sequence[tuple[Look, str, str, Callable[[Row], str]]] = (
    (Look.WAITING, "run", "waiting", _waiting),
    (Look.BEHIND, "thread", "with runs in line behind another", _holder),
)


def _way_on(seen: Seen) -> str | None:
    """What a person may do for what is shown; None where it only waits for other runs."""
    ways: list[str] = []
    if any(row.get("status") == "paused" for row in seen.rows):
        ways.append("let it go on with `POST /runs/{run_id}/resume`")
    if any(row["interaction_ids"] for row in seen.rows):
        ways.append("answer with `POST /runs/{run_id}/interactions/{interaction_id}` (decision: approve or deny)")
    if any(row["tool_call_ids"] for row in seen.rows):
        ways.append("give the result with `POST /runs/{run_id}/tool-calls/{tool_call_id}/result`")
    return "; ".join(ways) or None


def values(row: Row) -> str:
    """A row on one line."""
    return ", ".join(f"{name} {value}" for name, value in row.items())


def _them(seen: Seen) -> str:
    return "it" if seen.total == 1 else "them"


def number(count: int, noun: str) -> str:
    """How many of something: "1 run", "2 runs"."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def whole(value: object) -> int:
    """A count that the database gave."""
    assert isinstance(value, int)
    return value


def _seconds(value: object) -> float:
    assert isinstance(value, float)
    return value


def _span(value: object) -> str:
    """Seconds as a person says them; None is a time that nobody knows."""
    if value is None:
        return "an unknown time"
    seconds = max(_seconds(value), 0.0)
    units: Sequence[tuple[float, str]] = ((86400, "d"), (3600, "h"), (60, "min"))
    for size, unit in units:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
