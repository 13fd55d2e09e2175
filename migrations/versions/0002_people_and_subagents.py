"""Interactions with people, tool results from outside, child runs.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("agent_depth", sa.Integer(), server_default="0", nullable=False))
    op.add_column("runs", sa.Column("agent_path", sa.Text(), server_default="", nullable=False))
    op.add_column("runs", sa.Column("deadline_s", sa.Double(), nullable=True))
    op.add_column("runs", sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("runs", sa.Column("waiting_for", sa.JSON(), nullable=True))
    op.create_index(
        "ix_runs_deadline_at",
        "runs",
        ["deadline_at"],
        unique=False,
        postgresql_where=sa.text("deadline_at IS NOT NULL AND finished_at IS NULL"),
    )
    op.add_column("tool_executions", sa.Column("final_arguments", sa.JSON(), nullable=True))
    op.add_column("tool_executions", sa.Column("judged", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("tool_executions", sa.Column("hold", sa.JSON(), nullable=True))
    op.add_column("tool_executions", sa.Column("child_run_id", sa.UUID(), nullable=True))
    op.add_column("tool_executions", sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("tool_executions", sa.Column("posted", sa.JSON(), nullable=True))
    op.create_index(
        "ix_tool_executions_expires_at",
        "tool_executions",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text("expires_at IS NOT NULL AND posted IS NULL AND finished_at IS NULL"),
    )
    op.create_table(
        "interactions",
        sa.Column("interaction_id", sa.UUID(), nullable=False),
        sa.Column("tenant_id", sa.Text(), server_default="", nullable=False),
        sa.Column("run_id", sa.UUID(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("call_index", sa.Integer(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        sa.Column("tool_name", sa.Text(), nullable=True),
        sa.Column("tool_call_id", sa.Text(), nullable=True),
        sa.Column("arguments", sa.JSON(), nullable=True),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("fallback", sa.JSON(), nullable=False),
        sa.Column("answer", sa.JSON(), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("resolved_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("interaction_id", name=op.f("pk_interactions")),
    )
    op.create_index("ix_interactions_run_id", "interactions", ["run_id"], unique=False)
    op.create_index(
        "ix_interactions_pending",
        "interactions",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index(
        "ix_interactions_tenant_id_status_interaction_id",
        "interactions",
        ["tenant_id", "status", "interaction_id"],
        unique=False,
    )


def downgrade() -> None:
    op.drop_table("interactions")
    op.drop_index("ix_tool_executions_expires_at", table_name="tool_executions")
    for column in ("posted", "expires_at", "child_run_id", "hold", "judged", "final_arguments"):
        op.drop_column("tool_executions", column)
    op.drop_index("ix_runs_deadline_at", table_name="runs")
    for column in ("waiting_for", "deadline_at", "deadline_s", "agent_path", "agent_depth"):
        op.drop_column("runs", column)
