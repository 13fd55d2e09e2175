from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from app.engine.tool_definitions import CallerToolDefinition, Toolbox
from app.engine.tools import Deferral, ToolInvocation, ToolResult
from app.telemetry.metrics import Metrics
from app.tools import ToolContext, ToolRegistry, tool
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


@tool
async def later() -> Deferral:
    """Put off the result."""
    return Deferral("ticket-1", "begun")


def _refuse(_context: ToolContext, _arguments: dict[str, Any]) -> None:
    raise ValueError("never")


@tool(prehooks=[_refuse])
async def guarded() -> None:
    """Never run."""


@pytest.fixture
async def registry() -> AsyncIterator[ToolRegistry]:
    registry = ToolRegistry([half, forever, later, guarded])
    yield registry
    await registry.aclose()


def calls(metrics: Metrics, **labels: str) -> float:
    return Exposition(metrics.exposition()).value("agent_runner_tool_duration_seconds_count", **labels)


async def test_calls_are_counted_by_tool_and_outcome(registry: ToolRegistry, invocation: Invocation) -> None:
    metrics = Metrics()
    tools = MeteredTools(registry, metrics)
    results = [await tools.invoke(invocation("half", {"number": number})) for number in (4, 6, 7)]
    assert [result.output for result in results if isinstance(result, ToolResult)] == ["2", "3", None]
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


async def test_a_result_that_is_put_off_counts_as_success_and_a_pre_hooks_refusal_as_failure(
    registry: ToolRegistry, invocation: Invocation
) -> None:
    metrics = Metrics()
    tools = MeteredTools(registry, metrics)
    assert isinstance(await tools.invoke(invocation("later")), Deferral)
    assert isinstance(await tools.prepare(invocation("guarded")), ToolResult)
    assert calls(metrics, gen_ai_tool_name="later", outcome="success") == 1
    assert calls(metrics, gen_ai_tool_name="guarded", outcome="failure") == 1


async def test_everything_else_is_the_inner_ports(registry: ToolRegistry) -> None:
    metrics = Metrics()
    tools = MeteredTools(registry, metrics)
    assert tools.checked("half", '{"number": 4.0}') == '{"number":4}'
    assert tools.granted(["half", "none"]) == (half.spec,)
    assert tools.lacking(["half", "none"]) == ("none",)
    posted = tools.result(output="1", error=None, output_max_chars=300, sanitize=False)
    assert posted == registry.result(output="1", error=None, output_max_chars=300, sanitize=False)
    assert tools.for_agent(Toolbox("v1")) is tools
    ask = CallerToolDefinition(type="caller", name="ask")
    assert tools.for_agent(Toolbox("v2", (ask,))).spec("ask") is not None
