"""The use cases of one replica, put together by `app.main` and handed to whoever calls them."""

from __future__ import annotations

from dataclasses import dataclass

from app.services.agents import AgentService
from app.services.event_stream import EventStreams
from app.services.health import Health
from app.services.run_queries import RunQueries
from app.services.runs import RunService
from app.services.threads import ThreadService
from app.telemetry.metrics import Metrics
from app.tools.registry import ToolRegistry


@dataclass(frozen=True, slots=True)
class Services:
    runs: RunService
    run_queries: RunQueries
    streams: EventStreams
    threads: ThreadService
    agents: AgentService
    tools: ToolRegistry
    health: Health
    metrics: Metrics
