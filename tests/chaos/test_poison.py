"""A run that takes its process down whenever it is under way."""

from __future__ import annotations

import asyncio

import pytest

from tests.acceptance.client import TERMINAL, Json, of_type
from tests.acceptance.teams import steps
from tests.chaos.callers import Callers
from tests.chaos.cluster import Cluster
from tests.chaos.gauge import Gauge

AGENT: Json = {"name": "worker", "model": "openai/obey", "tools": ["die", "look"]}


@pytest.mark.scenario(19, short=True)
async def test_a_run_that_kills_its_process_is_given_up_and_its_neighbours_are_not(
    chaos: Gauge, cluster: Cluster, callers: Callers
) -> None:
    """Its neighbours complete, whether they were under way with it or are paused and resumed all the while.

    Seen to fail without: the condition of a claim that leaves suspects out (then neighbours are poisoned too).
    """
    # Workers of one service: whoever dies is started again, and takes over what it has left behind.
    (service,) = await cluster.start(WORKERS="2")
    work = steps([("look", {"seconds": 1.0})], [("look", {"seconds": 0.2})])
    neighbours = [(await callers.create(agent=AGENT, input=work))["run_id"] for _ in range(chaos.size(190, 25))]
    restless = steps(*[[("look", {"seconds": 0.3})]] * 12)
    resumed = [(await callers.create(agent=AGENT, input=restless))["run_id"] for _ in range(chaos.size(9, 3))]

    async def pause_and_resume(run_id: str) -> None:
        for _ in range(10):
            if (await callers.get(run_id))["status"] in TERMINAL:
                return
            for request in ("pause", "resume"):
                answer = await callers.ask("POST", f"/runs/{run_id}/{request}")
                assert answer.status_code in (200, 409), answer.text  # it may just have come to its end

    steering = asyncio.gather(*map(pause_and_resume, resumed))
    killer = (await callers.create(agent=AGENT, input=steps([("die", {"seconds": 0.5})])))["run_id"]
    ended = await callers.ended(killer)
    assert (ended["status"], ended["error"]["code"]) == ("failed", "poisoned")
    chaos.kills += service.stderr().count("worker_died")
    await steering
    for run in await callers.all_ended([*neighbours, *resumed]):
        assert run["status"] == "completed", run
    page = (await callers.ask("GET", f"/runs/{killer}/events/list", params={"limit": 100})).json()
    crashes = [event["data"]["reason"] for event in of_type(page["items"], "run_resumed")]
    assert crashes == ["crash", "crash"]
    await cluster.check()
