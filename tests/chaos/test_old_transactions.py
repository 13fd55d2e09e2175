"""A transaction that somebody left open, beside a queue that is used."""

from __future__ import annotations

import json
from datetime import datetime

import asyncpg
import pytest

from app.db.ready_queue import CLAIM, SLACK
from tests.acceptance.client import an_agent
from tests.acceptance.waiting import eventually
from tests.chaos.callers import Callers
from tests.chaos.cluster import Cluster
from tests.chaos.gauge import Gauge

NOBODY = "00000000-0000-0000-0000-000000000001"
BATCH = 100


async def buffers(sql: asyncpg.Connection[asyncpg.Record], since: datetime | None) -> int:
    """How many buffers a claim touches that looks from there on; None: at everything. Nothing is claimed."""
    transaction = sql.transaction()
    await transaction.start()
    explained = await sql.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {CLAIM}", NOBODY, 20, since, True)
    await transaction.rollback()
    plan = json.loads(explained)[0]["Plan"]
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


@pytest.mark.scenario(22)
async def test_claims_stay_fast_beside_a_transaction_that_is_open_for_long(
    chaos: Gauge, cluster: Cluster, callers: Callers, sql: asyncpg.Connection[asyncpg.Record], database_url: str
) -> None:
    """All runs go through the queue while an old snapshot keeps every dead entry of it; a claim passes few of them.

    Seen to fail without: the lower bound on `available_at` in the claim.
    """
    old = await asyncpg.connect(database_url)
    async with old.transaction(isolation="repeatable_read"):
        await old.fetchval("SELECT count(*) FROM runs")
        await cluster.start(2, MAX_CONCURRENT_RUNS="10")
        run_ids: list[str] = []
        for _ in range(chaos.size(30, 3)):
            body = {"items": [{"agent": an_agent(model="openai/echo"), "input": "Hello."}] * BATCH}
            answer = await callers.ask("POST", "/runs/batch", json=body)
            run_ids += [run["run_id"] for run in answer.json()["items"]]
        chaos.runs += len(run_ids)
        runs = await callers.all_ended(run_ids)
        assert {run["status"] for run in runs} == {"completed"}

        async def mark() -> datetime | None:
            """Where a look begins that follows one which has left nothing, once that is behind all that was claimed."""
            return await sql.fetchval(
                "SELECT now() - $1::interval WHERE now() - $1::interval > (SELECT max(available_at) FROM runs)", SLACK
            )

        since = await eventually(mark, "the low-water mark to pass the last claim")
        everything, recent = await buffers(sql, None), await buffers(sql, since)
        chaos.measured.append(f"a claim touches {recent} buffers; without its lower bound {everything}")
        assert recent * 5 < everything
    await old.close()
    await cluster.check()
