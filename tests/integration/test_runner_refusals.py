"""What a `Runner` refuses before anything is executed: what the service refuses, in its words."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from app import Agent, InvalidArgument, Runner, RunnerConfig, tool
from app.api.schemas.run_create import RunCreate
from app.db.memory import MemoryStore
from app.engine.agent import AgentVersion
from app.engine.messages import ContentPart
from app.engine.ownership import Created
from app.engine.records import NewRun
from app.engine.status import RunStatus
from app.llm.scripted import ScriptedModel

MODEL = "openai/gpt-4o-mini"
NOWHERE = {"type": "object", "properties": {"x": {"$ref": "#/nope"}}}
OF_AN_OBJECT = 'the schema should be of "type": "object"'
DOG = "https://example.com/dog.png"


def image(url: str) -> list[ContentPart]:
    return [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]


class Untouched(MemoryStore):
    """A store that a refused run must not reach."""

    async def create(self, new: NewRun, *, owner: str | None) -> Created:
        raise AssertionError("a run was made")

    def put_agent_version(self, version: AgentVersion, tenant_id: str = "") -> None:
        raise AssertionError("an agent was kept")


async def refused(agent: Agent, message: Any = "x", model_client: ScriptedModel | None = None) -> InvalidArgument:
    """What speaks against a run, of which then nothing is left."""
    with pytest.raises(InvalidArgument) as refusal:
        await Runner(store=Untouched(), model_client=model_client).run(agent, user_message=message)
    assert "claim-loop" not in {task.get_name() for task in asyncio.all_tasks()}
    return refusal.value


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": "gpt-4o"}, "agent 'a': model: model 'gpt-4o' has no provider prefix, as in openai/gpt-4o-mini"),
        ({"model": "opnai/x"}, "agent 'a': model: unknown provider 'opnai' in model 'opnai/x'; did you mean openai/x"),
        ({"model": "scripted/x"}, "agent 'a': model: scripted/x: no folder of scripts is set"),
        ({"fallback_models": ["demo/echo", "gpt-4o"]}, "agent 'a': fallback_models.1: model 'gpt-4o' has no provider"),
        ({"tools": ["recall", "nope"]}, "agent 'a': tools.1: there is no tool 'nope'; give the function itself"),
        ({"sandbox": "nope"}, "agent 'a': sandbox: there is no sandbox profile 'nope'; SANDBOX_FILE"),
        ({"mcp_servers": ["nope"]}, "agent 'a': mcp_servers.0: there is no MCP server 'nope'; MCP_SERVERS_FILE"),
        ({"response_schema": {"type": "string"}}, f"agent 'a': response_schema: {OF_AN_OBJECT}"),
        ({"response_schema": NOWHERE}, "agent 'a': response_schema: "),
        (
            {"tool_definitions": [{"type": "caller", "name": "pick", "parameters": NOWHERE}]},
            "agent 'a': tool_definitions.0.parameters: ",
        ),
    ],
)
async def test_a_definition_that_cannot_work_is_refused_with_its_field(settings: dict[str, Any], says: str) -> None:
    refusal = await refused(Agent(**{"name": "a", "model": MODEL, **settings}))
    assert str(refusal).startswith(says)
    assert isinstance(refusal, ValueError)


async def test_a_subagent_is_looked_at_as_well() -> None:
    lead = Agent("lead", MODEL, subagents=[Agent("below", MODEL, subagents=[Agent("lowest", "gpt-4o")])])
    refusal = await refused(lead)
    assert (refusal.agent, refusal.loc) == ("lowest", ("model",))


async def test_a_runner_with_a_client_of_its_own_knows_any_model() -> None:
    client = ScriptedModel([{"text": "hello"}])
    agent = Agent("a", "gpt-4o", fallback_models=["another"])
    result = await Runner(model_client=client).run(agent, user_message="x")
    assert result.state is RunStatus.COMPLETED
    assert (await refused(Agent("a", "gpt-4o", tools=["nope"]), model_client=client)).loc == ("tools", 0)


@tool(effect="read_only")
def add(a: int, b: int) -> int:
    """Add."""
    return a + b


async def test_a_tool_may_be_named_that_another_agent_of_the_family_brings() -> None:
    runner = Runner(model_client=ScriptedModel([{"text": "hello"}]))
    lead = Agent("lead", MODEL, tools=["add"], subagents=[Agent("adder", MODEL, tools=[add])])
    assert (await runner.run(lead, user_message="x")).state is RunStatus.COMPLETED


async def test_a_refused_agent_leaves_no_tools_behind() -> None:
    @tool(name="add", effect="read_only")
    def add_better(a: int, b: int) -> int:
        """Add better."""
        return a + b

    async with Runner(model_client=ScriptedModel([{"text": "hello"}])) as runner:
        with pytest.raises(InvalidArgument):
            await runner.run(Agent("a", MODEL, tools=[add, "nope"]), user_message="x")
        result = await runner.run(Agent("a", MODEL, tools=[add_better]), user_message="x")
    assert result.state is RunStatus.COMPLETED


async def test_a_resumed_run_is_given_no_agent_that_cannot_work() -> None:
    runner = Runner(model_client=ScriptedModel([{"text": "late", "delay_s": 0.2}]))
    agent = Agent("a", MODEL, limits={"max_wall_time_s": 0.05})
    result = await runner.run(agent, user_message="x")
    assert result.state is RunStatus.INTERRUPTED
    with pytest.raises(InvalidArgument, match=r"tools\.0"):
        await runner.resume(Agent("a", MODEL, tools=["nope"]), run_id=result.run_id)


@pytest.mark.parametrize("subagent", ["payer", Agent, {"name": "payer"}])
def test_a_subagent_that_is_no_agent_is_refused(subagent: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"agent 'lead': subagents\.0: should be an Agent, "):
        Agent("lead", MODEL, subagents=[subagent])


@pytest.mark.parametrize("schema", ["Town", 3, int])
def test_a_response_schema_that_is_no_schema_is_refused(schema: Any) -> None:
    with pytest.raises(ValueError, match="response_schema"):
        Agent("a", MODEL, response_schema=schema)


def test_a_telemetry_that_there_is_not_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"telemetry: .*'bogus'.* console, json, otel"):
        Runner(telemetry="bogus")  # pyright: ignore[reportArgumentType]


async def test_a_message_may_have_images() -> None:
    store = MemoryStore()
    runner = Runner(model_client=ScriptedModel([{"text": "a dog"}]), store=store)
    result = await runner.run(Agent("a", MODEL), user_message=image(DOG))
    assert result.final_text == "a dog"
    (message, _) = await store.messages_after((await store.get(result.run_id)).thread_key, 0)
    assert message.message.content == image(DOG)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "data:text/plain;base64,aGk=", "dog.png", "ftp://example.com/x"])
async def test_an_image_is_refused_in_the_words_of_the_service(url: str) -> None:
    refusal = await refused(Agent("a", MODEL), image(url))
    says = "should be an https:, http: or data:image/...;base64, URL"
    assert str(refusal) == f"user_message.1.image_url.url: {says}"
    with pytest.raises(ValueError, match=says):
        RunCreate.model_validate({"agent": "a", "input": [{"role": "user", "content": image(url)}]})


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (None, "user_message: "),
        (3, "user_message: "),
        ([], "user_message: "),
        ([{"type": "text"}], "user_message.0.text: "),
        ([{"type": "sound", "url": DOG}], "user_message.0: "),
    ],
)
async def test_a_message_that_is_none_is_refused(message: Any, field: str) -> None:
    assert str(await refused(Agent("a", MODEL), message)).startswith(field)


class Town(BaseModel):
    name: str


async def test_what_the_runner_knows_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "town.yaml").write_text('- text: \'{"name": "Bern"}\'\n')
    agent = Agent(
        "a", "scripted/town", tools=["remember"], fallback_models=["gemini/gemini-2.5-flash"], response_schema=Town
    )
    result = await Runner(RunnerConfig(scripts_dir=tmp_path)).run(agent, user_message="x")
    assert result.final_structured == {"name": "Bern"}
