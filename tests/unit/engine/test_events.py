"""The line of an event: the same from memory and from rows, one line, and its keys in order."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import orjson
from hypothesis import given
from hypothesis import strategies as st

from app.engine.events import DELTA_TYPES, TERMINAL_TYPES, Event, EventType, RunIdentity, StoredEvent, encode
from app.engine.messages import Message, Reasoning, Role, ToolCall, json_or_text
from app.engine.status import RunStatus
from tests.unit.engine.builders import RUN
from tests.unit.engine.odd_texts import ARGUMENTS, TRICKY


def stored(event: Event, at: datetime = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)) -> StoredEvent:
    return StoredEvent(7, event.type.value, at, encode(event, RUN))


def test_a_line_is_the_envelope_with_seq_and_time_before_the_body() -> None:
    line = stored(Event(EventType.TEXT_DELTA, 2, {"delta": "hi"})).line()
    assert line == (
        b'{"seq":7,"created_at":"2026-01-02T03:04:05.000000Z","type":"text_delta","run_id":"run-1",'
        b'"thread_id":"thread-1","agent_name":"helper","state":"running","step":2,"message":null,'
        b'"data":{"delta":"hi"},"schema_version":1}'
    )


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_always_have_a_fraction_of_six_digits_and_a_z(at: datetime) -> None:
    written = orjson.loads(stored(Event(EventType.RUN_STARTED, 1), at).line())["created_at"]
    assert len(written) == len("2026-01-02T03:04:05.000000Z")
    assert written.endswith("Z")
    assert datetime.fromisoformat(written) == at


@given(st.dictionaries(TRICKY, TRICKY | st.integers(-(2**53), 2**53) | st.none() | st.booleans()), TRICKY)
def test_any_data_comes_back_from_one_line(data: dict[str, object], message: str) -> None:
    line = stored(Event(EventType.WARNING, 1, data, RunStatus.RUNNING, message)).line()
    assert len(line.decode().splitlines()) == 1
    event = orjson.loads(line)
    assert (event["data"], event["message"]) == (data, message)


@given(ARGUMENTS)
def test_what_a_model_or_a_tool_wrote_comes_back_as_json_or_as_text_in_one_line(text: str) -> None:
    line = stored(Event(EventType.TOOL_STARTED, 1, {"arguments": json_or_text(text)})).line()
    assert len(line.decode().splitlines()) == 1
    try:
        expected = orjson.loads(text)
    except orjson.JSONDecodeError:
        expected = text
    assert orjson.loads(line)["data"]["arguments"] == expected


def test_numbers_of_the_model_are_not_rewritten() -> None:
    call = ToolCall("a", "read", '{\r\n "x": 1.10,\n "n": 123456789012345678901}')
    line = stored(Event(EventType.TOOL_STARTED, 1, {"arguments": call.shown_arguments()})).line()
    assert b'"x": 1.10,' in line
    assert b"123456789012345678901" in line


def test_a_number_without_a_json_form_is_written_as_text() -> None:
    body = encode(Event(EventType.WARNING, 1, {"cost": Decimal("0.10")}), RunIdentity("r", "t", "a"))
    assert orjson.loads(body)["data"] == {"cost": "0.10"}


def test_deltas_and_endings_are_told_apart() -> None:
    assert not DELTA_TYPES & TERMINAL_TYPES
    assert {kind.value for kind in TERMINAL_TYPES} == {
        "run_completed",
        "run_failed",
        "run_interrupted",
        "run_cancelled",
    }


MESSAGES = st.one_of(
    st.builds(Message, st.sampled_from(Role), TRICKY),
    st.builds(
        Message,
        st.just(Role.ASSISTANT),
        TRICKY,
        st.lists(st.builds(ToolCall, TRICKY, TRICKY, ARGUMENTS), max_size=3).map(tuple),
    ),
    st.builds(Message, st.just(Role.TOOL), TRICKY, st.just(()), TRICKY, failed=st.booleans()),
    st.builds(
        lambda text, block: Message(Role.ASSISTANT, text, kept=Reasoning("anthropic", (block,))),
        TRICKY,
        st.dictionaries(TRICKY, TRICKY, max_size=2),
    ),
    st.builds(
        lambda text: Message(Role.USER, [{"type": "text", "text": text}]),
        TRICKY,
    ),
)


@given(MESSAGES)
def test_a_message_comes_back_from_its_stored_body(message: Message) -> None:
    body = orjson.loads(orjson.dumps(message.body()))
    assert Message.from_body(message.role.value, body) == message


def test_the_text_of_a_message_is_its_text_parts_joined() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:x"}}
    parts = [{"type": "text", "text": "a"}, picture, {"type": "text", "text": "b"}]
    message = Message.from_body("user", {"content": parts})
    assert message.text() == "ab"
