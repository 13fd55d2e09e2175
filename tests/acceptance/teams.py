"""Teams: a parent agent, its subagents that do what their task says, and the runs of both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from tests.acceptance.client import Client, Json, check_log, of_type
from tests.acceptance.gates import Gate
from tests.acceptance.waiting import eventually

Call = tuple[str, Json]

# Their model does what the task says, or repeats it.
WORKER: Json = {"model": "openai/obey", "tools": ["lookup", "fail", "read"]}
BROKEN: Json = {"model": "openai/error-400"}
STUCK: Json = {"model": "openai/slow-60"}


@dataclass(frozen=True, slots=True)
class Team:
    """Stored agents, each named after the team and its role."""

    name: str
    roles: tuple[str, ...]

    def agent(self, role: str) -> str:
        return f"{self.name}_{role}"

    def tool(self, role: str) -> str:
        """The tool that delegates to that role."""
        return f"delegate_to_{self.agent(role)}"

    def ask(self, role: str, task: str = "Say it.") -> Call:
        """A call that delegates to that role."""
        return self.tool(role), {"task": task}

    def path(self, *roles: str) -> str:
        """The `agent_path` of a run below the parent."""
        return ">".join((self.name, *map(self.agent, roles)))

    def parent(self, *roles: str, **settings: object) -> Json:
        """An inline agent that obeys its input and may delegate to these roles; to all of them by default."""
        subagents = [self.agent(role) for role in roles or self.roles]
        return {"name": self.name, **WORKER, "subagents": subagents, **settings}


async def put_team(client: Client, name: str, **roles: Json) -> Team:
    """Store an agent for each role, in this order; `subagents` among its settings are roles."""
    team = Team(name, tuple(roles))
    for role, settings in roles.items():
        below = [team.agent(each) for each in settings.get("subagents", ())]
        await client.put_agent(team.agent(role), **{**settings, "subagents": below})
    return team


def steps(*batches: Sequence[Call]) -> str:
    """What makes an obedient model ask for these calls, one batch a step, and then say "Done."."""
    return json.dumps(batches)


def at_once(*calls: Call) -> str:
    """The same for calls of one step."""
    return steps(calls)


def through(gate: Gate) -> str:
    """A task that lasts until a gate is opened."""
    return at_once(("read", {"gate": gate.name}))


async def children_of(client: Client, run_id: str) -> list[Json]:
    """The child runs of a run, in the order of their delegations; without results."""
    answer = await client.http.get("/runs", params={"parent_run_id": run_id, "limit": 100})
    assert answer.status_code == 200, answer.text
    return answer.json()["items"][::-1]


async def child_of(client: Client, run_id: str) -> Json:
    """The one child run of a run, once there is one."""
    (child,) = await eventually(lambda: children_of(client, run_id), f"a child of run {run_id}")
    return child


async def line_of(client: Client, run_id: str, generations: int) -> list[str]:
    """The ids of a run, its only child, and so on down."""
    line = [run_id]
    for _ in range(generations):
        line.append((await child_of(client, line[-1]))["run_id"])
    return line


async def statuses_of(client: Client, run_ids: Sequence[str]) -> list[str]:
    return [(await client.get(run_id))["status"] for run_id in run_ids]


async def family_is_done(client: Client, run_id: str) -> Json:
    """Wait for a run to complete; its log, and those of all runs below it, are checked."""
    run = await client.until(run_id, "completed", "degraded", "failed", "interrupted", "cancelled")
    assert run["status"] == "completed", run
    await check_family(client, run)
    return run


async def check_family(client: Client, run: Json) -> None:
    """What holds for the log of every run of a family that is over: each child is told of once, begun and ended."""
    events = await client.events(run["run_id"])
    check_log(events, run)
    children = [child["run_id"] for child in await children_of(client, run["run_id"])]
    begun = [event["data"]["run_id"] for event in of_type(events, "subagent_started")]
    ended = [event["data"]["run_id"] for event in of_type(events, "subagent_completed")]
    assert sorted(begun) == sorted(children)
    if run["status"] in ("completed", "degraded"):
        assert sorted(ended) == sorted(children)
    for child in children:
        await check_family(client, await client.get(child))


def told(run: Json) -> dict[str, str | None]:
    """The errors of a run's tool calls, by their ids; None for those that succeeded."""
    return {call["tool_call_id"]: call["error"] for call in run["result"]["tool_executions"]}
