"""The user of a delivery, so that users can take turns."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

PENDING = sa.text("state = 'pending'")
# SQLite's table is rebuilt, and Alembic reads everything of the old one except these.
CHECKS = (
    sa.CheckConstraint(
        "(state = 'pending') = (next_attempt_at IS NOT NULL)",
        name="deliveries_next_attempt_check",
    ),
    sa.CheckConstraint(
        "state IN ('pending', 'delivered', 'failed', 'cancelled')",
        name="deliveries_state_check",
    ),
    sa.CheckConstraint("(lease IS NULL) = (leased_until IS NULL)", name="deliveries_lease_check"),
)


INDEXES = {
    "deliveries_due": ["next_attempt_at"],
    "deliveries_due_of_user": ["user_id", "next_attempt_at"],
    "deliveries_due_of_host": ["user_id", "host", "next_attempt_at"],
}


def upgrade() -> None:
    op.drop_index("deliveries_due", "deliveries")
    op.add_column("deliveries", sa.Column("user_id", sa.Uuid(as_uuid=False)))
    op.execute(
        "UPDATE deliveries SET user_id ="
        " (SELECT user_id FROM tasks WHERE tasks.id = deliveries.task_id)"
    )
    with op.batch_alter_table("deliveries", table_args=CHECKS) as batch:
        batch.alter_column("user_id", nullable=False)
    for name, columns in INDEXES.items():
        op.create_index(name, "deliveries", columns, sqlite_where=PENDING, postgresql_where=PENDING)
