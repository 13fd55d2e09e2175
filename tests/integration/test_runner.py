"""The in-process Runner: the same engine with the same results, without a service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from app import Agent, Runner, RunnerConfig, ToolContext, tool
from app.db.memory import MemoryStore
from app.engine.limits import Limits
from app.engine.messages import Message, Role
from app.engine.model import ModelEvent, ModelRequest
from app.engine.status import RunStatus
from app.engine.store_errors import LimitReached, RunConflict, RunNotFound
from app.llm.scripted import ScriptedModel
from app.services.errors import NotFound


@tool(effect="read_only")
def add(a: int, b: int, context: ToolContext) -> int:
    """Add two numbers."""
    assert context.run_id
    return a + b


CALLS = {"tool_calls": [{"name": "add", "arguments": {"a": 2, "b": 3}}, {"name": "add", "arguments": {"a": 4, "b": 5}}]}
SUMS = [CALLS, {"text": "5 and 9"}]
SLOW = [{"text": "too late", "delay_s": 60}]


def adder(**settings: Any) -> Agent:
    return Agent("adder", "scripted/sums", tools=[add], **settings)


def scripted(turns: list[dict[str, object]]) -> Runner:
    return Runner(model_client=ScriptedModel(turns))


def test_run_sync_answers_with_a_whole_result() -> None:
    result = scripted(SUMS).run_sync(adder(), user_message="add them")
    assert (result.state, result.final_text, result.error) == (RunStatus.COMPLETED, "5 and 9", None)
    assert [(each.tool_name, each.success, each.output) for each in result.tool_executions] == [
        ("add", True, 5),
        ("add", True, 9),
    ]
    assert {each.agent_path for each in result.tool_executions} == {"adder"}
    assert result.usage_aggregate["llm_calls"] == 2
    assert result.state_snapshot["step"] == 2
    assert result.requested_model == "scripted/sums"


async def test_run_sync_inside_an_event_loop_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"await runner\.run"):
        scripted(SUMS).run_sync(adder(), user_message="add them")


async def test_a_stream_has_every_event_in_order_and_then_the_result() -> None:
    stream = await scripted(SUMS).run_stream(adder(), user_message="add them")
    with pytest.raises(RuntimeError):
        _ = stream.result
    events = [event async for event in stream]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert (events[0].type, events[-1].type) == ("run_started", "run_completed")
    assert stream.result.final_text == "5 and 9"


async def test_a_thread_remembers_and_a_second_run_waits_for_the_first() -> None:
    model = ScriptedModel([{"text": "noted"}])
    store = MemoryStore()
    runner = Runner(model_client=model, store=store)
    async with runner:
        first, second = await asyncio.gather(
            runner.run(adder(), user_message="one", thread_id="t"),
            runner.run(adder(), user_message="two", thread_id="t"),
        )
    assert first.state is second.state is RunStatus.COMPLETED
    thread_key = (await store.get(first.run_id)).thread_key
    texts = [entry.message.text() for entry in await store.messages_after(thread_key, 0)]
    assert texts == ["one", "noted", "two", "noted"]


@pytest.mark.parametrize("state", [RunStatus.CANCELLED, RunStatus.INTERRUPTED])
async def test_a_handle_ends_a_run_in_the_middle_of_a_model_call(state: RunStatus) -> None:
    handle = await scripted(SLOW).run_handle(adder(), user_message="wait")
    async for event in handle.events:
        if event.type == "llm_called":
            await (handle.cancel() if state is RunStatus.CANCELLED else handle.interrupt())
    result = await handle.await_result()
    assert (result.state, result.final_text) == (state, "")


async def test_a_handle_pauses_at_a_step_boundary_and_goes_on() -> None:
    handle = await scripted(SUMS).run_handle(adder(), user_message="add them")
    await handle.pause()
    types: list[str] = []
    async for event in handle.events:
        types.append(event.type)
        if event.type == "run_paused":
            await handle.resume()
    assert types.index("run_paused") < types.index("run_resumed") < types.index("run_completed")
    assert (await handle.await_result()).final_text == "5 and 9"


async def test_a_run_that_met_its_time_limit_is_resumed_and_completes() -> None:
    turns: list[dict[str, object]] = [{"text": "late", "delay_s": 0.2}]
    runner = scripted(turns)
    result = await runner.run(adder(limits={"max_wall_time_s": 0.05}), user_message="wait")
    assert (result.state, result.error and result.error["code"]) == (RunStatus.INTERRUPTED, "wall_time")
    resumed = await runner.resume(adder(), run_id=result.run_id, limits=Limits(max_wall_time_s=30))
    assert (resumed.state, resumed.final_text, resumed.run_id) == (RunStatus.COMPLETED, "late", result.run_id)


async def test_a_resume_that_cannot_be_names_its_reason() -> None:
    runner = Runner(RunnerConfig(limits=Limits(max_steps=1)), model_client=ScriptedModel(SUMS))
    result = await runner.run(adder(), user_message="add them")
    assert (result.state, result.error and result.error["code"]) == (RunStatus.FAILED, "max_steps")
    with pytest.raises(LimitReached, match="max_steps"):
        await runner.resume(adder(), run_id=result.run_id)
    with pytest.raises(RunConflict, match="belongs to thread"):
        await runner.resume(adder(), run_id=result.run_id, thread_id="another")
    with pytest.raises(RunNotFound):
        await runner.resume(adder(), run_id="no-such-run")
    resumed = await runner.resume(adder(), run_id=result.run_id, limits=Limits(max_steps=2))
    assert resumed.final_text == "5 and 9"


class Town(BaseModel):
    name: str
    people: int


class InTurn:
    """A model client with an answer for each call, whatever it is asked; `asked` are the requests."""

    def __init__(self, *texts: str) -> None:
        self._answers = [ScriptedModel([{"text": text}]) for text in texts]
        self.asked: list[ModelRequest] = []

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        answer = self._answers[len(self.asked)]
        self.asked.append(request)
        return answer.stream(replace(request, messages=(Message(Role.USER, ""),)))

    async def aclose(self) -> None:
        pass


async def test_an_answer_can_be_asked_for_as_a_pydantic_model() -> None:
    client = InTurn('{"name": "Bern"}', '{"name": "Bern", "people": 134794}')
    agent = Agent("counter", "scripted/towns", response_schema=Town)
    result = await Runner(model_client=client).run(agent, user_message="How large is Bern?")
    assert Town.model_validate(result.final_structured) == Town(name="Bern", people=134794)
    assert result.usage_aggregate["llm_calls"] == 2


async def test_a_thread_is_compacted_and_goes_on_from_its_summary() -> None:
    client = InTurn("One, as you have asked me to.", "Two.", "They counted.", "Three.")
    runner = Runner(model_client=client)
    agent = Agent("counter", "scripted/counting")
    for _ in range(2):
        await runner.run(agent, user_message="Count, please.", thread_id="numbers")
    done = await runner.compact_thread(thread_id="numbers", keep_last=1, purge=True)
    assert (done.summary, done.messages_compacted) == ("They counted.", 3)
    await runner.run(agent, user_message="Count, please.", thread_id="numbers")
    summary, last, _ = client.asked[-1].messages
    assert "They counted." in summary.text()
    assert last.text() == "Two."
    with pytest.raises(NotFound):
        await runner.compact_thread(thread_id="nowhere")


async def test_memories_last_as_long_as_the_runner_and_are_each_users_own(tmp_path: Path) -> None:
    (tmp_path / "note.yaml").write_text(
        "- tool_calls: [{name: remember, arguments: {text: Likes tea.}}]\n- text: Noted.\n"
    )
    (tmp_path / "ask.yaml").write_text("- tool_calls: [{name: recall, arguments: {query: tea}}]\n- text: Tea it is.\n")
    runner = Runner(RunnerConfig(scripts_dir=tmp_path))

    async def said(script: str, user_id: str | None) -> Any:
        agent = Agent(
            "keeper", f"scripted/{script}", tools=["remember", "recall"], memory_namespace="users/{{ user_id }}"
        )
        (call,) = (await runner.run(agent, user_message="Go.", user_id=user_id)).tool_executions
        return call.output if call.success else call.error

    assert (await said("note", "ada"))["remembered"]
    assert [memory["text"] for memory in (await said("ask", "ada"))["memories"]] == ["Likes tea."]
    assert (await said("ask", "bob"))["memories"] == []
    assert "user_id" in await said("ask", None)
