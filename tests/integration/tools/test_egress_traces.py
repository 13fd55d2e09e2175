"""A request of a traced call says which trace it belongs to, and nothing else of it."""

from __future__ import annotations

from opentelemetry import context, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from tests.integration.tools.conftest import MakeEgress, StartSite, answer, get

SPAN = SpanContext(
    0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7, False, TraceFlags(1), TraceState([("v", "1")])
)
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def test_a_request_inside_of_a_span_names_it_and_leaves_the_state_of_others_here(
    site: StartSite, egress: MakeEgress
) -> None:
    there = await site(answer("fine"))
    url = f"http://127.0.0.1:{there.port}/"
    client = egress("127.0.0.1")
    token = context.attach(trace.set_span_in_context(NonRecordingSpan(SPAN)))
    try:
        await get(client, url)
        await get(client, url, headers=(("Traceparent", "the tool's own"),))
    finally:
        context.detach(token)
    await get(client, url)
    named, own, without = (request.headers for request in there.received)
    assert named["traceparent"] == PARENT
    assert own["traceparent"] == "the tool's own"
    assert "traceparent" not in without
    assert not any("tracestate" in headers or "baggage" in headers for headers in (named, own, without))
