"""Columns and tables get names that say what they hold."""

import sqlalchemy as sa
from alembic import op

from taskservice.database.types import Timestamp

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.alter_column("tasks", "heard_at", new_column_name="last_heartbeat_at")
    op.alter_column("tasks", "silent_at", new_column_name="heartbeat_deadline")
    # The table has one row, which the next heartbeat writes again.
    op.drop_table("presence")
    op.create_table(
        "service_heartbeat",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("since", Timestamp(), nullable=False),
        sa.Column("until", Timestamp(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("service_heartbeat_id_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("service_heartbeat_pkey")),
    )
