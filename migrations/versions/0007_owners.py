"""Sets owners apart from their keys, keeps what was done, and lets owners take turns."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
OWNED = ("models", "datasets", "jobs", "idempotency_keys")


def upgrade() -> None:
    """Each key from before becomes an owner of its own with that one key, and keeps all its rows."""
    op.create_table(
        "owners",
        sa.Column("id", sa.String(length=30), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("disabled_at", sa.Double(), nullable=True),
        sa.Column("served_at", sa.Double(), nullable=True),
        sa.Column("quick_served_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_owners")),
    )
    op.execute("insert into owners (id, name, created_at) values ('local', 'local', 0)")
    op.execute(
        "insert into owners (id, name, created_at) select 'own_' || substr(id, 5), name, created_at from api_keys"
    )
    for table in OWNED:
        op.execute(f"update {table} set owner = 'own_' || substr(owner, 5) where owner in (select id from api_keys)")  # noqa: S608 - our own names
    op.add_column("api_keys", sa.Column("owner_id", sa.String(length=30), nullable=True))
    op.add_column("api_keys", sa.Column("scopes", sa.String(length=64), nullable=True))
    op.add_column("api_keys", sa.Column("expires_at", sa.Double(), nullable=True))
    op.add_column("api_keys", sa.Column("last_used_at", sa.Double(), nullable=True))
    op.execute("update api_keys set owner_id = 'own_' || substr(id, 5), scopes = 'read submit'")
    with op.batch_alter_table("api_keys") as batch_op:
        batch_op.alter_column("owner_id", existing_type=sa.String(length=30), nullable=False)
        batch_op.alter_column("scopes", existing_type=sa.String(length=64), nullable=False)
        batch_op.create_foreign_key(op.f("fk_api_keys_owner_id_owners"), "owners", ["owner_id"], ["id"])
    op.create_index(op.f("ix_api_keys_owner_id"), "api_keys", ["owner_id"])
    op.create_table(
        "audit_log",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("actor", sa.String(length=30), nullable=False),
        sa.Column("key_id", sa.String(length=30), nullable=True),
        sa.Column("action", sa.String(length=80), nullable=False),
        sa.Column("subject", sa.String(length=80), nullable=True),
        sa.Column("detail", JSON, nullable=True),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_audit_log_actor"), "audit_log", ["actor"])
    op.add_column("jobs", sa.Column("key_id", sa.String(length=30), nullable=True))
    op.add_column("jobs", sa.Column("result_bytes", sa.BigInteger(), server_default="0", nullable=False))
    op.execute(
        "update jobs set result_bytes = (select sum(size_bytes) from artifacts where job_id = jobs.id) "
        "where id in (select job_id from artifacts)"
    )
    op.create_index("ix_jobs_owner_result_bytes", "jobs", ["owner", "result_bytes"])
    op.create_index("ix_jobs_key_id", "jobs", ["key_id"])
    op.create_index("ix_jobs_status_owner_type_device_id", "jobs", ["status", "owner", "type", "device", "id"])


def downgrade() -> None:
    """An owner's rows become those of the first of their keys."""
    op.drop_index("ix_jobs_status_owner_type_device_id", "jobs")
    op.drop_index("ix_jobs_key_id", "jobs")
    op.drop_index("ix_jobs_owner_result_bytes", "jobs")
    with op.batch_alter_table("jobs") as batch_op:
        batch_op.drop_column("result_bytes")
        batch_op.drop_column("key_id")
    op.drop_table("audit_log")
    for table in OWNED:
        op.execute(
            f"update {table} set owner = (select min(id) from api_keys where owner_id = {table}.owner) "  # noqa: S608 - as above
            f"where owner in (select owner_id from api_keys)"
        )
    op.drop_index(op.f("ix_api_keys_owner_id"), "api_keys")
    with op.batch_alter_table("api_keys") as batch_op:
        batch_op.drop_constraint(op.f("fk_api_keys_owner_id_owners"), type_="foreignkey")
        for name in ("owner_id", "scopes", "expires_at", "last_used_at"):
            batch_op.drop_column(name)
    op.drop_table("owners")
