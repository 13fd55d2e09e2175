"""Servers that are programs, by the official SDK."""

from __future__ import annotations

import asyncio
import base64
import os
import sys

import psutil
import pytest

from app.engine.effects import ToolEffect
from app.engine.tools import ToolSource
from app.tools.errors import CallError, CallTimeoutError, HandlerError
from app.tools.mcp_servers import McpState
from tests.integration.tools.mcp.conftest import Playgrounds, python_server, until
from tests.integration.tools.mcp.server import PIXEL
from tests.processes import children_with


async def test_a_servers_tools_are_named_after_it_and_described_as_it_does(playground: Playgrounds) -> None:
    async with playground(box=python_server()) as play:
        tool = play.servers.find("box__add")
        assert tool is not None
        assert tool.spec.description == "Add two numbers."
        assert tool.spec.parameters["required"] == ["left"]
        assert tool.spec.source is ToolSource.MCP
        assert tool.spec.effect is ToolEffect.UNSAFE
        assert tool in play.servers.tools_of("box")
        assert tool in play.servers.all()
        assert play.servers.spec("box__add") == tool.spec
        assert play.servers.state("box").state is McpState.READY
        assert play.servers.state("box").tools == len(play.servers.all())
        assert play.servers.declared("box")
        assert not play.servers.declared("other")
        assert play.servers.find("other__add") is None
        assert play.servers.find("box__nothing") is None


async def test_a_name_that_models_do_not_take_is_mapped_to_one_that_they_do(playground: Playgrounds) -> None:
    async with playground(box=python_server()) as play:
        assert await play.call("box__with_dots_and_slashes") == "dotted"


async def test_arguments_are_held_against_the_servers_schema(playground: Playgrounds) -> None:
    async with playground(box=python_server()) as play:
        assert await play.call("box__add", left=1) == {"sum": 2}
        assert "do not fit" in await play.refusal("box__add", left="one")


async def test_the_operator_says_what_a_call_does_to_the_world(playground: Playgrounds) -> None:
    async with playground(
        plain=python_server(effects={"add": "idempotent"}, effect="read_only"),
        trusted=python_server(trust_annotations=True, effects={"echo": "unsafe"}),
    ) as play:
        effects = {tool.spec.name: tool.spec.effect for tool in play.servers.all()}
        assert effects["plain__add"] is ToolEffect.IDEMPOTENT
        assert effects["plain__fail"] is ToolEffect.READ_ONLY
        assert effects["trusted__add"] is ToolEffect.IDEMPOTENT
        assert effects["trusted__echo"] is ToolEffect.UNSAFE
        assert effects["trusted__fail"] is ToolEffect.UNSAFE


async def test_content_without_structure_is_a_list_of_its_parts(playground: Playgrounds) -> None:
    async with playground(box=python_server()) as play:
        text, image, sound, note, link = await play.call("box__mixed")
        assert text == {"type": "text", "text": "a text"}
        assert image == {"type": "image", "mime_type": "image/png", "data": base64.b64encode(PIXEL).decode()}
        assert sound["type"] == "audio"
        assert note == {"type": "resource", "uri": "note://1", "mime_type": "text/plain", "text": "hi"}
        assert link["uri"] == "file:///report.pdf"
        (large,) = await play.call("box__large_image", size=100_000)
        assert large["data"] is None
        assert large["left_out_chars"] > 100_000


async def test_a_tools_own_failure_is_told_as_what_the_handler_said(playground: Playgrounds) -> None:
    async with playground(box=python_server()) as play:
        with pytest.raises(HandlerError, match="fail"):
            await play.call("box__fail", text="no such order")


async def test_progress_reaches_the_calls_readers(playground: Playgrounds) -> None:
    async with playground(box=python_server()) as play:
        assert await play.call("box__progress", steps=2) == "done"
        assert play.said == [
            ("step 1", {"progress": 1.0, "total": 2.0}),
            ("step 2", {"progress": 2.0, "total": 2.0}),
        ]


async def test_a_server_that_reports_every_step_is_not_heard_every_time(playground: Playgrounds) -> None:
    async with playground(box=python_server()) as play:
        assert await play.call("box__progress", steps=1_000) == "done"
        assert 100 <= len(play.said) < 150


async def test_a_program_sees_its_own_environment_and_none_of_ours(playground: Playgrounds) -> None:
    env = {"GREETING": "hello", "TOKEN": "Bearer {{ secrets.token }}"}
    async with playground(box=python_server(env=env, cwd="/")) as play:
        process = await play.call("box__process")
        seen = process["environment"]
        assert seen.pop("GREETING") == "hello"
        assert seen.pop("TOKEN") == "Bearer a-secret-token"
        assert set(seen) <= {"PATH", "HOME", "LANG", "LC_CTYPE"}
        assert process["folder"] == "/"


async def test_a_call_that_takes_too_long_is_cancelled_and_the_session_kept(playground: Playgrounds) -> None:
    async with playground(box=python_server(timeout_s=1, max_sessions=1)) as play:
        before = await play.call("box__process")
        with pytest.raises(CallTimeoutError, match="timed out after 1 s; whether the call took effect is unknown"):
            await play.call("box__wait")
        assert await play.call("box__cancelled") == {"cancelled": 1}
        assert (await play.call("box__process"))["pid"] == before["pid"]


async def test_a_cancelled_call_is_cancelled_at_the_server(playground: Playgrounds) -> None:
    async with playground(box=python_server(max_sessions=1)) as play:
        call = asyncio.create_task(play.call("box__wait"))
        await until(lambda: play.said)
        call.cancel()
        await asyncio.wait({call})
        assert call.cancelled()
        assert await play.call("box__cancelled") == {"cancelled": 1}


async def test_a_server_that_dies_fails_its_call_and_comes_back(playground: Playgrounds) -> None:
    async with playground(box=python_server()) as play:
        assert await play.refusal("box__die") == (
            "the MCP server 'box' gave no answer: it ended with status 3; whether the call took effect is unknown"
        )
        assert await play.call("box__echo", text="again") == "again"


async def test_a_death_takes_no_other_call_with_it(playground: Playgrounds) -> None:
    async with playground(box=python_server(timeout_s=10)) as play:
        waiting = asyncio.create_task(play.call("box__wait"))
        await until(lambda: play.said)
        assert "status 3" in await play.refusal("box__die")
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait({waiting})


async def test_a_call_waits_for_a_session_no_longer_than_its_own_time(playground: Playgrounds) -> None:
    async with playground(box=python_server(timeout_s=1, max_sessions=1)) as play:
        waiting = asyncio.create_task(play.refusal("box__wait"))
        await until(lambda: play.said)
        refused = asyncio.create_task(play.refusal("box__echo", text="hi"))
        assert "timed out" in await waiting
        # The first one's session is free again at about the time at which the second one's is up.
        done, _ = await asyncio.wait({refused}, timeout=0.5)
        assert done


async def test_no_more_processes_than_declared_run_at_once(playground: Playgrounds) -> None:
    async with playground(box=python_server(max_sessions=2)) as play:
        calls = [play.call("box__process") for _ in range(12)]
        assert len({process["pid"] for process in await asyncio.gather(*calls)}) <= 2
        assert len(children_with("server.py")) <= 2


async def test_what_a_server_changes_is_changed_here(playground: Playgrounds) -> None:
    async with playground(box=python_server(max_sessions=1)) as play:
        kept, vanished = play.servers.find("box__echo"), play.servers.find("box__fail")
        await play.call("box__change", add=["newcomer"], remove=["fail"])
        await until(lambda: play.servers.find("box__newcomer") is not None)
        assert play.servers.find("box__fail") is None
        assert play.servers.find("box__echo") is kept
        assert await play.call("box__newcomer") == "newcomer"
        with pytest.raises(CallError, match="has no tool 'fail' any more"):
            await vanished.call({"text": "x"}, play.invocation("box__fail"))


async def test_what_a_dead_process_had_changed_is_gone_with_it(playground: Playgrounds) -> None:
    async with playground(box=python_server(max_sessions=1)) as play:
        await play.call("box__change", add=["newcomer"], remove=[])
        await until(lambda: play.servers.find("box__newcomer") is not None)
        await play.refusal("box__die")
        await until(lambda: play.servers.find("box__newcomer") is None)


async def test_what_a_server_starts_ends_with_it(playground: Playgrounds) -> None:
    async with playground(box=python_server()) as play:
        left_behind = (await play.call("box__spawn"))["pid"]
        assert psutil.pid_exists(left_behind)
    await until(lambda: not psutil.pid_exists(left_behind))


async def test_a_child_that_holds_the_output_open_does_not_hide_the_servers_death(playground: Playgrounds) -> None:
    async with playground(box=python_server()) as play:
        await play.call("box__spawn")
        assert "status 3" in await play.refusal("box__die")


async def test_a_program_that_is_not_there_is_told_and_costs_nothing(playground: Playgrounds) -> None:
    async with playground(
        gone={"command": "no-such-program"}, astray=python_server(cwd="/no/such/folder"), box=python_server()
    ) as play:
        status = play.servers.state("gone")
        assert status.state is McpState.UNAVAILABLE
        assert status.reason == "'no-such-program' cannot be started: No such file or directory"
        assert "cannot be started in /no/such/folder" in (play.servers.state("astray").reason or "")
        assert play.servers.tools_of("gone") == []
        assert await play.call("box__echo", text="hi") == "hi"


async def test_a_secret_that_is_not_there_keeps_its_server_away(playground: Playgrounds) -> None:
    async with playground(box=python_server(env={"TOKEN": "{{ secrets.none }}"})) as play:
        assert play.servers.state("box").reason == "there is no secret 'none'"


async def test_start_returns_at_once(playground: Playgrounds) -> None:
    code = "import time; time.sleep(3600)"
    async with playground(slow={"command": sys.executable, "args": ["-c", code], "start_timeout_s": 0.5}) as play:
        assert play.servers.state("slow").reason == "it was not ready after 0.5 s"
        assert os.environ["OPENAI_API_KEY"]
