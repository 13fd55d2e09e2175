"""An MCP server of the official SDK that does on request what servers do by mistake.

`server.py stdio` speaks over its standard input and output. `server.py http PORT` listens on 127.0.0.1 (port 0 takes a
free one) and prints the port that it took.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from typing import Any

import mcp_types as types
import uvicorn
from mcp.server.mcpserver import Audio, Context, Image, MCPServer

PIXEL = b"\x89PNG\r\n\x1a\n pixel"

server = MCPServer("playground", instructions="for tests")
seen: dict[str, Any] = {"cancelled": 0}


@server.tool(annotations=types.ToolAnnotations(read_only_hint=True))
def echo(text: str) -> types.CallToolResult:
    """Say it again."""
    return types.CallToolResult(content=[types.TextContent(text=text)])


@server.tool(annotations=types.ToolAnnotations(idempotent_hint=True))
def add(left: int, right: int = 1) -> dict[str, int]:
    """Add two numbers."""
    return {"sum": left + right}


@server.tool(name="with.dots/and slashes")
def with_dots() -> types.CallToolResult:
    """A name that models do not take."""
    return types.CallToolResult(content=[types.TextContent(text="dotted")])


@server.tool(structured_output=False)
def mixed() -> list[Any]:
    """Text, an image, a sound and a resource."""
    return [
        "a text",
        Image(data=PIXEL, format="png"),
        Audio(data=b"sound", format="wav"),
        types.EmbeddedResource(resource=types.TextResourceContents(uri="note://1", mime_type="text/plain", text="hi")),
        types.ResourceLink(uri="file:///report.pdf", name="report", mime_type="application/pdf"),
    ]


@server.tool(structured_output=False)
def large_image(size: int) -> Image:
    """An image of that many bytes."""
    return Image(data=b"x" * size, format="png")


@server.tool()
def fail(text: str) -> str:
    """Fail."""
    raise ValueError(text)


@server.tool()
def long_text(size: int) -> types.CallToolResult:
    """A text of that many characters."""
    return types.CallToolResult(content=[types.TextContent(text="x" * size)])


@server.tool()
async def progress(steps: int, context: Context) -> types.CallToolResult:
    """Report progress."""
    for step in range(steps):
        await context.report_progress(step + 1, steps, f"step {step + 1}")
    return types.CallToolResult(content=[types.TextContent(text="done")])


@server.tool()
def die() -> str:
    """End the process in the middle of the call."""
    os._exit(3)


@server.tool()
async def wait(context: Context) -> str:
    """Take for ever, and mind being cancelled."""
    await context.report_progress(0)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        seen["cancelled"] += 1
        raise
    return "never"


@server.tool()
def cancelled() -> dict[str, int]:
    """How many calls of `wait` were cancelled."""
    return {"cancelled": seen["cancelled"]}


@server.tool()
async def change(add: list[str], remove: list[str], context: Context) -> dict[str, Any]:
    """Offer other tools from now on."""
    for name in add:
        server.add_tool(lambda name=name: name, name=name, description="new")
    for name in remove:
        server.remove_tool(name)
    await context.notify_tools_changed()
    await context.session.send_tool_list_changed()
    return {"pid": os.getpid()}


@server.tool()
def process() -> dict[str, Any]:
    """Who runs this, and in which environment."""
    return {"pid": os.getpid(), "environment": dict(os.environ), "folder": os.getcwd()}


@server.tool()
def spawn() -> dict[str, int]:
    """Leave a process behind, which holds the output open and ignores being asked to end."""
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"
    return {"pid": subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL).pid}


def main() -> None:
    if sys.argv[1] == "stdio":
        server.run("stdio")
        return
    listener = socket.create_server(("127.0.0.1", int(sys.argv[2])))
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    app = server.streamable_http_app()
    uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)).run([listener])


if __name__ == "__main__":
    main()
