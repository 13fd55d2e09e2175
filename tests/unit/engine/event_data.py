"""What stands under `data` of each event that the pure core leaves."""

from __future__ import annotations

from app.engine.events import Event, EventType, WarningCode

_CALL = {"tool_name", "tool_call_id"}
_ERROR = {"code", "message"}

_KEYS: dict[EventType, set[str]] = {
    EventType.STEP_STARTED: {"step"},
    EventType.LLM_CALLED: {"model", "provider", "message_count"},
    EventType.LLM_COMPLETED: {
        "model",
        "provider",
        "finish_reason",
        "text",
        "reasoning",
        "reused",
        "tool_call_count",
        "usage",
        "latency_ms",
        "cost_usd",
    },
    EventType.THREAD_COMPACTED: {
        "reason",
        "upto_seq",
        "messages_compacted",
        "tokens_before",
        "tokens_after",
        "model",
        "usage",
        "cost_usd",
    },
    EventType.TOOL_BATCH_STARTED: {"tool_call_count", "tool_names", "tool_call_ids"},
    EventType.TOOL_STARTED: _CALL | {"arguments"},
    EventType.TOOL_COMPLETED: _CALL
    | {"success", "output", "error", "latency_ms", "agent_name", "agent_depth", "agent_path", "replayed"},
    EventType.TOOL_DEFERRED: _CALL | {"ticket_id", "summary", "resume_hint"},
    EventType.TOOL_BACKGROUND_RESOLVED: _CALL | {"ticket_id", "output"},
    EventType.TOOL_BACKGROUND_FAILED: _CALL | {"ticket_id", "error"},
    EventType.POLICY_DECISION: _CALL | {"subject", "action", "reason", "rule_id", "matched_rules"},
    EventType.INTERACTION_REQUESTED: _CALL | {"interaction_id", "kind", "arguments", "prompt", "reason", "expires_at"},
    EventType.SUBAGENT_STARTED: {"subagent_name", "run_id", "tool_call_id"},
    EventType.SUBAGENT_COMPLETED: {
        "subagent_name",
        "run_id",
        "tool_call_id",
        "state",
        "success",
        "latency_ms",
        "error",
    },
    EventType.RUN_WAITING: {"waiting_for"},
    EventType.RUN_COMPLETED: {"state", "final_text", "usage"},
    EventType.RUN_FAILED: _ERROR,
    EventType.RUN_INTERRUPTED: _ERROR,
    EventType.RUN_CANCELLED: _ERROR,
}


def documented_keys(event: Event) -> set[str]:
    if event.type is not EventType.WARNING:
        return _KEYS[event.type]
    match event.data["code"]:
        case WarningCode.TOOL_OUTCOME_UNKNOWN:
            return {"code", *_CALL}
        case WarningCode.CONTEXT_OVERFLOW | WarningCode.COMPACTION_FAILED:
            return {"code", "problem"}
        case _:
            return {"code", "model", "provider"}
