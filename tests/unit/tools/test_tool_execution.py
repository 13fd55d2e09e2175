"""What a call of a tool promises while its handler runs: its time, its errors, its thread."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable

import pytest
from structlog.testing import capture_logs

from app.engine.tools import ToolInvocation, ToolResult
from app.tools import tool
from tests.tool_calls import EndingRegistry

Invocation = Callable[..., ToolInvocation]
Call = Callable[..., Awaitable[ToolResult]]

current_user: contextvars.ContextVar[str] = contextvars.ContextVar("current_user")


async def test_sync_and_async_handlers_answer_alike(call: Call) -> None:
    @tool
    def slow(word: str) -> str:
        return word * 2

    @tool
    async def quick(word: str) -> str:
        return word * 2

    for decorated in (slow, quick):
        result = await call(decorated, {"word": "ab"})
        assert (result.success, result.output, result.content, result.error) == (True, '"abab"', "abab", None)
        assert 0 < result.latency_ms < 5_000
        assert not result.replayed


async def test_a_sync_handler_does_not_hold_up_the_event_loop(call: Call, gate: threading.Event) -> None:
    @tool
    def block() -> str:
        # Only the event loop can open the gate, so this returns only if the loop goes on meanwhile.
        return "free" if gate.wait(30) else "stuck"

    running = asyncio.create_task(_call(call, block))
    await asyncio.sleep(0)
    gate.set()
    assert (await running).content == "free"


async def _call(call: Call, *arguments: object) -> ToolResult:
    return await call(*arguments)


async def test_context_variables_reach_both_kinds_of_handler(call: Call) -> None:
    @tool
    def in_thread() -> str:
        return current_user.get()

    @tool
    async def on_loop() -> str:
        return current_user.get()

    current_user.set("ada")
    assert (await call(in_thread)).content == "ada"
    assert (await call(on_loop)).content == "ada"


async def test_a_sync_function_that_returns_an_awaitable_is_awaited(call: Call) -> None:
    async def later() -> str:
        return "later"

    @tool
    def starts() -> Awaitable[str]:
        return later()

    @tool(timeout_s=0.05)
    def hangs() -> Awaitable[None]:
        async def forever() -> None:
            await asyncio.Event().wait()

        return forever()

    assert (await call(starts)).content == "later"
    assert (await call(hangs)).error == "timed out after 0.05 s"


class TestExceptions:
    async def test_are_one_line_with_their_type_and_no_traceback(self, call: Call) -> None:
        @tool
        async def fail() -> None:
            raise FileNotFoundError("no such file:\n\n  'a.txt'\x00\ud800")

        with capture_logs() as logs:
            result = await call(fail)
        assert not result.success
        assert result.output is None
        assert result.error == "FileNotFoundError: no such file: 'a.txt'\ufffd\ufffd"
        assert result.content == f"Error: {result.error}"
        assert "Traceback" not in result.content
        (entry,) = [log for log in logs if log["event"] == "tool_raised"]
        assert (entry["run_id"], entry["tool_name"], entry["tool_call_id"]) == ("run-1", "fail", "call-1")
        assert entry["error"] == result.error
        assert "in fail" in entry["frames"]

    async def test_are_bounded(self, call: Call) -> None:
        @tool
        async def fail() -> None:
            raise ValueError("x" * 1_000_000)

        result = await call(fail, output_max_chars=300)
        assert result.error is not None
        assert len(result.error) == 2_000
        assert len(result.content) == 300

    async def test_without_a_message_are_their_type(self, call: Call) -> None:
        class Unprintable(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no")

        @tool
        async def silent() -> None:
            raise LookupError

        @tool
        def unprintable() -> None:
            raise Unprintable

        assert (await call(silent)).error == "LookupError"
        assert (await call(unprintable)).error == "Unprintable: <Unprintable>"

    @pytest.mark.parametrize(
        "error",
        [
            KeyboardInterrupt,
            SystemExit,
            StopIteration,
            StopAsyncIteration,
            GeneratorExit,
            asyncio.CancelledError,
        ],
    )
    async def test_that_would_end_more_than_the_call_end_only_the_call(
        self, call: Call, error: type[BaseException]
    ) -> None:
        @tool
        def in_thread() -> None:
            raise error("stop")

        result = await call(in_thread)
        assert (result.success, result.error) == (False, f"{error.__name__}: stop")

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, StopAsyncIteration, GeneratorExit])
    async def test_that_would_stop_the_event_loop_end_only_the_call(
        self, call: Call, error: type[BaseException]
    ) -> None:
        @tool
        async def on_loop() -> None:
            raise error("stop")

        result = await call(on_loop)
        assert (result.success, result.error) == (False, f"{error.__name__}: stop")

    async def test_a_handler_that_cancels_itself_fails_its_call_only(self, call: Call) -> None:
        @tool
        async def cancels() -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

        result = await call(cancels)
        assert result.error == "CancelledError: the handler cancelled itself"


class TestTimeouts:
    async def test_end_an_async_handler(self, call: Call) -> None:
        ended = asyncio.Event()

        @tool(timeout_s=0.05)
        async def hang() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        with capture_logs() as logs:
            result = await call(hang)
        assert (result.success, result.error) == (False, "timed out after 0.05 s")
        assert result.latency_ms >= 49
        await asyncio.wait_for(ended.wait(), 5)
        assert "tool_timed_out" in [log["event"] for log in logs]

    async def test_answer_for_a_handler_that_swallows_cancellation(self, invocation: Invocation) -> None:
        allowed = asyncio.Event()
        ended = asyncio.Event()

        @tool(timeout_s=0.05)
        async def stubborn() -> str:
            while not allowed.is_set():
                try:
                    await allowed.wait()
                except asyncio.CancelledError:
                    continue
            ended.set()
            return "too late"

        registry = EndingRegistry([stubborn])
        result = await asyncio.wait_for(registry.invoke(invocation("stubborn")), 5)
        assert result.error == "timed out after 0.05 s"
        with capture_logs() as logs:
            allowed.set()
            await asyncio.wait_for(ended.wait(), 5)
            await registry.aclose()
        (entry,) = [log for log in logs if log["event"] == "abandoned_tool_call_ended"]
        assert (entry["run_id"], entry["tool_name"]) == ("run-1", "stubborn")

    async def test_end_a_sync_call_at_once_and_another_thread_takes_the_place_of_its_own(
        self, invocation: Invocation, gate: threading.Event
    ) -> None:
        @tool(timeout_s=0.1)
        def block() -> None:
            gate.wait(30)

        @tool
        def free() -> str:
            return "free"

        registry = EndingRegistry([block, free], max_threads=1)
        first = await asyncio.wait_for(registry.invoke(invocation("block")), 5)
        assert first.error == "timed out after 0.1 s"
        assert (await asyncio.wait_for(registry.invoke(invocation("free")), 5)).content == "free"
        await registry.aclose()

    async def test_include_the_wait_for_a_thread(self, invocation: Invocation, gate: threading.Event) -> None:
        @tool
        def block() -> None:
            gate.wait(30)

        @tool(timeout_s=0.05)
        def quick() -> str:
            return "quick"

        registry = EndingRegistry([block, quick], max_threads=1)
        blocked = asyncio.create_task(registry.invoke(invocation("block")))
        await asyncio.sleep(0)
        result = await registry.invoke(invocation("quick"))
        assert result.error == "not started: all 1 tool threads were busy for 0.05 s"
        gate.set()
        assert (await blocked).success
        await registry.aclose()


class TestCancellation:
    async def test_of_the_caller_propagates_at_once_and_cancels_the_handler(self, invocation: Invocation) -> None:
        started = asyncio.Event()
        cancelled = asyncio.Event()

        @tool
        async def hang() -> None:
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        registry = EndingRegistry([hang])
        running = asyncio.create_task(registry.invoke(invocation("hang")))
        await started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.wait_for(cancelled.wait(), 5)
        await registry.aclose()

    async def test_of_the_caller_leaves_a_waiting_sync_call_unstarted(
        self, invocation: Invocation, gate: threading.Event
    ) -> None:
        started: list[str] = []

        @tool
        def block(name: str) -> None:
            started.append(name)
            gate.wait(30)

        registry = EndingRegistry([block], max_threads=1)
        first = asyncio.create_task(registry.invoke(invocation("block", {"name": "first"})))
        await asyncio.sleep(0)
        second = asyncio.create_task(registry.invoke(invocation("block", {"name": "second"})))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.set()
        assert (await first).success
        assert (await registry.invoke(invocation("block", {"name": "third"}))).success
        assert started == ["first", "third"]
        await registry.aclose()
