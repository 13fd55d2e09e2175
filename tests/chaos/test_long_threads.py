"""Threads that grow: what a turn writes does not depend on how many were before it."""

from __future__ import annotations

from statistics import fmean
from typing import TypeAlias

import asyncpg
import pytest

from tests.acceptance.client import Json
from tests.acceptance.conftest import Caller
from tests.acceptance.teams import steps
from tests.chaos.cluster import Cluster
from tests.chaos.gauge import Gauge

Database: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

LOOKS: Json = {
    "name": "looks",
    "model": "openai/obey",
    "tools": ["lookup"],
    "limits": {"max_total_tokens": 10**9, "max_total_cost_usd": 10**6},
}
MOST_GROWTH = 1.2

# What each run has left in the tables: as it is stored, and as text, in which no copy is hidden by compression.
BYTES_OF_TURNS = f"""
SELECT sum(stored)::bigint AS stored, sum(plain)::bigint AS plain, count(DISTINCT source) AS tables FROM ({
    " UNION ALL ".join(
        f"SELECT run_id, '{table}' AS source, pg_column_size(t) AS stored, length(t::text) AS plain FROM {table} AS t"
        for table in ("messages", "run_events", "checkpoints", "tool_executions", "runs")
    )
}) AS rows GROUP BY run_id ORDER BY run_id"""


@pytest.mark.scenario(21, short=True)
async def test_a_turn_late_in_a_thread_writes_no_more_than_one_at_its_start(
    chaos: Gauge, cluster: Cluster, caller: Caller, sql: Database
) -> None:
    """Every turn is a run with a tool call on the same thread, as long as the others; the model reads all before it.

    Broken by whatever stores what is there already: seen to fail with the thread's messages in the state of each
    checkpoint, and with them in the `llm_called` event.
    """
    (service,) = await cluster.start()
    client = caller(service)
    turns = chaos.size(1000, 100)
    for number in range(turns):
        task = steps([("lookup", {"word": f"{number:040}"})])
        run = await client.create_and_wait(agent=LOOKS, input=task, thread_id="long")
        assert (run["status"], run["result"]["state_snapshot"]["tool_calls"]) == ("completed", 1), run
        chaos.runs += 1
    rows = await sql.fetch(BYTES_OF_TURNS)
    assert {row["tables"] for row in rows} == {5}
    said = "SELECT count(*) FROM messages WHERE thread_key = (SELECT thread_key FROM threads)"
    assert await sql.fetchval(said) == 4 * turns
    assert len(rows) == turns
    for kind in ("stored", "plain"):
        sizes = [row[kind] for row in rows]
        first, last = fmean(sizes[: turns // 10]), fmean(sizes[-turns // 10 :])
        chaos.measured.append(f"bytes of a turn, {kind}: {first:.0f} at first, {last:.0f} after {turns} turns")
        assert last < MOST_GROWTH * first, (kind, first, last)
    await cluster.check()
