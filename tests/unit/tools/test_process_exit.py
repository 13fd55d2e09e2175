"""A tool that never returns does not keep the process alive."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

PRELUDE = """
import asyncio, threading
from app.engine.tools import ToolInvocation
from app.tools import ToolRegistry, tool

def invocation(name):
    return ToolInvocation("r", "t", "a", "c", name, "{}", "k", {}, {}, frozenset({name}), 1000)
"""

BLOCKED_THREAD = """
@tool(timeout_s=0.05)
def block():
    threading.Event().wait()

async def main():
    registry = ToolRegistry([block], max_threads=1)
    for _ in range(3):
        print((await registry.invoke(invocation("block"))).error)

asyncio.run(main())
print("exit")
"""

STUBBORN_TASK = """
@tool(timeout_s=0.05)
async def stubborn():
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue

async def main():
    registry = ToolRegistry([stubborn])
    print((await registry.invoke(invocation("stubborn"))).error)
    await registry.aclose()

asyncio.run(main())
print("exit")
"""


@pytest.mark.parametrize(
    ("script", "lines"),
    [
        (
            BLOCKED_THREAD,
            ["timed out after 0.05 s"] * 2 + ["not started: all 1 tool threads were busy for 0.05 s", "exit"],
        ),
        (STUBBORN_TASK, ["timed out after 0.05 s", "exit"]),
    ],
    ids=["a blocked thread", "a task that swallows cancellation"],
)
def test_a_tool_that_never_returns_does_not_stop_process_exit(script: str, lines: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert [line for line in printed if line in lines] == lines
    assert "Error" not in done.stderr
