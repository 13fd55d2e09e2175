"""The queue's index without the suspects, so that a look for those cannot go through it.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision: str | None = "0004"
branch_labels: str | None = None
depends_on: str | None = None

_COLUMNS = ["holds_thread", "available_at", "run_id"]


def upgrade() -> None:
    where = sa.text("status = 'queued' AND crashes < 2")
    op.create_index("ix_runs_ready", "runs", _COLUMNS, postgresql_where=where)
    op.drop_index("ix_runs_queued", "runs")


def downgrade() -> None:
    op.create_index("ix_runs_queued", "runs", _COLUMNS, postgresql_where=sa.text("status = 'queued'"))
    op.drop_index("ix_runs_ready", "runs")
