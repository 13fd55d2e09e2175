"""The tables, as ORM models; migrations are checked against them.

No foreign keys on what a step writes (events, messages, checkpoints, tool executions): they would lock their parents
on every insert. Deleting a run or a thread removes its rows by name.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import (
    JSON,
    REAL,
    Computed,
    Index,
    Integer,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSVECTOR
from sqlalchemy.dialects.postgresql import UUID as PgUuid
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base

_NOW = text("clock_timestamp()")


class Replica(Base):
    """One server process. `heartbeat_at` is the database's time; a replica without a row is dead.

    `machine` names that in which `pid` and `process_start` mean something: a boot of a machine and a pid namespace.
    It is null where the system does not tell.
    """

    __tablename__ = "replicas"

    incarnation: Mapped[UUID] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    machine: Mapped[str | None]
    process_start: Mapped[int | None]
    draining: Mapped[bool] = mapped_column(server_default=text("false"))
    started_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    heartbeat_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class Crash(Base):
    """A replica that was found dead, when, and with which runs under way."""

    __tablename__ = "crashes"

    incarnation: Mapped[UUID] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=_NOW)
    run_ids: Mapped[list[UUID]] = mapped_column(ARRAY(PgUuid(as_uuid=True)))


class Chore(Base):
    """Work that one replica at a time does for all: who does it, and until when nobody else may.

    `done_up_to` is how far it has come, where it goes by time.
    """

    __tablename__ = "chores"

    name: Mapped[str] = mapped_column(primary_key=True)
    replica: Mapped[UUID | None]
    held_until: Mapped[datetime] = mapped_column(server_default=_NOW)
    done_up_to: Mapped[datetime | None]


class Thread(Base):
    """A conversation. `holder_run_id` is its slot, `queued` the runs in line behind it.

    `next_seq` and `next_ordinal` number messages and runs; they only grow, and gaps are allowed.
    """

    __tablename__ = "threads"
    __table_args__ = (
        Index("uq_threads_tenant_id_thread_id", "tenant_id", "thread_id", unique=True),
        Index(
            "ix_threads_metadata",
            "metadata",
            postgresql_using="gin",
            postgresql_where=text("metadata <> '{}'"),
        ),
        {"postgresql_with": {"fillfactor": "60"}},
    )

    thread_key: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(server_default="")
    thread_id: Mapped[str]
    holder_run_id: Mapped[UUID | None]
    queued: Mapped[int] = mapped_column(server_default="0")
    next_seq: Mapped[int] = mapped_column(server_default="1")
    next_ordinal: Mapped[int] = mapped_column(server_default="1")
    thread_metadata: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB, server_default=text("'{}'"))
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class Message(Base):
    __tablename__ = "messages"

    thread_key: Mapped[UUID] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[UUID | None]
    role: Mapped[str]
    body: Mapped[dict[str, Any]]
    voided: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class Run(Base):
    """One execution. `epoch` and `write_no` are the fence; `holds_thread` says that it has its thread's slot.

    `ordinal` is its place in the thread's line, null until a run with `start_after` is due. `wakes` counts what others
    have stored for it; `waiting_for` counts only while it waits. A child run is interrupted at
    `deadline_at`, `deadline_s` after it was created or resumed. `trace_context` is `traceparent`, then a space and
    `tracestate` if there is one (https://www.w3.org/TR/trace-context/).
    """

    __tablename__ = "runs"
    __table_args__ = (
        # Without the suspects, whose look has no lower bound and could else go through all that was ever claimed here.
        Index(
            "ix_runs_ready",
            "holds_thread",
            "available_at",
            "run_id",
            postgresql_where=text("status = 'queued' AND crashes < 2"),
        ),
        Index(
            "ix_runs_scheduled",
            "available_at",
            postgresql_where=text("status = 'queued' AND ordinal IS NULL"),
        ),
        Index(
            "ix_runs_suspects",
            "available_at",
            postgresql_where=text("status = 'queued' AND crashes >= 2"),
        ),
        Index("ix_runs_running", "owner", postgresql_where=text("status = 'running'")),
        Index("ix_runs_finished_at", "finished_at", "run_id", postgresql_where=text("finished_at IS NOT NULL")),
        Index("uq_runs_holder", "thread_key", unique=True, postgresql_where=text("holds_thread")),
        Index("ix_runs_thread_key_ordinal", "thread_key", "ordinal"),
        Index("ix_runs_agent_name_run_id", "agent_name", "run_id"),
        Index("ix_runs_parent_run_id", "parent_run_id", postgresql_where=text("parent_run_id IS NOT NULL")),
        Index(
            "ix_runs_deadline_at",
            "deadline_at",
            postgresql_where=text("deadline_at IS NOT NULL AND finished_at IS NULL"),
        ),
        Index("ix_runs_metadata", "metadata", postgresql_using="gin", postgresql_where=text("metadata <> '{}'")),
        {"postgresql_with": {"fillfactor": "60"}},
    )

    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(server_default="")
    thread_key: Mapped[UUID]
    thread_id: Mapped[str]
    ordinal: Mapped[int | None]
    parent_run_id: Mapped[UUID | None]
    root_run_id: Mapped[UUID]
    agent_depth: Mapped[int] = mapped_column(Integer, server_default="0")
    agent_path: Mapped[str] = mapped_column(server_default="")
    deadline_s: Mapped[float | None]
    deadline_at: Mapped[datetime | None]
    forked_from_run_id: Mapped[UUID | None]
    forked_from_checkpoint: Mapped[int | None]
    trace_context: Mapped[str | None]

    agent_name: Mapped[str]
    agent_version: Mapped[int | None] = mapped_column(Integer)
    agent_version_id: Mapped[UUID]
    requested_model: Mapped[str]
    overrides: Mapped[dict[str, Any]]
    context: Mapped[dict[str, Any]]
    input: Mapped[list[Any]] = mapped_column(JSON)
    run_metadata: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB, server_default=text("'{}'"))
    user_id: Mapped[str | None]
    on_disconnect: Mapped[str] = mapped_column(server_default="continue")

    status: Mapped[str]
    control: Mapped[str | None]
    holds_thread: Mapped[bool]
    available_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    owner: Mapped[UUID | None]
    epoch: Mapped[int] = mapped_column(server_default="0")
    write_no: Mapped[int] = mapped_column(server_default="0")
    wakes: Mapped[int] = mapped_column(server_default="0")
    waiting_for: Mapped[list[Any] | None] = mapped_column(JSON)
    attempt: Mapped[int] = mapped_column(Integer, server_default="0")
    crashes: Mapped[int] = mapped_column(Integer, server_default="0")
    resume_reason: Mapped[str | None]

    last_seq: Mapped[int] = mapped_column(server_default="0")
    first_seq: Mapped[int] = mapped_column(server_default="1")
    deltas_trimmed: Mapped[bool] = mapped_column(server_default=text("false"))
    step: Mapped[int] = mapped_column(Integer, server_default="0")
    llm_calls: Mapped[int] = mapped_column(server_default="0")
    input_tokens: Mapped[int] = mapped_column(server_default="0")
    output_tokens: Mapped[int] = mapped_column(server_default="0")
    cached_input_tokens: Mapped[int] = mapped_column(server_default="0")
    reasoning_tokens: Mapped[int] = mapped_column(server_default="0")
    cost_usd: Mapped[Decimal | None] = mapped_column(server_default="0")
    elapsed_s: Mapped[float] = mapped_column(server_default="0")
    wall_from_s: Mapped[float] = mapped_column(server_default="0")
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)

    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class RunEvent(Base):
    """`body` is JSON text without seq and time, kept as it was written (jsonb would reorder its keys)."""

    __tablename__ = "run_events"

    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    type: Mapped[str]
    created_at: Mapped[datetime]
    body: Mapped[dict[str, Any]]


class Compaction(Base):
    """A summary of a thread's messages up to `upto_seq`, made in a run or for a caller. The latest one counts.

    `purged`: the messages are gone. They are numbered for all time, so that nothing else comes to stand there.
    """

    __tablename__ = "compactions"

    thread_key: Mapped[UUID] = mapped_column(primary_key=True)
    upto_seq: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[UUID | None]
    summary: Mapped[str]
    purged: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class Checkpoint(Base):
    """`seq` is the last event committed with it, `message_seq` the last message of its thread as of then."""

    __tablename__ = "checkpoints"

    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(Integer)
    phase: Mapped[str]
    message_seq: Mapped[int]
    state: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class ToolExecution(Base):
    """One call: asked for, judged, started (the record of intent), ended.

    `arguments` is the model's text as a JSON string, `final_arguments` what the call runs with where that differs.
    `hold` is what an open call waits for, `posted` a result from outside that the run has yet to take in; after
    `expires_at` a result that did not come has failed.
    """

    __tablename__ = "tool_executions"
    __table_args__ = (
        Index(
            "ix_tool_executions_expires_at",
            "expires_at",
            postgresql_where=text("expires_at IS NOT NULL AND posted IS NULL AND finished_at IS NULL"),
        ),
    )

    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True)
    call_index: Mapped[int] = mapped_column(Integer, primary_key=True)
    tool_call_id: Mapped[str]
    tool_name: Mapped[str]
    arguments: Mapped[str] = mapped_column(JSON)
    final_arguments: Mapped[str | None] = mapped_column(JSON)
    effect: Mapped[str]
    judged: Mapped[bool] = mapped_column(server_default=text("false"))
    hold: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    child_run_id: Mapped[UUID | None]
    expires_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    posted: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    outcome: Mapped[dict[str, Any] | None] = mapped_column(JSON)


class Interaction(Base):
    """A question to a person. `answer` is the decision, `fallback` the one that counts if nobody gives one in time.

    `call_index` is null where the question is about a model call.
    """

    __tablename__ = "interactions"
    __table_args__ = (
        Index("ix_interactions_run_id", "run_id"),
        Index("ix_interactions_pending", "expires_at", postgresql_where=text("status = 'pending'")),
        Index("ix_interactions_tenant_id_status_interaction_id", "tenant_id", "status", "interaction_id"),
    )

    interaction_id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(server_default="")
    run_id: Mapped[UUID]
    step: Mapped[int] = mapped_column(Integer)
    call_index: Mapped[int | None] = mapped_column(Integer)
    kind: Mapped[str]
    status: Mapped[str] = mapped_column(server_default="pending")
    tool_name: Mapped[str | None]
    tool_call_id: Mapped[str | None]
    arguments: Mapped[str | None] = mapped_column(JSON)
    prompt: Mapped[str]
    reason: Mapped[str | None]
    fallback: Mapped[dict[str, Any]]
    answer: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    expires_at: Mapped[datetime]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    resolved_at: Mapped[datetime | None]


class Agent(Base):
    __tablename__ = "agents"

    tenant_id: Mapped[str] = mapped_column(primary_key=True, server_default="")
    name: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(Integer)
    version_id: Mapped[UUID]
    source: Mapped[str]
    deleted: Mapped[bool] = mapped_column(server_default=text("false"))


class AgentVersion(Base):
    """A pinned definition. `version` is null for inline agents, which are kept once per content."""

    __tablename__ = "agent_versions"
    __table_args__ = (
        Index(
            "uq_agent_versions_name_version",
            "tenant_id",
            "name",
            "version",
            unique=True,
            postgresql_where=text("version IS NOT NULL"),
        ),
        Index(
            "uq_agent_versions_inline",
            "tenant_id",
            "content_hash",
            unique=True,
            postgresql_where=text("version IS NULL"),
        ),
    )

    version_id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(server_default="")
    name: Mapped[str]
    version: Mapped[int | None] = mapped_column(Integer)
    content_hash: Mapped[str]
    source: Mapped[str]
    definition: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class CachedAnswer(Base):
    """A model's answer, by a hash of its tenant and of all that it was asked; as bytes that only the cache reads."""

    __tablename__ = "model_cache"
    __table_args__ = (Index("ix_model_cache_expires_at", "expires_at"),)
    key: Mapped[bytes] = mapped_column(primary_key=True)
    answer: Mapped[bytes]
    stored_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    expires_at: Mapped[datetime]


class IdempotencyKey(Base):
    """What a create with a key made: the ids under `resource`, so that the same request finds it again for 24 hours."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index("ix_idempotency_keys_created_at", "created_at"),)

    tenant_id: Mapped[str] = mapped_column(primary_key=True, server_default="")
    key: Mapped[str] = mapped_column(primary_key=True)
    request_hash: Mapped[bytes]
    resource: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class Memory(Base):
    """A memory under a key of a namespace. `words` is what it is found by.

    `embedding` is plain numbers, so that pgvector may come and go: `embedding_model` is the model that has embedded
    the text, or, where there is no embedding, has refused to.
    """

    __tablename__ = "memories"
    __table_args__ = (
        Index("ix_memories_words", "words", postgresql_using="gin"),
        Index("ix_memories_embedding_model", "embedding_model"),
    )

    tenant_id: Mapped[str] = mapped_column(primary_key=True, server_default="")
    namespace: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    key: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    value: Mapped[Any] = mapped_column(JSON)
    text: Mapped[str]
    words: Mapped[Any] = mapped_column(
        TSVECTOR, Computed("to_tsvector('memory_words'::regconfig, text)", persisted=True), nullable=False
    )
    embedding: Mapped[list[float] | None] = mapped_column(ARRAY(REAL))
    embedding_model: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=_NOW)
