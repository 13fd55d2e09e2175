"""However a run of a `Runner` ends, and whatever breaks: who waits for it hears of it, and nothing stays open."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest

from app import Agent, Runner, RunnerConfig
from app.db.memory import MemoryStore
from app.engine.errors import RunError
from app.engine.model import ModelEvent, ModelRequest, TextDelta
from app.engine.ownership import Committed, Fence, Loaded, Woken, Write
from app.engine.records import Stopped
from app.engine.status import RunStatus
from app.engine.store_errors import StoreUnavailable
from app.llm.scripted import ScriptedModel
from app.runner import RunAbandoned, RunHandle
from tests.model_server import ModelServer, Reply

AGENT = Agent("talker", "openai/gpt-4o-mini")
# A test that hangs is to fail; nothing that these tests promise takes a second.
ENDS_WITHIN_S = 30.0


class Unloadable(MemoryStore):
    """A store that fails in a way that nobody foresaw where a run begins that was not opened as it was made."""

    async def load(self, run_id: str) -> Loaded:
        if (await self.get(run_id)).agent_name == AGENT.definition.name:
            raise KeyError(run_id)
        return await super().load(run_id)


class Endless(Unloadable):
    """And in which no run can be ended either."""

    async def stop(self, run_id: str, status: RunStatus, reason: RunError) -> Stopped:
        raise ValueError("no more ends")


class Unwritable(MemoryStore):
    async def commit(self, fence: Fence, thread_key: str, write: Write) -> Committed | Woken | None:
        raise StoreUnavailable("the store is gone")


class Cancelling:
    """A model client that gives up by the error that otherwise means that somebody cancelled the run."""

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        yield TextDelta("I")
        raise asyncio.CancelledError

    async def aclose(self) -> None:
        pass


def talking(*turns: dict[str, Any], store: MemoryStore | None = None) -> Runner:
    return Runner(model_client=ScriptedModel(list(turns) or [{"text": "hello"}]), store=store)


async def test_a_run_whose_task_fails_is_a_failed_run_and_its_thread_goes_on() -> None:
    async with asyncio.timeout(ENDS_WITHIN_S), talking(store=Unloadable()) as runner:
        result = await runner.run(AGENT, user_message="x", thread_id="t")
        other = await runner.run(Agent("other", "openai/gpt-4o-mini"), user_message="x", thread_id="t")
    assert (result.state, result.error and result.error["code"]) == (RunStatus.FAILED, "internal")
    assert "KeyError" in result.final_text
    assert other.final_text == "hello"


async def test_a_stream_whose_run_fails_so_ends_with_that_event() -> None:
    async with asyncio.timeout(ENDS_WITHIN_S):
        stream = await talking(store=Unloadable()).run_stream(AGENT, user_message="x", thread_id="t")
        types = [event.type async for event in stream]
    assert types[-1] == "run_failed"
    assert stream.result.state is RunStatus.FAILED


async def test_a_subagent_whose_task_fails_is_an_error_to_its_parent() -> None:
    lead = Agent("lead", "openai/gpt-4o-mini", subagents=[AGENT])
    turns: tuple[dict[str, Any], ...] = (
        {"tool_calls": [{"name": "delegate_to_talker", "arguments": {"task": "talk"}}]},
        {"text": "it could not"},
    )
    async with asyncio.timeout(ENDS_WITHIN_S):
        result = await talking(*turns, store=Unloadable()).run(lead, user_message="x")
    assert (result.state, result.final_text) == (RunStatus.COMPLETED, "it could not")
    (child,) = result.subagent_executions
    assert (child.success, child.state) == (False, RunStatus.FAILED)


async def test_a_model_client_that_raises_a_cancellation_of_its_own_ends_the_run() -> None:
    async with asyncio.timeout(ENDS_WITHIN_S):
        result = await Runner(model_client=Cancelling()).run(AGENT, user_message="x")
    assert (result.state, result.error and result.error["code"]) == (RunStatus.FAILED, "internal")


async def test_a_store_that_takes_no_writes_ends_the_run() -> None:
    async with asyncio.timeout(ENDS_WITHIN_S):
        result = await talking(store=Unwritable()).run(AGENT, user_message="x")
    assert (result.state, result.error and result.error["code"]) == (RunStatus.FAILED, "internal")
    assert "the store is gone" in result.final_text


async def test_where_not_even_the_end_can_be_stored_all_who_wait_are_told() -> None:
    lead = Agent("lead", "openai/gpt-4o-mini", subagents=[AGENT])
    turn: dict[str, Any] = {"tool_calls": [{"name": "delegate_to_talker", "arguments": {"task": "talk"}}]}
    for agent, thread_id in ((AGENT, "t"), (lead, None)):
        runner = talking(turn, store=Endless())
        async with asyncio.timeout(ENDS_WITHIN_S):
            handle = await runner.run_handle(agent, user_message="x", thread_id=thread_id)
            with pytest.raises(RunAbandoned, match="no more ends"):
                await handle.await_result()
        assert _at_work() == set()


async def test_who_waits_for_a_run_of_a_runner_that_is_closed_is_told() -> None:
    runner = talking({"text": "late", "delay_s": 3600})
    handle = await runner.run_handle(AGENT, user_message="x")
    waiting = asyncio.create_task(handle.await_result())
    await _begun(handle)
    await runner.aclose()
    async with asyncio.timeout(ENDS_WITHIN_S):
        with pytest.raises(RunAbandoned, match="the runner was closed"):
            await waiting


async def test_the_result_of_a_run_that_was_over_can_be_had_after_its_runner_was_left() -> None:
    async with talking() as runner:
        handle = await runner.run_handle(AGENT, user_message="x")
        types = [event.type async for event in handle.events]
    assert types[-1] == "run_completed"
    assert (await handle.await_result()).final_text == "hello"


async def test_a_handle_of_a_runner_that_was_closed_does_not_close_its_next_use() -> None:
    runner = talking({"text": "late", "delay_s": 3600})
    first = await runner.run_handle(AGENT, user_message="x")
    await runner.aclose()
    second = await runner.run_handle(AGENT, user_message="x")
    await first.close()
    assert f"run-{second.run_id}" in _at_work()
    await second.cancel()
    assert (await second.await_result()).state is RunStatus.CANCELLED
    assert _at_work() == set()


async def _leave_context(runner: Runner, server: ModelServer) -> None:
    async with runner:
        await runner.run_handle(AGENT, user_message="x")
        await server.until(lambda server: server.open == 1)


async def _close(runner: Runner, server: ModelServer) -> None:
    await runner.run_handle(AGENT, user_message="x")
    await server.until(lambda server: server.open == 1)
    await runner.aclose()


async def _cut_off(runner: Runner, server: ModelServer) -> None:
    running = asyncio.create_task(runner.run(AGENT, user_message="x"))
    await server.until(lambda server: server.open == 1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


@pytest.mark.parametrize("leave", [_leave_context, _close, _cut_off])
async def test_a_runner_that_is_left_in_the_middle_of_a_run_keeps_nothing_open(
    leave: Callable[[Runner, ModelServer], Awaitable[None]],
) -> None:
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
    async with ModelServer() as server:
        server.script([Reply(delay_s=3600.0)])
        await leave(Runner(RunnerConfig(openai_base_url=server.base_url)), server)
        await server.until(lambda server: server.open == 0)
        assert _at_work() == set()
        gc.collect()  # what was not closed says so when it goes
    assert complaints == []


async def _begun(handle: RunHandle) -> None:
    async for event in handle.events:
        if event.type == "llm_called":
            return


def _at_work() -> set[str]:
    """What runners have under way: runs, and what is behind them."""
    names = {task.get_name() for task in asyncio.all_tasks()}
    return {name for name in names if name in {"claim-loop", "expiry"} or name.startswith("run-")}
