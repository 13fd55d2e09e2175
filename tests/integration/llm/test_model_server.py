"""The test server itself: as a process, and by its conventions for names."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.model_server import ModelServer


@pytest.fixture
async def process_url() -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.model_server",
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdout is not None
    yield (await process.stdout.readline()).decode().strip()
    process.terminate()
    await process.wait()


async def test_it_runs_as_a_process_that_is_scripted_over_http(process_url: str) -> None:
    root = process_url.removesuffix("/v1")
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{root}/script", json=[{"text": "Scripted."}]) as response:
            assert await response.json() == {"queued": 1}
        async with session.post(f"{root}/script", json=[{"txt": "x"}]) as response:
            assert response.status == 400
        body = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}]}
        texts: list[str] = []
        for _ in range(2):
            async with session.post(f"{process_url}/chat/completions", json=body) as response:
                texts.append((await response.json())["choices"][0]["message"]["content"])
        async with session.get(f"{root}/requests") as response:
            seen = await response.json()
    assert texts == ["Scripted.", "Hi"]
    assert [request["body"] for request in seen["requests"]] == [body, body]


async def test_tools_n_calls_the_first_tool_n_times_and_then_answers(server: ModelServer) -> None:
    parameters = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    tools = [{"type": "function", "function": {"name": "add", "parameters": parameters}}]
    messages: list[dict[str, object]] = [{"role": "user", "content": "go"}]
    async with aiohttp.ClientSession() as session:
        for _ in range(2):
            body = {"model": "tools-2", "messages": messages, "tools": tools}
            async with session.post(f"{server.base_url}/chat/completions", json=body) as response:
                message = (await response.json())["choices"][0]["message"]
            assert message["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"x":1}'}
            messages.append(message)
        body = {"model": "tools-2", "messages": messages, "tools": tools}
        async with session.post(f"{server.base_url}/chat/completions", json=body) as response:
            assert (await response.json())["choices"][0]["message"]["content"] == "All done."
        async with session.get(f"{server.base_url}/models") as response:
            assert "echo" in [model["id"] for model in (await response.json())["data"]]
