from __future__ import annotations

from typing import Any

import pytest

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.messages import Message, Role
from app.engine.model import (
    FinishReason,
    ModelRequest,
    ModelResponse,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
)
from app.engine.usage import Usage
from app.llm.completion import Completion

REQUEST = ModelRequest("openai/m", [Message(Role.USER, "x" * 400)])
CALL = {"index": 0, "id": "a", "function": {"name": "add", "arguments": "{}"}}


def _completion() -> Completion:
    return Completion(REQUEST, provider="openai", model="m")


def _chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish}], **more}


def _response(*chunks: dict[str, Any]) -> ModelResponse:
    completion = _completion()
    for chunk in chunks:
        completion.take(chunk)
    return completion.response()


@pytest.mark.parametrize(
    ("reason", "meaning"),
    [
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("max_tokens", FinishReason.LENGTH),
        ("content_filter", FinishReason.CONTENT_FILTER),
        ("a new one", FinishReason.STOP),
        ("tool_calls", FinishReason.STOP),
    ],
)
def test_finish_reasons_without_calls(reason: str, meaning: FinishReason) -> None:
    assert _response(_chunk({"content": "x"}, reason)).finish_reason is meaning


@pytest.mark.parametrize("reason", ["tool_calls", "function_call", "stop", "tool_use", "a new one"])
def test_an_answer_with_calls_ends_in_tool_calls_whatever_the_server_says(reason: str) -> None:
    assert _response(_chunk({"tool_calls": [CALL]}, reason)).finish_reason is FinishReason.TOOL_CALLS


def test_calls_cut_off_by_the_length_stay_cut_off() -> None:
    assert _response(_chunk({"tool_calls": [CALL]}, "length")).finish_reason is FinishReason.LENGTH


def test_deltas_become_events_in_their_order() -> None:
    completion = _completion()
    events = [
        *completion.take(_chunk({"role": "assistant", "content": ""})),
        *completion.take(_chunk({"reasoning_content": "hm"})),
        *completion.take(_chunk({"reasoning": "so"})),
        *completion.take(_chunk({"content": "Hi"})),
        *completion.take(_chunk({"content": [{"type": "text", "text": " you"}]})),
        *completion.take(_chunk({"content": None, "tool_calls": [CALL]})),
    ]
    assert events == [
        ReasoningDelta("hm"),
        ReasoningDelta("so"),
        TextDelta("Hi"),
        TextDelta(" you"),
        ToolCallDelta(0, "a", "add", "{}"),
    ]


def test_a_plain_completion_is_one_chunk() -> None:
    message = {"role": "assistant", "content": "Hi", "tool_calls": [CALL]}
    completion = {"model": "m-1", "choices": [{"message": message, "finish_reason": "tool_calls"}]}
    response = _response(completion)
    assert (response.text, response.tool_calls[0].name, response.model) == ("Hi", "add", "m-1")


def test_the_old_function_call_is_a_tool_call() -> None:
    response = _response(
        _chunk({"function_call": {"name": "add", "arguments": '{"x"'}}),
        _chunk({"function_call": {"arguments": ":1}"}}, "function_call"),
    )
    assert [(c.name, c.arguments) for c in response.tool_calls] == [("add", '{"x":1}')]


def test_a_refusal_is_text() -> None:
    assert _response(_chunk({"content": None, "refusal": "I cannot."}, "stop")).text == "I cannot."


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5}, Usage(1, 10, 5)),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            Usage(1, 10, 5, 4, 3),
        ),
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_cache_hit_tokens": 6}, Usage(1, 10, 5, 6)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": None}, Usage(1, 10, 5)),
    ],
)
def test_usage_is_read(usage: dict[str, Any], counts: Usage) -> None:
    response = _response(_chunk({"content": "x"}, "stop"), {"choices": [], "usage": usage})
    assert response.usage == counts
    assert not response.usage_estimated


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None}, {"prompt_tokens": 0, "completion_tokens": 0}])
def test_usage_that_is_missing_is_estimated_and_said_so(usage: Any) -> None:
    response = _response(_chunk({"content": "y" * 40}, "stop", usage=usage))
    assert response.usage_estimated
    assert response.usage == Usage(1, 104, 10)


def test_usage_inside_the_last_chunk_counts() -> None:
    response = _response(_chunk({"content": "x"}, "stop", usage={"prompt_tokens": 3, "completion_tokens": 2}))
    assert response.usage == Usage(1, 3, 2)


@pytest.mark.parametrize("chunk", [[], "text", 3, None])
def test_a_chunk_that_is_no_object_is_an_invalid_response(chunk: object) -> None:
    with pytest.raises(ModelError) as caught:
        _completion().take(chunk)
    assert caught.value.code is ModelErrorCode.INVALID_RESPONSE


@pytest.mark.parametrize(
    "chunk",
    [
        {},
        {"choices": []},
        {"choices": None},
        {"choices": [None]},
        {"choices": [{}]},
        {"type": "ping"},
        {"choices": {}},
    ],
)
def test_a_chunk_that_says_nothing_is_passed_over(chunk: object) -> None:
    assert _completion().take(chunk) == []


def test_an_answer_without_finish_reason_is_an_invalid_response() -> None:
    with pytest.raises(ModelError, match="without a finish_reason") as caught:
        _response(_chunk({"content": "Hi"}))
    assert caught.value.code is ModelErrorCode.INVALID_RESPONSE


def test_a_call_without_a_name_is_an_invalid_response() -> None:
    with pytest.raises(ModelError, match="without a name"):
        _response(_chunk({"tool_calls": [{"index": 0, "id": "a", "function": {"arguments": "{}"}}]}, "tool_calls"))


def test_finish_reason_error_is_the_providers_error() -> None:
    with pytest.raises(ModelError, match="upstream is down") as caught:
        _response(_chunk({"content": ""}, "error", error={"code": 502, "message": "upstream is down"}))
    assert caught.value.code is ModelErrorCode.SERVER_ERROR
