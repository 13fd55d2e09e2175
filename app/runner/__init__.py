"""Runner: the same engine in-process, without a service and without a database.

from app import Agent, Runner, tool

result = Runner().run_sync(Agent(name="helper", model="openai/gpt-4o-mini"), user_message="hello")
"""

from __future__ import annotations

from app.runner.agent import Agent
from app.runner.config import RunnerConfig
from app.runner.errors import InvalidArgument, RunAbandoned, RunnerError
from app.runner.handle import RunHandle, RunStream, StreamEvent
from app.runner.runner import Runner

__all__ = [
    "Agent",
    "InvalidArgument",
    "RunAbandoned",
    "RunHandle",
    "RunStream",
    "Runner",
    "RunnerConfig",
    "RunnerError",
    "StreamEvent",
]
