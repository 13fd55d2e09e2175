"""What may become of an open call: the moves that `apply` knows, and how they follow from what others have stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from app.engine.errors import RunError
from app.engine.interactions import Answer, InteractionStatus
from app.engine.state import HoldKind, RunState
from app.engine.status import RunStatus
from app.engine.tools import Deferral, ToolResult
from app.engine.usage import Usage


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call's pre-hooks have run; `arguments` is JSON text."""

    index: int
    arguments: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A call that this replica ran, or refused, has its result."""

    index: int
    result: ToolResult


@dataclass(frozen=True, slots=True)
class Deferred:
    """A handler has promised a result for later."""

    index: int
    deferral: Deferral


@dataclass(frozen=True, slots=True)
class InteractionEnd:
    """What became of a question. `answer` is None if it was closed without one.

    Args:
        call_index: None where the question was about the model call.
    """

    interaction_id: str
    call_index: int | None
    status: InteractionStatus
    answer: Answer | None


@dataclass(frozen=True, slots=True)
class PostedResult:
    """A result from outside, or the end of the wait for one.

    Args:
        output: JSON text; None with an `error`.
        latency_ms: milliseconds from the call's beginning until the run heard of it.
    """

    index: int
    output: str | None
    error: str | None
    latency_ms: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class ChildEnd:
    """A child run is over; `usage` and `cost_usd` are those of the child and of its own children.

    Args:
        posted: a result from outside that counts in place of the child's.
    """

    index: int
    run_id: str
    status: RunStatus
    final_text: str
    error: RunError | None
    usage: Usage
    cost_usd: Decimal | None
    latency_ms: float
    posted: PostedResult | None = None


CallMove = Prepared | Ended | Deferred | InteractionEnd | PostedResult | ChildEnd


@dataclass(frozen=True, slots=True)
class Stimuli:
    """What others have stored for a run that it has not acted upon; `wakes` is the count of them that this covers.

    Args:
        interactions, posted, children: of the open step; such that were acted upon may be among them.
    """

    wakes: int
    interactions: tuple[InteractionEnd, ...] = ()
    posted: tuple[PostedResult, ...] = ()
    children: tuple[ChildEnd, ...] = ()


def moves_of(state: RunState, stimuli: Stimuli) -> tuple[CallMove, ...]:
    """The moves that the stored stimuli make possible; nothing for what the state has acted upon already."""
    open_calls = {call.index: call for call in state.open_calls()}
    holds = {hold.id for hold in state.holds()}
    given = {result.index: result for result in stimuli.posted if result.index in open_calls}
    children = tuple(
        replace(end, posted=given.get(end.index))
        for end in stimuli.children
        if end.index in open_calls and open_calls[end.index].child_run_id == end.run_id
    )
    ended = {end.index for end in children}
    posted = tuple(result for result in given.values() if result.index not in ended)
    taken = {result.index for result in posted}
    answered = tuple(end for end in stimuli.interactions if end.interaction_id in holds and end.call_index not in taken)
    return (*posted, *answered, *children)


def waiting_for(state: RunState) -> tuple[dict[str, str], ...]:
    """The run's `waiting_for`, as callers read it: kind and id of everything that it waits for."""
    return tuple({"kind": hold.kind.value, "id": hold.id} for hold in state.holds())


def waits_outside(waiting: Sequence[Mapping[str, str]]) -> bool:
    """Whether somebody outside of the service has to act, so that a caller who waits should be told."""
    return any(entry["kind"] != HoldKind.CHILD_RUN for entry in waiting)
