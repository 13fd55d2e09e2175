"""A tool port that knows tools of every kind, and runs none."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from app.engine.effects import ToolEffect
from app.engine.tool_definitions import Toolbox
from app.engine.tools import ArgumentsRefused, Deferral, ToolInvocation, ToolPort, ToolResult, ToolSource, ToolSpec

_OBJECT = {"type": "object"}

SPECS = {
    spec.name: spec
    for spec in (
        ToolSpec("read", "", _OBJECT, ToolEffect.READ_ONLY),
        ToolSpec("put", "", _OBJECT, ToolEffect.IDEMPOTENT),
        ToolSpec("send", "", _OBJECT, ToolEffect.UNSAFE),
        ToolSpec("hooked", "", _OBJECT, ToolEffect.UNSAFE, has_prehooks=True),
        ToolSpec("brittle", "", _OBJECT, ToolEffect.READ_ONLY, raise_on_error=True),
        ToolSpec("sign", "", _OBJECT, ToolEffect.UNSAFE, ToolSource.CALLER, ttl_s=60.0),
    )
}


class FakeTools:
    """Implements `ToolPort`. Arguments fit a tool if they are an object without the key `bad`."""

    def for_agent(self, toolbox: Toolbox) -> ToolPort:
        return self

    def spec(self, name: str) -> ToolSpec | None:
        return SPECS.get(name)

    async def settled(self, names: Sequence[str]) -> None:
        """No server to wait for."""

    def granted(self, names: Sequence[str]) -> tuple[ToolSpec, ...]:
        return tuple(SPECS[name] for name in names if name in SPECS)

    def lacking(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in names if name not in SPECS)

    def checked(self, name: str, arguments: str) -> str:
        try:
            given = orjson.loads(arguments)
        except orjson.JSONDecodeError as error:
            raise ArgumentsRefused(f"no JSON: {error}") from error
        if not isinstance(given, dict) or "bad" in given:
            raise ArgumentsRefused("the arguments do not fit")
        return orjson.dumps(given).decode()

    async def prepare(self, invocation: ToolInvocation) -> str | ToolResult:
        raise AssertionError("the core runs no hook")

    async def invoke(self, invocation: ToolInvocation) -> ToolResult | Deferral:
        raise AssertionError("the core runs no tool")

    def result(
        self,
        *,
        output: str | None,
        error: str | None,
        output_max_chars: int,
        sanitize: bool,
        denied: bool = False,
        latency_ms: float = 0.0,
    ) -> ToolResult:
        text = (output if error is None else f"Error: {error}") or ""
        content = f"<data>{text}</data>" if sanitize and error is None else text
        return ToolResult(error is None, output, error, content[:output_max_chars], latency_ms, denied=denied)
