from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from app.engine.tools import ToolInvocation
from app.telemetry.metrics import Metrics
from app.tools import ToolRegistry, tool
from app.tools.metered import MeteredTools
from tests.exposition import Exposition

Invocation = Callable[..., ToolInvocation]

started = asyncio.Event()


@tool(effect="read_only")
async def half(number: int) -> int:
    """Half of an even number."""
    if number % 2:
        raise ValueError("odd")
    return number // 2


@tool
async def forever() -> None:
    """Never end."""
    started.set()
    await asyncio.Event().wait()


@pytest.fixture
async def registry() -> AsyncIterator[ToolRegistry]:
    registry = ToolRegistry([half, forever])
    yield registry
    await registry.aclose()


def calls(metrics: Metrics, **labels: str) -> float:
    return Exposition(metrics.exposition()).value("agent_runner_tool_duration_seconds_count", **labels)


async def test_calls_are_counted_by_tool_and_outcome(registry: ToolRegistry, invocation: Invocation) -> None:
    metrics = Metrics()
    tools = MeteredTools(registry, metrics)
    results = [await tools.invoke(invocation("half", {"number": number})) for number in (4, 6, 7)]
    assert [result.output for result in results] == ["2", "3", None]
    assert calls(metrics, gen_ai_tool_name="half", outcome="success") == 2
    assert calls(metrics, gen_ai_tool_name="half", outcome="failure") == 1
    assert tools.spec("half") is half.spec


async def test_names_that_a_model_makes_up_are_one(registry: ToolRegistry, invocation: Invocation) -> None:
    metrics = Metrics()
    tools = MeteredTools(registry, metrics)
    for name in ("hlaf", "halve"):
        await tools.invoke(invocation(name))
    assert calls(metrics, gen_ai_tool_name="other", outcome="failure") == 2


async def test_a_call_that_is_cancelled_is_counted_as_such(registry: ToolRegistry, invocation: Invocation) -> None:
    metrics = Metrics()
    call = asyncio.create_task(MeteredTools(registry, metrics).invoke(invocation("forever")))
    await started.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert calls(metrics, gen_ai_tool_name="forever", outcome="cancelled") == 1
