from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from app.engine.agent import AgentDefinition, AgentOverrides, AgentSettings
from app.services.agent_files import AgentFileError
from app.services.agents import AgentService
from app.services.errors import Conflict, Invalid, UnknownAgent, UnknownTool


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
        ("name: a", "model: Field required"),
        ("name: a\nmodel: demo/echo\ncolour: red", "colour: Extra inputs"),
        ("name: a\nmodel: demo/echo\nlimits: {max_steps: 0}", "limits.max_steps: Input should be greater"),
        ("name: a\nmodel: nowhere/x", "model: unknown provider"),
        ("name: a\nmodel: demo/echo\ntools: [gone]", "tools.0: there is no tool 'gone'"),
        ("name: \xff", "cannot be read"),
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
