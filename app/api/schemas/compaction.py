"""Compaction of a thread."""

from __future__ import annotations

from pydantic import Field

from app.api.schemas.fields import JsonObject, RequestModel, Resource, example
from app.api.schemas.run import USAGE_EXAMPLE, Usage
from app.engine.compaction import KEEP_LAST
from app.services.compaction import CompactThread, ThreadCompacted


class ThreadCompact(RequestModel):
    model_config = example({"keep_last": 20})

    keep_last: int = Field(
        default=KEEP_LAST,
        ge=1,
        le=10_000,
        description="How many of the last messages stay; more where a tool call would be parted from its result.",
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="Who writes the summary; absent: the model of the thread's latest run.",
        examples=["openai/gpt-4o-mini"],
    )
    purge: bool = Field(default=False, description="Delete the messages that the summary stands for.")

    def command(self, thread_id: str) -> CompactThread:
        return CompactThread(thread_id, self.keep_last, self.model, self.purge)


class Compaction(Resource):
    """What a compaction came to. Token counts are estimates."""

    model_config = example(
        {
            "summary": "The customer asks for a refund of order 1042, which arrived broken.",
            "messages_compacted": 32,
            "tokens_before": 9120,
            "tokens_after": 3480,
            "model": "gpt-4o-mini",
            "usage": USAGE_EXAMPLE,
            "cost_usd": 0.00094,
        }
    )

    summary: str | None = Field(description="That stands in the thread now; null where it is too short to need one.")
    messages_compacted: int
    tokens_before: int
    tokens_after: int
    model: str | None = Field(description="Who wrote it; null where nothing was written.")
    usage: Usage
    cost_usd: float | None = Field(description="Null where a price is unknown.")


def compaction_object(done: ThreadCompacted) -> JsonObject:
    return {
        "summary": done.summary,
        "messages_compacted": done.messages_compacted,
        "tokens_before": done.tokens_before,
        "tokens_after": done.tokens_after,
        "model": done.model,
        "usage": done.usage.as_dict(),
        "cost_usd": None if done.cost_usd is None else float(done.cost_usd),
    }
