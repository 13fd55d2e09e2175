"""The tools of a sandbox, as agents call them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from app.engine.tools import ToolInvocation, ToolResult
from app.tools.sandbox.confinement import missing
from app.tools.sandbox.profile import Sandboxes, SandboxProfile
from app.tools.sandbox.tools import sandbox_tools
from tests.processes import gone, until
from tests.tool_calls import EndingRegistry

pytestmark = pytest.mark.skipif(
    missing(SandboxProfile()) is not None, reason=f"commands are refused here: {missing(SandboxProfile())}"
)

Profile = Callable[..., SandboxProfile]


class TestTools:
    @staticmethod
    def invocation(name: str, arguments: str, sandbox: str | None) -> ToolInvocation:
        names = frozenset({"run_command", "read_file", "write_file", "list_files"})
        return ToolInvocation(
            "r", "t", "a", "c", name, arguments, "k", {}, {}, names, 12_000, sanitize=False, sandbox=sandbox
        )

    async def call(
        self, registry: EndingRegistry, name: str, arguments: str, sandbox: str | None = "worker"
    ) -> ToolResult:
        return await registry.invoke(self.invocation(name, arguments, sandbox))

    async def test_run_under_the_profile_that_the_agent_names(self, profile: Profile, work: Path) -> None:
        sandboxes = Sandboxes({"worker": profile(), "nothing": SandboxProfile()})
        registry = EndingRegistry(sandbox_tools(sandboxes), sandboxes=sandboxes)
        assert registry.sandboxes() == ["worker", "nothing"]
        written = await self.call(registry, "write_file", '{"path": "a/b.txt", "content": "hello"}')
        assert written.output == f'{{"path":"{work}/a/b.txt","size":5}}'
        ran = await self.call(registry, "run_command", '{"argv": ["cat", "b.txt"], "cwd": "a"}')
        assert ran.output == '{"exit_code":0,"output":"hello"}'
        read = await self.call(registry, "read_file", '{"path": "a/b.txt", "offset": 1, "limit": 2}')
        assert read.output == f'{{"path":"{work}/a/b.txt","size":5,"content":"el","next_offset":3}}'
        listed = await self.call(registry, "list_files", '{"glob": "**/*.txt"}')
        assert listed.output == f'{{"path":"{work}","entries":[{{"name":"a/b.txt","type":"file","size":5}}]}}'
        await registry.aclose()

    async def test_refuse_without_one_or_beyond_it(self, profile: Profile) -> None:
        sandboxes = Sandboxes({"worker": profile(), "nothing": SandboxProfile()})
        registry = EndingRegistry(sandbox_tools(sandboxes), sandboxes=sandboxes)
        calls = {
            "run_command": '{"argv": ["sh"]}',
            "read_file": '{"path": "a"}',
            "write_file": '{"path": "a", "content": ""}',
            "list_files": "{}",
        }
        for name, arguments in calls.items():
            without = await self.call(registry, name, arguments, None)
            assert without.error == "this tool runs in a sandbox only, and the agent has none"
            empty = await self.call(registry, name, arguments, "nothing")
            assert "the sandbox has no folder" in str(empty.error) or "is no command" in str(empty.error)
            unknown = await self.call(registry, name, arguments, "renamed")
            assert unknown.error == "the sandbox 'renamed' is not available on this server"
        await registry.aclose()

    async def test_a_call_that_is_cancelled_leaves_no_process(self, profile: Profile, work: Path) -> None:
        sandboxes = Sandboxes({"worker": profile()})
        registry = EndingRegistry(sandbox_tools(sandboxes), sandboxes=sandboxes)
        arguments = '{"argv": ["sh", "-c", "echo $$ > pid; sleep 1000"]}'
        call = asyncio.create_task(self.call(registry, "run_command", arguments))
        await until(lambda: (work / "pid").exists() and bool((work / "pid").read_text()))
        pid = int((work / "pid").read_text())
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: gone(pid))
        await registry.aclose()
