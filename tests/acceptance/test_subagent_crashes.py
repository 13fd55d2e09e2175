"""kill -9 in the middle of a family of runs: every run comes to its end, none is made twice, every end is told once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from tests.acceptance.client import Client, Json, check_log, of_type
from tests.acceptance.conftest import Caller, Serve, Settings
from tests.acceptance.gates import Gate, Gates
from tests.acceptance.service import Service
from tests.acceptance.teams import (
    STUCK,
    WORKER,
    Team,
    at_once,
    children_of,
    family_is_done,
    line_of,
    put_team,
    statuses_of,
    steps,
    through,
    told,
)
from tests.acceptance.waiting import eventually
from tests.invariants import check_invariants

LEASE_S = "2"


@dataclass(slots=True)
class Replicas:
    """Services on one database, of which some are killed."""

    start: Callable[..., Service]
    caller: Caller
    database: asyncpg.Connection[Any]

    async def owner_pid(self, run_id: str) -> int | None:
        """The process that executes a run."""
        return await self.database.fetchval(
            "SELECT pid FROM runs JOIN replicas ON incarnation = owner WHERE run_id = $1::uuid", run_id
        )


@pytest.fixture
async def replicas(database_url: str, settings: Settings, serve: Serve, caller: Caller) -> Any:
    def start(**more: str) -> Service:
        return serve(settings(DATABASE_URL=database_url, LEASE_S=LEASE_S, **more))

    database = await asyncpg.connect(database_url)
    yield Replicas(start, caller, database)
    await check_invariants(database)
    await database.close()


async def a_team(client: Client, name: str) -> Team:
    return await put_team(client, name, leaf=WORKER, stuck=STUCK, lead={**WORKER, "subagents": ["leaf"]})


@pytest.mark.parametrize("killed", ["the parent's", "the child's", "both"])
async def test_a_family_survives_the_death_of_the_replicas_that_execute_it(
    replicas: Replicas, agent_name: str, gates: Gates, killed: str
) -> None:
    first, second = replicas.start(MAX_CONCURRENT_RUNS="1").listening(), replicas.start()
    a = replicas.caller(first.ready())
    team = await a_team(a, agent_name)
    own, below = gates.new(), gates.new()
    asked = at_once(("read", {"gate": own.name}), team.ask("leaf", through(below)), team.ask("leaf"))
    run_id = (await a.create(agent=team.parent("leaf"), input=asked))["run_id"]
    await own.entered()
    b = replicas.caller(second.ready())
    await below.entered()
    children = [child["run_id"] for child in await children_of(a, run_id)]
    # The first replica has no room beside the parent.
    pids = [await replicas.owner_pid(each) for each in (run_id, children[0])]
    assert pids == [first.pid, second.pid] == [own.calls()[0]["pid"], below.calls()[0]["pid"]]
    await b.until(children[1], "completed")

    survivor = {"the parent's": b, "the child's": a}.get(killed)
    for service in [first] * (killed != "the child's") + [second] * (killed != "the parent's"):
        service.kill()
    if survivor is None:
        survivor = replicas.caller(replicas.start().ready())
    own.open()
    below.open()
    done = await family_is_done(survivor, run_id)
    assert [child["run_id"] for child in await children_of(survivor, run_id)] == children
    assert set(told(done).values()) == {None}
    again = {"the parent's": (2, 1), "the child's": (1, 2), "both": (2, 2)}[killed]
    assert (len(own.calls()), len(below.calls())) == again
    resumed = [event["data"]["reason"] for event in of_type(await survivor.events(run_id), "run_resumed")]
    assert resumed.count("crash") == again[0] - 1
    assert len(of_type(await survivor.events(run_id), "subagent_completed")) == 2


async def test_a_parent_that_waits_holds_nothing_on_any_replica(
    replicas: Replicas, agent_name: str, gate: Gate
) -> None:
    services = [replicas.start(), replicas.start()]
    a = replicas.caller(services[0].ready())
    services[1].ready()
    team = await a_team(a, agent_name)
    asked = at_once(team.ask("lead", at_once(team.ask("leaf", through(gate)))))
    run_id = (await a.create(agent=team.parent("lead"), input=asked))["run_id"]
    await gate.entered()
    line = await line_of(a, run_id, 2)
    await a.until(line[0], "waiting")
    await a.until(line[1], "waiting")
    rows = await replicas.database.fetch(
        "SELECT owner, status, attempt FROM runs WHERE run_id = ANY ($1::uuid[])", line[:2]
    )
    assert [(row["owner"], row["status"], row["attempt"]) for row in rows] == [(None, "waiting", 1)] * 2
    reading = gate.calls()[0]["pid"]
    idle, busy = sorted(services, key=lambda service: service.pid == reading)
    idle.kill()
    b = replicas.caller(busy)
    assert await statuses_of(b, line) == ["waiting", "waiting", "running"]
    gate.open()
    await family_is_done(b, run_id)
    for member in line[:2]:
        resumed = of_type(await b.events(member), "run_resumed")
        assert [event["data"]["reason"] for event in resumed] == ["wake"]
    assert [(await b.get(member))["attempt"] for member in line] == [2, 2, 1]
    assert len(gate.calls()) == 1


async def test_a_stop_reaches_runs_below_whose_replica_is_dead(replicas: Replicas, agent_name: str, gate: Gate) -> None:
    first, second = replicas.start(), replicas.start()
    a = replicas.caller(first.ready())
    b = replicas.caller(second.ready())
    team = await a_team(a, agent_name)
    asked = at_once(team.ask("lead", at_once(team.ask("leaf", through(gate)))))
    run_id = (await a.create(agent=team.parent("lead"), input=asked))["run_id"]
    reading = (await gate.entered())[0]["pid"]
    line = await line_of(a, run_id, 2)
    doomed, client = (first, b) if reading == first.pid else (second, a)
    await client.until(line[0], "waiting")
    doomed.kill()
    assert (await client.steer("interrupt", run_id))["status"] == "interrupted"
    assert await statuses_of(client, line) == ["interrupted"] * 3
    await client.steer("resume", run_id)
    await gate.entered(2)
    gate.open()
    await family_is_done(client, run_id)
    assert await line_of(client, run_id, 2) == line


async def test_many_families_come_through_one_death_after_the_other(
    replicas: Replicas, agent_name: str, gate: Gate
) -> None:
    """Killed wherever they happen to be: at their beginnings, in their tools, or between parent and child."""
    doomed, next_ = replicas.start(), replicas.start()
    client = replicas.caller(doomed.ready())
    team = await a_team(client, agent_name)
    nested = team.ask("lead", at_once(team.ask("leaf", through(gate)), team.ask("leaf")))
    asked = steps([team.ask("leaf", through(gate)), nested, team.ask("leaf")], [team.ask("leaf")])
    runs = [(await client.create(agent=team.parent(), input=asked))["run_id"] for _ in range(6)]
    await gate.entered(4)
    client = replicas.caller(next_.ready())
    doomed.kill()
    third = replicas.start()
    await gate.entered(8)
    gate.open()
    await eventually(lambda: _ended(replicas.database, 8), "some children to have ended")
    third.ready()
    next_.kill()
    client = replicas.caller(third)
    for run_id in runs:
        run = await family_is_done(client, run_id)
        assert set(told(run).values()) == {None}
        children = await children_of(client, run_id)
        assert len(children) == 4
        assert len(await children_of(client, children[1]["run_id"])) == 2
    assert await replicas.database.fetchval("SELECT count(*) FROM runs") == 6 * 7


async def test_twenty_parents_with_three_children_each_complete_over_two_replicas(
    clients: tuple[Client, Client], agent_name: str, shared_database: asyncpg.Connection[Any]
) -> None:
    team = await put_team(clients[0], agent_name, leaf=WORKER)
    asked = at_once(*[team.ask("leaf", at_once(("lookup", {"word": word}))) for word in ("one", "three", "fifteen")])
    agent = team.parent()

    async def family(number: int) -> Json:
        here, there = clients[number % 2], clients[(number + 1) % 2]
        created = await here.create(agent=agent, input=asked)
        run = await there.wait(created["run_id"])
        assert run["status"] == "completed", run
        check_log(await here.events(run["run_id"]), run)
        children = await children_of(there, run["run_id"])
        assert [child["status"] for child in children] == ["completed"] * 3
        for child in children:
            check_log(await here.events(child["run_id"]), await here.get(child["run_id"]))
        return run

    runs = await asyncio.gather(*(family(number) for number in range(20)))
    assert {run["result"]["usage_aggregate"]["llm_calls"] for run in runs} == {8}
    count = await shared_database.fetchval(
        "SELECT count(*) FROM runs WHERE root_run_id = ANY ($1::uuid[])", [run["run_id"] for run in runs]
    )
    assert count == 80
    await check_invariants(shared_database)


async def _ended(database: asyncpg.Connection[Any], children: int) -> bool:
    count = "SELECT count(*) FROM runs WHERE parent_run_id IS NOT NULL AND finished_at IS NOT NULL"
    return await database.fetchval(count) >= children
