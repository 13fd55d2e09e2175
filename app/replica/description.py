"""What a replica says about itself."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from app.engine.limits import SERVICE_LIMITS
from app.llm.factory import ModelConfig, model_clients
from app.settings import Settings

MAX_BODY_BYTES = 1024 * 1024
_CAPABILITIES = (
    "runs", "streams", "threads", "agents", "tools", "checkpoints", "idempotency", "interactions", "subagents",
    "policy", "caller_tools", "http_tools", "mcp", "sandboxes", "fork", "structured_output", "compaction",
    "memories", "telemetry",
)  # fmt: skip


def description(settings: Settings, config: ModelConfig) -> dict[str, Any]:
    """What `/info` answers."""
    limits = SERVICE_LIMITS
    return {
        "version": version("agent-runner"),
        "capabilities": list(_CAPABILITIES),
        "limits": {
            "max_concurrent_runs": settings.max_concurrent_runs,
            "max_queued_runs": settings.max_queued_runs,
            "max_body_bytes": MAX_BODY_BYTES,
            "max_steps": limits.max_steps,
            "max_llm_calls": limits.max_llm_calls,
            "max_tool_calls": limits.max_tool_calls,
            "max_wall_time_s": limits.max_wall_time_s,
            "max_total_tokens": limits.max_total_tokens,
            "max_total_cost_usd": limits.max_total_cost_usd,
            "max_subagent_depth": limits.max_subagent_depth,
            "max_subagent_fanout": limits.max_subagent_fanout,
        },
        "model_clients": list(model_clients(config)),
    }
