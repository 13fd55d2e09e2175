"""What a tool may know about the call that it answers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.engine.tools import ToolInvocation


@dataclass(frozen=True, slots=True)
class ToolContext:
    """Given to every parameter annotated `ToolContext`; the model neither sees nor sets it.

    Args:
        idempotency_key: stable over attempts of this very call, unique over all calls; pass it on to systems
            that drop duplicates.
        context: the run's context. A copy: what a tool changes in it stays in the call.
        metadata: the run's metadata, a copy likewise.
    """

    run_id: str
    thread_id: str
    tool_call_id: str
    idempotency_key: str
    context: Mapping[str, Any]
    metadata: Mapping[str, str]
    agent_name: str

    @classmethod
    def of(cls, invocation: ToolInvocation) -> ToolContext:
        return cls(
            run_id=invocation.run_id,
            thread_id=invocation.thread_id,
            tool_call_id=invocation.tool_call_id,
            idempotency_key=invocation.idempotency_key,
            # The tool may run in a thread while the run goes on, so it must not share objects with it.
            context=copy.deepcopy(dict(invocation.context)),
            metadata=dict(invocation.metadata),
            agent_name=invocation.agent_name,
        )
