"""Threads and their messages."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from app.api.schemas.fields import (
    EXAMPLE_RUN_ID,
    EXAMPLE_TIME,
    JsonObject,
    Metadata,
    RequestModel,
    Resource,
    ThreadId,
    Timestamp,
    example,
)
from app.engine.content import MessageContent, Part, content_of
from app.engine.messages import Message as EngineMessage
from app.engine.messages import Role
from app.engine.timestamp import timestamp
from app.services.threads import MessageRecord, ThreadRecord, ThreadSummary
from app.services.threads import ThreadDetail as ThreadDetailRecord

THREAD_EXAMPLE: JsonObject = {
    "thread_id": "customer-42",
    "metadata": {"team": "support"},
    "active_run_id": None,
    "created_at": EXAMPLE_TIME,
    "updated_at": EXAMPLE_TIME,
}
_COMPACTION_EXAMPLE: JsonObject = {
    "upto_seq": 32,
    "summary": "The customer asks for a refund of order 1042, which arrived broken.",
    "purged": False,
    "created_at": EXAMPLE_TIME,
}
MESSAGE_EXAMPLE: JsonObject = {
    "seq": 2,
    "message_id": "msg_019aa3f05b6e7c319d0c2f4b8a6e1d57_2",
    "run_id": EXAMPLE_RUN_ID,
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "call_1", "name": "get_weather", "arguments": {"city": "Bern"}}],
    "tool_call_id": None,
    "created_at": EXAMPLE_TIME,
    "compacted": False,
}


class ThreadCreate(RequestModel):
    model_config = example({"thread_id": "customer-42", "metadata": {"team": "support"}})

    thread_id: ThreadId | None = None
    metadata: Metadata = Field(default_factory=dict[str, str])


class ThreadUpdate(RequestModel):
    """Metadata is merged: a key given with null is taken away, what is not given stays."""

    model_config = example({"metadata": {"team": "sales", "old": None}})

    metadata: dict[str, str | None] = Field(default_factory=dict[str, str | None], max_length=64)


class MessageAppend(RequestModel):
    model_config = example({"role": "user", "content": "I am in Bern by the way."})

    role: Literal["user", "system", "assistant"]
    content: MessageContent

    def message(self) -> EngineMessage:
        return EngineMessage(Role(self.role), content_of(self.content))


class ThreadCopy(RequestModel):
    model_config = example({"thread_id": "customer-42-b", "up_to_seq": 4})

    thread_id: ThreadId | None = Field(default=None, description="Of the copy; absent: a UUIDv7.")
    up_to_seq: int | None = Field(
        default=None, ge=0, le=2**62, description="The last message to copy; absent: all of them."
    )


class Thread(Resource):
    """A conversation."""

    model_config = example(THREAD_EXAMPLE)

    thread_id: str
    metadata: Metadata
    active_run_id: str | None = Field(description="The run that has the thread now.")
    created_at: Timestamp
    updated_at: Timestamp


class ThreadCompaction(Resource):
    """A summary that runs see in the place of a thread's older messages."""

    model_config = example(_COMPACTION_EXAMPLE)

    upto_seq: int = Field(description="The last message that it stands for.")
    summary: str
    purged: bool = Field(description="Whether the messages up to `upto_seq` are deleted.")
    created_at: Timestamp


class ThreadDetail(Thread):
    """A conversation, with the summary that stands in it."""

    model_config = example({**THREAD_EXAMPLE, "compaction": _COMPACTION_EXAMPLE})

    compaction: ThreadCompaction | None = Field(description="The latest one; null where there is none.")


class ThreadPage(Resource):
    model_config = example({"items": [THREAD_EXAMPLE], "next_cursor": None})

    items: list[Thread]
    next_cursor: str | None


class MessageToolCall(Resource):
    id: str
    name: str
    arguments: Any = Field(description="JSON, or a string where the model wrote no JSON.")


class Message(Resource):
    model_config = example(MESSAGE_EXAMPLE)

    seq: int
    message_id: str
    run_id: str | None = Field(description="Null for messages appended by hand.")
    role: Role
    content: str | list[Part]
    tool_calls: list[MessageToolCall]
    tool_call_id: str | None
    created_at: Timestamp
    compacted: bool = Field(description="Whether runs see a summary in its place.")


class MessagePage(Resource):
    model_config = example({"items": [MESSAGE_EXAMPLE], "next_cursor": None})

    items: list[Message]
    next_cursor: int | None = Field(description="Passed back as `after`.")


def thread_object(thread: ThreadRecord) -> JsonObject:
    return {
        "thread_id": thread.thread_id,
        "metadata": thread.metadata,
        "active_run_id": thread.active_run_id,
        "created_at": timestamp(thread.created_at),
        "updated_at": timestamp(thread.updated_at),
    }


def thread_detail_object(detail: ThreadDetailRecord) -> JsonObject:
    return {**thread_object(detail.thread), "compaction": _compaction_object(detail.compaction)}


def _compaction_object(summary: ThreadSummary | None) -> JsonObject | None:
    if summary is None:
        return None
    return {
        "upto_seq": summary.upto_seq,
        "summary": summary.summary,
        "purged": summary.purged,
        "created_at": timestamp(summary.created_at),
    }


def message_object(record: MessageRecord) -> JsonObject:
    message = record.message
    calls = [{"id": c.id, "name": c.name, "arguments": c.shown_arguments()} for c in message.tool_calls]
    return {
        "seq": record.seq,
        "message_id": record.message_id,
        "run_id": record.run_id,
        "role": message.role,
        "content": message.content,
        "tool_calls": calls,
        "tool_call_id": message.tool_call_id,
        "created_at": timestamp(record.created_at),
        "compacted": record.compacted,
    }
