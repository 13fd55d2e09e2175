"""Answers that must fit a JSON schema, over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance.client import Client, an_agent, check_log, of_type, types_of
from tests.acceptance.model import Model, calls
from tests.model_server import Reply

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["city", "people"],
    "additionalProperties": False,
}
GOOD = '{"city": "Bern", "people": 134794}'


async def test_an_answer_that_fits_is_the_result(client: Client, model: Model) -> None:
    model.script(Reply(text=GOOD))
    run = await client.create_and_wait(agent=an_agent(response_schema=SCHEMA), input="How large is Bern?")
    assert (run["status"], run["result"]["final_text"]) == ("completed", GOOD)
    assert run["result"]["final_structured"] == {"city": "Bern", "people": 134794}
    assert (await client.get(run["run_id"]))["result"] == run["result"]


async def test_a_wrong_answer_is_corrected_as_it_streams_and_leaves_no_trace_in_the_thread(
    client: Client, model: Model
) -> None:
    model.script(Reply(text=["Bern has ", "many people."]), Reply(text='{"city": "Bern"}'), Reply(text=GOOD))
    run = await client.create_and_wait(agent=an_agent(), response_schema=SCHEMA, input="How large is Bern?")
    assert (run["status"], run["result"]["final_structured"]["people"]) == ("completed", 134794)
    assert run["result"]["usage_aggregate"]["llm_calls"] == 3
    events = await client.events(run["run_id"])
    check_log(events, run)
    told = [event["data"] for event in of_type(events, "warning") if event["data"]["code"] != "price_unknown"]
    assert [warning["code"] for warning in told] == ["structured_output_invalid"] * 2
    assert told[0]["problem"].startswith("it is not valid JSON")
    assert told[1] == {
        "code": "structured_output_invalid", "problem": "people: required, but missing", "turn": 2
    }  # fmt: skip
    assert "".join(event["data"]["delta"] for event in of_type(events, "text_delta")).endswith(GOOD)
    assert "people: required, but missing" in model.messages()[-1]["content"]
    messages = await client.messages(run["thread_id"])
    assert [message["content"] for message in messages] == ["How large is Bern?", GOOD]


async def test_tools_may_be_called_on_the_way_to_the_answer(client: Client, model: Model) -> None:
    model.script(calls(("current_time", {})), Reply(text=GOOD))
    agent = an_agent(response_schema=SCHEMA, tools=["current_time"])
    run = await client.create_and_wait(agent=agent, input="How large is Bern?")
    assert (run["status"], run["result"]["final_structured"]["city"]) == ("completed", "Bern")


async def test_an_answer_that_stays_wrong_fails_the_run(client: Client, model: Model) -> None:
    model.script(*[Reply(text="No.")] * 3)
    run = await client.create_and_wait(agent=an_agent(response_schema=SCHEMA), input="How large is Bern?")
    assert (run["status"], run["error"]["code"]) == ("failed", "invalid_structured_output")
    assert run["result"]["final_structured"] is None
    assert len(model.requests()) == 3
    assert types_of(await client.events(run["run_id"]))[-1] == "run_failed"


async def test_an_answer_that_was_cut_off_is_told_apart_and_not_asked_for_again(client: Client, model: Model) -> None:
    model.script(Reply(text='{"city": "Be', finish_reason="length"))
    run = await client.create_and_wait(
        agent=an_agent(response_schema=SCHEMA, llm_failure_policy="degrade"), input="How large is Bern?"
    )
    assert (run["status"], run["result"]["error"]["code"]) == ("degraded", "truncated_response")
    assert run["result"]["final_text"] == '{"city": "Be'
    assert len(model.requests()) == 1


@pytest.mark.parametrize(
    ("schema", "told"), [({}, "object"), ({"type": "object", "properties": {"a": {"type": "x"}}}, "not valid")]
)
async def test_a_schema_that_cannot_be_used_is_refused_by_name(
    client: Client, schema: dict[str, Any], told: str
) -> None:
    for body, loc in (
        ({"agent": an_agent(response_schema=schema)}, ["body", "agent", "response_schema"]),
        ({"agent": an_agent(), "response_schema": schema}, ["body", "response_schema"]),
    ):
        answer = await client.http.post("/runs", json={**body, "input": "x"})
        assert answer.status_code == 422
        (error,) = answer.json()["errors"]
        assert error["loc"] == loc
        assert told in error["msg"]
