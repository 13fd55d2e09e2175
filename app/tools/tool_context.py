"""What a tool may know about the call that it answers, and how it tells of its progress."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.engine.memories import AgentMemories
from app.engine.tools import ToolInvocation, no_memories


def _nobody_listens(_message: str, _data: Any) -> None:
    pass


@dataclass(frozen=True, slots=True)
class ToolContext:
    """Given to every parameter annotated `ToolContext`; the model neither sees nor sets it.

    Args:
        idempotency_key: stable over attempts of this very call, unique over all calls; pass it on to systems
            that drop duplicates.
        context: the run's context. A copy: what a tool changes in it stays in the call.
        metadata: the run's metadata, a copy likewise.
        sandbox: the name of the operator's profile that bounds the agent's calls, or None.
        secrets: those that the tool declared with `@tool(secrets=[...])`, by name.
        memories: gives the memories of the run's namespace; raises MemoryRefused if the run lacks what they are kept
            by; left to itself, that is what the model reads.
    """

    run_id: str
    thread_id: str
    tool_call_id: str
    idempotency_key: str
    context: Mapping[str, Any]
    metadata: Mapping[str, str]
    agent_name: str
    sandbox: str | None = None
    secrets: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    progress: Callable[[str, Any], None] = field(default=_nobody_listens, repr=False)
    memories: Callable[[], AgentMemories] = field(default=no_memories, repr=False)

    @classmethod
    def of(cls, invocation: ToolInvocation, secrets: Mapping[str, str] | None = None) -> ToolContext:
        return cls(
            run_id=invocation.run_id,
            thread_id=invocation.thread_id,
            tool_call_id=invocation.tool_call_id,
            idempotency_key=invocation.idempotency_key,
            # The tool may run in a thread while the run goes on, so it must not share objects with it.
            context=copy.deepcopy(dict(invocation.context)),
            metadata=dict(invocation.metadata),
            agent_name=invocation.agent_name,
            sandbox=invocation.sandbox,
            secrets=secrets or {},
            progress=invocation.progress,
            memories=invocation.memories,
        )

    def emit_progress(self, message: str, data: Any = None) -> None:
        """Tell readers of the run how far this call is; from any thread, and without waiting.

        Args:
            message: for people, cut after 2 000 characters.
            data: anything that can be shown as JSON; what is longer than 16 KiB becomes the beginning of its text.
        """
        self.progress(message, data)
