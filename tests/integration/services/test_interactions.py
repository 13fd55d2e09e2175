"""Questions are found by whoever may answer them, and an answer has to fit its question."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from app.db.database import Database
from app.engine.agent import AgentSettings
from app.engine.interactions import (
    Answer,
    Decision,
    InteractionKind,
    InteractionRecord,
    InteractionStatus,
)
from app.engine.ports import RunStore
from app.engine.status import RunStatus
from app.engine.store_errors import InteractionNotFound, RunNotFound
from app.event_bus.memory import MemoryBus
from app.services.agents import AgentService
from app.services.errors import Conflict, Invalid
from app.services.interactions import InteractionService, Resolution
from app.services.run_control import RunControl
from tests.contract.stores import STOPPED, a_run, create_started, new_id, postgres_subject
from tests.contract.waiting import a_question, asking_run, only_question
from tests.integration.services.conftest import TOOLS

APPROVE, DENY = Decision.APPROVE, Decision.DENY
NOWHERE = "019aa3f0-0000-7000-8000-000000000009"


@pytest.fixture
async def store(database: Database) -> RunStore:
    return (await postgres_subject(database)).store


@pytest.fixture
def interactions(database: Database, store: RunStore, agents: AgentService) -> InteractionService:
    return InteractionService(database, agents, TOOLS, RunControl(store, MemoryBus()))


async def _ask(store: RunStore, agents: AgentService, index: int | None = 0, **fields: Any) -> InteractionRecord:
    """A question of a run whose agent has a tool of the server, one of its own, and a subagent."""
    declared = {"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]}
    await agents.put("helper", AgentSettings(model="demo/echo"))
    settings = {
        "model": "demo/echo",
        "tools": ["add"],
        "tool_definitions": [{"type": "caller", "name": "send", "parameters": declared}],
        "subagents": ["helper"],
    }
    await agents.put("asker", AgentSettings.model_validate(settings))
    new = a_run(agent=(await agents.resolve("asker")).version)
    if index is None:
        owner = await create_started(store, new)
        await owner.surely(status=RunStatus.WAITING, interactions=(a_question(None, **fields),))
    else:
        await asking_run(store, a_question(index, **{"tool_name": "add", **fields}), new=new)
    (record,) = await store.interactions(new.run_id)
    return record


async def _resolve(
    interactions: InteractionService, question: InteractionRecord, *given: Any, **more: Any
) -> InteractionRecord:
    return await interactions.resolve(question.run_id, question.interaction_id, Resolution(*given, **more))


# --- finding ----------------------------------------------------------------------------------------------------------


async def test_the_inbox_has_the_questions_of_all_runs_oldest_first(
    store: RunStore, interactions: InteractionService
) -> None:
    asked = [a_question() for _ in range(4)]
    owners = [await asking_run(store, question) for question in asked]
    await store.answer(owners[1].run_id, asked[1].interaction_id, Answer(DENY))
    await store.stop(owners[2].run_id, RunStatus.CANCELLED, STOPPED)
    page = await interactions.list_all([InteractionStatus.PENDING], None, 1)
    assert [each.interaction_id for each in page.items] == [asked[0].interaction_id]
    page = await interactions.list_all([InteractionStatus.PENDING], page.next_cursor, 5)
    assert [each.interaction_id for each in page.items] == [asked[3].interaction_id]
    assert page.next_cursor is None
    every = (await interactions.list_all([], None, 5)).items
    assert [each.status for each in every] == ["pending", "resolved", "closed", "pending"]
    others = await interactions.list_all([InteractionStatus.RESOLVED, InteractionStatus.CLOSED], None, 5)
    assert [each.interaction_id for each in others.items] == [each.interaction_id for each in asked[1:3]]
    assert (await interactions.list_all([], None, 5, tenant_id="another")).items == []
    with pytest.raises(Invalid) as refused:
        await interactions.list_all([], "x", 5)
    assert refused.value.loc == ("query", "cursor")


async def test_a_runs_questions_are_paged_oldest_first(store: RunStore, interactions: InteractionService) -> None:
    asked = [a_question(i) for i in range(3)]
    owner = await asking_run(store, *asked)
    await asking_run(store, a_question())
    first = await interactions.list_run(owner.run_id, None, 2)
    rest = await interactions.list_run(owner.run_id, first.next_cursor, 2)
    assert [each.interaction_id for each in (*first.items, *rest.items)] == [each.interaction_id for each in asked]
    assert rest.next_cursor is None
    assert (await interactions.list_run((await create_started(store)).run_id, None, 2)).items == []
    for run_id in ("x", NOWHERE):
        with pytest.raises(RunNotFound):
            await interactions.list_run(run_id, None, 2)
    with pytest.raises(RunNotFound):
        await interactions.list_run(owner.run_id, None, 2, tenant_id="another")


# --- answering --------------------------------------------------------------------------------------------------------


async def test_an_answer_is_stored_and_the_run_goes_on(
    store: RunStore, agents: AgentService, interactions: InteractionService
) -> None:
    question = await _ask(store, agents)
    resolved = await _resolve(interactions, question, APPROVE, reason="fine", decided_by="ann")
    assert (resolved.status, resolved.answer) == (InteractionStatus.RESOLVED, Answer(APPROVE, reason="fine", by="ann"))
    assert (await store.get(resolved.run_id)).status is RunStatus.QUEUED


async def test_the_same_decision_again_changes_nothing_and_another_is_a_conflict(
    store: RunStore, agents: AgentService, interactions: InteractionService
) -> None:
    question = await _ask(store, agents)
    edited = {"arguments": {"a": 1}}
    first = await _resolve(interactions, question, APPROVE, **edited)
    assert await _resolve(interactions, question, APPROVE, **edited) == first
    for other in ({"decision": DENY}, {"decision": APPROVE}, {"decision": APPROVE, "arguments": {"a": 2}}):
        with pytest.raises(Conflict) as refused:
            await _resolve(interactions, question, **other)
        assert refused.value.current_status is RunStatus.QUEUED


async def test_a_run_that_is_over_takes_no_answer(
    store: RunStore, agents: AgentService, interactions: InteractionService
) -> None:
    question = await _ask(store, agents)
    await store.stop(question.run_id, RunStatus.CANCELLED, STOPPED)
    with pytest.raises(Conflict) as refused:
        await _resolve(interactions, question, APPROVE)
    assert refused.value.current_status is RunStatus.CANCELLED


@pytest.mark.parametrize(
    ("tool", "given", "stored"),
    [
        ("add", {"a": 2}, {"a": 2, "b": 1}),
        ("add", {"a": 2, "b": 3}, {"a": 2, "b": 3}),
        ("send", {"to": "ann"}, {"to": "ann"}),
        ("delegate_to_helper", {"task": "do it"}, {"task": "do it"}),
    ],
)
async def test_edited_arguments_are_stored_as_the_tool_will_get_them(
    store: RunStore,
    agents: AgentService,
    interactions: InteractionService,
    tool: str,
    given: dict[str, Any],
    stored: dict[str, Any],
) -> None:
    question = await _ask(store, agents, tool_name=tool)
    resolved = await _resolve(interactions, question, APPROVE, arguments=given)
    assert resolved.answer is not None
    assert resolved.answer.arguments is not None
    assert orjson.loads(resolved.answer.arguments) == stored


INPUT, UNKNOWN = InteractionKind.INPUT, InteractionKind.TOOL_OUTCOME_UNKNOWN


@pytest.mark.parametrize(
    ("asked", "given", "field"),
    [
        ({}, {"decision": APPROVE, "value": 1}, "value"),
        ({}, {"decision": DENY, "value": 1}, "value"),
        ({"kind": INPUT}, {"decision": DENY, "value": 1}, "value"),
        ({"kind": INPUT}, {"decision": APPROVE}, "value"),
        ({"kind": INPUT, "index": None}, {"decision": APPROVE}, "value"),
        ({"kind": INPUT, "index": None}, {"decision": APPROVE, "arguments": {}}, "arguments"),
        ({"index": None}, {"decision": APPROVE, "arguments": {}}, "arguments"),
        ({"kind": INPUT}, {"decision": APPROVE, "value": 1, "arguments": {"a": 1}}, "arguments"),
        ({"kind": UNKNOWN}, {"decision": APPROVE, "value": 1, "arguments": {"a": 1}}, "arguments"),
        ({}, {"decision": DENY, "arguments": {"a": 1}}, "arguments"),
        ({}, {"decision": APPROVE, "arguments": {}}, "arguments"),
        ({}, {"decision": APPROVE, "arguments": {"a": "many"}}, "arguments"),
        ({"tool_name": "send"}, {"decision": APPROVE, "arguments": {"to": 5}}, "arguments"),
        ({"tool_name": "gone"}, {"decision": APPROVE, "arguments": {}}, "arguments"),
        ({"tool_name": "delegate_to_helper"}, {"decision": APPROVE, "arguments": {"task": ""}}, "arguments"),
        ({"tool_name": "delegate_to_nobody"}, {"decision": APPROVE, "arguments": {"task": "x"}}, "arguments"),
        ({}, {"decision": APPROVE, "decided_by": "expiry"}, "decided_by"),
        ({}, {"decision": APPROVE, "decided_by": "headless"}, "decided_by"),
    ],
)
async def test_an_answer_that_does_not_fit_is_refused_and_the_question_stays(
    store: RunStore,
    agents: AgentService,
    interactions: InteractionService,
    asked: dict[str, Any],
    given: dict[str, Any],
    field: str,
) -> None:
    question = await _ask(store, agents, **asked)
    with pytest.raises(Invalid) as refused:
        await _resolve(interactions, question, **given)
    assert refused.value.loc == ("body", field)
    (record,) = await store.interactions(question.run_id)
    assert record.status is InteractionStatus.PENDING


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ({"kind": INPUT}, {"decision": APPROVE, "value": {"a": [1, None]}}),
        ({"kind": INPUT}, {"decision": APPROVE, "value": False}),
        ({"kind": INPUT}, {"decision": APPROVE, "arguments": {"a": 1, "b": 2}}),
        ({"kind": INPUT}, {"decision": DENY}),
        ({"kind": INPUT, "index": None}, {"decision": APPROVE, "value": "be brief"}),
        ({"kind": UNKNOWN}, {"decision": APPROVE, "value": "sent"}),
        ({"kind": UNKNOWN}, {"decision": APPROVE}),
        ({"index": None}, {"decision": DENY, "reason": "too dear"}),
    ],
)
async def test_each_kind_of_question_takes_what_fits_it(
    store: RunStore,
    agents: AgentService,
    interactions: InteractionService,
    asked: dict[str, Any],
    given: dict[str, Any],
) -> None:
    question = await _ask(store, agents, **asked)
    answer = (await _resolve(interactions, question, **given)).answer
    assert answer is not None
    shown = {"decision": answer.decision, "reason": answer.reason}
    for name in ("value", "arguments"):
        text = getattr(answer, name)
        shown[name] = None if text is None else orjson.loads(text)
    assert shown == {"reason": None, "value": None, "arguments": None, **given}


async def test_a_question_belongs_to_its_run(store: RunStore, interactions: InteractionService) -> None:
    owner = await asking_run(store, a_question())
    another = await asking_run(store, a_question())
    question = await only_question(store, owner)
    places = (
        (another.run_id, question.interaction_id),
        (owner.run_id, new_id()),
        (owner.run_id, "x"),
        ("x", question.interaction_id),
        (NOWHERE, question.interaction_id),
    )
    for run_id, interaction_id in places:
        with pytest.raises(InteractionNotFound):
            await interactions.resolve(run_id, interaction_id, Resolution(APPROVE))
    with pytest.raises(InteractionNotFound):
        await interactions.resolve(owner.run_id, question.interaction_id, Resolution(APPROVE), tenant_id="another")
