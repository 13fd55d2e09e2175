"""A driver and the gatherer of deltas take turns at the fence of a run."""

from __future__ import annotations

import asyncio

from app.db.memory import MemoryStore
from app.engine.agent import AgentVersion
from app.engine.events import EventType
from app.engine.messages import ToolCall
from app.engine.ownership import Committed, Fence, Woken, Write
from app.engine.status import RunStatus
from app.tools import ToolContext, tool
from tests.unit.worker.parts import AGENT, Parts, a_run, until

WITH_TOOLS = AgentVersion(AGENT.version_id, AGENT.definition.model_copy(update={"tools": ("quick", "slow")}), 1)


class SlowAnswers(MemoryStore):
    """A store whose answer to the next commit comes when the test says so; the commit itself takes place at once."""

    def __init__(self) -> None:
        super().__init__()
        self.hold = False
        self.held = asyncio.Event()
        self.go_on = asyncio.Event()

    async def commit(self, fence: Fence, thread_key: str, write: Write) -> Committed | Woken | None:
        committed = await super().commit(fence, thread_key, write)
        if self.hold:
            self.hold = False
            self.held.set()
            await self.go_on.wait()
        return committed


async def test_what_a_tool_tells_while_a_commit_is_under_way_is_written_after_it() -> None:
    """Seen to fail, with the run lost to its own replica, where the gatherer writes under a fence that is in use."""
    store, told, end_quick, end_slow = SlowAnswers(), list[ToolContext](), asyncio.Event(), asyncio.Event()

    @tool(effect="read_only")
    async def quick() -> str:
        """End first."""
        await end_quick.wait()
        return "quick"

    @tool(effect="read_only")
    async def slow(call: ToolContext) -> str:
        """End later."""
        told.append(call)
        await end_slow.wait()
        return "slow"

    async with Parts(quick, slow, store=store) as parts:
        run_id = (await store.create(a_run(WITH_TOOLS), owner=None)).run.run_id
        with parts.bus.subscribe(run_id):
            (claim,) = await store.claim(parts.executor.owner, 1)
            parts.executor.take(claim)
            await parts.model.answer("", ToolCall("call-1", "quick", "{}"), ToolCall("call-2", "slow", "{}"))
            await until(lambda: bool(told))
            store.hold = True
            end_quick.set()
            await asyncio.wait_for(store.held.wait(), 10)
            told[0].progress("meanwhile", None)
            for _ in range(20):  # for a reader the gatherer writes at its next turn
                await asyncio.sleep(0)
            store.go_on.set()

            async def types() -> list[str]:
                return [event.type for event in await store.read_events(run_id, 0, 1000)]

            async def written() -> bool:
                return EventType.TOOL_PROGRESS in await types()

            await until(written)
            end_slow.set()
            await parts.model.answer("Done.")
            await until(lambda: parts.executor.under_way() == {})
    run = await store.get(run_id)
    assert (run.status, run.attempt) == (RunStatus.COMPLETED, 1)
    assert (await types()).count(EventType.TOOL_PROGRESS) == 1
