"""Answers put together by hand are what the document says."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import orjson
import pytest

from app.api.schemas.agent import agent_object, tool_object
from app.api.schemas.checkpoint import checkpoint_detail_object
from app.api.schemas.interaction import interaction_object, receipt_object
from app.api.schemas.run import run_json, run_object
from app.api.schemas.thread import message_object, thread_detail_object, thread_object
from app.engine.agent import AgentDefinition
from app.engine.effects import ToolEffect
from app.engine.errors import RunError
from app.engine.events import Event, EventType, StoredEvent, encode
from app.engine.interactions import Answer, Decision, InteractionKind, InteractionRecord, InteractionStatus
from app.engine.messages import Message, Role, ToolCall
from app.engine.records import ForkedFrom, Stimulated, SubagentExecution
from app.engine.state import RunState
from app.engine.status import RunStatus
from app.engine.tools import ToolSource, ToolSpec
from app.engine.usage import Usage
from app.services.agents import AgentRecord
from app.services.run_queries import CheckpointDetail, CheckpointRecord
from app.services.threads import MessageRecord, ThreadDetail, ThreadRecord, ThreadSummary
from tests.unit.api.records import CALL, MORNING, RUN_ID, a_finished_run, a_run

Check = Callable[[str, object], None]


def _values(value: object) -> Any:
    return orjson.loads(orjson.dumps(value))


def _question(**fields: Any) -> InteractionRecord:
    asked: dict[str, Any] = {
        "interaction_id": "019aa3f0-5b6e-7c31-9d0c-2f4b8a6e1d59",
        "run_id": RUN_ID,
        "step": 1,
        "call_index": 0,
        "kind": InteractionKind.APPROVAL,
        "status": InteractionStatus.PENDING,
        "tool_name": "refund",
        "tool_call_id": "call_1",
        "arguments": '{"amount": 3.0}',
        "prompt": "May helper call refund?",
        "reason": None,
        "answer": None,
        "expires_at": MORNING,
        "created_at": MORNING,
        "resolved_at": None,
    }
    return InteractionRecord(**{**asked, **fields})


def test_a_question_is_what_the_document_says(check: Check) -> None:
    shown = _values(interaction_object(_question()))
    check("Interaction", shown)
    assert (shown["arguments"], shown["status"]) == ({"amount": 3.0}, "pending")
    assert [shown[name] for name in ("decision", "value", "decided_by", "resolved_at")] == [None] * 4


def test_a_decided_question_tells_the_decision(check: Check) -> None:
    answer = Answer(Decision.APPROVE, value='[1.0, {"a": null}]', reason="fine", by="ann")
    question = _question(
        kind=InteractionKind.INPUT, status=InteractionStatus.RESOLVED, answer=answer, resolved_at=MORNING, reason="big"
    )
    shown = _values(interaction_object(question))
    check("Interaction", shown)
    assert (shown["decision"], shown["value"], shown["decided_by"]) == ("approve", [1.0, {"a": None}], "ann")
    assert (shown["reason"], shown["resolved_at"]) == ("big", "2026-01-31T08:00:00.000000Z")


@pytest.mark.parametrize("text", ["{amount", "[1]", "3", '"x"', ""])
def test_arguments_that_are_no_object_are_shown_as_the_model_wrote_them(check: Check, text: str) -> None:
    shown = _values(interaction_object(_question(arguments=text)))
    check("Interaction", shown)
    assert shown["arguments"] == text


def test_a_question_about_a_model_call_names_no_tool(check: Check) -> None:
    shown = _values(interaction_object(_question(tool_name=None, tool_call_id=None, arguments=None)))
    check("Interaction", shown)
    assert shown["arguments"] is None


def test_a_receipt_is_what_the_document_says(check: Check) -> None:
    shown = _values(receipt_object("call_1", Stimulated(RUN_ID, RunStatus.QUEUED)))
    check("ToolResultReceipt", shown)
    assert shown == {"run_id": RUN_ID, "tool_call_id": "call_1", "run_status": "queued", "accepted": True}


def test_only_a_run_that_waits_says_what_for(check: Check) -> None:
    waiting = ({"kind": "child_run", "id": "c"}, {"kind": "interaction", "id": "i"})
    shown = _values(run_object(a_run(status=RunStatus.WAITING, waiting_for=waiting)))
    check("Run", shown)
    assert shown["waiting_for"] == list(waiting)
    assert _values(run_object(a_run()))["waiting_for"] == []


def test_delegations_are_in_the_result(check: Check) -> None:
    ended = SubagentExecution("researcher", "c", RunStatus.DEGRADED, "text", None, 12.5, Usage(1, 2, 3))
    stopped = SubagentExecution("writer", "d", RunStatus.CANCELLED, None, "not needed", None, Usage())
    shown = orjson.loads(
        run_json(a_finished_run(subagent_executions=(ended, stopped), agent_depth=1, agent_path="a>b"))
    )
    check("Run", shown)
    executions = shown["result"]["subagent_executions"]
    assert [(each["state"], each["success"]) for each in executions] == [("degraded", True), ("cancelled", False)]


@pytest.mark.parametrize("status", list(RunStatus))
def test_a_run_in_every_status_is_what_the_document_says(check: Check, status: RunStatus) -> None:
    run = a_run(status=status, tool_executions=(CALL,), user_id="u", parent_run_id=RUN_ID)
    shown = orjson.loads(run_json(run))
    check("Run", shown)
    assert (shown["result"] is not None) is status.terminal
    assert (shown["created_at"], shown["finished_at"]) == ("2026-01-31T08:00:00.000000Z", None)


@pytest.mark.parametrize("checkpoint_id", ["6", None])
def test_a_fork_says_where_it_comes_from(check: Check, checkpoint_id: str | None) -> None:
    shown = _values(run_object(a_run(forked_from=ForkedFrom(RUN_ID, checkpoint_id))))
    check("Run", shown)
    assert shown["forked_from"] == {"run_id": RUN_ID, "checkpoint_id": checkpoint_id}


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
        ((), []),
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
    thread = ThreadRecord("t", {}, RUN_ID, MORNING, MORNING)
    check("Thread", _values(thread_object(thread)))
    check("ThreadDetail", _values(thread_detail_object(ThreadDetail(thread, None))))
    summary = ThreadSummary(3, "They spoke.", True, MORNING)
    check("ThreadDetail", _values(thread_detail_object(ThreadDetail(thread, summary))))


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
    spec = ToolSpec("files__read", "Reads.", {"type": "object"}, ToolEffect.READ_ONLY, ToolSource.MCP)
    shown = _values(tool_object(spec))
    check("Tool", shown)
    assert (shown["effect"], shown["source"]) == ("read_only", "mcp")


def test_an_event_of_a_type_that_the_document_does_not_know_fits_it(check: Check) -> None:
    line = StoredEvent(1, "x", MORNING, encode(Event(EventType.STEP_STARTED, 1, {"step": 1}), a_run().identity)).line()
    event = orjson.loads(line)
    check("Event", event)
    check("Event", {**event, "type": "from_the_future", "data": {"anything": 1}, "more": 1})
    with pytest.raises(ValueError, match="valid under"):
        check("Event", {**event, "data": {}})
