"""The example, as its README says that it is started and asked."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import asyncpg
import pytest

from tests.acceptance.client import Client
from tests.acceptance.model import Model, calls
from tests.acceptance.service import ROOT, Service
from tests.conftest import database_of
from tests.model_server import Reply

pytestmark = pytest.mark.xdist_group("examples")

FOLDER = "examples/document_analyst"
QUESTION = "Is the annual review right that every shop grew in the second half of 2024?"


@pytest.fixture(scope="module")
def service(postgres_server: str, model: Model) -> Iterator[Service]:
    name = f"examples_{os.getpid()}"

    async def execute(statement: str) -> None:
        admin = await asyncpg.connect(postgres_server)
        await admin.execute(statement)
        await admin.close()

    asyncio.run(execute(f"CREATE DATABASE {name} TEMPLATE template_runs"))
    settings = {
        "DATABASE_URL": database_of(postgres_server, name),
        "AGENTS_DIR": f"{FOLDER}/agents",
        "TOOL_MODULES": "examples.document_analyst.tools",
        "OPENAI_BASE_URL": model.base_url,
        "OPENAI_API_KEY": "the-key",
    }
    service = Service(settings, folder=ROOT)
    try:
        yield service.ready()
    finally:
        service.stop()
        asyncio.run(execute(f"DROP DATABASE {name} WITH (FORCE)"))


async def test_the_offline_agent_answers_with_what_its_tools_found(service: Service) -> None:
    async with Client(service.url) as client:
        run = await client.create_and_wait(agent="document_analyst_offline", input=QUESTION)
    result = run["result"]
    assert (run["status"], run["agent_version"]) == ("completed", 1)
    assert result["final_text"].startswith("No. Four of the five channels grew in the second half of 2024")
    tools = result["tool_executions"]
    assert {tool["tool_name"] for tool in tools} == {
        "list_documents", "read_document", "summarize_csv", "query_csv", "search_documents", "calculate",
    }  # fmt: skip
    assert all(tool["success"] for tool in tools), tools
    first_half, second_half = (tool["output"]["results"] for tool in tools if tool["tool_name"] == "query_csv")
    # The figures of the answer are those that the tools computed.
    assert (first_half["Riverside"], second_half["Riverside"]) == (27425.0, 23112.5)
    assert [shop for shop, sum_ in second_half.items() if sum_ < first_half[shop]] == ["Riverside"]
    assert tools[-1]["output"] == -15.7
    assert result["total_cost_usd"] == 0


async def test_two_variables_lead_the_agent_to_any_openai_compatible_server(service: Service, model: Model) -> None:
    model.reset()
    model.script(
        calls(("summarize_csv", {"path": "sales_2024.csv"}), ("read_document", {"path": "handbook/pricing.md"})),
        Reply(text="Online grew most."),
    )
    async with Client(service.url) as client:
        run = await client.create_and_wait(agent="document_analyst", input="Which channel grew most?")
        assert (run["status"], run["result"]["final_text"]) == ("completed", "Online grew most.")
        assert [tool["success"] for tool in run["result"]["tool_executions"]] == [True, True]
        assert {headers["authorization"] for headers in model.headers()} == {"Bearer the-key"}
        assert {request["model"] for request in model.requests()} == {"gpt-4o-mini"}
        model.script(Reply(text="Hello."))
        other = await client.create_and_wait(agent="document_analyst", input="Hello?", model="openai/my-own")
    assert other["status"] == "completed"
    assert model.requests()[-1]["model"] == "my-own"


async def test_its_agents_and_tools_are_listed(service: Service) -> None:
    async with Client(service.url) as client:
        agents = (await client.http.get("/agents")).json()["items"]
        tools = (await client.http.get("/tools")).json()["items"]
    assert {(agent["name"], agent["source"]) for agent in agents} == {
        ("document_analyst", "file"),
        ("document_analyst_offline", "file"),
    }
    mine = ["list_documents", "read_document", "search_documents", "summarize_csv", "query_csv"]
    effects = {tool["name"]: tool["effect"] for tool in tools}
    assert {effects[name] for name in mine} == {"read_only"}
