"""Says where the preview of a data set is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; data sets from before have no preview."""
    op.add_column("datasets", sa.Column("preview_key", sa.String(length=255), nullable=True))
    op.add_column("datasets", sa.Column("preview_sha256", sa.String(length=64), nullable=True))
    op.add_column("datasets", sa.Column("preview_bytes", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    """Drop them."""
    with op.batch_alter_table("datasets") as batch_op:
        for name in ("preview_key", "preview_sha256", "preview_bytes"):
            batch_op.drop_column(name)
