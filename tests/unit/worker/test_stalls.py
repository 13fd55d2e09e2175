"""Runs that make no progress are reported once each time, and go on."""

from __future__ import annotations

import asyncio

from app.engine.agent import AgentVersion
from app.engine.events import EventType, StoredEvent
from app.engine.messages import ToolCall
from app.tools import ToolContext, tool
from app.worker.stalls import Stalls
from tests.unit.worker.parts import AGENT, Parts, a_run, until

DEADLINE_S = 600.0
WITH_TOOL = AgentVersion(AGENT.version_id, AGENT.definition.model_copy(update={"tools": ("work",)}), 1)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Work:
    """A tool that ends when the test says so, and tells what the test has it tell."""

    def __init__(self) -> None:
        self.end = asyncio.Event()
        self.context: ToolContext | None = None

        @tool(effect="read_only", timeout_s=3600)
        async def work(call: ToolContext) -> str:
            """Work."""
            self.context = call
            await self.end.wait()
            return "done"

        self.tool = work


async def warnings(parts: Parts, run_id: str) -> list[StoredEvent]:
    events = await parts.store.read_events(run_id, 0, 1000)
    return [event for event in events if event.type == EventType.WARNING]


async def under_way(parts: Parts, agent: AgentVersion = AGENT) -> str:
    """A run in its first model call."""
    run_id = (await parts.store.create(a_run(agent), owner=None)).run.run_id
    (claim,) = await parts.store.claim(parts.executor.owner, 1)
    parts.executor.take(claim)
    await until(lambda: run_id in parts.executor.drivers())
    await until(lambda: parts.executor.drivers()[run_id].write_no > 0)
    return run_id


async def test_a_model_call_without_an_answer_is_reported_once() -> None:
    """Seen to fail where the report itself counts as progress, and where a run is reported at every look."""
    clock = Clock()
    async with Parts() as parts:
        stalls = Stalls(parts.executor.drivers, DEADLINE_S, clock)
        run_id = await under_way(parts)
        with parts.bus.subscribe(run_id) as reader:
            await stalls.look()
            clock.now = DEADLINE_S - 1
            await stalls.look()
            assert stalls.count == 0
            clock.now = DEADLINE_S
            await stalls.look()
            assert stalls.count == 1
            assert await reader.wait(10)
        for _ in range(5):
            clock.now += DEADLINE_S
            await stalls.look()
            assert stalls.count == 1
        await parts.model.answer("Done.")
        await until(lambda: run_id not in parts.executor.drivers())
        await stalls.look()
        assert stalls.count == 0
        assert (await parts.store.get(run_id)).status == "completed"
        (warning,) = await warnings(parts, run_id)
        assert warning.as_dict()["data"] == {"code": "step_stalled", "seconds": DEADLINE_S, "doing": "model"}


async def test_tools_are_named_and_what_they_tell_is_progress() -> None:
    """Seen to fail where only the run's state counts as progress."""
    clock, work = Clock(), Work()
    async with Parts(work.tool) as parts:
        stalls = Stalls(parts.executor.drivers, DEADLINE_S, clock)
        run_id = await under_way(parts, WITH_TOOL)
        driver = parts.executor.drivers()[run_id]
        await parts.model.answer("", ToolCall("call-1", "work", "{}"))
        await until(lambda: work.context is not None)
        assert work.context is not None
        await stalls.look()
        for _ in range(3):
            before = driver.write_no
            with parts.bus.subscribe(run_id):
                work.context.progress("still at it", None)
                await until(lambda before=before: driver.write_no > before)
            clock.now += DEADLINE_S - 1
            await stalls.look()
        assert stalls.count == 0
        clock.now += DEADLINE_S
        await stalls.look()
        assert stalls.count == 1
        before = driver.write_no
        with parts.bus.subscribe(run_id):
            await until(lambda: driver.write_no > before)
        (warning,) = await warnings(parts, run_id)
        assert warning.as_dict()["data"]["doing"] == "work"
        assert stalls.count == 1
        # What is told after the report ends the stall, and the next one is reported again.
        with parts.bus.subscribe(run_id):
            work.context.progress("and again", None)
            await until(lambda: driver.write_no > before + 1)
        await stalls.look()
        assert stalls.count == 0
        clock.now += DEADLINE_S
        await stalls.look()
        assert stalls.count == 1
        work.end.set()
