"""What the main loop does for its lease, and that it takes no runs while it is late."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from app.telemetry.metrics import Metrics
from app.worker.guard import GUARD_EVERY_S, MOST_LAG_S, LeaseGuard
from app.worker.lease import Lease, LeaseLoss
from app.worker.watch import Watch
from tests.exposition import Exposition
from tests.unit.worker.parts import Parts, a_run, until


class GivenLease(Lease):
    """A lease without a heartbeat, lost when and as the test says."""

    def __init__(self) -> None:
        super().__init__("postgresql://nowhere", "replica", 60.0, lambda _: None)
        self.loss: LeaseLoss | None = None
        self.told: Callable[[LeaseLoss], None] = lambda _: None

    def on_lost(self, callback: Callable[[LeaseLoss], None]) -> None:
        self.told = callback

    def beating(self) -> bool:
        return True

    def held(self) -> bool:
        return self.loss is None

    def why_lost(self) -> LeaseLoss:
        assert self.loss is not None
        return self.loss


class Guarded:
    def __init__(self, parts: Parts) -> None:
        self.lease = GivenLease()
        self.metrics = Metrics()
        self.unreachable: list[Mapping[str, int]] = []
        self.guard = LeaseGuard(self.lease, parts.executor, self.metrics, Watch(), self.unreachable.append)


@asynccontextmanager
async def guarded(parts: Parts) -> AsyncGenerator[Guarded]:
    guarded = Guarded(parts)
    task = asyncio.create_task(guarded.guard.run())
    yield guarded
    task.cancel()


async def started(parts: Parts) -> str:
    run_id = (await parts.store.create(a_run(), owner=None)).run.run_id
    (claim,) = await parts.store.claim(parts.executor.owner, 1)
    parts.executor.take(claim)
    await until(lambda: run_id in parts.executor.drivers())
    return run_id


async def test_a_loop_that_is_late_takes_no_runs_until_it_is_in_time_again() -> None:
    """Seen to fail without the measurement of the guard's sleep."""
    async with Parts() as parts, guarded(parts) as seen:
        with capture_logs() as logs:
            await asyncio.sleep(0)
            assert parts.executor.has_room()
            for _ in range(2):
                time.sleep(GUARD_EVERY_S + MOST_LAG_S + 0.1)
                await until(lambda: parts.executor.late)
                assert not parts.executor.has_room()
            await until(parts.executor.has_room)
        assert [log["event"] for log in logs] == ["loop_lagging"]
        assert Exposition(seen.metrics.exposition()).value("agent_runner_loop_lag_seconds_sum") > 2 * MOST_LAG_S


@pytest.mark.parametrize(("why", "told"), [(LeaseLoss.DATABASE, 1), (LeaseLoss.LOOP, 0), (LeaseLoss.HEARTBEAT, 0)])
async def test_what_was_let_go_of_for_want_of_the_database_is_told_and_nothing_else(why: LeaseLoss, told: int) -> None:
    """Seen to fail where every loss is told."""
    async with Parts() as parts, guarded(parts) as seen:
        run_id = await started(parts)
        seen.lease.loss = why
        seen.lease.told(why)
        assert not parts.executor.has_room()
        await until(lambda: parts.executor.under_way() == {})
        assert seen.unreachable == [{run_id: 1}] * told
        seen.lease.loss = None
        await until(parts.executor.has_room)
        assert Exposition(seen.metrics.exposition()).value("agent_runner_lease_losses_total") == 1


async def test_the_guard_finds_a_lost_lease_by_itself() -> None:
    """A heartbeat that has died tells nobody. Seen to fail without the guard's own look."""
    async with Parts() as parts, guarded(parts) as seen:
        await started(parts)
        seen.lease.loss = LeaseLoss.HEARTBEAT
        await until(lambda: parts.executor.under_way() == {})
        assert not parts.executor.has_room()
