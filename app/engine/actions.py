"""What a run can do next: a closed union, matched exhaustively by whoever performs it."""

from __future__ import annotations

from dataclasses import dataclass

from app.engine.state import OpenCall, Outcome


@dataclass(frozen=True, slots=True)
class CallModel:
    step: int


@dataclass(frozen=True, slots=True)
class Compact:
    """Make a summary of the thread's older part, before the model call of `step`."""

    step: int


@dataclass(frozen=True, slots=True)
class ExecuteTools:
    """Run the calls that nothing holds; those already under way stay under way. Delegations begin beside them."""

    step: int
    calls: tuple[OpenCall, ...]


@dataclass(frozen=True, slots=True)
class Await:
    """Begin the delegations and the caller's calls that have not begun, and wait, as a row, until somebody is done.

    Args:
        calls: the open calls, every one of them held; empty while the model call itself is held.
    """

    step: int
    calls: tuple[OpenCall, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    outcome: Outcome


Action = CallModel | Compact | ExecuteTools | Await | Finish
