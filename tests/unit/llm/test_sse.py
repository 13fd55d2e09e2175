from __future__ import annotations

import pytest

from app.llm.sse import SseOverflow, SseParser


def _all(*chunks: bytes) -> list[bytes]:
    parser = SseParser()
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    return events + parser.finish()


STREAM = 'data: {"a":"Grüße 👋"}\n\n: comment\n\ndata: {"b":2}\n\ndata: [DONE]\n\n'.encode()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, len(STREAM)])
def test_events_are_the_same_however_the_bytes_are_cut(size: int) -> None:
    chunks = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert _all(*chunks) == ['{"a":"Grüße 👋"}'.encode(), b'{"b":2}', b"[DONE]"]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b'data: {"a":1}\r\n\r\ndata: {"b":2}\r\n\r\n', [b'{"a":1}', b'{"b":2}']),
        (b'data:{"a":1}\n\n', [b'{"a":1}']),
        (b'event: x\nid: 7\nretry: 10\ndata: {"a":1}\n\n', [b'{"a":1}']),
        (b': keep-alive\n\n: keep-alive\n\ndata: {"a":1}\n\n', [b'{"a":1}']),
        (b'data: {"a":1}', [b'{"a":1}']),
        (b'data: {\ndata: "a":1}\n\n', [b'{\n"a":1}']),
        (b'data: {"a":1}\ndata: {"b":2}\ndata: [DONE]\n', [b'{"a":1}', b'{"b":2}', b"[DONE]"]),
        (b"\n\n\n", []),
        (b"", []),
    ],
    ids=[
        "CRLF",
        "no space after data:",
        "other fields",
        "comments",
        "no blank line at the end",
        "an event of several lines",
        "no blank lines at all",
        "blank lines only",
        "nothing",
    ],
)
def test_what_servers_send_is_understood(stream: bytes, events: list[bytes]) -> None:
    assert _all(stream) == events


def test_an_event_comes_out_as_soon_as_its_blank_line_is_there() -> None:
    parser = SseParser()
    assert parser.feed(b'data: {"a":1}\n') == []
    assert parser.feed(b"\n") == [b'{"a":1}']


def test_an_endless_event_is_refused() -> None:
    parser = SseParser(max_event_bytes=100)
    parser.feed(b"data: " + b"x" * 90)
    with pytest.raises(SseOverflow):
        parser.feed(b"x" * 10)
