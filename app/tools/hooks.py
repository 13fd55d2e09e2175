"""What runs around a tool's handler: hooks and middlewares, as `@tool` takes them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from app.tools.tool_context import ToolContext

CallNext = Callable[[dict[str, Any]], Awaitable[Any]]
"""Goes on with a call: to the next middleware, and from the last one to the handler."""

PreHook = Callable[[ToolContext, dict[str, Any]], Mapping[str, Any] | Awaitable[Mapping[str, Any] | None] | None]
PostHook = Callable[[ToolContext, Any], Any]
Middleware = Callable[[ToolContext, dict[str, Any], CallNext], Any]


@dataclass(frozen=True, slots=True)
class Hooks:
    """See `tool`. Each is a function or a coroutine function; a plain function runs in a thread."""

    before: tuple[PreHook, ...] = ()
    after: tuple[PostHook, ...] = ()
    around: tuple[Middleware, ...] = ()
