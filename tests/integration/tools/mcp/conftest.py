"""What the tests of MCP servers share: declared servers, calls of their tools, and a look at what stays behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from app.engine.tools import ToolInvocation
from app.tools.egress import Allowance, Egress
from app.tools.errors import CallError
from app.tools.hosts import HostPatterns
from app.tools.mcp_servers import McpServers, McpState, read_declarations
from app.tools.secrets import Secret, Secrets

collect_ignore = [] if shutil.which("node") and shutil.which("npm") else ["test_everything.py"]

HERE = Path(__file__).parent
WAIT_S = 30.0

SECRETS = Secrets(
    {
        "token": Secret("a-secret-token", HostPatterns.parse(["127.0.0.1"])),
        "public_token": Secret("a-public-token", HostPatterns.parse(["public.example"])),
    }
)


class Playground:
    """Declared servers under test.

    Args:
        said: what the calls reported as progress.
    """

    def __init__(self, servers: McpServers) -> None:
        self.servers = servers
        self.said: list[tuple[str, Any]] = []

    async def call(self, name: str, /, **arguments: Any) -> Any:
        """Call a tool the way the registry does: arguments as text, then the call."""
        tool = self.servers.find(name)
        assert tool is not None, f"no tool {name}"
        parsed = tool.parsed(orjson.dumps(arguments).decode())
        return await tool.call(parsed, self.invocation(name))

    async def refusal(self, name: str, /, **arguments: Any) -> str:
        """The text of a call that fails."""
        with pytest.raises(CallError) as caught:
            await self.call(name, **arguments)
        return str(caught.value)

    def invocation(self, name: str) -> ToolInvocation:
        return ToolInvocation(
            run_id="run-1",
            thread_id="thread-1",
            agent_name="analyst",
            tool_call_id="call-1",
            tool_name=name,
            arguments="{}",
            idempotency_key="run-1/1/0",
            context={},
            metadata={},
            allowed_tools=frozenset({name}),
            output_max_chars=12_000,
            progress=lambda message, data: self.said.append((message, data)),
        )


async def until(holds: Callable[[], object]) -> None:
    """Wait for a state."""
    async with asyncio.timeout(WAIT_S):
        while not holds():
            await asyncio.sleep(0.02)


async def until_ready(servers: McpServers, name: str) -> None:
    await until(lambda: servers.state(name).state is McpState.READY)


def python_server(*arguments: str, **fields: Any) -> dict[str, Any]:
    return {"command": sys.executable, "args": [str(HERE / "server.py"), "stdio", *arguments], **fields}


def hostile_server(kind: str, **fields: Any) -> dict[str, Any]:
    return {"command": sys.executable, "args": ["-u", str(HERE / "hostile.py"), kind], **fields}


async def lookup(host: str, _port: int) -> Sequence[str]:
    return {"public.example": ["93.184.215.14"], "inside.example": ["127.0.0.1"]}.get(host, [host])


Playgrounds = Callable[..., Any]


@pytest.fixture
def playground(tmp_path: Path) -> Playgrounds:
    """`async with playground(name={...}) as play`: servers by name, declared in a file, tried once, ended and gone."""

    @asynccontextmanager
    async def opened(
        *,
        settle: bool = True,
        allow: Sequence[str] = ("127.0.0.1",),
        tls: ssl.SSLContext | None = None,
        **servers: dict[str, Any],
    ) -> AsyncIterator[Playground]:
        file = tmp_path / "servers.json"
        file.write_bytes(orjson.dumps({"mcpServers": servers}))
        egress = Egress(Allowance.parse(allow), lookup=lookup, tls=tls)
        play = Playground(McpServers(read_declarations(file), SECRETS, egress))
        before = _held()
        play.servers.start()
        try:
            assert not settle or await play.servers.settled(WAIT_S)
            yield play
        finally:
            async with asyncio.timeout(10):
                await play.servers.aclose()
        await until(lambda: _held() == before)

    return opened


_OURS: set[int] = set()  # processes that the tests started themselves


def _held() -> tuple[set[int], set[str], int]:
    """Child processes of all generations, tasks but the test's own, and the number of open file descriptors."""
    tasks = {task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()}
    process = psutil.Process()
    children = {child.pid for child in process.children(recursive=True) if child.pid not in _OURS}
    return children, tasks, process.num_fds()


@pytest.fixture
def http_server() -> Iterator[Callable[..., str]]:
    """Start the server over HTTP: `http_server()` is its URL; a given port is taken again after a restart."""
    running: list[subprocess.Popen[str]] = []

    def start(port: int = 0) -> str:
        stop()
        command = [sys.executable, str(HERE / "server.py"), "http", str(port)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        running.append(process)
        _OURS.add(process.pid)
        assert process.stdout is not None
        return f"http://127.0.0.1:{int(process.stdout.readline())}/mcp"

    def stop() -> None:
        while running:
            process = running.pop()
            process.kill()
            process.communicate()

    yield start
    stop()


@pytest.fixture(autouse=True)
def _keys_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no server may see."""
    monkeypatch.setitem(os.environ, "DATABASE_URL", "postgresql://user:password@db/name")
    monkeypatch.setitem(os.environ, "OPENAI_API_KEY", "sk-ours")
