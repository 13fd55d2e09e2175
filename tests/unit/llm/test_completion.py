from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from typing import Any

import pytest

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.messages import Message, Role, ToolCall
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


@pytest.mark.parametrize("absurd", [2**63, 10**30, -(2**70), float("inf"), float("nan")])
def test_usage_that_no_call_can_have_is_missing(absurd: float) -> None:
    usage = {"prompt_tokens": absurd, "completion_tokens": absurd}
    assert _response(_chunk({"content": "y" * 40}, "stop"), {"usage": usage}).usage_estimated
    details = {"prompt_tokens_details": {"cached_tokens": absurd}, "completion_tokens_details": {"reasoning_tokens": 1}}
    given = _response(_chunk({"content": "y"}, "stop", usage={"prompt_tokens": 7, "completion_tokens": 5, **details}))
    assert given.usage == Usage(llm_calls=1, input_tokens=7, output_tokens=5, reasoning_tokens=1)


def test_halves_of_surrogate_pairs_are_replaced_wherever_they_stand() -> None:
    call = {"index": 0, "id": "a\ud800", "function": {"name": "add\udfff", "arguments": '{"x": "\udc00"}'}}
    response = _response(
        _chunk({"content": "ü\ud83d"}), _chunk({"reasoning": "\ud83d"}), _chunk({"tool_calls": [call]}, "stop")
    )
    assert response.text == "ü\ufffd"
    assert response.tool_calls == (ToolCall("a\ufffd", "add\ufffd", '{"x": "\ufffd"}'),)


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


MIB = 1024 * 1024


def _function(call_id: str = "a", **parts: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "id": call_id, "function": {"name": "add", **parts}}]}


def _take(completion: Completion, deltas: Iterable[dict[str, Any]]) -> None:
    for delta in deltas:
        completion.take(_chunk(delta))


@pytest.mark.parametrize(
    "deltas",
    [
        [{"content": "x" * MIB}],
        [{"content": "\u00fc" * (MIB // 2)}],
        [{"reasoning": "x" * MIB}],
        [{"refusal": "x" * MIB}],
        [_function(arguments="x" * MIB)],
        [_function("a", name="x" * (MIB // 2)), _function("b", name="x" * (MIB // 2))],
        [{"content": "x" * (MIB // 2)}, {"reasoning": "x" * (MIB // 4)}, _function(arguments="x" * (MIB // 4))],
    ],
    ids=["text", "bytes not letters", "reasoning", "refusal", "arguments", "names", "all together"],
)
def test_an_answer_without_end_is_given_up_at_its_bound(deltas: list[dict[str, Any]]) -> None:
    completion = _completion()
    _take(completion, deltas * 15)
    with pytest.raises(ModelError, match="openai: the answer is longer than 16 MiB") as caught:
        _take(completion, deltas * 2)
    assert caught.value.code is ModelErrorCode.INVALID_RESPONSE


@pytest.mark.parametrize("delta", [{"content": "x"}, {"reasoning": "x"}, {"tool_calls": [{"index": 0}]}])
def test_pieces_without_end_are_given_up_however_little_they_say(delta: dict[str, Any]) -> None:
    completion = _completion()
    _take(completion, repeat(delta, 500_000))  # more than the tokens of any model's answer
    with pytest.raises(ModelError, match="longer than 16 MiB"):
        _take(completion, repeat(delta, 600_000))


def test_calls_without_end_are_given_up() -> None:
    calls = [{"tool_calls": [{"index": number, "function": {"name": "add"}}]} for number in range(1025)]
    completion = _completion()
    _take(completion, calls[:1024])
    with pytest.raises(ModelError, match="more than 1024 tool calls") as caught:
        _take(completion, calls[1024:])
    assert caught.value.code is ModelErrorCode.INVALID_RESPONSE
