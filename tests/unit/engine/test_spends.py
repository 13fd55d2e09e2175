"""What tries took that gave no answer is counted, and is said to be an estimate."""

from __future__ import annotations

from decimal import Decimal

from app.engine.apply import apply
from app.engine.errors import ModelError, ModelErrorCode
from app.engine.events import EventType
from app.engine.outcomes import ModelFailed, ModelResponded
from app.engine.state import RunState
from app.engine.usage import Spend, Usage
from tests.unit.engine.builders import a_response, a_scope

SPEND = Spend("openai/m", Usage(1, 100, 7), Decimal("0.002"), "the connection broke")


def test_an_answer_pays_for_the_tries_before_it() -> None:
    response = a_response("42")
    done = apply(RunState(), ModelResponded(response, 1.0, (SPEND, SPEND)), a_scope())
    assert done.state.usage == response.usage + SPEND.usage + SPEND.usage
    assert done.state.cost_usd == (response.cost_usd or 0) + 2 * Decimal("0.002")
    *estimates, answer = done.events
    assert answer.type is EventType.LLM_COMPLETED
    assert answer.data["usage"] == response.usage.as_dict(), "the answer tells of its own call"
    assert [event.data for event in estimates] == 2 * [
        {"code": "usage_estimated", "model": "openai/m", "usage": SPEND.usage.as_dict(), "cost_usd": 0.002}
    ]


def test_a_call_that_failed_is_paid_for() -> None:
    failed = ModelFailed(ModelError(ModelErrorCode.CONNECTION, "it broke"), (SPEND,))
    done = apply(RunState(), failed, a_scope())
    assert (done.state.usage, done.state.cost_usd) == (SPEND.usage, Decimal("0.002"))
    assert [event.type for event in done.events] == [EventType.WARNING]


def test_an_unknown_price_of_a_try_makes_the_cost_unknown() -> None:
    spend = Spend("local/m", Usage(1, 1, 1), None, "it broke")
    done = apply(RunState(), ModelResponded(a_response("42"), 1.0, (spend,)), a_scope())
    assert done.state.cost_usd is None
