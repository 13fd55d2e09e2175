"""Models without key and network: `demo/assistant` to try the service out, `demo/echo` to test clients."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Any
from uuid import uuid4

import orjson

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.messages import Message, Role, ToolCall
from app.engine.model import (
    FinishReason,
    ModelEvent,
    ModelRequest,
    ModelResponse,
    TextDelta,
    ToolCallDelta,
)
from app.llm.json_values import as_object, one_line
from app.llm.token_estimate import estimate_usage

PREFIX = "demo/"
DEMO_MODELS = ("demo/assistant", "demo/echo")

_WORDS = re.compile(r"\s*\S+\s*|\s+")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_EXPRESSION = re.compile(r"[-(\s]*\d[\d.\s()+\-*/%^×÷]*[\d)]")
_OPERATION = re.compile(r"[\d)]\s*(\*\*|//|[-+*/%^×÷])\s*[-(\s]*\d")
_ASKS_TIME = re.compile(r"\b(time|date|day|clock|today|now)\b", re.IGNORECASE)
_TIME_ZONE = re.compile(r"\b[A-Z][A-Za-z]+/[A-Z][A-Za-z_]+\b")


class DemoClient:
    """A `ModelClient` that answers by fixed rules, word by word, at no cost.

    Args:
        word_delay_s: seconds between two words.
        sleep: waits so many seconds.
    """

    def __init__(
        self, *, word_delay_s: float = 0.015, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._word_delay_s = word_delay_s
        self._sleep = sleep

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        """See `ModelClient.stream`; raises `ModelError` MODEL_NOT_FOUND for a demo that does not exist."""
        text, calls = _answer(request)
        for place, word in enumerate(_WORDS.findall(text)):
            if place and self._word_delay_s:
                await self._sleep(self._word_delay_s)
            yield TextDelta(word)
        for index, call in enumerate(calls):
            yield ToolCallDelta(index, call.id, call.name, call.arguments)
        yield ModelResponse(
            provider="demo",
            model=request.model.removeprefix(PREFIX),
            text=text,
            tool_calls=calls,
            finish_reason=FinishReason.TOOL_CALLS if calls else FinishReason.STOP,
            usage=estimate_usage(request, text, calls),
            cost_usd=Decimal(0),
        )

    async def aclose(self) -> None:
        """See `ModelClient.aclose`; there is nothing to give back."""


def _answer(request: ModelRequest) -> tuple[str, tuple[ToolCall, ...]]:
    asked, since = _last_exchange(request.messages)
    if request.model == "demo/echo":
        return asked, ()
    if request.model != "demo/assistant":
        raise ModelError(
            ModelErrorCode.MODEL_NOT_FOUND, f"there is no {request.model}; there are {', '.join(DEMO_MODELS)}"
        )
    if any(message.role is Role.TOOL for message in since):
        return _report(since), ()
    calls = _calls_for(asked, frozenset(tool.name for tool in request.tools))
    return ("", calls) if calls else (_introduction(asked), ())


def _last_exchange(messages: Sequence[Message]) -> tuple[str, list[Message]]:
    """The last user message's text, and the messages after it."""
    since: list[Message] = []
    for message in reversed(messages):
        if message.role is Role.USER:
            return message.text(), since[::-1]
        since.append(message)
    return "", []


def _calls_for(asked: str, offered: frozenset[str]) -> tuple[ToolCall, ...]:
    calls: list[ToolCall] = []
    expression = _expression_in(asked)
    if expression and "calculate" in offered:
        calls.append(_call("calculate", {"expression": expression}))
    if _ASKS_TIME.search(asked) and "current_time" in offered:
        zone = _TIME_ZONE.search(asked)
        calls.append(_call("current_time", {"timezone": zone[0]} if zone else {}))
    return tuple(calls)


def _expression_in(asked: str) -> str | None:
    for match in _EXPRESSION.finditer(_DATE.sub(" ", asked)):
        expression = match[0].strip()
        while expression.endswith(")") and expression.count(")") > expression.count("("):
            expression = expression[:-1].rstrip()
        while expression.startswith("(") and expression.count("(") > expression.count(")"):
            expression = expression[1:].lstrip()
        if _OPERATION.search(expression):
            return expression.replace("^", "**").replace("×", "*").replace("÷", "/")
    return None


def _call(name: str, arguments: dict[str, Any]) -> ToolCall:
    return ToolCall(f"call_{uuid4().hex[:24]}", name, orjson.dumps(arguments).decode())


def _report(since: list[Message]) -> str:
    calls = {call.id: call for message in since for call in message.tool_calls}
    return " ".join(
        _sentence(calls.get(message.tool_call_id or ""), message.text())
        for message in since
        if message.role is Role.TOOL
    )


def _sentence(call: ToolCall | None, output: str) -> str:
    value = _json_in(output)
    name = call.name if call is not None else "The tool"
    if name == "calculate" and call is not None and isinstance(value, (int, float)):
        return f"{as_object(_json_in(call.arguments)).get('expression')} = {value}."
    if name == "current_time" and as_object(value).get("time"):
        clock = as_object(value)
        return f"It is {clock.get('weekday', '')} {clock['time']} ({clock.get('timezone', 'UTC')})."
    return f"{name} answered: {one_line(output)}"


def _json_in(output: str) -> Any:
    """The first line that is JSON: tool output may stand between lines that mark it as data."""
    for line in output.splitlines():
        try:
            return orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
    return None


def _introduction(asked: str) -> str:
    return (
        "I am demo/assistant, a stand-in that follows fixed rules and needs no key. "
        f"You wrote: {one_line(asked, 200) or '(nothing)'}\n"
        "Give me the tools calculate and current_time, ask me for 17 * 23 or for the time, and I use them. "
        "For a real model set OPENAI_API_KEY (and OPENAI_BASE_URL for any OpenAI-compatible server), "
        "and name a model such as openai/gpt-4o-mini in the agent."
    )
