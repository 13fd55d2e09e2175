"""A tool call, as the port for tools takes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from app.engine.agent import AgentDefinition
from app.engine.memories import AgentMemories, Memories, MemoryPlace
from app.engine.memory_namespace import memory_namespace
from app.engine.records import RunRecord
from app.engine.state import OpenCall
from app.engine.tools import ToolInvocation


def invocation_of(
    call: OpenCall,
    step: int,
    run: RunRecord,
    agent: AgentDefinition,
    allowed_tools: frozenset[str],
    memories: Memories,
    progress: Callable[[str, Any], None],
) -> ToolInvocation:
    """
    Args:
        allowed_tools: all that the run may call.
        progress: takes what the tool tells while it works, from any thread.
    """

    def of_this_run() -> AgentMemories:
        namespace = memory_namespace(agent, run.context, run.user_id)
        return AgentMemories(memories, MemoryPlace(run.tenant_id, namespace))

    return ToolInvocation(
        run_id=run.run_id,
        thread_id=run.thread_id,
        agent_name=run.agent_name,
        tool_call_id=call.call.id,
        tool_name=call.call.name,
        arguments=call.final_arguments,
        idempotency_key=f"{run.run_id}:{step}:{call.index}",
        context=run.context,
        metadata=run.metadata,
        allowed_tools=allowed_tools,
        output_max_chars=agent.tool_output_max_chars,
        sanitize=agent.sanitize_tool_output,
        sandbox=agent.sandbox,
        progress=progress,
        memories=of_this_run,
    )
