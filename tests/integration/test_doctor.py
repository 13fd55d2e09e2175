"""`agent-runner doctor`: what is stuck is named, with who and why, and the exit code says if it matters."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeAlias

import asyncpg
import pytest

from app.db.diagnosis import Surroundings
from app.services.doctor import Report, examine, examine_here
from app.services.findings import Finding, Severity
from tests.integration.doctor_program import doctor
from tests.integration.varied_runs import execute, varied_database

Database: TypeAlias = "asyncpg.Connection[Any]"
Connections: TypeAlias = tuple[Database, Database, Database]

LEASE_S = 15.0
AROUND = Surroundings(LEASE_S, step_deadline_s=600.0)
LIVE = "00000000-0000-7000-8000-000000000001"


@pytest.fixture(scope="module")
def varied_url(postgres_server: str) -> Iterator[str]:
    """A database with runs of every kind, whose replicas are dead since long ago; no test leaves a change there."""
    with varied_database(postgres_server, f"to_diagnose_{os.getpid()}") as url:
        asyncio.run(execute(url, "UPDATE replicas SET heartbeat_at = heartbeat_at - interval '10 minutes'"))
        asyncio.run(execute(url, "UPDATE interactions SET expires_at = expires_at + interval '5 h'"))
        asyncio.run(execute(url, "UPDATE runs SET deadline_at = deadline_at + interval '5 h'"))
        yield url


@pytest.fixture
async def patient(varied_url: str) -> AsyncIterator[Database]:
    """The same with a live replica that has what was under way: nothing there is wrong. Inside a transaction."""
    connection = await asyncpg.connect(varied_url)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(
        "INSERT INTO replicas (incarnation, host, pid, heartbeat_at) "
        f"VALUES ('{LIVE}', 'here', 1, clock_timestamp() + interval '1 hour')"
    )
    await connection.execute(f"UPDATE runs SET owner = '{LIVE}' WHERE status = 'running'")
    yield connection
    await transaction.rollback()
    await connection.close()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Connections]:
    """Three connections to an empty database."""
    connections = [await asyncpg.connect(database_url) for _ in range(3)]
    yield connections[0], connections[1], connections[2]
    for connection in connections:
        await connection.close()


async def look_at(connection: Database, max_concurrent_runs: int = 10) -> Report:
    return await examine_here(connection, "", AROUND, max_concurrent_runs)


def run_of(thread_id: str) -> str:
    return f"(SELECT run_id FROM runs WHERE thread_id = '{thread_id}' ORDER BY run_id LIMIT 1)"


def the(kind: str, report: Report) -> Finding:
    """The one finding of a kind."""
    found = [finding for finding in report.findings if finding.kind == kind]
    assert len(found) == 1, [finding.said for finding in report.findings]
    return found[0]


def words(finding: Finding) -> str:
    return "\n".join((finding.said, *(example.said for example in finding.examples)))


async def test_what_is_stuck_by_design_is_a_note(patient: Database) -> None:
    report = await look_at(patient)
    assert (report.problems, {each.severity for each in report.findings}) == (0, {Severity.NOTE})
    assert report.verdict.startswith("nothing is wrong; ")
    ids = {row["thread_id"]: row["run_id"] for row in await patient.fetch("SELECT thread_id, run_id FROM runs")}
    first = await patient.fetchval("SELECT run_id FROM runs WHERE thread_id = 'line' AND status = 'running'")
    assert f"run {ids['paused']} of steered: since " in words(the("paused", report))
    waiting = words(the("waiting", report))
    assert re.search(rf"run {ids['asking']} of tester: for an approval since \d+ s, expires in \d+ h", waiting)
    assert f"run {ids['locating']} of tester: for the result of locate since " in waiting
    child = await patient.fetchval("SELECT run_id FROM runs WHERE parent_run_id IS NOT NULL AND status = 'running'")
    assert f"run {ids['delegating']} of team: for child run {child} since " in waiting
    assert f"thread line: 2 behind run {first}, which is running" in words(the("behind", report))
    assert re.search(rf"run {ids['scheduled']} of stuck: in \d{{5}} d", words(the("scheduled", report)))
    assert re.search(r"1 at work, 0 draining, \d not heard of any more", the("replicas", report).said)
    assert report.counts is not None
    assert report.counts["waiting"] == 3


@pytest.mark.parametrize(
    ("statement", "doing"),
    [
        ("UPDATE runs SET status = 'paused' WHERE status = 'running'", r"is paused by a caller since \d+ s: resume"),
        (
            "UPDATE runs SET thread_key = (SELECT thread_key FROM threads WHERE thread_id = 'asking') "
            "WHERE thread_id = 'line' AND status = 'queued'",
            r"waits for an approval since \d+ s, expires in \d+ h",
        ),
    ],
)
async def test_runs_in_line_are_told_with_what_holds_them_up(patient: Database, statement: str, doing: str) -> None:
    await patient.execute(statement)
    assert re.search(rf"behind run \S+, which {doing}", words(the("behind", await look_at(patient))))


SITUATIONS = [
    (
        "overdue",
        "UPDATE interactions SET expires_at = clock_timestamp() - interval '1 hour' WHERE status = 'pending'",
        r"question \S+ of run {asking}: expired 60 min ago",
    ),
    (
        "overdue",
        f"UPDATE tool_executions SET expires_at = 'yesterday' WHERE run_id = {run_of('locating')}",
        r"tool call call_1 of run {locating}: expired \d+ \w+ ago",
    ),
    (
        "overdue",
        "UPDATE runs SET deadline_at = clock_timestamp() - interval '2 h' WHERE status = 'running' AND agent_depth > 0",
        r"the run itself, a child run of run \S+: expired 2 h ago",
    ),
    (
        "ready",
        f"UPDATE runs SET status = 'queued', available_at = 'yesterday' WHERE run_id = {run_of('paused')}",
        r"1 run could have been taken up long ago\nrun {paused} of steered: ready for \d+ \w+",
    ),
    (
        "orphaned",
        "UPDATE runs SET owner = (SELECT incarnation FROM replicas WHERE host <> 'here' LIMIT 1) "
        "WHERE thread_id = 'line' AND status = 'running'",
        r"1 run is `running` on a dead replica, and the live ones have not recovered it\nrun {line} of stuck: \S+ pid",
    ),
    (
        "stalled",
        "UPDATE run_events SET created_at = created_at - interval '1 day'",
        r"run \S+ of team_leaf, step 1 on here pid 1: the tools read, nothing heard for 24 h",
    ),
    (
        "stalled",
        "UPDATE run_events SET created_at = created_at - interval '1 day'",
        r"run {line} of stuck, step 1 on here pid 1: a model call, nothing heard for 24 h",
    ),
    (
        "suspects",
        "UPDATE runs SET crashes = 2 WHERE thread_id = 'line' AND status = 'running'",
        r"run {line} of stuck: running, 2 crashes",
    ),
    (
        "lacking",
        f"UPDATE runs SET status = 'queued', attempt = 5, resume_reason = 'drain' WHERE run_id = {run_of('paused')}",
        r"1 run put back by replicas that lack one of its tools\nrun {paused} of steered: put back 4 times",
    ),
    (
        "invariant",
        "UPDATE runs SET cost_usd = -1 WHERE thread_id = 'whole'",
        r"broken: what a run has used is never less than nothing; limits and bills .*\nrun_id {whole}, ",
    ),
]


@pytest.mark.parametrize(("kind", "statement", "said"), SITUATIONS, ids=[f"{each[0]}" for each in SITUATIONS])
async def test_a_problem_is_named_with_who_and_why_and_what_to_do(
    patient: Database, kind: str, statement: str, said: str
) -> None:
    await patient.execute(statement)
    report = await look_at(patient)
    finding = the(kind, report)
    assert finding.severity is Severity.PROBLEM
    assert finding.fix
    assert report.findings[0].severity is Severity.PROBLEM
    assert report.problems >= 1
    rows = await patient.fetch("SELECT DISTINCT ON (thread_id) thread_id, run_id FROM runs ORDER BY thread_id, run_id")
    named = {row["thread_id"]: row["run_id"] for row in rows}
    for thread_id in re.findall(r"\{([a-z]+)\}", said):
        said = said.replace(f"{{{thread_id}}}", str(named[thread_id]))
    assert re.search(said, words(finding)), words(finding)


async def test_runs_that_wait_for_a_replica_are_told_with_what_keeps_the_replicas(patient: Database) -> None:
    await patient.execute(
        "UPDATE runs SET status = 'queued', available_at = 'yesterday' WHERE thread_id IN ('paused', 'asking')"
    )
    full = the("ready", await look_at(patient, 2))
    assert (full.severity, full.total) == (Severity.NOTE, 2)
    assert "the replicas are full (2 runs on 1)" in full.said
    await patient.execute("UPDATE replicas SET draining = true")
    report = await look_at(patient, 2)
    assert "all replicas drain" in the("ready", report).said
    assert the("replicas", report).severity is Severity.PROBLEM
    assert "drain: nobody takes up runs" in the("replicas", report).said
    await patient.execute("DELETE FROM replicas")
    report = await look_at(patient, 2)
    assert "no replica is alive" in the("ready", report).said
    assert "2 runs are `running` on a dead replica, and no live one is there" in the("orphaned", report).said


async def test_an_orphan_that_will_be_recovered_in_a_moment_is_a_note(patient: Database) -> None:
    await patient.execute(
        """INSERT INTO replicas (incarnation, host, pid, heartbeat_at)
           VALUES (gen_random_uuid(), 'there', 2, clock_timestamp() - interval '16 seconds')"""
    )
    await patient.execute(
        "UPDATE runs SET owner = (SELECT incarnation FROM replicas WHERE pid = 2) WHERE owner IS NOT NULL"
    )
    orphaned = the("orphaned", await look_at(patient))
    assert orphaned.severity is Severity.NOTE
    assert "the live ones recover them within seconds" in orphaned.said


async def test_poisoned_runs_of_a_day_and_those_put_off_are_noted(patient: Database) -> None:
    await patient.execute(
        """UPDATE runs SET error = '{"code": "poisoned", "message": "a \\u0000"}' WHERE status = 'failed'"""
    )
    await patient.execute(
        f"""UPDATE runs SET status = 'queued', resume_reason = 'drain',
                available_at = clock_timestamp() + interval '1 h' WHERE run_id = {run_of("paused")}"""
    )
    report = await look_at(patient)
    assert re.search(
        r"1 run given up as `poisoned` within a day\nrun \S+ of broken: \d+ s ago", words(the("poisoned", report))
    )
    assert re.search(r"run \S+ of steered: attempt \d in 60 min \(drain\)", words(the("put_off", report)))


async def test_of_many_cases_ten_are_told_and_the_rest_is_counted(patient: Database) -> None:
    await patient.execute(
        """INSERT INTO interactions (interaction_id, run_id, step, kind, prompt, fallback, expires_at)
           SELECT gen_random_uuid(), (SELECT run_id FROM runs WHERE thread_id = 'asking'), 1, 'approval', '?', '{}',
                  clock_timestamp() - interval '1 h' FROM generate_series(1, 33)"""
    )
    overdue = the("overdue", await look_at(patient))
    assert (overdue.total, len(overdue.examples)) == (33, 10)


async def test_a_table_made_of_dead_rows_is_told(database: Connections) -> None:
    connection, _, _ = database
    await connection.execute("ALTER TABLE chores SET (autovacuum_enabled = off)")
    await connection.execute("INSERT INTO chores (name) SELECT n::text FROM generate_series(1, 11000) AS n")
    await connection.execute("DELETE FROM chores")
    await connection.execute("SELECT pg_stat_force_next_flush()")
    told = words(the("dead_rows", await examine(connection, AROUND, 10)))
    assert told == "1 table made mostly of dead rows\nchores: 11000 dead, 0 live, vacuumed never"


async def test_locks_and_long_transactions_are_told_with_who_holds_them(database: Connections) -> None:
    looking, holder, waiter = database
    impatient = Surroundings(LEASE_S, 600.0, lock_s=0.0, transaction_s=0.0)
    async with holder.transaction():
        await holder.execute("UPDATE alembic_version SET version_num = version_num")
        waiting = asyncio.create_task(waiter.execute("UPDATE alembic_version SET version_num = version_num"))
        while "locks" not in {finding.kind for finding in (await examine(looking, impatient, 10)).findings}:
            await asyncio.sleep(0.01)
        report = await examine(looking, impatient, 10)
        said = f"backend {waiter.get_server_pid()} () waits for [{holder.get_server_pid()}] since "
        assert said in words(the("locks", report))
        said = f"backend {holder.get_server_pid()} of postgres (): idle in transaction, for "
        assert said in words(the("transactions", report))
        assert "transactions" not in {finding.kind for finding in (await examine(looking, AROUND, 10)).findings}
    await waiting


# --- the program ------------------------------------------------------------------------------------------------------


async def test_the_program_tells_the_worst_first_and_ends_with_a_verdict_and_code_1(varied_url: str) -> None:
    ended = doctor(DATABASE_URL=varied_url)
    assert (ended.returncode, ended.stderr) == (1, "")
    sections = ended.stdout.rstrip().split("\n\n")
    kinds = [section.partition(":")[0] for section in sections]
    problems, notes = kinds.count("PROBLEM"), kinds.count("NOTE")
    assert kinds == [*["PROBLEM"] * problems, *["NOTE"] * notes, sections[-2].partition(":")[0], "Verdict"]
    assert sections[-1] == f"Verdict: {problems} problem{'s' * (problems > 1)}, {notes} notes."
    assert "no replica is alive" in ended.stdout
    assert "2 runs are `running` on a dead replica, and no live one is there to recover them" in ended.stdout
    assert "  fix: start one: `agent-runner serve`" in ended.stdout.splitlines()

    told = json.loads(doctor("--json", DATABASE_URL=varied_url).stdout)
    assert told["verdict"] == sections[-1].removeprefix("Verdict: ").removesuffix(".")
    assert (told["problems"], len(told["findings"])) == (problems, problems + notes)
    (orphaned,) = [finding for finding in told["findings"] if finding["kind"] == "orphaned"]
    assert {"said", "run_id", "beat_s"} <= set(orphaned["examples"][0])
    assert told["runs"]["running"] == 2


async def test_a_role_that_may_only_read_is_enough_and_one_that_may_not_is_told(
    postgres_server: str, varied_url: str
) -> None:
    role = f"reader_{os.getpid()}"
    url = varied_url.replace("postgres@", f"{role}@")
    await execute(postgres_server, f"CREATE ROLE {role} LOGIN")
    try:
        refused = doctor(DATABASE_URL=url)
        assert refused.returncode == 1
        assert "permission denied for table" in refused.stdout
        await execute(varied_url, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        allowed = doctor(DATABASE_URL=url)
        assert allowed.stdout.count("PROBLEM") == doctor(DATABASE_URL=varied_url).stdout.count("PROBLEM")
        assert "permission denied" not in allowed.stdout
    finally:
        await execute(varied_url, f"DROP OWNED BY {role}")
        await execute(postgres_server, f"DROP ROLE {role}")
