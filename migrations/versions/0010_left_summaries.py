"""Summaries whose thread was deleted while they were written are removed.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision: str | None = "0009"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.execute("DELETE FROM compactions c WHERE NOT EXISTS (SELECT 1 FROM threads t WHERE t.thread_key = c.thread_key)")


def downgrade() -> None:
    """What is gone stays gone: nothing ever read it."""
