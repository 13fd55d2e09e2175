"""Agents that change between the moment when a request resolves them and the moment when its run is stored."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

from app.db.database import Database
from app.settings import Settings
from tests.integration.serving import serving


async def test_an_agent_that_changes_all_the_time_is_named(
    database_url: str, database: Database, tmp_path: Path
) -> None:
    async with serving(Settings.load(database_url=database_url, agents_dir=tmp_path)) as client:
        for name in ("helper", "critic"):
            await client.put(f"/agents/{name}", json={"model": "demo/echo"})
        # Whatever is resolved is no longer current by the time of the create, however often it is resolved again.
        await database.pool.execute("UPDATE agents SET version_id = $1", uuid4())
        one = await client.post("/runs", json={"agent": "helper", "input": "Go."})
        items = [{"agent": name, "input": "Go."} for name in ("helper", "critic", "helper@1")]
        many = await client.post("/runs/batch", json={"items": items})
    for answer in (one, many):
        assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "unavailable", "1")
    assert one.json()["detail"] == "the agent 'helper' is being changed again and again; try again"
    assert many.json()["detail"] == "one of the agents 'critic', 'helper' is being changed again and again; try again"
