"""What runs around a tool's handler, in which order, and what becomes of its errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from pydantic import BaseModel
from structlog.testing import capture_logs

from app.engine.tools import ToolInvocation, ToolResult
from app.tools import ToolContext, ToolDefinitionError, ToolRegistry, tool
from app.tools.hooks import CallNext
from tests.tool_calls import ended

Invocation = Callable[..., ToolInvocation]
Registered = Callable[..., ToolRegistry]


class TestOrder:
    @pytest.mark.parametrize("is_async", [True, False])
    async def test_is_prehooks_middlewares_handler_posthooks(
        self, is_async: bool, registered: Registered, invocation: Invocation
    ) -> None:
        steps: list[str] = []

        def before(context: ToolContext, arguments: dict[str, Any]) -> dict[str, Any]:
            steps.append(f"before {arguments} {context.run_id}")
            return {"number": arguments["number"] + 1}

        async def before_too(_context: ToolContext, arguments: dict[str, Any]) -> None:
            steps.append(f"before too {arguments}")

        def around(name: str) -> Any:
            async def middleware(_context: ToolContext, arguments: dict[str, Any], go_on: CallNext) -> Any:
                steps.append(f"into {name}")
                value = await go_on({"number": arguments["number"] * 10})
                steps.append(f"out of {name}")
                return value + 1

            return middleware

        def after(_context: ToolContext, value: Any) -> Any:
            steps.append(f"after {value}")
            return value * 2

        async def after_too(_context: ToolContext, value: Any) -> None:
            steps.append(f"after too {value}")

        options: dict[str, Any] = {
            "prehooks": [before, before_too],
            "middlewares": [around("outer"), around("inner")],
            "posthooks": [after, after_too],
        }

        @tool(name="double", **options)
        def plain(number: int) -> int:
            steps.append(f"handler {number}")
            return number * 2

        @tool(name="double", **options)
        async def waiting(number: int) -> int:
            steps.append(f"handler {number}")
            return number * 2

        double = waiting if is_async else plain
        assert double.spec.has_prehooks
        result = await ended(registered(double), invocation("double", {"number": 1}))
        assert result.output == str((200 * 2 + 2) * 2)
        assert steps == [
            "before {'number': 1} run-1",
            "before too {'number': 2}",
            "into outer",
            "into inner",
            "handler 200",
            "out of inner",
            "out of outer",
            "after 402",
            "after too 804",
        ]

    async def test_invoke_does_not_run_prehooks_again(self, registered: Registered, invocation: Invocation) -> None:
        runs: list[dict[str, Any]] = []

        @tool(prehooks=[lambda _context, arguments: runs.append(arguments)])
        def echo(word: str) -> str:
            return word

        result = await registered(echo).invoke(invocation("echo", {"word": "as given"}))
        assert isinstance(result, ToolResult)
        assert (result.content, runs) == ("as given", [])


class TestPreHooks:
    async def test_get_json_with_defaults_filled_in(self, registered: Registered, invocation: Invocation) -> None:
        class Where(BaseModel):
            city: str
            country: str = "FR"

        seen: list[dict[str, Any]] = []

        @tool(prehooks=[lambda _context, arguments: seen.append(arguments)])
        async def weather(where: Where, days: int = 3) -> str:
            return where.city

        prepared = await registered(weather).prepare(invocation("weather", {"where": {"city": "Lyon"}, "days": "5"}))
        assert isinstance(prepared, str)
        assert orjson.loads(prepared) == seen[0] == {"where": {"city": "Lyon", "country": "FR"}, "days": 5}

    async def test_have_their_arguments_validated_again(self, registered: Registered, invocation: Invocation) -> None:
        @tool(prehooks=[lambda _context, _arguments: {"number": "many", "more": 1}])
        def double(number: int) -> int:
            return number * 2

        refused = await registered(double).prepare(invocation("double", {"number": 1}))
        assert isinstance(refused, ToolResult)
        assert not refused.success
        assert "number: " in refused.content
        assert "more: no such argument" in refused.content

    @pytest.mark.parametrize("is_async", [True, False])
    async def test_refuse_a_call_in_their_own_words(
        self, is_async: bool, registered: Registered, invocation: Invocation
    ) -> None:
        def no(_context: ToolContext, _arguments: dict[str, Any]) -> None:
            raise PermissionError("not on Sundays")

        async def waiting_no(context: ToolContext, arguments: dict[str, Any]) -> None:
            no(context, arguments)

        ran: list[str] = []

        @tool(prehooks=[waiting_no if is_async else no])
        def pay() -> None:
            ran.append("pay")

        with capture_logs() as logs:
            result = await ended(registered(pay), invocation("pay"))
        assert (result.success, result.error, result.content) == (False, "not on Sundays", "Error: not on Sundays")
        assert ran == []
        assert [log["event"] for log in logs] == ["tool_call_refused"]

    async def test_take_the_tools_time(self, registered: Registered, invocation: Invocation) -> None:
        async def hang(_context: ToolContext, _arguments: dict[str, Any]) -> None:
            await asyncio.Event().wait()

        @tool(prehooks=[hang], timeout_s=0.05)
        def pay() -> None: ...

        result = await ended(registered(pay), invocation("pay"))
        assert result.error == "timed out after 0.05 s"

    async def test_are_not_run_for_a_tool_that_the_agent_does_not_have(
        self, registered: Registered, invocation: Invocation
    ) -> None:
        ran: list[str] = []

        @tool(prehooks=[lambda _context, _arguments: ran.append("hook")])
        def pay() -> None: ...

        result = await registered(pay).prepare(invocation("pay", allowed_tools=frozenset[str]()))
        assert isinstance(result, ToolResult)
        assert result.error == "there is no tool 'pay'; the tools are: none"
        assert ran == []

    async def test_prepare_of_a_tool_without_them_validates(
        self, registered: Registered, invocation: Invocation
    ) -> None:
        @tool
        def double(number: int, times: int = 1) -> int:
            return number * 2 * times

        registry = registered(double)
        assert await registry.prepare(invocation("double", {"number": "4"})) == '{"times":1,"number":4}'
        refused = await registry.prepare(invocation("double", {"number": "x"}))
        assert isinstance(refused, ToolResult)
        assert not refused.success


class TestErrors:
    @pytest.mark.parametrize("where", ["middlewares", "posthooks"])
    @pytest.mark.parametrize("is_async", [True, False])
    async def test_of_what_is_around_fail_the_call(
        self, where: str, is_async: bool, registered: Registered, invocation: Invocation
    ) -> None:
        def broken(*_: Any) -> None:
            raise RuntimeError("not today")

        async def waiting_broken(*_: Any) -> None:
            raise RuntimeError("not today")

        options: dict[str, Any] = {where: [waiting_broken if is_async else broken]}

        @tool(**options)
        async def fine() -> str:
            return "fine"

        result = await ended(registered(fine), invocation("fine"))
        assert (result.success, result.error) == (False, "RuntimeError: not today")

    async def test_of_the_handler_can_be_caught_by_a_middleware(
        self, registered: Registered, invocation: Invocation
    ) -> None:
        async def again(_context: ToolContext, arguments: dict[str, Any], go_on: CallNext) -> Any:
            try:
                return await go_on(arguments)
            except ValueError:
                return await go_on({"word": "second"})

        @tool(middlewares=[again])
        def fussy(word: str) -> str:
            if word == "first":
                raise ValueError(word)
            return word

        assert (await ended(registered(fussy), invocation("fussy", {"word": "first"}))).content == "second"

    async def test_a_plain_middleware_hands_on_what_call_next_returned(
        self, registered: Registered, invocation: Invocation
    ) -> None:
        def shout(_context: ToolContext, arguments: dict[str, Any], go_on: CallNext) -> Any:
            return go_on({"word": arguments["word"].upper()})

        @tool(middlewares=[shout])
        async def echo(word: str) -> str:
            return word

        assert (await ended(registered(echo), invocation("echo", {"word": "hi"}))).content == "HI"

    async def test_the_whole_way_is_under_one_timeout(self, registered: Registered, invocation: Invocation) -> None:
        gate = threading.Event()

        async def hang(_context: ToolContext, _value: Any) -> None:
            await asyncio.Event().wait()

        @tool(posthooks=[hang], timeout_s=0.1)
        def quick() -> str:
            return "quick"

        @tool(posthooks=[hang], timeout_s=0.1)
        def slow() -> str:
            gate.wait(30)
            return "slow"

        registry = registered(quick, slow)
        for name in ("quick", "slow"):
            result = await asyncio.wait_for(ended(registry, invocation(name)), 5)
            assert result.error == "timed out after 0.1 s"
        gate.set()

    def test_raise_on_error_is_a_fact_of_the_tool_that_the_engine_reads(self) -> None:
        @tool(raise_on_error=True)
        def vital() -> None: ...

        @tool
        def other() -> None: ...

        assert (vital.spec.raise_on_error, other.spec.raise_on_error) == (True, False)

    def test_a_hook_that_is_no_function_is_refused(self) -> None:
        with pytest.raises(ToolDefinitionError, match="a hook is a function, not 'hook'"):
            tool(prehooks=["hook"])(nothing)  # pyright: ignore[reportArgumentType]


def nothing() -> None: ...
