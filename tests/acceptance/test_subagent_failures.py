"""Subagents that fail, are stopped or take too long: what becomes of the others, and of their parent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest

from tests.acceptance.client import Client, Json, of_type, problem
from tests.acceptance.gates import Gate, Gates
from tests.acceptance.model import Model
from tests.acceptance.questions import pending, rule
from tests.acceptance.teams import (
    BROKEN,
    STUCK,
    WORKER,
    Call,
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
from tests.acceptance.waiting import eventually
from tests.invariants import check_invariants

STOPPED = "this delegation was stopped: the step does not need it any more"


@pytest.fixture
async def team(client: Client, agent_name: str) -> Team:
    return await put_team(client, agent_name, worker=WORKER, broken=BROKEN, stuck=STUCK)


async def delegated(client: Client, team: Team, asked: Sequence[Call], **settings: object) -> Json:
    """A parent that has begun these delegations."""
    return await client.create(agent=team.parent(**settings), input=at_once(*asked))


async def over(client: Client, run: Json) -> Json:
    """The parent at its end, its family's logs checked."""
    done = await client.until(run["run_id"], "completed", "degraded", "failed")
    await check_family(client, done)
    return done


async def child_statuses(client: Client, run: Json) -> list[str]:
    return [child["status"] for child in await children_of(client, run["run_id"])]


async def seen(client: Client, run: Json, kind: str, times: int) -> None:
    """Wait for so many events of a type."""

    async def look() -> bool:
        return len(of_type(await client.events(run["run_id"]), kind)) >= times

    await eventually(look, f"{times} {kind} events")


@pytest.mark.parametrize("order", [("worker", "broken"), ("broken", "worker")])
@pytest.mark.parametrize(("policy", "status"), [("continue", "completed"), ("degrade", "degraded"), ("fail", "failed")])
async def test_a_failed_child_among_those_that_are_all_required_ends_its_parent_as_the_policy_says(
    client: Client, team: Team, gates: Gates, order: tuple[str, str], policy: str, status: str
) -> None:
    gate = gates.new()
    asked = [team.ask(role, through(gate) if role == "worker" else "Say it.") for role in order]
    run = await delegated(client, team, asked, subagent_failure_policy=policy)
    if policy != "fail":  # the other one goes on, and its answer is read
        await gate.entered()
        await seen(client, run, "subagent_completed", 1)
        gate.open()
    done = await over(client, run)
    assert done["status"] == status
    others = "cancelled" if policy == "fail" else "completed"
    assert await child_statuses(client, run) == ["failed" if role == "broken" else others for role in order]
    if policy == "continue":
        assert (done["error"], done["result"]["final_text"]) == (None, "Done.")
        return
    assert done["error"]["code"] == "subagent_failed"
    assert team.tool("broken") in done["error"]["message"]
    assert "asked for 400" in done["error"]["message"]
    gate.open()  # for a tool that was left behind


async def test_the_first_failure_stops_the_others_where_all_are_required(
    client: Client, team: Team, model: Model, gates: Gates
) -> None:
    gate = gates.new()
    asked = [team.ask("stuck"), team.ask("worker", at_once(("read", {"gate": gate.name}))), team.ask("stuck")]
    run = await delegated(client, team, asked, subagent_failure_policy="fail")
    await gate.entered()
    await model.asked(4)  # the parent, and each child
    worker = (await children_of(client, run["run_id"]))[1]["run_id"]
    await client.steer("cancel", worker)
    done = await over(client, run)
    assert (done["status"], done["error"]["code"]) == ("failed", "subagent_failed")
    assert "was cancelled" in done["error"]["message"]
    assert [told(done)[f"call_1_{number}"] for number in (1, 3)] == [STOPPED] * 2
    assert await child_statuses(client, run) == ["cancelled"] * 3
    await model.saw_hang_up(2)
    gate.open()


@pytest.mark.parametrize(
    ("roles", "policy", "status"),
    [
        (("broken", "worker"), "fail", "completed"),
        (("worker", "broken", "broken"), "fail", "completed"),
        (("broken", "broken"), "continue", "completed"),
        (("broken", "broken"), "degrade", "degraded"),
        (("broken", "broken"), "fail", "failed"),
    ],
)
async def test_where_failures_are_allowed_one_success_is_enough(
    client: Client, team: Team, roles: tuple[str, ...], policy: str, status: str
) -> None:
    settings = {"join_policy": "allow_optional_failures", "subagent_failure_policy": policy}
    run = await delegated(client, team, [team.ask(role) for role in roles], **settings)
    done = await over(client, run)
    assert (done["status"], (done["error"] or {}).get("code")) == (
        status,
        None if status == "completed" else "subagent_failed",
    )
    expected = ["failed" if role == "broken" else "completed" for role in roles]
    assert await child_statuses(client, run) == expected


@pytest.mark.parametrize("join", [{"join_policy": "first_success"}, {"join_policy": "quorum", "quorum": 1}])
async def test_the_first_success_cancels_the_others_at_once(
    client: Client, team: Team, model: Model, gate: Gate, join: Json
) -> None:
    asked = [team.ask("stuck"), team.ask("broken"), team.ask("worker", through(gate)), team.ask("stuck")]
    run = await delegated(client, team, asked, subagent_failure_policy="fail", **join)
    await gate.entered()
    await model.asked(5)
    await client.until((await children_of(client, run["run_id"]))[1]["run_id"], "failed")
    assert model.aborted == 0
    gate.open()
    done = await over(client, run)
    assert done["status"] == "completed"
    assert await child_statuses(client, run) == ["cancelled", "failed", "completed", "cancelled"]
    await model.saw_hang_up(2)
    assert [told(done)[f"call_1_{n}"] for n in (1, 3, 4)] == [STOPPED, None, STOPPED]


async def test_a_first_success_that_does_not_come_is_a_failure(client: Client, team: Team) -> None:
    settings = {"join_policy": "first_success", "subagent_failure_policy": "fail"}
    run = await delegated(client, team, [team.ask("broken"), team.ask("broken")], **settings)
    done = await over(client, run)
    assert (done["status"], done["error"]["code"]) == ("failed", "subagent_failed")


async def test_a_quorum_stops_the_rest_as_soon_as_it_is_reached(
    client: Client, team: Team, model: Model, gates: Gates
) -> None:
    first, second = gates.new(), gates.new()
    asked = [team.ask("worker", through(first)), team.ask("stuck"), team.ask("worker", through(second))]
    run = await delegated(client, team, asked, join_policy="quorum", quorum=2)
    await first.entered()
    await second.entered()
    await model.asked(4)
    first.open()
    _, stuck, _ = [child["run_id"] for child in await children_of(client, run["run_id"])]
    await seen(client, run, "subagent_completed", 1)
    assert ((await client.get(stuck))["status"], model.aborted) == ("running", 0)
    second.open()
    done = await over(client, run)
    assert done["status"] == "completed"
    assert await child_statuses(client, run) == ["completed", "cancelled", "completed"]
    await model.saw_hang_up(1)


@pytest.mark.parametrize(
    ("roles", "quorum", "status"),
    [
        (("worker", "broken", "worker"), 2, "completed"),
        (("broken", "worker", "broken"), 2, "failed"),
        (("worker", "worker"), 5, "completed"),  # as many as were asked
        (("worker", "broken"), 5, "failed"),
    ],
)
async def test_a_quorum_counts_successes(
    client: Client, team: Team, roles: tuple[str, ...], quorum: int, status: str
) -> None:
    settings = {"join_policy": "quorum", "quorum": quorum, "subagent_failure_policy": "fail"}
    run = await delegated(client, team, [team.ask(role) for role in roles], **settings)
    assert (await over(client, run))["status"] == status


async def time_is_up(database: asyncpg.Connection[Any], run_id: str, timeout_s: float) -> None:
    """Let a child's time be over: it was to last for that many seconds from its creation."""
    lasts = await database.fetchval(
        "SELECT extract(epoch FROM deadline_at - created_at)::float8 FROM runs WHERE run_id = $1::uuid", run_id
    )
    assert lasts == pytest.approx(timeout_s, abs=30)
    await database.execute("UPDATE runs SET deadline_at = clock_timestamp() WHERE run_id = $1::uuid", run_id)


async def test_the_time_of_a_child_bounds_it(client: Client, team: Team, model: Model) -> None:
    run = await delegated(client, team, [team.ask("stuck")], subagent_timeout_s=0.5)
    done = await family_is_done(client, run["run_id"])
    child = await child_of(client, run["run_id"])
    assert (child["status"], child["error"]["code"]) == ("interrupted", "subagent_timeout")
    assert "subagent_timeout_s" in str(told(done)["call_1_1"])
    await model.idle()


async def test_a_child_whose_time_is_up_is_interrupted_with_all_below_it(
    client: Client, model: Model, agent_name: str, gate: Gate, shared_database: asyncpg.Connection[Any]
) -> None:
    lead = {**WORKER, "subagents": ["stuck"], "subagent_timeout_s": 50}
    team = await put_team(client, agent_name, worker=WORKER, stuck=STUCK, lead=lead)
    asked = at_once(team.ask("lead", at_once(team.ask("stuck"))), team.ask("worker", through(gate)))
    run_id = (await client.create(agent=team.parent("worker", "lead", subagent_timeout_s=600), input=asked))["run_id"]
    await gate.entered()
    await model.asked(4)
    lead, worker = [child["run_id"] for child in await children_of(client, run_id)]
    below = await child_of(client, lead)
    await time_is_up(shared_database, lead, 600)
    ended = [await client.until(each, "interrupted") for each in (lead, below["run_id"])]
    assert [run["error"]["code"] for run in ended] == ["subagent_timeout", "parent_ended"]
    await model.saw_hang_up(1)
    assert (await client.get(worker))["status"] == "running"
    gate.open()
    done = await family_is_done(client, run_id)
    assert "subagent_timeout_s" in str(told(done)["call_1_1"])
    assert told(done)["call_1_2"] is None


async def test_the_time_of_a_child_is_up_as_well_while_it_waits_for_a_person(
    client: Client, agent_name: str, shared_database: asyncpg.Connection[Any]
) -> None:
    asking = {**WORKER, "policy": {"rules": [rule("request_approval", "lookup")]}}
    team = await put_team(client, agent_name, asking=asking)
    task = at_once(team.ask("asking", at_once(("lookup", {"word": "this"}))))
    run_id = (await client.create(agent=team.parent(interaction_mode="external"), input=task))["run_id"]
    child = (await child_of(client, run_id))["run_id"]
    question = await pending(client, child)
    await time_is_up(shared_database, child, 120)
    await family_is_done(client, run_id)
    assert (await client.get(child))["error"]["code"] == "subagent_timeout"
    assert [each["status"] for each in await client.interactions(child)] == ["closed"]
    problem(await client.answer(question, "approve"), 409, "conflict")


@pytest.mark.parametrize("request_", ["cancel", "interrupt"])
async def test_a_child_that_is_stopped_alone_is_a_failure_that_its_parent_is_told_of(
    clients: tuple[Client, Client], model: Model, agent_name: str, gate: Gate, request_: str
) -> None:
    a, b = clients
    team = await put_team(a, agent_name, worker=WORKER, stuck=STUCK, lead={**WORKER, "subagents": ["stuck"]})
    asked = at_once(team.ask("worker", through(gate)), team.ask("lead", at_once(team.ask("stuck"))))
    run_id = (await a.create(agent=team.parent(), input=asked))["run_id"]
    await gate.entered()
    await model.asked(4)
    worker, lead = [child["run_id"] for child in await children_of(a, run_id)]
    stopped = await b.steer(request_, lead)
    below = await child_of(a, lead)
    assert stopped["status"] == below["status"] == {"cancel": "cancelled", "interrupt": "interrupted"}[request_]
    await model.saw_hang_up(1)
    assert (await a.get(worker))["status"] == "running"
    gate.open()
    done = await family_is_done(a, run_id)
    assert told(done) == {"call_1_1": None, "call_1_2": f"the subagent's run was {stopped['status']}" + (
        "" if request_ == "cancel" else f": {stopped['error']['message']}"
    )}  # fmt: skip


async def test_a_result_that_somebody_posts_takes_the_place_of_a_childs_answer(
    client: Client, team: Team, model: Model, gate: Gate
) -> None:
    run = await delegated(client, team, [team.ask("stuck"), team.ask("worker", through(gate))])
    await gate.entered()
    await model.asked(3)
    await client.deliver(run["run_id"], "call_1_1", output={"said": "by hand"})
    await client.until((await children_of(client, run["run_id"]))[0]["run_id"], "cancelled")
    await model.saw_hang_up(1)
    gate.open()
    done = await client.until(run["run_id"], "completed")
    assert done["result"]["tool_executions"][0]["output"] == {"said": "by hand"}
    assert await child_statuses(client, run) == ["cancelled", "completed"]


async def test_a_delegation_that_is_not_needed_any_more_asks_nobody_for_approval(
    client: Client, agent_name: str, gate: Gate
) -> None:
    team = await put_team(client, agent_name, worker=WORKER, guarded=WORKER)
    policy = {"rules": [rule("request_approval", team.tool("guarded"), subject="subagent_call")]}
    agent = team.parent(policy=policy, interaction_mode="external", join_policy="first_success")
    asked = at_once(team.ask("guarded"), team.ask("worker", through(gate)))
    run_id = (await client.create(agent=agent, input=asked))["run_id"]
    await pending(client, run_id)
    await gate.entered()
    gate.open()
    done = await family_is_done(client, run_id)
    assert [each["status"] for each in await client.interactions(run_id)] == ["closed"]
    assert "not made" in str(told(done)["call_1_1"])
    assert await child_statuses(client, done) == ["completed"]
    assert [record["subagent_name"] for record in done["result"]["subagent_executions"]] == [team.agent("worker")]


async def test_children_are_stopped_with_a_parent_whose_time_is_up_and_go_on_with_it(
    client: Client, agent_name: str, gates: Gates, shared_database: asyncpg.Connection[Any]
) -> None:
    team = await put_team(client, agent_name, worker=WORKER)
    own, below = gates.new(), gates.new()
    asked = at_once(("read", {"gate": own.name}), team.ask("worker", through(below)))
    run_id = (await client.create(agent=team.parent(), input=asked))["run_id"]
    await own.entered()
    await below.entered()
    child = await child_of(client, run_id)
    await client.steer("interrupt", run_id)
    await client.steer("resume", run_id, limits={"max_wall_time_s": 0.3})
    stopped = await client.until(run_id, "interrupted")
    assert stopped["error"]["code"] == "wall_time"
    again = await client.get(child["run_id"])
    assert (again["status"], again["error"]["code"]) == ("interrupted", "parent_ended")
    assert stopped["result"]["usage_aggregate"]["llm_calls"] == 2
    await check_invariants(shared_database)
    own.open()
    below.open()
    await client.steer("resume", run_id, limits={"max_wall_time_s": 60})
    done = await family_is_done(client, run_id)
    assert (await child_of(client, run_id))["run_id"] == child["run_id"]
    assert done["result"]["usage_aggregate"]["llm_calls"] == 4


async def test_a_failed_parent_goes_on_behind_its_failed_children(client: Client, team: Team) -> None:
    run = await delegated(client, team, [team.ask("broken"), team.ask("worker")], subagent_failure_policy="fail")
    failed = await over(client, run)
    assert failed["status"] == "failed"
    await client.steer("resume", run["run_id"])
    done = await family_is_done(client, run["run_id"])
    assert (done["result"]["final_text"], len(await children_of(client, run["run_id"]))) == ("Done.", 2)


async def test_a_line_of_three_fails_from_its_end_upwards(client: Client, agent_name: str) -> None:
    lead = {**WORKER, "subagents": ["broken"], "subagent_failure_policy": "fail"}
    team = await put_team(client, agent_name, broken=BROKEN, lead=lead)
    agent = team.parent("lead", subagent_failure_policy="degrade")
    run = await client.create(agent=agent, input=at_once(team.ask("lead", at_once(team.ask("broken")))))
    done = await over(client, run)
    line = await line_of(client, run["run_id"], 2)
    assert await statuses_of(client, line) == ["degraded", "failed", "failed"]
    assert done["error"]["message"].count("asked for 400") == 1
