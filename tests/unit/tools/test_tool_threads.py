"""What the threads of synchronous tools promise: how many there are, and that none is missing for long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from app.engine.tools import ToolInvocation, ToolResult
from app.tools import ToolContext, tool
from tests.tool_calls import EndingRegistry

Invocation = Callable[..., ToolInvocation]


class TestThreads:
    async def test_are_bounded_and_all_calls_are_answered(self, invocation: Invocation) -> None:
        """Guard: the comparison with `_max_threads` in `ThreadPool._submit`."""
        threads: set[threading.Thread] = set()
        all_busy = threading.Barrier(4)

        @tool
        def count(number: int) -> int:
            threads.add(threading.current_thread())
            all_busy.wait(30)  # no call returns before as many are under way as there may be
            return number

        registry = EndingRegistry([count], max_threads=4)
        calls = [registry.invoke(invocation("count", {"number": n})) for n in range(200)]
        results = await asyncio.gather(*calls)
        assert [result.content for result in results] == [str(n) for n in range(200)]
        assert len(threads) == 4
        await registry.aclose()

    async def test_that_do_not_come_back_are_replaced_once_and_then_reported(
        self, invocation: Invocation, gate: threading.Event
    ) -> None:
        """Guards: the count of calls given up in `_may_start`, its bound there, and the look at `too_many`."""

        @tool(timeout_s=0.05)
        def block() -> None:
            gate.wait(30)

        @tool(timeout_s=0.5)
        def quick() -> str:
            return threading.current_thread().name

        def threads() -> int:
            return sum(thread.name.startswith("tool-") for thread in threading.enumerate()) - others

        others = sum(thread.name.startswith("tool-") for thread in threading.enumerate())
        registry = EndingRegistry([block, quick], max_threads=2)

        async def lose(number: int) -> None:
            for _ in range(number):
                assert "timed out" in str((await registry.invoke(invocation("block"))).error)

        await lose(1)
        assert registry.problem is None
        await lose(1)
        assert registry.problem == "2 calls of tools that were given up have not returned; restart this replica"
        assert (await registry.invoke(invocation("quick"))).success
        await lose(2)
        assert "not started" in str((await registry.invoke(invocation("quick"))).error)
        assert threads() == 4
        gate.set()
        async with asyncio.timeout(10):
            while threads() > 2 or registry.problem is not None:
                await asyncio.sleep(0.01)
        assert (await registry.invoke(invocation("quick"))).success
        await registry.aclose()

    async def test_a_call_that_waits_is_given_the_place_of_one_that_is_given_up(
        self, invocation: Invocation, gate: threading.Event
    ) -> None:
        """Guard: the start of a thread in `_give_up`."""

        @tool(timeout_s=0.2)
        def block() -> None:
            gate.wait(30)

        @tool(timeout_s=30)
        def quick() -> str:
            return "done"

        registry = EndingRegistry([block, quick], max_threads=1)
        lost, waiting = await asyncio.gather(registry.invoke(invocation("block")), registry.invoke(invocation("quick")))
        assert not lost.success
        assert waiting.content == "done"
        await registry.aclose()

    async def test_end_when_the_registry_is_closed(self, invocation: Invocation) -> None:
        names: set[threading.Thread] = set()

        @tool
        def who() -> str:
            names.add(threading.current_thread())
            return "x"

        registry = EndingRegistry([who])
        await registry.invoke(invocation("who"))
        await registry.aclose()
        (thread,) = names
        assert thread.daemon
        await asyncio.to_thread(thread.join, 5)
        assert not thread.is_alive()
        closed = await registry.invoke(invocation("who"))
        assert closed.error == "ToolError: the tool threads are closed"

    def test_serve_one_event_loop_after_another(self, invocation: Invocation, gate: threading.Event) -> None:
        @tool(timeout_s=0.05)
        def block() -> None:
            gate.wait(30)

        @tool
        def quick(ctx: ToolContext) -> str:
            return ctx.run_id

        registry = EndingRegistry([block, quick], max_threads=2)
        assert not asyncio.run(_closing(registry.invoke(invocation("block")))).success
        gate.set()  # answers a loop that is gone
        for _ in range(3):
            assert asyncio.run(_closing(registry.invoke(invocation("quick")))).success
        asyncio.run(registry.aclose())

    def test_a_pool_of_none_is_refused(self) -> None:
        with pytest.raises(ValueError, match="max_threads"):
            EndingRegistry(max_threads=0)


async def _closing(call: Awaitable[ToolResult]) -> ToolResult:
    return await call
