"""Processes that are killed while they work."""

from __future__ import annotations

import asyncio

import pytest

from tests.acceptance.client import Client, Json, Sent, check_log
from tests.acceptance.conftest import Caller
from tests.acceptance.gates import Gate, Gates
from tests.acceptance.questions import pending
from tests.acceptance.teams import at_once
from tests.acceptance.waiting import eventually
from tests.chaos.callers import Callers
from tests.chaos.cluster import Cluster
from tests.chaos.gauge import Gauge
from tests.chaos.proxy import Proxy
from tests.chaos.work import WORKER, check_effects, some_work


async def kill_some(chaos: Gauge, cluster: Cluster, gate: Gate, calls: int) -> None:
    """As soon as so many calls have returned, kill the replica of the last of them, or both, and start as many."""
    await gate.left(calls)
    victims = [each for each in cluster.replicas if each.pid == gate.ended()[-1]["pid"]]
    if chaos.dice.random() < 0.3:
        victims = list(cluster.replicas)
    await asyncio.gather(*map(cluster.kill, victims))
    await cluster.start(len(victims))


@pytest.mark.scenario(1, short=True)
async def test_replicas_are_killed_again_and_again_while_they_run_tools(
    chaos: Gauge, cluster: Cluster, callers: Callers, gate: Gate
) -> None:
    """Every run ends, no event is lost or doubled, no committed effect takes place twice, and readers who come back
    with their last id see every event once and in order. No run is taken for one that kills its process.

    Seen to fail without: the record of intent before a call (`started` in `_begin_calls`), the look at the crashes of
    others before a run is given up (`without` in `requeue_orphans`).
    """
    await cluster.start(2)
    async with asyncio.TaskGroup() as tasks:
        reading: dict[str, asyncio.Task[list[Sent]]] = {}

        async def work(number: int) -> str:
            await asyncio.sleep(chaos.dice.uniform(0, 1))
            run_id = (await callers.create(agent=WORKER, input=some_work(chaos, gate.name)))["run_id"]
            if number % 5 == 0:
                reading[run_id] = tasks.create_task(callers.follow(run_id))
            return run_id

        working: list[asyncio.Task[str]] = []
        for _ in range(chaos.size(10, 2)):
            before, fresh = len(gate.ended()), chaos.size(20, 12)
            working += [tasks.create_task(work(number)) for number in range(fresh)]
            await kill_some(chaos, cluster, gate, before + chaos.dice.randint(1, fresh))
        runs = {run["run_id"]: run for run in await callers.all_ended([await each for each in working])}
    assert not [run for run in runs.values() if run["status"] != "completed"]
    check_effects(gate, list(runs.values()))
    for run_id, log in reading.items():
        check_log([sent.event for sent in log.result()], runs[run_id])
    await cluster.check()


def one_call(tool: str, gate: Gate, **settings: object) -> Json:
    """The body of a run that calls one tool once and waits at its gate."""
    agent = {"name": "worker", "model": "openai/obey", "tools": [tool], **settings}
    return {"agent": agent, "input": at_once((tool, {"gate": gate.name}))}


def only_call(run: Json) -> Json:
    (call,) = run["result"]["tool_executions"]
    return call


ASKS = {"interaction_mode": "external"}
# What a person may say of a call whose outcome is unknown.
ANSWERS: dict[str, Json] = {
    "run it again": {"decision": "approve"},
    "this is its result": {"decision": "approve", "value": "seen in the books"},
    "leave it": {"decision": "deny"},
}


async def taken_over(client: Client, run_id: str) -> None:
    """Wait for a run's second attempt."""

    async def look() -> bool:
        return (await client.get(run_id))["attempt"] == 2

    await eventually(look, f"run {run_id} to be taken over")


async def check_outcomes(client: Client, runs: dict[str, str], places: dict[str, Gate]) -> None:
    """What became of calls whose results were lost, by what their tools allow and what a person said."""
    expected = {"read": (2, None), "put": (2, None), "send": (1, "unknown")}
    expected |= {"run it again": (2, None), "this is its result": (1, None), "leave it": (1, "unknown")}
    for name, (times, error) in expected.items():
        run = await client.until(runs[name], "completed", "degraded", "failed")
        check_log(await client.events(runs[name]), run)
        call, begun = only_call(run), places[name].calls()
        assert (run["status"], run["attempt"] >= 2, len(begun)) == ("completed", True, times), name
        assert len({each["idempotency_key"] for each in begun}) == 1, name
        assert call["success"] is (error is None), name
        assert error is None or error in call["error"], name
    assert only_call(await client.get(runs["this is its result"]))["output"] == "seen in the books"


@pytest.mark.scenario(3, short=True)
async def test_a_replica_dies_between_the_returns_of_tools_and_the_commit_of_their_results(
    chaos: Gauge, cluster: Cluster, caller: Caller, gates: Gates, proxy: Proxy
) -> None:
    """What may be repeated is, with the key that the first call had. What may not is not: where nobody answers, the
    model is told that the outcome is unknown; where somebody does, a person says what becomes of the call.

    Seen to fail without: the record of intent before a call (`started` in `_begin_calls`), the key of step and place
    (one drawn anew).
    """
    for round_ in range(1, chaos.size(5, 1) + 1):
        ((doomed,), (other,)) = await asyncio.gather(cluster.start(DATABASE_URL=proxy.url), cluster.start())
        a, b = caller(doomed), caller(other)
        bodies: dict[str, Json] = {}
        places: dict[str, Gate] = {}
        for name in ("read", "put", "send", *ANSWERS):
            places[name] = gates.new()
            tool, asks = ("send", ASKS) if name in ANSWERS else (name, {})
            bodies[name] = one_call(tool, places[name], **asks)
        runs = {name: (await a.create(**body))["run_id"] for name, body in bodies.items()}
        chaos.runs += len(runs)
        for gate in places.values():
            await gate.entered()

        proxy.catch(lambda text: "INSERT INTO tool_executions" in text)
        for gate in places.values():
            gate.open()
        await proxy.has_caught(round_ * len(runs))
        assert all(len(gate.ended()) == 1 for gate in places.values())
        await cluster.kill(doomed)
        for run_id in runs.values():
            await taken_over(b, run_id)
        proxy.pass_on()  # what a dead process has sent may still arrive
        for name, answer in ANSWERS.items():
            question = await pending(b, runs[name])
            assert (question["kind"], question["tool_name"]) == ("tool_outcome_unknown", "send")
            await b.decide(question, **answer)
        await check_outcomes(b, runs, places)
        await cluster.kill(other)
    await cluster.check()
