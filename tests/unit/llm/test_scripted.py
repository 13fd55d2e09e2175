from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.messages import Message, Role, ToolCall
from app.engine.model import FinishReason, ModelClient, ModelEvent, ModelRequest, ModelResponse, TextDelta
from app.engine.usage import Usage
from app.llm.scripted import ScriptedModel, ScriptError, ScriptFiles, Turn

USER = Message(Role.USER, "What is 2 + 3?")
CALL = Message(Role.ASSISTANT, "", (ToolCall("a", "add", "{}"),))
RESULT = Message(Role.TOOL, "5", tool_call_id="a")

SCRIPT = """
- tool_calls:
    - name: add
      arguments: {x: 2, y: [3, "{{ user }}"]}
- text: "It is {{ last_tool_output }}."
  usage: {input_tokens: 8, output_tokens: 4}
"""


async def _events(client: ModelClient, *messages: Message, model: str = "scripted/sum") -> list[ModelEvent]:
    return [event async for event in client.stream(ModelRequest(model, messages))]


async def _answer(client: ModelClient, *messages: Message, model: str = "scripted/sum") -> ModelResponse:
    last = (await _events(client, *messages, model=model))[-1]
    assert isinstance(last, ModelResponse)
    return last


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    (tmp_path / "sum.yaml").write_text(SCRIPT, encoding="utf-8")
    return tmp_path


async def test_the_turn_follows_from_the_thread_alone(scripts: Path) -> None:
    first = await _answer(ScriptFiles(scripts), USER)
    assert first.tool_calls[0].arguments == '{"x":2,"y":[3,"What is 2 + 3?"]}'
    assert first.finish_reason is FinishReason.TOOL_CALLS
    # Another client: what the first one did is nowhere but in the messages.
    second = await _answer(ScriptFiles(scripts), USER, CALL, RESULT)
    assert (second.text, second.usage) == ("It is 5.", Usage(1, 8, 4))


async def test_a_new_user_message_begins_the_script_anew(scripts: Path) -> None:
    done = Message(Role.ASSISTANT, "It is 5.")
    answer = await _answer(ScriptFiles(scripts), USER, CALL, RESULT, done, USER)
    assert answer.tool_calls[0].name == "add"


async def test_past_the_end_it_says_so(scripts: Path) -> None:
    with pytest.raises(ModelError, match=r"sum\.yaml has 2 turns, and turn 3 was asked for") as caught:
        await _events(ScriptFiles(scripts), USER, CALL, RESULT, CALL, RESULT)
    assert caught.value.code is ModelErrorCode.INVALID_REQUEST


async def test_calls_get_ids_that_no_other_call_has(scripts: Path) -> None:
    ids = {(await _answer(ScriptFiles(scripts), USER)).tool_calls[0].id for _ in range(3)}
    assert len(ids) == 3


async def test_text_comes_word_by_word_with_its_delays() -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    model = ScriptedModel([Turn(text="one two  three", delay_s=2, chunk_delay_s=0.5)], sleep=sleep)
    events = await _events(model, USER)
    assert events[:-1] == [TextDelta("one "), TextDelta("two  "), TextDelta("three")]
    assert waits == [2, 0.5, 0.5]


async def test_an_error_comes_after_its_text() -> None:
    error = {"code": "rate_limited", "message": "slow down", "retry_after_s": 3}
    stream = ScriptedModel([{"text": "Hi", "error": error}]).stream(ModelRequest("m", [USER]))
    assert await anext(stream) == TextDelta("Hi")
    with pytest.raises(ModelError, match="slow down") as caught:
        await anext(stream)
    assert (caught.value.code, caught.value.retry_after_s) == (ModelErrorCode.RATE_LIMITED, 3)


async def test_malformed_arguments_and_ids_are_sent_as_written() -> None:
    call = {"id": "mine", "name": "add", "arguments": "{oops"}
    answer = await _answer(ScriptedModel([{"tool_calls": [call]}]), USER)
    assert answer.tool_calls == (ToolCall("mine", "add", "{oops"),)


async def test_an_answer_costs_nothing_and_its_usage_is_not_flagged() -> None:
    answer = await _answer(ScriptedModel([{"text": "Hi"}]), USER)
    assert (answer.cost_usd, answer.usage_estimated, answer.usage.llm_calls) == (0, False, 1)


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ([{"txt": "x"}], r"turns\[0\]\.txt: Extra inputs are not permitted"),
        ([{}, {"tool_calls": [{"arguments": {}}]}], r"turns\[1\]\.tool_calls\[0\]\.name: Field required"),
        ([{"error": {"code": "bad"}}], r"turns\[0\]\.error\.code: Input should be 'rate_limited'"),
        ([{"delay_s": -1}], r"turns\[0\]\.delay_s: "),
        (["text"], r"turns\[0\]: "),
    ],
)
def test_a_wrong_turn_is_named_with_its_place(turns: Any, problem: str) -> None:
    with pytest.raises(ScriptError, match="^my script: " + problem):
        ScriptedModel(turns, name="my script")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- text: [", r"wrong\.yaml: no YAML: "),
        ("text: x", r"wrong\.yaml: must be a list of turns"),
        ("- txt: x", r"wrong\.yaml: turns\[0\]\.txt: "),
    ],
)
async def test_a_wrong_file_is_named(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "wrong.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=problem) as caught:
        await _events(ScriptFiles(tmp_path), USER, model="scripted/wrong")
    assert caught.value.code is ModelErrorCode.INVALID_REQUEST


@pytest.mark.parametrize("name", ["../sum", "a/b", "", "sum.yaml", "..", "sum\n", "/etc/passwd"])
async def test_a_name_never_leaves_the_folder(scripts: Path, name: str) -> None:
    with pytest.raises(ModelError, match="letters, digits"):
        await _events(ScriptFiles(scripts / "inner"), USER, model=f"scripted/{name}")


async def test_a_missing_script_is_model_not_found_without_the_folders_path(scripts: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no other\.yaml") as caught:
        await _events(ScriptFiles(scripts), USER, model="scripted/other")
    assert caught.value.code is ModelErrorCode.MODEL_NOT_FOUND
    assert str(scripts) not in caught.value.message


async def test_an_edited_script_is_read_anew(scripts: Path) -> None:
    client = ScriptFiles(scripts)
    await _answer(client, USER)
    (scripts / "sum.yaml").write_text("- text: edited", encoding="utf-8")
    assert (await _answer(client, USER)).text == "edited"
