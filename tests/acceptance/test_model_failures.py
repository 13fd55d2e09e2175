"""What a run makes of a model that fails, in whatever way."""

from __future__ import annotations

import pytest

from tests.acceptance.client import Client, Json, an_agent, check_log, of_type, types_of
from tests.acceptance.model import Model, calls
from tests.model_server import Reply


async def warnings_of(client: Client, run: Json) -> list[str]:
    events = await client.events(run["run_id"])
    check_log(events, run)
    return [event["data"]["code"] for event in of_type(events, "warning")]


async def test_a_rate_limit_is_waited_for_as_long_as_the_provider_asks(client: Client, model: Model) -> None:
    model.script(Reply.error(429, "slow down", headers={"Retry-After": "1"}), Reply(text="Now."))
    run = await client.create_and_wait(agent=an_agent(), input="Go.")
    assert (run["status"], run["result"]["final_text"]) == ("completed", "Now.")
    assert len(model.requests()) == 2
    (completed,) = of_type(await client.events(run["run_id"]), "llm_completed")
    assert completed["data"]["latency_ms"] >= 1000
    assert run["result"]["usage_aggregate"]["llm_calls"] == 1


async def test_a_provider_that_fails_three_times_fails_the_run_with_its_code(client: Client, model: Model) -> None:
    model.script(*[Reply.error(500, "out of order")] * 3)
    run = await client.create_and_wait(agent=an_agent(), input="Go.")
    assert (run["status"], run["error"]["code"], run["error"]["retryable"]) == ("failed", "provider_error", True)
    assert "out of order" in run["error"]["message"]
    assert run["result"]["final_text"] == run["error"]["message"]
    assert run["result"]["error"] == run["error"]
    assert len(model.requests()) == 3
    events = await client.events(run["run_id"])
    check_log(events, run)
    assert types_of(events) == ["run_started", "step_started", "llm_called", "run_failed"]
    assert events[-1]["data"]["code"] == "provider_error"


@pytest.mark.parametrize(
    ("status", "code"), [(401, "authentication_failed"), (400, "invalid_model_request"), (404, "model_not_found")]
)
async def test_what_trying_again_cannot_help_is_not_tried_again(
    client: Client, model: Model, status: int, code: str
) -> None:
    model.script(Reply.error(status, "no, not with a-key"))
    run = await client.create_and_wait(agent=an_agent(), input="Go.")
    assert (run["status"], run["error"]["code"], run["error"]["retryable"]) == ("failed", code, False)
    assert len(model.requests()) == 1
    assert "a-key" not in run["error"]["message"]


@pytest.mark.parametrize("reset", [False, True])
async def test_an_answer_that_breaks_off_is_begun_anew_and_its_text_is_void(
    client: Client, model: Model, reset: bool
) -> None:
    broken = Reply(text=["This ", "is ", "lost "], chunk_delay_s=0.1, cut_after=3, reset=reset)
    model.script(broken, Reply(text="This stands."))
    run = await client.create_and_wait(agent=an_agent(), input="Go.")
    assert (run["status"], run["result"]["final_text"], run["attempt"]) == ("completed", "This stands.", 1)
    events = await client.events(run["run_id"])
    check_log(events, run)
    warning, estimate = of_type(events, "warning")
    assert (warning["data"]["code"], estimate["data"]["code"]) == ("step_restarted", "usage_estimated")
    from_seq = warning["data"]["from_seq"]
    deltas = of_type(events, "text_delta")
    void = [event for event in deltas if from_seq < event["seq"] < warning["seq"]]
    assert "".join(event["data"]["delta"] for event in void).startswith("This is ")
    valid = [event for event in deltas if event not in void]
    assert "".join(event["data"]["delta"] for event in valid) == "This stands."


async def test_an_answer_without_an_end_is_no_answer(client: Client, model: Model) -> None:
    model.script(*[Reply(text="And then", finish_reason=None, usage=None, done=False)] * 3)
    run = await client.create_and_wait(agent=an_agent(), input="Go.")
    assert (run["status"], run["error"]["code"]) == ("failed", "invalid_response")
    assert len(model.requests()) == 3
    assert await warnings_of(client, run) == ["step_restarted"] * 2 + ["usage_estimated"] * 3


async def test_an_empty_answer_is_named_and_not_taken_for_one(client: Client, model: Model) -> None:
    model.script(Reply(text=""))
    run = await client.create_and_wait(agent=an_agent(), input="Go.")
    assert (run["status"], run["error"]["code"]) == ("failed", "empty_response")
    assert await warnings_of(client, run) == ["empty_response"]


async def test_a_truncated_answer_is_named_and_kept(client: Client, model: Model) -> None:
    model.script(Reply(text="It goes on and", finish_reason="length"))
    run = await client.create_and_wait(agent=an_agent(), input="Go.")
    assert (run["status"], run["error"]["code"]) == ("degraded", "truncated_response")
    assert run["result"]["final_text"] == "It goes on and"
    assert await warnings_of(client, run) == ["truncated_response"]


async def test_a_failure_degrades_a_run_whose_agent_says_so_to_the_best_text_it_had(
    client: Client, model: Model
) -> None:
    model.script(calls(("lookup", {"word": "a"}), text="So far, so good."), Reply.error(400, "no more"))
    run = await client.create_and_wait(agent=an_agent(llm_failure_policy="degrade"), input="Go.")
    assert (run["status"], run["result"]["final_text"]) == ("degraded", "So far, so good.")
    assert run["error"]["code"] == run["result"]["error"]["code"] == "invalid_model_request"
    events = await client.events(run["run_id"])
    assert (events[-1]["type"], events[-1]["data"]["state"]) == ("run_completed", "degraded")


async def test_an_unknown_price_and_a_usage_that_was_not_told_are_said_so(client: Client, model: Model) -> None:
    model.script(Reply(text="For free?", usage=None))
    run = await client.create_and_wait(agent=an_agent(model="openai/nobody-knows-me"), input="Go.")
    assert (run["status"], run["result"]["total_cost_usd"]) == ("completed", None)
    assert run["result"]["usage_aggregate"]["total_tokens"] > 0
    assert sorted(await warnings_of(client, run)) == ["price_unknown", "usage_estimated"]


@pytest.mark.parametrize(("policy", "status"), [("continue", "completed"), ("degrade", "degraded"), ("fail", "failed")])
async def test_a_tool_that_fails_does_to_the_run_what_its_agent_says(
    client: Client, model: Model, policy: str, status: str
) -> None:
    model.script(calls(("fail", {"reason": "no paper"}), ("lookup", {"word": "a"})), Reply(text="I did what I could."))
    run = await client.create_and_wait(agent=an_agent(tool_failure_policy=policy), input="Go.")
    assert run["status"] == status
    failed, fine = run["result"]["tool_executions"]
    assert (failed["success"], failed["output"], "no paper" in failed["error"]) == (False, None, True)
    assert (fine["success"], fine["error"]) == (True, None)
    assert (run["error"] and run["error"]["code"]) == (None if policy == "continue" else "tool_failed")
    if policy != "fail":
        assert "no paper" in model.messages()[-2]["content"]


async def test_a_model_call_gives_up_on_a_silent_provider(client: Client, model: Model) -> None:
    impatient = {"retry": {"max_attempts": 2}, "timeout": {"first_byte_s": 0.3, "between_chunks_s": 0.3}}
    model.script(Reply(first_chunk_delay_s=60), Reply(delay_s=60))
    run = await client.create_and_wait(agent=an_agent(model_policies=impatient), input="Go.")
    assert (run["status"], run["error"]["code"]) == ("failed", "model_timeout")
    await model.saw_hang_up(2)


async def test_what_no_row_can_hold_in_a_tools_name_or_id_ends_no_run(client: Client, model: Model) -> None:
    call = {"id": "call\0 1", "name": "look\0up", "arguments": {}}
    model.script(Reply(text="", tool_calls=[call], usage={"prompt_tokens": 2**63, "completion_tokens": 7}), Reply())
    run = await client.create_and_wait(agent=an_agent(), input="Go.")
    assert (run["status"], run["result"]["final_text"]) == ("completed", "Hello.")
    (execution,) = run["result"]["tool_executions"]
    assert (execution["tool_name"], execution["tool_call_id"], execution["success"]) == (
        "look\ufffdup",
        "call\ufffd 1",
        False,
    )


async def test_an_answer_that_goes_on_for_ever_is_given_up(client: Client, model: Model) -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "on " * 20_000}, "finish_reason": None}]}
    model.script(Reply(events=[chunk], endless=True))
    run = await client.create_and_wait(agent=an_agent(model_policies={"retry": {"max_attempts": 1}}), input="Go.")
    assert (run["status"], run["error"]["code"]) == ("failed", "invalid_response")
    assert "longer than 16 MiB" in run["error"]["message"]
    await model.saw_hang_up()
