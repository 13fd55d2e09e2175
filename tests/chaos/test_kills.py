"""Processes that are killed while they work."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest

from tests.acceptance.client import Json
from tests.acceptance.gates import Gate
from tests.chaos.callers import Callers
from tests.chaos.cluster import Cluster
from tests.chaos.gauge import Gauge

WORKER: Json = {
    "name": "worker",
    "model": "openai/obey",
    "tools": ["charge", "store", "look", "lookup"],
    "limits": {"max_wall_time_s": 300},
}


def some_work(chaos: Gauge, ledger: str) -> str:
    """Three steps of calls with effects, each lasting a moment."""
    effects = [("charge", {"ledger": ledger}), ("store", {"ledger": ledger}), ("look", {}), ("lookup", {"word": "a"})]
    steps: list[list[tuple[str, Json]]] = []
    for _ in range(3):
        batch = chaos.dice.sample(effects, chaos.dice.randint(1, 3))
        lasting = [name for name, _ in effects[:3]]
        steps.append(
            [(n, {**a, "seconds": round(chaos.dice.uniform(0, 0.3), 2)} if n in lasting else a) for n, a in batch]
        )
    return json.dumps(steps)


def check_effects(gate: Gate, runs: list[Json]) -> None:
    """No unsafe call was begun twice, and none that counts as done was not; a repeated one had the same key."""
    begun = Counter((entry["run_id"], entry["tool_call_id"]) for entry in gate.calls())
    keys: dict[tuple[str, str], set[str]] = {}
    for entry in gate.calls():
        keys.setdefault((entry["run_id"], entry["tool_call_id"]), set()).add(entry["idempotency_key"])
    assert all(len(each) == 1 for each in keys.values())
    for run in runs:
        for call in run["result"]["tool_executions"]:
            times = begun[run["run_id"], call["tool_call_id"]]
            match call["tool_name"]:
                case "charge":
                    assert times <= 1, call
                    assert times == 1 or not call["success"], call
                case "store":
                    assert times >= 1, call
                    assert call["success"], call
                case _:
                    assert call["success"], call


@pytest.mark.scenario(1, short=True)
async def test_a_replica_is_killed_again_and_again_while_two_of_them_run_tools(
    chaos: Gauge, cluster: Cluster, callers: Callers, gate: Gate
) -> None:
    """Every run ends, no event is lost or doubled, no committed effect takes place twice.

    Seen to fail without: the record of intent before an unsafe call (`started_at`), the epoch in the fence of a write.
    """
    await cluster.start(2)

    async def work(number: int) -> str:
        await asyncio.sleep(chaos.dice.uniform(0, chaos.size(20.0, 3.0)))
        return (await callers.create(agent=WORKER, input=some_work(chaos, gate.name)))["run_id"]

    creating = asyncio.gather(*(work(number) for number in range(chaos.size(200, 30))))
    for _ in range(chaos.size(10, 3)):
        await asyncio.sleep(chaos.dice.uniform(0.3, chaos.size(3.0, 1.0)))
        await cluster.kill(chaos.dice.choice(cluster.replicas))
        await cluster.start()
    runs = await callers.all_ended(await creating)
    assert {run["status"] for run in runs} == {"completed"}
    check_effects(gate, runs)
    await cluster.check()
