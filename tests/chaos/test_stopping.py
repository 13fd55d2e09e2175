"""Replicas that are told to stop while they work."""

from __future__ import annotations

import asyncio

import pytest

from tests.acceptance.client import Json, check_log, of_type
from tests.acceptance.gates import Gate
from tests.chaos.callers import Callers
from tests.chaos.cluster import Cluster
from tests.chaos.gauge import Gauge
from tests.chaos.work import WORKER, check_effects, some_work, speaker, spoken

# Who waited for a lease to run out would wait for longer than the callers do.
LONG_LEASE_S = "600"
GRACE_S = "3"


def is_void(event: Json, resumed: Json) -> bool:
    """Whether an attempt that went on has made an event of the one before it void."""
    return resumed["data"]["from_seq"] < event["seq"] < resumed["seq"]


@pytest.mark.scenario(16, short=True)
async def test_replicas_are_stopped_in_mid_stream_and_their_runs_and_readers_go_on_elsewhere(
    chaos: Gauge, cluster: Cluster, callers: Callers, gate: Gate
) -> None:
    """Each ends within its grace time with exit code 0; no run waits for a lease, and no reader misses an event.

    Seen to fail without: the release of a run at the end of the grace time.
    """
    await cluster.start(2, LEASE_S=LONG_LEASE_S, SHUTDOWN_GRACE_S=GRACE_S)
    answer_s = chaos.size(8.0, 3.0)

    async def talks() -> None:
        run_id = (await callers.create(agent=speaker(answer_s), input="Talk."))["run_id"]
        events = [sent.event for sent in await callers.follow(run_id)]
        run = await callers.get(run_id)
        check_log(events, run)
        assert run["status"] == "completed"
        resumed = of_type(events, "run_resumed")
        assert {event["data"]["reason"] for event in resumed} <= {"drain"}
        told = [event for event in events if not any(is_void(event, by) for by in resumed)]
        assert spoken(told) == run["result"]["final_text"]

    async def works() -> str:
        return (await callers.create(agent=WORKER, input=some_work(chaos, gate.name)))["run_id"]

    talking = asyncio.gather(*(talks() for _ in range(chaos.size(20, 5))))
    working: list[str] = []
    for _ in range(chaos.size(8, 2)):
        working += await asyncio.gather(*(works() for _ in range(5)))
        leaving = cluster.replicas[0]
        cluster.leave(leaving)
        assert await asyncio.to_thread(leaving.ended) == 0
        await cluster.start(LEASE_S=LONG_LEASE_S, SHUTDOWN_GRACE_S=GRACE_S)
    await talking
    runs = await callers.all_ended(working)
    assert {run["status"] for run in runs} == {"completed"}
    check_effects(gate, runs)
    await cluster.check()
