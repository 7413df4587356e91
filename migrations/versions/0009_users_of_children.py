"""Says of a worker why its jobs run as root."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; each worker fills its own within ten seconds."""
    op.add_column("workers", sa.Column("sandbox_problem", sa.Text(), nullable=True))


def downgrade() -> None:
    """Drop it."""
    with op.batch_alter_table("workers") as batch_op:
        batch_op.drop_column("sandbox_problem")
