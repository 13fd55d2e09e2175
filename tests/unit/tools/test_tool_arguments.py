from __future__ import annotations

import contextlib
import threading
from collections.abc import Awaitable, Callable
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, field_validator, model_validator

from app.engine.tools import ToolResult
from app.tools import FunctionTool, ToolContext, tool
from app.tools.errors import CallError

Call = Callable[..., Awaitable[ToolResult]]


class Order(BaseModel):
    item: str
    count: int


@tool
async def place(order: Order, notes: list[int] | None = None) -> dict[str, Any]:
    """Place an order."""
    return {"order": order, "notes": notes}


@tool
async def search(query: str, limit: int = 5) -> str:
    return f"{query} {limit}"


async def test_arguments_reach_the_handler_validated_and_converted(call: Call) -> None:
    seen: dict[str, Any] = {}

    def keep(day: date, sizes: list[Any], ratio: float, order: Order, flag: bool = True) -> None:
        seen.update(day=day, sizes=sizes, ratio=ratio, order=order, flag=flag)

    await call(
        tool(keep),
        {"day": "2025-03-01", "sizes": ["s"], "ratio": 1, "order": {"item": "tea", "count": "2"}},
    )
    assert seen == {
        "day": date(2025, 3, 1),
        "sizes": ["s"],
        "ratio": 1.0,
        "order": Order(item="tea", count=2),
        "flag": True,
    }


@pytest.mark.parametrize("text", ["", "  \n", "{}"])
async def test_blank_text_means_no_arguments(call: Call, text: str) -> None:
    @tool
    async def ping(word: str = "pong") -> str:
        return word

    assert (await call(ping, text)).content == "pong"


async def test_an_absent_argument_leaves_the_default_object_in_place(call: Call) -> None:
    marker = ["default"]

    @tool
    async def same(values: list[str] = marker) -> bool:
        return values is marker

    assert (await call(same)).content == "true"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('{"query": "a"', ["not valid JSON", "line 1 column 13", '{"query": "a"']),
        ('{"query": "a",\n "limit": 1,}', ["not valid JSON", "line 2", '"limit": 1,}']),
        ("{'query': 'a'}", ["not valid JSON", "near"]),
        ("query=a", ["not valid JSON", "query=a"]),
        ('{"query":"a"} and more', ["not valid JSON", "trailing"]),
        ('{"query":"\\ud800"}', ["not valid JSON"]),
        ('{"query":"\ud800"}', ["not valid JSON", "surrogate"]),
        ("[" * 5000, ["not valid JSON", "recursion"]),
        ("[1]", ["must be a JSON object, not an array"]),
        ('"text"', ["must be a JSON object, not a string"]),
        ("null", ["must be a JSON object, not null"]),
        ("true", ["must be a JSON object, not a boolean"]),
        ("12.5", ["must be a JSON object, not a number"]),
    ],
)
async def test_text_that_is_no_object_is_an_error_that_shows_where(call: Call, text: str, parts: list[str]) -> None:
    result = await call(search, text)
    assert not result.success
    assert result.output is None
    assert result.error is not None
    assert "\n" not in result.error
    for part in parts:
        assert part in result.error
    assert len(result.error) < 400


async def test_every_problem_is_named_with_its_path_one_line_each(call: Call) -> None:
    result = await call(place, {"order": {"item": None, "size": 3}, "notes": [1, "x"], "extra": True})
    assert result.content.splitlines() == [
        "Error: the arguments do not fit the tool's schema",
        "- order.item: Input should be a valid string (given: null)",
        "- order.count: required, but missing",
        "- notes[1]: Input should be a valid integer, unable to parse string as an integer (given: 'x')",
        "- extra: no such argument; the arguments are: order, notes",
    ]
    assert result.error is not None
    assert result.error.startswith("the arguments do not fit the tool's schema: order.item: ")
    assert "\n" not in result.error


async def test_a_thousand_problems_are_bounded(call: Call) -> None:
    @tool
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    result = await call(add, {"numbers": ["y" * 1000] * 1000})
    assert "and 990 more" in result.content
    assert len(result.content) <= 2_000 + 100
    tight = await call(add, {"numbers": ["y" * 1000] * 1000}, output_max_chars=200)
    assert len(tight.content) <= 200


async def test_nan_is_no_number(call: Call) -> None:
    @tool
    async def half(number: float) -> float:
        return number / 2

    assert not (await call(half, '{"number": NaN}')).success


async def test_fields_of_args_model_come_as_an_instance_or_by_name(call: Call) -> None:
    class Search(BaseModel):
        query: str
        limit: int = Field(5, ge=1)

    def by_instance(args: Search, ctx: ToolContext) -> dict[str, Any]:
        assert isinstance(args, Search)
        return {"query": args.query, "limit": args.limit, "run": ctx.run_id}

    async def by_name(query: str, limit: int) -> dict[str, Any]:
        return {"query": query, "limit": limit}

    first: FunctionTool[..., Any] = tool(args_model=Search)(by_instance)
    second = tool(args_model=Search)(by_name)
    assert (await call(first, {"query": "a"})).content == '{"query":"a","limit":5,"run":"run-1"}'
    assert (await call(second, {"query": "a", "limit": 2})).content == '{"query":"a","limit":2}'
    assert (
        "limit: Input should be greater than or equal to 1" in (await call(second, {"query": "a", "limit": 0})).content
    )


class Range(BaseModel):
    low: int
    high: int

    @model_validator(mode="after")
    def ordered(self) -> Range:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self

    @field_validator("high")
    @classmethod
    def broken(cls, value: int) -> int:
        if value == 13:
            raise KeyError("a bug in the validator")
        return value


@tool(args_model=Range)
async def between(limits: Range) -> str:
    return f"{limits.low}..{limits.high}"


async def test_a_models_own_check_is_shown_without_a_path(call: Call) -> None:
    result = await call(between, {"low": 2, "high": 1})
    assert result.content.splitlines()[1] == "- Value error, low is above high"


async def test_a_validator_that_breaks_is_an_error_of_the_call(call: Call) -> None:
    result = await call(between, {"low": 2, "high": 13})
    assert result.error == "KeyError: 'a bug in the validator'"


async def test_the_context_is_injected_and_cannot_be_set_by_the_model(call: Call) -> None:
    @tool
    async def whoami(ctx: ToolContext) -> dict[str, Any]:
        return {
            "run": ctx.run_id,
            "thread": ctx.thread_id,
            "call": ctx.tool_call_id,
            "key": ctx.idempotency_key,
            "agent": ctx.agent_name,
            "context": ctx.context,
            "metadata": ctx.metadata,
        }

    result = await call(whoami, "{}", context={"user": {"id": 7}}, metadata={"k": "v"})
    assert result.content == (
        '{"run":"run-1","thread":"thread-1","call":"call-1","key":"run-1/1/0","agent":"analyst",'
        '"context":{"user":{"id":7}},"metadata":{"k":"v"}}'
    )
    refused = await call(whoami, {"ctx": {"run_id": "other"}})
    assert "ctx: no such argument; the arguments are: none" in refused.content


async def test_an_optional_context_is_injected_too(call: Call) -> None:
    @tool
    def maybe(ctx: ToolContext | None = None) -> str:
        return ctx.run_id if ctx else "none"

    assert maybe() == "none"
    assert (await call(maybe)).content == "run-1"


async def test_a_tool_cannot_change_the_runs_context(call: Call) -> None:
    @tool
    def meddle(ctx: ToolContext) -> str:
        ctx.context["user"]["id"] = 8
        with pytest.raises(AttributeError):
            ctx.run_id = "other"  # pyright: ignore[reportAttributeAccessIssue]
        return "done"

    context = {"user": {"id": 7}}
    assert (await call(meddle, context=context)).success
    assert context == {"user": {"id": 7}}


async def test_a_context_that_cannot_be_copied_is_an_error_of_the_call(call: Call) -> None:
    @tool
    def peek(ctx: ToolContext) -> str:
        return ctx.run_id

    result = await call(peek, context={"lock": threading.Lock()})
    assert result.error is not None
    assert result.error.startswith("TypeError: ")


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_no_text_of_a_model_makes_parsing_raise_anything_else(text: str) -> None:
    with contextlib.suppress(CallError):
        place.arguments.parse(text)
