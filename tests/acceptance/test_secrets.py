"""A planted secret is nowhere to be found: not where callers look, nor where the operator or the model does."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import asyncpg

from tests.acceptance.client import of_type
from tests.acceptance.conftest import Caller, Serve, Settings
from tests.acceptance.model import Model, calls
from tests.model_server import Reply

SECRET = "s3cr3t-Value/42+"


async def test_a_planted_secret_reaches_its_tools_and_nothing_else(
    serve: Serve, settings: Settings, caller: Caller, model: Model, database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "secrets.yaml"
    file.write_text(json.dumps({"planted": {"value": SECRET}}))
    more = {"TOOL_MODULES": "tests.acceptance.leaky_tools", "LOG_LEVEL": "debug"}
    service = serve(settings(DATABASE_URL=database_url, SECRETS_FILE=str(file), **more)).ready()
    client = caller(service)
    model.script(calls(("leak", {}), ("leak_by_failing", {})), Reply(text="Done."))
    agent = {"name": "leaky", "model": "openai/gpt-4o-mini", "tools": ["leak", "leak_by_failing"]}
    run = await client.create_and_wait(agent=agent, input="Go.")
    assert run["status"] == "completed"
    told, failed = run["result"]["tool_executions"]
    assert told["output"]["plain"] == "[secret:planted]"
    assert failed["error"] == "ValueError: not with [secret:planted]"
    events = await client.events(run["run_id"])
    assert of_type(events, "tool_progress")[0]["data"]["message"] == "I know [secret:planted]"

    looked_at = {
        "the run": json.dumps(run),
        "its events": json.dumps(events),
        "its thread": json.dumps(await client.messages(run["thread_id"])),
        "its checkpoints": (await client.http.get(f"/runs/{run['run_id']}/checkpoints")).text,
        "the tools": (await client.http.get("/tools")).text,
        "the metrics": (await client.http.get("/metrics")).text,
        "what the model was sent": json.dumps(model.requests()),
        "the log": service.stdout() + service.stderr(),
        "the database": await _everything(database_url),
    }
    encoded = base64.b64encode(SECRET.encode()).decode()
    found = [place for place, text in looked_at.items() if SECRET in text or encoded in text]
    assert found == []
    assert "the secret is [secret:planted]" in looked_at["the log"], "or nothing was logged that could have leaked"


async def _everything(database_url: str) -> str:
    """All rows of all tables, as text."""
    connection = await asyncpg.connect(database_url)
    try:
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        rows = [await connection.fetch(f"SELECT t::text FROM {table['tablename']} t") for table in tables]
    finally:
        await connection.close()
    return "\n".join(row[0] for found in rows for row in found)
