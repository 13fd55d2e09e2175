"""A run's compaction of its own thread."""

from __future__ import annotations

from app.engine.compact_step import Compacted, NotCompacted
from app.engine.compaction import Cut, NewCompaction, summary_message
from app.engine.errors import ModelError
from app.engine.model import ModelClient, ModelRequest
from app.engine.outcomes import CompactionEnded
from app.llm.summary import summarise
from app.llm.token_estimate import estimate_input, message_tokens


async def compact(models: ModelClient, request: ModelRequest, parted: Cut | None) -> CompactionEnded:
    """Have the older part of a run's thread summarised.

    Args:
        request: of the model call that is to follow, as it would be without a summary.
        parted: where the thread is cut; None where it cannot be.
    """
    if parted is None:
        return CompactionEnded(NotCompacted("there is nothing before what has to stay"))
    try:
        summary = await summarise(models, request, [entry.message for entry in parted.old])
    except ModelError as error:
        return CompactionEnded(NotCompacted(error.message), () if error.spent is None else (error.spent,))
    made = NewCompaction(parted.upto_seq, summary.text)
    before = estimate_input(request)
    saved = sum(message_tokens(entry.message) for entry in parted.old) - message_tokens(summary_message(made).message)
    return CompactionEnded(
        Compacted(
            compaction=made,
            messages=len(parted.old),
            tokens_before=before,
            tokens_after=before - saved,
            model=summary.model,
            usage=summary.usage,
            cost_usd=summary.cost_usd,
        )
    )
