"""What of a stream is the model's own words, in whatever form."""

from __future__ import annotations

from app.engine.model import ReasoningDelta, TextDelta, ToolCallDelta

# For isinstance: the events that `StreamRestarted` makes void, and that a provider charges for.
OUTPUT = (TextDelta, ReasoningDelta, ToolCallDelta)
