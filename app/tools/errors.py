"""Errors of this package.

    ToolError
    ├── ToolDefinitionError     a function or a definition cannot be made into a tool
    ├── ToolRegistrationError   a name is taken, or a module of TOOL_MODULES gives no tools
    ├── ToolSettingError        a setting or a file of the operator's cannot be used
    └── CallError               one call failed; the text is for the model
        ├── CallTimeoutError    the handler did not end in time
        ├── NoFreeThreadError   no thread became free in time, the handler never began
        ├── HandlerError        the handler failed; the text is its own
        ├── SecretError         a secret is not there, or not for that host
        └── EgressError         a request to the outside has no answer that can be used
            └── EgressRefusedError  it leads where nothing may go

The first three stop a start-up; a `CallError` never leaves the package, it becomes a `ToolResult`.
"""

from __future__ import annotations


class ToolError(Exception):
    """Root of the package's exceptions."""


class ToolDefinitionError(ToolError):
    """A function, or a definition, cannot be a tool; the message says what to change."""


class ToolRegistrationError(ToolError):
    """A registry cannot take a tool or a module; the message names both sides of the conflict."""


class ToolSettingError(ToolError):
    """A setting, or a file that one names, cannot be used; the message names it and the place, and no secret."""


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


class HandlerError(CallError):
    """The handler failed, and the text is what it said: no more to be trusted than an output."""


class SecretError(CallError):
    """There is no such secret, or it may not go where it was to go; the text has its name and never its value."""


class EgressError(CallError):
    """A request to the outside failed, or its answer is past a bound."""


class EgressRefusedError(EgressError):
    """A request leads where the operator lets nothing go; nothing was sent there."""
