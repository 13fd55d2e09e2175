"""agent-runner: an HTTP service that runs LLM agents and loses nothing.

The names below are the public Python surface; everything else is reached over HTTP. They are loaded on first use, so
that the program does not pay for what a command does not need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.engine.interactions import Answer, Decision
    from app.engine.policy import PolicyEngine, PolicyRule
    from app.engine.result import AgentResult
    from app.engine.tools import Deferral
    from app.runner import Agent, InvalidArgument, RunAbandoned, Runner, RunnerConfig, RunnerError
    from app.tools.function_tool import tool
    from app.tools.tool_context import ToolContext

__all__ = [
    "Agent",
    "AgentResult",
    "Answer",
    "Decision",
    "Deferral",
    "InvalidArgument",
    "PolicyEngine",
    "PolicyRule",
    "RunAbandoned",
    "Runner",
    "RunnerConfig",
    "RunnerError",
    "ToolContext",
    "tool",
]

_HOMES = {
    "Agent": "app.runner",
    "AgentResult": "app.engine.result",
    "Answer": "app.engine.interactions",
    "Decision": "app.engine.interactions",
    "Deferral": "app.engine.tools",
    "InvalidArgument": "app.runner",
    "PolicyEngine": "app.engine.policy",
    "PolicyRule": "app.engine.policy",
    "RunAbandoned": "app.runner",
    "Runner": "app.runner",
    "RunnerConfig": "app.runner",
    "RunnerError": "app.runner",
    "ToolContext": "app.tools.tool_context",
    "tool": "app.tools.function_tool",
}


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'app' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
