"""Questions as the store without a database keeps them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from app.db.memory.json_text import same_json
from app.engine.interactions import Answer, InteractionRecord, InteractionStatus, NewInteraction
from app.engine.moves import InteractionEnd


@dataclass(slots=True)
class InteractionRow:
    """A question, and the answer that counts if nobody gives one in time."""

    record: InteractionRecord
    fallback: Answer

    @property
    def pending(self) -> bool:
        return self.record.status is InteractionStatus.PENDING

    def end(self, status: InteractionStatus, answer: Answer | None, now: datetime) -> None:
        self.record = replace(self.record, status=status, answer=answer, resolved_at=now)

    def has_answer(self, answer: Answer) -> bool:
        """Whether somebody has decided the same; who it was, and why, makes no other decision of it."""
        known = self.record.answer
        return (
            self.record.status is InteractionStatus.RESOLVED
            and known is not None
            and known.decision is answer.decision
            and same_json(known.value, answer.value)
            and same_json(known.arguments, answer.arguments)
        )

    def as_move(self) -> InteractionEnd:
        record = self.record
        return InteractionEnd(record.interaction_id, record.call_index, record.status, record.answer)


def interaction_row(run_id: str, new: NewInteraction, now: datetime) -> InteractionRow:
    """The row of a question that is asked now."""
    record = InteractionRecord(
        interaction_id=new.interaction_id,
        run_id=run_id,
        step=new.step,
        call_index=new.call_index,
        kind=new.kind,
        status=InteractionStatus.PENDING,
        tool_name=new.tool_name,
        tool_call_id=new.tool_call_id,
        arguments=new.arguments,
        prompt=new.prompt,
        reason=new.reason,
        answer=None,
        expires_at=new.expires_at,
        created_at=now,
        resolved_at=None,
    )
    return InteractionRow(record, new.fallback)
