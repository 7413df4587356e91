"""Lets each owner's things be kept for a time of their own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; without a value in it the service's own time holds."""
    op.add_column("owners", sa.Column("retention_days", sa.Double(), nullable=True))


def downgrade() -> None:
    """Drop it, in place: keys refer to the table, which SQLite would not let be made anew."""
    op.drop_column("owners", "retention_days")
