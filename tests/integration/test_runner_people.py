"""The in-process Runner with subagents, policy and people: as over HTTP, in memory."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from app import Agent, Answer, Decision, PolicyEngine, PolicyRule, Runner, RunnerConfig, tool
from app.db.memory import MemoryStore
from app.engine.interactions import InteractionRecord
from app.engine.status import RunStatus
from app.llm.scripted import ScriptedModel
from app.runner import RunHandle

PAY = {"tool_calls": [{"name": "pay", "arguments": {"amount": 500}}]}
RULE = PolicyRule(
    rule_id="big",
    action="request_approval",
    subjects=["tool_call"],
    tool_name="pay",
    predicate=lambda deed: deed.arguments["amount"] > 100,
)


@tool(effect="idempotent")
def pay(amount: int) -> str:
    """Pay."""
    return f"paid {amount}"


def payer(**settings: Any) -> Agent:
    return Agent("payer", "scripted/x", tools=[pay], sanitize_tool_output=False, **settings)


def runner(*turns: dict[str, Any], **options: Any) -> Runner:
    return Runner(model_client=ScriptedModel(list(turns)), policy_engine=PolicyEngine([RULE]), **options)


async def first_wait(handle: RunHandle) -> str:
    """The id of the first thing that a run waits for."""
    async for event in handle.events:
        if event.type == "run_waiting":
            return event.data["waiting_for"][0]["id"]
    raise AssertionError("the run ended without waiting")


@pytest.mark.parametrize(
    ("decision", "error"), [(Decision.APPROVE, None), (Decision.DENY, "a person denied this call")]
)
async def test_somebody_in_this_process_is_asked_and_the_run_goes_by_the_answer(
    decision: Decision, error: str | None
) -> None:
    asked: list[InteractionRecord] = []

    async def ask(interaction: InteractionRecord) -> Answer:
        asked.append(interaction)
        return Answer(decision)

    result = await runner(PAY, {"text": "done"}, ask=ask).run(payer(), user_message="pay")
    assert (result.state, result.final_text) == (RunStatus.COMPLETED, "done")
    assert [(each.tool_name, each.arguments) for each in asked] == [("pay", '{"amount":500}')]
    assert result.tool_executions[0].error == error


async def test_without_anybody_to_ask_the_fallback_counts_at_once() -> None:
    result = await runner(PAY, {"text": "done"}).run(payer(), user_message="pay")
    assert "the fallback denied this call" in (result.tool_executions[0].error or "")


async def test_a_handle_lists_and_answers_questions() -> None:
    handle = await runner(PAY, {"text": "done"}).run_handle(payer(interaction_mode="external"), user_message="pay")
    await first_wait(handle)
    (question,) = await handle.interactions()
    await handle.answer(question.interaction_id, Answer(Decision.APPROVE, arguments='{"amount": 7}'))
    result = await handle.await_result()
    assert result.tool_executions[0].output == "paid 7"


async def test_a_result_from_outside_is_given_through_the_handle() -> None:
    agent = Agent("seller", "scripted/x", tool_definitions=[{"type": "caller", "name": "pick"}])
    turns = ({"tool_calls": [{"name": "pick", "arguments": {}}]}, {"text": "done"})
    handle = await runner(*turns).run_handle(agent, user_message="sell")
    await handle.submit_tool_result(await first_wait(handle), output={"seat": "12A"})
    assert (await handle.await_result()).tool_executions[0].output == {"seat": "12A"}


async def test_an_agent_delegates_to_another_and_answers_for_it(tmp_path: Path) -> None:
    scripts = {
        "lead": [{"tool_calls": [{"name": "delegate_to_payer", "arguments": {"task": "pay 5"}}]}, {"text": "all paid"}],
        "x": [{"tool_calls": [{"name": "pay", "arguments": {"amount": 5}}]}, {"text": "paid"}],
    }
    for name, turns in scripts.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps(turns))
    store = MemoryStore()
    lead = Agent("lead", "scripted/lead", subagents=[payer(description="Pays.")])
    result = await Runner(RunnerConfig(scripts_dir=tmp_path), store=store).run(lead, user_message="go")
    assert (result.state, result.final_text) == (RunStatus.COMPLETED, "all paid")
    (child,) = result.subagent_executions
    assert (child.subagent_name, child.state, child.output_text) == ("payer", RunStatus.COMPLETED, "paid")
    assert result.usage_aggregate["llm_calls"] == 4
    assert (await store.get(child.run_id)).agent_path == "lead>payer"


async def test_two_agents_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two different agents are named 'payer'"):
        Agent("lead", "scripted/x", subagents=[payer(), Agent("other", "scripted/x", subagents=[payer()])])


async def test_a_runner_whose_run_cannot_begin_keeps_nothing_open() -> None:
    @tool(name="pay")
    def other_pay() -> None:
        """Pay otherwise."""

    mine = runner({"text": "done"})
    clash = Agent("lead", "scripted/x", tools=[pay], subagents=[Agent("payer", "scripted/x", tools=[other_pay])])
    with pytest.raises(Exception, match="two tools are named 'pay'"):
        await mine.run(clash, user_message="go")
    assert not [task for task in asyncio.all_tasks() if task.get_name() in {"claim-loop", "expiry"}]


@pytest.mark.parametrize("given", ["approve", True, None])
async def test_only_an_answer_approves(given: Any) -> None:
    async def ask(_: InteractionRecord) -> Any:
        return given

    result = await runner(PAY, {"text": "done"}, ask=ask).run(payer(), user_message="pay")
    assert "whoever was to be asked could not answer" in (result.tool_executions[0].error or "")


async def test_an_asker_that_breaks_denies_at_once() -> None:
    def ask(_: InteractionRecord) -> Answer:
        raise OSError("no terminal")

    result = await runner(PAY, {"text": "done"}, ask=ask).run(payer(), user_message="pay")
    assert not result.tool_executions[0].success


@pytest.mark.parametrize("decision", ["no", "DENY", False, None])
def test_what_is_no_decision_is_no_answer(decision: Any) -> None:
    with pytest.raises(ValueError, match="is not a valid Decision"):
        Answer(decision)


async def test_plain_words_and_values_make_an_answer() -> None:
    assert Answer("deny").decision is Decision.DENY  # pyright: ignore[reportArgumentType]
    edited = Answer.approve(arguments={"amount": 7})
    result = await runner(PAY, {"text": "done"}, ask=lambda _: edited).run(payer(), user_message="pay")
    assert result.tool_executions[0].output == "paid 7"
    with pytest.raises(ValueError, match="JSON text"):
        Answer(Decision.APPROVE, value=3)  # pyright: ignore[reportArgumentType]
