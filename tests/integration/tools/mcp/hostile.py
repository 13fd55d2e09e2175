"""An MCP server written by hand (protocol 2025-11-25, stdio), which is what its argument says.

The SDK's server cannot break the protocol; this one can.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

TOOLS: list[dict[str, Any]] = [
    {"name": "misbehave", "inputSchema": {"type": "object", "properties": {}}},
    {"name": "echo", "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}}},
]


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def log(text: str) -> None:
    send({"method": "notifications/message", "params": {"level": "info", "data": text}})


def endless_line() -> NoReturn:
    while True:
        sys.stdout.write("x" * 8192)


def endless_messages() -> NoReturn:
    while True:
        log("x" * 100)


def endless_requests() -> NoReturn:
    number = 0
    while True:
        number += 1
        send({"id": f"ping-{number}", "method": "ping"})


def endless_junk() -> NoReturn:
    while True:
        sys.stdout.write("starting up ...\n")


def endless_complaints() -> NoReturn:
    while True:
        os.write(2, b"x" * 8192 + b"\n")


def deaf() -> NoReturn:
    while True:
        time.sleep(3600)


def stubborn() -> NoReturn:
    """Neither asking nor closing its input ends it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    deaf()


def no_result(identifier: object) -> None:
    send({"id": identifier, "result": {"content": "nothing of the kind"}})


def own_error(identifier: object) -> None:
    # A code that the SDK's client also uses itself, for a connection that was closed.
    send({"id": identifier, "error": {"code": -32000, "message": "the database is away"}})


MISBEHAVIOUR: dict[str, Callable[[], NoReturn]] = {
    "endless_line": endless_line,
    "endless_messages": endless_messages,
    "endless_requests": endless_requests,
    "endless_junk": endless_junk,
    "endless_complaints": endless_complaints,
    "deaf": deaf,
    "stubborn": stubborn,
}
ANSWERS: dict[str, Callable[[object], None]] = {"no_result": no_result, "own_error": own_error}


def answer(kind: str, request: dict[str, Any]) -> None:
    identifier = request.get("id")
    match request["method"]:
        case "server/discover" if kind == "dies_of_news":
            os._exit(4)
        case "initialize":
            capabilities = {"tools": {"listChanged": True}, "logging": {}}
            about = {"serverInfo": {"name": kind, "version": "1"}, "capabilities": capabilities}
            send({"id": identifier, "result": {"protocolVersion": "2025-11-25", **about}})
        case "notifications/initialized" if kind == "floods_by_itself":
            endless_messages()
        case "ping":
            send({"id": identifier, "result": {}})
        case "tools/list":
            tools = json.loads(os.environ["TOOLS"]) if "TOOLS" in os.environ else TOOLS
            page = int(request.get("params", {}).get("cursor", 0))
            more = {"nextCursor": str(page + 1)} if kind == "endless_list" or page + 1 < len(tools) else {}
            send({"id": identifier, "result": {"tools": tools[page : page + 1] or TOOLS[:1], **more}})
        case "tools/call" if request["params"]["name"] == "echo":
            send({"id": identifier, "result": {"content": [{"type": "text", "text": json.dumps(request["params"])}]}})
        case "tools/call" if kind in ANSWERS:
            ANSWERS[kind](identifier)
        case "tools/call":
            token = request["params"]["_meta"]["progressToken"]
            send({"method": "notifications/progress", "params": {"progressToken": token, "progress": 0}})
            MISBEHAVIOUR[kind]()
        case _ if identifier is not None:
            send({"id": identifier, "error": {"code": -32601, "message": "Method not found"}})


def main() -> None:
    kind = sys.argv[1]
    if kind == "dies_at_once":
        sys.stderr.write("no such database\n")
        sys.exit(7)
    if kind == "tells_secrets":
        sys.stderr.write(f"TOKEN is {os.environ['TOKEN']}\n")
    if kind == "silent":
        deaf()
    sys.stdout.write("Welcome! This line is no message.\n")
    for line in sys.stdin:
        answer(kind, json.loads(line))


if __name__ == "__main__":
    main()
