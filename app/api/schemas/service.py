"""What the service says about itself."""

from __future__ import annotations

from typing import Any, Literal

from app.api.schemas.fields import JsonObject, Resource, example

_INFO_EXAMPLE: JsonObject = {
    "version": "0.1.0",
    "capabilities": ["runs", "streams", "threads", "agents", "interactions", "subagents"],
    "limits": {"max_steps": 20, "max_subagent_depth": 3},
    "model_clients": ["openai", "demo", "litellm"],
}
METRICS_EXAMPLE = (
    "# HELP agent_runner_runs_claimed_total Runs that this replica took, as they were created or from the queue.\n"
    "# TYPE agent_runner_runs_claimed_total counter\n"
    "agent_runner_runs_claimed_total 12.0\n"
)


class Alive(Resource):
    model_config = example({"status": "ok"})

    status: Literal["ok"]


class Ready(Resource):
    model_config = example({"status": "ready"})

    status: Literal["ready"]


class Info(Resource):
    model_config = example(_INFO_EXAMPLE)

    version: str
    capabilities: list[str]
    limits: dict[str, Any]
    model_clients: list[str]
