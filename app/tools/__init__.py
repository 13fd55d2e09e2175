"""Where tools come from, and how one call of a tool runs from the model's text to a bounded result.

Implements `app.engine.tools.ToolPort`. Imports nothing of `app` but `app.engine` and `app.telemetry`.
"""

from __future__ import annotations

from app.engine.tools import Deferral
from app.tools.errors import ToolDefinitionError, ToolError, ToolRegistrationError
from app.tools.function_tool import FunctionTool, tool
from app.tools.registry import ToolRegistry
from app.tools.tool_context import ToolContext

__all__ = [
    "Deferral",
    "FunctionTool",
    "ToolContext",
    "ToolDefinitionError",
    "ToolError",
    "ToolRegistrationError",
    "ToolRegistry",
    "tool",
]
