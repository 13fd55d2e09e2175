"""The parts of a replica that execute runs, without a database and with a model that waits to be told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from decimal import Decimal
from typing import Any
from uuid import uuid4

from app.db.memory import InMemoryRows, MemoryStore
from app.engine.agent import AgentDefinition, AgentVersion
from app.engine.messages import Message, Role, ToolCall
from app.engine.model import FinishReason, ModelEvent, ModelRequest, ModelResponse
from app.engine.policy import PolicyEngine
from app.engine.ports import RunStore
from app.engine.records import NewRun
from app.engine.usage import Usage
from app.event_bus.memory import MemoryBus
from app.services.memories import MemoryService
from app.tools.function_tool import FunctionTool
from app.tools.registry import ToolRegistry
from app.worker.deltas import DeltaGatherer
from app.worker.driver import DriverPorts
from app.worker.executor import LocalExecutor

AGENT = AgentVersion(str(uuid4()), AgentDefinition(name="tester", model="scripted/x"), 1)


class HeldModel:
    """A model whose calls wait for the test: `answer` ends the oldest one that is open."""

    def __init__(self) -> None:
        self._calls: asyncio.Queue[asyncio.Future[ModelResponse]] = asyncio.Queue()

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        answer: asyncio.Future[ModelResponse] = asyncio.get_running_loop().create_future()
        self._calls.put_nowait(answer)
        yield await answer

    async def answer(self, text: str = "", *calls: ToolCall) -> None:
        async with asyncio.timeout(10):
            call = await self._calls.get()
        reason = FinishReason.TOOL_CALLS if calls else FinishReason.STOP
        call.set_result(ModelResponse("test", "x", text, calls, reason, Usage(1, 1, 1), Decimal(0)))

    async def aclose(self) -> None:
        pass


class Parts:
    """Use as an async context manager."""

    def __init__(
        self,
        *tools: FunctionTool[..., Any],
        store: RunStore | None = None,
        max_runs: int = 10,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store or MemoryStore()
        self.model = HeldModel()
        self.bus = MemoryBus()
        self.tools = ToolRegistry(tools)
        self.deltas = DeltaGatherer(self.store, self.bus, clock)
        memories = MemoryService(InMemoryRows(), None)
        ports = DriverPorts(self.store, self.model, self.tools, self.bus, self.deltas, clock, PolicyEngine(), memories)
        self.executor = LocalExecutor(ports, str(uuid4()), max_runs=max_runs)

    async def __aenter__(self) -> Parts:
        self.deltas.start()
        self.tools.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.executor.drain(0.0)
        await self.deltas.stop()
        await self.tools.aclose()


def a_run(agent: AgentVersion = AGENT) -> NewRun:
    run_id = str(uuid4())
    return NewRun(run_id, f"thread-{run_id}", str(uuid4()), agent, (Message(Role.USER, "Go."),))


async def until(look: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(10):
        while not (seen if isinstance(seen := look(), bool) else await seen):
            await asyncio.sleep(0.001)
