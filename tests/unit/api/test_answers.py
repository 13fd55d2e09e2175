"""Answers put together by hand are what the document says."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import orjson
import pytest

from app.api.schemas.agent import agent_object, tool_object
from app.api.schemas.checkpoint import checkpoint_detail_object
from app.api.schemas.run import run_json, run_object
from app.api.schemas.thread import message_object, thread_object
from app.engine.agent import AgentDefinition
from app.engine.errors import RunError
from app.engine.events import Event, EventType, StoredEvent, encode
from app.engine.messages import Message, Role, ToolCall
from app.engine.state import RunState
from app.engine.status import RunStatus
from app.engine.tools import ToolEffect, ToolSpec
from app.services.agents import AgentRecord
from app.services.run_queries import CheckpointDetail, CheckpointRecord
from app.services.threads import MessageRecord, ThreadRecord
from tests.unit.api.records import CALL, MORNING, RUN_ID, a_finished_run, a_run

Check = Callable[[str, object], None]


def _values(value: object) -> Any:
    return orjson.loads(orjson.dumps(value))


@pytest.mark.parametrize("status", list(RunStatus))
def test_a_run_in_every_status_is_what_the_document_says(check: Check, status: RunStatus) -> None:
    run = a_run(status=status, tool_executions=(CALL,), user_id="u", parent_run_id=RUN_ID)
    shown = orjson.loads(run_json(run))
    check("Run", shown)
    assert (shown["result"] is not None) is status.terminal
    assert (shown["created_at"], shown["finished_at"]) == ("2026-01-31T08:00:00.000000Z", None)


def test_a_finished_run_has_its_result(check: Check) -> None:
    run = a_finished_run(tool_executions=(CALL,), cost_usd=Decimal("0.10"))
    shown = orjson.loads(run_json(run))
    check("Run", shown)
    result = shown["result"]
    assert (result["final_text"], result["state"], result["total_cost_usd"]) == ("hi", "completed", 0.1)
    assert result["tool_executions"][0]["output"] == {"sum": 3.0}
    assert b'"output":{"sum": 3.0}' in run_json(run)


def test_lists_have_no_results() -> None:
    assert run_object(a_finished_run(), with_result=False)["result"] is None


def test_a_failed_run_says_why(check: Check) -> None:
    error = RunError("rate_limited", "try later", retryable=True)
    shown = orjson.loads(run_json(a_finished_run(status=RunStatus.FAILED, error=error)))
    check("Run", shown)
    assert (
        shown["error"]
        == shown["result"]["error"]
        == {
            "code": "rate_limited",
            "message": "try later",
            "retryable": True,
        }
    )


@pytest.mark.parametrize(
    ("messages", "shown"),
    [
        ((Message(Role.USER, "hi"),), "hi"),
        ((Message(Role.SYSTEM, "hi"),), [{"role": "system", "content": "hi"}]),
        (
            (Message(Role.USER, [{"type": "text", "text": "hi"}]),),
            [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        ),
        (
            (Message(Role.USER, "a"), Message(Role.USER, "b")),
            [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
        ),
    ],
)
def test_the_input_is_shown_as_it_is_written(check: Check, messages: tuple[Message, ...], shown: object) -> None:
    run = _values(run_object(a_run(input=messages)))
    check("Run", run)
    assert run["input"] == shown


def test_a_thread_is_what_the_document_says(check: Check) -> None:
    check("Thread", _values(thread_object(ThreadRecord("t", {"a": "b"}, None, MORNING, MORNING))))
    check("Thread", _values(thread_object(ThreadRecord("t", {}, RUN_ID, MORNING, MORNING))))


def test_messages_show_calls_as_json_where_they_are_json(check: Check) -> None:
    calls = (ToolCall("1", "add", '{"a": 1.0}'), ToolCall("2", "add", "{a"))
    shown = _values(message_object(MessageRecord(3, "msg_x_3", RUN_ID, Message(Role.ASSISTANT, "", calls), MORNING)))
    check("Message", shown)
    assert [call["arguments"] for call in shown["tool_calls"]] == [{"a": 1.0}, "{a"]
    result = Message(Role.TOOL, "3", tool_call_id="1")
    check("Message", _values(message_object(MessageRecord(4, "msg_x_4", None, result, MORNING))))


def test_a_checkpoint_is_what_the_document_says(check: Check) -> None:
    state = RunState(cost_usd=Decimal("0.5"), tool_calls=2).as_checkpoint()
    record = CheckpointRecord("6", 1, "call_model", 2, state, MORNING)
    message = MessageRecord(1, "msg_x_1", None, Message(Role.USER, "hi"), MORNING)
    shown = _values(checkpoint_detail_object(CheckpointDetail(record, (message,))))
    check("CheckpointWithState", shown)
    assert (shown["counters"]["tool_calls"], shown["counters"]["cost_usd"], shown["state"]["cost_usd"]) == (2, 0.5, 0.5)


def test_an_unknown_cost_stays_unknown(check: Check) -> None:
    state = RunState(cost_usd=None).as_checkpoint()
    record = CheckpointRecord("1", 1, "finish", 0, state, MORNING)
    shown = _values(checkpoint_detail_object(CheckpointDetail(record, ())))
    check("CheckpointWithState", shown)
    assert shown["counters"]["cost_usd"] is None


def test_agents_and_tools_are_what_the_document_says(check: Check) -> None:
    definition = AgentDefinition.model_validate({"name": "a", "model": "demo/echo", "limits": {"max_steps": 2}})
    shown = _values(agent_object(AgentRecord("a", 1, "file", MORNING, definition)))
    check("Agent", shown)
    assert shown["definition"]["limits"]["max_steps"] == 2
    check("Tool", _values(tool_object(ToolSpec("add", "Adds.", {"type": "object"}, ToolEffect.IDEMPOTENT))))


def test_an_event_of_a_type_that_the_document_does_not_know_fits_it(check: Check) -> None:
    line = StoredEvent(1, "x", MORNING, encode(Event(EventType.STEP_STARTED, 1, {"step": 1}), a_run().identity)).line()
    event = orjson.loads(line)
    check("Event", event)
    check("Event", {**event, "type": "from_the_future", "data": {"anything": 1}, "more": 1})
    with pytest.raises(ValueError, match="valid under"):
        check("Event", {**event, "data": {}})
