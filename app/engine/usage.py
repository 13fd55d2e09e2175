"""Tokens and money, as counters that add up."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts. `cached_input_tokens` are part of `input_tokens`, `reasoning_tokens` part of `output_tokens`."""

    llm_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.llm_calls + other.llm_calls,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_input_tokens + other.cached_input_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )

    def as_dict(self) -> dict[str, int]:
        return {
            "llm_calls": self.llm_calls,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "total_tokens": self.total_tokens,
            "cached_input_tokens": self.cached_input_tokens,
            "reasoning_tokens": self.reasoning_tokens,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Usage:
        return cls(
            data["llm_calls"],
            data["input_tokens"],
            data["output_tokens"],
            data["cached_input_tokens"],
            data["reasoning_tokens"],
        )


@dataclass(frozen=True, slots=True)
class Spend:
    """What a call has taken that gave no answer, estimated: it broke off, or another answer came first.

    Args:
        model: as it was asked for, with its prefix.
        usage: `llm_calls` 1.
        cost_usd: None where the price is unknown.
        reason: in a few words, for people.
    """

    model: str
    usage: Usage
    cost_usd: Decimal | None
    reason: str


def add_cost(total: Decimal | None, cost: Decimal | None) -> Decimal | None:
    """Sum two costs in US dollars; an unknown price makes the sum unknown, never zero."""
    if total is None or cost is None:
        return None
    return total + cost
