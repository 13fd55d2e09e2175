"""What a run can do next: a closed union, matched exhaustively by whoever performs it."""

from __future__ import annotations

from dataclasses import dataclass

from app.engine.state import OpenCall, Outcome


@dataclass(frozen=True, slots=True)
class CallModel:
    step: int


@dataclass(frozen=True, slots=True)
class ExecuteTools:
    """Run the calls that have no result; those already under way stay under way."""

    step: int
    calls: tuple[OpenCall, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    outcome: Outcome


Action = CallModel | ExecuteTools | Finish
