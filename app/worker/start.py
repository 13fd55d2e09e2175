"""Where an attempt at a run begins."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from app.engine.agent import ResolvedAgent
from app.engine.events import Event
from app.engine.messages import ThreadMessage
from app.engine.moves import Stimuli
from app.engine.ownership import Claim
from app.engine.records import RunRecord
from app.engine.state import RunState


@dataclass(frozen=True, slots=True)
class Start:
    """Where a driver begins.

    Args:
        opened: whether the attempt's first write is committed.
        messages: the thread as runs see it, the run's input included if `joined`.
        used_ids: tool call ids of the run that the messages may not show any more.
        message_seq: the last message of the thread that is among them.
        now: the store's time.
        stimuli: what others have stored for the run's open step.
        elapsed_s: active seconds of earlier attempts; `wall_from_s` of them do not count against the limit.
        first_events: what the attempt's first write begins with, if it is not opened.
    """

    claim: Claim
    run: RunRecord
    agent: ResolvedAgent
    state: RunState
    messages: tuple[ThreadMessage, ...]
    message_seq: int
    opened: bool
    joined: bool
    now: datetime
    stimuli: Stimuli
    elapsed_s: float = 0.0
    wall_from_s: float = 0.0
    first_events: tuple[Event, ...] = ()
    used_ids: frozenset[str] = frozenset()
