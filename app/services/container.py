"""The use cases of one replica, put together by `app.replica` and handed to whoever calls them."""

from __future__ import annotations

from dataclasses import dataclass

from app.services.agents import AgentService
from app.services.compaction import CompactionService
from app.services.event_stream import EventStreams
from app.services.family_stream import FamilyStreams
from app.services.forks import ForkService
from app.services.health import Health
from app.services.interactions import InteractionService
from app.services.memories import MemoryService
from app.services.run_queries import RunQueries
from app.services.runs import RunService
from app.services.threads import ThreadService
from app.services.tool_catalogue import ToolCatalogue
from app.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Services:
    runs: RunService
    run_queries: RunQueries
    forks: ForkService
    interactions: InteractionService
    streams: EventStreams
    family_streams: FamilyStreams
    threads: ThreadService
    compaction: CompactionService
    agents: AgentService
    memories: MemoryService
    tools: ToolCatalogue
    health: Health
    metrics: Metrics
