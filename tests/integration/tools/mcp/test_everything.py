"""The protocol's own example server, which shares no code with the SDK that speaks to it here.

Collected only where `node` and `npm` are (see `conftest.py`); its package comes from the npm registry.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.tools.errors import CallTimeoutError
from tests.integration.tools.mcp.conftest import Playgrounds, until

PACKAGE = "@modelcontextprotocol/server-everything"
VERSION = "2026.8.31"

Declared = dict[str, Any]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's start file, installed once."""
    folder = tmp_path_factory.mktemp("everything")
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--silent", "--prefer-offline"]
    subprocess.run([*install, "--prefix", folder, f"{PACKAGE}@{VERSION}"], check=True, cwd=folder)
    return folder / "node_modules" / PACKAGE / "dist" / "index.js"


@contextmanager
def over_stdio(program: Path) -> Iterator[Declared]:
    yield {"command": "node", "args": [str(program), "stdio"]}


@contextmanager
def over_http(program: Path) -> Iterator[Declared]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    server = subprocess.Popen(
        ["node", program, "streamableHttp"],
        env={**os.environ, "PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    while f"port {port}" not in server.stderr.readline():
        assert server.poll() is None
    yield {"url": f"http://127.0.0.1:{port}/mcp"}
    server.kill()
    server.communicate()


@pytest.fixture(params=[over_stdio, over_http])
def declared(request: pytest.FixtureRequest, program: Path) -> Iterator[Declared]:
    serve: Callable[[Path], Any] = request.param
    with serve(program) as declaration:
        yield declaration


async def test_its_tools_can_be_called(playground: Playgrounds, declared: Declared) -> None:
    async with playground(all=declared) as play:
        assert await play.call("all__echo", message="hello") == "Echo: hello"
        assert "is 5" in await play.call("all__get-sum", a=2, b=3)
        assert set(await play.call("all__get-structured-content", location="Chicago")) >= {"temperature", "humidity"}
        assert "do not fit" in await play.refusal("all__get-sum", a="two", b=3)


async def test_its_parts_other_than_text_keep_their_kind(playground: Playgrounds, declared: Declared) -> None:
    async with playground(all=declared) as play:
        kinds = [(part["type"], part.get("mime_type")) for part in await play.call("all__get-tiny-image")]
        assert ("image", "image/png") in kinds
        links = await play.call("all__get-resource-links", count=2)
        assert [part["type"] for part in links] == ["text", "resource_link", "resource_link"]
        resource = await play.call("all__get-resource-reference", resourceType="Text", resourceId=1)
        assert "Resource 1" in next(part["text"] for part in resource if part["type"] == "resource")


async def test_its_progress_is_told(playground: Playgrounds, declared: Declared) -> None:
    async with playground(all=declared) as play:
        await play.call("all__trigger-long-running-operation", duration=0.3, steps=3)
        assert [data for _, data in play.said] == [{"progress": step, "total": 3} for step in (1, 2, 3)]


async def test_a_call_of_it_can_be_given_up(playground: Playgrounds, declared: Declared) -> None:
    async with playground(all={**declared, "timeout_s": 1, "max_sessions": 1}) as play:
        with pytest.raises(CallTimeoutError):
            await play.call("all__trigger-long-running-operation", duration=60, steps=600)
        assert await play.call("all__echo", message="hello") == "Echo: hello"


async def test_calls_at_once_do_not_get_in_each_others_way(playground: Playgrounds, declared: Declared) -> None:
    async with playground(all={**declared, "max_sessions": 4}) as play:
        answers = await asyncio.gather(*(play.call("all__echo", message=str(number)) for number in range(40)))
        assert answers == [f"Echo: {number}" for number in range(40)]
        await until(lambda: play.servers.state("all").tools > 5)
