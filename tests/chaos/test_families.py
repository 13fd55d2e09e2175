"""What several runs, or people, do to one run at the same time: none of it is lost, and nothing hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import asyncpg
import pytest

from tests.acceptance.client import TERMINAL, Client, Json, problem
from tests.acceptance.conftest import Caller
from tests.acceptance.gates import Gate, Gates
from tests.acceptance.questions import judged, pending, rule
from tests.acceptance.teams import Team, at_once, check_family, children_of, put_team, steps, told
from tests.chaos.callers import afresh
from tests.chaos.cluster import Cluster
from tests.chaos.gauge import Gauge

Database: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Clients: TypeAlias = tuple[Client, Client]

LEAF: Json = {"model": "openai/obey", "tools": ["stay"]}
LEAD: Json = {**LEAF, "subagents": ["leaf"]}
AT_ONCE = 6
LONGEST_S = 0.03


@pytest.fixture
async def clients(cluster: Cluster, caller: Caller) -> Clients:
    """Callers of two replicas, whose lease outlasts a machine that is busy with other things."""
    a, b = await cluster.start(2, LEASE_S="15")
    return afresh(caller(a)), afresh(caller(b))


def stays(gate: Gate) -> str:
    """A task that lasts until a gate is opened."""
    return at_once(("stay", {"gate": gate.name}))


async def repeated(times: int, work: Callable[[], Awaitable[None]]) -> None:
    """Do it that often, a few at a time."""
    for _ in range(times // AT_ONCE):
        await asyncio.gather(*(work() for _ in range(AT_ONCE)))


async def within(chaos: Gauge, *works: Awaitable[Any]) -> list[Any]:
    """Do these at once, each after a moment of its own."""

    async def later(work: Awaitable[Any]) -> Any:
        await asyncio.sleep(chaos.dice.choice((0.0, chaos.dice.uniform(0, LONGEST_S))))
        return await work

    return await asyncio.gather(*map(later, works))


async def check_service(cluster: Cluster, chaos: Gauge, sql: Database) -> None:
    """No replica has logged an error, and the invariants hold; deadlocks are told, since each costs a second."""
    for service in cluster.replicas:
        assert "[error" not in service.stderr(), service.told()
    deadlocks = await sql.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    chaos.runs += await sql.fetchval("SELECT count(*) FROM runs")
    chaos.measured.append(f"transactions that Postgres undid for a deadlock, and that were tried again: {deadlocks}")
    await cluster.check()


@pytest.mark.scenario(26, short=True)
async def test_a_parent_goes_on_when_its_last_children_end_at_the_same_time(
    chaos: Gauge, cluster: Cluster, clients: Clients, gates: Gates, agent_name: str, sql: Database
) -> None:
    """On both replicas, on one or two levels; every end is told once.

    Seen to fail without: the count of wakes in the fence.
    """
    team = await put_team(clients[0], agent_name, leaf=LEAF, lead=LEAD)
    for _ in range(chaos.size(15, 2)):
        gate = gates.new()
        leaves, run_ids = 0, list[str]()
        for number in range(10):
            count = chaos.dice.randint(2, 3)
            calls = [team.ask("leaf", stays(gate)) for _ in range(count)]
            nested = chaos.dice.random() < 0.3
            asked = at_once(team.ask("lead", at_once(*calls)), *calls) if nested else at_once(*calls)
            leaves += 2 * count if nested else count
            run_ids.append((await clients[number % 2].create(agent=team.parent(), input=asked))["run_id"])
        await gate.entered(leaves)
        gate.open()
        for run_id in run_ids:
            run = await chaos.dice.choice(clients).until(run_id, *TERMINAL)
            assert run["status"] == "completed", run
            assert set(told(run).values()) == {None}
            await check_family(clients[0], run)
    await check_service(cluster, chaos, sql)


@pytest.mark.scenario(26, short=True)
async def test_answers_that_come_while_a_run_still_runs_another_tool_are_all_taken_in(
    chaos: Gauge, cluster: Cluster, clients: Clients, gates: Gates, sql: Database
) -> None:
    """A person's decision, a result from outside and the tool's own end, in any order and at any distance.

    Seen to fail without: the count of wakes in the fence.
    """
    tools = ["pay", "stay", "order"]
    agent = judged(rule("request_approval", "pay"), model="openai/obey", tools=tools)

    async def race() -> None:
        gate, item = gates.new(), gates.new()
        calls: list[tuple[str, Json]] = [
            ("pay", {"amount": 5}),
            ("stay", {"gate": gate.name}),
            ("order", {"item": item.name}),
        ]
        here, there = chaos.dice.sample(clients, 2)
        run_id = (await here.create(agent=agent, input=steps(calls)))["run_id"]
        question = await pending(here, run_id)
        await item.entered()
        await gate.entered()

        async def end() -> None:
            gate.open()

        order = (await item.entered())[0]["tool_call_id"]
        await within(chaos, here.decide(question, "approve"), there.deliver(run_id, order, output="here"), end())
        run = await there.until(run_id, *TERMINAL)
        assert run["status"] == "completed", run
        outputs = {call["tool_name"]: call["output"] for call in run["result"]["tool_executions"]}
        assert outputs == {"pay": "paid 500 EUR", "stay": "stayed", "order": "here"}

    await repeated(chaos.size(300, 24), race)
    await check_service(cluster, chaos, sql)


async def steered(client: Client, request: str, run_id: str) -> None:
    """Ask it; what cannot be done any more is refused as the contract has it."""
    answer = await client.ask(request, run_id)
    if answer.status_code != 200:
        assert request == "pause"
        problem(answer, 409, "conflict")


async def finished(client: Client, run_id: str, request: str) -> Json:
    """The run at its end, resumed where the request had left it at rest."""
    if request in ("pause", "interrupt"):
        await client.steer("resume", run_id)
    return await client.until(run_id, *TERMINAL)


@pytest.mark.scenario(26, short=True)
async def test_a_parent_that_is_steered_while_its_children_end_comes_to_its_own_end(
    chaos: Gauge, cluster: Cluster, clients: Clients, gates: Gates, agent_name: str, sql: Database
) -> None:
    """Whoever is asked first, of the parent or of a child, on whichever replica: no run is left, no request fails.

    Seen to fail without: the count of wakes in the fence; without both the lock on the parent's row before a child's
    last write and the repetition of what a deadlock has undone, of which either is enough.
    """
    team: Team = await put_team(clients[0], agent_name, leaf=LEAF)

    async def race() -> None:
        gate = gates.new()
        here, there = chaos.dice.sample(clients, 2)
        asked = at_once(*[team.ask("leaf", stays(gate))] * 2)
        run_id = (await here.create(agent=team.parent(), input=asked))["run_id"]
        await gate.entered(2)
        children = [child["run_id"] for child in await children_of(here, run_id)]
        request = chaos.dice.choice(("cancel", "interrupt", "pause"))
        of_child = chaos.dice.choice(("cancel", "interrupt", "cancel", "pause"))

        async def end() -> None:
            gate.open()

        await within(
            chaos, steered(there, request, run_id), end(), steered(here, of_child, chaos.dice.choice(children))
        )
        run = await finished(there, run_id, request)
        assert run["status"] in ("completed", "cancelled"), run
        assert run["status"] == "completed" or request == "cancel"
        for child in children:
            assert (await here.get(child))["status"] in TERMINAL

    await repeated(chaos.size(300, 24), race)
    await check_service(cluster, chaos, sql)
