"""What tokens cost: litellm's bundled price table, read as a file. litellm itself is not imported.

The same table says what models can do (`app.llm.model_facts`), so it is read once for both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from app.engine.usage import Usage
from app.llm.json_values import as_array, as_object, as_text
from app.llm.model_facts import UNKNOWN, ModelFacts, facts_in

_TABLE = "model_prices_and_context_window_backup.json"
_TEXT_MODES = frozenset({"chat", "completion", "responses"})
_TIER = re.compile(r"_above_(\d+)k_tokens$")


@dataclass(frozen=True, slots=True)
class _Tier:
    """US dollars a token, for calls with more than `above` input tokens; None where the table has none.

    `cached` is for input that was read from the provider's cache, `written` for input that was put into it.
    """

    above: int
    input: float
    output: float
    cached: float | None
    written: float | None
    reasoning: float | None


@dataclass(frozen=True, slots=True)
class _Row:
    provider: str
    tiers: tuple[_Tier, ...]  # rising; none where the price is unknown
    facts: ModelFacts


class PriceTable:
    """Prices and facts by model name, and the providers that have any.

    Args:
        entries: model name to entry, in the form of litellm's `model_prices_and_context_window.json`.
    """

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self._rows: dict[str, _Row] = {}
        providers: set[str] = set()
        for name, value in entries.items():
            entry = as_object(value)
            if entry.get("mode") not in _TEXT_MODES:
                continue
            provider = as_text(entry.get("litellm_provider"))
            providers.add(provider)
            self._rows[name] = _Row(provider, _tiers_of(entry), facts_in(entry))
        self.providers: frozenset[str] = frozenset(providers)

    def cost_of(self, model: str, usage: Usage, cache_write_tokens: int = 0) -> Decimal | None:
        """The cost of one call in US dollars, exactly as the table's prices make it; None if it is unknown.

        Args:
            model: the full name with its prefix, such as `openai/gpt-4o-mini`.
            cache_write_tokens: of the input tokens, how many were put into the provider's cache (for five minutes,
                which is the price that the table has).
        """
        row = self._row_of(model)
        if row is None or not row.tiers:
            return None
        tier = next((tier for tier in reversed(row.tiers) if usage.input_tokens > tier.above), row.tiers[0])
        # What has no price of its own is charged as any other token.
        cached = 0 if tier.cached is None else usage.cached_input_tokens
        written = 0 if tier.written is None else cache_write_tokens
        reasoning = 0 if tier.reasoning is None else usage.reasoning_tokens
        return (
            _exact(tier.input) * (usage.input_tokens - cached - written)
            + _exact(tier.cached or 0.0) * cached
            + _exact(tier.written or 0.0) * written
            + _exact(tier.output) * (usage.output_tokens - reasoning)
            + _exact(tier.reasoning or 0.0) * reasoning
        )

    def facts_of(self, model: str) -> ModelFacts:
        """What is known of a model; as `cost_of`, by its full name."""
        row = self._row_of(model)
        return UNKNOWN if row is None else row.facts

    def _row_of(self, model: str) -> _Row | None:
        row = self._rows.get(model)
        if row is not None:
            return row
        prefix, _, name = model.partition("/")
        row = self._rows.get(name)
        # The table lists the models of the large providers without prefix, and Google's under names like
        # vertex_ai-language-models. Somebody else's model of the same name has another price.
        if row is not None and (row.provider == prefix or row.provider.startswith((prefix + "-", prefix + "_"))):
            return row
        return None


@cache
def bundled_prices() -> PriceTable:
    """The table that the installed litellm brings along; read on first use, as it takes some 30 ms."""
    return PriceTable(orjson.loads((litellm_folder() / _TABLE).read_bytes()))


def litellm_folder() -> Path:
    """Where litellm is installed, without importing it."""
    spec = find_spec("litellm")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("litellm is not installed")
    return Path(spec.submodule_search_locations[0])


def _tiers_of(entry: dict[str, Any]) -> tuple[_Tier, ...]:
    ranges = [as_object(item) for item in as_array(entry.get("tiered_pricing"))]
    if ranges:
        tiers = [_tier_of(item, int(as_array(item.get("range"))[0])) for item in ranges if item.get("range")]
    else:
        tiers = [_tier_of(entry, 0)]
        thresholds = {int(match[1]) for key in entry if (match := _TIER.search(key))}
        tiers += [_tier_of(entry, k * 1000, f"_above_{k}k_tokens") for k in sorted(thresholds)]
    return tuple(tier for tier in tiers if tier is not None)


def _tier_of(prices: dict[str, Any], above: int, suffix: str = "") -> _Tier | None:
    """The prices above a number of input tokens; what has no price of its own there keeps its usual one."""

    def price(name: str) -> float | None:
        value = prices.get(name + suffix, prices.get(name))
        return float(value) if isinstance(value, (int, float)) else None

    input_price, output_price = price("input_cost_per_token"), price("output_cost_per_token")
    if input_price is None or output_price is None:
        return None
    return _Tier(
        above,
        input_price,
        output_price,
        price("cache_read_input_token_cost"),
        price("cache_creation_input_token_cost"),
        price("output_cost_per_reasoning_token"),
    )


def _exact(price: float) -> Decimal:
    return Decimal(repr(price))  # the shortest text of the float is the number that the table holds
