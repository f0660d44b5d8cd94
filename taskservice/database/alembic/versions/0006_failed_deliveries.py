"""The failed deliveries of a user by an index, for the list of their tasks."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

FAILED = sa.text("state = 'failed'")


def upgrade() -> None:
    op.create_index(
        "deliveries_failed",
        "deliveries",
        ["user_id", "task_id"],
        sqlite_where=FAILED,
        postgresql_where=FAILED,
    )
