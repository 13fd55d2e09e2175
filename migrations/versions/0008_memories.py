"""Long-term memories, and how their words are indexed.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision: str | None = "0007"
branch_labels: str | None = None
depends_on: str | None = None

_WORD_KINDS = "asciiword, asciihword, hword_asciipart, word, hword, hword_part"

# Where the extension is not there, or this account may not create it, memories are found by their words, until somebody
# has created it: nothing else in the database depends on it.
_PGVECTOR = """
DO $$
BEGIN
    CREATE EXTENSION IF NOT EXISTS vector;
EXCEPTION
    WHEN insufficient_privilege OR undefined_file OR feature_not_supported THEN
        RAISE NOTICE 'no pgvector: %', SQLERRM;
END
$$"""


def upgrade() -> None:
    op.execute("CREATE TEXT SEARCH DICTIONARY memory_stems (TEMPLATE = snowball, Language = english)")
    op.execute("CREATE TEXT SEARCH CONFIGURATION memory_words (COPY = pg_catalog.english)")
    op.execute(f"ALTER TEXT SEARCH CONFIGURATION memory_words ALTER MAPPING FOR {_WORD_KINDS} WITH memory_stems")
    op.create_table(
        "memories",
        sa.Column("tenant_id", sa.Text(), server_default="", nullable=False),
        sa.Column("namespace", sa.Text(collation="C"), nullable=False),
        sa.Column("key", sa.Text(collation="C"), nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column(
            "words",
            postgresql.TSVECTOR(),
            sa.Computed("to_tsvector('memory_words'::regconfig, text)", persisted=True),
            nullable=False,
        ),
        sa.Column("embedding", postgresql.ARRAY(sa.REAL()), nullable=True),
        sa.Column("embedding_model", sa.Text(), nullable=True),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column(
            "updated_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("tenant_id", "namespace", "key", name=op.f("pk_memories")),
    )
    # Numbers like these do not become smaller by compression; it would only cost time.
    op.execute("ALTER TABLE memories ALTER COLUMN embedding SET STORAGE EXTERNAL")
    op.create_index("ix_memories_words", "memories", ["words"], unique=False, postgresql_using="gin")
    op.create_index("ix_memories_embedding_model", "memories", ["embedding_model"], unique=False)
    op.execute(_PGVECTOR)


def downgrade() -> None:
    # The extension stays: it may be somebody else's by now.
    op.drop_table("memories")
    op.execute("DROP TEXT SEARCH CONFIGURATION memory_words")
    op.execute("DROP TEXT SEARCH DICTIONARY memory_stems")
