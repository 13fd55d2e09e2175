"""Errors of this package.

    ToolError
    ├── ToolDefinitionError     `@tool` cannot make a tool of this function
    ├── ToolRegistrationError   a name is taken, or a module of TOOL_MODULES gives no tools
    └── CallError               one call failed; the text is for the model
        ├── CallTimeoutError    the handler did not end in time
        └── NoFreeThreadError   no thread became free in time, the handler never began

The first two stop a start-up; a `CallError` never leaves the package, it becomes a `ToolResult`.
"""

from __future__ import annotations


class ToolError(Exception):
    """Root of the package's exceptions."""


class ToolDefinitionError(ToolError):
    """A function cannot be a tool; the message names the function and says what to change."""


class ToolRegistrationError(ToolError):
    """A registry cannot take a tool or a module; the message names both sides of the conflict."""


class CallError(ToolError):
    """One call failed.

    Args:
        message: one line that the model can act upon.
        details: further lines, one fact each.
    """

    def __init__(self, message: str, details: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class CallTimeoutError(CallError):
    """The handler did not end within its time."""


class NoFreeThreadError(CallError):
    """All threads were taken for as long as the call could wait; the handler was not started."""
