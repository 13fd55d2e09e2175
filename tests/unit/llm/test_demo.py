from __future__ import annotations

from typing import Any

import orjson
import pytest

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.messages import Message, Role, ToolCall
from app.engine.model import FinishReason, ModelRequest, ModelResponse, TextDelta
from app.engine.tools import ToolSpec
from app.llm.demo import DemoClient

TOOLS = tuple(ToolSpec(name, "", {"type": "object"}) for name in ("calculate", "current_time"))


async def _answer(
    *messages: Message, model: str = "demo/assistant", tools: tuple[ToolSpec, ...] = TOOLS
) -> ModelResponse:
    request = ModelRequest(model, messages, tools)
    events = [event async for event in DemoClient(word_delay_s=0).stream(request)]
    last = events[-1]
    assert isinstance(last, ModelResponse)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == last.text
    return last


def _user(text: str) -> Message:
    return Message(Role.USER, text)


def _calls(response: ModelResponse) -> list[tuple[str, Any]]:
    return [(call.name, orjson.loads(call.arguments)) for call in response.tool_calls]


@pytest.mark.parametrize(
    ("asked", "expression"),
    [
        ("What is 17 * 23?", "17 * 23"),
        ("2+2", "2+2"),
        ("Compute (1.5 + 2) * 4 please.", "(1.5 + 2) * 4"),
        ("how much is 2^10", "2**10"),
        ("is 7 × 6 right (I mean 7 × 6)?", "7 * 6"),
        ("on 2026-01-02 I had 10 - 3 apples", "10 - 3"),
        ("-3 + 5?", "-3 + 5"),
    ],
)
async def test_arithmetic_is_given_to_calculate(asked: str, expression: str) -> None:
    assert _calls(await _answer(_user(asked))) == [("calculate", {"expression": expression})]


async def test_both_tools_may_be_called_at_once() -> None:
    answer = await _answer(_user("What is 17*23, and what time is it in Europe/Paris?"))
    assert _calls(answer) == [
        ("calculate", {"expression": "17*23"}),
        ("current_time", {"timezone": "Europe/Paris"}),
    ]
    assert answer.finish_reason is FinishReason.TOOL_CALLS


@pytest.mark.parametrize("asked", ["Hello", "I have 3 cats", "on 2026-01-02 it rained", ""])
async def test_anything_else_is_answered_with_what_was_asked_and_the_way_to_a_real_model(asked: str) -> None:
    text = (await _answer(_user(asked))).text
    assert asked in text
    assert "OPENAI_API_KEY" in text


async def test_a_tool_that_is_not_offered_is_not_called() -> None:
    assert (await _answer(_user("2+2, and the time?"), tools=())).tool_calls == ()


async def test_results_become_a_sentence() -> None:
    calls = (ToolCall("a", "calculate", '{"expression":"2+2"}'), ToolCall("b", "current_time", "{}"))
    clock = '{"time":"2026-03-01T12:00:00+00:00","weekday":"Sunday","timezone":"UTC"}'
    answer = await _answer(
        _user("2+2, and the time?"),
        Message(Role.ASSISTANT, "", calls),
        Message(Role.TOOL, "<data nonce>\n4\n</data nonce>", tool_call_id="a"),
        Message(Role.TOOL, clock, tool_call_id="b"),
    )
    assert answer.text == "2+2 = 4. It is Sunday 2026-03-01T12:00:00+00:00 (UTC)."
    assert answer.finish_reason is FinishReason.STOP


async def test_a_tools_error_is_passed_on() -> None:
    answer = await _answer(
        _user("1/0"),
        Message(Role.ASSISTANT, "", (ToolCall("a", "calculate", "{oops"),)),
        Message(Role.TOOL, "error: division by zero", tool_call_id="a"),
    )
    assert answer.text == "calculate answered: error: division by zero"


async def test_only_what_follows_the_last_user_message_counts() -> None:
    answer = await _answer(
        _user("1+1"),
        Message(Role.ASSISTANT, "", (ToolCall("a", "calculate", '{"expression":"1+1"}'),)),
        Message(Role.TOOL, "2", tool_call_id="a"),
        Message(Role.ASSISTANT, "1+1 = 2."),
        _user("5*5"),
    )
    assert _calls(answer) == [("calculate", {"expression": "5*5"})]


async def test_echo_says_the_last_user_message() -> None:
    assert (await _answer(_user("one"), _user("two\nlines"), model="demo/echo")).text == "two\nlines"


async def test_a_demo_costs_nothing_and_its_usage_is_not_flagged() -> None:
    answer = await _answer(_user("Hello"))
    assert (answer.cost_usd, answer.usage_estimated) == (0, False)
    assert answer.usage.input_tokens > 0


async def test_an_unknown_demo_is_model_not_found() -> None:
    with pytest.raises(ModelError, match="demo/echo") as caught:
        await _answer(_user("Hello"), model="demo/other")
    assert caught.value.code is ModelErrorCode.MODEL_NOT_FOUND


async def test_words_come_with_the_given_delay() -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    client = DemoClient(word_delay_s=0.25, sleep=sleep)
    async for _ in client.stream(ModelRequest("demo/echo", [_user("one two three")])):
        pass
    assert waits == [0.25, 0.25]
