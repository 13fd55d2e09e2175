from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from app.db.database import Database
from app.engine.agent import AgentDefinition, AgentOverrides, AgentSettings
from app.engine.tool_definitions import HttpToolDefinition
from app.services.agent_checks import Grants
from app.services.agent_files import AgentFileError
from app.services.agents import AgentService
from app.services.errors import Conflict, Invalid, UnknownAgent, UnknownTool
from app.tools.http_tools import DefinitionSource
from tests.integration.services.conftest import TOOLS


def _settings(**fields: Any) -> AgentSettings:
    return AgentSettings.model_validate({"model": "demo/echo", **fields})


def _inline(**fields: Any) -> AgentDefinition:
    return AgentDefinition.model_validate({"name": "inline", "model": "demo/echo", **fields})


async def test_a_change_makes_a_version_and_the_same_content_none(agents: AgentService) -> None:
    first = await agents.put("a", _settings())
    same = await agents.put("a", _settings())
    second = await agents.put("a", _settings(instructions="Be brief."))
    assert [(each.record.version, each.created) for each in (first, same, second)] == [
        (1, True),
        (1, False),
        (2, False),
    ]
    assert (await agents.get("a")).definition.instructions == "Be brief."
    assert (await agents.get("a", 1)) == first.record
    back = await agents.put("a", _settings())
    assert back.record.version == 3


async def test_concurrent_puts_of_one_content_make_one_version(agents: AgentService) -> None:
    saved = await asyncio.gather(*(agents.put("a", _settings()) for _ in range(5)))
    assert {each.record.version for each in saved} == {1}
    assert sum(each.created for each in saved) == 1


async def test_agents_and_versions_are_paged(agents: AgentService) -> None:
    for name in ("c", "a", "b"):
        await agents.put(name, _settings())
    for text in ("x", "y"):
        await agents.put("a", _settings(instructions=text))
    page = await agents.list(None, 2)
    assert [(record.name, record.version) for record in page.items] == [("a", 3), ("b", 1)]
    assert [record.name for record in (await agents.list(page.next_cursor, 2)).items] == ["c"]
    versions = await agents.versions("a", None, 2)
    assert [record.version for record in versions.items] == [3, 2]
    assert [record.version for record in (await agents.versions("a", versions.next_cursor, 2)).items] == [1]


async def test_a_deleted_agent_is_gone_and_its_versions_serve_the_runs_that_have_them(
    agents: AgentService, another_replica: AgentService
) -> None:
    await agents.put("a", _settings())
    pinned = (await agents.resolve("a")).version
    await agents.delete("a")
    for ref in ("a", "a@1"):
        with pytest.raises(UnknownAgent):
            await agents.resolve(ref)
    with pytest.raises(UnknownAgent):
        await agents.get("a")
    with pytest.raises(UnknownAgent):
        await agents.versions("a", None, 5)
    with pytest.raises(UnknownAgent):
        await agents.delete("a")
    assert (await agents.list(None, 5)).items == []
    assert await another_replica.version(pinned.version_id) == pinned
    again = await agents.put("a", _settings(instructions="new"))
    assert (again.created, again.record.version) == (True, 2)


async def test_a_name_is_resolved_from_memory_until_it_is_forgotten(
    agents: AgentService, another_replica: AgentService
) -> None:
    await agents.put("a", _settings())
    first = await agents.resolve("a")
    assert first.check_name == "a"
    await another_replica.put("a", _settings(instructions="new"))
    assert await agents.resolve("a") == first
    agents.forget("a")
    assert (await agents.resolve("a")).version.version == 2


async def test_a_numbered_version_is_pinned(agents: AgentService) -> None:
    await agents.put("a", _settings())
    await agents.put("a", _settings(instructions="new"))
    resolved = await agents.resolve("a@1")
    assert (resolved.version.version, resolved.version.definition.instructions) == (1, "")
    assert resolved.check_name is None


@pytest.mark.parametrize("ref", ["no", "a@2", "a@", "a@x", "a@-1", "a@" + "9" * 30, "a@1@1", "@1", "", "a@１"])
async def test_an_agent_that_is_not_there_is_unknown(agents: AgentService, ref: str) -> None:
    await agents.put("a", _settings())
    with pytest.raises(UnknownAgent):
        await agents.resolve(ref)


async def test_inline_definitions_are_stored_once_per_content(
    agents: AgentService, another_replica: AgentService
) -> None:
    here = await asyncio.gather(*(agents.resolve(_inline()) for _ in range(4)))
    there = await another_replica.resolve(_inline())
    assert {each.version.version_id for each in (*here, there)} == {here[0].version.version_id}
    assert (there.version.version, there.check_name) == (None, None)
    assert (await agents.resolve(_inline(instructions="x"))).version.version_id != there.version.version_id
    assert (await agents.list(None, 5)).items == []
    with pytest.raises(UnknownAgent):
        await agents.resolve("inline")


async def test_what_a_definition_names_must_be_there(agents: AgentService) -> None:
    with pytest.raises(Invalid) as model:
        await agents.put("a", _settings(model="nowhere/x"))
    assert model.value.loc == ("body", "model")
    with pytest.raises(UnknownTool, match="'subtract'") as tool:
        await agents.put("a", _settings(tools=["add", "subtract"]))
    assert tool.value.loc == ("body", "tools", 1)
    with pytest.raises(UnknownTool) as inline:
        await agents.resolve(_inline(tools=["subtract"]))
    assert inline.value.loc == ("body", "agent", "tools", 0)
    with pytest.raises(Invalid) as override:
        agents.check_overrides(AgentOverrides.model_validate({"model": "nowhere/x"}))
    assert override.value.loc == ("body", "model")
    agents.check_overrides(AgentOverrides.model_validate({"tools": ["add"]}))


async def test_files_become_agents_that_rest_cannot_change(agents: AgentService, tmp_path: Path) -> None:
    file = tmp_path / "helper.yaml"
    file.write_text("name: helper\nmodel: demo/echo\ntools: [add]\n")
    (tmp_path / "notes.txt").write_text("not an agent")
    await agents.sync_files(tmp_path)
    record = await agents.get("helper")
    assert (record.version, record.source, record.definition.tools) == (1, "file", ["add"])
    with pytest.raises(Conflict):
        await agents.put("helper", _settings())
    with pytest.raises(Conflict):
        await agents.delete("helper")
    await agents.sync_files(tmp_path)
    assert (await agents.get("helper")).version == 1
    file.write_text("name: helper\nmodel: demo/echo\n")
    await agents.sync_files(tmp_path)
    assert (await agents.get("helper")).version == 2
    file.unlink()
    await agents.sync_files(tmp_path)
    with pytest.raises(UnknownAgent):
        await agents.get("helper")


async def test_a_folder_that_is_not_there_has_no_agents(agents: AgentService, tmp_path: Path) -> None:
    await agents.put("by-rest", _settings())
    await agents.sync_files(tmp_path / "none")
    assert [record.name for record in (await agents.list(None, 5)).items] == ["by-rest"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: [", "is no YAML"),
        ("- a", "should hold an agent's fields"),
        ("name: a", "model: this is required"),
        ("name: a\nmodel: demo/echo\ncolour: red", "colour: this is not known here"),
        ("name: a\nmodel: demo/echo\nlimits: {max_steps: 0}", "limits.max_steps: input should be greater"),
        ("name: a\nmodel: nowhere/x", "model: unknown provider"),
        ("name: a\nmodel: demo/echo\ntools: [gone]", "tools.0: there is no tool 'gone'"),
        ("name: \xff", "cannot be read"),
        ("name: a\nmodel: demo/echo\nquorum: 2", "quorum: only with join_policy: quorum"),
        (
            "name: a\nmodel: demo/echo\ntool_definitions: [{type: caller, name: b, ttl_s: 0}]",
            "tool_definitions.0.ttl_s: input should be greater",
        ),
        ("name: a\nmodel: demo/echo\nsubagents: [good, none]", "subagents.1: there is no agent 'none'"),
        ("name: a\nmodel: demo/echo\nsubagents: [a]", "subagents.0: a>a: an agent cannot delegate to itself"),
    ],
)
async def test_a_bad_file_is_named_with_its_field(
    agents: AgentService, tmp_path: Path, text: str, problem: str
) -> None:
    (tmp_path / "good.yaml").write_text("name: good\nmodel: demo/echo")
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(text.encode("latin-1"))
    with pytest.raises(AgentFileError) as refused:
        await agents.sync_files(tmp_path)
    assert str(refused.value).startswith(f"{bad}: {problem}")
    assert (await agents.list(None, 5)).items == []


async def test_two_files_cannot_name_one_agent(agents: AgentService, tmp_path: Path) -> None:
    for file in ("a.yaml", "b.yml"):
        (tmp_path / file).write_text("name: same\nmodel: demo/echo")
    with pytest.raises(AgentFileError, match=r"b\.yml: name: the agent 'same' is in .*a\.yaml too"):
        await agents.sync_files(tmp_path)


HTTP_TOOL = {"type": "http", "name": "get_order", "url": "https://api.example.com/orders"}


def _server_problem(name: str) -> str | None:
    return None if name == "files" else f"there is no MCP server {name!r}"


def _profile_problem(name: str) -> str | None:
    return None if name == "strict" else f"there is no sandbox profile {name!r}"


def _of_files_only(_: HttpToolDefinition, source: DefinitionSource) -> str | None:
    return None if source is DefinitionSource.FILE else "HTTP tools are off"


@pytest.fixture
def generous(database: Database) -> AgentService:
    """An operator who has an MCP server and a sandbox profile, and allows HTTP tools in files."""
    grants = Grants(http_tool=_of_files_only, mcp_server=_server_problem, sandbox=_profile_problem)
    return AgentService(database, TOOLS, lambda _: None, grants=grants)


_OBJECT = {"type": "object"}


@pytest.mark.parametrize(
    ("fields", "loc", "problem"),
    [
        ({"mcp_servers": ["files", "web"]}, ("mcp_servers", 1), "there is no MCP server 'web'"),
        ({"sandbox": "lax"}, ("sandbox",), "there is no sandbox profile 'lax'"),
        ({"tool_definitions": [HTTP_TOOL]}, ("tool_definitions", 0), "HTTP tools are off"),
        (
            {"tool_definitions": [{"type": "caller", "name": "ask", "parameters": {**_OBJECT, "properties": 5}}]},
            ("tool_definitions", 0, "parameters"),
            "properties",
        ),
        (
            {"mcp_servers": ["files"], "tool_definitions": [{"type": "caller", "name": "files__read"}]},
            ("tool_definitions", 0, "name"),
            "MCP server",
        ),
        ({"subagents": ["nobody"]}, ("subagents", 0), "there is no agent 'nobody'"),
        ({"tools": ["files__read"]}, ("tools", 0), "there is no tool 'files__read'"),
    ],
)
async def test_what_the_operator_does_not_have_or_allow_is_refused_where_it_is_named(
    generous: AgentService, fields: dict[str, Any], loc: tuple[str | int, ...], problem: str
) -> None:
    with pytest.raises(Invalid, match=problem) as stored:
        await generous.put("a", _settings(**fields))
    assert stored.value.loc == ("body", *loc)
    with pytest.raises(Invalid) as inline:
        await generous.resolve(_inline(**fields))
    assert inline.value.loc == ("body", "agent", *loc)
    assert (await generous.list(None, 5)).items == []


async def test_by_default_an_operator_allows_nothing(agents: AgentService) -> None:
    for fields in ({"mcp_servers": ["files"]}, {"sandbox": "strict"}, {"tool_definitions": [HTTP_TOOL]}):
        with pytest.raises(Invalid):
            await agents.put("a", _settings(**fields))


async def test_what_the_operator_has_and_allows_is_saved(generous: AgentService, tmp_path: Path) -> None:
    caller = {"type": "caller", "name": "ask"}
    await generous.put("a", _settings(mcp_servers=["files"], sandbox="strict", tool_definitions=[caller]))
    (tmp_path / "b.yaml").write_text(
        f"name: b\nmodel: demo/echo\ntool_definitions: [{orjson.dumps(HTTP_TOOL).decode()}]"
    )
    await generous.sync_files(tmp_path)
    assert (await generous.get("b")).definition.tool_definitions[0].name == "get_order"


async def test_an_agent_cannot_delegate_to_itself_however_far_down(agents: AgentService) -> None:
    await agents.put("a", _settings())
    await agents.put("b", _settings(subagents=["a"]))
    await agents.put("c", _settings(subagents=["b"]))
    await agents.put("leaf", _settings())
    with pytest.raises(Invalid, match=r"^a>c>b>a: ") as refused:
        await agents.put("a", _settings(subagents=["leaf", "c"]))
    assert refused.value.loc == ("body", "subagents", 1)
    with pytest.raises(Invalid, match=r"^a>a: "):
        await agents.put("a", _settings(subagents=["a"]))
    with pytest.raises(Invalid, match=r"^a>b>a: "):
        await agents.resolve(AgentDefinition.model_validate({"name": "a", "model": "demo/echo", "subagents": ["b"]}))
    assert (await agents.get("a")).version == 1


async def test_two_changes_at_once_make_no_circle_together(agents: AgentService, another_replica: AgentService) -> None:
    for name in ("a", "b"):
        await agents.put(name, _settings())
    both = await asyncio.gather(
        agents.put("a", _settings(subagents=["b"])),
        another_replica.put("b", _settings(subagents=["a"])),
        return_exceptions=True,
    )
    assert sorted(type(each).__name__ for each in both) == ["Invalid", "PutAgent"]


async def test_a_subagent_may_be_deleted_and_come_back(agents: AgentService) -> None:
    await agents.put("helper", _settings())
    await agents.put("a", _settings(subagents=["helper"]))
    await agents.delete("helper")
    same = await agents.put("a", _settings(subagents=["helper"]))
    assert not same.changed
    with pytest.raises(Invalid, match="there is no agent 'helper'"):
        await agents.put("a", _settings(subagents=["helper"], instructions="new"))
    with pytest.raises(Invalid, match=r"^helper>a>helper: "):
        await agents.put("helper", _settings(subagents=["a"]))
    await agents.put("helper", _settings())
    assert (await agents.put("a", _settings(subagents=["helper"], instructions="new"))).changed


async def test_files_may_name_each_other_and_stored_agents_in_any_order(agents: AgentService, tmp_path: Path) -> None:
    await agents.put("stored", _settings())
    (tmp_path / "1.yaml").write_text("name: first\nmodel: demo/echo\nsubagents: [second, stored]")
    (tmp_path / "2.yaml").write_text("name: second\nmodel: demo/echo")
    await agents.sync_files(tmp_path)
    await agents.put("stored", _settings(subagents=["second"]))
    (tmp_path / "2.yaml").write_text("name: second\nmodel: demo/echo\nsubagents: [first]")
    with pytest.raises(AgentFileError, match=r"2\.yaml: subagents\.0: second>first>second: "):
        await agents.sync_files(tmp_path)
    (tmp_path / "2.yaml").write_text("name: second\nmodel: demo/echo\nsubagents: [stored]")
    with pytest.raises(AgentFileError, match=r"2\.yaml: subagents\.0: second>stored>second: "):
        await agents.sync_files(tmp_path)
    assert (await agents.get("second")).version == 1


async def test_a_file_may_not_name_an_agent_whose_file_is_gone(agents: AgentService, tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("name: old\nmodel: demo/echo")
    await agents.sync_files(tmp_path)
    (tmp_path / "old.yaml").unlink()
    (tmp_path / "new.yaml").write_text("name: new\nmodel: demo/echo\nsubagents: [old]")
    with pytest.raises(AgentFileError, match="there is no agent 'old'"):
        await agents.sync_files(tmp_path)


async def test_a_subagent_deleted_by_rest_keeps_no_replica_from_starting(agents: AgentService, tmp_path: Path) -> None:
    await agents.put("stored", _settings())
    (tmp_path / "a.yaml").write_text("name: a\nmodel: demo/echo\nsubagents: [stored]")
    await agents.sync_files(tmp_path)
    await agents.delete("stored")
    await agents.sync_files(tmp_path)
    assert (await agents.get("a")).version == 1
