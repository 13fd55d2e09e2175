"""The Grafana dashboard asks only for what a replica tells."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.llm.circuit_breaker import CircuitLimits
from app.settings import Settings
from tests.integration.test_metrics import AGENT, serving
from tests.model_server import ModelServer, Reply
from tests.model_server.reply import USAGE as PLAIN_USAGE

DASHBOARD = Path(__file__).parents[2] / "grafana" / "agent-runner.json"
_NAME = re.compile(r"\b(?:agent_runner|gen_ai)_[a-z_]+(?=\{)")
_LABELS = re.compile(r"by \(([^)]*)\)")
# What a scrape adds.
_OF_THE_SCRAPE = {"job", "instance"}
PRICED = {"name": "priced", "model": "openai/gpt-4o-mini"}
OPENS_A_CIRCUIT = CircuitLimits().failures
FRAGILE = {"name": "fragile", "model": "openai/gpt-4o", "model_policies": {"retry": {"max_attempts": 1}}}
USAGE = {
    **PLAIN_USAGE,
    "prompt_tokens_details": {"cached_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


def expressions() -> Iterator[str]:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]


@pytest.fixture
async def told(database_url: str, tmp_path: Path) -> dict[str, set[str]]:
    """The names of all samples of a replica after runs of each kind, each with its labels."""
    async with ModelServer() as model:
        model.script([Reply(usage=USAGE), Reply.error(400), *[Reply.error(500)] * OPENS_A_CIRCUIT])
        settings = Settings.load(
            database_url=database_url, agents_dir=tmp_path, openai_api_key="a-key", openai_base_url=model.base_url
        )
        async with serving(settings) as client:
            agents = (AGENT, PRICED, PRICED, *[FRAGILE] * OPENS_A_CIRCUIT)
            answers = [await client.post("/runs/wait", json={"agent": agent, "input": "What?"}) for agent in agents]
            runs = [answer.json() for answer in answers]
            assert [run["status"] for run in runs] == ["completed"] * 2 + ["failed"] * (1 + OPENS_A_CIRCUIT)
            forked = await client.post(f"/runs/{runs[0]['run_id']}/fork", json={"input": "And 2 * 2?"})
            await client.get(f"/runs/{forked.json()['run_id']}/wait")
            async with asyncio.timeout(15):
                while "loop_lag_seconds_bucket" not in (text := (await client.get("/metrics")).text):
                    await asyncio.sleep(0.05)  # it is measured twice a second
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


async def test_every_query_is_over_metrics_and_labels_that_there_are(told: dict[str, set[str]]) -> None:
    """Seen to fail with a name, and with a label, that no replica tells."""
    asked = list(expressions())
    assert len(asked) > 20
    for expression in asked:
        names = set(_NAME.findall(expression))
        assert names, expression
        assert names <= told.keys(), expression
        labels = {label.strip() for group in _LABELS.findall(expression) for label in group.split(",")}
        for name in names:
            assert labels <= told[name] | _OF_THE_SCRAPE, expression


async def test_every_number_of_a_replica_is_on_the_dashboard(told: dict[str, set[str]]) -> None:
    shown = {name for expression in expressions() for name in _NAME.findall(expression)}
    families = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in told if not name.endswith("_created")}
    missing = {name for name in families if not any(each.startswith(name) for each in shown)}
    assert not missing
