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
from app.engine.crashes import MAX_CRASHES_AMONG_OTHERS
from app.services.doctor import Report, examine_here
from app.services.findings import Finding, Severity
from tests.integration.doctor_program import doctor
from tests.integration.varied_runs import execute, varied_database

Database: TypeAlias = "asyncpg.Connection[Any]"

LEASE_S = 15.0
AROUND = Surroundings(LEASE_S, step_deadline_s=600.0)
SLOW = Surroundings(15000.0, step_deadline_s=600.0)  # so that no time that a test takes matters
LIVE = "00000000-0000-7000-8000-000000000001"
OTHER = "00000000-0000-7000-8000-000000000002"
RESUME = "let it go on with `POST /runs/{run_id}/resume`"
ANSWER = "answer with `POST /runs/{run_id}/interactions/{interaction_id}` (decision: approve or deny)"
GIVE_RESULT = "give the result with `POST /runs/{run_id}/tool-calls/{tool_call_id}/result`"


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


async def look_at(connection: Database, max_concurrent_runs: int = 10, around: Surroundings = AROUND) -> Report:
    return await examine_here(connection, "", around, max_concurrent_runs)


def run_of(thread_id: str) -> str:
    return f"(SELECT run_id FROM runs WHERE thread_id = '{thread_id}' ORDER BY run_id LIMIT 1)"


async def question_of(connection: Database, thread_id: str) -> object:
    """The id of the open question of a thread's first run."""
    open_question = f"run_id = {run_of(thread_id)} AND status = 'pending'"
    return await connection.fetchval(f"SELECT interaction_id FROM interactions WHERE {open_question}")


async def put_replica(connection: Database, silent_s: float, *, draining: bool = False) -> None:
    """A second replica, `OTHER`, that was heard of so long ago; those that are dead are gone."""
    await connection.execute("DELETE FROM replicas WHERE incarnation <> $1", LIVE)
    await connection.execute(
        """INSERT INTO replicas (incarnation, host, pid, draining, heartbeat_at)
           VALUES ($1, 'there', 2, $2, clock_timestamp() - make_interval(secs => $3))""",
        OTHER,
        draining,
        silent_s,
    )


def the(kind: str, report: Report) -> Finding:
    """The one finding of a kind."""
    found = [finding for finding in report.findings if finding.kind == kind]
    assert len(found) == 1, [finding.said for finding in report.findings]
    return found[0]


def told(report: Report) -> list[str]:
    """The replicas in words."""
    return [replica.said for replica in report.replicas]


def words(finding: Finding) -> str:
    return "\n".join((finding.said, *(example.said for example in finding.examples)))


async def test_what_is_stuck_by_design_is_a_note(patient: Database) -> None:
    report = await look_at(patient)
    assert (report.problems, {each.severity for each in report.findings}) == (0, {Severity.NOTE})
    assert report.verdict.startswith("nothing is wrong; ")
    ids = {row["thread_id"]: row["run_id"] for row in await patient.fetch("SELECT thread_id, run_id FROM runs")}
    first = await patient.fetchval("SELECT run_id FROM runs WHERE thread_id = 'line' AND status = 'running'")
    assert f"run {ids['paused']} of steered: since " in words(the("paused", report))
    assert the("paused", report).fix == "`POST /runs/{run_id}/resume`, or `POST /runs/{run_id}/cancel`"
    waiting = words(the("waiting", report))
    question = f"an approval of lookup (interaction {await question_of(patient, 'asking')})"
    asking = rf"run {ids['asking']} of tester: for {re.escape(question)} since \d+ s, expires in \d+ h"
    assert re.search(asking, waiting), waiting
    assert f"run {ids['locating']} of tester: for the result of locate (tool call call_1) since " in waiting
    child = await patient.fetchval("SELECT run_id FROM runs WHERE parent_run_id IS NOT NULL AND status = 'running'")
    assert f"run {ids['delegating']} of team: for child run {child} since " in waiting
    assert f"thread line: 2 behind run {first}, which is running" in words(the("behind", report))
    assert re.search(rf"run {ids['scheduled']} of stuck: in \d{{5}} d", words(the("scheduled", report)))
    assert re.search(r"1 at work, 0 silent, 0 draining, \d not heard of any more", the("replicas", report).said)
    assert report.counts is not None
    assert report.counts["waiting"] == 3


@pytest.mark.parametrize(
    ("statement", "doing", "fix"),
    [
        (
            "UPDATE runs SET status = 'paused' WHERE status = 'running'",
            r"is paused by a caller since \d+ s: resume",
            RESUME,
        ),
        (
            "UPDATE runs SET thread_key = (SELECT thread_key FROM threads WHERE thread_id = 'asking') "
            "WHERE thread_id = 'line' AND status = 'queued'",
            r"waits for an approval of lookup \(interaction \S+\) since \d+ s, expires in \d+ h",
            ANSWER,
        ),
        (
            "UPDATE runs SET thread_key = (SELECT thread_key FROM threads WHERE thread_id = 'locating') "
            "WHERE thread_id = 'line' AND status = 'queued'",
            r"waits for the result of locate \(tool call call_1\) since \d+ s, expires in ",
            GIVE_RESULT,
        ),
    ],
)
async def test_runs_in_line_are_told_with_what_holds_them_up_and_how_it_goes_on(
    patient: Database, statement: str, doing: str, fix: str
) -> None:
    await patient.execute(statement)
    behind = the("behind", await look_at(patient))
    assert re.search(rf"behind run \S+, which {doing}", words(behind))
    assert behind.fix == fix


@pytest.mark.parametrize(
    ("kind", "tool", "said"),
    [
        ("approval", "send", "an approval of send"),
        ("approval", None, "an approval of a model call"),
        ("input", "send", "an answer from a person about send"),
        ("tool_outcome_unknown", "send", "somebody to say what became of send"),
    ],
)
async def test_a_question_is_told_in_the_words_of_its_kind_with_its_id_and_where_its_answer_goes(
    patient: Database, kind: str, tool: str | None, said: str
) -> None:
    await patient.execute("UPDATE interactions SET kind = $1, tool_name = $2 WHERE status = 'pending'", kind, tool)
    waiting = the("waiting", await look_at(patient))
    question = await question_of(patient, "asking")
    assert f"for {said} (interaction {question}) since " in words(waiting)
    assert [each.row["interaction_ids"] for each in waiting.examples if each.row["interaction_ids"]] == [[question]]
    assert waiting.fix == f"{ANSWER}; {GIVE_RESULT}"


async def test_what_a_run_waits_for_is_told_in_part_where_it_is_much(patient: Database) -> None:
    await patient.execute(
        """INSERT INTO interactions (interaction_id, run_id, step, kind, tool_name, prompt, fallback, expires_at)
           SELECT gen_random_uuid(), (SELECT run_id FROM runs WHERE thread_id = 'locating'), 1, 'approval', 'a', '?',
                  '{}', clock_timestamp() + interval '1 h' FROM generate_series(1, 33)"""
    )
    waiting = the("waiting", await look_at(patient))
    (locating,) = [each for each in waiting.examples if "approval of a (" in each.said]
    assert locating.said.count("interaction ") == 10
    assert " and 24 more since " in locating.said
    assert len(locating.row["interaction_ids"]) == 10  # pyright: ignore[reportArgumentType]


async def test_where_only_child_runs_are_waited_for_nobody_has_to_do_anything(patient: Database) -> None:
    await patient.execute("UPDATE runs SET status = 'paused' WHERE thread_id IN ('asking', 'locating')")
    waiting = the("waiting", await look_at(patient))
    assert (waiting.total, waiting.fix) == (1, None)


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
        r"1 run could .* long ago: replica \S+1 \(here pid 1\) executes 2 of 10\nrun {paused} of steered: ready for \d",
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
        "UPDATE runs SET crashes = 5 WHERE thread_id = 'line' AND status = 'running'",
        r"1 run under way 2 or more times in a row when its process died or hung; the next time it fails as `poisoned`"
        rf", but .* within 60 s not before time {MAX_CRASHES_AMONG_OTHERS}\nrun {{line}} of stuck: running, 5 crashes",
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
    said = "2 runs wait for a slot: all of the live replicas are taken (2 runs on 1 replica, each may execute 2"
    assert full.said.startswith(said)
    assert "raise MAX_CONCURRENT_RUNS or add a replica" in str(full.fix)
    await patient.execute("UPDATE replicas SET draining = true")
    report = await look_at(patient, 2)
    assert "all replicas drain" in the("ready", report).said
    assert the("replicas", report).severity is Severity.PROBLEM
    assert "drain: nobody takes up runs" in the("replicas", report).said
    await patient.execute("DELETE FROM replicas")
    report = await look_at(patient, 2)
    assert "no replica is alive" in the("ready", report).said
    assert "2 runs are `running` on a dead replica, and no live one is there" in the("orphaned", report).said


@pytest.mark.parametrize(
    ("draining", "silent_s"), [(True, 0.0), (False, 7000.0)], ids=["one that drains", "one that is silent"]
)
async def test_only_a_replica_that_is_heard_of_and_does_not_drain_has_room(
    patient: Database, draining: bool, silent_s: float
) -> None:
    """Seen to fail with each live replica taken for one that may have room."""
    await patient.execute("UPDATE runs SET status = 'queued', available_at = 'yesterday' WHERE thread_id = 'paused'")
    await put_replica(patient, silent_s, draining=draining)
    assert "2 runs on 1 replica" in the("ready", await look_at(patient, 2, SLOW)).said
    # What the other executes takes no slot of this one.
    await patient.execute(f"UPDATE runs SET owner = '{OTHER}' WHERE status = 'running'")
    idle = the("ready", await look_at(patient, 2, SLOW))
    assert (idle.severity, "executes 0 of 2" in idle.said) == (Severity.PROBLEM, True)


async def test_a_replica_is_silent_from_two_missed_beats_on(patient: Database) -> None:
    """A beat is due every fifth of a lease. Seen to fail without the look at the age of the last one."""
    await put_replica(patient, 4980)
    report = await look_at(patient, around=SLOW)
    assert f"replica {OTHER} (there pid 2): at work, last beat 83 min ago, 0 runs" in told(report)
    assert "replicas" not in {finding.kind for finding in report.findings}

    await patient.execute("UPDATE replicas SET heartbeat_at = heartbeat_at - interval '2040 s' WHERE pid = 2")
    await patient.execute(f"UPDATE runs SET owner = '{OTHER}' WHERE thread_id = 'line' AND status = 'running'")
    report = await look_at(patient, around=SLOW)
    assert f"replica {OTHER} (there pid 2): silent for 117 min, counts as dead after 4 h, 1 run" in told(report)
    replicas = the("replicas", report)
    assert (replicas.severity, "1 at work, 1 silent, " in replicas.said) == (Severity.NOTE, True)

    await patient.execute("DELETE FROM replicas WHERE pid <> 2")
    alone = the("replicas", await look_at(patient, around=SLOW))
    assert (alone.severity, alone.said) == (Severity.PROBLEM, "no replica beats: 1 live replica is silent")


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
