"""Threads that do not outgrow their model, over HTTP."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest

from tests.acceptance.client import Client, Json, an_agent, check_log, of_type, problem, types_of
from tests.acceptance.conftest import Caller, Serve, Settings
from tests.acceptance.gates import Gate
from tests.acceptance.model import SILENT, Model, calls
from tests.invariants import check_invariants
from tests.model_server import Reply

OVERFLOW = Reply.error(400, "This model's maximum context length is 8192 tokens.", code="context_length_exceeded")
LONG = "word " * 400  # some 500 tokens


async def conversation(client: Client, model: Model, thread_id: str, turns: int) -> None:
    for turn in range(turns):
        model.script(Reply(text=f"Answer {turn}."))
        run = await client.create_and_wait(agent=an_agent(), thread_id=thread_id, input=f"Question {turn}?")
        assert run["status"] == "completed"
    model.reset()


async def compacted(client: Client, thread_id: str, **body: object) -> Json:
    answer = await client.http.post(f"/threads/{thread_id}/compact", json=body or None)
    assert answer.status_code == 200, answer.text
    return answer.json()


def contents(messages: list[Json]) -> list[str]:
    return [message["content"] for message in messages]


async def test_a_thread_is_compacted_on_request_and_later_runs_see_the_summary(client: Client, model: Model) -> None:
    await conversation(client, model, "long", 4)
    model.script(Reply(text="They counted to four."))
    done = await compacted(client, "long", keep_last=3)
    assert done["summary"] == "They counted to four."
    assert done["messages_compacted"] == 5
    assert done["tokens_before"] > 0
    assert (done["model"], done["usage"]["llm_calls"]) == ("gpt-4o-mini", 1)
    assert done["cost_usd"] > 0
    asked = model.messages()
    assert "user: Question 0?" in asked[-1]["content"]
    assert "Answer 3." not in asked[-1]["content"]
    assert contents(await client.messages("long")) == ["Answer 2.", "Question 3?", "Answer 3."]
    page = await client.http.get("/threads/long/messages", params={"include_compacted": True})
    assert [message["compacted"] for message in page.json()["items"]] == [True] * 5 + [False] * 3
    model.script(Reply(text="Five."))
    await client.create_and_wait(agent=an_agent(), thread_id="long", input="And now?")
    seen = contents(model.messages())
    assert "They counted to four." in seen[-5]
    assert seen[-4:] == ["Answer 2.", "Question 3?", "Answer 3.", "And now?"]


async def test_a_thread_says_which_summary_stands_in_it_now(client: Client, model: Model) -> None:
    async def standing(thread_id: str) -> Json | None:
        return (await client.http.get(f"/threads/{thread_id}")).json()["compaction"]

    await conversation(client, model, "told", 3)
    assert await standing("told") is None
    seqs = [message["seq"] for message in await client.messages("told")]
    for text, keep_last, purge in (("They began.", 4, False), ("They went on.", 1, True)):
        model.script(Reply(text=text))
        await compacted(client, "told", keep_last=keep_last, purge=purge)
        told = await standing("told")
        assert told is not None
        assert (told["summary"], told["upto_seq"], told["purged"]) == (text, seqs[-keep_last - 1], purge)
        assert datetime.fromisoformat(told["created_at"]).utcoffset() == timedelta(0)
    await client.http.post("/threads/told/copy", json={"thread_id": "told-copy"})
    assert await standing("told-copy") == told
    assert all("compaction" not in thread for thread in (await client.http.get("/threads")).json()["items"])


async def test_the_summary_of_a_run_stands_in_its_thread(client: Client, model: Model) -> None:
    await conversation(client, model, "of-a-run", 3)
    model.script(OVERFLOW, Reply(text="They spoke."), Reply(text="Here I am."))
    run = await client.create_and_wait(agent=an_agent(), thread_id="of-a-run", input="Still there?")
    (event,) = of_type(await client.events(run["run_id"]), "thread_compacted")
    told = (await client.http.get("/threads/of-a-run")).json()["compaction"]
    assert (told["summary"], told["upto_seq"]) == ("They spoke.", event["data"]["upto_seq"])


async def test_a_short_thread_is_left_as_it_is_and_no_model_is_asked(client: Client, model: Model) -> None:
    await conversation(client, model, "short", 1)
    done = await compacted(client, "short")
    assert (done["summary"], done["messages_compacted"], done["model"]) == (None, 0, None)
    assert done["tokens_before"] == done["tokens_after"]
    assert model.requests() == []


async def test_what_is_purged_is_gone(client: Client, model: Model) -> None:
    await conversation(client, model, "purged", 2)
    model.script(Reply(text="They spoke."))
    await compacted(client, "purged", keep_last=1, purge=True)
    page = await client.http.get("/threads/purged/messages", params={"include_compacted": True})
    assert contents(page.json()["items"]) == ["Answer 1."]
    copied = await client.http.post("/threads/purged/copy", json={"thread_id": "purged-copy"})
    assert copied.status_code == 201
    model.script(Reply(text="Yes."))
    await client.create_and_wait(agent=an_agent(), thread_id="purged-copy", input="Go on.")
    assert "They spoke." in model.messages()[-3]["content"]
    refused = await client.http.post("/threads/purged/copy", json={"thread_id": "other", "up_to_seq": 2})
    assert problem(refused, 422, "validation_error")["errors"][0]["loc"] == ["body", "up_to_seq"]


async def test_a_thread_that_a_run_has_is_busy(client: Client, model: Model) -> None:
    await conversation(client, model, "busy", 2)
    model.script(SILENT)
    run = await client.create(agent=an_agent(), thread_id="busy", input="Wait.")
    await client.until(run["run_id"], "running")
    problem(await client.http.post("/threads/busy/compact", json={"keep_last": 1}), 409, "thread_busy")
    await client.steer("cancel", run["run_id"])


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        ({"keep_last": 0}, ["body", "keep_last"]),
        ({"model": "nobody/x"}, ["body", "model"]),
        ({"purge": "yes"}, ["body", "purge"]),
        ({"keep": 3}, ["body", "keep"]),
    ],
)
async def test_a_compaction_that_cannot_be_is_refused_by_field(
    client: Client, model: Model, body: Json, loc: list[str]
) -> None:
    await conversation(client, model, "refusing", 1)
    answer = await client.http.post("/threads/refusing/compact", json=body)
    assert problem(answer, 422, "validation_error")["errors"][0]["loc"] == loc
    problem(await client.http.post("/threads/nowhere/compact"), 404, "not_found")


async def test_a_model_that_does_not_write_leaves_the_thread_as_it_is(client: Client, model: Model) -> None:
    await conversation(client, model, "unwritten", 2)
    model.script(Reply.error(401, "no"))
    answer = await client.http.post("/threads/unwritten/compact", json={"keep_last": 1})
    assert "no" in problem(answer, 503, "unavailable")["detail"]
    assert answer.headers["Retry-After"]
    assert len(await client.messages("unwritten")) == 4


@pytest.mark.parametrize(
    ("thread_id", "reply", "why"),
    [
        ("refused", Reply(text="I cannot help with that.", finish_reason="refusal"), "refused"),
        ("cut-off", Reply(text="They spoke", finish_reason="length"), "cut off"),
        ("blown-up", Reply(text=LONG), "no shorter than what it stands for"),
    ],
)
async def test_an_answer_that_is_no_summary_purges_nothing(
    client: Client, model: Model, thread_id: str, reply: Reply, why: str
) -> None:
    await conversation(client, model, thread_id, 2)
    model.script(reply)
    answer = await client.http.post(f"/threads/{thread_id}/compact", json={"keep_last": 1, "purge": True})
    assert why in problem(answer, 503, "unavailable")["detail"]
    page = await client.http.get(f"/threads/{thread_id}/messages", params={"include_compacted": True})
    assert [message["compacted"] for message in page.json()["items"]] == [False] * 4


@pytest.mark.parametrize("messages_anew", [0, 4])
async def test_a_thread_that_is_deleted_while_its_summary_is_written_is_not_found(
    client: Client, model: Model, shared_database: asyncpg.Connection[Any], messages_anew: int
) -> None:
    """Seen to fail without the store's look at the row that it locks."""
    thread_id = f"deleted-{messages_anew}"
    await conversation(client, model, thread_id, 2)
    model.script(Reply(text="They spoke.", delay_s=0.5))
    body = {"keep_last": 1, "purge": True}
    work = asyncio.create_task(client.http.post(f"/threads/{thread_id}/compact", json=body))
    await model.asked()
    assert (await client.http.delete(f"/threads/{thread_id}")).status_code == 204
    for number in range(messages_anew):
        anew = {"role": "user", "content": f"Message {number}."}
        assert (await client.http.post(f"/threads/{thread_id}/messages", json=anew)).status_code == 201
    problem(await work, 404, "not_found")
    if messages_anew:
        assert len(await client.messages(thread_id)) == messages_anew
    await check_invariants(shared_database)


async def test_a_caller_who_hangs_up_ends_the_call_that_writes_the_summary(client: Client, model: Model) -> None:
    """Seen to fail without `while_connected` in the route."""
    await conversation(client, model, "left", 2)
    model.script(SILENT)
    work = asyncio.create_task(client.http.post("/threads/left/compact", json={"keep_last": 1}))
    await model.asked()
    work.cancel()
    await model.saw_hang_up()
    await model.idle()
    assert len(await client.messages("left")) == 4


async def test_a_replica_that_stops_breaks_a_summary_off_and_sends_its_caller_elsewhere(
    settings: Settings, serve: Serve, caller: Caller, model: Model
) -> None:
    """Seen to fail without the line in the replica's drain, and without the service's look at `_closing`."""
    leaving = serve(settings(SHUTDOWN_DELAY_S="600", SHUTDOWN_GRACE_S="3600")).ready()
    client = caller(leaving)
    await conversation(client, model, "stopping", 2)
    model.script(SILENT)
    work = asyncio.create_task(client.http.post("/threads/stopping/compact", json={"keep_last": 1}))
    await model.asked()
    leaving.terminate()
    answer = await work
    assert "shutting down" in problem(answer, 503, "unavailable")["detail"]
    assert answer.headers["Retry-After"]
    await model.idle()
    late = await client.http.post("/threads/stopping/compact", json={"keep_last": 1})
    assert "shutting down" in problem(late, 503, "unavailable")["detail"]
    assert len(model.requests()) == 1, "no model is asked any more"
    leaving.process.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(leaving.ended) == 0
    assert "Traceback" not in leaving.stderr()


async def test_what_is_appended_while_the_summary_is_written_stays(client: Client, model: Model) -> None:
    await conversation(client, model, "appended", 2)
    model.script(Reply(text="They spoke.", delay_s=0.5))
    work = asyncio.create_task(compacted(client, "appended", keep_last=1))
    await model.asked()
    for number in range(5):
        body = {"role": "user", "content": f"By the way {number}."}
        answer = await client.http.post("/threads/appended/messages", json=body)
        assert answer.status_code == 201
    await work
    assert contents(await client.messages("appended")) == ["Answer 1.", *(f"By the way {n}." for n in range(5))]


async def test_a_run_compacts_its_thread_where_it_passes_the_agent_s_bound(client: Client, model: Model) -> None:
    for role in ("user", "assistant"):
        await client.http.post("/threads/auto/messages", json={"role": role, "content": LONG})
    model.script(Reply(text="The user said words."), calls(("current_time", {})), Reply(text="It is late."))
    agent = an_agent(tools=["current_time"], auto_compact_at_tokens=1200)
    run = await client.create_and_wait(agent=agent, thread_id="auto", input=LONG)
    assert (run["status"], run["result"]["final_text"]) == ("completed", "It is late.")
    assert run["result"]["usage_aggregate"]["llm_calls"] == 3
    events = await client.events(run["run_id"])
    check_log(events, run)
    (told,) = of_type(events, "thread_compacted")
    assert told["data"]["reason"] == "token_limit"
    assert told["data"]["messages_compacted"] == 2
    assert told["data"]["tokens_after"] < told["data"]["tokens_before"]
    assert types_of(events).count("step_started") == run["result"]["state_snapshot"]["step"]
    assert types_of(events)[:3] == ["run_started", "step_started", "thread_compacted"]


async def test_the_provider_s_own_count_goes_before_an_estimate(client: Client, model: Model) -> None:
    for role in ("user", "assistant"):
        await client.http.post("/threads/counted/messages", json={"role": role, "content": LONG})
    asks = calls(("current_time", {}))
    counted = replace(asks, usage={"prompt_tokens": 3000, "completion_tokens": 10, "total_tokens": 3010})
    model.script(counted, Reply(text="They counted."), Reply(text="It is late."))
    agent = an_agent(tools=["current_time"], auto_compact_at_tokens=2000)
    run = await client.create_and_wait(agent=agent, thread_id="counted", input="What time is it?")
    assert (run["status"], run["result"]["final_text"]) == ("completed", "It is late.")
    events = await client.events(run["run_id"])
    assert [event["step"] for event in of_type(events, "thread_compacted")] == [2]
    called = {call["id"] for message in model.messages() for call in message.get("tool_calls") or []}
    answered = {message["tool_call_id"] for message in model.messages() if message["role"] == "tool"}
    assert called == answered, "no call is parted from its result"


async def test_a_run_whose_process_is_killed_while_it_compacts_compacts_again_and_goes_on(
    database_url: str, settings: Settings, serve: Serve, caller: Caller, model: Model
) -> None:
    environment = settings(LEASE_S="2", DATABASE_URL=database_url)
    first = serve(environment).ready()
    before = caller(first)
    await conversation(before, model, "killed", 3)
    model.script(OVERFLOW, SILENT)
    run_id = (await before.create(agent=an_agent(), thread_id="killed", input="Still there?"))["run_id"]
    await model.asked(2)
    first.kill()
    await model.idle()
    model.reset()
    model.script(Reply(text="They spoke."), Reply(text="Here I am."))
    client = caller(serve(environment).ready())
    run = await client.wait(run_id)
    assert (run["status"], run["attempt"], run["result"]["final_text"]) == ("completed", 2, "Here I am.")
    events = await client.events(run_id)
    check_log(events, run)
    assert types_of(events).count("thread_compacted") == 1
    assert len(await client.messages("killed")) < 8


async def test_a_conversation_that_the_provider_finds_too_long_is_compacted_and_asked_once_more(
    client: Client, model: Model
) -> None:
    await conversation(client, model, "overflow", 3)
    model.script(OVERFLOW, Reply(text="They spoke."), Reply(text="Here I am."))
    run = await client.create_and_wait(agent=an_agent(), thread_id="overflow", input="Still there?")
    assert (run["status"], run["result"]["final_text"]) == ("completed", "Here I am.")
    events = await client.events(run["run_id"])
    check_log(events, run)
    assert [event["data"]["reason"] for event in of_type(events, "thread_compacted")] == ["context_overflow"]
    assert any("They spoke." in content for content in contents(model.messages()))


async def test_a_summary_that_a_model_refuses_is_paid_for_and_tried_again_where_the_call_is_too_long(
    client: Client, model: Model
) -> None:
    for role in ("user", "assistant"):
        await client.http.post("/threads/retried/messages", json={"role": role, "content": LONG})
    refused = Reply(text="I cannot help with that.", finish_reason="refusal")
    model.script(refused, OVERFLOW, Reply(text="The user said words."), Reply(text="Here I am."))
    agent = an_agent(auto_compact_at_tokens=1200)
    run = await client.create_and_wait(agent=agent, thread_id="retried", input=LONG)
    assert (run["status"], run["result"]["final_text"]) == ("completed", "Here I am.")
    assert run["result"]["usage_aggregate"]["llm_calls"] == 3
    events = await client.events(run["run_id"])
    check_log(events, run)
    codes = [event["data"]["code"] for event in of_type(events, "warning")]
    assert codes == ["usage_estimated", "compaction_failed", "context_overflow"]
    assert [event["data"]["reason"] for event in of_type(events, "thread_compacted")] == ["context_overflow"]
    assert types_of(events).count("step_started") == 1


@pytest.mark.parametrize("purge", [False, True])
async def test_an_interrupted_run_goes_on_though_a_summary_stands_for_its_open_call(
    client: Client, model: Model, gate: Gate, purge: bool
) -> None:
    """Seen to fail where only the messages tell which calls are open: the run waited for nothing, without end."""
    thread_id = f"open-{purge}"
    model.script(calls(("read", {"gate": gate.name})))
    run_id = (await client.create(agent=an_agent(tools=["read"]), thread_id=thread_id, input=LONG))["run_id"]
    await gate.entered()
    await client.steer("interrupt", run_id)
    meanwhile = {"role": "user", "content": "Meanwhile."}
    assert (await client.http.post(f"/threads/{thread_id}/messages", json=meanwhile)).status_code == 201
    model.script(Reply(text="They spoke."))
    await compacted(client, thread_id, keep_last=1, purge=purge)
    gate.open()
    model.script(Reply(text="Read."))
    await client.steer("resume", run_id)
    run = await client.wait(run_id)
    assert (run["status"], run["result"]["final_text"]) == ("completed", "Read.")


async def test_a_conversation_that_stays_too_long_fails_and_says_so(client: Client, model: Model) -> None:
    await conversation(client, model, "hopeless", 3)
    model.script(OVERFLOW, Reply(text="They spoke."), OVERFLOW)
    run = await client.create_and_wait(agent=an_agent(), thread_id="hopeless", input="Still there?")
    assert (run["status"], run["error"]["code"]) == ("failed", "context_overflow")
    assert "maximum context length is 8192" in run["error"]["message"]
    assert "was compacted" in run["error"]["message"]
    assert len(model.requests()) == 3


async def test_a_first_message_that_is_too_long_fails_at_once(client: Client, model: Model) -> None:
    model.script(OVERFLOW)
    run = await client.create_and_wait(agent=an_agent(), input=LONG)
    assert (run["status"], run["error"]["code"]) == ("failed", "context_overflow")
    assert "nothing before what has to stay" in run["error"]["message"]
    assert len(model.requests()) == 1


async def test_a_fork_from_before_a_compaction_has_the_messages_and_one_from_after_it_the_summary(
    client: Client, model: Model
) -> None:
    await conversation(client, model, "forked", 2)
    first = (await client.http.get("/threads/forked/runs")).json()["items"][-1]
    model.script(Reply(text="They spoke."))
    await compacted(client, "forked", keep_last=1)
    last = (await client.http.get("/threads/forked/runs")).json()["items"][0]
    for source, told in ((first, "Question 0?"), (last, "They spoke.")):
        model.script(Reply(text="Forked."))
        answer = await client.http.post(f"/runs/{source['run_id']}/fork", json={"input": "Otherwise?"})
        assert answer.status_code == 202, answer.text
        assert (await client.wait(answer.json()["run_id"]))["status"] == "completed"
        assert any(told in content for content in contents(model.messages()))
