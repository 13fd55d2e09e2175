"""A conversation, made into a summary by a model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import assert_never

from app.engine.compaction import INSTRUCTIONS, NewCompaction, summary_message, told
from app.engine.errors import ModelError, ModelErrorCode
from app.engine.messages import Message, Role
from app.engine.model import FinishReason, ModelClient, ModelRequest, ModelResponse
from app.engine.usage import Spend, Usage, add_cost
from app.llm.token_estimate import message_tokens

# About 50 000 tokens: most models can read as much. Longer conversations are summarised piece by piece, and so are all
# that turn out to be too long for their model.
_MOST_CHARS = 200_000
_FEWEST_CHARS = 5_000
_MAX_SUMMARY_CHARS = 50_000
_MAX_REASON_CHARS = 200
# A summary that takes no more than this does no harm, however little it stands for.
_HARMLESS_TOKENS = 250


@dataclass(frozen=True, slots=True)
class Summary:
    """
    Args:
        model: who wrote it, as the provider names it.
        usage, cost_usd: of all the calls that it took; the cost None where a price is unknown.
    """

    text: str
    model: str
    usage: Usage
    cost_usd: Decimal | None


async def summarise(models: ModelClient, like: ModelRequest, messages: Sequence[Message]) -> Summary:
    """Have a conversation summarised.

    Args:
        like: whose model, fallbacks, policies and tenant are used; nothing else of it.

    Raises:
        ModelError: a call failed, or gave anything but a whole answer with some text, or a long summary is no shorter
            than what it is to stand for; `spent` tells what all of them took.
    """
    tokens = sum(message_tokens(message) for message in messages)
    return await _Summariser(models, like).run([told(message) for message in messages], tokens)


class _Summariser:
    def __init__(self, models: ModelClient, like: ModelRequest) -> None:
        self._models = models
        self._like = replace(like, tools=(), settings={}, response_schema=None)
        self._usage = Usage()
        self._cost_usd: Decimal | None = Decimal(0)
        self._model = like.model
        self._chars = _MOST_CHARS

    async def run(self, texts: list[str], tokens: int) -> Summary:
        """`tokens` are those that the summary is to take the place of."""
        summary = ""
        rest = "\n\n".join(texts)
        while rest:
            piece = _first_piece(rest, self._chars)
            try:
                summary = await self._summarise(summary, piece)
            except ModelError as error:
                self._count(error.spent)
                if error.code is not ModelErrorCode.CONTEXT_OVERFLOW or self._chars <= _FEWEST_CHARS:
                    error.spent = self._spent()
                    raise
                self._chars = min(self._chars, len(piece)) // 2
            else:
                rest = rest[len(piece) :].lstrip()
        self._check_length(summary, tokens)
        return Summary(summary, self._model, self._usage, self._cost_usd)

    def _check_length(self, summary: str, tokens: int) -> None:
        takes = message_tokens(summary_message(NewCompaction(0, summary)).message)
        if takes >= max(tokens, _HARMLESS_TOKENS):
            error = self._no_summary(f"the summary is no shorter than what it stands for ({takes} tokens for {tokens})")
            error.spent = self._spent()
            raise error

    async def _summarise(self, earlier: str, piece: str) -> str:
        parts = [f"Summary of what came before:\n\n{earlier}"] if earlier else []
        parts.append(f"The conversation:\n\n{piece}")
        messages = (Message(Role.SYSTEM, INSTRUCTIONS), Message(Role.USER, "\n\n".join(parts)))
        response: ModelResponse | None = None
        async with aclosing(self._models.stream(replace(self._like, messages=messages))) as events:
            async for event in events:
                if isinstance(event, ModelResponse):
                    response = event
                elif isinstance(event, Spend):
                    self._count(event)
        if response is not None:
            self._usage += response.usage
            self._cost_usd = add_cost(self._cost_usd, response.cost_usd)
            self._model = response.model
        text = "" if response is None else response.text.strip()
        problem = "the model gave no summary" if response is None else _problem_of(response.finish_reason, text)
        if problem is not None:
            raise self._no_summary(problem)
        return text

    def _no_summary(self, problem: str) -> ModelError:
        return ModelError(ModelErrorCode.INVALID_RESPONSE, f"{self._like.model}: {problem}")

    def _count(self, spend: Spend | None) -> None:
        if spend is not None:
            self._usage += spend.usage
            self._cost_usd = add_cost(self._cost_usd, spend.cost_usd)

    def _spent(self) -> Spend | None:
        if not self._usage.llm_calls:
            return None
        return Spend(self._like.model, self._usage, self._cost_usd, "no summary came of it")


def _problem_of(finish_reason: FinishReason, text: str) -> str | None:
    """Why an answer is no summary; None if it is one. What stands for messages has to be whole."""
    match finish_reason:
        case FinishReason.STOP:
            if not text:
                return "the model gave no summary"
            too_long = len(text) > _MAX_SUMMARY_CHARS
            return f"the summary is longer than {_MAX_SUMMARY_CHARS} characters" if too_long else None
        case FinishReason.LENGTH:
            return "the summary was cut off at the model's output limit"
        case FinishReason.CONTENT_FILTER:
            return "the provider filtered the summary"
        case FinishReason.REFUSAL:
            return f"the model refused to write a summary: {text[:_MAX_REASON_CHARS]}"
        case FinishReason.TOOL_CALLS:
            return "the model called tools in place of writing a summary"
        case _:
            assert_never(finish_reason)


def _first_piece(text: str, most_chars: int) -> str:
    """The beginning of a text, up to the end of a message if there is one within the bound."""
    if len(text) <= most_chars:
        return text
    end = text.rfind("\n\n", most_chars // 2, most_chars)
    return text[: most_chars if end < 0 else end]
