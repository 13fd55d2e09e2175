"""What a service does not keep for ever goes by itself, and what is left works as before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import asyncpg
import pytest

from tests.acceptance.client import DELTAS, Client, Json, an_agent, of_type, problem, types_of
from tests.acceptance.conftest import Caller, Serve, Settings
from tests.acceptance.model import Model, calls
from tests.acceptance.teams import WORKER, at_once, child_of, put_team
from tests.acceptance.waiting import eventually
from tests.exposition import Exposition
from tests.invariants import check_invariants
from tests.model_server import Reply

Connection: TypeAlias = "asyncpg.Connection[Any]"

BROKEN = Reply.error(400, "the model has had enough")


@pytest.fixture
async def look(database_url: str) -> AsyncIterator[Connection]:
    """A look into the service's database."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def set_back(look: Connection) -> None:
    """As if all runs had ended two days earlier, and nobody had written to their threads since."""
    await look.execute("UPDATE runs SET finished_at = finished_at - interval '2 days'")
    await look.execute("UPDATE threads SET updated_at = updated_at - interval '2 days'")


async def swept(look: Connection, *chores: str) -> None:
    """Wait until somebody has done these chores, up to a day ago."""

    async def done() -> bool:
        return await look.fetchval(
            """SELECT count(*) = cardinality($1::text[]) FROM chores WHERE name = ANY ($1)
               AND done_up_to > clock_timestamp() - interval '25 hours'""",
            list(chores),
        )

    await eventually(done, f"{' and '.join(chores)} to be swept")


async def two_steps(client: Client, model: Model, last: Reply, **body: Any) -> Json:
    """A run with a tool call, and deltas in both of its steps."""
    model.script(calls(("lookup", {"word": "ada"}), text="Looking it up."), last)
    return await client.create_and_wait(agent=an_agent(), input="How long is ada?", **body)


async def test_deltas_go_and_the_texts_stay(
    serve: Serve, settings: Settings, caller: Caller, model: Model, database_url: str, look: Connection
) -> None:
    client = caller(serve(settings(DATABASE_URL=database_url)).ready())
    old = await two_steps(client, model, Reply(text=["Three ", "letters."]))
    before = await client.events(old["run_id"])
    await set_back(look)
    young = await two_steps(client, model, Reply(text=["Three ", "letters."]))
    sweeping = caller(serve(settings(DATABASE_URL=database_url, RETAIN_DELTAS_DAYS="1")).ready())
    await swept(look, "deltas")

    kept = [event for event in before if event["type"] not in DELTAS]
    assert await sweeping.events(old["run_id"]) == kept
    assert [event["data"]["text"] for event in of_type(kept, "llm_completed")] == ["Looking it up.", "Three letters."]
    assert (await sweeping.get(old["run_id"]))["result"] == old["result"]
    assert of_type(await sweeping.events(young["run_id"]), "text_delta")
    # A reader that was last given a delta which is gone goes on behind it.
    delta = of_type(before, "text_delta")[-1]["seq"]
    again = await sweeping.streamed(old["run_id"], last_id=str(delta))
    assert [sent.event for sent in again] == [event for event in kept if event["seq"] > delta]
    await check_invariants(look)


async def test_events_and_checkpoints_go_and_a_failed_run_goes_on_from_what_is_left(
    serve: Serve, settings: Settings, caller: Caller, model: Model, database_url: str, look: Connection
) -> None:
    client = caller(serve(settings(DATABASE_URL=database_url)).ready())
    run = await two_steps(client, model, BROKEN)
    assert run["status"] == "failed"
    run_id, last = run["run_id"], run["last_event_seq"]
    all_checkpoints = (await client.http.get(f"/runs/{run_id}/checkpoints")).json()["items"]
    assert len(all_checkpoints) > 1
    await set_back(look)
    kept = {"RETAIN_EVENTS_DAYS": "1", "RETAIN_CHECKPOINTS_DAYS": "1"}
    sweeping = caller(serve(settings(DATABASE_URL=database_url, **kept)).ready())
    await swept(look, "events", "checkpoints")

    for params in ({}, {"after": 0}, {"after": last - 2}):
        for path in ("events", "events/list"):
            answer = await sweeping.http.get(f"/runs/{run_id}/{path}", params=params)
            assert problem(answer, 410, "events_trimmed")["first_seq"] == last
    (left,) = (await sweeping.http.get(f"/runs/{run_id}/events/list", params={"after": last - 1})).json()["items"]
    assert (left["seq"], left["type"]) == (last, "run_failed")
    checkpoints = (await sweeping.http.get(f"/runs/{run_id}/checkpoints")).json()["items"]
    assert checkpoints == all_checkpoints[-1:]
    await check_invariants(look)

    model.script(Reply(text="Three letters."))
    await sweeping.steer("resume", run_id)
    done = await sweeping.wait(run_id)
    assert (done["status"], done["result"]["final_text"]) == ("completed", "Three letters.")
    assert [message["role"] for message in model.messages()][-3:] == ["user", "assistant", "tool"]
    answer = await sweeping.http.get(f"/runs/{run_id}/events/list", params={"after": last - 1, "limit": 100})
    events = answer.json()["items"]
    assert [event["seq"] for event in events] == list(range(last, done["last_event_seq"] + 1))
    assert types_of(events)[:2] == ["run_failed", "run_resumed"]
    assert types_of(events)[-1] == "run_completed"
    await check_invariants(look)


async def test_an_old_run_goes_with_the_runs_below_it_and_its_thread(
    serve: Serve, settings: Settings, caller: Caller, model: Model, database_url: str, look: Connection, agent_name: str
) -> None:
    client = caller(serve(settings(DATABASE_URL=database_url)).ready())
    team = await put_team(client, agent_name, leaf=WORKER)
    old = await client.create_and_wait(agent=team.parent(), input=at_once(team.ask("leaf")), thread_id="old")
    child = await child_of(client, old["run_id"])
    await client.create_and_wait(agent=an_agent(model="openai/echo"), input="Hello.", thread_id="used")
    await set_back(look)
    young = await client.create_and_wait(agent=an_agent(model="openai/echo"), input="Again.", thread_id="used")
    sweeping = caller(serve(settings(DATABASE_URL=database_url, RETAIN_RUNS_DAYS="1")).ready())
    await swept(look, "runs")

    for path in (f"/runs/{old['run_id']}", f"/runs/{old['run_id']}/events", f"/runs/{child['run_id']}", "/threads/old"):
        problem(await sweeping.http.get(path), 404, "not_found")
    assert [run["run_id"] for run in (await sweeping.http.get("/runs")).json()["items"]] == [young["run_id"]]
    said = [message["content"] for message in await sweeping.messages("used")]
    assert said == ["Hello.", "Hello.", "Again.", "Again."]
    seen = Exposition((await sweeping.http.get("/metrics")).content)
    assert seen.value("agent_runner_retention_removed_total", kind="runs") == 3
    assert seen.value("agent_runner_retention_removed_total", kind="threads") == 2
    await check_invariants(look)


async def test_a_chore_is_done_once_and_goes_on_after_the_replica_that_had_it_was_killed(
    serve: Serve, settings: Settings, caller: Caller, model: Model, database_url: str, look: Connection
) -> None:
    client = caller(serve(settings(DATABASE_URL=database_url)).ready())
    runs = [await client.create_and_wait(agent=an_agent(model="openai/echo"), input="Hello.") for _ in range(3)]
    await set_back(look)
    keeps = settings(DATABASE_URL=database_url, RETAIN_EVENTS_DAYS="1")
    events = await look.fetchval("SELECT count(*) FROM run_events")

    async def held() -> str | None:
        return await look.fetchval(
            "SELECT replica::text FROM chores WHERE name = 'events' AND held_until > clock_timestamp()"
        )

    async with look.transaction():
        # It waits in the midst of its batch, until it is killed there.
        await look.execute("SELECT 1 FROM run_events FOR UPDATE")
        first = serve(keeps).ready()
        await eventually(lambda: _waits_for(look), "the sweep to begin")
        holder = await held()
        first.kill()
    await eventually(lambda: _nobody_writes_events(look), "its transaction to end")
    assert await look.fetchval("SELECT count(*) FROM run_events") == events
    assert await held() == holder
    await look.execute("UPDATE chores SET held_until = clock_timestamp()")
    replicas = [serve(keeps) for _ in range(2)]
    counted = [caller(replica.ready()) for replica in replicas]
    await swept(look, "events")
    assert await held() != holder

    assert sorted([await _removed(client) for client in counted]) == [0, events - len(runs)]
    assert await look.fetchval("SELECT count(*) FROM run_events") == len(runs)


async def _removed(client: Client) -> int:
    seen = Exposition((await client.http.get("/metrics")).content)
    return int(seen.value("agent_runner_retention_removed_total", kind="events"))


async def _waits_for(look: Connection) -> bool:
    return await look.fetchval(
        "SELECT count(*) > 0 FROM pg_stat_activity WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"
    )


async def _nobody_writes_events(look: Connection) -> bool:
    """A server notices that a client is gone when it next has something to tell it."""
    return await look.fetchval(
        "SELECT count(*) = 0 FROM pg_locks WHERE relation = 'run_events'::regclass AND mode = 'RowExclusiveLock'"
    )
