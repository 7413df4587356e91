"""Keeps what lists show of a report beside it, so that no list reads reports of megabytes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
_OUTCOMES = {
    "sqlite": "json_object('verdict', json_extract(report, '$.verdict'), 'failed_outputs', "
    "json(coalesce(json_extract(report, '$.failed_outputs'), '[]')))",
    "postgresql": "jsonb_build_object('verdict', report->>'verdict', 'failed_outputs', "
    "coalesce(report->'failed_outputs', '[]'::jsonb))",
}


def upgrade() -> None:
    """Add the column, and fill it for the jobs that have succeeded."""
    op.add_column("jobs", sa.Column("outcome", JSON, nullable=True))
    outcome = _OUTCOMES[op.get_bind().dialect.name]
    op.execute(f"update jobs set outcome = {outcome} where status = 'succeeded' and report is not null")  # noqa: S608 - ours


def downgrade() -> None:
    """Drop it."""
    op.drop_column("jobs", "outcome")
