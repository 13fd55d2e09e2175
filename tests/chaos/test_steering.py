"""Requests that steer runs, against what the runs do meanwhile, whichever replica executes them."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any, TypeAlias

import asyncpg
import pytest

from tests.acceptance.client import TERMINAL, Client, Json, of_type
from tests.acceptance.conftest import Caller
from tests.acceptance.gates import Gates
from tests.acceptance.model import SILENT, Model
from tests.acceptance.teams import steps
from tests.acceptance.waiting import eventually
from tests.chaos.callers import afresh
from tests.chaos.cluster import Cluster
from tests.chaos.gauge import Gauge
from tests.exposition import Exposition
from tests.model_server import Reply

Database: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

ECHO: Json = {"name": "echo", "model": "openai/echo"}
CLOSING = {"run_completed", "run_failed", "run_cancelled", "run_interrupted"}
BECOMES = {"cancel": "cancelled", "interrupt": "interrupted"}
LONGEST_STEP_S = 0.004


async def two_callers(cluster: Cluster, caller: Caller) -> tuple[Client, Client]:
    a, b = await cluster.start(2)
    return afresh(caller(a)), afresh(caller(b))


def checked_end(run: Json, events: list[Json]) -> str:
    """The status of a run that is over; its log says it once, at its end."""
    assert run["status"] in TERMINAL, run
    assert [event["seq"] for event in events] == list(range(1, run["last_event_seq"] + 1))
    assert [event["state"] for event in events if event["type"] in CLOSING] == [run["status"]]
    assert events[-1]["type"] in CLOSING
    return run["status"]


class _Race:
    """Stops of runs by one replica against their ends on the other, each begun as near to the tie as was learned."""

    def __init__(self, chaos: Gauge, clients: tuple[Client, Client]) -> None:
        self._chaos = chaos
        self._clients = clients
        self._head_start_s = 0.01  # of the stop: the model takes this long; if negative, the stop comes that much later

    async def run(self, request: str) -> str:
        """One of them, checked; the status that the run came to."""
        here, there = self._chaos.dice.sample(self._clients, 2)
        agent = {**ECHO, "model": f"openai/wait-{max(self._head_start_s, 0):.4f}"}
        run_id = (await here.create(agent=agent, input="Go."))["run_id"]
        await asyncio.sleep(max(-self._head_start_s, 0))
        answered = await there.steer(request, run_id)
        status = checked_end(answered, await here.events(run_id))
        assert status in ("completed", BECOMES[request])
        assert await here.get(run_id) == answered  # nothing came after the answer
        step = self._chaos.dice.uniform(0, LONGEST_STEP_S)
        self._head_start_s += step if status == "completed" else -step
        return status


@pytest.mark.scenario(7, short=True)
async def test_a_stop_and_a_completion_at_the_same_time_end_a_run_once(
    chaos: Gauge, cluster: Cluster, caller: Caller, sql: Database
) -> None:
    """The request is answered with the one end that the run came to, and the log has that end and no other.

    Seen to fail without: epoch, write number and status in the fence, the look at the status behind a stop's locks.
    """
    clients = await two_callers(cluster, caller)

    async def races() -> list[str]:
        race = _Race(chaos, clients)
        return [await race.run(chaos.dice.choice(list(BECOMES))) for _ in range(chaos.size(250, 20))]

    found = [status for statuses in await asyncio.gather(*(races() for _ in range(4))) for status in statuses]
    chaos.runs += len(found)
    assert set(found) == {"completed", *BECOMES.values()}
    closed = await sql.fetch(
        """SELECT run_id, count(*) FROM run_events WHERE type = ANY ($1) GROUP BY run_id HAVING count(*) <> 1""",
        list(CLOSING),
    )
    assert closed == []
    await cluster.check()


async def at_rest(client: Client, model: Model, gates: Gates, status: str, count: int) -> list[str]:
    """Runs in that status that finish once they are resumed."""
    asked = len(model.requests())
    body: dict[str, Any] = {"agent": ECHO, "input": "Go."}
    match status:
        case "paused":
            gate = gates.new()
            agent = {"name": "reader", "model": "openai/obey", "tools": ["read"]}
            body = {"agent": agent, "input": steps([("read", {"gate": gate.name})])}
            run_ids = [(await client.create(**body))["run_id"] for _ in range(count)]
            await gate.entered(count)
            for run_id in run_ids:
                await client.steer("pause", run_id)
            gate.open()
        case "interrupted":
            model.script(*[SILENT] * count)
            run_ids = [(await client.create(**body))["run_id"] for _ in range(count)]
            await model.asked(asked + count)
            for run_id in run_ids:
                await client.steer("interrupt", run_id)
        case _:
            model.script(*[Reply.error(400, "no such thing")] * count)
            run_ids = [(await client.create(**body))["run_id"] for _ in range(count)]
    for run_id in run_ids:
        await client.until(run_id, status)
    return run_ids


@pytest.mark.scenario(10, short=True)
async def test_resumes_at_the_same_time_on_both_replicas_begin_one_attempt(
    chaos: Gauge, cluster: Cluster, caller: Caller, model: Model, gates: Gates
) -> None:
    """Of a paused, an interrupted and a failed run alike.

    Seen to fail without: the locks that a resume takes before it looks.
    """
    clients = await two_callers(cluster, caller)
    for _ in range(chaos.size(8, 1)):
        for status in ("paused", "interrupted", "failed"):
            model.reset()
            run_ids = await at_rest(chaos.dice.choice(clients), model, gates, status, 12)
            chaos.runs += len(run_ids)
            before = len(model.requests())
            resumes = [client.steer("resume", run_id) for run_id in run_ids for client in clients * 2]
            chaos.dice.shuffle(resumes)
            answered = await asyncio.gather(*resumes)
            assert {run["status"] for run in answered} <= {"queued", "running", "completed"}
            for run_id in run_ids:
                run = await clients[0].until(run_id, *TERMINAL)
                assert (run["status"], run["attempt"]) == ("completed", 2), run
                (resumed,) = of_type(await clients[1].events(run_id), "run_resumed")
                assert resumed["data"]["attempt"] == 2
            assert len(model.requests()) - before == len(run_ids)
    await cluster.check()


async def under_way(clients: tuple[Client, ...]) -> float:
    """How many runs the replicas say that they execute."""
    texts = [(await client.http.get("/metrics")).content for client in clients]
    return sum(Exposition(text).value("agent_runner_runs_under_way") for text in texts)


@pytest.mark.scenario(11)
async def test_a_pause_on_one_replica_takes_hold_of_tools_that_run_on_the_other(
    chaos: Gauge, cluster: Cluster, caller: Caller, model: Model, gates: Gates
) -> None:
    """Their results are kept, the next step is not begun, no task is left; a resume goes on from there, wherever.

    Seen to fail without: the look at `control` in an owner's write.
    """
    owner, other = await cluster.start(2)
    here, there = afresh(caller(owner)), afresh(caller(other))
    agent = {"name": "sender", "model": "openai/obey", "tools": ["send", "look"]}
    for round_ in range(6):
        model.reset()
        gate, last = gates.new(), gates.new()
        last.open()
        batch: list[tuple[str, Json]] = [("send", {"gate": gate.name}), ("look", {"seconds": chaos.dice.random()})]
        task = steps(batch, [("send", {"gate": last.name})])
        run_ids = [(await here.create(agent=agent, input=task))["run_id"] for _ in range(15)]
        chaos.runs += len(run_ids)
        assert {call["pid"] for call in await gate.entered(len(run_ids))} == {owner.pid}
        for run_id in run_ids:
            asked = await there.steer("pause", run_id)
            assert (asked["status"], asked["pause_requested"]) == ("running", True)
        gate.open()
        paused = [await there.until(run_id, "paused") for run_id in run_ids]
        await model.idle()
        assert (len(model.requests()), last.calls()) == (len(run_ids), [])

        async def nothing_left() -> bool:
            return await under_way((here, there)) == 0

        await eventually(nothing_left, "no run to be under way")
        if round_ == 5:  # what was kept is not in the memory of whoever ran it
            await cluster.kill(owner)
        for run in paused:
            await there.steer("resume", run["run_id"])
        for run_id in run_ids:
            done = await there.until(run_id, *TERMINAL)
            assert (done["status"], done["attempt"]) == ("completed", 2)
            called = done["result"]["tool_executions"]
            assert [(call["tool_name"], call["success"]) for call in called] == [
                ("send", True),
                ("look", True),
                ("send", True),
            ]
        assert len(gate.calls()) == len(last.calls()) == len(run_ids)
    await cluster.check()


@pytest.mark.scenario(11)
async def test_a_cancel_reaches_the_model_call_of_a_run_on_the_other_replica(
    chaos: Gauge, cluster: Cluster, caller: Caller, model: Model
) -> None:
    """From the request until the call was broken off; how long that takes is measured, and not asserted.

    Seen to fail without: the cancelling of a run's task in `LocalExecutor.signal`.
    """
    here, there = await two_callers(cluster, caller)
    took: list[float] = []
    for number in range(1, 51):
        model.script(SILENT)
        run_id = (await here.create(agent=ECHO, input="Go."))["run_id"]
        await model.asked(number)
        began = time.monotonic()
        assert (await there.steer("cancel", run_id))["status"] == "cancelled"
        while model.aborted < number:
            assert time.monotonic() - began < 30
            await asyncio.sleep(0.001)
        took.append(1000 * (time.monotonic() - began))
    chaos.runs += len(took)
    chaos.measured.append(
        f"cancel on the other replica, until the model call is broken off: p50 {statistics.median(took):.0f} ms, "
        f"max {max(took):.0f} ms"
    )
    await cluster.check()
