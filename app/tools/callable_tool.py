"""What every tool is to the registry, wherever it comes from."""

from __future__ import annotations

from typing import Any, Protocol

from app.engine.tools import ToolInvocation, ToolSpec


class CallableTool(Protocol):
    """One tool. The registry checks the arguments, calls it, and makes a record and a bounded text of the value."""

    @property
    def spec(self) -> ToolSpec: ...

    @property
    def timeout_s(self) -> float:
        """The most seconds that one call may take; the registry holds it to that."""
        ...

    def parsed(self, arguments: str) -> dict[str, Any]:
        """The arguments out of the model's JSON text: validated, with defaults filled in.

        Raises:
            CallError: they are no JSON object, or do not fit; the text tells the model what to change.
        """
        ...

    async def call(self, arguments: dict[str, Any], invocation: ToolInvocation) -> object:
        """Run one call; the value is anything that the registry can write as JSON, or a `Deferral`.

        Raises:
            CallError: the call failed; the text is for the model.
        """
        ...
