"""What spans carry of what is said, by the schemas of the GenAI conventions."""

from __future__ import annotations

from typing import Any

import orjson

from app.engine.messages import Content, Message, Role
from app.engine.model import FinishReason, ModelRequest, ModelResponse
from app.engine.usage import Usage
from app.llm.content import MAX_CHARS, input_messages, output_messages

PNG = "data:image/png;base64,iVBORw0KGgo="


def _parts(content: Content) -> list[dict[str, Any]]:
    found = input_messages(ModelRequest("openai/m", [Message(Role.USER, content)]))
    (message,) = orjson.loads(found["gen_ai.input.messages"])
    return message["parts"]


def _answered(text: str, reasoning: str) -> list[dict[str, Any]]:
    response = ModelResponse("openai", "m", text, (), FinishReason.STOP, Usage(1), None, reasoning=reasoning)
    (message,) = orjson.loads(output_messages(response)["gen_ai.output.messages"])
    return message["parts"]


def test_images_stand_where_they_were_said_without_their_data() -> None:
    parts = _parts(
        [
            {"type": "text", "text": "Which of"},
            {"type": "image_url", "image_url": {"url": "https://host/a.png"}},
            {"type": "image_url", "image_url": {"url": PNG}},
            {"type": "text", "text": "is it?"},
        ]
    )
    assert parts == [
        {"type": "text", "content": "Which of"},
        {"type": "uri", "modality": "image", "uri": "https://host/a.png"},
        {"type": "blob", "modality": "image", "mime_type": "image/png", "content": ""},
        {"type": "text", "content": "is it?"},
    ]


def test_the_data_of_an_image_is_never_in_a_span() -> None:
    data = "iVBORw0KGgo/AAA="
    for url in (f"data:image/png;base64,{data}", f"DATA:image/png,{data}", f"data:;base64,{data}", f"data:{data}"):
        (part,) = _parts([{"type": "image_url", "image_url": {"url": url}}])
        assert part["content"] == ""
        assert "iVBOR" not in str(part)


def test_thoughts_stand_before_the_answer_and_take_no_room_from_it() -> None:
    assert _answered("It is B.", "A or B?") == [
        {"type": "reasoning", "content": "A or B?"},
        {"type": "text", "content": "It is B."},
    ]
    thought, text = _answered("b" * 1000, "a" * 2 * MAX_CHARS)
    assert len(text["content"]) == 1000
    assert len(thought["content"]) == MAX_CHARS - 1000


def test_many_images_are_cut_as_a_long_text_is() -> None:
    image: Content = [{"type": "image_url", "image_url": {"url": PNG}}]
    assert 0 < len(_parts(image * 10_000)) <= MAX_CHARS / 64
