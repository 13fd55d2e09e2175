"""What a call costs: its answer, or what it has said before it broke off."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from typing import Any, Self

from app.engine.errors import ModelError
from app.engine.model import (
    ModelClient,
    ModelEvent,
    ModelRequest,
    ModelResponse,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
)
from app.engine.usage import Spend, Usage
from app.llm.model_names import OFFLINE
from app.llm.pricing import bundled_prices
from app.llm.token_estimate import estimate_input, tokens_of


@dataclass(slots=True)
class Tally:
    """How far a call has come, for whoever may break it off.

    Args:
        sent: whether it has gone to the provider, which charges for it from then on.
        chars: what it had said when it ended, in characters.
    """

    sent: bool = False
    chars: int = 0


@dataclass(frozen=True, slots=True)
class TalliedRequest(ModelRequest):
    """A request whose call is followed in `tally`, which is of this one call alone."""

    tally: Tally = field(default_factory=Tally)

    @classmethod
    def of(cls, request: ModelRequest) -> Self:
        same: dict[str, Any] = {each.name: getattr(request, each.name) for each in fields(ModelRequest)}
        return cls(**same)


def spend_of(model: str, input_tokens: int, chars: int, reason: str) -> Spend:
    """What a call without an answer has taken.

    Args:
        model: as it was asked for, with its prefix.
        chars: what it has said, in characters.
        reason: in a few words, for people.
    """
    usage = Usage(llm_calls=1, input_tokens=input_tokens, output_tokens=tokens_of(chars))
    return Spend(model, usage, cost_of(model, usage), reason)


def cost_of(model: str, usage: Usage, cache_write_tokens: int = 0) -> Decimal | None:
    """In US dollars; None where the price is unknown. Models that answer offline cost nothing."""
    if model.partition("/")[0] in OFFLINE:
        return Decimal(0)
    return bundled_prices().cost_of(model, usage, cache_write_tokens)


class PricedClient:
    """A `ModelClient` that fills in what the answers of another one cost, and what its errors have cost.

    A provider charges for a stream that breaks off once it has begun to answer: such an error gets its `spent`. Where a
    call was refused, or nothing had come yet, nothing is charged. It has to stand outside of the timeouts, whose errors
    are among these.
    """

    def __init__(self, inner: ModelClient) -> None:
        self._inner = inner

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        """See `ModelClient.stream`; a cost that the inner client knows is left as it is."""
        chars = 0
        tally = request.tally if isinstance(request, TalliedRequest) else None
        if tally is not None:
            tally.sent = True
        try:
            async with aclosing(self._inner.stream(request)) as events:
                async for event in events:  # there may be thousands: a piece costs one or two looks at its type
                    if isinstance(event, TextDelta) or isinstance(event, ReasoningDelta):  # noqa: SIM101 - a pair costs more
                        chars += len(event.text)
                    elif isinstance(event, ToolCallDelta):
                        chars += len(event.name) + len(event.delta)
                    elif isinstance(event, ModelResponse) and event.cost_usd is None:
                        cost = cost_of(request.model, event.usage, event.cache_write_tokens)
                        event = replace(event, cost_usd=cost)
                    yield event
        except ModelError as error:
            if chars and error.spent is None:
                reason = f"a call of {request.model} broke off ({error.code.value})"
                error.spent = spend_of(request.model, estimate_input(request), chars, reason)
            raise
        finally:
            if tally is not None:
                tally.chars = chars

    async def aclose(self) -> None:
        """See `ModelClient.aclose`."""
        await self._inner.aclose()
