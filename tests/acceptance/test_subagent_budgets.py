"""What runs with children may use: budgets that are split and returned, costs that add up, depth and fan-out."""

from __future__ import annotations

from typing import Any

import asyncpg
import orjson
import pytest

from tests.acceptance.client import Client, Json, of_type
from tests.acceptance.model import Model, calls
from tests.acceptance.teams import (
    WORKER,
    at_once,
    child_of,
    children_of,
    family_is_done,
    line_of,
    put_team,
    steps,
    told,
)

# What every call of the tests' model uses: input and output tokens together.
CALL_TOKENS = 18


async def granted(database: asyncpg.Connection[Any], run_id: str) -> Json:
    """The limits that a child run was given by its parent."""
    overrides = await database.fetchval("SELECT overrides FROM runs WHERE run_id = $1::uuid", run_id)
    return orjson.loads(overrides)["limits"]


async def usage_of(client: Client, run_id: str) -> Json:
    return (await client.get(run_id))["result"]["usage_aggregate"]


async def test_what_is_left_of_the_budget_is_split_over_a_steps_children_and_what_they_leave_returns(
    client: Client, model: Model, agent_name: str, shared_database: asyncpg.Connection[Any]
) -> None:
    team = await put_team(client, agent_name, worker=WORKER, lead={**WORKER, "subagents": ["worker"]})
    below = team.ask("lead", at_once(team.ask("worker")))
    asked = steps([team.ask("worker"), below], [team.ask("worker")])
    limits = {"max_total_tokens": 1000}
    run_id = (await client.create(agent=team.parent(limits=limits), input=asked))["run_id"]
    run = await family_is_done(client, run_id)

    worker, lead, later = await children_of(client, run_id)
    shares = [(await granted(shared_database, child["run_id"]))["max_total_tokens"] for child in (worker, lead, later)]
    share = (1000 - CALL_TOKENS) // 2
    # By then: two calls of the parent, one of the worker, two of the lead, and one below it.
    assert shares == [share, share, 1000 - 6 * CALL_TOKENS]
    below_lead = await child_of(client, lead["run_id"])
    assert (await granted(shared_database, below_lead["run_id"]))["max_total_tokens"] == share - CALL_TOKENS

    spent = [await usage_of(client, child["run_id"]) for child in (worker, lead, later)]
    assert [usage["llm_calls"] for usage in spent] == [1, 3, 1]
    records = run["result"]["subagent_executions"]
    assert [record["usage"] for record in records] == spent
    total = await usage_of(client, run_id)
    assert (total["llm_calls"], total["total_tokens"]) == (8, 8 * CALL_TOKENS)
    assert (await client.events(run_id))[-1]["data"]["usage"] == total


async def test_a_child_that_has_spent_its_share_fails_and_the_parent_has_the_rest(
    client: Client, agent_name: str
) -> None:
    team = await put_team(client, agent_name, worker=WORKER)
    busy = steps(*[[("lookup", {"word": "again"})]] * 5)
    asked = at_once(team.ask("worker", busy), team.ask("worker", "Hi."))
    run_id = (await client.create(agent=team.parent(limits={"max_total_tokens": 100}), input=asked))["run_id"]
    run = await family_is_done(client, run_id)
    children = [await client.get(child["run_id"]) for child in await children_of(client, run_id)]
    assert [child["status"] for child in children] == ["failed", "completed"]
    assert children[0]["error"]["code"] == "budget_exceeded"
    assert "41 tokens" in str(told(run)["call_1_1"])  # (100 - 18) // 2
    assert run["result"]["usage_aggregate"]["total_tokens"] == 6 * CALL_TOKENS


async def test_a_runs_cost_is_that_of_all_runs_below_it_and_so_is_what_they_may_spend(
    client: Client, model: Model, agent_name: str, shared_database: asyncpg.Connection[Any]
) -> None:
    priced = {"model": "openai/gpt-4o-mini"}
    team = await put_team(client, agent_name, leaf=priced, lead={**priced, "subagents": ["leaf"]})
    model.script(calls(team.ask("lead")), calls(team.ask("leaf")))
    agent = team.parent("lead", model="openai/gpt-4o-mini", limits={"max_total_cost_usd": 0.5})
    run_id = (await client.create(agent=agent, input="Go."))["run_id"]
    run = await family_is_done(client, run_id)
    call = of_type(await client.events(run_id), "llm_completed")[0]["data"]["cost_usd"]
    assert call > 0
    line = await line_of(client, run_id, 2)
    costs = [(await client.get(each))["result"]["total_cost_usd"] for each in line]
    assert costs == [pytest.approx(5 * call), pytest.approx(3 * call), pytest.approx(call)]
    shares = [(await granted(shared_database, each))["max_total_cost_usd"] for each in line[1:]]
    assert shares == [pytest.approx(0.5 - call), pytest.approx(0.5 - 2 * call)]
    assert run["result"]["usage_aggregate"]["total_tokens"] == 5 * CALL_TOKENS


async def test_a_cost_that_is_unknown_below_is_unknown_above(client: Client, model: Model, agent_name: str) -> None:
    team = await put_team(client, agent_name, leaf=WORKER, lead={"subagents": ["leaf"]})
    model.script(calls(team.ask("lead")), calls(team.ask("leaf")))
    run_id = (await client.create(agent=team.parent("lead", model="openai/gpt-4o-mini"), input="Go."))["run_id"]
    await family_is_done(client, run_id)
    for member in await line_of(client, run_id, 2):
        assert (await client.get(member))["result"]["total_cost_usd"] is None
    assert of_type(await client.events(run_id), "llm_completed")[1]["data"]["cost_usd"] > 0


async def test_delegations_beyond_the_limits_are_errors_to_the_model(client: Client, agent_name: str) -> None:
    team = await put_team(client, agent_name, leaf=WORKER, lead={**WORKER, "subagents": ["leaf"]})
    below = at_once(team.ask("leaf"), team.ask("leaf"))
    asked = steps([team.ask("lead", below), team.ask("leaf"), team.ask("leaf", "Too many.")], [team.ask("leaf")])
    limits = {"max_subagent_depth": 1, "max_subagent_fanout": 2}
    run_id = (await client.create(agent=team.parent(limits=limits), input=asked))["run_id"]
    run = await family_is_done(client, run_id)
    errors = told(run)
    assert (errors["call_1_1"], errors["call_1_2"], errors["call_2_1"]) == (None, None, None)
    assert "max_subagent_fanout" in str(errors["call_1_3"])
    lead, _, _ = await children_of(client, run_id)
    deeper = told(await client.get(lead["run_id"]))
    assert all("max_subagent_depth" in str(deeper[call]) for call in ("call_1_1", "call_1_2"))
    assert await children_of(client, lead["run_id"]) == []
