"""Agents whose calls are judged, and the questions that their runs put to people."""

from __future__ import annotations

from typing import Any

from tests.acceptance.client import Client, Json, an_agent, check_log
from tests.acceptance.gates import Gate
from tests.acceptance.model import calls
from tests.acceptance.waiting import eventually
from tests.model_server import Reply

REASON = "the books say so"


def rule(action: str, tool: str | None = None, *, subject: str = "tool_call", **more: Any) -> Json:
    """A rule about calls of one tool, or about all deeds of one kind; by default its id is its action."""
    condition = {} if tool is None else {"tool_name": tool}
    stated = {"rule_id": action, "action": action, "subjects": [subject], "condition": condition, "reason": REASON}
    return {**stated, **more}


def judged(*rules: Json, **settings: Any) -> Json:
    """An inline agent with these rules, whose questions somebody outside answers."""
    return an_agent(policy={"rules": rules}, **{"interaction_mode": "external", **settings})


def look_up(word: str, *, text: str = "") -> Reply:
    """A model's answer that asks for `lookup`."""
    return calls(("lookup", {"word": word}), text=text)


def sends(gate: Gate) -> Reply:
    """A model's answer that asks for `send`, which must not be run twice."""
    return calls(("send", {"gate": gate.name}))


async def asked(client: Client, **body: Any) -> tuple[Json, Json]:
    """Create a run that is going to ask a person: the run as it waits, and its question."""
    run = await client.create_and_wait(input="Go.", **body)
    assert run["status"] == "waiting", run
    return run, await pending(client, run["run_id"])


async def pending(client: Client, run_id: str) -> Json:
    """Wait for a run to have one open question."""

    async def look() -> list[Json]:
        return [each for each in await client.interactions(run_id) if each["status"] == "pending"]

    (question,) = await eventually(look, f"a question of run {run_id}")
    return question


async def finished(client: Client, run_id: str) -> Json:
    """The run at its end, once it goes on; its log is checked."""
    run = await client.until(run_id, "completed", "degraded", "failed")
    check_log(await client.events(run_id), run)
    return run
