"""Runs with children are steered as one: what is asked of a run reaches all runs below it, on whatever replica."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from tests.acceptance.client import Client, problem, types_of
from tests.acceptance.gates import Gate, Gates
from tests.acceptance.model import Model
from tests.acceptance.teams import (
    STUCK,
    WORKER,
    Team,
    at_once,
    check_family,
    child_of,
    children_of,
    family_is_done,
    line_of,
    put_team,
    statuses_of,
    through,
    told,
)
from tests.invariants import check_invariants


@pytest.fixture
async def team(client: Client, agent_name: str) -> Team:
    """A leaf that does what it is told and one that hangs, and a lead above both."""
    lead = {**WORKER, "subagents": ["leaf", "stuck"]}
    return await put_team(client, agent_name, leaf=WORKER, stuck=STUCK, lead=lead)


async def a_line(client: Client, team: Team, task: str) -> list[str]:
    """A run, its lead, and the leaf that was given the task."""
    asked = at_once(team.ask("lead", at_once(team.ask("leaf", task))))
    run = await client.create(agent=team.parent("lead"), input=asked)
    return await line_of(client, run["run_id"], 2)


@pytest.mark.parametrize(("request_", "status"), [("cancel", "cancelled"), ("interrupt", "interrupted")])
async def test_a_stop_reaches_all_runs_below_on_whatever_replica(
    clients: tuple[Client, Client],
    model: Model,
    team: Team,
    shared_database: asyncpg.Connection[Any],
    record_property: Callable[[str, object], None],
    request_: str,
    status: str,
) -> None:
    a, b = clients
    asked = at_once(*[team.ask("lead", at_once(team.ask("stuck"), team.ask("stuck")))] * 2)
    run_id = (await a.create(agent=team.parent("lead"), input=asked))["run_id"]
    await model.asked(7)
    leads = [child["run_id"] for child in await children_of(a, run_id)]
    leaves = [child["run_id"] for lead in leads for child in await children_of(a, lead)]
    began = time.monotonic()
    stopped = await b.steer(request_, run_id)
    record_property("answered_s", time.monotonic() - began)
    await model.saw_hang_up(4)
    record_property("hung_up_s", time.monotonic() - began)
    assert stopped["status"] == status
    assert await statuses_of(a, [*leads, *leaves]) == [status] * 6
    for member in (*leads, *leaves):
        run = await a.get(member)
        assert (run["error"] or {}).get("code") == (None if status == "cancelled" else "parent_ended")
    await check_family(a, await a.get(run_id))
    assert (await a.get(run_id))["result"]["usage_aggregate"]["llm_calls"] == 3
    await check_invariants(shared_database)


async def test_a_pause_reaches_all_runs_below_and_a_resume_lets_the_same_runs_go_on(
    clients: tuple[Client, Client], team: Team, gate: Gate, shared_database: asyncpg.Connection[Any]
) -> None:
    a, b = clients
    line = await a_line(a, team, through(gate))
    await gate.entered()
    await a.until(line[0], "waiting")
    assert (await b.steer("pause", line[0]))["status"] == "paused"
    assert await statuses_of(a, line) == ["paused", "paused", "running"]
    assert (await a.get(line[2]))["pause_requested"]
    gate.open()
    await a.until(line[2], "paused")
    await check_invariants(shared_database)
    await b.steer("resume", line[0])
    await family_is_done(a, line[0])
    assert await line_of(a, line[0], 2) == line
    assert len(gate.calls()) == 1
    for member in line:
        assert types_of(await a.events(member)).count("run_paused") == 1


async def test_a_pause_that_is_taken_back_in_time_never_happens_below(client: Client, team: Team, gate: Gate) -> None:
    line = await a_line(client, team, through(gate))
    await gate.entered()
    await client.until(line[0], "waiting")
    await client.steer("pause", line[0])
    await client.steer("resume", line[0])
    assert not (await client.get(line[2]))["pause_requested"]
    gate.open()
    await family_is_done(client, line[0])
    leaf = await client.get(line[2])
    assert (leaf["attempt"], types_of(await client.events(line[2])).count("run_paused")) == (1, 0)


async def test_a_child_that_ends_while_its_parent_is_paused_is_heard_at_the_resume(
    client: Client, team: Team, gate: Gate
) -> None:
    line = await a_line(client, team, through(gate))
    await gate.entered()
    await client.until(line[0], "waiting")
    await client.steer("pause", line[0])
    await client.steer("resume", line[1])  # the lead and the leaf go on alone
    gate.open()
    await client.until(line[1], "completed")
    assert (await client.get(line[0]))["status"] == "paused"
    await client.steer("resume", line[0])
    await family_is_done(client, line[0])


async def test_a_parent_that_is_asked_to_pause_beside_its_children_pauses_when_its_own_tools_have_ended(
    client: Client, team: Team, gates: Gates, shared_database: asyncpg.Connection[Any]
) -> None:
    own, below = gates.new(), gates.new()
    # The parent's own tool keeps it running beside its child.
    asked = at_once(("read", {"gate": own.name}), team.ask("lead", at_once(team.ask("leaf", through(below)))))
    run_id = (await client.create(agent=team.parent("lead"), input=asked))["run_id"]
    await own.entered()
    await below.entered()
    await client.steer("pause", run_id)
    line = await line_of(client, run_id, 2)
    assert await statuses_of(client, line) == ["running", "paused", "running"]
    own.open()
    await client.until(run_id, "paused")
    below.open()
    await client.until(line[2], "paused")
    await check_invariants(shared_database)
    await client.steer("resume", run_id)
    await family_is_done(client, run_id)


async def test_a_parent_resumed_after_an_interrupt_lets_the_same_children_go_on(
    clients: tuple[Client, Client], team: Team, gates: Gates, shared_database: asyncpg.Connection[Any]
) -> None:
    a, b = clients
    first, second = gates.new(), gates.new()
    asked = at_once(
        team.ask("leaf", "Already said."),
        team.ask("leaf", through(first)),
        team.ask("lead", at_once(team.ask("leaf", through(second)))),
    )
    run_id = (await a.create(agent=team.parent("leaf", "lead"), input=asked))["run_id"]
    await first.entered()
    await second.entered()
    said, reading, lead = [child["run_id"] for child in await children_of(a, run_id)]
    await a.until(said, "completed")
    deepest = (await child_of(a, lead))["run_id"]
    stopped = await b.steer("interrupt", run_id)
    assert await statuses_of(a, [said, reading, lead, deepest]) == ["completed", *["interrupted"] * 3]
    assert stopped["result"]["usage_aggregate"]["llm_calls"] == 5
    await check_invariants(shared_database)

    assert (await b.steer("resume", run_id))["status"] in ("queued", "running")
    await first.entered(2)
    await second.entered(2)
    first.open()
    second.open()
    done = await family_is_done(a, run_id)
    assert [child["run_id"] for child in await children_of(a, run_id)] == [said, reading, lead]
    assert [child["run_id"] for child in await children_of(a, lead)] == [deepest]
    assert [(await a.get(each))["attempt"] for each in (said, reading, deepest)] == [1, 2, 2]
    assert set(told(done).values()) == {None}
    # The parent, the lead and two of the readers twice, the first one once.
    assert done["result"]["usage_aggregate"]["llm_calls"] == 9
    await check_invariants(shared_database)


@pytest.mark.parametrize("on_busy_thread", ["interrupt", "rollback"])
async def test_a_run_that_takes_the_thread_stops_the_children_of_the_one_that_had_it(
    clients: tuple[Client, Client], team: Team, gate: Gate, on_busy_thread: str
) -> None:
    a, b = clients
    line = await a_line(a, team, through(gate))
    await gate.entered()
    first = await a.until(line[0], "waiting")
    second = await b.create_and_wait(
        agent=team.parent("leaf"), input="Hi.", thread_id=first["thread_id"], on_busy_thread=on_busy_thread
    )
    assert second["status"] == "completed"
    assert set(await statuses_of(a, line)) == {"interrupted" if on_busy_thread == "interrupt" else "cancelled"}
    gate.open()


async def test_a_child_is_paused_and_resumed_alone(client: Client, team: Team, gate: Gate) -> None:
    line = await a_line(client, team, through(gate))
    await gate.entered()
    await client.until(line[0], "waiting")
    await client.steer("pause", line[2])
    gate.open()
    await client.until(line[2], "paused")
    assert await statuses_of(client, line[:2]) == ["waiting", "waiting"]
    await client.steer("resume", line[2])
    await family_is_done(client, line[0])


async def test_a_child_that_its_parent_still_needs_is_not_deleted(
    client: Client, team: Team, gate: Gate, shared_database: asyncpg.Connection[Any]
) -> None:
    line = await a_line(client, team, through(gate))
    await gate.entered()
    await client.until(line[0], "waiting")
    await client.steer("pause", line[0])
    await client.steer("resume", line[1])
    gate.open()
    await client.until(line[1], "completed")
    problem(await client.http.delete(f"/runs/{line[1]}"), 409, "conflict")
    problem(await client.http.delete(f"/threads/{line[1]}"), 409, "conflict")
    await client.steer("resume", line[0])
    await family_is_done(client, line[0])
    await check_invariants(shared_database)
    assert (await client.http.delete(f"/runs/{line[1]}")).status_code == 204


async def test_a_child_that_an_interrupted_parent_would_wait_for_is_not_deleted(
    client: Client, team: Team, gate: Gate
) -> None:
    asked = at_once(team.ask("leaf", through(gate)), team.ask("leaf"))
    run_id = (await client.create(agent=team.parent("leaf"), input=asked))["run_id"]
    await gate.entered()
    reading, said = [child["run_id"] for child in await children_of(client, run_id)]
    await client.until(said, "completed")
    await client.steer("interrupt", run_id)
    for needed in (f"/runs/{reading}", f"/threads/{reading}"):
        problem(await client.http.delete(needed), 409, "conflict")
    gate.open()
    await client.steer("resume", run_id)
    await family_is_done(client, run_id)
    for over in (f"/runs/{reading}", f"/threads/{said}"):
        assert (await client.http.delete(over)).status_code == 204
    assert await children_of(client, run_id) == []
    assert (await client.http.delete(f"/runs/{run_id}")).status_code == 204
