"""What one outcome changes: the state after it, and all that is committed with it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from app.engine.compaction import NewCompaction
from app.engine.events import Event
from app.engine.interactions import NewInteraction
from app.engine.messages import Message
from app.engine.state import OpenCall, RunState


@dataclass(frozen=True, slots=True)
class ToolRecord:
    """What becomes known of a tool call: that it was asked for, was started, waits, or has ended."""

    step: int
    call: OpenCall


@dataclass(frozen=True, slots=True)
class Transition:
    """The state after an outcome, with the facts, messages, records and questions to commit with it.

    Args:
        stops: child runs that are no longer needed and are cancelled with the commit.
        closes: questions that nobody needs to answer any more.
        compaction: a summary that stands in the thread from now on.
    """

    state: RunState
    events: tuple[Event, ...] = ()
    messages: tuple[Message, ...] = ()
    records: tuple[ToolRecord, ...] = ()
    interactions: tuple[NewInteraction, ...] = ()
    stops: tuple[str, ...] = ()
    closes: tuple[str, ...] = field(default=())
    compaction: NewCompaction | None = None

    def then(self, later: Transition) -> Transition:
        """This transition and one that starts from its state, as one."""
        return replace(
            later,
            events=(*self.events, *later.events),
            messages=(*self.messages, *later.messages),
            records=(*self.records, *later.records),
            interactions=(*self.interactions, *later.interactions),
            stops=(*self.stops, *later.stops),
            closes=(*self.closes, *later.closes),
            compaction=later.compaction or self.compaction,
        )
