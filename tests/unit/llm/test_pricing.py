"""Against made-up rows for the rules, and against rows of the installed table for what it really holds."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from decimal import Decimal
from typing import Any

import pytest

from app.engine.model import FinishReason, ModelEvent, ModelRequest, ModelResponse, TextDelta
from app.engine.usage import Usage
from app.llm.priced import PricedClient
from app.llm.pricing import PriceTable, bundled_prices


def _table(**prices: Any) -> PriceTable:
    return PriceTable({"m": {"mode": "chat", "litellm_provider": "openai", **prices}})


FLAT = {"input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06}


def test_tokens_times_price_exactly() -> None:
    table = _table(input_cost_per_token=1.5e-07, output_cost_per_token=6e-07)
    assert table.cost_of("openai/m", Usage(1, 3, 7)) == Decimal("0.00000465")


def test_cached_tokens_have_their_own_price() -> None:
    table = _table(**FLAT, cache_read_input_token_cost=1e-07)
    assert table.cost_of("openai/m", Usage(1, 100, 0, cached_input_tokens=40)) == Decimal("0.000064")


def test_cached_tokens_without_a_price_cost_as_much_as_others() -> None:
    assert _table(**FLAT).cost_of("openai/m", Usage(1, 100, 0, cached_input_tokens=40)) == Decimal("0.0001")


def test_tokens_written_to_the_cache_have_their_own_price() -> None:
    table = _table(**FLAT, cache_read_input_token_cost=1e-07, cache_creation_input_token_cost=1.25e-06)
    usage = Usage(1, 100, 0, cached_input_tokens=40)
    assert table.cost_of("openai/m", usage, cache_write_tokens=20) == Decimal("0.000069")
    assert _table(**FLAT).cost_of("openai/m", usage, cache_write_tokens=20) == Decimal("0.0001")


def test_a_model_without_a_price_is_known_all_the_same() -> None:
    table = _table(max_output_tokens=5, supports_vision=True, supports_reasoning=False)
    facts = table.facts_of("openai/m")
    assert table.cost_of("openai/m", Usage(1, 1, 1)) is None
    assert (facts.max_output_tokens, facts.able, facts.unable) == (5, {"vision"}, {"reasoning"})


def test_reasoning_tokens_have_their_own_price_where_there_is_one() -> None:
    table = _table(**FLAT, output_cost_per_reasoning_token=5e-06)
    assert table.cost_of("openai/m", Usage(1, 0, 10, reasoning_tokens=4)) == Decimal("0.000032")


def test_long_inputs_cost_the_price_of_their_tier_as_a_whole() -> None:
    table = _table(
        **FLAT,
        input_cost_per_token_above_200k_tokens=3e-06,
        output_cost_per_token_above_200k_tokens=4e-06,
    )
    assert table.cost_of("openai/m", Usage(1, 200_000, 1)) == Decimal("0.200002")
    assert table.cost_of("openai/m", Usage(1, 200_001, 1)) == Decimal("0.600007")


def test_tiers_as_ranges() -> None:
    table = _table(
        tiered_pricing=[
            {**FLAT, "range": [0, 1000]},
            {"input_cost_per_token": 5e-06, "output_cost_per_token": 6e-06, "range": [1000, 2000]},
        ]
    )
    assert table.cost_of("openai/m", Usage(1, 10, 0)) == Decimal("0.00001")
    assert table.cost_of("openai/m", Usage(1, 1500, 0)) == Decimal("0.0075")


@pytest.mark.parametrize("model", ["openai/unknown", "groq/m", "m2", "", "openai/", "azure/m"])
def test_an_unknown_price_is_none_and_another_providers_price_is_not_taken(model: str) -> None:
    assert _table(**FLAT).cost_of(model, Usage(1, 1, 1)) is None


def test_models_that_are_not_for_text_have_no_price() -> None:
    table = PriceTable({"e": {"mode": "embedding", "litellm_provider": "openai", **FLAT}})
    assert table.cost_of("openai/e", Usage(1, 1, 1)) is None


@pytest.mark.parametrize(
    ("model", "cost"),
    [
        ("openai/gpt-4o", "12.5"),  # $2.50 in, $10 out a million
        ("openai/gpt-4o-mini", "0.75"),
        ("anthropic/claude-sonnet-4-5", "18"),
        ("mistral/mistral-large-latest", "2"),
        ("deepseek/deepseek-chat", "0.70"),
    ],
)
def test_the_bundled_table_knows_usual_models(model: str, cost: str) -> None:
    table = bundled_prices()
    # In steps of a thousand tokens, so that no tier for long inputs is reached.
    parts = [table.cost_of(model, Usage(1, 1000, 1000)) for _ in range(1000)]
    assert None not in parts
    assert sum(part for part in parts if part is not None) == Decimal(cost)


def test_the_bundled_tables_price_for_cached_tokens() -> None:
    usage = Usage(1, 1000, 0, cached_input_tokens=1000)
    assert bundled_prices().cost_of("openai/gpt-4o", usage) == Decimal("0.00125")


class OneAnswer:
    def __init__(self, cost_usd: Decimal | None) -> None:
        self._cost_usd = cost_usd

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        yield TextDelta("x")
        yield ModelResponse("p", "m", "x", (), FinishReason.STOP, Usage(1, 1000, 0), self._cost_usd)

    async def aclose(self) -> None: ...


@pytest.mark.parametrize(
    ("model", "known", "cost"),
    [
        ("openai/gpt-4o", None, Decimal("0.0025")),
        ("openai/gpt-4o", Decimal(0), Decimal(0)),
        ("openai/my-own", None, None),
    ],
)
async def test_an_answer_gets_its_cost_unless_it_has_one(
    model: str, known: Decimal | None, cost: Decimal | None
) -> None:
    events = [event async for event in PricedClient(OneAnswer(known)).stream(ModelRequest(model, []))]
    assert isinstance(events[-1], ModelResponse)
    assert events[-1].cost_usd == cost
