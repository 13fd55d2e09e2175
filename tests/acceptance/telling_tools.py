"""Tools that tell of themselves: they log, and open spans of their own."""

from __future__ import annotations

import logging
import threading

import structlog
from opentelemetry import trace

from app.tools import tool

_tracer = trace.get_tracer("somebody")


@tool(effect="read_only")
def tell(word: str) -> str:
    """Log and trace in a thread."""
    logging.getLogger("my_tools").info("told by the standard library")
    structlog.get_logger("my_tools").info("told in a thread", thread=threading.current_thread().name)
    trace.get_current_span().set_attribute("told", word)
    with _tracer.start_as_current_span("inside a thread"):
        return word


@tool(effect="read_only")
async def tell_on_the_loop(word: str) -> str:
    """Log and trace on the event loop."""
    structlog.get_logger("my_tools").info("told on the loop")
    with _tracer.start_as_current_span("inside the loop") as span:
        span.add_event("happened")
        return word
