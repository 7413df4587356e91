"""Counts how long workers held a job, so that its time limit spans all its attempts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; jobs from before start at nothing."""
    op.add_column("jobs", sa.Column("held_s", sa.Double(), server_default="0", nullable=False))


def downgrade() -> None:
    """Drop it."""
    with op.batch_alter_table("jobs") as batch_op:
        batch_op.drop_column("held_s")
