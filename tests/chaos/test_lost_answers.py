"""A database whose answers are lost: what was asked for took place, and nobody was told."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import Any, TypeAlias

import asyncpg
import pytest

from tests.acceptance.client import Json, check_log, of_type
from tests.acceptance.gates import Gate, Gates
from tests.acceptance.questions import judged, rule
from tests.acceptance.teams import at_once, through
from tests.acceptance.waiting import eventually
from tests.chaos.callers import WITHIN_S, Callers
from tests.chaos.cluster import Cluster
from tests.chaos.gauge import Gauge
from tests.chaos.proxy import Proxy
from tests.chaos.work import READER, WORKER, check_effects, some_work, speaker, spoken

Database: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# What tells one transaction from another: all of these are in its text.
KINDS: dict[str, tuple[str, ...]] = {
    "create with a key": ("INSERT INTO idempotency_keys", "INSERT INTO runs "),
    "create": ("INSERT INTO runs ",),
    "deltas": ("free AS (",),
    "write": ("UPDATE runs SET write_no = write_no + 1",),
    "pause": ("UPDATE runs SET control = 'pause'",),
    "resume": ("wakes = wakes + $4::boolean::int",),
    "decide": ("UPDATE interactions SET status = $2, answer",),
    "result": ("UPDATE tool_executions SET posted",),
    "cancel": ("SET status = $2, epoch = epoch + 1, owner = NULL, control = NULL",),
}


class Losses:
    """Which answers are lost: the first of each kind, and others by chance."""

    def __init__(self, dice: Random, share: float) -> None:
        self._dice = dice
        self._share = share
        self.lost: Counter[str] = Counter()

    def __call__(self, text: str) -> bool:
        kind = next((kind for kind, said in KINDS.items() if all(each in text for each in said)), None)
        if kind is None or (self.lost[kind] and self._dice.random() >= self._share):
            return False
        self.lost[kind] += 1
        return True


class Asking:
    """Callers who ask again until they are answered, with or without a key."""

    def __init__(self, chaos: Gauge, callers: Callers, cluster: Cluster) -> None:
        self._chaos = chaos
        self._callers = callers
        self._cluster = cluster
        self.asked: Counter[str] = Counter()

    async def create(self, tag: str, **body: Any) -> str:
        """POST /runs without a key, so that each asking may make a run; the id of the one that was told of."""
        self._chaos.runs += 1

        async def look() -> str | None:
            self.asked[tag] += 1
            url = self._cluster.replicas[self.asked[tag] % len(self._cluster.replicas)].url
            answer = await self._callers.http.post(f"{url}/runs", json={**body, "metadata": {"tag": tag}})
            assert answer.status_code in (202, 503), answer.text
            return answer.json()["run_id"] if answer.status_code == 202 else None

        return await eventually(look, "a run")

    async def post(self, path: str, body: Json | None = None) -> Json:
        """A request that changes nothing when it comes again."""
        answer = await self._callers.ask("POST", path, json=body)
        assert answer.status_code == 200, f"{path}: {answer.text}"
        return answer.json()

    async def until(self, run_id: str, *statuses: str) -> Json:
        """Ask for the run until it has one of these statuses."""

        async def look() -> Json | None:
            run = await self._callers.get(run_id)
            return run if run["status"] in statuses else None

        return await eventually(look, f"the run to be {' or '.join(statuses)}", WITHIN_S)

    async def done(self, run_id: str) -> tuple[Json, list[Json]]:
        """The run once it is terminal, and its log, which is checked."""
        run = await self._callers.ended(run_id)
        answer = await self._callers.ask("GET", f"/runs/{run_id}/events/list", params={"limit": 100})
        events = answer.json()["items"]
        check_log(events, run)
        return run, events

    async def question(self, run_id: str) -> Json:
        """The run's open question, once there is one."""
        await self.until(run_id, "waiting")
        answer = await self._callers.ask("GET", f"/runs/{run_id}/interactions")
        (question,) = answer.json()["items"]
        return question


async def is_paused_and_resumed(callers: Callers, asking: Asking, gate: Gate) -> None:
    run_id = (await callers.create(agent=READER, input=through(gate)))["run_id"]
    await gate.entered()
    await asking.post(f"/runs/{run_id}/pause")
    gate.open()
    await asking.until(run_id, "paused")
    await asking.post(f"/runs/{run_id}/resume")
    run, events = await asking.done(run_id)
    assert run["status"] == "completed"
    assert len(of_type(events, "run_paused")) == 1
    assert [event["data"]["reason"] for event in of_type(events, "run_resumed")].count("pause") == 1


async def is_cancelled(callers: Callers, asking: Asking, gate: Gate) -> None:
    run_id = (await callers.create(agent=READER, input=through(gate)))["run_id"]
    await gate.entered()
    assert (await asking.post(f"/runs/{run_id}/cancel"))["status"] == "cancelled"
    gate.open()
    _, events = await asking.done(run_id)
    assert len(of_type(events, "run_cancelled")) == 1


async def is_decided(callers: Callers, asking: Asking, gate: Gate) -> None:
    gate.open()
    agent = judged(rule("request_approval", "send"), model="openai/obey")
    run_id = (await callers.create(agent=agent, input=at_once(("send", {"gate": gate.name}))))["run_id"]
    question = await asking.question(run_id)
    await asking.post(f"/runs/{run_id}/interactions/{question['interaction_id']}", {"decision": "approve"})
    run, events = await asking.done(run_id)
    assert (run["status"], len(gate.calls())) == ("completed", 1)
    assert len(of_type(events, "interaction_requested")) == len(of_type(events, "interaction_resolved")) == 1


async def is_delivered(callers: Callers, asking: Asking, gate: Gate) -> None:
    run_id = (await callers.create(agent=READER, input=at_once(("order", {"item": gate.name}))))["run_id"]
    await asking.until(run_id, "waiting")
    (call,) = await gate.entered()
    await asking.post(f"/runs/{run_id}/tool-calls/{call['tool_call_id']}/result", {"output": "It is here."})
    run, events = await asking.done(run_id)
    assert [call["output"] for call in run["result"]["tool_executions"]] == ["It is here."]
    assert len(of_type(events, "tool_completed")) == 1


def check_attempts(events: list[Json]) -> None:
    """A run whose create stays in doubt is put back before it has begun; no write that took place costs an attempt."""
    resumed = [event["seq"] for event in of_type(events, "run_resumed")]
    began = min(event["seq"] for event in events if event["type"] in ("text_delta", "llm_completed"))
    assert all(seq < began for seq in resumed), resumed


async def speaks(asking: Asking, callers: Callers, tag: str) -> None:
    """Every word is told once, to those who listen and in the log."""
    run_id = await asking.create(tag, agent=speaker(1), input="Go.")
    seen = [sent.event for sent in await callers.follow(run_id)]
    run, events = await asking.done(run_id)
    assert seen == events
    check_attempts(events)
    assert spoken(events) == run["result"]["final_text"]


async def works(asking: Asking, tag: str, work: str) -> Json:
    run_id = await asking.create(tag, agent=WORKER, input=work)
    run, events = await asking.done(run_id)
    ended = Counter(event["data"]["tool_call_id"] for event in of_type(events, "tool_completed"))
    assert set(ended.values()) == {1}
    check_attempts(events)
    return run


async def check_runs(sql: Database, asked: Counter[str], with_key: int) -> None:
    """Who asked once has made one run; who asked again after a 503, at most one each time; with a key, one in all."""
    rows = await sql.fetch("SELECT metadata->>'tag' AS tag, count(*) AS runs FROM runs GROUP BY 1")
    made = {row["tag"]: row["runs"] for row in rows}
    assert made.pop(None) == with_key
    assert made.keys() == asked.keys()
    assert all(1 <= made[tag] <= times for tag, times in asked.items()), (made, asked)


@pytest.mark.scenario(5, short=True)
async def test_what_the_database_did_and_did_not_answer_is_done_once(
    chaos: Gauge, cluster: Cluster, callers: Callers, gates: Gates, proxy: Proxy, sql: Database
) -> None:
    """Creates, an owner's writes, deltas, pauses, resumes, cancels, decisions and results: one run, one event, one
    effect.

    Seen to fail without: the look at whether an earlier sending took place (`sent_before` in `why_not`, and
    `append_again` for deltas), the one id under which a create is sent again.
    """
    await cluster.start(2, DATABASE_URL=proxy.url)
    asking, gate = Asking(chaos, callers, cluster), gates.new()
    losses = Losses(chaos.dice, 0.2)
    proxy.lose_answers(losses)
    each = chaos.size(8, 2)
    steps = (is_paused_and_resumed, is_cancelled, is_decided, is_delivered)
    steering = [step(callers, asking, gates.new()) for step in steps for _ in range(each)]
    speaking = [speaks(asking, callers, f"speaker{number}") for number in range(3 * each)]
    working = [works(asking, f"worker{number}", some_work(chaos, gate.name)) for number in range(3 * each)]
    async with asyncio.TaskGroup() as tasks:
        for one in (*steering, *speaking):
            tasks.create_task(one)
        at_work = [tasks.create_task(one) for one in working]
    runs = [one.result() for one in at_work]
    proxy.lose_answers(None)
    assert losses.lost.keys() == KINDS.keys()
    chaos.kills += proxy.lost
    assert {run["status"] for run in runs} == {"completed"}
    check_effects(gate, runs)
    await check_runs(sql, asking.asked, len(steering))
    await cluster.check()
