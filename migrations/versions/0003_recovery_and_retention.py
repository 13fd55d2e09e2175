"""Replicas that know their process, suspects, chores, retention.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("replicas", sa.Column("machine", sa.Text(), nullable=True))
    op.add_column("replicas", sa.Column("process_start", sa.BigInteger(), nullable=True))
    op.add_column("runs", sa.Column("deltas_trimmed", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.create_index(
        "ix_runs_suspects",
        "runs",
        ["available_at"],
        unique=False,
        postgresql_where=sa.text("status = 'queued' AND crashes >= 2"),
    )
    op.create_index(
        "ix_runs_finished_at",
        "runs",
        ["finished_at", "run_id"],
        unique=False,
        postgresql_where=sa.text("finished_at IS NOT NULL"),
    )
    op.create_table(
        "chores",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("replica", sa.UUID(), nullable=True),
        sa.Column(
            "held_until", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("done_up_to", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_chores")),
    )


def downgrade() -> None:
    op.drop_table("chores")
    op.drop_index("ix_runs_finished_at", table_name="runs")
    op.drop_index("ix_runs_suspects", table_name="runs")
    op.drop_column("runs", "deltas_trimmed")
    op.drop_column("replicas", "process_start")
    op.drop_column("replicas", "machine")
