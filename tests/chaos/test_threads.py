"""Many runs that want the same thread at the same time."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from itertools import pairwise
from typing import TypeAlias

import asyncpg
import httpx
import pytest

from tests.acceptance.client import Json, problem
from tests.chaos.callers import Callers
from tests.chaos.cluster import Cluster
from tests.chaos.gauge import Gauge

Database: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

WAYS = ("enqueue", "reject", "interrupt", "rollback")
THREAD = "everybodys"

_HOLDERS = """
    SELECT count(*) FILTER (WHERE r.holds_thread) AS holders, count(*) FILTER (WHERE r.status = 'running') AS running,
           bool_and(r.run_id = t.holder_run_id) FILTER (WHERE r.holds_thread OR r.status = 'running') AS known
    FROM runs r JOIN threads t USING (thread_key)"""


class _Crowd:
    """Callers who want the same thread, in all four ways.

    Attributes:
        ways: what each run that was made had asked for.
        refused: how many were told that the thread is held.
    """

    def __init__(self, chaos: Gauge, cluster: Cluster, callers: Callers) -> None:
        self._chaos = chaos
        self._urls = [service.url for service in cluster.replicas]
        self._http = callers.http
        self.ways: dict[str, str] = {}
        self.refused = 0

    async def come(self, count: int) -> None:
        """All at once, each to one of the replicas."""
        await asyncio.gather(*(self._post() for _ in range(count)))

    async def _post(self) -> None:
        dice = self._chaos.dice
        way = dice.choice(WAYS)
        agent = {"name": "echo", "model": f"openai/wait-{dice.choice((0, 0, 0.01, 0.1)):g}"}
        body: Json = {"agent": agent, "input": way, "thread_id": THREAD, "on_busy_thread": way}
        answer: httpx.Response = await self._http.post(f"{dice.choice(self._urls)}/runs", json=body)
        if answer.status_code == 409:
            assert way == "reject"
            problem(answer, 409, "thread_busy")
            self.refused += 1
            return
        assert answer.status_code == 202, answer.text
        self.ways[answer.json()["run_id"]] = way
        self._chaos.runs += 1


async def watched(sql: Database) -> None:
    """Look at the thread again and again, until cancelled."""
    while True:
        row = await sql.fetchrow(_HOLDERS)
        assert row is not None
        assert row["holders"] <= 1
        assert row["running"] <= 1
        assert row["known"] in (True, None), "a run has the thread, and the thread knows of another one"
        await asyncio.sleep(0)


@pytest.mark.scenario(27, short=True)
async def test_crowds_that_want_one_thread_in_all_ways_never_have_it_together(
    chaos: Gauge, cluster: Cluster, callers: Callers, sql: Database
) -> None:
    """One run has the thread at any time, those in line go in their order, nobody is answered with an error.

    Seen to fail without: the slot that a create takes only where it is free, the order of `promote_next`.
    """
    await cluster.start(2)
    crowd = _Crowd(chaos, cluster, callers)
    watching = asyncio.create_task(watched(sql))
    for _ in range(chaos.size(60, 10)):
        await crowd.come(20)
        await asyncio.sleep(chaos.dice.choice((0, 0.02, 0.2)))
    runs = [await callers.ended(run_id) for run_id in crowd.ways]
    assert not watching.done(), watching.exception()
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    assert {run["status"] for run in runs} == {"completed", "interrupted", "cancelled"}
    assert crowd.refused > 0
    rows = await sql.fetch("SELECT run_id, ordinal, status, started_at, finished_at FROM runs ORDER BY ordinal")
    assert len(rows) == len(crowd.ways)
    check_turns(rows, crowd.ways)
    await check_story(sql)
    await cluster.check()


def check_turns(rows: list[asyncpg.Record], ways: dict[str, str]) -> None:
    """Nobody began before the one before had ended, and those who stood in line went as they had come."""
    began = sorted((row for row in rows if row["started_at"] is not None), key=lambda row: row["started_at"])
    for earlier, later in pairwise(began):
        assert earlier["finished_at"] <= later["started_at"], (earlier, later)
    enqueued = [row["started_at"] for row in rows if ways[str(row["run_id"])] == "enqueue" and row["started_at"]]
    assert enqueued == sorted(enqueued)
    assert len(enqueued) > 0


async def check_story(sql: Database) -> None:
    """A run's messages stand together, question and answer; those of a run that was rolled back are gone."""
    told = await sql.fetch(
        """SELECT m.run_id, m.role, r.status FROM messages m JOIN runs r USING (run_id)
           WHERE NOT m.voided ORDER BY m.seq"""
    )
    assert {row["status"] for row in told} <= {"completed", "interrupted"}
    turns = [(row["run_id"], row["status"]) for row in told if row["role"] == "user"]
    assert len(set(turns)) == len(turns)
    answered = Counter(earlier["run_id"] for earlier, later in pairwise(told) if earlier["run_id"] == later["run_id"])
    assert all(answered[run_id] == 1 for run_id, status in turns if status == "completed")
