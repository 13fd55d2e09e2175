"""A span as text, and back."""

from __future__ import annotations

import pytest
from opentelemetry.trace import SpanContext, TraceFlags, TraceState

from app.telemetry.trace_context import parent_in, parent_of, text_of

TRACE_ID, SPAN_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def a_span(state: TraceState | None = None, flags: int = 1) -> SpanContext:
    return SpanContext(TRACE_ID, SPAN_ID, False, TraceFlags(flags), state)


@pytest.mark.parametrize("flags", [0, 1, 3])
@pytest.mark.parametrize("state", [None, TraceState([("vendor", "opaque"), ("other", "a=b c")])])
def test_a_span_is_read_as_it_was_written(state: TraceState | None, flags: int) -> None:
    written = a_span(state, flags)
    text = text_of(written)
    read = parent_of(text)
    assert read is not None
    assert (read.trace_id, read.span_id, read.trace_flags) == (TRACE_ID, SPAN_ID, flags)
    assert read.trace_state == (state or TraceState())
    assert read.is_remote


def test_a_span_without_state_is_a_traceparent() -> None:
    assert text_of(a_span()) == PARENT


def test_a_state_that_is_too_long_is_left_out() -> None:
    long = TraceState([(f"vendor{number}", "x" * 100) for number in range(6)])
    assert text_of(a_span(long)) == PARENT


def test_what_is_no_span_has_no_text() -> None:
    assert text_of(SpanContext(0, 0, False)) is None


@pytest.mark.parametrize("text", [None, "", "nonsense", PARENT[:-3], PARENT.upper()])
def test_what_cannot_be_read_is_no_parent(text: str | None) -> None:
    assert parent_of(text) is None


def test_a_parent_stands_in_the_headers() -> None:
    headers = [(b"host", b"h"), (b"traceparent", PARENT.encode()), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")]
    found = parent_in(headers)
    assert found is not None
    assert text_of(found) == f"{PARENT} a=1,b=2"


@pytest.mark.parametrize(
    "given",
    [
        [],
        [b"nonsense"],
        [PARENT.encode(), PARENT.encode()],
        [b"00-00000000000000000000000000000000-00f067aa0ba902b7-01"],
        [b"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"],
        ["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902bä-01".encode("latin-1")],
    ],
)
def test_headers_without_a_valid_parent_have_none(given: list[bytes]) -> None:
    assert parent_in([(b"traceparent", value) for value in given]) is None
