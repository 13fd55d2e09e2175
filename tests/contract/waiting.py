"""What a run can wait for, made by hand: questions, results from outside, child runs."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson

from app.engine.effects import ToolEffect
from app.engine.events import Event, EventType, StoredEvent
from app.engine.interactions import Answer, Decision, InteractionKind, InteractionRecord, NewInteraction
from app.engine.messages import Message, Role, ToolCall
from app.engine.moves import waiting_for
from app.engine.ownership import Committed
from app.engine.ports import RunStore
from app.engine.records import Lineage, NewRun, Stopped
from app.engine.state import Hold, HoldKind, OpenCall, Phase, RunState, checkpoint_of
from app.engine.status import RunStatus
from app.engine.transition import ToolRecord
from app.engine.usage import Usage
from tests.contract.stores import OWNER, Owner, a_run, answered, create_started, new_id, owner_of, paused, user

PAST, FUTURE = datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)

APPROVED = Answer(Decision.APPROVE, by="ann", reason="looks right")
DENIED = Answer(Decision.DENY, by="bob")
FALLBACK = Answer(Decision.DENY, by="expiry", reason="nobody answered in time")


# --- what a call waits for ------------------------------------------------------------------------------------


def a_question(index: int | None = 0, **fields: Any) -> NewInteraction:
    """Whether the call of this index may be made; None for the model call."""
    about_model = index is None
    parts: dict[str, Any] = {
        "interaction_id": new_id(),
        "step": 1,
        "call_index": index,
        "kind": InteractionKind.APPROVAL,
        "tool_name": None if about_model else "send",
        "tool_call_id": None if about_model else f"call-{index}",
        "arguments": None if about_model else '{"q": 1}',
        "prompt": "May helper call send?",
        "reason": "it costs money",
        "expires_at": FUTURE,
        "fallback": FALLBACK,
    }
    return NewInteraction(**parts | fields)


def a_held_call(index: int, hold: Hold, *, begun: bool = True, name: str = "send") -> OpenCall:
    call = ToolCall(f"call-{index}", name, '{"q": 1}')
    return OpenCall(index, call, ToolEffect.IDEMPOTENT, started=begun, judged=begun, hold=hold)


def asking(question: NewInteraction) -> OpenCall:
    """The call that a question is about."""
    assert question.call_index is not None
    hold = Hold(HoldKind.INTERACTION, question.interaction_id, question=question.kind)
    return a_held_call(question.call_index, hold, begun=False)


def deferred(index: int = 0, expires_at: datetime = FUTURE) -> OpenCall:
    """A call whose result somebody outside will post."""
    return a_held_call(index, Hold(HoldKind.TOOL_RESULT, f"call-{index}", expires_at, "ticket-7"))


def delegated(index: int, child: NewRun) -> OpenCall:
    """A call that a child run answers."""
    return a_held_call(index, Hold(HoldKind.CHILD_RUN, child.run_id, tokens=500), name="delegate_to_helper")


def a_child(parent: NewRun, deadline_s: float = 3600.0, **fields: Any) -> NewRun:
    """A run that its parent delegates to, on a thread of its own."""
    run_id, above = new_id(), parent.identity
    root = parent.run_id if parent.lineage is None else parent.lineage.root_run_id
    path = f"{above.agent_path}>helper"
    lineage = Lineage(parent.run_id, root, above.agent_depth + 1, path, deadline_s)
    parts: dict[str, Any] = {"run_id": run_id, "thread_id": run_id, "thread_key": run_id, "input": (user("the task"),)}
    return replace(a_run(), lineage=lineage, **parts | fields)


# --- a run that waits -----------------------------------------------------------------------------------------


async def hold(owner: Owner, *calls: OpenCall, status: RunStatus = RunStatus.WAITING, **parts: Any) -> Committed:
    """The model has asked for these calls; the run waits for them, or goes on beside them.

    A pause that was asked for is met by it where the run would wait.
    """
    return await owner.surely(answered(owner.step), **holding(owner, *calls, status=status) | parts)


def holding(owner: Owner, *calls: OpenCall, status: RunStatus = RunStatus.WAITING) -> dict[str, Any]:
    """The parts of the write with which a run begins to wait for these calls."""
    state = RunState(step=owner.step, phase=Phase.EXECUTE_TOOLS, calls=calls, usage=owner.usage)
    waits = status is RunStatus.WAITING
    entries = waiting_for(state)
    waiting = Event(EventType.RUN_WAITING, owner.step, {"waiting_for": entries}, RunStatus.WAITING)
    owner.calls = calls
    return {
        "status": status,
        "messages": (Message(Role.ASSISTANT, "", tuple(call.call for call in calls)),),
        "records": tuple(ToolRecord(owner.step, call) for call in calls),
        "checkpoint": checkpoint_of(state, waits=waits),
        "opening": (waiting,) if waits else (),
        "on_pause": (paused(owner.step),) if waits else None,
        "waiting_for": entries if waits else (),
    }


async def waiting_run(store: RunStore, *calls: OpenCall, new: NewRun | None = None, **parts: Any) -> Owner:
    """A run that waits, or is `status`, with these calls."""
    owner = await create_started(store, new)
    await hold(owner, *calls, **parts)
    return owner


async def asking_run(store: RunStore, *questions: NewInteraction, **parts: Any) -> Owner:
    """A run that waits for people."""
    return await waiting_run(store, *map(asking, questions), interactions=questions, **parts)


async def in_status(owner: Owner, status: RunStatus) -> None:
    """Bring a run that waits to another status in which it can be told something."""
    match status:
        case RunStatus.WAITING:
            pass
        case RunStatus.PAUSED:
            await owner.store.pause(owner.run_id)
        case RunStatus.QUEUED:
            await owner.store.pause(owner.run_id)
            await owner.store.resume(owner.run_id, None)
        case RunStatus.RUNNING:
            await in_status(owner, RunStatus.QUEUED)
            (taken,) = await claim_these(owner.store, owner.new)
            owner.fence, owner.wakes = taken.fence, taken.wakes
        case _:
            raise AssertionError(f"a {status} run is over")
    assert (await owner.store.get(owner.run_id)).status is status


# --- families -------------------------------------------------------------------------------------------------


async def delegate(owner: Owner, *children: NewRun, **parts: Any) -> Committed:
    """Begin child runs and wait for them."""
    return await hold(owner, *(delegated(i, child) for i, child in enumerate(children)), children=children, **parts)


async def parent_of(store: RunStore, count: int, **fields: Any) -> tuple[Owner, list[NewRun]]:
    """A run that waits for this many child runs, which are queued."""
    owner = await create_started(store)
    children = [a_child(owner.new, **fields) for _ in range(count)]
    await delegate(owner, *children)
    return owner, children


async def three_generations(store: RunStore, last_cost: str | None = "0.4") -> tuple[Owner, Owner, Owner]:
    """A run that waits for one that waits for one that runs; each has made 1, 2 and 4 model calls of its own."""
    first = await create_started(store)
    first.usage = spent(1)
    child = a_child(first.new)
    await delegate(first, child, cost_usd=Decimal("0.1"))
    second = await started(store, child)
    second.usage = spent(2)
    grandchild = a_child(child)
    await delegate(second, grandchild, cost_usd=Decimal("0.2"))
    third = await started(store, grandchild)
    third.usage = spent(4)
    cost = None if last_cost is None else Decimal(last_cost)
    state = RunState(step=third.step, usage=third.usage, cost_usd=cost)
    await third.surely(answered(1), cost_usd=cost, checkpoint=checkpoint_of(state))
    return first, second, third


async def claim_these(store: RunStore, *runs: NewRun) -> list[Owner]:
    """Claim what is there to claim, which is these runs; in their order."""
    claims = {claim.fence.run_id: claim for claim in await store.claim(OWNER, 100)}
    assert set(claims) == {new.run_id for new in runs}
    return [owner_of(store, new, claims[new.run_id]) for new in runs]


async def started(store: RunStore, new: NewRun) -> Owner:
    """Claim the one run that is there to claim, and make its first write."""
    (owner,) = await claim_these(store, new)
    await owner.start()
    return owner


async def end_child(owner: Owner, status: RunStatus = RunStatus.COMPLETED, **parts: Any) -> Committed:
    """The last write of a child run, which tells its parent."""
    assert owner.new.lineage is not None
    return await owner.finish(status, parent_run_id=owner.new.lineage.parent_run_id, **parts)


def spent(calls: int) -> Usage:
    return Usage(llm_calls=calls, input_tokens=10 * calls, output_tokens=calls)


# --- looking --------------------------------------------------------------------------------------------------


async def only_question(store: RunStore, owner: Owner) -> InteractionRecord:
    (record,) = await store.interactions(owner.run_id)
    return record


async def statuses(store: RunStore, *runs: NewRun | Owner) -> list[RunStatus]:
    return [(await store.get(run.run_id)).status for run in runs]


def everyone(*stopped: Stopped) -> dict[str, Stopped]:
    """The runs that were changed, with those of their families, however they are handed out."""
    found: dict[str, Stopped] = {}
    for each in stopped:
        if each.changed:
            found[each.run.run_id] = each
        found |= everyone(*each.family)
    return found


def data_of(event: StoredEvent) -> dict[str, Any]:
    return orjson.loads(event.body)["data"]


def state_of(event: StoredEvent) -> str:
    return orjson.loads(event.body)["state"]
