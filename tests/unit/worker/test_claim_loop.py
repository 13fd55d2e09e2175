"""When a replica claims, and when it leaves runs to others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from app.db.memory import MemoryStore
from app.engine.agent import AgentVersion
from app.engine.crashes import SUSPECT_CRASHES
from app.engine.errors import RunError
from app.engine.messages import ToolCall
from app.engine.ownership import Claim
from app.engine.status import RunStatus
from app.tools import tool
from app.worker.claim_loop import ClaimLoop
from tests.unit.worker.parts import AGENT, Parts, a_run, until


@tool(effect="read_only")
def look() -> str:
    """Look."""
    return "seen"


WITH_TOOL = AgentVersion(AGENT.version_id, AGENT.definition.model_copy(update={"tools": ("look",)}), 1)
STOPPED = RunError("stopped", "by the test")


@asynccontextmanager
async def claiming(parts: Parts, exhausted: Callable[[], bool] = lambda: False) -> AsyncGenerator[ClaimLoop]:
    loop = ClaimLoop(parts.store, parts.executor, parts.bus, exhausted)
    task = asyncio.create_task(loop.run())
    yield loop
    task.cancel()


class Looks(MemoryStore):
    """Counts the claims that it was asked for."""

    asked = 0

    async def claim(self, owner: str, limit: int, *, suspect: bool = False) -> list[Claim]:
        self.asked += 1
        return await super().claim(owner, limit, suspect=suspect)


async def queued_suspects(store: MemoryStore, count: int) -> list[str]:
    """Runs whose next crash ends them, in the order in which they are claimed."""
    runs = [(await store.create(a_run(WITH_TOOL), owner=None)).run.run_id for _ in range(count)]
    for crash in range(SUSPECT_CRASHES):
        await store.claim(f"owner-{crash}", count)
        assert store.requeue_orphans(f"owner-{crash}") == []
    return sorted(runs)  # they came back together


async def test_a_replica_without_a_connection_to_spare_claims_nothing_and_lets_new_runs_join_the_queue() -> None:
    """Seen to fail without the look at the pool."""
    exhausted, looks = True, 0

    def pool() -> bool:
        nonlocal looks
        looks += 1
        return exhausted

    async with Parts() as parts, claiming(parts, pool) as loop:
        await parts.store.create(a_run(), owner=None)
        parts.bus.queued()
        await until(lambda: looks > 3)
        assert parts.executor.under_way() == {}
        assert loop.backlog
        exhausted = False
        await until(lambda: len(parts.executor.under_way()) == 1)
        await until(lambda: not loop.backlog)


async def test_a_replica_whose_loop_is_late_takes_no_run_from_the_queue_or_as_it_is_created() -> None:
    """Seen to fail without `late` in the count of free slots."""
    async with Parts() as parts:
        parts.executor.late = True
        assert not parts.executor.has_room()
        async with claiming(parts) as loop:
            await parts.store.create(a_run(), owner=None)
            parts.bus.queued()
            await until(lambda: loop.backlog)
            assert parts.executor.under_way() == {}
            parts.executor.late = False
            parts.bus.queued()
            await until(lambda: len(parts.executor.under_way()) == 1)


async def test_suspects_come_one_at_a_time_each_when_the_one_before_has_closed_a_step_or_is_over() -> None:
    """Seen to fail without the freed place after progress, and where the loop claims suspects regardless."""
    store = Looks()
    async with Parts(look, store=store) as parts:
        first, second, third = await queued_suspects(store, 3)
        async with claiming(parts):
            await until(lambda: set(parts.executor.under_way()) == {first})
            asked = store.asked
            parts.bus.queued()
            await until(lambda: store.asked > asked)
            assert set(parts.executor.under_way()) == {first}
            freed: list[None] = []
            parts.executor.on_free(lambda: freed.append(None))
            await parts.model.answer("", ToolCall("call-1", "look", "{}"))
            # The first goes on, as an ordinary run, while the second has the place.
            await until(lambda: set(parts.executor.under_way()) == {first, second})
            assert len(freed) == 1, "the loop is told, and does not find it out a second later"
            await parts.store.stop(second, RunStatus.CANCELLED, STOPPED)
            parts.executor.signal(second, 1_000)
            await until(lambda: set(parts.executor.under_way()) == {first, third})


async def test_ordinary_runs_are_claimed_beside_a_suspect() -> None:
    store = MemoryStore()
    async with Parts(look, store=store) as parts:
        (suspect,) = await queued_suspects(store, 1)
        async with claiming(parts):
            await until(lambda: set(parts.executor.under_way()) == {suspect})
            assert parts.executor.holds_suspect
            fresh = await parts.store.create(a_run(), owner=None)
            parts.bus.queued()
            await until(lambda: set(parts.executor.under_way()) == {suspect, fresh.run.run_id})
