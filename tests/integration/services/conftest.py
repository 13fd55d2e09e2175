"""The services on a real database, and runs as a store would have left them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select
from uuid_utils.compat import uuid7

from app.db.database import Database
from app.db.models import Base, Checkpoint, Interaction, Run, RunEvent, Thread, ToolExecution
from app.services.agents import AgentService
from app.services.run_queries import RunQueries
from app.services.threads import ThreadService
from app.tools.function_tool import tool
from app.tools.registry import ToolRegistry


@tool
def add(a: int, b: int = 1) -> int:
    """Adds."""
    return a + b


TOOLS = ToolRegistry([add])


def _check_model(model: str) -> str | None:
    return None if model.startswith("demo/") else f"unknown provider in model {model!r}"


@pytest.fixture
def threads(database: Database) -> ThreadService:
    return ThreadService(database)


@pytest.fixture
def run_queries(database: Database) -> RunQueries:
    return RunQueries(database)


@pytest.fixture
def agents(database: Database) -> AgentService:
    return AgentService(database, TOOLS, _check_model)


@pytest.fixture
def another_replica(database: Database) -> AgentService:
    return AgentService(database, TOOLS, _check_model)


@pytest.fixture
def make_run(database: Database) -> Callable[..., Awaitable[UUID]]:
    """Puts a run on a thread (made if need be), with one row in each table that belongs to a run."""

    async def make(thread_id: str, status: str = "completed", **columns: Any) -> UUID:
        run_id = uuid7()
        async with database.session() as session:
            key = await session.scalar(select(Thread.thread_key).where(Thread.thread_id == thread_id))
            if key is None:
                key = uuid7()
                session.add(Thread(thread_key=key, thread_id=thread_id))
            values: dict[str, Any] = {
                "root_run_id": run_id,
                "agent_name": "helper",
                "agent_version_id": UUID(int=1),
                "requested_model": "demo/echo",
                "overrides": {},
                "context": {"secret": "not listed"},
                "input": [{"role": "user", "content": "hello"}],
                "holds_thread": False,
                "result": {"final_text": "hi"},
                "last_seq": 1,
            }
            session.add(Run(run_id=run_id, thread_key=key, thread_id=thread_id, status=status, **{**values, **columns}))
            session.add(RunEvent(run_id=run_id, seq=1, type="t", created_at=datetime.now(UTC), body={}))
            session.add(Checkpoint(run_id=run_id, seq=1, step=1, phase="call_model", message_seq=1, state={}))
            call = {"tool_call_id": "c", "tool_name": "add", "arguments": "{}", "effect": "unsafe"}
            session.add(ToolExecution(run_id=run_id, step=1, call_index=0, **call))
            asked = {"kind": "approval", "prompt": "?", "fallback": {}, "expires_at": datetime.now(UTC)}
            session.add(Interaction(interaction_id=uuid7(), run_id=run_id, step=1, **asked))
        return run_id

    return make


@pytest.fixture
def rows_in(database: Database) -> Callable[[type[Base]], Awaitable[int]]:
    """How many rows a table has."""

    async def count(table: type[Base]) -> int:
        async with database.session() as session:
            return (await session.execute(select(func.count()).select_from(table))).scalar_one()

    return count
