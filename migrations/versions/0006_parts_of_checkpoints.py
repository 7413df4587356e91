"""Says which part of a checkpoint a model is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; of models from before, none was chosen."""
    op.add_column("models", sa.Column("weights", sa.String(length=255), nullable=True))
    op.add_column("models", sa.Column("prefix", sa.String(length=255), nullable=True))


def downgrade() -> None:
    """Drop them."""
    with op.batch_alter_table("models") as batch_op:
        for name in ("weights", "prefix"):
            batch_op.drop_column(name)
