"""Nothing of a server outlives its end, however its calls went."""

from __future__ import annotations

import asyncio
import random
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from typing import Any

import uvloop

from app.tools.errors import CallError
from tests.integration.tools.mcp.conftest import Playground, Playgrounds, hostile_server, python_server

CALLS = 50


async def test_fifty_calls_with_failures_leave_nothing_behind(
    playground: Playgrounds, http_server: Callable[..., str]
) -> None:
    await fifty_calls(playground, http_server())


def test_nor_do_they_on_the_event_loop_that_the_service_runs_on(
    playground: Playgrounds, http_server: Callable[..., str]
) -> None:
    uvloop.run(fifty_calls(playground, http_server()))


async def fifty_calls(playground: Playgrounds, url: str) -> None:
    # uvloop opens a file of its own with its first process.
    await (await asyncio.create_subprocess_exec(sys.executable, "-c", "", stdin=PIPE, stdout=PIPE, stderr=PIPE)).wait()
    # That nothing is left - no process, no task, no file descriptor - is what the end of the block waits for.
    servers = {
        "program": python_server(timeout_s=3),
        "far": {"url": url, "timeout_s": 3, "max_sessions": 4},
        "deaf": hostile_server("deaf", timeout_s=1),
        "flood": hostile_server("endless_messages", timeout_s=3),
    }
    calls: list[tuple[str, dict[str, Any]]] = [
        ("program__echo", {"text": "x"}),
        ("program__fail", {"text": "x"}),
        ("program__die", {}),
        ("program__spawn", {}),
        ("far__echo", {"text": "x"}),
        ("far__wait", {}),
        ("far__progress", {"steps": 20}),
        ("deaf__misbehave", {}),
        ("deaf__echo", {"text": "x"}),
        ("flood__misbehave", {}),
    ]
    dice = random.Random(1)
    async with playground(**servers) as play:
        outcomes = await asyncio.gather(*(_call(play, dice, *calls[number % len(calls)]) for number in range(CALLS)))
    assert set(outcomes) == {"value", "failure", "cancelled"}


async def _call(play: Playground, dice: random.Random, name: str, arguments: dict[str, Any]) -> str:
    """Some calls are given up by their callers, at any time."""
    call = asyncio.ensure_future(play.call(name, **arguments))
    await asyncio.wait({call}, timeout=dice.choice([0.01, 0.3, 10]))
    call.cancel()
    await asyncio.wait({call})
    if call.cancelled():
        return "cancelled"
    return "failure" if isinstance(call.exception(), CallError) else "value" if call.exception() is None else "broken"


async def test_an_end_in_the_middle_of_connecting_leaves_nothing_behind(playground: Playgrounds) -> None:
    for moment in (0.0, 0.05, 0.2, 0.6):
        async with playground(settle=False, program=python_server(), mute=hostile_server("silent")):
            await asyncio.sleep(moment)


async def test_the_package_is_not_imported_without_a_server() -> None:
    code = (
        "import asyncio, sys\n"
        "from app.tools import ToolRegistry\n"
        "from app.tools.egress import Allowance, Egress\n"
        "from app.tools.mcp_servers import McpServers\n"
        "from app.tools.secrets import Secrets\n"
        "async def main():\n"
        "    servers = McpServers({}, Secrets(), Egress(Allowance()))\n"
        "    servers.start()\n"
        "    assert await servers.settled(1)\n"
        "    await servers.aclose()\n"
        "asyncio.run(main())\n"
        "assert not {'mcp', 'mcp_types', 'anyio', 'httpx2'} & set(sys.modules)\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0
