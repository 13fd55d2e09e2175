"""`GET /runs/{run_id}/events?subagents=true`: a run's events and those of all runs below it, as one stream."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from tests.acceptance.client import Client, Json, Sent, problem
from tests.acceptance.gates import Gates
from tests.acceptance.questions import pending, rule
from tests.acceptance.teams import (
    BROKEN,
    WORKER,
    Team,
    at_once,
    child_of,
    children_of,
    family_is_done,
    put_team,
    through,
)

# Deltas come in as many pieces as the network likes, and a reader comes back behind every event.
WITHOUT_DELTAS = {"subagents": True, "deltas": False}


async def a_team(client: Client, name: str) -> Team:
    lead = {**WORKER, "subagents": ["leaf"]}
    return await put_team(client, name, leaf=WORKER, lead=lead, broken=BROKEN)


def inner(sent: Sent) -> Json:
    """The event itself, of whichever run."""
    return sent.event["data"]["event"] if sent.type == "subagent_event" else sent.event


def by_run(stream: Sequence[Sent]) -> dict[str, list[Json]]:
    logs: dict[str, list[Json]] = defaultdict(list)
    for sent in stream:
        logs[inner(sent)["run_id"]].append(inner(sent))
    return dict(logs)


async def logs_of(client: Client, run_id: str) -> dict[str, list[Json]]:
    """The logs of a run and of all runs below it, as their own lists give them."""
    logs = {run_id: await client.events(run_id)}
    for child in await children_of(client, run_id):
        logs |= await logs_of(client, child["run_id"])
    return logs


def in_order(stream: Sequence[Sent], run_id: str) -> None:
    """A child is told of before its first event, and its end before what its parent makes of it."""
    told = {run_id}
    ended: set[str] = set()
    for sent in stream:
        event = inner(sent)
        assert event["run_id"] in told
        assert sent.type == (event["type"] if event["run_id"] == run_id else "subagent_event")
        match event["type"]:
            case "subagent_started":
                told.add(event["data"]["run_id"])
            case "run_completed" | "run_failed":
                ended.add(event["run_id"])
            case "subagent_completed":
                assert event["data"]["run_id"] in ended
            case _:
                pass


async def test_every_event_of_a_family_comes_once_and_in_its_runs_order_while_it_happens_on_both_replicas(
    clients: tuple[Client, Client], agent_name: str, gates: Gates
) -> None:
    a, b = clients
    team = await a_team(a, agent_name)
    first, second = gates.new(), gates.new()
    asked = at_once(
        team.ask("lead", at_once(team.ask("leaf", through(first)), team.ask("leaf", "Now."))),
        team.ask("leaf", through(second)),
        team.ask("broken"),
    )
    run_id = (await a.create(agent=team.parent(), input=asked))["run_id"]
    readers = [asyncio.ensure_future(each.streamed(run_id, subagents=True)) for each in clients]
    await first.entered()
    await second.entered()
    second.open()
    first.open()
    streams = await asyncio.gather(*readers)
    await family_is_done(b, run_id)
    logs = await logs_of(b, run_id)
    assert len(logs) == 6
    for stream in streams:
        assert by_run(stream) == logs
        assert len({sent.id for sent in stream}) == len(stream)
        last = stream[-1].event
        assert (last["run_id"], last["type"]) == (run_id, "run_completed")
    again = await b.streamed(run_id, subagents=True)
    in_order(again, run_id)
    assert by_run(again) == logs
    for sent in again:
        if sent.type == "subagent_event":
            outer, event = sent.event, inner(sent)
            assert {key: outer[key] for key in outer if key not in ("type", "message", "data")} == {
                key: event[key] for key in event if key not in ("type", "message", "data")
            }


async def test_a_reader_comes_back_at_any_event_to_the_other_replica_and_reads_the_same_rest(
    clients: tuple[Client, Client], agent_name: str
) -> None:
    a, b = clients
    team = await a_team(a, agent_name)
    asked = at_once(team.ask("lead", at_once(team.ask("leaf"), team.ask("leaf"))), team.ask("broken"))
    run_id = (await a.create(agent=team.parent(), input=asked))["run_id"]
    live = await a.streamed(run_id, **WITHOUT_DELTAS)
    stored = await a.streamed(run_id, **WITHOUT_DELTAS)
    in_order(stored, run_id)
    assert by_run(live) == by_run(stored)
    for stream in (live, stored):
        for place, sent in enumerate(stream[:-1], 1):
            rest = await b.streamed(run_id, last_id=sent.id, **WITHOUT_DELTAS)
            assert by_run(rest) == by_run(stream[place:])
            if stream is stored:  # what is stored has one order; ids only say where to go on
                assert [each.event for each in rest] == [each.event for each in stored[place:]]
        over = await b.http.get(
            f"/runs/{run_id}/events", params={"subagents": "true"}, headers={"Last-Event-ID": stream[-1].id}
        )
        assert over.status_code == 204


async def test_a_reader_that_comes_back_while_it_happens_misses_nothing(
    clients: tuple[Client, Client], agent_name: str, gates: Gates
) -> None:
    a, b = clients
    team = await a_team(a, agent_name)
    first, second = gates.new(), gates.new()
    asked = at_once(team.ask("lead", at_once(team.ask("leaf", through(first)))), team.ask("leaf", through(second)))
    run_id = (await a.create(agent=team.parent(), input=asked))["run_id"]
    await first.entered()
    await second.entered()
    seen: list[Sent] = []
    for place in range(24):  # one event a connection, from either replica; there are more than so many
        if place == 10:
            second.open()
            first.open()
        last_id = seen[-1].id if seen else None
        async with clients[place % 2].stream(run_id, last_id=last_id, **WITHOUT_DELTAS) as events:
            seen.append(await anext(events))
    seen += await b.streamed(run_id, last_id=seen[-1].id, **WITHOUT_DELTAS)
    await family_is_done(a, run_id)
    assert by_run(seen) == by_run(await a.streamed(run_id, **WITHOUT_DELTAS))


async def test_the_stream_stays_open_while_a_child_waits_for_a_person_or_is_paused(
    client: Client, agent_name: str
) -> None:
    asking = {**WORKER, "policy": {"rules": [rule("request_approval", "lookup")]}}
    team = await put_team(client, agent_name, asking=asking)
    task = at_once(team.ask("asking", at_once(("lookup", {"word": "this"}))))
    run_id = (await client.create(agent=team.parent(interaction_mode="external"), input=task))["run_id"]
    child = (await child_of(client, run_id))["run_id"]
    question = await pending(client, child)
    await client.steer("pause", run_id)
    reader = asyncio.ensure_future(client.streamed(run_id, subagents=True))
    await client.steer("resume", run_id)
    await client.decide(question, "approve")
    assert by_run(await reader) == await logs_of(client, run_id)
    await family_is_done(client, run_id)


async def test_types_choose_among_the_events_of_all_runs(client: Client, agent_name: str) -> None:
    team = await a_team(client, agent_name)
    asked = at_once(team.ask("lead", at_once(team.ask("leaf"))), team.ask("broken"))
    run_id = (await client.create(agent=team.parent(), input=asked))["run_id"]
    await family_is_done(client, run_id)
    ends = await client.streamed(run_id, subagents=True, types="run_completed,run_failed")
    assert sorted(inner(sent)["type"] for sent in ends) == ["run_completed"] * 3 + ["run_failed"]
    below = await client.streamed(run_id, subagents=True, types="subagent_event")
    whole = await client.streamed(run_id, subagents=True)
    assert [sent.raw for sent in below] == [sent.raw for sent in whole if sent.type == "subagent_event"]
    assert {inner(sent)["run_id"] for sent in await client.streamed(run_id)} == {run_id}


async def test_a_cursor_of_another_stream_is_refused(client: Client, agent_name: str) -> None:
    team = await a_team(client, agent_name)
    runs = [await client.create(agent=team.parent(), input=at_once(team.ask("leaf"))) for _ in range(2)]
    ids = [run["run_id"] for run in runs]
    streams = [await client.streamed(run_id, subagents=True) for run_id in ids]
    for cursor in ("7", streams[1][-1].id, streams[0][3].id[:-2], "f1."):
        answer = await client.http.get(
            f"/runs/{ids[0]}/events", params={"subagents": "true"}, headers={"Last-Event-ID": cursor}
        )
        problem(answer, 422, "validation_error")
