"""The commands `agent-runner agents …`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import typer

from app.db.database import Database
from app.engine.agent import AgentSettings
from app.engine.store_errors import StoreError
from app.llm.providers_file import ProvidersFileError
from app.replica.configured import agent_service, load_tools, model_config
from app.services.agent_files import read_agent_file
from app.services.agents import AgentService
from app.services.errors import ServiceError
from app.settings import Settings
from app.tools.errors import ToolError

REFUSALS = (ServiceError, StoreError, ToolError, ProvidersFileError)


async def show_agents(settings: Settings) -> None:
    """Print the stored agents, a line each."""
    async with _agents(settings) as service:
        cursor: str | None = None
        while True:
            page = await service.list(cursor, 100)
            for agent in page.items:
                typer.echo(f"{agent.name}\tv{agent.version}\t{agent.source}\t{agent.definition.model}")
            cursor = page.next_cursor
            if cursor is None:
                return


async def save_agent(settings: Settings, file: Path) -> None:
    """Save the agent of a YAML file and print its version."""
    definition = read_agent_file(file)
    async with _agents(settings) as service:
        saved = await service.put(
            definition.name, AgentSettings.model_validate(definition.model_dump(exclude={"name"}))
        )
    typer.echo(f"{saved.record.name} v{saved.record.version} {'created' if saved.created else 'saved'}")


@asynccontextmanager
async def _agents(settings: Settings) -> AsyncGenerator[AgentService]:
    config = model_config(settings)
    database = await Database.connect(settings.database_url, prepared=settings.database_prepared)
    try:
        yield agent_service(database, load_tools(settings), config)
    finally:
        await database.close()
