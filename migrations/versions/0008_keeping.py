"""Keeps uploads that are sent in pieces, and says which jobs are kept whatever their age."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Make the table and the column; no job from before is pinned."""
    op.create_table(
        "partial_uploads",
        sa.Column("id", sa.String(length=30), nullable=False),
        sa.Column("owner", sa.String(length=30), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("filename", sa.String(length=255), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("architecture", JSON, nullable=True),
        sa.Column("weights", sa.String(length=255), nullable=True),
        sa.Column("prefix", sa.String(length=255), nullable=True),
        sa.Column("upload_metadata", sa.Text(), nullable=False),
        sa.Column("received_bytes", sa.BigInteger(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=True),
        sa.Column("result_id", sa.String(length=30), nullable=True),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_partial_uploads")),
    )
    op.create_index(op.f("ix_partial_uploads_owner"), "partial_uploads", ["owner"])
    op.create_index(op.f("ix_partial_uploads_expires_at"), "partial_uploads", ["expires_at"])
    op.add_column("jobs", sa.Column("pinned_at", sa.Double(), nullable=True))


def downgrade() -> None:
    """Drop them."""
    with op.batch_alter_table("jobs") as batch_op:
        batch_op.drop_column("pinned_at")
    op.drop_table("partial_uploads")
