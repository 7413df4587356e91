"""Says which device a job asks for, which ones a worker has, and why it lacks one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Add the columns; jobs from before are for any worker."""
    op.add_column("jobs", sa.Column("device", sa.String(length=8), server_default="auto", nullable=False))
    op.add_column("workers", sa.Column("devices", JSON, server_default='["cpu"]', nullable=False))
    op.add_column("workers", sa.Column("device_problem", sa.Text(), nullable=True))


def downgrade() -> None:
    """Drop them."""
    with op.batch_alter_table("workers") as batch_op:
        batch_op.drop_column("device_problem")
        batch_op.drop_column("devices")
    with op.batch_alter_table("jobs") as batch_op:
        batch_op.drop_column("device")
