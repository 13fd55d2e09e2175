"""`server__tool`: what a model calls a tool of an MCP server."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

SEPARATOR = "__"

_ALLOWED = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_OTHER = re.compile(r"[^A-Za-z0-9_-]")


def tool_name(server: str, tool: str) -> str | None:
    """The name for models: characters that they do not take become `_`; None if it is empty or too long then."""
    name = f"{server}{SEPARATOR}{_OTHER.sub('_', tool)}"
    return name if tool and _ALLOWED.fullmatch(name) else None


def server_of(name: str) -> str:
    """The server's part of a name; empty for names that have none."""
    server, _, tool = name.partition(SEPARATOR)
    return server if tool else ""


def unique_names(server: str, tools: Iterable[str]) -> dict[str, str]:
    """Names for models by the server's own names, without those that cannot be told apart or do not fit."""
    tools = list(tools)
    named = {tool: name for tool in tools if (name := tool_name(server, tool)) is not None}
    uses = Counter(name for tool in tools if (name := tool_name(server, tool)) is not None)
    return {tool: name for tool, name in named.items() if uses[name] == 1}
