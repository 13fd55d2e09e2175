"""Files and commands as tools. They run under an operator's profile only."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from app.engine.effects import ToolEffect
from app.telemetry.logs import get_logger
from app.tools.errors import CallError
from app.tools.function_tool import FunctionTool, tool
from app.tools.sandbox import files
from app.tools.sandbox.command import run_command
from app.tools.sandbox.confinement import missing
from app.tools.sandbox.profile import MAX_TIMEOUT_S, Sandboxes, SandboxProfile
from app.tools.tool_context import ToolContext

_COMMAND_TIMEOUT_S = MAX_TIMEOUT_S + 60.0  # the profile's own comes first

_log = get_logger(__name__)

_Path = Annotated[str, Field(max_length=4096)]


def sandbox_tools(sandboxes: Sandboxes) -> list[FunctionTool[..., Any]]:
    """`run_command`, `read_file`, `write_file` and `list_files`, bounded by the profile that a call's agent names."""

    for name, profile in sandboxes.items():
        if profile.commands and (reason := missing(profile)) is not None:
            _log.warning("sandbox_runs_no_commands", sandbox=name, reason=reason)

    def profile_of(context: ToolContext) -> SandboxProfile:
        if context.sandbox is None:
            raise CallError("this tool runs in a sandbox only, and the agent has none")
        return sandboxes[context.sandbox]

    @tool(name="run_command", effect=ToolEffect.UNSAFE, timeout_s=_COMMAND_TIMEOUT_S)
    async def run(
        argv: Annotated[list[str], Field(min_length=1, examples=[["git", "status", "--short"]])],
        context: ToolContext,
        cwd: _Path | None = None,
    ) -> dict[str, Any]:
        """Run a program of the sandbox and answer with its exit code and its output.

        Args:
            argv: the program and its arguments, one item each. There is no shell: no pipes, no `*`, no variables.
            cwd: the folder to run it in; the sandbox's first one by default.
        """
        return await run_command(profile_of(context), argv, cwd)

    @tool(effect=ToolEffect.READ_ONLY)
    def read_file(
        path: _Path,
        context: ToolContext,
        offset: Annotated[int, Field(ge=0, le=2**53)] = 0,
        limit: Annotated[int, Field(ge=1, le=2**53)] | None = None,
    ) -> dict[str, Any]:
        """Read a text file of the sandbox, or a piece of a long one.

        Args:
            offset: where to begin, in bytes; an answer's `next_offset` is where the next piece begins.
            limit: the most bytes to read.
        """
        return files.read_file(profile_of(context), path, offset, limit)

    @tool(effect=ToolEffect.IDEMPOTENT)
    def write_file(path: _Path, content: str, context: ToolContext) -> dict[str, Any]:
        """Write a whole file of the sandbox, in place of what it held; missing folders are made.

        Args:
            content: all that the file is to hold.
        """
        return files.write_file(profile_of(context), path, content)

    @tool(effect=ToolEffect.READ_ONLY)
    def list_files(
        context: ToolContext,
        path: _Path = ".",
        glob: Annotated[str, Field(max_length=500, examples=["**/*.py"])] | None = None,
    ) -> dict[str, Any]:
        """List a folder of the sandbox, or all that lies beneath it and matches a pattern.

        Args:
            glob: a pattern of paths from that folder on: `*` within a name, `**` for any folders in between.
        """
        return files.list_files(profile_of(context), path, glob)

    return [run, read_file, write_file, list_files]
