"""Threads, runs, their events, messages, checkpoints and tool calls; agents; replicas.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None

# Hands a thread's slot to the next run in line. The caller has locked the thread's row and freed the slot in the same
# transaction. A function, because it must read rows as they are after that lock was granted, which a plain statement
# (whose snapshot is older than its locks) cannot.
PROMOTE_NEXT = """
CREATE FUNCTION promote_next(key uuid) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    next_run uuid;
BEGIN
    SELECT run_id INTO next_run FROM runs
    WHERE thread_key = key AND status = 'queued' AND NOT holds_thread AND ordinal IS NOT NULL
    ORDER BY ordinal LIMIT 1 FOR NO KEY UPDATE;
    IF next_run IS NULL THEN
        RETURN NULL;
    END IF;
    UPDATE runs SET holds_thread = true, available_at = clock_timestamp() WHERE run_id = next_run;
    UPDATE threads SET holder_run_id = next_run, queued = queued - 1 WHERE thread_key = key;
    RETURN next_run;
END $$
"""


def upgrade() -> None:
    op.create_table(
        "agent_versions",
        sa.Column("version_id", sa.UUID(), nullable=False),
        sa.Column("tenant_id", sa.Text(), server_default="", nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("content_hash", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("version_id", name=op.f("pk_agent_versions")),
    )
    op.create_index(
        "uq_agent_versions_inline",
        "agent_versions",
        ["tenant_id", "content_hash"],
        unique=True,
        postgresql_where=sa.text("version IS NULL"),
    )
    op.create_index(
        "uq_agent_versions_name_version",
        "agent_versions",
        ["tenant_id", "name", "version"],
        unique=True,
        postgresql_where=sa.text("version IS NOT NULL"),
    )
    op.create_table(
        "agents",
        sa.Column("tenant_id", sa.Text(), server_default="", nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.UUID(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("deleted", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "name", name=op.f("pk_agents")),
    )
    op.create_table(
        "checkpoints",
        sa.Column("run_id", sa.UUID(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("message_seq", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.JSON(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("run_id", "seq", name=op.f("pk_checkpoints")),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant_id", sa.Text(), server_default="", nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request_hash", sa.LargeBinary(), nullable=False),
        sa.Column("resource", sa.JSON(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("tenant_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"], unique=False)
    op.create_table(
        "messages",
        sa.Column("thread_key", sa.UUID(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("run_id", sa.UUID(), nullable=True),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("voided", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("thread_key", "seq", name=op.f("pk_messages")),
    )
    op.create_table(
        "replicas",
        sa.Column("incarnation", sa.UUID(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("draining", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column(
            "heartbeat_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("incarnation", name=op.f("pk_replicas")),
    )
    op.create_table(
        "run_events",
        sa.Column("run_id", sa.UUID(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "seq", name=op.f("pk_run_events")),
    )
    op.create_table(
        "runs",
        sa.Column("run_id", sa.UUID(), nullable=False),
        sa.Column("tenant_id", sa.Text(), server_default="", nullable=False),
        sa.Column("thread_key", sa.UUID(), nullable=False),
        sa.Column("thread_id", sa.Text(), nullable=False),
        sa.Column("ordinal", sa.BigInteger(), nullable=True),
        sa.Column("parent_run_id", sa.UUID(), nullable=True),
        sa.Column("root_run_id", sa.UUID(), nullable=False),
        sa.Column("forked_from_run_id", sa.UUID(), nullable=True),
        sa.Column("forked_from_checkpoint", sa.BigInteger(), nullable=True),
        sa.Column("agent_name", sa.Text(), nullable=False),
        sa.Column("agent_version", sa.Integer(), nullable=True),
        sa.Column("agent_version_id", sa.UUID(), nullable=False),
        sa.Column("requested_model", sa.Text(), nullable=False),
        sa.Column("overrides", sa.JSON(), nullable=False),
        sa.Column("context", sa.JSON(), nullable=False),
        sa.Column("input", sa.JSON(), nullable=False),
        sa.Column(
            "metadata",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("user_id", sa.Text(), nullable=True),
        sa.Column("on_disconnect", sa.Text(), server_default="continue", nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("control", sa.Text(), nullable=True),
        sa.Column("holds_thread", sa.Boolean(), nullable=False),
        sa.Column(
            "available_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("owner", sa.UUID(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("write_no", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("wakes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("crashes", sa.Integer(), server_default="0", nullable=False),
        sa.Column("resume_reason", sa.Text(), nullable=True),
        sa.Column("last_seq", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("first_seq", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("step", sa.Integer(), server_default="0", nullable=False),
        sa.Column("llm_calls", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cached_input_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cost_usd", sa.Numeric(), server_default="0", nullable=True),
        sa.Column("elapsed_s", sa.Double(), server_default="0", nullable=False),
        sa.Column("wall_from_s", sa.Double(), server_default="0", nullable=False),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_runs")),
        postgresql_with={"fillfactor": "60"},
    )
    op.create_index("ix_runs_agent_name_run_id", "runs", ["agent_name", "run_id"], unique=False)
    op.create_index(
        "ix_runs_queued",
        "runs",
        ["holds_thread", "available_at", "run_id"],
        unique=False,
        postgresql_where=sa.text("status = 'queued'"),
    )
    op.create_index(
        "ix_runs_metadata",
        "runs",
        ["metadata"],
        unique=False,
        postgresql_using="gin",
        postgresql_where=sa.text("metadata <> '{}'"),
    )
    op.create_index(
        "ix_runs_parent_run_id",
        "runs",
        ["parent_run_id"],
        unique=False,
        postgresql_where=sa.text("parent_run_id IS NOT NULL"),
    )
    op.create_index("ix_runs_running", "runs", ["owner"], unique=False, postgresql_where=sa.text("status = 'running'"))
    op.create_index(
        "ix_runs_scheduled",
        "runs",
        ["available_at"],
        unique=False,
        postgresql_where=sa.text("status = 'queued' AND ordinal IS NULL"),
    )
    op.create_index("ix_runs_thread_key_ordinal", "runs", ["thread_key", "ordinal"], unique=False)
    op.create_index("uq_runs_holder", "runs", ["thread_key"], unique=True, postgresql_where=sa.text("holds_thread"))
    op.create_table(
        "threads",
        sa.Column("thread_key", sa.UUID(), nullable=False),
        sa.Column("tenant_id", sa.Text(), server_default="", nullable=False),
        sa.Column("thread_id", sa.Text(), nullable=False),
        sa.Column("holder_run_id", sa.UUID(), nullable=True),
        sa.Column("queued", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("next_seq", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("next_ordinal", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column(
            "metadata",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("thread_key", name=op.f("pk_threads")),
        postgresql_with={"fillfactor": "60"},
    )
    op.create_index(
        "ix_threads_metadata",
        "threads",
        ["metadata"],
        unique=False,
        postgresql_using="gin",
        postgresql_where=sa.text("metadata <> '{}'"),
    )
    op.create_index("uq_threads_tenant_id_thread_id", "threads", ["tenant_id", "thread_id"], unique=True)
    op.create_table(
        "tool_executions",
        sa.Column("run_id", sa.UUID(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("call_index", sa.Integer(), nullable=False),
        sa.Column("tool_call_id", sa.Text(), nullable=False),
        sa.Column("tool_name", sa.Text(), nullable=False),
        sa.Column("arguments", sa.JSON(), nullable=False),
        sa.Column("effect", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", "step", "call_index", name=op.f("pk_tool_executions")),
    )
    op.execute(PROMOTE_NEXT)


def downgrade() -> None:
    op.execute("DROP FUNCTION promote_next(uuid)")
    op.drop_table("tool_executions")
    op.drop_table("threads")
    op.drop_table("runs")
    op.drop_table("run_events")
    op.drop_table("replicas")
    op.drop_table("messages")
    op.drop_table("idempotency_keys")
    op.drop_table("checkpoints")
    op.drop_table("agents")
    op.drop_table("agent_versions")
