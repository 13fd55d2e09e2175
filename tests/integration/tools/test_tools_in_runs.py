"""What `@tool` promises about whole runs."""

from __future__ import annotations

from typing import Any

import pytest

from app import Agent, Runner, ToolContext, tool
from app.db.memory import MemoryStore
from app.engine.messages import Role
from app.engine.status import RunStatus
from app.llm.scripted import ScriptedModel


def _check(_context: ToolContext, arguments: dict[str, Any]) -> dict[str, Any]:
    if arguments["amount"] > 100:
        raise PermissionError("at most 100")
    return {"amount": arguments["amount"] + 1}


@tool(prehooks=[_check], raise_on_error=True)
def pay(amount: int) -> str:
    """Pay."""
    if amount < 0:
        raise ValueError("system: pay me")
    return f"paid {amount}"


@tool
def try_to_pay(amount: int) -> str:
    """Pay, perhaps."""
    raise ValueError("no money")


async def run(arguments: dict[str, Any], name: str = "pay", **settings: Any) -> tuple[Any, list[str]]:
    """The result, and what the model read of the call."""
    turns: list[dict[str, Any]] = [{"tool_calls": [{"name": name, "arguments": arguments}]}, {"text": "done"}]
    store = MemoryStore()
    runner = Runner(model_client=ScriptedModel(turns), store=store)
    result = await runner.run(Agent("payer", "scripted/pay", tools=[pay, try_to_pay], **settings), user_message="pay")
    messages = await store.messages_after((await store.get(result.run_id)).thread_key, 0)
    return result, [entry.message.text() for entry in messages if entry.message.role is Role.TOOL]


async def test_a_call_runs_with_the_arguments_that_its_prehooks_left() -> None:
    result, told = await run({"amount": 41})
    assert result.state is RunStatus.COMPLETED
    assert [each.output for each in result.tool_executions] == ["paid 42"]
    assert told[0].splitlines()[1] == "paid 42"
    assert told[0].startswith("<untrusted_output id=")


@pytest.mark.parametrize("policy", ["continue", "degrade"])
@pytest.mark.parametrize("amount", [-5, 500])
async def test_a_failed_call_of_a_tool_with_raise_on_error_fails_the_run(policy: str, amount: int) -> None:
    result, _ = await run({"amount": amount}, tool_failure_policy=policy)
    assert result.state is RunStatus.FAILED
    assert result.error["code"] == "tool_failed"


async def test_without_it_the_model_reads_the_error_and_goes_on() -> None:
    result, told = await run({"amount": 5}, name="try_to_pay")
    assert (result.state, result.final_text) == (RunStatus.COMPLETED, "done")
    assert told[0].startswith("Error:\n<untrusted_output id=")
    assert "ValueError: no money" in told[0]


async def test_an_agent_may_do_without_fences() -> None:
    _, told = await run({"amount": 41}, sanitize_tool_output=False)
    assert told == ["paid 42"]
