"""The refund desk's tools, its rule and its agents, without a service."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from mcp.server.mcpserver.exceptions import ToolError

from app.engine.agent import AgentDefinition
from app.engine.deed import Deed, PolicySubject
from app.engine.effects import ToolEffect
from app.engine.policy import PolicyAction, PolicyEngine
from app.engine.tools import ToolInvocation, ToolResult
from app.tools import ToolRegistry
from examples.refund_desk.orders_server import find_orders, get_order
from examples.refund_desk.policy import large_refunds

AGENTS = Path(__file__).parents[3] / "examples" / "refund_desk" / "agents"
MARA = {"customer": {"email": "mara@example.com"}}


@pytest.fixture
async def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ToolRegistry]:
    monkeypatch.setenv("REFUNDS_DB", str(tmp_path / "shop" / "refunds.sqlite3"))
    registry = ToolRegistry()
    registry.load_modules(["examples.refund_desk.tools"])
    yield registry
    await registry.aclose()


async def pay(
    registry: ToolRegistry, order_id: str, amount_cents: int, *, key: str = "key", context: Any = MARA
) -> ToolResult:
    arguments = orjson.dumps({"order_id": order_id, "amount_cents": amount_cents, "reason": "rule 1"}).decode()
    allowed = frozenset({"pay_refund"})
    result = await registry.invoke(
        ToolInvocation("r", "t", "refund_desk", "c", "pay_refund", arguments, key, context, {}, allowed, 12_000)
    )
    assert isinstance(result, ToolResult)
    return result


def payments(tmp_path: Path) -> list[tuple[str, int]]:
    with closing(sqlite3.connect(tmp_path / "shop" / "refunds.sqlite3")) as database:
        return database.execute("SELECT order_id, amount_cents FROM refunds").fetchall()


async def test_a_call_that_is_run_again_pays_once_and_another_call_does_not_pay_the_order_again(
    registry: ToolRegistry, tmp_path: Path
) -> None:
    spec = registry.spec("pay_refund")
    assert spec is not None
    assert spec.effect is ToolEffect.IDEMPOTENT
    first, repeated, other = [await pay(registry, "A-1001", 18900, key=key) for key in ("one", "one", "two")]
    assert (first.success, repeated.output) == (True, first.output)
    assert (other.success, other.error) == (False, "ValueError: order A-1001 was refunded before")
    assert payments(tmp_path) == [("A-1001", 18900)]


@pytest.mark.parametrize(
    ("order_id", "amount_cents", "context", "problem"),
    [
        ("A-1002", 100, MARA, "this customer has no order 'A-1002'"),
        ("A-1001", 100, {}, "this customer has no order 'A-1001'"),
        ("B-1", 100, MARA, "this customer has no order 'B-1'"),
        ("A-1001", 18901, MARA, "only 18900 cents were paid"),
        ("A-1001", 0, MARA, "greater than 0"),
        ("A-1001", -5, MARA, "greater than 0"),
    ],
)
async def test_what_is_not_the_customers_or_more_than_was_paid_is_not_refunded(
    registry: ToolRegistry, tmp_path: Path, order_id: str, amount_cents: int, context: Any, problem: str
) -> None:
    result = await pay(registry, order_id, amount_cents, context=context)
    assert (result.success, problem in result.content) == (False, True), result.content
    assert not (tmp_path / "shop").exists()


@pytest.mark.parametrize(
    ("arguments", "action"),
    [
        ({"amount_cents": 10_000}, PolicyAction.ALLOW),
        ({"amount_cents": 10_001}, PolicyAction.REQUEST_APPROVAL),
        ({"amount": 1}, PolicyAction.DENY),
    ],
)
def test_refunds_above_a_hundred_euros_need_a_person(arguments: dict[str, int], action: PolicyAction) -> None:
    deed = Deed(PolicySubject.TOOL_CALL, "any_agent", {}, "pay_refund", arguments)
    verdict = PolicyEngine([large_refunds]).judge(deed)
    assert verdict is not None
    assert verdict.action is action


def test_the_mcp_server_finds_a_customers_orders_and_says_which_it_does_not_know() -> None:
    orders = find_orders("mara@example.com")
    assert list(orders) == ["A-1001", "A-0987"]
    assert [get_order(order_id).item for order_id in orders] == list(orders.values())
    assert find_orders("nobody@example.com") == {}
    with pytest.raises(ToolError, match="there is no order 'B-1'"):
        get_order("B-1")


@pytest.mark.parametrize("name", ["refund_desk", "order_researcher", "policy_clerk"])
def test_the_offline_agents_differ_from_the_others_in_their_models_and_words_alone(name: str) -> None:
    def told(file: str) -> dict[str, Any]:
        definition = AgentDefinition.model_validate(yaml.safe_load((AGENTS / f"{file}.yaml").read_text()))
        assert definition.name == file
        return definition.model_dump(exclude={"name", "description", "model", "instructions"})

    real = told(name)
    assert told(f"{name}_offline") == {**real, "subagents": [f"{each}_offline" for each in real["subagents"]]}
