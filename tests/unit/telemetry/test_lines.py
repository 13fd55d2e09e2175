"""Spans as lines of text."""

from __future__ import annotations

import json

from app.telemetry.lines import json_line, people_line
from app.telemetry.span_queue import EndedSpan

FORGED = "chat x\nFORGED \x1b[31m"
SPAN = EndedSpan("tests", FORGED, 1, 2, 0, 1, False, "", 0, 1, 2, 0, None, {"model": FORGED}, None, None)


def test_no_name_and_no_value_can_end_its_line_or_colour_it() -> None:
    """Seen to fail where a name is written as it is."""
    for line in (people_line(SPAN), json_line(SPAN)):
        assert line.isprintable()
    assert json.loads(json_line(SPAN))["name"] == FORGED
