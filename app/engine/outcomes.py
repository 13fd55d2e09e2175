"""What actions bring: a closed union, which `apply` turns into transitions."""

from __future__ import annotations

from dataclasses import dataclass

from app.engine.compact_step import Compacted, NotCompacted
from app.engine.errors import ModelError
from app.engine.model import ModelResponse
from app.engine.moves import CallMove
from app.engine.usage import Spend


@dataclass(frozen=True, slots=True)
class AttemptBegan:
    """A replica has taken the run over; `moves` is what others have stored in the meantime."""

    moves: tuple[CallMove, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelResponded:
    """The model answered.

    Args:
        latency_ms: the wall time of the whole call in milliseconds.
        spent: what tries took that gave no answer.
    """

    response: ModelResponse
    latency_ms: float
    spent: tuple[Spend, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelFailed:
    """All tries of a model call failed; `spent` is what they took all the same."""

    error: ModelError
    spent: tuple[Spend, ...] = ()


@dataclass(frozen=True, slots=True)
class CallsMoved:
    """Something became of calls of the open step, or of the question about the model call."""

    moves: tuple[CallMove, ...]


@dataclass(frozen=True, slots=True)
class CompactionEnded:
    """The thread was compacted before a model call, or was not; `spent` is what calls took that gave no summary."""

    outcome: Compacted | NotCompacted
    spent: tuple[Spend, ...] = ()


ActionOutcome = ModelResponded | ModelFailed | CompactionEnded | CallsMoved
