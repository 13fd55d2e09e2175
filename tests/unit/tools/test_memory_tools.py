from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from app.db.memory import InMemoryRows
from app.engine.agent import AgentDefinition
from app.engine.effects import ToolEffect
from app.engine.memories import AgentMemories, MemoryPlace, NewMemory
from app.engine.memory_namespace import memory_namespace
from app.engine.tools import ToolResult
from app.services.memories import MemoryService
from app.tools.memory_tools import recall, remember

Call = Callable[..., Awaitable[ToolResult]]

PLACE = MemoryPlace("acme", "users/42")


@pytest.fixture
def memories() -> MemoryService:
    return MemoryService(InMemoryRows(), None)


@pytest.fixture
def told(call: Call, memories: MemoryService) -> Callable[..., Awaitable[Any]]:
    """What a call answers with, in the memories of one place."""

    async def answer(tool: Any, arguments: object, **changes: Any) -> Any:
        bound = {"memories": lambda: AgentMemories(memories, PLACE), **changes}
        result = await call(tool, arguments, **bound)
        assert result.success, result.error
        return orjson.loads(result.output or "null")

    return answer


def test_remembering_may_be_repeated_and_recalling_changes_nothing() -> None:
    assert (remember.spec.effect, recall.spec.effect) == (ToolEffect.IDEMPOTENT, ToolEffect.READ_ONLY)


def test_the_model_chooses_no_namespace() -> None:
    assert set(remember.spec.parameters["properties"]) == {"text", "key"}
    assert set(recall.spec.parameters["properties"]) == {"query", "limit"}


async def test_what_is_remembered_is_recalled(told: Any, memories: MemoryService) -> None:
    assert await told(remember, {"text": "Wants the aisle.", "key": "seat"}) == {"key": "seat", "remembered": True}
    found = await told(recall, {"query": "aisle or window?"})
    (record,) = (await memories.list(PLACE, None, 10)).items
    assert found["searched"] == "text"
    assert [(each["key"], each["text"]) for each in found["memories"]] == [("seat", "Wants the aisle.")]
    assert (record.value, record.text) == ('"Wants the aisle."', "Wants the aisle.")


async def test_a_call_that_is_repeated_remembers_once(told: Any, memories: MemoryService) -> None:
    first = await told(remember, {"text": "Wants the aisle."}, idempotency_key="run-1/1/0")
    assert await told(remember, {"text": "Wants the aisle."}, idempotency_key="run-1/1/0") == first
    await told(remember, {"text": "Wants the aisle."}, idempotency_key="run-1/1/1")
    assert len((await memories.list(PLACE, None, 10)).items) == 2


async def test_under_a_key_the_last_text_counts(told: Any) -> None:
    for text in ("Wants the aisle.", "Wants the window."):
        await told(remember, {"text": text, "key": "seat"})
    assert (await told(recall, {"query": "aisle"}))["memories"] == []
    assert [each["text"] for each in (await told(recall, {"query": "window"}))["memories"]] == ["Wants the window."]


async def test_a_value_that_says_more_than_its_text_is_told_too(told: Any, memories: MemoryService) -> None:
    await memories.put(PLACE, NewMemory.of("seat", {"row": 12}, "Has a seat."))
    await memories.put(PLACE, NewMemory.of("plain", {"seat": 1}))
    shown = {each["key"]: each.get("value") for each in (await told(recall, {"query": "seat"}))["memories"]}
    assert shown == {"seat": {"row": 12}, "plain": None}


async def test_at_most_so_many_are_recalled(told: Any) -> None:
    for number in range(8):
        await told(remember, {"text": f"tea {number}", "key": f"tea-{number}"})
    assert len((await told(recall, {"query": "tea"}))["memories"]) == 5
    assert len((await told(recall, {"query": "tea", "limit": 7}))["memories"]) == 7


@pytest.mark.parametrize(
    ("tool", "arguments", "problem"),
    [
        (remember, {"text": ""}, "text"),
        (remember, {"text": "x" * 16_001}, "text"),
        (remember, {"text": "a\0b"}, "NUL"),
        (remember, {"text": "x", "key": "a\0b"}, "key"),
        (remember, {"text": "x", "key": "x" * 256}, "key"),
        (remember, {"text": "x", "namespace": "users/43"}, "namespace"),
        (recall, {"query": ""}, "query"),
        (recall, {"query": "a\0b"}, "NUL"),
        (recall, {"query": "x", "limit": 21}, "limit"),
    ],
)
async def test_what_cannot_be_kept_is_told_to_the_model(
    call: Call, memories: MemoryService, tool: Any, arguments: object, problem: str
) -> None:
    result = await call(tool, arguments, memories=lambda: AgentMemories(memories, PLACE))
    assert not result.success
    assert problem in (result.error or "")
    assert (await memories.list(PLACE, None, 10)).items == []


@pytest.mark.parametrize(("tool", "arguments"), [(remember, {"text": "x"}), (recall, {"query": "x"})])
async def test_a_run_without_a_namespace_is_told_what_it_lacks_and_nothing_is_logged(
    call: Call, memories: MemoryService, tool: Any, arguments: object
) -> None:
    def none() -> AgentMemories:
        namespace = memory_namespace(AgentDefinition(name="keeper", model="demo/echo"), {}, None)
        return AgentMemories(memories, MemoryPlace("", namespace))

    with capture_logs() as logs:
        result = await call(tool, arguments, memories=none)
    assert not result.success
    assert (result.error or "").startswith("this agent's memories are kept for each user, and the run has no user_id")
    assert logs == []


async def test_what_cannot_be_stored_is_told_in_its_own_words_and_nothing_is_logged(
    call: Call, memories: MemoryService
) -> None:
    with capture_logs() as logs:
        result = await call(recall, {"query": "a\0b"}, memories=lambda: AgentMemories(memories, PLACE))
    assert result.error == "a NUL character cannot be stored; leave it out"
    assert logs == []


async def test_a_key_that_cannot_be_is_refused_in_words(call: Call) -> None:
    assert "should have no control characters" in ((await call(remember, {"text": "x", "key": "a\nb"})).error or "")


async def test_a_call_outside_of_a_run_is_told_so(call: Call) -> None:
    assert (await call(recall, {"query": "x"})).error == "there are no memories outside of a run"
